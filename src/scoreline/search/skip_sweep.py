"""The sweep that finds skip-tuning's coefficient for a model and a budget, Ma et al. 2024 (arXiv 2402.15170).

Every setting is scored on noise A, the best is chosen there, and it is reported beside the untuned network on noise B,
because the best of many is too good on the noise that chose it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.files import write_json
from scoreline.core.sampler import Sampler
from scoreline.evaluate.progress import progress
from scoreline.guidance.skip_tuning import SkipTuning
from scoreline.search.engine import Genotype, Result, genotype_key, search
from scoreline.search.objective import Objective

__all__ = ["RHOS", "SkipSampler", "skip_sweep"]

# The paper's range in steps of 0.05, and two settings beyond 1 to see that the direction matters.
RHOS = (*(round(0.5 + 0.05 * i, 2) for i in range(11)), 1.1, 1.2)


@dataclass(frozen=True)
class SkipSampler:
    """Genotype {"rho", "top", "low", "high"} -> sampler; what a genotype leaves out is SkipTuning's default.

    Args:
        of: name of the sampler inside.
        nfe, steps: its cost, one of them.
        side: "skip" or "hidden".
        grid: spacing, None for the sampler's own.
    """

    of: str
    nfe: int | None = None
    steps: int | None = None
    side: str = "skip"
    grid: str | None = None

    def __call__(self, genotype: Genotype) -> Sampler:
        return SkipTuning(of=self.of, side=self.side, nfe=self.nfe, steps=self.steps, grid=self.grid, **genotype)

    def spec(self, genotype: Genotype) -> str:
        """The text that `--samplers` takes; the cost is given apart."""
        settings = {"of": self.of, **genotype}
        settings |= {"side": self.side} if self.side != "skip" else {}
        settings |= {"grid": self.grid} if self.grid else {}
        return ":".join(["skip-tuning", *(f"{name}={value}" for name, value in settings.items())])


class _Once:
    """Asks for a list of settings, once."""

    def __init__(self, genotypes: list[Genotype]) -> None:
        self.left = genotypes

    def ask(self) -> list[Genotype]:
        asked, self.left = self.left, []
        return asked

    def tell(self, genotypes: list[Genotype], results: list[Result]) -> None:
        """Nothing is learned."""


def _genotypes(
    rho: Sequence[float], top: Sequence[float], ranges: Sequence[tuple[float, float]]
) -> tuple[Genotype, list[Genotype]]:
    """The untuned setting, and all settings with it in the first place."""
    plain: Genotype = {"rho": 1.0, "top": 1.0}
    every = [plain]
    for low, high in ranges:
        limits = ({"low": float(low)} if low > 0 else {}) | ({"high": float(high)} if math.isfinite(high) else {})
        for t in top:
            every += [{"rho": float(r), "top": float(t), **limits} for r in rho if (r, t) != (1, 1)]
    return plain, [dict(g) for g in {genotype_key(g): g for g in every}.values()]


def skip_sweep(
    model: str | Denoiser,
    *,
    of: str = "heun",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | None = None,
    rho: Sequence[float] = RHOS,
    top: Sequence[float] = (1.0,),
    ranges: Sequence[tuple[float, float]] = ((0.0, math.inf),),
    side: str = "skip",
    metric: str = "fd",
    data: str | None = None,
    split: str | None = None,
    features: str = "auto",
    count: int = 500,
    noise_seed: int = 0,
    report_seeds: Sequence[int] = (1, 2, 3),
    report_count: int | None = None,
    guidance: float | None = None,
    clip: bool = False,
    labels: Sequence[int] | None = None,
    batch_size: int = 500,
    out: str | os.PathLike[str] | None = None,
    workers: int | str = 1,
    quiet: bool = True,
) -> dict[str, Any]:
    """Score settings of skip-tuning on one noise, report the best on another.

    Args:
        model: built-in name or path, or the denoiser itself; a U-Net.
        of: the sampler inside.
        nfe, steps: its cost, one of them.
        grid: its spacing.
        rho: factors of the deepest joint; 1, the untuned network, is always among them.
        top: factors of the highest resolution.
        ranges: (low, high) noise levels sigma/alpha between which the factors hold.
        side: "skip", or "hidden" for the control.
        metric, data, split, features, guidance, clip, labels, batch_size: see
            :class:`scoreline.search.objective.Objective`.
        count: images a setting.
        noise_seed: noise A.
        report_seeds: noise B, at least one seed, none of them A.
        report_count: images a seed of the report, None for `count`.
        out: folder for `skips.json` and the ledger from which a stopped sweep goes on; None keeps nothing.
        workers: see :func:`scoreline.search.engine.search`.
        quiet: show no progress.

    Returns:
        {"sampler": what `--samplers` takes, "chosen", "gain", "candidates", "report", ...}; "gain" is the share by
        which the reported score of the chosen setting lies below the untuned one's, 0 where the untuned was chosen.

    Raises:
        InputError: the model has no skip joints, or a setting is out of range; before any image is made.
    """
    if not rho or not top or not ranges:
        raise InputError("rho, top, ranges", (len(rho), len(top), len(ranges)), "give at least one of each")
    if (nfe is None) == (steps is None):
        raise InputError("nfe, steps", (nfe, steps), "give one of them")
    make = SkipSampler(of, nfe, steps, side, grid)
    plain, genotypes = _genotypes(rho, top, ranges)
    objective = Objective(
        model, make, metric=metric, data=data, split=split, features=features, count=count, noise_seed=noise_seed,
        guidance=guidance, clip=clip, labels=labels, batch_size=batch_size,
    )  # fmt: skip
    if not report_seeds or noise_seed in report_seeds:
        raise InputError("report_seeds", list(report_seeds), f"give seeds other than {noise_seed}, the search's own")
    costs = [objective.check(genotype) for genotype in genotypes]  # all of them, before any image is made
    folder = None if out is None else Path(out)
    job = {"space": "skips", **objective.job(), "of": of, "nfe": nfe, "steps": steps, "grid": grid, "side": side}
    with progress("skips", len(genotypes), quiet=quiet) as advance:
        history = search(
            _Once(genotypes), objective, ledger=None if folder is None else folder / "skips.jsonl", job=job,
            workers=workers, advance=advance,
        )  # fmt: skip
    candidates = [{**row["genotype"], "value": row["result"]["value"]} for row in history]
    # The untuned network stands first, so that a tie leaves it as it is.
    chosen = min(history, key=lambda row: row["result"]["value"])["genotype"]
    told = [plain] if chosen == plain else [plain, chosen]
    rows = objective.report(told, list(report_seeds), report_count or count)
    result = {
        "space": "skips",
        "model": job["model"],
        "fingerprint": job["fingerprint"],
        "metric": metric,
        "nfe": costs[0],
        "sampler": make.spec(chosen),
        "chosen": chosen,
        "gain": 1 - rows[-1]["mean"] / rows[0]["mean"] if chosen != plain else 0.0,
        "report": {"plain": rows[0], "chosen": rows[-1], "seeds": list(report_seeds)},
        "candidates": candidates,
        "noise_seed": noise_seed,
        "search_evaluations": len(candidates) * count * costs[0],
    }
    if folder is not None:
        write_json(folder / "skips.json", result)
    return result
