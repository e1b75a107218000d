"""The hypothetical classifier: two normal score distributions, whose expected cells need no sampling.

Negatives score N(0, 1), positives N(d, sigma^2), and the answer is 1 where score >= tau:
t(tau) = Phi((d - tau)/sigma),  f(tau) = Phi(-tau),  AUROC = Phi(d / sqrt(1 + sigma^2))

With it stands the study: which criterion, applied to annotated labels, chooses what is best for the true ones, over a
grid of prevalences and error rates. The set it imitates has 284,807 rows, 492 of them positive (card fraud).
Kulatilleke & Samarakoon (2022, arXiv 2208.11904) study such a classifier; that it is binormal, and the defaults, are
our choice (Hanley, "The use of the binormal model for parametric ROC analysis", 1996).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.noise import derive
from scoreline.metrics.binary_curves import Cells
from scoreline.metrics.imbalance import cell_metrics, f1
from scoreline.metrics.label_noise import noisy_cells
from scoreline.metrics.threshold_choice import Criterion, best_index

__all__ = [
    "FALSE_RATES",
    "MISS_RATES",
    "MODELS",
    "POSITIVES",
    "PREVALENCES",
    "ROWS",
    "Binormal",
    "Regret",
    "simulate",
    "sweep",
]

ROWS, POSITIVES = 284_807, 492
PREVALENCES = (0.5, 0.1, 0.01, POSITIVES / ROWS, 1e-4)
MISS_RATES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)
FALSE_RATES = (0.0, 1e-4, 1e-3, 1e-2)

MISS_COST = 100.0
"""What a missed positive costs, in false alarms."""


@dataclass(frozen=True)
class Binormal:
    """A classifier whose scores are normal in either class.

    Args:
        d: mean of the positives' scores, in standard deviations of the negatives'.
        sigma: standard deviation of the positives' scores, > 0.

    Raises:
        InputError: a sigma that is not positive.

    >>> round(Binormal().auroc, 6)
    0.973898
    """

    d: float = 3.5
    sigma: float = 1.5

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and math.isfinite(self.d)):
            raise InputError("binormal", (self.d, self.sigma), "d is finite and sigma positive")

    def t(self, tau: Tensor | float) -> Tensor:
        """True positive rate at a threshold."""
        return torch.special.ndtr((self.d - torch.as_tensor(tau, dtype=torch.float64)) / self.sigma)

    def f(self, tau: Tensor | float) -> Tensor:
        """False positive rate at a threshold."""
        return torch.special.ndtr(-torch.as_tensor(tau, dtype=torch.float64))

    @property
    def auroc(self) -> float:
        """Phi(d / sqrt(1 + sigma^2))."""
        return float(torch.special.ndtr(torch.tensor(self.d / math.sqrt(1 + self.sigma**2), dtype=torch.float64)))

    def cells(
        self, tau: Tensor | float, pi: Tensor | float, e1: Tensor | float = 0.0, e0: Tensor | float = 0.0
    ) -> Cells:
        """Expected cells at a threshold, against labels annotated with error rates e1 and e0."""
        return noisy_cells(pi, self.t(tau), self.f(tau), e1, e0)

    def hard_cells(
        self, tau: Tensor, pi: float, e1: float, e0: float, *, center: float = 2.0, width: float = 1.0
    ) -> Cells:
        """Expected cells where errors gather around a score: P(A != Y | s) ~ exp(-|s - center|/width).

        Args:
            tau: (K,) thresholds.
            pi: prevalence. e1, e0: average error rates, low enough that no score is wrong more often than always.
            center, width: of the errors, in units of the score.

        Returns:
            (K,) fractions, by the trapezoid rule on 40,001 points.

        Raises:
            InputError: a rate too high for so narrow a width.
        """
        tau = torch.as_tensor(tau, dtype=torch.float64)
        reach = 10 * max(1.0, self.sigma)
        s = torch.linspace(min(0.0, self.d) - reach, max(0.0, self.d) + reach, 40_001, dtype=torch.float64)
        weight = (-(s - center).abs() / width).exp()
        wrong = []
        for rate, name, mean, std in ((e1, "e1", self.d, self.sigma), (e0, "e0", 0.0, 1.0)):
            dense = torch.exp(-0.5 * ((s - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
            norm = torch.trapezoid(weight * dense, s)
            if rate / norm > 1:
                raise InputError(name, rate, f"at most {float(norm):.3g} with this width; take a larger width")
            below = torch.cumulative_trapezoid(weight * dense, s)
            below = torch.cat([below.new_zeros(1), below])
            above = (below[-1] - below) * rate / norm  # share of the class that is wrong and scores above s
            wrong.append(torch.from_numpy(np.interp(tau.numpy(), s.numpy(), above.numpy())))
        q, t, f = 1 - pi, self.t(tau), self.f(tau)
        missed, false = wrong
        tp, fp = pi * (t - missed) + q * false, pi * missed + q * (f - false)
        annotated = pi * (1 - e1) + q * e0
        return Cells(tp, fp, annotated - tp, 1 - annotated - fp)

    def best_threshold(self, criterion: Criterion, pi: float, e1: float = 0.0, e0: float = 0.0) -> float:
        """The threshold at which a criterion is best on expected cells, to about 1e-6.

        Args:
            criterion: as for :func:`scoreline.metrics.threshold_choice.best_index`.
            pi: prevalence. e1, e0: error rates of the annotator.
        """
        low, high = min(0.0, self.d) - 6 * max(1.0, self.sigma), max(0.0, self.d) + 6 * max(1.0, self.sigma)
        for _ in range(3):
            tau = torch.linspace(high, low, 2001, dtype=torch.float64)
            best = int(best_index(self.cells(tau, pi, e1, e0), criterion, digits=12))
            high, low = float(tau[max(best - 1, 0)]), float(tau[min(best + 1, len(tau) - 1)])
        return (high + low) / 2

    def sample(self, positives: int, negatives: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Draw (scores, labels), float64 and bool, the positives first.

        Raises:
            InputError: a negative count, or no row at all.
        """
        if positives < 0 or negatives < 0 or positives + negatives == 0:
            raise InputError("counts", (positives, negatives), "are at least 0, and not both 0")
        generator = torch.Generator().manual_seed(derive(seed, "binormal") % 2**63)
        draws = torch.randn(positives + negatives, generator=generator, dtype=torch.float64)
        draws[:positives] = self.d + self.sigma * draws[:positives]
        return draws, torch.arange(positives + negatives) < positives


MODELS = {
    "good": Binormal(),
    "narrow": Binormal(3.0, 1.0),
    "wide": Binormal(4.0, 2.5),
    "sharp top": Binormal(2.0, 2.5),
    "fair": Binormal(2.5, 1.5),
    "low f": Binormal(3.0, 0.6),
}
"""Candidates of the study: curves that cross, so that what is best depends on the prevalence."""


def sweep(
    model: Binormal,
    thresholds: Tensor | Sequence[float],
    *,
    prevalences: Sequence[float] = PREVALENCES,
    miss_rates: Sequence[float] = MISS_RATES,
    false_rates: Sequence[float] = FALSE_RATES,
    names: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Expected metrics over prevalence, error rates and threshold.

    Args:
        model: the hypothetical classifier.
        thresholds: (K,).
        prevalences, miss_rates, false_rates: the grid of pi, e1 and e0.
        names: metrics; nothing takes all.

    Returns:
        metric -> (len(prevalences), len(miss_rates), len(false_rates), K) float64.

    Raises:
        InputError: a number outside [0, 1], an unknown metric.
    """
    tau = torch.as_tensor(thresholds, dtype=torch.float64)
    return cell_metrics(model.cells(tau, *_grid(prevalences, miss_rates, false_rates)), names)


def _grid(*axes: Sequence[float]) -> list[Tensor]:
    """Each axis in a dimension of its own, and one more at the end for the thresholds."""
    shaped = []
    for place, axis in enumerate(axes):
        shape = [1] * (len(axes) + 1)
        shape[place] = len(axis)
        shaped.append(torch.tensor(list(axis), dtype=torch.float64).reshape(shape))
    return shaped


@dataclass(frozen=True)
class Regret:
    """What choosing by a criterion on annotated labels loses against the best choice on true ones.

    Attributes:
        criterion: by which a model and a threshold were chosen.
        f1: mean over the grid of (best clean F1 - clean F1 of the chosen).
        cost: mean of (cost of the chosen - least cost) / cost of the better of "none" and "all", with cost
            100 FN + FP.
        worst_f1: the largest loss of F1 on the grid.
    """

    criterion: str
    f1: float
    cost: float
    worst_f1: float


def simulate(
    criteria: Mapping[str, Criterion],
    *,
    models: Mapping[str, Binormal] = MODELS,
    prevalences: Sequence[float] = PREVALENCES,
    miss_rates: Sequence[float] = MISS_RATES,
    false_rates: Sequence[float] = FALSE_RATES,
    rows: int | None = None,
    seed: int = 0,
) -> list[Regret]:
    """Rank criteria by what they lose when they choose a model and a threshold on annotated labels.

    Args:
        criteria: name -> criterion.
        models: the candidates, each at 241 thresholds from 8 to -4.
        prevalences, miss_rates, false_rates: the grid.
        rows: size of the annotated sample from which the choice is made; nothing takes expected cells, so that noise
            acts but chance does not.
        seed: of the samples.

    Returns:
        Best first, by the mean of both losses' ranks; the clean values are expected ones of the chosen classifier.

    Raises:
        InputError: a number outside [0, 1], an unknown criterion, no criterion.
    """
    if not criteria:
        raise InputError("criteria", None, "name at least one")
    tau = torch.linspace(8, -4, 241, dtype=torch.float64)
    axes = _grid(prevalences, miss_rates, false_rates)
    t, f = (torch.stack([getattr(model, rate)(tau) for model in models.values()]) for rate in ("t", "f"))
    t, f = (torch.cat([torch.zeros(len(models), 1, dtype=torch.float64), rate], 1).flatten() for rate in (t, f))
    seen, clean = noisy_cells(axes[0], t, f, *axes[1:]), noisy_cells(axes[0], t, f)
    if rows is not None:
        seen = _sampled(seen, len(models), rows, seed)
    value = f1(clean, 0.0).expand(seen.tp.shape)
    pi = axes[0]
    trivial = torch.minimum(MISS_COST * pi, 1 - pi)
    cost = ((MISS_COST * clean.fn + clean.fp) / trivial).expand(seen.tp.shape)
    found = []
    for name, criterion in criteria.items():
        chosen = best_index(seen, criterion)[..., None]
        lost = value.amax(-1) - value.gather(-1, chosen)[..., 0]
        dearer = cost.gather(-1, chosen)[..., 0] - cost.amin(-1)
        found.append(Regret(name, float(lost.mean()), float(dearer.mean()), float(lost.max())))
    places = {
        regret.criterion: sum(sum(getattr(o, u) < getattr(regret, u) for o in found) for u in ("f1", "cost"))
        for regret in found
    }
    return sorted(found, key=lambda regret: (places[regret.criterion], regret.f1))


def _sampled(cells: Cells, models: int, rows: int, seed: int) -> Cells:
    """Cells of samples of so many rows: counts of annotated positives and negatives between thresholds."""
    if rows < 1:
        raise InputError("rows", rows, "at least 1 is needed")
    rng = np.random.default_rng(seed)
    shape = torch.broadcast_shapes(*(cell.shape for cell in cells))
    tp, fp, fn, tn = (cell.expand(shape).reshape(*shape[:-1], models, -1) for cell in cells)
    parts = []
    for above, rest in ((tp, fn), (fp, tn)):
        steps = above.diff(dim=-1, prepend=torch.zeros_like(above[..., :1]))
        parts.append(torch.cat([steps, rest[..., -1:]], -1))
    share = torch.cat(parts, -1).clamp(min=0).numpy()
    counts = torch.from_numpy(rng.multinomial(rows, share / share.sum(-1, keepdims=True))).double()
    positive, negative = counts.split(parts[0].shape[-1], -1)
    drawn = []
    for side in (positive, negative):
        above = side[..., :-1].cumsum(-1)
        drawn.append((above.reshape(shape), (side.sum(-1, keepdim=True) - above).reshape(shape)))
    (tp, fn), (fp, tn) = drawn
    return Cells(tp, fp, fn, tn)
