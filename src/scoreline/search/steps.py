"""`scoreline search --space steps`: AutoDiffusion on a model, beside its baselines, to a plan that can be sampled with.

The evolution and a random search of as many evaluations see one noise; of the best of each, some finalists are scored
again with noise of their own, and what is reported of the winners and of the uniform grids was measured with noise that
chose nothing. Everything is on disk as it is finished; the same command goes on from there.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
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
from scoreline.evaluate.ledger import Ledger
from scoreline.evaluate.progress import progress
from scoreline.evaluate.specs import make_sampler, parse_labels
from scoreline.guidance.planned import Planned, RunPlan, write_plan
from scoreline.search.autodiffusion import Evolution, RandomSearch
from scoreline.search.candidates import GRIDS, Candidate, Space, base_levels, grid_steps, uniform
from scoreline.search.costs import layer_costs, layer_count
from scoreline.search.engine import Genotype, parse_workers, search
from scoreline.search.objective import Objective
from scoreline.search.pareto import front

__all__ = ["PlannedOf", "search_steps"]

FINALISTS = 5


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


def search_steps(
    model_name: str,
    out: str | Path,
    *,
    nfe: int = 10,
    of: str = "ddim",
    layers: bool = False,
    max_prune: float = 0.1,
    cost: str = "layers",
    evaluations: int = 500,
    workers: int | str = 1,
    metric: str = "fd",
    data: str | None = None,
    features: str = "auto",
    count: int = 500,
    report_count: int = 1000,
    report_seeds: Sequence[int] = (0, 1, 2),
    noise: str = "fixed",
    guidance: float | None = None,
    clip: bool = False,
    labels: str | None = None,
    variant: str = "paper",
    seed: int = 0,
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Search the levels of a run, and with `layers` what to leave out at each; write plan.json and results.json.

    Args:
        model_name: built-in name or path of a denoiser.
        out: folder; a stopped search in it goes on.
        nfe: evaluations an image of the whole network that the run may cost, guidance counted.
        of: the sampler, with settings.
        layers: also search which layers to leave out; what that saves buys more levels.
        max_prune: largest share of layers left out at a level.
        cost: what the budget is counted in: "layers", "macs" or "seconds".
        evaluations: candidates, of the evolution and of the random search each.
        workers: see :func:`scoreline.search.engine.search`.
        metric, data, features, count, noise, guidance, clip: see :class:`scoreline.search.objective.Objective`.
        report_count, report_seeds: images a seed, and seeds, of what is reported.
        labels: classes asked for in turn, as `0,1,7`, or `none`.
        variant: operators of the "paper" or of the "released" code.
        seed: of all draws of the searches.
        command: what was typed, for the record.
        quiet: no progress.

    Returns:
        What is in results.json.

    Raises:
        InputError: something is misspelt, does not fit, or nothing is feasible; nothing was run.
        ArtefactError: the folder holds another search.
    """
    workers = parse_workers(workers)
    folder = Path(out)
    search_noise = derive(seed, "search")
    objective = Objective(
        model_name, _Unset(), metric=metric, data=data, features=features, count=count, noise_seed=search_noise,
        noise=noise, guidance=guidance, clip=clip,  # type: ignore[arg-type]
    )  # fmt: skip
    model = objective.denoiser
    objective.labels = parse_labels(labels, model.num_classes)
    sampler_of = planned_of(model, of)
    objective.sampler_of = sampler_of
    source = data or getattr(objective.bare, "header", {}).get("card", {}).get("data")
    digits = metric != "rmse" and source == "digits"
    # Chosen on the training split, reported on the test split, where there are two.
    objective.split = "train" if digits else None
    judge = objective.but(split="test" if digits else None)

    steps = make_sampler(of, nfe=nfe).plan(model.evaluations)
    if report_count < 2:
        raise InputError("report_count", report_count, "must be 2 or more")
    settings = {
        "nfe": nfe, "of": of, "layers": layers, "max_prune": max_prune if layers else 0.0, "cost": cost,
        "evaluations": evaluations, "variant": variant, "seed": seed, "report_count": report_count,
        "report_seeds": list(report_seeds), **objective.job(),
    }  # fmt: skip
    job = Ledger(folder / "search.jsonl", settings)
    space = _space(model, steps, len(sampler_of.levels), layers, cost, folder)
    sizes = _sizes(evaluations)
    baselines = _baselines(steps, space.levels)
    share = max_prune if layers else 0.0
    start = [uniform(steps, space.levels), *baselines.values()]
    evolution = Evolution(
        space, max_prune=share, evaluations=evaluations, start=start, seed=derive(seed, "evolution"), variant=variant,
        **sizes,
    )  # fmt: skip
    random = RandomSearch(
        space, evaluations=evaluations, max_prune=share, seed=derive(seed, "random"), batch=sizes["population"]
    )
    objective.check(start[0].genotype())
    for number in report_seeds:
        if number == search_noise or number < 0:
            raise InputError("seed", number, "of the report must be 0 or more, and not the search's own")

    history: dict[str, list[dict[str, Any]]] = {}
    for name, searcher in (("evolution", evolution), ("random", random)):
        with progress(f"search, {name}", evaluations, quiet=quiet) as advance:
            history[name] = search(
                searcher, objective, ledger=folder / f"{name}.jsonl", job=settings, workers=workers, advance=advance
            )
    arms = {name: candidate.genotype() for name, candidate in baselines.items()}
    finalists = {"random search": random.top[:FINALISTS], "evolution": evolution.top[:FINALISTS]}
    total = sum(map(len, finalists.values())) + len(arms) + 2
    with progress("search, report", total, quiet=quiet) as advance:

        def known(kind: str, genotype: Genotype, seeds: Sequence[int]) -> dict[str, Any]:
            key = f"{kind} {Candidate.of(genotype).key()}"
            row = job[key] if key in job else job.add(key, **judge.report([genotype], seeds, report_count)[0])
            advance(1, kind)
            return row

        for name, members in finalists.items():
            rescored = [(known("finalist", c.genotype(), [derive(seed, "finalists")])["mean"], c) for _, c in members]
            arms[name] = min(rescored, key=lambda pair: pair[0])[1].genotype()
        rows = [_row(name, genotype, known("report", genotype, report_seeds), space) for name, genotype in arms.items()]
    best = sampler_of.plan(arms["evolution"])
    plan_path, results_path = folder / "plan.json", folder / "results.json"
    card = {"command": command, "model": model_name, "sampler": of, "metric": metric, "scores": rows}
    fingerprint = getattr(model, "header", {}).get("fingerprint")
    write_plan(plan_path, best, belongs_to=fingerprint, card=card)
    found = [{**row["result"], "cost": space.cost(Candidate.of(row["genotype"]))} for row in history["evolution"]]
    on_front = [i for i in front(found, ["cost", "value"]) if np.isfinite(found[i]["value"])]
    spec = f"planned:plan={plan_path}:of={of.partition(':')[0]}"
    results = {
        "space": "steps", "model": model_name, "settings": settings, "rows": rows,
        "progress": {name: _running_best(rows_) for name, rows_ in history.items()},
        "seen": [{"cost": row["cost"], "macs": row["macs"], "value": _finite(row["value"])} for row in found],
        "front": [{**found[i], **history["evolution"][i]["genotype"]} for i in on_front],
        "machine": machine(), "command": command, "files": [str(plan_path), str(results_path)],
        "use": shlex.join(["scoreline", "sample", model_name, "--sampler", spec, "--nfe", str(nfe), "--out", "images"]),
    }  # fmt: skip
    write_json(results_path, results)
    return results


class _Unset:
    """Stands where the maker of samplers will be put once the model is known."""

    def __call__(self, genotype: Genotype) -> Sampler:
        raise InputError("sampler_of", None, "is not set")


def _space(model: Denoiser, steps: int, levels: int, layers: bool, cost: str, folder: Path) -> Space:
    if not layers:
        return Space.of_steps(levels, steps)
    if cost != "seconds":
        full, saved = layer_costs(model, cost)
        return Space(levels, full * steps, full, saved)
    # A measurement is another one each time: the search goes on with the one that it began with.
    path = folder / "seconds.json"
    if not path.exists():
        layer_count(model)
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


def _row(name: str, genotype: Genotype, measured: dict[str, Any], space: Space) -> dict[str, Any]:
    candidate = Candidate.of(genotype)
    numbers = ("values", "mean", "low", "high", "nfe", "macs", "seconds")
    return {
        "name": name, **{key: measured[key] for key in numbers}, "cost": space.cost(candidate),
        "left_out": sum(len(d) for _, d in candidate.visited()), **genotype,
    }  # fmt: skip


def _running_best(rows: Sequence[dict[str, Any]]) -> list[float | None]:
    best = np.minimum.accumulate([row["result"]["value"] for row in rows])
    return [_finite(float(value)) for value in best]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
