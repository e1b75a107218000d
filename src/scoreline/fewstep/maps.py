"""Networks as flow maps: consistency functions in EDM's and in Latent Consistency's form, and trajectory functions.

    consistency         f = c_skip x + c_out F(c_in x),             s = sigma, f(x, s_min) = x
                        c_skip = sd^2/((s - s_min)^2 + sd^2),  c_out = (s - s_min) sd/sqrt(s^2 + sd^2)
    latent consistency  f = c_skip x + c_out x0(x, t),               f(x, 0) = x
                        c_skip = sd^2/((k t)^2 + sd^2),  c_out = k t/sqrt((k t)^2 + sd^2)
    trajectory          G(x, t, s) = (s/t) x + (1 - s/t) g(x, t, s), g = EDM's scalings around F(c_in x, t, s);
                        G(x, t, t) = x, and g(x, t, t) = E[x_0|x_t]

Reference: Song et al. 2023 (Consistency Models), appendix C; Luo et al. 2023 (Latent Consistency Models), appendix;
Kim et al. 2024 (Consistency Trajectory Models), section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Pair, Posterior, affine
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.flow_map import FlowMap
from scoreline.core.names import lookup
from scoreline.core.schedule import Schedule, Time, arithmetic, spread
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned, edm_scalings
from scoreline.fewstep.curricula import skipping_levels, solver_levels

__all__ = ["INNER", "OUTER", "ConsistencyFunction", "GaussianMap", "LatentConsistency", "Trajectory"]
__all__ += ["boundary_scalings", "inner_scalings", "latent_scalings", "outer_scalings"]
__all__ += ["outer_shift"]

INNER = ("edm", "cm", "no")
OUTER = ("euler", "variance", "mixed")


def boundary_scalings(sigma: Time, sigma_data: float = 0.5, sigma_min: float = 0.002) -> tuple[Time, Time, Time]:
    """(c_skip, c_out, c_in) with f(x, sigma_min) = x.

    Args:
        sigma: noise level, float, array or tensor.
        sigma_data: standard deviation of the data.
        sigma_min: the level at which f is the identity.

    >>> boundary_scalings(0.002)[:2]
    (1.0, 0.0)
    """
    past, total = sigma - sigma_min, sigma * sigma + sigma_data * sigma_data
    root = arithmetic(sigma).sqrt(total)
    return sigma_data**2 / (past * past + sigma_data**2), past * sigma_data / root, 1 / root


def latent_scalings(t: Time, sigma_data: float = 0.5, time_scaling: float = 10.0) -> tuple[Time, Time]:
    """(c_skip, c_out) = (sd^2/((k t)^2 + sd^2), k t/sqrt((k t)^2 + sd^2)), with f(x, 0) = x.

    Args:
        t: time step, 0 to 999 on a table of a thousand levels; float, array or tensor.
        sigma_data: sd.
        time_scaling: k.

    >>> latent_scalings(0.0)
    (1.0, 0.0)
    """
    scaled = time_scaling * t
    total = scaled * scaled + sigma_data * sigma_data
    return sigma_data * sigma_data / total, scaled / arithmetic(total).sqrt(total)


def inner_scalings(level: Time, form: str, sigma_data: float = 0.5, sigma_min: float = 0.002) -> tuple[Time, Time]:
    """(c_skip, c_out) of g = c_skip x + c_out F: a trajectory function's inner parameterisation, by t alone.

    edm: sd^2/(t^2 + sd^2), t sd/sqrt(t^2 + sd^2);   cm: the same with t - s_min in place of t except under the root;
    no: 0, 1.

    Args:
        level: t, the noise level, float, array or tensor.
        form: "edm", "cm" or "no".
        sigma_data: sd.
        sigma_min: s_min.

    Reference: Kim et al. 2024; the released code has all three.

    >>> inner_scalings(0.5, "edm")
    (0.5, 0.35355339059327373)
    """
    if form == "edm":
        return edm_scalings(level, sigma_data)[:2]
    if form == "cm":
        return boundary_scalings(level, sigma_data, sigma_min)[:2]
    if form == "no":
        return level * 0.0, level * 0.0 + 1.0
    raise unknown_name("inner", form, INNER)


def outer_scalings(
    t: Time, s: Time, form: str = "euler", sigma_data: float = 0.5, sigma_min: float = 0.002
) -> tuple[Time, Time]:
    """(a, 1 - s/t) of the jump G(x, t, s) = a x + (1 - s/t) g(x, t, s); a = 1 at s = t.

    euler: a = s/t;   variance: a = sqrt(((s - s_min)^2 + sd^2)/((t - s_min)^2 + sd^2));
    mixed: a = (s + a_variance)/(t + 1).

    Args:
        t, s: noise levels, float, array or tensor.
        form: one of `OUTER`.
        sigma_data: sd.
        sigma_min: s_min.

    Reference: Kim et al. 2024, section 3; the released code has all three.

    >>> outer_scalings(2.0, 0.5)
    (0.25, 0.75)
    """
    if form not in OUTER:
        raise unknown_name("outer", form, OUTER)
    keep = s / t
    if form == "euler":
        return keep, 1 - keep
    now, later = (t - sigma_min) ** 2 + sigma_data**2, (s - sigma_min) ** 2 + sigma_data**2
    root = arithmetic(now).sqrt(later / now)
    return (root if form == "variance" else (s + root) / (t + 1)), 1 - keep


def outer_shift(t: Time, form: str = "euler", sigma_data: float = 0.5, sigma_min: float = 0.002) -> Time:
    """1 - t da/ds at s = t: what E[x_0|x_t] holds of x beside g, E[x_0|x_t] = g(x, t, t) + shift x.

    Args:
        t, form, sigma_data, sigma_min: as of :func:`outer_scalings`.

    >>> outer_shift(3.0)
    0.0
    """
    if form not in OUTER:
        raise unknown_name("outer", form, OUTER)
    if form == "euler":
        return t * 0.0
    past = t - sigma_min
    slope = past / (past * past + sigma_data**2)
    return 1 - t * (slope if form == "variance" else (1 + slope) / (t + 1))


@recorded
class ConsistencyFunction(Preconditioned, FlowMap):
    """A consistency model on EDM's schedule; it jumps to sigma_min.

    Args:
        net: network `net(x, t, cond)`, told ln(sigma)/4.
        schedule: EDM's, from sigma_min to sigma_max.
        sigma_data: standard deviation of the data.
        middle: level at which the second of two jumps starts, e.g. iCT's 0.821 on CIFAR-10; None takes the grid's.

    Raises:
        InputError: the schedule scales the data, or the middle level is not inside it.
    """

    def __init__(
        self, net: nn.Module, schedule: Schedule, *, sigma_data: float = 0.5, middle: float | None = None
    ) -> None:
        super().__init__(net, schedule, kind="edm", sigma_data=sigma_data)
        if schedule.alpha(schedule.t_max) != 1:
            raise InputError("schedule", type(schedule).__name__, "consistency functions are defined with alpha = 1")
        if middle is not None and not schedule.t_min < middle < schedule.t_max:
            raise InputError("middle", middle, f"must lie between {schedule.t_min} and {schedule.t_max}")
        self.end, self.middle = schedule.t_min, middle

    def levels(self, steps: int) -> Any:
        if steps == 2 and self.middle is not None:
            return np.array([self.schedule.t_max, self.middle])
        return super().levels(steps)

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        _only_end(self, s)
        return self.answer(x, t, cond)

    def answer(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """f(x, t), (B, *shape): the jump to the end, in which gradients flow."""
        raw = Preconditioned.posterior(self, x, t, self._given if cond is None else cond).raw
        sigma = self.schedule.sigma(t)
        c_skip, c_out, _ = boundary_scalings(sigma, self.sigma_data, self.end)
        return affine(spread(c_skip, x), x, spread(c_out, x), raw)

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        return FlowMap.posterior(self, x, t, cond)


@recorded
class LatentConsistency(Preconditioned, FlowMap):
    """A consistency model over any denoising network, in Latent Consistency's form; it jumps to the least level.

    Args:
        net: network `net(x, t, cond)`.
        schedule, kind, sigma_data, time_input: what the network was as a denoiser, see
            :class:`scoreline.diffusion.preconditioned.Preconditioned`; `sigma_data` is EDM's, not that of the boundary.
        boundary_data: sd of the boundary scalings.
        time_scaling: k of the boundary scalings, for times in steps of a table; None takes 10 on a table and 10,000
            where times run from 0 to 1.
        points: levels of the solver it was distilled on, from which a run's are taken, see
            :func:`scoreline.fewstep.curricula.skipping_levels`; None takes the schedule's grid.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        *,
        kind: str = "eps",
        sigma_data: float = 0.5,
        time_input: str | None = None,
        boundary_data: float = 0.5,
        time_scaling: float | None = None,
        points: int | None = None,
    ) -> None:
        super().__init__(net, schedule, kind=kind, sigma_data=sigma_data, time_input=time_input)
        if points is not None:
            solver_levels(schedule, points)
        self.points = points
        self.boundary_data = boundary_data
        self.time_scaling = time_scaling or (10.0 if schedule.known is not None else 10000.0)
        self.end = schedule.t_min

    def levels(self, steps: int) -> Any:
        return super().levels(steps) if self.points is None else skipping_levels(self.schedule, self.points, steps)

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        _only_end(self, s)
        return self.answer(x, t, cond)

    def answer(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """f(x, t), (B, *shape): the jump to the end, in which gradients flow."""
        mean = Preconditioned.posterior(self, x, t, self._given if cond is None else cond).mean
        c_skip, c_out = latent_scalings(t - self.end, self.boundary_data, self.time_scaling)
        return affine(spread(c_skip, x), x, spread(c_out, x), mean)

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        return FlowMap.posterior(self, x, t, cond)


@recorded
class Trajectory(Preconditioned, FlowMap):
    """A consistency trajectory model: it jumps anywhere, and is a denoiser.

    With r = sigma/alpha and x/alpha, on any schedule:  G(x, t, s)/alpha_s = a x/alpha_t + (1 - r_s/r_t) g(x, t, s).

    Args:
        net: network `net(x, t, cond)` of two times, told the time input of t and of s.
        schedule, kind, sigma_data, time_input, learned_variance: what F is, see
            :class:`scoreline.diffusion.preconditioned.Preconditioned`; "edm" on EDM's schedule is the paper's.
        inner: how g is made of F: "own", the kind's way to E[x_0|x_t]; "cm" or "no", see :func:`inner_scalings`.
        outer: a of the jump, "euler", "variance" or "mixed", see :func:`outer_scalings`.

    Raises:
        InputError: the network takes one time, or a form is unknown or does not fit the kind.
    """

    anywhere = True
    scored = True

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        *,
        kind: str = "edm",
        sigma_data: float = 0.5,
        time_input: str | None = None,
        learned_variance: bool = False,
        inner: str = "own",
        outer: str = "euler",
    ) -> None:
        super().__init__(
            net, schedule, kind=kind, sigma_data=sigma_data, time_input=time_input, learned_variance=learned_variance
        )
        if not getattr(net, "second_time", False):
            raise InputError("net", type(net).__name__, "a trajectory function needs a network with second_time=True")
        if inner not in ("own", *INNER):
            raise unknown_name("inner", inner, ("own", *INNER))
        if inner != "own" and kind != "edm":
            raise InputError("inner", inner, f"is defined for kind edm; kind {kind} takes its own")
        outer_scalings(1.0, 1.0, outer)
        self.inner_form, self.outer_form = inner, outer
        self.end = schedule.t_min

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        s = torch.clamp(s, min=self.end) if isinstance(s, Tensor) else max(s, self.end)
        before, after = self.schedule.alpha(t), self.schedule.alpha(s)
        if self.outer_form == "euler":
            # In this form nothing is infinite where no signal is left.
            keep = self.schedule.sigma(s) / self.schedule.sigma(t)
            add = after - before * keep
        else:
            keep, add = outer_scalings(self.level(t), self.level(s), self.outer_form, self.sigma_data, self._least)
            keep, add = keep * after / before, add * after
        return affine(spread(keep, x), x, spread(add, x), self.inner(x, t, s, cond))

    def inner(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        """g(x, t, s), (B, *shape); with the Euler outer form g(x, t, t) is E[x_0|x_t]."""
        raw, (p, q), _, _ = self._two_times(x, t, s, self._given if cond is None else cond)
        return affine(p, x, q, raw)

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        raw, (p, q), eps, sigma = self._two_times(x, t, t, cond)
        if self.inner_form != "own" or self.outer_form != "euler":
            # dG/ds at s = t is (y - E[x_0|x_t])/r in y = x/alpha, so that E[x_0|x_t] = g + (1 - r a') y.
            alpha = self.schedule.alpha(t)
            p = p + spread(outer_shift(self.level(t), self.outer_form, self.sigma_data, self._least) / alpha, x)
            eps = ((1 - spread(alpha, x) * p) / sigma, -spread(alpha, x) * q / sigma)
        return Posterior(x, raw, mean=(p, q), eps=eps, sigma=sigma)

    def level(self, t: Time) -> Time:
        """r = sigma(t)/alpha(t), the noise level in units of the data."""
        return self.schedule.sigma(t) / self.schedule.alpha(t)

    def levels(self, steps: int) -> Any:
        """EDM's spacing, in which it was trained, wherever the noisiest level keeps some signal."""
        grid = "karras" if self.schedule.alpha(self.schedule.t_max) > 0 else self.schedule.grid
        return np.asarray(lookup("grid", grid)(self.schedule, steps + 1))[:steps]

    @property
    def _least(self) -> float:
        return float(self.level(self.end))

    def _two_times(self, x: Tensor, t: Time, s: Time, cond: Cond | None) -> tuple[Tensor, Pair, Pair, Any]:
        """(F, g as a pair of coefficients of x and F, the kind's noise estimate likewise, sigma)."""
        times, scale, mean, eps, sigma = self._coefficients(x, t)
        ends = self._coefficients(x, s)[0]
        both = torch.stack(torch.broadcast_tensors(times, ends), dim=-1)
        given = x if scale is None else x * scale
        raw, _ = self.net.trace(given.to(times.dtype), both, cond, self._plan)  # type: ignore[operator]
        if self.learned_variance:
            raw = raw.chunk(2, dim=1)[0]
        if self.inner_form != "own":
            c_skip, c_out = inner_scalings(self.level(t), self.inner_form, self.sigma_data, self._least)
            mean = (spread(c_skip / self.schedule.alpha(t), x), spread(c_out, x))
        return raw.to(x.dtype), mean, eps, sigma


class GaussianMap(Gaussian, FlowMap):
    """The exact flow map of Gaussian data, which jumps anywhere: the closed form that students are checked against.

    Args:
        schedule, mean, variance: as of :class:`scoreline.diffusion.closed_form.Gaussian`.
        end: level where jumps end; None takes the schedule's least.
    """

    anywhere = True
    scored = True

    def __init__(self, schedule: Schedule, mean: Tensor, variance: Tensor | float, *, end: float | None = None) -> None:
        super().__init__(schedule, mean, variance)
        self.end = schedule.t_min if end is None else end

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        s = torch.clamp(s, min=self.end) if isinstance(s, Tensor) else max(s, self.end)
        return self.flow(x, t, s)


def _only_end(model: FlowMap, s: Time) -> None:
    if not isinstance(s, Tensor) and s > model.end * (1 + 1e-9):
        mend = f"this model jumps to its end only, {model.end}; put noise back with schedule.renoise"
        raise InputError("s", s, mend)
