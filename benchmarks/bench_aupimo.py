"""AUPIMO by sorting once against counting at every threshold.

40 maps of 256 x 256 (30 normal, 10 with a defect). Sides: our three routes; `literal`, the original's procedure in
NumPy (for every image the confusion matrix at every one of K thresholds, rates from these, area at the end); and the
original package with its compiled counting where it is installed, its compilation timed apart. Scores must agree.

    python benchmarks/bench_aupimo.py [--thresholds 300000] [--rounds 5] [--quick] [--json FILE]
"""

from __future__ import annotations

import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import finish, load, options, parser, race, table
from scoreline.metrics.aupimo import aupimo, pimo_curves
from scoreline.metrics.pixel_curves import aupro, auroc

BOUNDS = (1e-5, 1e-4)
QUICK_BOUNDS = (1e-3, 1e-2)


def defects(normal: int, anomalous: int, size: int) -> tuple[Tensor, Tensor]:
    """float32 noise with smooth structure, and defects of different strength."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(normal + anomalous, size, size, generator=generator)
    masks = torch.zeros(normal + anomalous, size, size, dtype=torch.bool)
    for i in range(anomalous):
        side = size // 8 + i
        masks[normal + i, size // 4 : size // 4 + side, size // 3 : size // 3 + side] = True
        maps[normal + i] += (2.0 + 0.4 * i) * masks[normal + i]
    return maps, masks


def literal(maps: np.ndarray, masks: np.ndarray, count: int, bounds: tuple[float, float]) -> np.ndarray:
    """The original's steps: all four counts of every image at every threshold, then rates, then areas."""
    empty = ~masks.any((1, 2))
    t = np.linspace(float(maps[empty].min()), float(maps[empty].max()), count).astype(maps.dtype)
    confusion = np.empty((len(maps), count, 2, 2), dtype=np.int64)
    for i, (scores, mask) in enumerate(zip(maps, masks)):
        for truth, chosen in enumerate((scores[~mask], scores[mask])):
            # A score is positive at all thresholds up to itself: count how many thresholds each one passes.
            passed = np.bincount(np.searchsorted(t, chosen, side="right"), minlength=count + 1)
            positive = np.cumsum(passed[::-1])[::-1][1:]
            confusion[i, :, truth, 1], confusion[i, :, truth, 0] = positive, chosen.size - positive
    with np.errstate(invalid="ignore"):
        rates = confusion[..., 1] / confusion.sum(-1)
    shared, recall = rates[empty, :, 0].mean(0), rates[..., 1]
    first, last = (int(np.abs(shared - level).argmin()) for level in reversed(bounds))
    z = np.log(shared[first : last + 1][::-1])
    area = np.trapezoid(recall[:, first : last + 1][:, ::-1], z, axis=1) / math.log(bounds[1] / bounds[0])
    return area.clip(0, 1)


def original(maps: Tensor, masks: Tensor, count: int, bounds: tuple[float, float]) -> Tensor:
    """The authors' package."""
    from aupimo import aupimo_scores

    vars(np).setdefault("trapz", np.trapezoid)  # the package was written for NumPy 1
    _, result = aupimo_scores(maps, masks.int(), num_threshs=count, fpr_bounds=bounds)
    return result.aupimos


def main(
    argv: Sequence[str] | None = None, peer: Callable[[Tensor, Tensor, int, tuple[float, float]], Any] | None = None
) -> dict[str, Any]:
    made = parser(__doc__, rounds=5)
    made.add_argument("--thresholds", type=int, default=300_000, help="K of the counting sides (default 300000)")
    chosen = options(made, argv)
    before = load()
    maps, masks = defects(8, 4, 64) if chosen.quick else defects(30, 10, 256)
    count, bounds = (3_000, QUICK_BOUNDS) if chosen.quick else (chosen.thresholds, BOUNDS)
    raw = maps.numpy(), masks.numpy()
    if peer is None and importlib.util.find_spec("aupimo") is not None:
        peer = original
    runs: dict[str, Callable[[], Any]] = {
        "plain": lambda: aupimo(maps, masks, count, fpr_bounds=bounds, force=True).scores,
        "fast": lambda: aupimo(maps, masks, fpr_bounds=bounds, route="fast", force=True).scores,
        "exact": lambda: aupimo(maps, masks, fpr_bounds=bounds, route="exact").scores,
        "whole curves": lambda: pimo_curves(maps, masks, count).per_image_tpr,
        "literal": partial(literal, *raw, count, bounds),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        first = {}
        if peer is not None:
            runs["original"] = lambda: peer(maps, masks, count, bounds)
        for name in ("plain", *(["original"] if peer is not None else [])):
            start = time.perf_counter()
            runs[name]()
            first[name] = time.perf_counter() - start
        timed = race(runs, chosen.rounds)
        others = race({"auroc": lambda: auroc(maps, masks), "aupro": lambda: aupro(maps, masks)}, chosen.rounds)
    ours = np.asarray(timed.values["plain"])[masks.any((1, 2)).numpy()]
    difference = {
        name: float(np.abs(np.asarray(value)[masks.any((1, 2)).numpy()] - ours).max())
        for name, value in timed.values.items()
        if name != "whole curves"
    }
    result = {
        "images": list(maps.shape),
        "thresholds": count,
        "bounds": list(bounds),
        "seconds": timed.summary("plain"),
        "first_call_seconds": first,
        "difference": difference,
        "other_seconds": others.summary("auroc"),
    }
    print(f"AUPIMO of {len(maps)} maps of {maps.shape[1]} x {maps.shape[2]}, K = {count:,}; 5 times is the aim")
    rows = [
        [name, f["median"], f["ratio"], f"{difference[name]:.1e}" if name in difference else "-"]
        for name, f in result["seconds"].items()
    ]
    print(table(["side", "seconds", "times plain", "score difference"], rows))
    told = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in first.items())
    print(f"first call, with any compilation: {told}")
    print(", ".join(f"{name} {f['median']:.3g} s" for name, f in result["other_seconds"].items()))
    return finish("aupimo", chosen, result, before)


if __name__ == "__main__":
    main()
