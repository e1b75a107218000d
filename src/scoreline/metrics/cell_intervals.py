"""Bootstrap intervals for everything that comes from a confusion matrix or a curve of two classes.

Resampling n rows and counting them again is the same as drawing the four counts from a multinomial, so that is what is
done: exact, and as quick for 284,807 rows as for 100. For curves the negatives between two neighbouring positives are
one bin: neither AUROC nor AP, nor any best threshold, depends on their order. "stratified" keeps the class counts,
"plain" draws them too, and may then draw no positive at all: such resamples are left out and counted.

Efron & Tibshirani, "An introduction to the bootstrap" (1993).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.score import Interval
from scoreline.metrics.binary_curves import BinaryCurve, Cells, binary_curve
from scoreline.metrics.imbalance import as_cells, cell_metrics
from scoreline.metrics.threshold_choice import Criterion, best_index

__all__ = ["CurveDraws", "bootstrap_cells", "bootstrap_curve", "cell_intervals", "percentiles"]

# numbers of one block of resamples: 2 million float64 are 16 MB
_BLOCK = 2_000_000

# Beyond so many distinct scores of positives neighbours are drawn together.
_GROUPS = 2000


class CurveDraws(NamedTuple):
    """What B resamples gave.

    Attributes:
        auroc, average_precision: (B,) float64.
        thresholds: criterion -> (B,) best thresholds, inf where it was best to predict no positive.
        empty: resamples left out, because a class was missing.
    """

    auroc: Tensor
    average_precision: Tensor
    thresholds: dict[str, Tensor]
    empty: int


def _counts(cells: Cells) -> np.ndarray:
    four = as_cells(cells)
    if any(cell.ndim for cell in four) or any(float(cell) % 1 for cell in four) or not sum(map(float, four)):
        raise InputError("cells", [cell.tolist() for cell in four], "a bootstrap needs four whole counts of one matrix")
    return np.array([int(cell) for cell in four])


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise InputError("resamples", resamples, "at least 1 is needed; 2000 for an interval")


def bootstrap_cells(cells: Cells, *, resamples: int = 2000, stratified: bool = True, seed: int = 0) -> Cells:
    """Counts of resampled rows: the four cells drawn from a multinomial.

    Args:
        cells: four whole counts.
        resamples: B.
        stratified: keep the number of positives and negatives.
        seed: of the draw.

    Returns:
        (B,) float64 each; without `stratified`, some may hold no positive.

    Raises:
        InputError: cells that are no counts, or fewer than one resample.
    """
    _check_resamples(resamples)
    tp, fp, fn, tn = _counts(cells)
    rng = np.random.default_rng(seed)
    if stratified:
        a, b = (rng.binomial(k + rest, k / max(k + rest, 1), resamples) for k, rest in ((tp, fn), (fp, tn)))
        drawn = (a, b, tp + fn - a, fp + tn - b)
    else:
        n = tp + fp + fn + tn
        drawn = tuple(rng.multinomial(n, np.array([tp, fp, fn, tn]) / n, resamples).T)
    return Cells(*(torch.from_numpy(np.ascontiguousarray(cell)).double() for cell in drawn))


def percentiles(draws: Tensor, *, level: float = 0.95, method: str = "bootstrap") -> Interval:
    """The interval between the (1 - level)/2 and (1 + level)/2 quantiles of resampled values.

    Raises:
        InputError: no value, values that are not finite, a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise InputError("level", level, "a level lies between 0 and 1, for instance 0.95")
    if draws.numel() == 0 or not torch.isfinite(draws).all():
        raise InputError("draws", draws[:5].tolist(), "an interval needs finite values")
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(draws, ends.to(draws.device)).tolist()
    return Interval(low, high, level, method)


def cell_intervals(
    cells: Cells,
    names: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    stratified: bool = True,
    seed: int = 0,
    correct: Callable[[Cells], Cells] | None = None,
) -> dict[str, Interval]:
    """Percentile intervals of metrics of one confusion matrix, at a threshold that was fixed before.

    Args:
        cells: four whole counts.
        names: metrics; nothing takes all.
        level: nominal coverage.
        resamples, stratified, seed: of the bootstrap.
        correct: what is done to the resampled cells first, for instance taking known label noise out.

    Returns:
        metric -> interval. With few positives it is too narrow, and of no width where a cell is 0.

    Raises:
        InputError: cells that are no counts, unknown metrics, only one class.
    """
    tp, fp, fn, tn = _counts(cells)
    if not (tp + fn and fp + tn):
        raise InputError("cells", (int(tp), int(fp), int(fn), int(tn)), "both classes are needed")
    drawn = bootstrap_cells(cells, resamples=resamples, stratified=stratified, seed=seed)
    whole = (drawn.tp + drawn.fn > 0) & (drawn.fp + drawn.tn > 0)
    drawn = Cells(*(cell[whole] for cell in drawn))
    how = f"{'stratified' if stratified else 'plain'} bootstrap, {int(whole.sum())} resamples, seed {seed}"
    found = cell_metrics(drawn if correct is None else correct(drawn), names)
    return {name: percentiles(values, level=level, method=how) for name, values in found.items()}


def _bins(curve: BinaryCurve) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """(thresholds at the scores of positives, positives there, negatives in bins: above the first, at it, ...)."""
    zero = curve.tp.new_zeros(1)
    positive, negative = curve.tp.diff(prepend=zero), curve.fp.diff(prepend=zero)
    at = positive > 0
    place = 2 * at.long().cumsum(0) - at.long()
    held = torch.zeros(2 * int(at.sum()) + 1, dtype=torch.int64).index_add_(0, place.cpu(), negative.cpu())
    return curve.thresholds[at].cpu(), positive[at].cpu().numpy(), held.numpy()


def _merged(thresholds: Tensor, at: np.ndarray, between: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """At most 2000 groups of neighbouring thresholds, each acting as a tie at its lowest one."""
    if len(at) <= _GROUPS:
        return thresholds, at, between
    first = np.linspace(0, len(at), _GROUPS, endpoint=False).astype(int)
    held = np.zeros(2 * _GROUPS + 1, dtype=between.dtype)
    held[0:-1:2] = between[2 * first]  # the gap above each group stays a gap
    held[-1] = between[-1]
    held[1::2] = np.add.reduceat(between[:-1], 2 * first) - held[0:-1:2]
    last = np.append(first[1:], len(at)) - 1
    return thresholds[torch.from_numpy(last)], np.add.reduceat(at, first), held


def _areas(tp: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(AUROC, average precision, true, false positives at each threshold) of counts in bins, (B, K) and (B, 2K + 1)."""
    fallen = negatives.cumsum(1)
    above, fp = fallen[:, 0:-1:2], fallen[:, 1::2]  # negatives strictly above each positive score, and up to it
    hit = tp.cumsum(1)
    auroc = (tp * (fallen[:, -1:] - (above + fp) / 2)).sum(1) / (hit[:, -1] * fallen[:, -1])
    return auroc, (tp * (hit / (hit + fp).clamp(min=1))).sum(1) / hit[:, -1], hit, fp


def bootstrap_curve(
    scores: Tensor,
    labels: Tensor,
    criteria: Mapping[str, Criterion] | None = None,
    *,
    resamples: int = 1000,
    stratified: bool = True,
    seed: int = 0,
    digits: int = 3,
    curve: BinaryCurve | None = None,
) -> CurveDraws:
    """AUROC, average precision and best thresholds of resampled rows.

    Every metric here rises with the true and falls with the false positive rate, so that a best threshold is the score
    of a positive, or none. Beyond 2,000 distinct scores of positives, neighbours are drawn together.

    Args:
        scores, labels: as :func:`scoreline.metrics.binary_curves.check_binary` takes them, both classes.
        criteria: name -> criterion by which a threshold is chosen anew in each resample.
        resamples: B.
        stratified: keep the number of positives and negatives.
        seed: of the draw.
        digits: tie width of the criteria.
        curve: that of these scores and labels, where it is known already.

    Raises:
        InputError: labels or scores that do not fit, a single class, an unknown criterion.
    """
    _check_resamples(resamples)
    curve = binary_curve(scores, labels) if curve is None else curve
    positives, negatives = int(curve.tp[-1]), int(curve.fp[-1])
    if not (positives and negatives):
        raise InputError("labels", f"{positives} positives and {negatives} negatives", "both classes are needed")
    thresholds, at, between = _bins(curve)
    exact = _areas(*(torch.from_numpy(counts).double()[None] for counts in (at, between)))[:2]
    thresholds, at, between = _merged(thresholds, at, between)
    merged = _areas(*(torch.from_numpy(counts).double()[None] for counts in (at, between)))[:2]
    thresholds = torch.cat([thresholds.new_tensor([math.inf]), thresholds])
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(between))
    parts: list[tuple[Tensor, Tensor]] = []
    chosen: dict[str, list[Tensor]] = {name: [] for name in criteria or {}}
    empty = 0
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        share = positives / (positives + negatives)
        p = np.full(size, positives) if stratified else rng.binomial(positives + negatives, share, size)
        n = positives + negatives - p
        whole = (p > 0) & (n > 0)
        empty += int(size - whole.sum())
        p, n = p[whole], n[whole]
        if not len(p):
            continue
        tp = torch.from_numpy(rng.multinomial(p, at / positives)).double()
        drawn = torch.from_numpy(rng.multinomial(n, between / negatives)).double()
        total_p, total_n = torch.from_numpy(p).double(), torch.from_numpy(n).double()
        area, precision, summed, fp = _areas(tp, drawn)
        parts.append((area, precision))
        if criteria:
            none = torch.zeros(len(p), 1, dtype=torch.float64)
            hit, false = torch.cat([none, summed], 1), torch.cat([none, fp], 1)
            cells = Cells(hit, false, total_p[:, None] - hit, total_n[:, None] - false)
            for name, criterion in criteria.items():
                chosen[name].append(thresholds[best_index(cells, criterion, digits=digits)])
    if not parts:
        raise InputError("resamples", resamples, "all of them drew a single class; use stratified=True")
    # Merging turns neighbours into ties, which moves the areas by a little; their spread it keeps.
    auroc, precision = (
        (torch.cat(part) + whole - tied).clamp(0, 1) for part, whole, tied in zip(zip(*parts), exact, merged)
    )
    return CurveDraws(auroc, precision, {name: torch.cat(values) for name, values in chosen.items()}, empty)
