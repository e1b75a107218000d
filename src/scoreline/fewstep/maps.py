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
from scoreline.core.denoiser import Posterior, affine
from scoreline.core.errors import InputError
from scoreline.core.flow_map import FlowMap
from scoreline.core.schedule import Schedule, Time, arithmetic, spread
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned

__all__ = ["ConsistencyFunction", "GaussianMap", "LatentConsistency", "Trajectory", "boundary_scalings"]
__all__ += ["latent_scalings"]


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
    ) -> None:
        super().__init__(net, schedule, kind=kind, sigma_data=sigma_data, time_input=time_input)
        self.boundary_data = boundary_data
        self.time_scaling = time_scaling or (10.0 if schedule.known is not None else 10000.0)
        self.end = schedule.t_min

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

    Args:
        net: network `net(x, t, cond)` of two times, told (ln(t)/4, ln(s)/4).
        schedule: EDM's, from the end to the largest level.
        sigma_data: standard deviation of the data.

    Raises:
        InputError: the schedule scales the data, or the network takes one time.
    """

    anywhere = True
    scored = True

    def __init__(self, net: nn.Module, schedule: Schedule, *, sigma_data: float = 0.5) -> None:
        super().__init__(net, schedule, kind="edm", sigma_data=sigma_data)
        if schedule.alpha(schedule.t_max) != 1:
            raise InputError("schedule", type(schedule).__name__, "trajectory functions are defined with alpha = 1")
        if not getattr(net, "second_time", False):
            raise InputError("net", type(net).__name__, "a trajectory function needs a network with second_time=True")
        self.end = schedule.t_min

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        s = torch.clamp(s, min=self.end) if isinstance(s, Tensor) else max(s, self.end)
        ratio = s / t
        return affine(spread(ratio, x), x, spread(1 - ratio, x), self.inner(x, t, s, cond))

    def inner(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        """g(x, t, s), (B, *shape); at s = t it is E[x_0|x_t]."""
        raw, (c_skip, c_out) = self._two_times(x, t, s, self._given if cond is None else cond)
        return affine(c_skip, x, c_out, raw)

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        _, _, mean, eps, sigma = self._coefficients(x, t)
        raw, _ = self._two_times(x, t, t, cond)
        return Posterior(x, raw, mean=mean, eps=eps, sigma=sigma)

    def _two_times(self, x: Tensor, t: Time, s: Time, cond: Cond | None) -> tuple[Tensor, Any]:
        times, scale, mean, _, _ = self._coefficients(x, t)
        ends = self._coefficients(x, s)[0]
        both = torch.stack(torch.broadcast_tensors(times, ends), dim=-1)
        raw, _ = self.net.trace((x * scale).to(times.dtype), both, cond, self._plan)  # type: ignore[operator]
        return raw.to(x.dtype), mean


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
