"""Denoisers in closed form: Gaussian, Gaussian mixture, and the empirical distribution of a data set.

For data ~ sum_k w_k N(m_k, v_k I) and x_t = alpha x_0 + sigma eps the posterior mean is exact:
    log r_k = log w_k - |x - alpha m_k|^2/(2 V_k) - D/2 log V_k,   V_k = alpha^2 v_k + sigma^2
    E[x_0 | x_t] = sum_k softmax(log r)_k (m_k + alpha v_k/V_k (x - alpha m_k))
They are the test aids of every sampler and the exact teachers of the small claims.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.schedule import Schedule, Time, spread

__all__ = ["Empirical", "Gaussian", "Mixture"]


class Gaussian(Denoiser):
    """Data N(mean, diag(variance)): E[x_0 | x_t] = mean + alpha v/(alpha^2 v + sigma^2) (x_t - alpha mean).

    Args:
        schedule: coordinates.
        mean: (*shape) tensor.
        variance: scalar or (*shape) tensor, >= 0.
    """

    mean_: Tensor
    variance: Tensor

    def __init__(self, schedule: Schedule, mean: Tensor, variance: Tensor | float) -> None:
        super().__init__()
        self.schedule, self.shape = schedule, tuple(mean.shape)
        variance = torch.as_tensor(variance, dtype=mean.dtype)
        if (variance < 0).any():
            raise InputError("variance", float(variance.min()), "must not be negative")
        self.register_buffer("mean_", mean)
        self.register_buffer("variance", variance.expand(mean.shape).clone())

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        if cond is not None:
            cond.require((), "a Gaussian")
        alpha, sigma = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        m, v = self.mean_.to(x), self.variance.to(x)
        total = alpha**2 * v + sigma**2
        centred = x - alpha * m
        # eps = sigma/total (x - alpha m): given directly, so that neither answer is made from the other.
        return _both(x, m + alpha * v / total * centred, sigma / total * centred, alpha, sigma)

    def flow(self, x: Tensor, t: Time, s: Time) -> Tensor:
        """The exact probability-flow map from time t to s, x (B, *shape):
        alpha_s m + sqrt((alpha_s^2 v + sigma_s^2)/(alpha_t^2 v + sigma_t^2)) (x - alpha_t m)."""
        m, v = self.mean_.to(x), self.variance.to(x)
        at, st = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        as_, ss = spread(self.schedule.alpha(s), x), spread(self.schedule.sigma(s), x)
        return as_ * m + ((as_**2 * v + ss**2) / (at**2 * v + st**2)).sqrt() * (x - at * m)


def _both(x: Tensor, mean: Tensor, eps: Tensor, alpha: Any, sigma: Any) -> Posterior:
    """A posterior of which mean and noise are each known exactly."""
    post = Posterior.of_mean(x, mean, alpha, sigma)
    return _Exact(post, eps)


class _Exact(Posterior):
    """A posterior that holds its noise estimate beside its mean."""

    __slots__ = ("_noise",)

    def __init__(self, post: Posterior, noise: Tensor) -> None:
        super().__init__(post.x, post.raw, mean=post._mean, eps=post._eps, sigma=post.sigma)
        self._noise = noise

    @property
    def eps(self) -> Tensor:
        return self._noise

    @property
    def score(self) -> Tensor:
        return -self._noise / self.sigma

    def combine(self, a: Any, b: Any = 0.0, c: Any = 0.0) -> Tensor:
        return a * self.x + b * self.raw + c * self._noise


class Mixture(Denoiser):
    """Data sum_k w_k N(m_k, v_k I), with classes if the components carry labels.

    Args:
        schedule: coordinates.
        means: (K, *shape).
        variances: (K,) or a scalar, >= 0.
        weights: (K,) positive; None for equal ones.
        labels: (K,) int64 class of each component; with them `Cond(labels=...)` restricts the mixture.
        num_classes: number of classes; label `num_classes` means all components.
        perturbation: factor on E[x_0|x_t] - x_t/alpha, 1 for the exact teacher; a deliberately wrong one otherwise.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor
    labels: Tensor | None

    def __init__(
        self,
        schedule: Schedule,
        means: Tensor,
        variances: Tensor | float,
        weights: Tensor | Sequence[float] | None = None,
        *,
        labels: Tensor | None = None,
        num_classes: int | None = None,
        perturbation: float = 1.0,
    ) -> None:
        super().__init__()
        count = len(means)
        if labels is not None and len(labels) != count:
            raise InputError("labels", len(labels), f"one for each of the {count} components is needed")
        self.schedule, self.shape, self.perturbation = schedule, tuple(means.shape[1:]), perturbation
        if labels is not None:
            self.num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
        weights = (
            torch.ones(count, dtype=means.dtype) if weights is None else torch.as_tensor(weights, dtype=means.dtype)
        )
        variances = torch.as_tensor(variances, dtype=means.dtype)
        if (variances < 0).any():
            raise InputError("variances", float(variances.min()), "must not be negative")
        if len(weights) != count or (weights <= 0).any():
            raise InputError("weights", tuple(weights.shape), f"need {count} positive numbers")
        self.register_buffer("means", means.flatten(1))
        self.register_buffer("variances", variances.expand(count).clone())
        self.register_buffer("log_weights", (weights / weights.sum()).log().to(means.dtype))
        self.register_buffer("labels", labels)

    def given(self, cond: Cond | None) -> Self:
        if cond is not None:
            cond.require(() if self.labels is None else ("labels",), type(self).__name__)
        if cond is not None and cond.labels is not None and self.labels is not None:
            known = set(self.labels.tolist()) | {self.num_classes}
            unknown = sorted(set(cond.labels.tolist()) - known)
            if unknown:
                raise InputError(
                    "label", unknown[0], f"no component carries it; known: {sorted(self.labels.unique().tolist())}"
                )
        return super().given(cond)

    def responsibilities(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """Posterior share of every component, (B, K)."""
        return self.log_shares(x, t, cond).softmax(1)

    def log_shares(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """Logarithm of the posterior shares up to a constant of each image, (B, K)."""
        flat = x.flatten(1)
        alpha, sigma = spread(self.schedule.alpha(t), flat), spread(self.schedule.sigma(t), flat)
        m, v = self.means.to(flat), self.variances.to(flat)
        total = alpha**2 * v + sigma**2
        total = total.expand(len(flat), -1) if isinstance(total, Tensor) and total.dim() == 2 else total
        # |x - alpha m|^2 by one matrix product; float64 inside when asked keeps what the expansion would lose.
        distance = (flat * flat).sum(1, keepdim=True) - 2 * alpha * (flat @ m.T) + alpha**2 * (m * m).sum(1)
        logits = self.log_weights.to(flat) - distance / (2 * total) - 0.5 * flat.shape[1] * torch.log(total)
        if cond is not None:
            cond.require(() if self.labels is None else ("labels",), type(self).__name__)
        if cond is not None and cond.labels is not None:
            assert self.labels is not None
            mine = (self.labels == cond.labels[:, None]) | (cond.labels[:, None] == self.num_classes)
            logits = logits.masked_fill(~mine, -math.inf)
        return logits

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        alpha, sigma = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        flat = x.flatten(1)
        a, s = spread(self.schedule.alpha(t), flat), spread(self.schedule.sigma(t), flat)
        share = self.responsibilities(x, t, cond)
        m, v = self.means.to(flat), self.variances.to(flat)
        total = a**2 * v + s**2
        # mean = sum_k r_k m_k (1 - alpha^2 v_k/V_k) + x sum_k r_k alpha v_k/V_k
        pull = share * (s**2 / total)
        mean = pull @ m + (share * (a * v / total)).sum(1, keepdim=True) * flat
        eps = ((share / total).sum(1, keepdim=True) * flat - a * ((share / total) @ m)) * s
        if self.perturbation != 1.0:
            mean = flat / a + self.perturbation * (mean - flat / a)
            return Posterior.of_mean(x, mean.view_as(x), alpha, sigma)
        return _both(x, mean.view_as(x), eps.view_as(x), alpha, sigma)

    def log_density(self, x: Tensor, t: Time) -> Tensor:
        """log p_t(x), (B,)."""
        flat = x.flatten(1)
        alpha, sigma = spread(self.schedule.alpha(t), flat), spread(self.schedule.sigma(t), flat)
        total = alpha**2 * self.variances.to(flat) + sigma**2
        wide = alpha.unsqueeze(-1) if isinstance(alpha, Tensor) else alpha
        distance = (flat[:, None] - wide * self.means.to(flat)).square().sum(-1)
        D = flat.shape[1]
        each = self.log_weights.to(flat) - distance / (2 * total) - 0.5 * D * (math.log(2 * math.pi) + torch.log(total))
        return each.logsumexp(1)

    def null(self, cond: Cond) -> Cond:
        if self.num_classes is None or cond.labels is None:
            return super().null(cond)
        return cond.replace(labels=torch.full_like(cond.labels, self.num_classes))


class Empirical(Mixture):
    """The data set itself, each point smoothed by a Gaussian of standard deviation `smoothing`.

    Args:
        schedule: coordinates.
        data: (N, *shape) points.
        smoothing: h >= 0; 0 gives the optimal denoiser of the bare data set, which reproduces its points.
        labels: (N,) int64 classes, or None.
        num_classes: number of classes.
        perturbation: see :class:`Mixture`.
    """

    def __init__(
        self,
        schedule: Schedule,
        data: Tensor,
        *,
        smoothing: float = 0.0,
        labels: Tensor | None = None,
        num_classes: int | None = None,
        perturbation: float = 1.0,
    ) -> None:
        super().__init__(
            schedule, data, smoothing**2, labels=labels, num_classes=num_classes, perturbation=perturbation
        )
        self.smoothing = smoothing
