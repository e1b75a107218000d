"""Metrics of a confusion matrix, and what the prevalence of the positive class does to each.

Kulatilleke & Samarakoon, "Empirical study of machine learning classifier evaluation metrics behavior in massively
imbalanced and noisy data" (2022, arXiv 2208.11904), recommend F1, then g-mean, in that order. Here stand the metrics;
`scoreline.metrics.label_noise` says what annotation errors do to them, `scoreline.metrics.threshold_choice` chooses
models and thresholds by them, `scoreline.metrics.binormal` holds the hypothetical classifier.

With the cells TP, FP, FN, TN and n their sum, t = TP/(TP+FN) and f = FP/(FP+TN):
G-MEAN is sqrt(t (1 - f)). Other packages call sqrt(PPV t) by that name; it is the G-MEASURE here (Fowlkes-Mallows).
Where a ratio is 0/0 it counts as `zero_division`, by default 0: "always negative" has F1 = g-mean = MCC = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.metrics.binary_curves import Cells

__all__ = [
    "FACTS",
    "METRICS",
    "Facts",
    "accuracy",
    "as_cells",
    "balanced_accuracy",
    "cell_metrics",
    "f1",
    "f2",
    "f_beta",
    "f_half",
    "fpr",
    "g_mean",
    "g_measure",
    "jaccard",
    "kappa",
    "markedness",
    "mcc",
    "metric_named",
    "npv",
    "precision",
    "recall",
    "single_point_auroc",
    "specificity",
    "youden_j",
]

CellMetric = Callable[[Cells, float], Tensor]


def as_cells(cells: Cells | Sequence[Tensor | float]) -> Cells:
    """The four cells as float64 of one shape; counts beyond float32 or whose products pass int64 stay right.

    Raises:
        InputError: not four of them, or a negative one, or NaN.
    """
    if len(cells) != 4:
        raise InputError("cells", len(cells), "give TP, FP, FN, TN")
    four = torch.broadcast_tensors(*(torch.as_tensor(cell, dtype=torch.float64) for cell in cells))
    if any(bool((~(cell >= 0)).any()) for cell in four):
        raise InputError("cells", [cell.flatten()[:3].tolist() for cell in four], "counts or fractions are at least 0")
    return Cells(*four)


def _ratio(top: Tensor, bottom: Tensor, zero_division: float) -> Tensor:
    empty = bottom == 0
    return torch.where(empty, torch.full_like(top, zero_division), top / bottom.masked_fill(empty, 1.0))


def accuracy(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """(TP + TN) / n; "always negative" reaches 1 - prevalence."""
    tp, fp, fn, tn = as_cells(cells)
    return _ratio(tp + tn, tp + fp + fn + tn, zero_division)


def precision(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """PPV = TP / (TP + FP)."""
    tp, fp, _, _ = as_cells(cells)
    return _ratio(tp, tp + fp, zero_division)


def recall(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """t = TPR = sensitivity = TP / (TP + FN)."""
    tp, _, fn, _ = as_cells(cells)
    return _ratio(tp, tp + fn, zero_division)


def specificity(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """TNR = TN / (TN + FP)."""
    _, fp, _, tn = as_cells(cells)
    return _ratio(tn, tn + fp, zero_division)


def fpr(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """f = FP / (FP + TN), not 1 - specificity, which cancels at 1e-6; the only metric here that is better low."""
    _, fp, _, tn = as_cells(cells)
    return _ratio(fp, fp + tn, zero_division)


def npv(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """NPV = TN / (TN + FN)."""
    _, _, fn, tn = as_cells(cells)
    return _ratio(tn, tn + fn, zero_division)


def f_beta(cells: Cells, zero_division: float = 0.0, *, beta: float = 1.0) -> Tensor:
    """F_beta = (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP), of the positive class alone, no macro average.

    Args:
        cells: counts or fractions.
        zero_division: value of 0/0.
        beta: b > 0; recall counts b times as much as precision.

    Raises:
        InputError: a beta that is not positive.
    """
    if not beta > 0:
        raise InputError("beta", beta, "is positive: 1 for F1, 2 where recall counts more, 0.5 where precision does")
    tp, fp, fn, _ = as_cells(cells)
    top = (1 + beta**2) * tp
    return _ratio(top, top + beta**2 * fn + fp, zero_division)


def f1(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """F1 = 2 TP / (2 TP + FP + FN)."""
    return f_beta(cells, zero_division)


def f_half(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """F_0.5: precision counts twice as much as recall."""
    return f_beta(cells, zero_division, beta=0.5)


def f2(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """F_2: recall counts twice as much as precision."""
    return f_beta(cells, zero_division, beta=2.0)


def g_mean(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """sqrt(t (1 - f)) = sqrt(recall * specificity)."""
    return (recall(cells, zero_division) * specificity(cells, zero_division)).sqrt()


def g_measure(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """sqrt(PPV t) = sqrt(precision * recall), also Fowlkes-Mallows; not the g-mean."""
    return (precision(cells, zero_division) * recall(cells, zero_division)).sqrt()


def balanced_accuracy(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """(recall + specificity) / 2."""
    return (recall(cells, zero_division) + specificity(cells, zero_division)) / 2


def single_point_auroc(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """(1 + t - f) / 2, the area under the ROC curve of one threshold; where no rate is 0/0, the balanced accuracy."""
    return (1 + recall(cells, zero_division) - fpr(cells, zero_division)) / 2


def youden_j(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """J = recall + specificity - 1, informedness."""
    return recall(cells, zero_division) + specificity(cells, zero_division) - 1


def markedness(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """PPV + NPV - 1."""
    return precision(cells, zero_division) + npv(cells, zero_division) - 1


def mcc(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """(TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)), Matthews' correlation.

    The roots are taken in pairs: the product of four counts passes the range of int64.
    """
    tp, fp, fn, tn = as_cells(cells)
    bottom = ((tp + fp) * (tp + fn)).sqrt() * ((tn + fp) * (tn + fn)).sqrt()
    return _ratio(tp * tn - fp * fn, bottom, zero_division).clamp(-1, 1)


def kappa(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """Cohen's (p_o - p_e) / (1 - p_e), with p_o the accuracy and p_e what independent answers would reach.

    Written as 2 (TP TN - FP FN) / ((TP + FP)(FP + TN) + (TP + FN)(FN + TN)), the same without the difference 1 - p_e,
    which cancels under imbalance.
    """
    tp, fp, fn, tn = as_cells(cells)
    return _ratio(2 * (tp * tn - fp * fn), (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn), zero_division)


def jaccard(cells: Cells, zero_division: float = 0.0) -> Tensor:
    """TP / (TP + FP + FN) = F1 / (2 - F1)."""
    tp, fp, fn, _ = as_cells(cells)
    return _ratio(tp, tp + fp + fn, zero_division)


METRICS: dict[str, CellMetric] = {
    "accuracy": accuracy,
    "precision": precision,
    "recall": recall,
    "specificity": specificity,
    "npv": npv,
    "f1": f1,
    "f0.5": f_half,
    "f2": f2,
    "g-mean": g_mean,
    "g-measure": g_measure,
    "balanced-accuracy": balanced_accuracy,
    "youden-j": youden_j,
    "markedness": markedness,
    "mcc": mcc,
    "kappa": kappa,
    "jaccard": jaccard,
}
"""By name, all better high."""


def metric_named(name: str) -> CellMetric:
    """The function of a metric of :data:`METRICS`.

    Raises:
        InputError: an unknown name, with the nearest known one.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


def cell_metrics(
    cells: Cells | Sequence[Tensor | float], names: Sequence[str] | None = None, *, zero_division: float = 0.0
) -> dict[str, Tensor]:
    """Several metrics of the same cells.

    Args:
        cells: TP, FP, FN, TN as counts or fractions, any shape.
        names: of :data:`METRICS`; nothing takes all.
        zero_division: what 0/0 counts as; NaN is allowed.

    Returns:
        name -> float64 of the shape of the cells.

    Raises:
        InputError: an unknown name, negative cells.

    >>> found = cell_metrics((400, 100, 92, 284215), ["f1", "g-mean"])
    >>> {name: round(float(value), 6) for name, value in found.items()}
    {'f1': 0.806452, 'g-mean': 0.901511}
    """
    four = as_cells(cells)
    return {name: metric_named(name)(four, zero_division) for name in (METRICS if names is None else names)}


Kept = Literal["value", "ranking", "no"]


@dataclass(frozen=True)
class Facts:
    """What leaves a metric alone, for every pair of classifiers; proofs in the docs of system 27.

    Attributes:
        prevalence: whether its "value", or at least the "ranking" of classifiers by it, stays when the prevalence
            changes and the rates (t, f) do not.
        noise: whether the "ranking" of classifiers and of thresholds by it stays when labels are wrong at rates
            e1 + e0 < 1 that do not depend on the score.
    """

    prevalence: Kept
    noise: Kept


FACTS = {
    "accuracy": Facts("no", "no"),
    # PPV' = e0 + (1 - e0 - e1) PPV and NPV' = e1 + (1 - e0 - e1) NPV: rising lines, whatever the classifier.
    "precision": Facts("ranking", "ranking"),
    "npv": Facts("ranking", "ranking"),
    "recall": Facts("value", "no"),
    "specificity": Facts("value", "no"),
    "f1": Facts("no", "no"),
    "f0.5": Facts("no", "no"),
    "f2": Facts("no", "no"),
    "g-mean": Facts("value", "no"),
    "g-measure": Facts("no", "no"),
    "balanced-accuracy": Facts("value", "ranking"),
    "youden-j": Facts("value", "ranking"),
    "markedness": Facts("no", "ranking"),
    "mcc": Facts("no", "ranking"),
    "kappa": Facts("no", "no"),
    "jaccard": Facts("no", "no"),
    "auroc": Facts("value", "ranking"),
    "average-precision": Facts("no", "no"),
    "log-loss": Facts("no", "no"),
    "brier": Facts("no", "no"),
}
"""By metric; accuracy keeps its ranking in the one case e1 = e0."""
