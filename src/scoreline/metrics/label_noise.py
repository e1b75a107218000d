"""What annotation errors do to the metrics of a confusion matrix, and how known error rates are taken out again.

Truth Y, annotated label A, prediction D; A and D are independent given Y (class-conditional noise):
pi = P(Y=1),  q = 1 - pi,  e1 = P(A=0 | Y=1) (missed),  e0 = P(A=1 | Y=0) (false alarm of the annotator),
t = P(D=1 | Y=1),  f = P(D=1 | Y=0);  a prime marks what is seen against the annotated labels.

pi' = pi (1-e1) + q e0;  alpha = P(Y=1 | A=1) = pi (1-e1)/pi';  beta = P(Y=1 | A=0) = pi e1/(1-pi')
t' = alpha t + (1-alpha) f;  f' = beta t + (1-beta) f
J' = (alpha - beta) J;  AUROC' - 1/2 = (alpha - beta)(AUROC - 1/2);  alpha - beta = (1-e0-e1) pi q / (pi'(1-pi'))
MCC' = MCC (1-e0-e1) sqrt(pi q / (pi'(1-pi')));  PPV' = e0 + (1-e0-e1) PPV;  NPV' = e1 + (1-e0-e1) NPV

The factors do not depend on the classifier, so rankings and best thresholds by MCC, balanced accuracy (J), AUROC,
precision, NPV and markedness are unchanged. This model formalises what Kulatilleke & Samarakoon (2022, arXiv
2208.11904) describe; the algebra is that of Natarajan et al., "Learning with noisy labels" (2013), and Menon et al.,
"Learning from corrupted binary labels via class-probability estimation" (2015).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.noise import derive
from scoreline.metrics.binary_curves import Cells, check_binary
from scoreline.metrics.imbalance import as_cells

__all__ = [
    "Posterior",
    "Rates",
    "annotate",
    "annotated_prevalence",
    "correct_auroc",
    "corrected_cells",
    "flip_probability",
    "j_factor",
    "mcc_factor",
    "noise_correct",
    "noisy_cells",
    "posterior",
    "true_prevalence",
    "unbiased_loss",
]

Real = Tensor | float


class Posterior(NamedTuple):
    """How far annotated labels can be believed: alpha = P(Y=1 | A=1), beta = P(Y=1 | A=0)."""

    alpha: Tensor
    beta: Tensor


class Rates(NamedTuple):
    """What a classifier does: t = P(D=1 | Y=1), the true positive rate, and f = P(D=1 | Y=0), the false one."""

    t: Tensor
    f: Tensor


def _shares(**named: Real) -> list[Tensor]:
    """float64 tensors of numbers that all lie in [0, 1]."""
    found = []
    for name, value in named.items():
        tensor = torch.as_tensor(value, dtype=torch.float64)
        if not ((tensor >= 0) & (tensor <= 1)).all():
            raise InputError(name, tensor.flatten()[:5].tolist(), "a share lies in [0, 1]")
        found.append(tensor)
    return found


def annotated_prevalence(pi: Real, e1: Real, e0: Real) -> Tensor:
    """pi' = pi (1 - e1) + (1 - pi) e0, the share of rows that are annotated as positive.

    Raises:
        InputError: a number outside [0, 1].
    """
    pi, e1, e0 = _shares(pi=pi, e1=e1, e0=e0)
    return pi * (1 - e1) + (1 - pi) * e0


def true_prevalence(annotated: Real, e1: Real, e0: Real) -> Tensor:
    """pi = (pi' - e0) / (1 - e1 - e0), the inverse of :func:`annotated_prevalence`; may come out below 0 by chance.

    Raises:
        InputError: a number outside [0, 1], or e1 + e0 >= 1.
    """
    annotated, e1, e0 = _shares(annotated=annotated, e1=e1, e0=e0)
    _invertible(e1, e0)
    return (annotated - e0) / (1 - e1 - e0)


def _invertible(e1: Tensor, e0: Tensor) -> None:
    if (e1 + e0 >= 1).any():
        mend = "labels that are wrong more often than right hold nothing to correct; the rates must sum to less than 1"
        raise InputError("e1 + e0", float((e1 + e0).max()), mend)


def posterior(pi: Real, e1: Real, e0: Real) -> Posterior:
    """alpha and beta, how far annotated labels can be believed.

    alpha = pi (1-e1) / pi',  beta = pi e1 / (1-pi')

    Args:
        pi: prevalence of the true positives. e1, e0: error rates of the annotator.

    Returns:
        0 where no row has that annotation.

    Raises:
        InputError: a number outside [0, 1].

    >>> round(posterior(492 / 284807, 0.0, 0.001).alpha.item(), 4)  # one false alarm in a thousand
    0.6338
    """
    pi, e1, e0 = _shares(pi=pi, e1=e1, e0=e0)
    positive, negative = pi * (1 - e1) + (1 - pi) * e0, pi * e1 + (1 - pi) * (1 - e0)
    alpha = torch.where(positive > 0, pi * (1 - e1) / positive.clamp(min=1e-300), 0.0)
    return Posterior(alpha, torch.where(negative > 0, pi * e1 / negative.clamp(min=1e-300), 0.0))


def noisy_cells(pi: Real, t: Real, f: Real, e1: Real = 0.0, e0: Real = 0.0) -> Cells:
    """Expected cells against the annotated labels, as fractions; e1 = e0 = 0 gives the clean ones.

    TP' = pi t (1-e1) + q f e0          FP' = pi t e1 + q f (1-e0)
    FN' = pi (1-t)(1-e1) + q (1-f) e0   TN' = pi (1-t) e1 + q (1-f)(1-e0)

    Args:
        pi: prevalence of the true positives, in [0, 1].
        t, f: true and false positive rate of the classifier.
        e1, e0: share of positives and negatives that are annotated wrongly; all broadcast.

    Returns:
        Four cells that sum to 1.

    Raises:
        InputError: a number outside [0, 1].

    Reference: Kulatilleke & Samarakoon 2022, arXiv 2208.11904 (the model in words).
    """
    pi, t, f, e1, e0 = _shares(pi=pi, t=t, f=f, e1=e1, e0=e0)
    q = 1 - pi
    return Cells(
        pi * t * (1 - e1) + q * f * e0,
        pi * t * e1 + q * f * (1 - e0),
        pi * (1 - t) * (1 - e1) + q * (1 - f) * e0,
        pi * (1 - t) * e1 + q * (1 - f) * (1 - e0),
    )


def j_factor(pi: Real, e1: Real, e0: Real) -> Tensor:
    """J'/J = (AUROC' - 1/2)/(AUROC - 1/2) = alpha - beta = (1-e0-e1) pi q / (pi'(1-pi')), for every classifier.

    Raises:
        InputError: a number outside [0, 1], or only one class among the annotated labels.
    """
    pi, e1, e0 = _shares(pi=pi, e1=e1, e0=e0)
    seen = annotated_prevalence(pi, e1, e0)
    if ((seen <= 0) | (seen >= 1)).any():
        raise InputError("annotated prevalence", float(seen.min()), "both classes must be among the annotated labels")
    return (1 - e0 - e1) * pi * (1 - pi) / (seen * (1 - seen))


def mcc_factor(pi: Real, e1: Real, e0: Real) -> Tensor:
    """MCC'/MCC = (1-e0-e1) sqrt(pi q / (pi'(1-pi'))), for every classifier.

    Raises:
        InputError: a number outside [0, 1], or only one class among the annotated labels.
    """
    _, e1, e0 = _shares(pi=pi, e1=e1, e0=e0)
    factor = j_factor(pi, e1, e0)
    return torch.sign(factor) * ((1 - e0 - e1) * factor).sqrt()


def noise_correct(cells: Cells, e1: Real, e0: Real, *, prevalence: Real | None = None, clip: bool = True) -> Rates:
    """The rates against the truth, from cells against annotated labels with known error rates.

    t = ((1-beta) t' - (1-alpha) f') / (alpha-beta),  f = (alpha f' - beta t') / (alpha-beta)

    Args:
        cells: TP', FP', FN', TN', counts or fractions.
        e1, e0: error rates of the annotator, e1 + e0 < 1.
        prevalence: pi of the truth where it is known; nothing takes (pi' - e0)/(1 - e1 - e0).
        clip: to [0, 1], which counts of a finite sample may leave by chance.

    Returns:
        (t, f); corrected values have a larger spread than seen ones, by 1/(alpha - beta) and more.

    Raises:
        InputError: rates that cannot be taken out, or that leave no true positive or no true negative.

    >>> t, f = noise_correct(noisy_cells(0.0017, 0.9, 0.01, e1=0.1, e0=0.001), 0.1, 0.001)
    >>> round(t.item(), 10), round(f.item(), 10)
    (0.9, 0.01)
    """
    e1, e0 = _shares(e1=e1, e0=e0)
    _invertible(e1, e0)
    tp, fp, fn, tn = as_cells(cells)
    total = tp + fp + fn + tn
    pi = _usable_prevalence((tp + fn) / total, e1, e0) if prevalence is None else _shares(prevalence=prevalence)[0]
    alpha, beta = posterior(pi, e1, e0)
    t_seen, f_seen = tp / (tp + fn), fp / (fp + tn)
    t = ((1 - beta) * t_seen - (1 - alpha) * f_seen) / (alpha - beta)
    f = (alpha * f_seen - beta * t_seen) / (alpha - beta)
    return Rates(t.clamp(0, 1), f.clamp(0, 1)) if clip else Rates(t, f)


def _usable_prevalence(seen: Tensor, e1: Tensor, e0: Tensor) -> Tensor:
    pi = true_prevalence(seen, e1, e0)
    if (pi <= 0).any():
        worst = float(seen.min())
        mend = f"a share of {worst:.3g} is annotated positive, which false alarms alone explain; e0 must be below it"
        raise InputError("e0", float(e0.max()), mend)
    if (pi >= 1).any():
        worst = 1 - float(seen.max())
        mend = f"a share of {worst:.3g} is annotated negative, which misses alone explain; e1 must be below it"
        raise InputError("e1", float(e1.max()), mend)
    return pi


def corrected_cells(cells: Cells, e1: Real, e0: Real, *, prevalence: Real | None = None) -> Cells:
    """The cells that would be seen with true labels: rates of :func:`noise_correct` at the true prevalence.

    Args:
        cells, e1, e0, prevalence: as for :func:`noise_correct`.

    Returns:
        Cells with the sum of those given.

    Raises:
        InputError: as for :func:`noise_correct`.
    """
    tp, fp, fn, tn = as_cells(cells)
    total = tp + fp + fn + tn
    rates = noise_correct(Cells(tp, fp, fn, tn), e1, e0, prevalence=prevalence)
    pi = true_prevalence((tp + fn) / total, e1, e0) if prevalence is None else _shares(prevalence=prevalence)[0]
    return Cells(*(total * cell for cell in noisy_cells(pi, rates.t, rates.f)))


def correct_auroc(auroc: Real, annotated: Real, e1: Real, e0: Real) -> Tensor:
    """AUROC = 1/2 + (AUROC' - 1/2) / (alpha - beta), clipped to [0, 1].

    Args:
        auroc: against the annotated labels.
        annotated: pi', the share annotated as positive.
        e1, e0: error rates of the annotator.

    Raises:
        InputError: as for :func:`noise_correct`.
    """
    auroc, annotated, e1, e0 = _shares(auroc=auroc, annotated=annotated, e1=e1, e0=e0)
    _invertible(e1, e0)
    pi = _usable_prevalence(annotated, e1, e0)
    return (0.5 + (auroc - 0.5) / j_factor(pi, e1, e0)).clamp(0, 1)


def unbiased_loss(as_labelled: Tensor, as_other: Tensor, labels: Tensor, e1: float, e0: float) -> Tensor:
    """Loss of each row whose mean against annotated labels is, in expectation, the mean against true ones.

    l~(1) = ((1-e0) l(1) - e1 l(0)) / (1-e1-e0),  l~(0) = ((1-e1) l(0) - e0 l(1)) / (1-e1-e0)

    Args:
        as_labelled: (N,) loss l(a) with the annotated label a.
        as_other: (N,) loss l(1 - a) with the other label.
        labels: (N,) bool, as annotated.
        e1, e0: error rates of the annotator, e1 + e0 < 1.

    Returns:
        (N,) float64; a row may come out negative.

    Raises:
        InputError: rates outside [0, 1] or that sum to 1 or more.

    Reference: Natarajan et al., "Learning with noisy labels" (2013), lemma 1.
    """
    _invertible(*_shares(e1=e1, e0=e0))
    keep = torch.where(labels, 1 - e0, 1 - e1)
    take = torch.where(labels, e1, e0)
    return (keep * as_labelled.double() - take * as_other.double()) / (1 - e1 - e0)


def flip_probability(scores: Tensor, labels: Tensor, e1: float, e0: float, *, center: float, width: float) -> Tensor:
    """How likely each row is annotated wrongly where hard cases are mislabelled more often.

    P(A != Y | s) = e_y exp(-|s - center|/width) / mean_y exp(-|s - center|/width)

    The mean is over the rows of the class, so that the average rates are e1 and e0 as in the plain model. A and D are
    no longer independent given Y: none of the invariances of this module holds.

    Args:
        scores, labels: as :func:`scoreline.metrics.binary_curves.check_binary` takes them, labels being the truth.
        e1, e0: average error rates, in [0, 1].
        center: the score of the hardest cases.
        width: w > 0, in units of the score.

    Returns:
        (N,) float64 probabilities.

    Raises:
        InputError: a rate outside [0, 1], a width that is not positive, or a rate too high for so narrow a width.
    """
    s, y = check_binary(scores, labels)
    _shares(e1=e1, e0=e0)
    if not width > 0:
        raise InputError("width", width, "is positive, in units of the score")
    log_weight = -(s - center).abs() / width
    flip = torch.zeros_like(s)
    for rate, name, rows in ((e1, "e1", y), (e0, "e0", ~y)):
        if rate == 0 or not rows.any():
            continue
        # Relative to the largest, so that a class far from the centre does not underflow to 0/0.
        weight = (log_weight[rows] - log_weight[rows].max()).exp()
        flip[rows] = rate * weight / weight.mean()
        if flip[rows].max() > 1:
            most = float(weight.mean() / weight.max())
            raise InputError(name, rate, f"at most {most:.3g} with this width; take a larger width")
    return flip


def annotate(
    labels: Tensor,
    e1: float,
    e0: float,
    *,
    seed: int = 0,
    scores: Tensor | None = None,
    center: float | None = None,
    width: float | None = None,
) -> Tensor:
    """Draw annotated labels for true ones.

    Args:
        labels: the truth, bool or 0 and 1.
        e1, e0: error rates, in [0, 1].
        seed: of the draw.
        scores, center, width: all three for errors around a score (:func:`flip_probability`); none for even ones.

    Returns:
        (N,) bool.

    Raises:
        InputError: a rate outside [0, 1], or only some of scores, center and width.
    """
    _, y = check_binary(torch.zeros(torch.as_tensor(labels).shape), labels)
    _shares(e1=e1, e0=e0)
    flip = torch.where(y, e1, e0)
    if scores is not None and center is not None and width is not None:
        flip = flip_probability(scores, labels, e1, e0, center=center, width=width)
    elif not (scores is None and center is None and width is None):
        raise InputError("noise", None, "errors around a score need scores, center and width, all three")
    # A stream of its own: whoever drew the scores from the same seed must not meet the same numbers here.
    generator = torch.Generator().manual_seed(derive(seed, "annotate") % 2**63)
    draws = torch.rand(len(y), generator=generator, dtype=torch.float64)
    return y ^ (draws.to(y.device) < flip)
