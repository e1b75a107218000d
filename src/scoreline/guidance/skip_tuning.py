"""Skip-tuning: a U-Net whose skip connections are damped while it samples, Ma et al. 2024 (arXiv 2402.15170).

At every skip joint of the decoder the input is concat(u_i, d_i), u_i the decoder's feature and d_i the encoder's stored
one; d_i is replaced by rho_i d_i with
    rho_i = rho + (top - rho) i/(k - 1),  i = 0 at the deepest joint ... k - 1 at the highest resolution
Weights, preconditioning, sampler and schedule stay as they are. The factors hold where low <= sigma/alpha <= high and
are exactly 1 elsewhere. "skip" means the long connections of the U-Net, not EDM's c_skip and no residual shortcut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Self

import torch
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.encoder import Encoder
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler, State
from scoreline.core.schedule import Time
from scoreline.nn.plan import Plan, linear
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.wrapped import Wrapped

__all__ = ["SIDES", "SkipTuned", "SkipTuning", "denoising_losses", "inversion_moments", "joint_count", "skip_plan"]
__all__ += ["skip_ratios"]

SIDES = ("skip", "hidden")


def joint_count(model: Denoiser) -> int:
    """Number of skip joints of the U-Net inside a model.

    Raises:
        InputError: there is none.
    """
    for module in model.modules():
        joints = getattr(module, "joints", ())
        if isinstance(joints, tuple) and joints:
            return len(joints)
    raise InputError("skip tuning", type(model).__name__, "this model has no skip joints; it needs a U-Net")


def skip_plan(k: int, rho: float, top: float = 1.0, *, index: str = "inclusive", side: str = "skip") -> Plan:
    """The plan that scales k joints by `linear(rho, top, k)`.

    Args:
        k: number of joints.
        rho: factor of the deepest joint, positive.
        top: factor of the highest resolution, positive.
        index: how the end points are counted, see :func:`scoreline.nn.plan.linear`.
        side: "skip" scales d_i by rho_i; "hidden" scales u_i by 1/rho_i, which gives the same ratio of the two but not
            the same function (the control that is close to FreeU).

    Raises:
        InputError: a factor is not positive, or a name is unknown.

    >>> skip_plan(3, 0.5).skip_scale
    (0.5, 0.75, 1.0)
    """
    for thing, value in (("rho", rho), ("top", top)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(thing, value, "must be a positive number; 1 changes nothing")
    if side not in SIDES:
        raise unknown_name("side", side, SIDES)
    factors = linear(rho, top, k, index=index)
    if side == "skip":
        return Plan(skip_scale=factors)
    return Plan(hidden_scale=tuple(1 / factor for factor in factors))


def _product(a: Sequence[float] | None, b: Sequence[float] | None) -> tuple[float, ...] | None:
    if a is None or b is None:
        return None if a is None and b is None else tuple(a if b is None else b)  # type: ignore[arg-type]
    return tuple(x * y for x, y in zip(a, b, strict=True))


class SkipTuned(View):
    """A denoiser under a plan between two noise levels, and as it is elsewhere.

    The model itself is not changed, so there is nothing to restore.

    Args:
        inner: any denoiser that can be put `under` a plan.
        plan: e.g. of :func:`skip_plan`.
        low, high: noise levels sigma/alpha, both included, between which the plan holds.

    Raises:
        InputError: the plan does not fit the model, or the range is empty.
    """

    def __init__(self, inner: Denoiser, plan: Plan, *, low: float = 0.0, high: float = math.inf) -> None:
        super().__init__(inner)
        _check_range(low, high)
        self.plan, self.low, self.high = plan, low, high
        # In a tuple, so that the shared modules are not registered a second time.
        self._tuned = (inner.under(plan),)

    @property
    def tuned(self) -> Denoiser:
        """The inner model under the plan."""
        return self._tuned[0]

    def _inside(self, t: Time) -> bool:
        if self.low <= 0 and math.isinf(self.high):
            return True
        if isinstance(t, Tensor) and t.dim():
            mend = "a range of noise levels needs one time for the whole batch; leave low and high out"
            raise InputError("time", tuple(t.shape), mend)
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        return sigma >= self.low * alpha and (math.isinf(self.high) or sigma <= self.high * alpha)

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        return (self.tuned if self._inside(t) else self.inner)(x, t, cond)

    def under(self, plan: Plan) -> Self:
        """The same view with a further plan, whose factors multiply those of this one."""
        both = replace(
            plan,
            drop=plan.drop | self.plan.drop,
            skip_scale=_product(plan.skip_scale, self.plan.skip_scale),
            hidden_scale=_product(plan.hidden_scale, self.plan.hidden_scale),
        )
        view = super().under(plan)
        view._tuned = (self.inner.under(both),)
        return view


def _check_range(low: float, high: float) -> None:
    if not 0 <= low < high:
        raise InputError("low, high", (low, high), "need 0 <= low < high, noise levels sigma/alpha")


@recorded
class SkipTuning(Wrapped):
    """A sampler on the skip-tuned network.

    Args:
        of: the sampler inside, a name or an object.
        rho: factor of the deepest joint; 1 changes nothing. It depends on model and budget and is found by a search
            (`scoreline.search.skip_sweep`); the paper's lie between 0.5 and 1, lower for fewer steps.
        top: factor of the highest resolution.
        index: "inclusive", "from-zero" or "from-one", see :func:`scoreline.nn.plan.linear`.
        side: "skip", or "hidden" for the control that scales the other side by 1/rho_i.
        low, high: noise levels sigma/alpha between which the factors hold.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        of: str | Sampler = "ddim",
        rho: float = 1.0,
        top: float = 1.0,
        index: str = "inclusive",
        side: str = "skip",
        low: float = 0.0,
        high: float = math.inf,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        self.of, self.rho, self.top, self.index, self.side, self.low, self.high = of, rho, top, index, side, low, high
        skip_plan(2, rho, top, index=index, side=side)
        _check_range(low, high)
        if of == "skip-tuning" or isinstance(of, SkipTuning):
            raise InputError("of", "skip-tuning", "is tuned already; name the sampler inside it")
        super().__init__(of, steps=steps, nfe=nfe, grid=grid)
        self.per_image = self.per_image and (self._nothing or (low <= 0 and math.isinf(high)))

    @property
    def _nothing(self) -> bool:
        return self.rho == 1 and self.top == 1

    def tuned(self, denoiser: Denoiser) -> Denoiser:
        """The model that is asked: the same one where all factors are 1.

        Raises:
            InputError: it has no skip joints.
        """
        if self._nothing:
            return denoiser
        plan = skip_plan(joint_count(denoiser), self.rho, self.top, index=self.index, side=self.side)
        return SkipTuned(denoiser, plan, low=self.low, high=self.high)

    def calibrated(self, denoiser: Denoiser) -> Self:
        self.tuned(denoiser)  # refused here, before any work
        return super().calibrated(denoiser)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        return self._inner.step(self.tuned(denoiser), state, row)


@torch.no_grad()
def skip_ratios(model: Denoiser, x: Tensor, t: Time, cond: Cond | None = None) -> list[float]:
    """prop_i = ||d_i|| / ||u_i|| at each joint, deepest first, averaged over images.

    Args:
        model: a denoiser with skip joints; under a plan or in a :class:`SkipTuned` view the scaled sides are compared.
        x: (B, *shape) noisy images.
        t: their noise level.
        cond: conditions.

    Reference: Ma et al. 2024, section 3.
    """
    k = joint_count(model)
    names = [(f"joint.{i}.skip", f"joint.{i}.hidden") for i in range(k)]
    taps = model.under(Plan(taps=tuple(name for pair in names for name in pair)))(x, t, cond).taps
    ratios = []
    for skip, hidden in names:
        above, below = (taps[name].flatten(1).float().norm(dim=1) for name in (skip, hidden))
        ratios.append(float((above / below).mean()))
    return ratios


@torch.no_grad()
def denoising_losses(
    model: Denoiser, images: Tensor, t: float, noise: Tensor, encoder: Encoder | None = None, cond: Cond | None = None
) -> tuple[float, float | None]:
    """(E ||D(x_t) - x_0||^2 / pixels, E ||phi(D(x_t)) - phi(x_0)||^2 / features) at one noise level.

    Args:
        model: the denoiser D, tuned or not.
        images: (B, *shape) clean images x_0.
        t: noise level.
        noise: (B, *shape) standard normal.
        encoder: phi, which sees D kept in [-1, 1]; None leaves the second loss out.
        cond: conditions.

    Reference: Ma et al. 2024, section 4: skip-tuning raises the first and lowers the second.
    """
    mean = model(model.schedule.marginal(images, t, noise), t, cond).mean
    pixel = float((mean - images).square().mean())
    if encoder is None:
        return pixel, None
    return pixel, float((encoder.features(mean.clamp(-1, 1)) - encoder.features(images)).square().mean())


def inversion_moments(
    model: Denoiser, images: Tensor, *, steps: int = 40, cond: Cond | None = None
) -> tuple[float, float, float]:
    """(mean, standard deviation, excess kurtosis) over all entries of the noise that images are encoded to.

    The probability-flow ODE is run upwards by DDIM, from t_min to t_max even in the sampler's grid; a model that fits
    the images gives 0, 1, 0.

    Args:
        model: the denoiser, tuned or not.
        images: (B, *shape) clean images.
        steps: of the encoding.
        cond: conditions.

    Reference: Ma et al. 2024, section 4 (inversion).
    """
    schedule = model.schedule
    sampler = DDIM(steps=steps + 1)
    up = sampler.times(schedule)[:-1][::-1].copy()
    draws = Noise(0).at(range(len(images)), model.shape, device=images.device)
    start = images * float(schedule.alpha(up[0]))
    code = sampler(model.given(cond), draws, times=up, x=start).x.double() / float(schedule.prior(up[-1]))
    mean, std = float(code.mean()), float(code.std())
    return mean, std, float(((code - mean) / std).pow(4).mean() - 3)
