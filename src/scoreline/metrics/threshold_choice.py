"""Choosing a model or a threshold by a metric of its confusion matrix, or by one metric and then another.

The pair of Kulatilleke & Samarakoon (2022, arXiv 2208.11904), "F1, then g-mean, in that order", is read as a
lexicographic key (round(F1, digits), g-mean): the g-mean decides only between values of F1 that round alike. Other
readings, one number made of both, have names of their own and are never the default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.metrics.binary_curves import BinaryCurve, Cells, binary_curve
from scoreline.metrics.imbalance import METRICS, CellMetric, as_cells, f1, g_mean
from scoreline.metrics.label_noise import corrected_cells

__all__ = ["COMBINED", "CRITERIA", "PAIR", "Choice", "Criterion", "Ranked", "best_index", "best_threshold", "rank"]

PAIR = ("f1", "g-mean")
"""Primary and secondary metric of the paper."""


def _product(cells: Cells, zero_division: float = 0.0) -> Tensor:
    return f1(cells, zero_division) * g_mean(cells, zero_division)


def _mean(cells: Cells, zero_division: float = 0.0) -> Tensor:
    return (f1(cells, zero_division) + g_mean(cells, zero_division)) / 2


COMBINED: dict[str, CellMetric] = {"f1-times-g-mean": _product, "mean-of-f1-and-g-mean": _mean}
"""One number made of F1 and g-mean: other readings of the paper's advice."""

CRITERIA: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in [*METRICS, *COMBINED]},
    "f1-then-g-mean": PAIR,
}
"""What a model or a threshold can be chosen by: the metrics, one after the other."""

Criterion = str | Sequence[str]


class Choice(NamedTuple):
    """A threshold and what it does.

    Attributes:
        threshold: predict 1 when score >= threshold; inf predicts no positive.
        cells: counts at it, as annotated (not corrected).
        values: the criterion's metrics at it; corrected where error rates were given.
    """

    threshold: float
    cells: Cells
    values: tuple[float, ...]


class Ranked(NamedTuple):
    """A model's place: its name, its values unrounded, and the key it was sorted by."""

    name: str
    values: tuple[float, ...]
    key: tuple[float, ...]


def _metrics(criterion: Criterion) -> list[CellMetric]:
    known = {**METRICS, **COMBINED}
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise unknown_name("criterion", criterion, CRITERIA)
        criterion = CRITERIA[criterion]
    for name in criterion:
        if name not in known:
            raise unknown_name("metric", name, known)
    if not criterion:
        raise InputError("criterion", tuple(criterion), "name at least one metric")
    return [known[name] for name in criterion]


def _check_digits(digits: int) -> None:
    if not 0 <= digits <= 15:
        raise InputError("digits", digits, "between 0 and 15; values of the first metric that round alike are tied")


def best_index(cells: Cells, criterion: Criterion = PAIR, *, digits: int = 3) -> Tensor:
    """Where along the last axis a criterion is best; of equals, the first.

    Args:
        cells: (..., K) counts or fractions.
        criterion: a name of :data:`CRITERIA`, or metrics by name, the first one deciding.
        digits: tie width 10^-digits of every metric but the last.

    Returns:
        (...) int64.

    Raises:
        InputError: an unknown name, or digits that make no sense.
    """
    _check_digits(digits)
    chosen, four = _metrics(criterion), as_cells(cells)
    open_still = torch.ones_like(four.tp, dtype=torch.bool)
    for place, metric in enumerate(chosen):
        value = metric(four, 0.0)
        value = value if place == len(chosen) - 1 else value.round(decimals=digits)
        value = value.masked_fill(~open_still, -math.inf)
        open_still &= value == value.amax(-1, keepdim=True)
    return open_still.to(torch.uint8).argmax(-1)


def best_threshold(
    scores: Tensor,
    labels: Tensor,
    criterion: Criterion = PAIR,
    *,
    digits: int = 3,
    e1: float = 0.0,
    e0: float = 0.0,
    curve: BinaryCurve | None = None,
) -> Choice:
    """The threshold at which a criterion is best, among the distinct scores and "none at all"; of equals, the highest.

    Values at a threshold chosen on the same rows are optimistic; measure them on others.

    Args:
        scores, labels: as :func:`scoreline.metrics.binary_curves.check_binary` takes them, labels as annotated.
        criterion: a name of :data:`CRITERIA`, or metrics by name, the first one deciding.
        digits: tie width 10^-digits of every metric but the last.
        e1, e0: error rates of the annotator; where given, the criterion is computed on corrected cells.
        curve: that of these scores and labels, where it is known already.

    Raises:
        InputError: an unknown name, labels or scores that do not fit, error rates that cannot be taken out.

    >>> found = best_threshold(torch.tensor([0.9, 0.6, 0.5, 0.1]), torch.tensor([1, 0, 1, 0]), "f1")
    >>> found.threshold, found.values
    (0.5, (0.8,))
    """
    curve = binary_curve(scores, labels) if curve is None else curve
    seen = curve.cells
    none = Cells(*(torch.as_tensor([n]).to(seen.tp) for n in (0, 0, curve.tp[-1], curve.fp[-1])))
    cells = as_cells([torch.cat(both) for both in zip(none, seen)])
    judged = corrected_cells(cells, e1, e0) if e1 or e0 else cells
    best = int(best_index(judged, criterion, digits=digits))
    at = Cells(*(cell[best] for cell in judged))
    thresholds = torch.cat([curve.thresholds.new_tensor([math.inf]), curve.thresholds])
    values = tuple(float(metric(at, 0.0)) for metric in _metrics(criterion))
    return Choice(float(thresholds[best]), Cells(*(cell[best] for cell in cells)), values)


def rank(
    models: Mapping[str, Mapping[str, Tensor | float]], key: Sequence[str] = PAIR, *, digits: int = 3
) -> list[Ranked]:
    """Models from best to worst, by a primary metric and, where that is tied, a secondary one, and so on.

    Args:
        models: name -> metrics by name (of :func:`scoreline.metrics.imbalance.cell_metrics`, or any others, such as
            average precision), all better high.
        key: the metrics that decide, in order; the paper's pair by default.
        digits: values of every metric but the last are tied when they round alike at so many digits.

    Returns:
        The best first; models that are tied throughout stay in their order.

    Raises:
        InputError: a model without one of the metrics, or a value that is no number.

    >>> models = {"a": {"f1": 0.8001, "g-mean": 0.90}, "b": {"f1": 0.8004, "g-mean": 0.85}}
    >>> [found.name for found in rank(models)]
    ['a', 'b']
    """
    _check_digits(digits)
    if not key:
        raise InputError("key", tuple(key), "name at least one metric")
    ranked = []
    for name, metrics in models.items():
        for metric in key:
            if metric not in metrics:
                raise unknown_name(f"metric of model {name}", metric, metrics)
        values = tuple(float(metrics[metric]) for metric in key)
        if any(math.isnan(value) for value in values):
            raise InputError(f"metrics of model {name}", values, "NaN has no place in a ranking")
        ranked.append(Ranked(name, values, (*(round(value, digits) for value in values[:-1]), values[-1])))
    return sorted(ranked, key=lambda found: found.key, reverse=True)
