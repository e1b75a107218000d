"""Labels and scores of a user, judged: every metric with its interval, thresholds by every criterion, and what the
prevalence and known annotation errors leave of each metric.

The metrics are those of `scoreline.metrics.imbalance`; Kulatilleke & Samarakoon (2022, arXiv 2208.11904).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.score import Interval
from scoreline.metrics.binary_curves import (
    BinaryCurve,
    Cells,
    auroc,
    average_precision,
    binary_curve,
    brier_score,
    check_binary,
    confusion,
    log_loss,
)
from scoreline.metrics.binormal import POSITIVES, ROWS, Binormal, simulate
from scoreline.metrics.cell_intervals import CurveDraws, bootstrap_curve, cell_intervals, percentiles
from scoreline.metrics.imbalance import FACTS, METRICS, cell_metrics, metric_named
from scoreline.metrics.label_noise import (
    annotate,
    correct_auroc,
    corrected_cells,
    j_factor,
    mcc_factor,
    noise_correct,
    noisy_cells,
    posterior,
    true_prevalence,
    unbiased_loss,
)
from scoreline.metrics.threshold_choice import CRITERIA, best_threshold

__all__ = ["CHOSEN_BY", "examine", "example", "study"]

CHOSEN_BY = ("accuracy", "f1", "g-mean", "balanced-accuracy", "mcc", "kappa", "f1-then-g-mean")
"""The criteria by which thresholds are shown."""

_SHOWN = ("precision", "recall", "f1", "g-mean", "mcc")
_POINTS = 200

# A metric that moves by less than this when false alarms are ten times as many, or when half of the rows predicted
# positive are not, does not see them at this prevalence.
_BLIND = 0.02


# Best where all rows, or none, are predicted positive: nothing to choose a threshold by.
_ONE_SIDED = ("precision", "recall", "specificity", "npv")


def examine(
    scores: Tensor,
    labels: Tensor,
    *,
    threshold: float | None = None,
    criterion: str = "f1-then-g-mean",
    e1: float = 0.0,
    e0: float = 0.0,
    at_prevalence: float | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    stratified: bool = True,
    digits: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that labels and scores say about a classifier of two classes.

    Args:
        scores, labels: as :func:`scoreline.metrics.binary_curves.check_binary` takes them, both classes.
        threshold: predict 1 when score >= threshold; nothing takes the best one by `criterion`.
        criterion: a name of `scoreline.metrics.threshold_choice.CRITERIA`.
        e1, e0: known share of positives and negatives that the annotator got wrong; where given, corrected values
            stand beside the seen ones, and thresholds are chosen on corrected cells.
        at_prevalence: also the values at this prevalence, for rows that were rebalanced.
        level: nominal coverage of the intervals.
        resamples, stratified, seed: of the bootstrap; intervals of corrected values are never stratified, because how
            many rows are annotated as positive is what the correction rests on.
        digits: tie width of the criterion's first metric.

    Returns:
        Plain values: "rows", "positives", "prevalence", "noise", "threshold", "cells", "metrics", "choices", "trusted",
        "curve", "warnings".

    Raises:
        InputError: labels or scores that do not fit, one class, rates that cannot be taken out, an unknown criterion.
    """
    s, y = check_binary(scores, labels)
    if y.all() or not y.any():
        raise InputError("labels", f"only {int(y[0])}", "both classes are needed")
    if at_prevalence is not None and not 0 < at_prevalence < 1:
        raise InputError("at prevalence", at_prevalence, "is a share between 0 and 1, such as 0.0017")
    for name, rate in (("miss rate", e1), ("false rate", e0)):
        if not 0 <= rate < 1:
            raise InputError(name, rate, "is a share from 0 to below 1")
    curve = binary_curve(s, y)
    n, positives = len(y), int(y.sum())
    noise = _noise(positives / n, e1, e0)
    choices = {
        name: best_threshold(s, y, name, digits=digits, e1=e1, e0=e0, curve=curve)
        for name in dict.fromkeys([*CHOSEN_BY, criterion])
    }
    at = choices[criterion].threshold if threshold is None else threshold
    cells = confusion(s, y, at)
    draws = bootstrap_curve(
        s, y, {name: CRITERIA[name] for name in choices}, resamples=resamples, stratified=stratified, seed=seed,
        digits=digits, curve=curve,
    )  # fmt: skip

    def correct(seen: Cells) -> Cells:
        share = (seen.tp + seen.fn) / (seen.tp + seen.fp + seen.fn + seen.tn)
        usable = (share > e0) & (share < 1 - e1)  # a plain resample may leave too few positives to correct
        return corrected_cells(Cells(*(cell[usable] for cell in seen)), e1, e0)

    how = {"level": level, "resamples": resamples, "stratified": stratified, "seed": seed}
    metrics = [
        *_threshold_metrics(cells, e1, e0, at_prevalence, how, correct if noise else None),
        *_score_metrics(s, y, curve, draws, e1, e0, level, stratified),
    ]
    by = {m["name"]: m for m in metrics}
    # At one threshold the area under the ROC curve is the balanced accuracy: what one does not see, the other averages.
    by["auroc"] |= {seen: by["balanced-accuracy"][seen] for seen in ("sees_false_alarms", "sees_misses")}
    return {
        "rows": n,
        "positives": positives,
        "prevalence": positives / n,
        "noise": noise,
        "at_prevalence": at_prevalence,
        "threshold": at,
        "threshold_by": criterion if threshold is None else "given",
        "cells": {name: int(count) for name, count in cells._asdict().items()},
        "level": level,
        "interval": f"{'stratified' if stratified else 'plain'} bootstrap, {resamples} resamples, seed {seed}",
        "metrics": metrics,
        "choices": [_choice(name, found, draws, e1, e0, level) for name, found in choices.items()],
        "trusted": [
            m["name"]
            for m in metrics
            if m["ranking_under_noise"] == "ranking" and m["sees_false_alarms"] and m["sees_misses"]
            if m["name"] not in _ONE_SIDED
        ],
        "curve": _curve(curve, e1, e0),
        "warnings": _warnings(s, y, at, threshold is None, cells, metrics, draws, e1, e0),
    }  # fmt: skip


def example(*, e1: float = 0.0, e0: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores and annotated labels of 284,807 rows of the default binormal classifier, 492 of them truly positive.

    Args:
        e1, e0: error rates of the annotator that is simulated.
        seed: of the scores and of the annotation.
    """
    scores, truth = Binormal().sample(POSITIVES, ROWS - POSITIVES, seed=seed)
    return scores, annotate(truth, e1, e0, seed=seed)


def study() -> list[dict[str, Any]]:
    """What every criterion loses when it chooses on annotated labels: expected cells, the grid of the binormal study.

    Returns:
        Best first, the fields of :class:`scoreline.metrics.binormal.Regret`.
    """
    return [asdict(regret) for regret in simulate({name: CRITERIA[name] for name in CHOSEN_BY})]


def _noise(seen: float, e1: float, e0: float) -> dict[str, float] | None:
    if not e1 and not e0:
        return None
    pi = float(true_prevalence(seen, e1, e0))
    if not 0 < pi < 1:
        mend = "annotation errors alone explain the labels; the false rate must be below the share of positives, and "
        mend += "the miss rate below that of negatives"
        raise InputError("share annotated as positive", round(seen, 6), mend)
    alpha, beta = posterior(pi, e1, e0)
    return {
        "miss_rate": e1, "false_rate": e0, "true_prevalence": pi, "alpha": float(alpha), "beta": float(beta),
        "j_factor": float(j_factor(pi, e1, e0)), "mcc_factor": float(mcc_factor(pi, e1, e0)),
    }  # fmt: skip


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _row(name: str, value: float, interval: Interval | None, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "value": value, "interval": _ends(interval)}
    row |= {"corrected": None, "corrected_interval": None, "at_prevalence": None}
    row |= {"sees_false_alarms": None, "sees_misses": None}
    row |= {"higher_is_better": name not in ("log-loss", "brier")}
    facts = FACTS[name]
    return row | {"other_prevalence": facts.prevalence, "ranking_under_noise": facts.noise} | more


def _threshold_metrics(
    cells: Cells, e1: float, e0: float, pi: float | None, how: dict[str, Any], correct: Callable[[Cells], Cells] | None
) -> list[dict[str, Any]]:
    value, interval = cell_metrics(cells), cell_intervals(cells, **how)
    clean = None if correct is None else cell_metrics(corrected_cells(cells, e1, e0))
    # The share annotated as positive decides how much of it was noise: where errors are taken out, it is drawn too.
    mended = None if correct is None else cell_intervals(cells, **how | {"stratified": False}, correct=correct)
    t, f = noise_correct(cells, e1, e0)
    moved = None if pi is None else cell_metrics(noisy_cells(pi, t, f))
    # What ten times the false alarms would do says whether a metric sees them at this prevalence.
    negatives = cells.fp + cells.tn
    more = torch.minimum(10 * cells.fp.clamp(min=1), negatives)
    worse = cell_metrics(Cells(cells.tp, more, cells.fn, negatives - more))
    tp, fp, fn, tn = (cell.double() for cell in cells)
    fewer = cell_metrics(Cells(tp / 2, fp / 2, fn + tp / 2, tn + fp / 2))
    return [
        _row(
            name,
            float(value[name]),
            interval[name],
            corrected=None if clean is None else float(clean[name]),
            corrected_interval=None if mended is None else _ends(mended[name]),
            at_prevalence=None if moved is None else float(moved[name]),
            sees_false_alarms=bool(abs(value[name] - worse[name]) >= _BLIND),
            sees_misses=bool(abs(value[name] - fewer[name]) >= _BLIND),
        )
        for name in METRICS
    ]


def _score_metrics(
    s: Tensor, y: Tensor, curve: BinaryCurve, draws: CurveDraws, e1: float, e0: float, level: float, stratified: bool
) -> list[dict[str, Any]]:
    area, share = auroc(s, y), float(y.double().mean())
    row = _row("auroc", area, percentiles(draws.auroc, level=level))
    if e1 or e0:
        n, generator = len(y), np.random.default_rng(len(draws.auroc))
        drawn = torch.from_numpy(generator.binomial(n, share, len(draws.auroc)) / n)
        usable = (drawn > e0) & (drawn < 1 - e1)
        ends = percentiles(correct_auroc(draws.auroc[usable], drawn[usable], e1, e0), level=level)
        row |= {"corrected": float(correct_auroc(area, share, e1, e0)), "corrected_interval": _ends(ends)}
    precision = percentiles(draws.average_precision, level=level)
    rows = [row, _row("average-precision", average_precision(s, y), precision)]
    if s.min() < 0 or s.max() > 1:
        return rows
    for name, loss in (("log-loss", log_loss), ("brier", brier_score)):
        each, other = loss(s, y), loss(s, ~y)
        row = _row(name, float(each.mean()), _mean_interval(each, y, level, stratified))
        if (e1 or e0) and torch.isfinite(each).all() and torch.isfinite(other).all():
            mended = unbiased_loss(each, other, y, e1, e0)
            interval = _mean_interval(mended, y, level, False)
            row |= {"corrected": float(mended.mean()), "corrected_interval": _ends(interval)}
        rows.append(row)
    return rows


def _mean_interval(each: Tensor, y: Tensor, level: float, stratified: bool) -> Interval | None:
    """Normal interval of a mean; stratified adds only the spread inside the classes."""
    if not torch.isfinite(each).all() or min(int(y.sum()), int((~y).sum())) < 2:
        return None
    n = len(each)
    if stratified:
        variance = sum(len(side) / n * float(side.var()) for side in (each[y], each[~y])) / n
    else:
        variance = float(each.var()) / n
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    mean = float(each.mean())
    return Interval(mean - half, mean + half, level, "normal")


def _choice(name: str, found: Any, draws: CurveDraws, e1: float, e0: float, level: float) -> dict[str, Any]:
    low, high = _quantiles(draws.thresholds[name], level)
    shown = corrected_cells(found.cells, e1, e0) if e1 or e0 else found.cells
    return {
        "criterion": name,
        "threshold": found.threshold,
        # With known errors the threshold is chosen on corrected cells, which are not resampled.
        "threshold_interval": None if e1 or e0 else [low, high],
        "predicted_positive": int(found.cells.tp + found.cells.fp),
        **{name: float(metric_named(name)(shown, 0.0)) for name in _SHOWN},
    }


def _quantiles(draws: Tensor, level: float) -> tuple[float, float]:
    """Of thresholds, which may be infinite: the nearest draws, without interpolation."""
    ordered = draws.sort().values
    last = len(ordered) - 1
    return float(ordered[round((1 - level) / 2 * last)]), float(ordered[round((1 + level) / 2 * last)])


def _curve(curve: BinaryCurve, e1: float, e0: float) -> dict[str, list[float]]:
    """At most 200 thresholds, evenly spaced in the logarithm of how many rows are predicted positive."""
    counts = (curve.tp + curve.fp).double()
    wanted = torch.logspace(0, math.log10(float(counts[-1])), _POINTS, dtype=torch.float64)
    picked = torch.unique(torch.searchsorted(counts, wanted).clamp(max=len(counts) - 1))
    cells = Cells(*(cell[picked] for cell in curve.cells))
    shown = corrected_cells(cells, e1, e0) if e1 or e0 else cells
    metrics = cell_metrics(shown, [*_SHOWN, "balanced-accuracy"])
    return {
        "threshold": curve.thresholds[picked].tolist(),
        "predicted_positive": counts[picked].tolist(),
        **{name: values.tolist() for name, values in metrics.items()},
    }


def _warnings(
    s: Tensor, y: Tensor, at: float, chosen: bool, cells: Cells, metrics: list[dict[str, Any]], draws: CurveDraws,
    e1: float, e0: float,
) -> list[str]:  # fmt: skip
    tp, fp, fn, tn = (int(cell) for cell in cells)
    positives, n = tp + fn, len(y)
    share, value = positives / n, {m["name"]: m["value"] for m in metrics}
    said = []
    error = math.sqrt(max(value["recall"] * (1 - value["recall"]), 1e-12) / positives)
    if 0 < tp < positives and error > 0.005:
        text = f"{positives} positives: the recall of {value['recall']:.3g} has a standard error of {error:.2g}; two "
        text += f"models on other rows are told apart only beyond a difference of about {2.8 * error:.2g}"
        said.append(text)
    for count, total, name in ((fn, positives, "recall"), (fp, fp + tn, "specificity")):
        if count == 0:
            text = f"no error among {total}: the bootstrap gives the {name} no lower end; by the rule of three it may "
            said.append(text + f"be as low as {max(0.0, 1 - 3 / total):.4g}")
    if chosen:
        said.append("the threshold was chosen on these rows, so that values at it are optimistic; judge on other rows")
    idle = 1 - share
    if share < 0.5 and value["accuracy"] <= idle + 0.01:
        said.append(f'accuracy {value["accuracy"]:.4g} means little: "always negative" has {idle:.4g}')
    if value["auroc"] < 0.5:
        said.append(f"AUROC {value['auroc']:.3g} is below one half: is a higher score the positive class?")
    elif share < 0.05 and value["auroc"] > 0.9 and value["average-precision"] < 0.5:
        text = (
            f"AUROC {value['auroc']:.3g} is no evidence of use: average precision is {value['average-precision']:.3g}"
        )
        said.append(text)
    if not e1 and not e0 and share < 0.05:
        text = f"one wrongly flagged negative in {max(round(10 / share), 1):,} would make a tenth of these positives "
        said.append(text + "wrong; if the annotator's error rates are known, give them")
    if share > 0.2:
        said.append(f"precision, F1 and their kin hold at this share of positives ({share:.3g}) only; if rows were "
                    "rebalanced, ask for the values at the true prevalence")  # fmt: skip
    if e1 or e0:
        area = next(m for m in metrics if m["name"] == "auroc")
        raw = noise_correct(cells, e1, e0, clip=False)
        if area["corrected"] in (0.0, 1.0) or not (0 <= raw.t <= 1 and 0 <= raw.f <= 1):
            said.append("corrected values leave [0, 1] and were clipped: by chance, or because the error rates given "
                        "are larger than those in these labels")  # fmt: skip
    if (e1 or e0) and share - e0 < 3 * math.sqrt(share / n):
        said.append(f"the share annotated as positive ({share:.3g}) lies within chance of the false rate: corrected "
                    "values rest on little")  # fmt: skip
    if draws.empty:
        said.append(f"{draws.empty} resamples held a single class and were left out")
    if at == math.inf:
        said.append("the best threshold predicts no positive at all")
    if "log-loss" not in value:
        said.append("scores outside [0, 1] are no probabilities: log loss and Brier score are left out")
    elif math.isinf(value["log-loss"]):
        said.append("log loss is infinite: a row has probability 0 or 1 and the other label")
    ties = int((torch.unique(s, return_counts=True)[1] > 1).sum())
    if len(torch.unique(s)) <= 20 and n > 100:
        said.append(
            f"only {len(torch.unique(s))} different scores ({ties} of them shared): few thresholds to choose from"
        )
    return said
