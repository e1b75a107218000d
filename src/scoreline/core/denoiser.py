"""The contract of a denoiser: what a model says of x_0 given x_t.

A network answers in its own kind (noise, clean image, v, EDM residual, flow). All of these are affine in the network's
raw output, so a :class:`Posterior` keeps the raw output and two pairs of coefficients; whatever a sampler asks for is
made from them in one fused expression, without the cancellation of going through x_0 and back.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.schedule import Schedule, Time, spread

__all__ = ["Denoiser", "OnSchedule", "Posterior", "View", "affine"]

Pair = tuple[Any, Any]


def affine(a: Any, x: Tensor, b: Any, y: Tensor) -> Tensor:
    """a x + b y in as few tensor operations as possible; a and b are floats or broadcastable tensors."""
    if isinstance(b, Tensor):
        return (b * y).addcmul_(x, a) if isinstance(a, Tensor) else (b * y).add_(x, alpha=a)
    if isinstance(a, Tensor):
        return (a * x).add_(y, alpha=b)
    if a == 0:
        return y * b if b != 1 else y
    if a == 1:
        return x.add(y, alpha=b)
    return (x * a).add_(y, alpha=b)


class Posterior:
    """What a denoiser says of x_0 given x_t: E[x_0 | x_t] and everything that follows from it.

    Args:
        x: x_t, (B, ...).
        raw: the model's own output, same shape.
        mean: (p, q) with E[x_0 | x_t] = p x + q raw; floats, or tensors that broadcast against x.
        eps: (p, q) with the noise estimate eps = p x + q raw.
        sigma: sigma(t), float or broadcastable tensor.
        mix: raw share between log beta~ and log beta of a model that learns its variance, or None.
        taps: intermediate features asked for by a plan.
    """

    __slots__ = ("_eps", "_mean", "mix", "raw", "sigma", "taps", "x")

    def __init__(
        self,
        x: Tensor,
        raw: Tensor,
        *,
        mean: Pair,
        eps: Pair,
        sigma: Any,
        mix: Tensor | None = None,
        taps: dict[str, Tensor] | None = None,
    ) -> None:
        self.x, self.raw, self._mean, self._eps, self.sigma = x, raw, mean, eps, sigma
        self.mix, self.taps = mix, taps or {}

    @classmethod
    def of_mean(cls, x: Tensor, mean: Tensor, alpha: Any, sigma: Any, *, mix: Tensor | None = None) -> Posterior:
        """From a given E[x_0 | x_t]; eps = (x - alpha mean)/sigma."""
        return cls(x, mean, mean=(0.0, 1.0), eps=(1 / sigma, -alpha / sigma), sigma=sigma, mix=mix)

    @property
    def mean(self) -> Tensor:
        """E[x_0 | x_t], (B, ...)."""
        return affine(self._mean[0], self.x, self._mean[1], self.raw)

    @property
    def eps(self) -> Tensor:
        """The noise estimate (x_t - alpha E[x_0 | x_t]) / sigma, (B, ...)."""
        return affine(self._eps[0], self.x, self._eps[1], self.raw)

    @property
    def score(self) -> Tensor:
        """grad_x log p_t(x_t) = -eps/sigma."""
        return affine(-self._eps[0] / self.sigma, self.x, -self._eps[1] / self.sigma, self.raw)

    def combine(self, a: Any, b: Any = 0.0, c: Any = 0.0) -> Tensor:
        """a x_t + b E[x_0 | x_t] + c eps, in two tensor operations."""
        (p, q), (r, s) = self._mean, self._eps
        return affine(a + b * p + c * r, self.x, b * q + c * s, self.raw)

    def first_half(self, x: Tensor, raw: Tensor) -> Posterior:
        """The posterior of the first half of a doubled batch, with another raw output (guidance)."""
        n = len(x)

        def half(v: Any) -> Any:
            return v[:n] if isinstance(v, Tensor) and v.dim() and len(v) == 2 * n else v

        mean, eps = (half(self._mean[0]), half(self._mean[1])), (half(self._eps[0]), half(self._eps[1]))
        taps = {name: half(value) for name, value in self.taps.items()}
        return Posterior(x, raw, mean=mean, eps=eps, sigma=half(self.sigma), mix=half(self.mix), taps=taps)


class Denoiser(nn.Module):
    """A model of E[x_0 | x_t] on a schedule.

    Attributes:
        schedule: the coordinates in which it takes x_t and t.
        shape: shape of one image, (C, H, W), or (D,) for points.
        num_classes: number of classes, or None for an unconditional model.
        evaluations: network evaluations that one call costs per image.
    """

    schedule: Schedule
    shape: tuple[int, ...]
    num_classes: int | None = None
    evaluations: int = 1
    _given: Cond | None = None

    def forward(self, x: Tensor, t: Time, cond: Cond | None = None) -> Posterior:
        """What the model says of x_0.

        Args:
            x: x_t, (B, *shape).
            t: a float shared by the batch, or a (B,) tensor.
            cond: conditions of the batch; None uses those bound by `given`.
        """
        return self.posterior(x, t, self._given if cond is None else cond)

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        """The model itself; subclasses define this."""
        raise NotImplementedError

    def eps(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """The noise estimate."""
        return self(x, t, cond).eps

    def score(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """grad_x log p_t(x)."""
        return self(x, t, cond).score

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """dx/dt of the probability-flow ODE: alpha'(t) E[x_0 | x_t] + sigma'(t) eps."""
        da, ds = self.schedule.rates(t)
        return self(x, t, cond).combine(0.0, spread(da, x), spread(ds, x))

    def check(self, times: Time) -> None:
        """Refuse noise levels that the model does not know; samplers call it once, before any work.

        Raises:
            InputError: a time leaves the schedule.
        """
        self.schedule.check(times)

    def decode(self, x: Tensor) -> Tensor:
        """Images of the samples `x`; the identity except for models of latents."""
        return x

    def given(self, cond: Cond | None) -> Self:
        """A view with conditions bound, so that samplers never see them."""
        view = copy.copy(self)
        view._given = cond
        return view

    def null(self, cond: Cond) -> Cond:
        """The same batch without its conditions; each network states its own null.

        Raises:
            InputError: the model has no null condition.
        """
        raise InputError("null condition", type(self).__name__, "this model was not trained without conditions")

    def under(self, plan: Any) -> Denoiser:
        """A view that skips layers, scales joints or taps features as the plan says.

        Raises:
            InputError: the model has no layers, or not those the plan names.
        """
        raise InputError("plan", type(self).__name__, "this model has no layers to plan with")

    def on(self, schedule: Schedule, *, extrapolate: bool = False) -> Denoiser:
        """The same model in another schedule's coordinates, by matching lambda.

        Args:
            schedule: the coordinates wanted.
            extrapolate: allow levels outside the range the model was trained on.
        """
        return self if schedule is self.schedule else OnSchedule(self, schedule, extrapolate=extrapolate)


class View(Denoiser):
    """Base of denoisers made from one other denoiser; everything a subclass does not change is the inner one's."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner
        self.schedule, self.shape = inner.schedule, inner.shape
        self.num_classes, self.evaluations = inner.num_classes, inner.evaluations

    def check(self, times: Time) -> None:
        self.inner.check(times)

    def decode(self, x: Tensor) -> Tensor:
        return self.inner.decode(x)

    def null(self, cond: Cond) -> Cond:
        return self.inner.null(cond)

    def under(self, plan: Any) -> Self:
        view = copy.copy(self)
        view._modules = {**self._modules, "inner": self.inner.under(plan)}
        return view


@recorded
class OnSchedule(View):
    """A denoiser seen in another schedule's coordinates: x/alpha and sigma/alpha are the same at equal lambda."""

    def __init__(self, inner: Denoiser, schedule: Schedule, *, extrapolate: bool = False) -> None:
        super().__init__(inner)
        self.schedule, self.extrapolate = schedule, extrapolate

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        theirs, mine = self.inner.schedule, self.schedule
        s = theirs.time(mine.lam(t))
        if not self.extrapolate and not isinstance(s, Tensor):
            low, high = theirs.t_min, theirs.t_max
            s = min(max(s, low), high) if low * (1 - 1e-9) <= s <= high * (1 + 1e-9) else s  # rounding of the two maps
        ratio = spread(theirs.alpha(s) / mine.alpha(t), x)
        inner = self.inner(x * ratio, s, cond)
        # eps is the same number in both coordinates; the mean is the same image.
        (p, q), (r, u) = inner._mean, inner._eps
        return Posterior(
            x,
            inner.raw,
            mean=(p * ratio, q),
            eps=(r * ratio, u),
            sigma=spread(mine.sigma(t), x),
            mix=inner.mix,
            taps=inner.taps,
        )

    def check(self, times: Time) -> None:
        self.schedule.check(times)
        if self.extrapolate:
            return
        values = np.asarray(times.detach().cpu() if isinstance(times, Tensor) else times, dtype=np.float64)
        levels = np.asarray(self.inner.schedule.time(self.schedule.lam(values[values > self.schedule.clean])))
        low, high = self.inner.schedule.t_min, self.inner.schedule.t_max
        bad = levels[(levels < low - 1e-6 * (high - low)) | (levels > high + 1e-6 * (high - low))]
        if bad.size:
            mend = f"the model was trained on times {low} to {high}; pass extrapolate=True to go beyond"
            raise InputError("noise level", float(bad.flat[0]), mend)
