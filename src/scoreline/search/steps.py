"""`scoreline search --space steps`: AutoDiffusion on a model beside its baselines, to a plan to sample with."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scoreline.core.artefact import describe
from scoreline.core.cost import machine
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.files import read_json, write_json
from scoreline.core.noise import derive
from scoreline.core.sampler import Sampler
from scoreline.evaluate.specs import make_sampler
from scoreline.guidance.planned import Planned, RunPlan, write_plan
from scoreline.search.autodiffusion import Evolution, RandomSearch
from scoreline.search.candidates import GRIDS, Candidate, Space, base_levels, grid_steps, uniform
from scoreline.search.costs import layer_costs
from scoreline.search.engine import Genotype
from scoreline.search.pareto import front
from scoreline.search.workflow import Workflow, running_best

__all__ = ["PlannedOf", "planned_of", "search_steps", "step_count"]


@dataclass(frozen=True)
class PlannedOf:
    """Genotype -> the sampler that visits its levels.

    Args:
        of: spec of the sampler inside.
        levels: the base levels, ascending.
        schedule: description of the model's schedule.
    """

    of: str
    levels: tuple[float, ...]
    schedule: dict[str, Any] | None

    def plan(self, genotype: Genotype) -> RunPlan:
        """The plan of a genotype, the noisiest level first."""
        pairs = Candidate.of(genotype).visited()[::-1]
        return RunPlan(
            tuple(self.levels[step] for step, _ in pairs), tuple(frozenset(d) for _, d in pairs), self.schedule
        )

    def __call__(self, genotype: Genotype) -> Sampler:
        return Planned(plan=self.plan(genotype).plain(), of=make_sampler(self.of))


def planned_of(model: Denoiser, of: str) -> PlannedOf:
    """What makes samplers of genotypes on a model."""
    levels = tuple(float(t) for t in base_levels(model.schedule))
    return PlannedOf(of, levels, describe(model.schedule) if hasattr(model.schedule, "_arguments") else None)


def step_count(workflow: Workflow, nfe: int, of: str) -> int:
    """The levels that a budget buys without leaving anything out.

    Raises:
        InputError: a sampler with settings, or a budget of no run on this model.
    """
    if ":" in of:
        raise InputError("sampler", of, "a plan names its sampler without settings; give the name alone")
    model = workflow.model
    steps, levels = make_sampler(of, nfe=nfe).plan(model.evaluations), len(base_levels(model.schedule))
    Space.of_steps(levels, steps)
    return steps


def search_steps(
    workflow: Workflow,
    *,
    nfe: int = 10,
    of: str = "ddim",
    layers: bool = False,
    max_prune: float = 0.1,
    cost: str = "layers",
    variant: str = "paper",
    command: str = "",
) -> dict[str, Any]:
    """Search the levels of a run, and with `layers` what to leave out at each; write plan.json and results.json.

    Args:
        workflow: model, objective, noise, budget of evaluations and folder.
        nfe: evaluations an image of the whole network that the run may cost, guidance counted.
        of: name of the sampler.
        layers: also search which layers to leave out; what that saves buys more levels.
        max_prune: largest share of layers left out at a level.
        cost: what the budget is counted in: "layers", "macs" or "seconds".
        variant: operators of the "paper" or of the "released" code.
        command: what was typed, for the record.

    Returns:
        What is in results.json.

    Raises:
        InputError: something is misspelt, does not fit, or nothing is feasible; nothing was run.
        ArtefactError: the folder holds another search.
    """
    model, folder = workflow.model, workflow.folder
    steps = step_count(workflow, nfe, of)
    sampler_of = planned_of(model, of)
    space = _space(model, steps, len(sampler_of.levels), layers, cost, folder)
    share = max_prune if layers else 0.0
    baselines = _baselines(steps, space.levels)
    sizes = _sizes(workflow.evaluations)
    evolution = Evolution(
        space, max_prune=share, evaluations=workflow.evaluations, seed=derive(workflow.seed, "evolution"),
        start=[uniform(steps, space.levels), *baselines.values()], variant=variant, **sizes,
    )  # fmt: skip
    random = RandomSearch(
        space, evaluations=workflow.evaluations, max_prune=share, seed=derive(workflow.seed, "random"),
        batch=sizes["population"],
    )  # fmt: skip
    settings = {"space": "steps", "nfe": nfe, "of": of, "max_prune": share, "cost": cost, "variant": variant}
    history, rows = workflow.run(
        sampler_of, {"random search": random, "evolution": evolution},
        {name: candidate.genotype() for name, candidate in baselines.items()}, settings,
    )  # fmt: skip
    for row in rows:
        candidate = Candidate.of(row["genotype"])
        row |= {"cost": space.cost(candidate), "left_out": sum(len(d) for _, d in candidate.visited())}
    plan_path, results_path = folder / "plan.json", folder / "results.json"
    model_name = str(workflow.objective.model)
    scores = {row["name"]: row["mean"] for row in rows}
    card = {"command": command, "model": model_name, "sampler": of, "metric": workflow.objective.metric}
    write_plan(
        plan_path, sampler_of.plan(rows[-1]["genotype"]), card=card | {"scores": scores},
        belongs_to=getattr(model, "header", {}).get("fingerprint"),
    )  # fmt: skip
    found = [{**row["result"], "cost": space.cost(Candidate.of(row["genotype"]))} for row in history["evolution"]]
    found = [one | {"genotype": row["genotype"]} for one, row in zip(found, history["evolution"])]
    found = [one for one in found if np.isfinite(one["value"])]
    spec = f"planned:plan={plan_path}:of={of}"
    use = ["scoreline", "sample", model_name, "--sampler", spec, "--nfe", str(nfe), "--out", "images"]
    use += ["--clip"] if workflow.objective.clip else []
    use += [f"--guidance={workflow.objective.guidance:g}"] if workflow.objective.guidance is not None else []
    results = {
        "model": model_name, "settings": {**settings, **workflow.settings()}, "rows": rows, "unit": cost,
        "progress": {name: running_best(evaluated) for name, evaluated in history.items()},
        "seen": [{key: one[key] for key in ("cost", "macs", "value")} for one in found],
        "front": [found[i] for i in front(found, ["cost", "value"])],
        "machine": machine(), "command": command, "files": [str(plan_path), str(results_path)],
        "use": shlex.join(use),
    }  # fmt: skip
    write_json(results_path, results)
    return results


def _space(model: Denoiser, steps: int, levels: int, layers: bool, cost: str, folder: Path) -> Space:
    if not layers:
        return Space.of_steps(levels, steps)
    if cost != "seconds":
        full, saved = layer_costs(model, cost)
        return Space(levels, full * steps, full, saved)
    # A measurement is another one each time: the search goes on with the one that it began with.
    path = folder / "seconds.json"
    if not path.exists():
        full, saved = layer_costs(model, cost)
        write_json(path, {"full": full, "saved": list(saved)})
    stored = read_json(path)
    return Space(levels, stored["full"] * steps, stored["full"], tuple(stored["saved"]))


def _sizes(evaluations: int) -> dict[str, int]:
    """The paper's population for 500 evaluations, smaller ones in proportion: ten generations or more."""
    if evaluations < 1:
        raise InputError("evaluations", evaluations, "must be 1 or more")
    population = min(50, max(8, round(evaluations / 10)))
    return {
        "population": population, "parents": max(2, population // 5), "mutants": population // 2,
        "crossovers": 3 * population // 10, "generations": -(-evaluations // population) + 10,
    }  # fmt: skip


def _baselines(steps: int, levels: int) -> dict[str, Candidate]:
    """The uniform grids that have exactly so many steps."""
    found = {}
    for name in GRIDS:
        try:
            found[name] = Candidate(tuple(grid_steps(name, steps, levels)), ((),) * steps)
        except InputError:
            continue
    return found
