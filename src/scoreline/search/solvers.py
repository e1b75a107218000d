"""`scoreline search --space solver`: S^3 on a model, beside random search and the best published solvers.

Searchers and baselines go through :class:`scoreline.search.workflow.Workflow`: one noise for the search, another to
choose among the finalists, further seeds for what is reported. The winner is plan.json, a few plain numbers that
`--samplers usf:plan=FILE` takes.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import numpy as np

from scoreline.core.artefact import describe
from scoreline.core.cost import machine
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.files import write_json
from scoreline.core.noise import derive
from scoreline.data import load_images
from scoreline.diffusion.latent import Latent
from scoreline.guidance.skip_tuning import joint_count
from scoreline.samplers.calibrations import find, plain_model
from scoreline.samplers.known_solvers import known_solver
from scoreline.samplers.solver_schedule import SolverSchedule, write_plans
from scoreline.samplers.usf import USF
from scoreline.search.engine import Genotype, Result, Searcher
from scoreline.search.pareto import front
from scoreline.search.solver_space import SolverSpace
from scoreline.search.usf import SamplerOf, SolverSearch
from scoreline.search.workflow import Workflow, running_best

__all__ = ["mean_image", "search_solvers", "solver_space"]

# What stands beside the search: these as `--samplers` runs them, and the best of these on any grid.
BASELINES = ("ddim", "dpm-solver++2m", "unipc-2")
PUBLISHED = ("ddim", "dpm-solver++2m", "dpm-solver++3m", "deis-2", "unipc-2", "unipc-3")
# Images that are averaged for the analytic first step.
AVERAGED = 10_000


def solver_space(workflow: Workflow, nfe: int, *, joints: bool = False, average: bool = False) -> SolverSpace:
    """Where schedules of a budget are looked for.

    Args:
        workflow: with the model.
        nfe: evaluations an image that the run costs, guidance counted.
        joints: with the scales of the network's skip joints.
        average: with the analytic first step from the mean image.

    Raises:
        InputError: no schedule has this budget, or the model has no skip joints.
    """
    model = workflow.model
    steps = nfe // model.evaluations
    if steps < 2:
        raise InputError("nfe", nfe, f"a solver schedule needs at least {2 * model.evaluations} on this model")
    count = joint_count(model) if joints else 0
    return SolverSpace(model.schedule, (steps,), ems=_has_statistics(model), average=average, joints=count)


def search_solvers(
    workflow: Workflow,
    *,
    nfe: int = 5,
    variant: str = "paper",
    method: str | None = None,
    joints: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Search the solver schedule of a run; write plan.json and results.json.

    Args:
        workflow: model, objective, noise, budget of evaluations and folder.
        nfe: evaluations an image that the run costs, guidance counted.
        variant: of the steps, as in the paper or as the authors' code runs them.
        method: "s3", with the predictor, or "evolution" alone; None takes what the variant has, "s3" or "evolution".
        joints: also search the scales of the network's skip joints, the same at every level.
        command: what was typed, for the record.

    Returns:
        What is in results.json.

    Raises:
        InputError: something is misspelt or does not fit, or no schedule is feasible; nothing was run.
        ArtefactError: the folder holds another search.
    """
    model, folder = workflow.model, workflow.folder
    usual = "s3" if variant == "paper" else "evolution"
    winner = usual if method is None else method
    if winner not in ("s3", "evolution"):
        raise unknown_name("method", winner, ("s3", "evolution"))
    if variant != "paper" and winner == "s3":
        raise InputError("method", winner, "the released code searches by evolution alone; leave out one of the two")
    solver_space(workflow, nfe, joints=joints)
    mean = mean_image(workflow)
    space = solver_space(workflow, nfe, joints=joints, average=mean is not None)
    (steps,) = space.nfe
    sampler_of = SamplerOf(describe(model.schedule), mean, variant)
    count = workflow.evaluations
    sizes: dict[str, Any] = {"evaluations": count, "later": max(1, min(25, count // 10))}
    sizes |= {"first_stage": max(1, min(100, 2 * count // 5)), "candidates": max(200, sizes["later"])}
    learns = SolverSearch(space, method=winner, seed=derive(workflow.seed, winner), **sizes)
    searchers: dict[str, Searcher] = {
        "best published": _Listed(_published(space, steps)[:count]),
        "random search": SolverSearch(space, method="random", seed=derive(workflow.seed, "random"), **sizes),
        winner: learns,
    }
    settings = {
        "space": "solver", "nfe": nfe, "variant": variant, "ems": space.ems, "average": space.average,
        **({"joints": space.joints} if joints else {}), **({"method": winner} if winner != usual else {}),
    }  # fmt: skip
    history, rows = workflow.run(sampler_of, searchers, _baselines(space, steps), settings)
    plan_path, results_path = folder / "plan.json", folder / "results.json"
    model_name, objective = str(workflow.objective.model), workflow.objective
    best = rows[-1]
    facts = {
        "model": model_name, "belongs_to": getattr(model, "header", {}).get("fingerprint"), "command": command,
        "search": {
            "method": winner, "metric": objective.metric, "seed": workflow.seed, "evaluations": count,
            "network_evaluations": count * nfe * objective.count, "kendall_tau": learns.taus,
            "found_after": int(np.argmin([row["result"]["value"] for row in history[winner]])) + 1,
        },
    }  # fmt: skip
    held_out = {name: best[name] for name in ("mean", "low", "high", "values")}
    kept = mean if best["genotype"].get("afs") == "average" else None
    write_plans(plan_path, [{"plan": best["genotype"], "held_out": held_out}], model.schedule, mean=kept, **facts)
    found = [{**row["result"], "cost": row["result"]["nfe"]} for row in history[winner]]
    found = [one for one in found if np.isfinite(one["value"])]
    use = [
        "scoreline",
        "sample",
        model_name,
        "--sampler",
        f"usf:plan={plan_path}",
        "--nfe",
        str(nfe),
        "--out",
        "images",
    ]
    use += ["--clip"] if objective.clip else []
    use += [f"--guidance={objective.guidance:g}"] if objective.guidance is not None else []
    results = {
        "model": model_name, "settings": {**settings, **workflow.settings()}, "rows": rows, "unit": "evaluations",
        "progress": {name: running_best(evaluated) for name, evaluated in history.items()},
        "seen": [{key: one[key] for key in ("cost", "macs", "value")} for one in found],
        "front": [found[i] for i in front(found, ["cost", "value"])], "kendall_tau": learns.taus,
        "machine": machine(), "command": command, "files": [str(plan_path), str(results_path)], "use": shlex.join(use),
    }  # fmt: skip
    write_json(results_path, results)
    return results


def mean_image(workflow: Workflow) -> list[Any] | None:
    """The mean of the model's training images, as nested lists; None where they are not known or not of its kind."""
    objective = workflow.objective
    source = objective.data or getattr(objective.bare, "header", {}).get("card", {}).get("data")
    if source is None or str(source).endswith(".npz") or isinstance(plain_model(workflow.model), Latent):
        return None
    try:
        images = load_images(source, split="train" if source == "digits" else objective.split)
    except InputError:
        return None
    if tuple(images.shape) != tuple(workflow.model.shape):
        return None
    count = min(len(images), AVERAGED)
    total = sum(images.batch(range(i, min(i + 500, count))).image.double().sum(0) for i in range(0, count, 500))
    return np.round((total / count).numpy(), 5).tolist()  # type: ignore[union-attr]


def _has_statistics(model: Denoiser) -> bool:
    try:
        find("dpm-solver-v3", model)
    except InputError:
        return False
    return True


class _Listed:
    """A searcher that proposes what it was given, once."""

    def __init__(self, genotypes: list[Genotype]) -> None:
        self._left = genotypes

    def ask(self) -> list[Genotype]:
        asked, self._left = self._left, []
        return asked

    def tell(self, genotypes: list[Genotype], results: list[Result]) -> None:
        """There is nothing to learn."""


def _baselines(space: SolverSpace, steps: int) -> dict[str, Genotype]:
    """Published solvers as samplers run here: on the schedule's own grid, with a last step to the clean image."""
    plans = {}
    for name in BASELINES:
        times = USF(like=name, steps=steps).times(space.schedule)
        plans[name] = _plan(space, name, times)
    return plans


def _published(space: SolverSpace, steps: int) -> list[Genotype]:
    """Published solvers on every grid, both to a last level and to the clean image."""
    spaces = (space, replace(space, clean=True))
    return [_plan(space, name, times) for where in spaces for times in where.grids(steps) for name in PUBLISHED]


def _plan(space: SolverSpace, name: str, times: np.ndarray) -> Genotype:
    with np.errstate(divide="ignore"):
        lam = space.schedule.lam(times)
    return SolverSchedule(tuple(times), known_solver(name, lam)).to_dict()
