"""The claim of system 27, measured on digits: F1, then g-mean, in that order, is the criterion to choose by.

Kulatilleke & Samarakoon 2022 (arXiv 2208.11904). Which criterion picks the model and threshold that are best on clean
labels when only noisy labels are seen? Digits as "8 versus rest": all 1,797 images, the eights thinned out to 2 % of
the pool, halved by the seed into training and evaluation. Candidates are 14 models (logistic regression with 6 values
of C and 2 class weightings, 2 nearest-neighbour models) x 40 thresholds. Noise is put on the evaluation labels only:
e1 in {0, 0.1, 0.3}, e0 in {0, 0.001, 0.005, 0.01}, ten draws each, the same ones for every arm. The scale "gpu" adds
CIFAR-10, "cat versus rest" at 1 % on 64 principal components of the test split, and averages both.

regret = best clean value among the candidates - clean value of the chosen one (for the cost, the other way round), in
two utilities: clean F1, and cost 100 FN + FP in false alarms per 1000 rows.

The rule, from the plan of this claim:
- confirmed: the pair has the lowest mean regret in both utilities over the grid;
- refuted: MCC or another single metric is lower by more than two standard errors (over seeds, paired) in one of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part
from scoreline.core.noise import derive
from scoreline.data import load_images
from scoreline.data.images import Images
from scoreline.metrics.binary_curves import Cells, average_precision
from scoreline.metrics.imbalance import f1
from scoreline.metrics.label_noise import annotate
from scoreline.metrics.threshold_choice import best_index

__all__ = ["ARMS", "CLAIM", "Candidates", "ImbalancedMetrics", "candidates", "cifar_pool", "digits_pool", "regrets"]

PAIR = "F1 then g-mean"
AP_FIRST = "AP then F1"
CRITERIA: dict[str, tuple[str, ...]] = {
    "accuracy": ("accuracy",),
    "F1": ("f1",),
    "g-mean": ("g-mean",),
    "balanced accuracy": ("balanced-accuracy",),
    "MCC": ("mcc",),
    "kappa": ("kappa",),
    PAIR: ("f1", "g-mean"),
}
SINGLE = tuple(name for name in CRITERIA if name != PAIR)
ARMS = (*SINGLE[:6], AP_FIRST, PAIR)
UTILITIES = ("regret_f1", "regret_cost")

MISS_RATES, FALSE_RATES = (0.0, 0.1, 0.3), (0.0, 0.001, 0.005, 0.01)
PREVALENCE, CIFAR_PREVALENCE, CAT = 0.02, 0.01, 3
THRESHOLDS = 40
MISS_COST = 100.0


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale: values of C, noise draws a setting, whether CIFAR-10 counts too."""

    cs: tuple[float, ...]
    draws: int
    cifar: bool = False


SIZES = {
    "laptop": Scale((0.001, 0.01, 0.1, 1.0, 10.0, 100.0), 10),
    "smoke": Scale((0.1, 10.0), 2),
    "gpu": Scale((0.001, 0.01, 0.1, 1.0, 10.0, 100.0), 10, cifar=True),
}


@dataclass(frozen=True)
class Candidates:
    """Models with their thresholds on one evaluation set.

    Attributes:
        labels: (N,) bool, clean.
        scores: (M, N) float64.
        thresholds: (M, K) float64, falling.
        names: M.
        fits: rows that were fitted, summed over models.
    """

    labels: Tensor
    scores: Tensor
    thresholds: Tensor
    names: tuple[str, ...]
    fits: int

    def cells(self, labels: Tensor) -> Cells:
        """(M, K) counts against some labels."""
        tp, fp = self.predicted @ labels.double(), self.predicted @ (~labels).double()
        return Cells(tp, fp, int(labels.sum()) - tp, int((~labels).sum()) - fp)

    @cached_property
    def predicted(self) -> Tensor:
        """(M, K, N) float64, 1 where a row is predicted positive; the same for every draw of labels."""
        return (self.scores[:, None, :] >= self.thresholds[:, :, None]).double()


def digits_pool(seed: int) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1] and "is an 8" of the digits, the eights thinned out to 2 % of the pool by the seed."""
    data = load_images("digits")
    batch = data.batch(range(len(data)))
    assert batch.label is not None
    rows = _thinned(batch.label == 8, PREVALENCE, seed)
    return (batch.image[rows].flatten(1).double() + 1) / 2, batch.label[rows] == 8


def cifar_pool(data: Images, seed: int) -> tuple[Tensor, Tensor]:
    """64 principal components (whitened) and "is a cat" of CIFAR-10, the cats thinned out to 1 % by the seed.

    Args:
        data: the test split of CIFAR-10, or any set whose label 3 is the positive class.
        seed: which cats stay.
    """
    from sklearn.decomposition import PCA

    parts = list(data.batches(1000))
    labels = torch.cat([part.label for part in parts if part.label is not None])
    rows = _thinned(labels == CAT, CIFAR_PREVALENCE, seed)
    pixels = torch.cat([part.image.flatten(1) for part in parts])[rows].numpy()
    features = PCA(64, whiten=True, svd_solver="covariance_eigh").fit_transform(pixels)
    return torch.from_numpy(features).double(), labels[rows] == CAT


def _thinned(positive: Tensor, prevalence: float, seed: int) -> Tensor:
    """Places of all negatives and of so many positives, drawn by the seed, that their share is the prevalence."""
    keep = round(prevalence / (1 - prevalence) * int((~positive).sum()))
    generator = torch.Generator().manual_seed(derive(seed, "imbalanced-metrics", "pool") % 2**63)
    found = torch.nonzero(positive)[:, 0]
    kept = found[torch.randperm(len(found), generator=generator)[:keep]]
    return torch.cat([torch.nonzero(~positive)[:, 0], kept]).sort().values


def candidates(features: Tensor, labels: Tensor, seed: int, cs: Sequence[float]) -> Candidates:
    """Fit the models on one half of a pool and place 40 thresholds for each on the other half.

    The halves have equal shares of positives. Thresholds are scores of the evaluation rows, at numbers of predicted
    positives that grow geometrically from 1 to all.

    Args:
        features: (N, D), any two-class set, for instance digits or 64 principal components of CIFAR-10.
        labels: (N,) bool.
        seed: of the split.
        cs: inverse regularisation strengths of the logistic regressions.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    generator = torch.Generator().manual_seed(derive(seed, "imbalanced-metrics", "split") % 2**63)
    train = torch.zeros(len(labels), dtype=torch.bool)
    for side in (labels, ~labels):
        rows = torch.nonzero(side)[:, 0]
        train[rows[torch.randperm(len(rows), generator=generator)[: len(rows) // 2]]] = True
    x, y = features[train].numpy(), labels[train].numpy()
    models = {
        **{
            f"logistic C={c:g}{' balanced' if weight else ''}": LogisticRegression(
                C=c, class_weight=weight, max_iter=2000
            )
            for weight in (None, "balanced")
            for c in cs
        },
        **{f"{k} neighbours": KNeighborsClassifier(k, weights="distance") for k in (5, 15)},
    }
    ours = labels[~train]
    scores = []
    for model in models.values():
        # Log-odds keep apart what rounds to a probability of 0 or 1.
        fitted = model.fit(x, y)
        seen = features[~train].numpy()
        if isinstance(model, LogisticRegression):
            scores.append(torch.from_numpy(np.asarray(fitted.decision_function(seen))).double())
        else:
            scores.append(torch.from_numpy(np.asarray(fitted.predict_proba(seen))[:, 1]).double())
    stacked = torch.stack(scores)
    places = torch.logspace(0, math.log10(len(ours)), THRESHOLDS, dtype=torch.float64).round().long() - 1
    ordered = stacked.sort(dim=1, descending=True).values
    return Candidates(ours, stacked, ordered[:, places], tuple(models), len(models) * int(train.sum()))


def regrets(found: Candidates, seed: int, draws: int) -> dict[str, dict[str, float]]:
    """Mean regret of every criterion over the grid of noise, and over its part without false alarms.

    Args:
        found: the candidates on one evaluation set.
        seed: of the noise.
        draws: noisy label sets for each (e1, e0).

    Returns:
        arm -> {"regret_f1", "regret_cost", the same "_e0_zero", "predicted_positive", mean number of the chosen}.
    """
    clean = found.cells(found.labels)
    rows = len(found.labels)
    value = f1(clean, 0.0)
    cost = (MISS_COST * clean.fn + clean.fp).double() * 1000 / rows
    sums: dict[str, dict[str, list[float]]] = {arm: {} for arm in ARMS}
    for e1 in MISS_RATES:
        for e0 in FALSE_RATES:
            for draw in range(draws if e1 or e0 else 1):
                label = derive(seed, "imbalanced-metrics", f"{e1}/{e0}", draw) % 2**63
                seen = annotate(found.labels, e1, e0, seed=label)
                if not seen.any():
                    continue  # nothing to choose by; the same draw is missing for every arm
                weight = 1 if e1 or e0 else draws
                for arm, at in _chosen(found, seen).items():
                    lost = float(value.max() - value.flatten()[at])
                    dearer = float(cost.flatten()[at] - cost.min())
                    numbers = sums[arm]
                    for name, number in (("regret_f1", lost), ("regret_cost", dearer)):
                        numbers.setdefault(name, []).extend([number] * weight)
                        if e0 == 0:
                            numbers.setdefault(f"{name}_e0_zero", []).extend([number] * weight)
                    positive = float((clean.tp + clean.fp).flatten()[at])
                    numbers.setdefault("predicted_positive", []).extend([positive] * weight)
    return {arm: {name: mean(values) for name, values in numbers.items()} for arm, numbers in sums.items()}


def _chosen(found: Candidates, seen: Tensor) -> dict[str, int]:
    """arm -> place of its (model, threshold) among all candidates, chosen on noisy labels."""
    cells = found.cells(seen)
    flat = Cells(*(cell.flatten() for cell in cells))
    chosen = {arm: int(best_index(flat, criterion)) for arm, criterion in CRITERIA.items()}
    precision = [average_precision(scores, seen) for scores in found.scores]
    model = precision.index(max(precision))
    inside = int(best_index(Cells(*(cell[model] for cell in cells)), ("f1",)))
    return chosen | {AP_FIRST: model * found.thresholds.shape[1] + inside}


def _measured(seed: int, sizes: Scale) -> tuple[dict[str, dict[str, float]], int]:
    """Regrets by arm, means over the data sets of this scale, and how many rows were fitted."""
    pools = [digits_pool(seed)]
    if sizes.cifar:
        pools.append(cifar_pool(load_images("cifar10", split="test"), seed))
    found = [candidates(*pool, seed, sizes.cs) for pool in pools]
    each = [regrets(made, seed, sizes.draws) for made in found]
    merged = {arm: {name: mean(part[arm][name] for part in each) for name in each[0][arm]} for arm in ARMS}
    return merged, sum(made.fits for made in found)


class ImbalancedMetrics(Claim):
    """Criteria that choose on noisy labels, judged on clean ones."""

    system = "27"
    statement = "F1, then g-mean, in that order, is the best evaluation criterion under imbalance and annotation noise."
    arms = ARMS
    seeds = tuple(range(20))
    seconds: Mapping[str, float] = {"laptop": 3.0, "smoke": 3.0, "gpu": 60.0}
    shrunk = (
        "digits (8 versus rest, 2 % positives) in place of 284,807 card transactions with 492 frauds",
        "14 linear and nearest-neighbour models in place of gradient boosting",
        "the second part of the plan, CIFAR-10 cat versus rest at 1 %, waits for --scale gpu: its files do not ship",
        "about 16 positives in each evaluation half, so that chance is large; 20 seeds and 10 noise draws average it",
    )

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        sizes = SIZES[scale]
        by_arm, fits = memo("regrets", lambda: _measured(seed, sizes))
        # Fitted rows stand in for images; every arm chooses among the same models.
        return {**by_arm[arm], BUDGET: float(fits)}

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        average = {utility: {arm: mean(_known(numbers, arm, utility)) for arm in ARMS} for utility in UTILITIES}
        parts, beaten = [], []
        for utility, words in zip(UTILITIES, ("clean F1", "cost 100 FN + FP")):
            table = average[utility]
            best = min(table, key=lambda arm: table[arm])
            parts.append(
                Part(
                    f"the pair has the lowest mean regret in {words}",
                    table[PAIR] <= table[best],
                    f"pair {table[PAIR]:.4g}, lowest {best} {table[best]:.4g}",
                )
            )
            for arm in SINGLE:
                difference, error = _paired(numbers, arm, utility)
                if difference > 2 * error and difference > 0:
                    beaten.append(f"{arm} by {difference:.3g} (standard error {error:.2g}) in {words}")
        parts.append(
            Part(
                "no single metric is lower by more than two standard errors",
                not beaten,
                "; ".join(beaten) or "none is",
            )
        )
        if beaten:
            return "refuted", parts
        held = sum(bool(part.holds) for part in parts[:2])
        return ("not seen", "in part", "holds")[held], parts

    def findings(self, numbers: Numbers) -> list[str]:
        def order(name: str) -> str:
            table = {arm: mean(_known(numbers, arm, name)) for arm in ARMS}
            return ", ".join(f"{arm} {table[arm]:.4g}" for arm in sorted(table, key=lambda arm: table[arm]))

        predicted = {arm: mean(_known(numbers, arm, "predicted_positive")) for arm in ("g-mean", "MCC", PAIR)}
        shown = ", ".join(f"{arm} {count:.1f}" for arm, count in predicted.items())
        same = mean(
            [abs(a - b) for a, b in zip(_known(numbers, "F1", "regret_f1"), _known(numbers, PAIR, "regret_f1"))]
        )
        return [
            f"Mean regret in clean F1, lowest first: {order('regret_f1')}.",
            f"Mean regret in cost per 1000 rows, lowest first: {order('regret_cost')}.",
            f"Without false alarms of the annotator (e0 = 0), in clean F1: {order('regret_f1_e0_zero')}.",
            f"Rows predicted positive by the chosen, on average: {shown}; about 16 of the 828 are.",
            f"F1 alone and the pair differ by {same:.2g} in clean F1: ties are rare.",
        ]


def _known(numbers: Numbers, arm: str, name: str) -> list[float]:
    return [value for value in numbers[arm][name] if value is not None]


def _paired(numbers: Numbers, arm: str, utility: str) -> tuple[float, float]:
    """How much lower an arm's regret is than the pair's: mean and standard error of the differences over seeds."""
    differences = [p - a for p, a in zip(_known(numbers, PAIR, utility), _known(numbers, arm, utility), strict=True)]
    if len(differences) < 2:
        return differences[0], math.inf
    return mean(differences), stdev(differences) / math.sqrt(len(differences))


CLAIM = ImbalancedMetrics()
