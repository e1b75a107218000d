"""Two classes and a score: the counts at every threshold, and the metrics that need no threshold.

All of it comes from one sort. Rows with equal scores are one step, because no threshold can part them: the area under
the ROC curve then gives ties one half, and the average precision does not depend on the order of the rows. The rule is
everywhere "predict 1 when score >= threshold".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.core.errors import InputError

__all__ = [
    "BinaryCurve",
    "Cells",
    "auroc",
    "average_precision",
    "binary_curve",
    "brier_score",
    "check_binary",
    "confusion",
    "log_loss",
]


class Cells(NamedTuple):
    """The four cells of a confusion matrix, counts or fractions; 1 is the positive class."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


class BinaryCurve(NamedTuple):
    """What is predicted positive at each threshold.

    Attributes:
        thresholds: (K,) the distinct scores, falling.
        tp, fp: (K,) int64, positives and negatives with score >= threshold; the last ones are the class counts.
    """

    thresholds: Tensor
    tp: Tensor
    fp: Tensor

    @property
    def cells(self) -> Cells:
        """The four counts at each threshold."""
        return Cells(self.tp, self.fp, self.tp[-1] - self.tp, self.fp[-1] - self.fp)


def check_binary(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores as float64 and labels as bool, both flat, or a clear refusal.

    Args:
        scores: any shape, any real dtype, higher for the positive class; infinite is allowed, NaN is not.
        labels: the same shape; bool, or numbers that are all 0 or 1.

    Raises:
        InputError: shapes that differ, nothing in them, NaN, or labels other than 0 and 1.
    """
    scores, labels = torch.as_tensor(scores), torch.as_tensor(labels)
    if scores.shape != labels.shape or scores.numel() == 0:
        raise InputError("scores and labels", (tuple(scores.shape), tuple(labels.shape)), "one label a score is needed")
    if scores.is_complex() or torch.isnan(scores).any():
        raise InputError("scores", "NaN", "a score is a number; look at the model, or leave those rows out")
    if labels.dtype != torch.bool:
        known = torch.unique(labels)
        if not torch.isin(known, torch.tensor([0, 1], device=known.device, dtype=known.dtype)).all():
            mend = "labels are 0 and 1; for an encoding of -1 and 1 give labels > 0"
            raise InputError("labels", known[:5].tolist(), mend)
        labels = labels == 1
    return scores.detach().flatten().to(torch.float64), labels.flatten()


def _both_classes(labels: Tensor, metric: str) -> None:
    if labels.all() or not labels.any():
        raise InputError("labels", f"only {int(labels[0])}", f"{metric} needs rows of both classes")


def binary_curve(scores: Tensor, labels: Tensor) -> BinaryCurve:
    """The counts at every distinct score, from one sort.

    Args:
        scores, labels: as :func:`check_binary` takes them.

    Raises:
        InputError: what :func:`check_binary` refuses.

    >>> curve = binary_curve(torch.tensor([4, 2, 2, 1]), torch.tensor([1, 1, 0, 0]))
    >>> curve.thresholds.tolist(), curve.tp.tolist(), curve.fp.tolist()
    ([4.0, 2.0, 1.0], [1, 2, 2], [0, 1, 2])
    """
    s, y = check_binary(scores, labels)
    s, order = torch.sort(s, descending=True, stable=True)
    last = torch.ones(len(s), dtype=torch.bool, device=s.device)  # the last row of each group of equal scores
    last[:-1] = s[1:] != s[:-1]
    tp = y[order].long().cumsum(0)[last]
    count = torch.arange(1, len(s) + 1, device=s.device)[last]
    return BinaryCurve(s[last], tp, count - tp)


def confusion(scores: Tensor, labels: Tensor, thresholds: Tensor | Sequence[float] | float) -> Cells:
    """Confusion counts at some thresholds: predict 1 when score >= threshold.

    Args:
        scores, labels: as :func:`check_binary` takes them.
        thresholds: any shape; inf predicts no positive.

    Returns:
        int64 counts, each of the shape of `thresholds`.

    Raises:
        InputError: what :func:`check_binary` refuses, or a threshold that is NaN.
    """
    at = torch.as_tensor(thresholds, dtype=torch.float64)
    if torch.isnan(at).any():
        raise InputError("threshold", "NaN", "a threshold is a number; inf predicts no positive")
    s, y = check_binary(scores, labels)
    at = at.to(s.device)
    sides = [torch.sort(s[y]).values, torch.sort(s[~y]).values]
    above = [len(side) - torch.searchsorted(side, at.contiguous()) for side in sides]
    return Cells(above[0], above[1], len(sides[0]) - above[0], len(sides[1]) - above[1])


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counting half.

    AUROC = P(s+ > s-) + P(s+ = s-) / 2

    Args:
        scores, labels: as :func:`check_binary` takes them; both classes must occur.

    Returns:
        In [0, 1]; 0.5 is chance.

    Raises:
        InputError: what :func:`check_binary` refuses, or a single class.

    Reference: Hanley & McNeil, "The meaning and use of the area under a ROC curve" (1982).

    >>> auroc(torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([1, 1, 0, 0]))
    0.875
    """
    s, y = check_binary(scores, labels)
    _both_classes(y, "AUROC")
    curve = binary_curve(s, y)
    positive, negative = curve.tp.diff(prepend=curve.tp.new_zeros(1)), curve.fp.diff(prepend=curve.fp.new_zeros(1))
    # Twice the number of pairs is whole, so that nothing is rounded before the last division.
    doubled = (positive * (2 * (curve.fp[-1] - curve.fp) + negative)).sum()
    return float(doubled) / (2 * int(curve.tp[-1]) * int(curve.fp[-1]))


def average_precision(scores: Tensor, labels: Tensor) -> float:
    """Average precision, the area under the precision-recall curve as a sum of steps.

    AP = sum_k (R_k - R_(k-1)) P_k over the distinct scores, falling; not the trapezoid, which is too optimistic.

    Args:
        scores, labels: as :func:`check_binary` takes them; at least one positive.

    Returns:
        In (0, 1]; chance is the prevalence.

    Raises:
        InputError: what :func:`check_binary` refuses, or no positive.

    Reference: Davis & Goadrich, "The relationship between precision-recall and ROC curves" (2006), on interpolation.

    >>> average_precision(torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([1, 1, 0, 0])) == (1 + 2 / 3) / 2
    True
    """
    s, y = check_binary(scores, labels)
    if not y.any():
        raise InputError("labels", "only 0", "average precision needs at least one positive")
    curve = binary_curve(s, y)
    gained = curve.tp.diff(prepend=curve.tp.new_zeros(1)).double()
    precision = curve.tp.double() / (curve.tp + curve.fp)  # of int64 alone torch would make float32
    return float((gained * precision).sum() / curve.tp[-1])


def _probabilities(scores: Tensor, metric: str) -> None:
    if scores.min() < 0 or scores.max() > 1:
        ends = (float(scores.min()), float(scores.max()))
        raise InputError("scores", ends, f"the {metric} needs probabilities in [0, 1]; calibrate the scores first")


def log_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Log loss of each row, in nats: -y log p - (1 - y) log(1 - p). The mean over rows is what is usually told.

    Args:
        probabilities, labels: as :func:`check_binary` takes them; probabilities of the positive class in [0, 1].

    Returns:
        (N,) float64; infinite where a row of the other class was given probability 0 or 1.

    Raises:
        InputError: what :func:`check_binary` refuses, or numbers outside [0, 1].
    """
    p, y = check_binary(probabilities, labels)
    _probabilities(p, "log loss")
    return torch.where(y, -p.log(), -torch.log1p(-p))


def brier_score(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Brier score of each row: (p - y)^2. The mean over rows is what is usually told.

    Args:
        probabilities, labels: as :func:`check_binary` takes them; probabilities of the positive class in [0, 1].

    Returns:
        (N,) float64.

    Raises:
        InputError: what :func:`check_binary` refuses, or numbers outside [0, 1].

    Reference: Brier, "Verification of forecasts expressed in terms of probability" (1950).
    """
    p, y = check_binary(probabilities, labels)
    _probabilities(p, "Brier score")
    return (p - y.double()).square()
