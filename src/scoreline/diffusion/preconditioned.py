"""A network seen as a denoiser: input scaling, time input, and what its raw output means.

kinds, with s = sigma/alpha and sd = sigma_data:
    edm   E[x0|x] = c_skip x/alpha + c_out F(c_in x/alpha),
          c_skip = sd^2/(s^2+sd^2), c_out = s sd/sqrt(s^2+sd^2), c_in = 1/sqrt(s^2+sd^2)
    eps   F is the noise
    v     F = alpha eps - sigma x0           (variance-preserving schedules)
    x0    F is the clean image
    flow  F = eps - x0                       (alpha + sigma = 1)

Reference: Karras et al. 2022, table 1; Ho et al. 2020; Salimans & Ho 2022; Liu et al. 2022.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.schedule import Schedule, Time, arithmetic, spread

__all__ = ["KINDS", "TIME_INPUTS", "Preconditioned", "edm_scalings", "edm_weight"]

KINDS = ("edm", "eps", "v", "x0", "flow")
TIME_INPUTS = ("t", "ln-sigma/4", "999t", "1000t")


def edm_scalings(sigma: Time, sigma_data: float = 0.5) -> tuple[Time, Time, Time, Time]:
    """(c_skip, c_out, c_in, c_noise) of EDM; c_noise = ln(sigma)/4.

    Args:
        sigma: noise level in units of the data, float, array or tensor.
        sigma_data: standard deviation of the data.

    Reference: Karras et al. 2022, table 1.

    >>> [round(c, 4) for c in edm_scalings(0.5, 0.5)]
    [0.5, 0.3536, 1.4142, -0.1733]
    """
    xp = arithmetic(sigma)
    total = sigma * sigma + sigma_data * sigma_data
    root = xp.sqrt(total)
    return sigma_data * sigma_data / total, sigma * sigma_data / root, 1 / root, xp.log(sigma) / 4


def edm_weight(sigma: Time, sigma_data: float = 0.5) -> Time:
    """EDM's loss weight (sigma^2 + sd^2)/(sigma sd)^2 = 1/c_out^2."""
    return (sigma * sigma + sigma_data * sigma_data) / (sigma * sigma_data) ** 2


@recorded
class Preconditioned(Denoiser):
    """A network with its schedule and kind; answers in its own kind without cancellation.

    Args:
        net: network `net(x, t, cond)` with `in_shape`, `num_classes`, `null`.
        schedule: the coordinates it was trained in.
        kind: what its output is, one of `KINDS`.
        sigma_data: standard deviation of the data (kind "edm" only).
        time_input: what the network is told of t: "t", "ln-sigma/4", "999t" or "1000t"; None takes the kind's own.
        learned_variance: the output has a second group of channels, the raw share between log beta~ and log beta.

    Raises:
        InputError: an unknown kind, or one that does not fit the schedule.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        *,
        kind: str = "edm",
        sigma_data: float = 0.5,
        time_input: str | None = None,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
        time_input = time_input or ("ln-sigma/4" if kind == "edm" else "1000t" if kind == "flow" else "t")
        if time_input not in TIME_INPUTS:
            raise unknown_name("time_input", time_input, TIME_INPUTS)
        middle = 0.5 * (schedule.t_min + schedule.t_max)
        alpha, sigma = schedule.alpha(middle), schedule.sigma(middle)
        if kind == "v" and abs(alpha**2 + sigma**2 - 1) > 1e-6:
            raise InputError("kind", kind, "needs a variance-preserving schedule (vp, cosine, discrete)")
        if kind == "flow" and abs(alpha + sigma - 1) > 1e-6:
            raise InputError("kind", kind, "needs the flow schedule")
        self.net, self.schedule, self.kind, self.sigma_data = net, schedule, kind, sigma_data
        self.time_input, self.learned_variance = time_input, learned_variance
        self.shape: tuple[int, ...] = tuple(net.in_shape)  # type: ignore[arg-type]
        self.num_classes: int | None = net.num_classes  # type: ignore[assignment]
        self._plan: Any = None

    def _time(self, t: Time, sigma: Time) -> Time:
        if self.time_input == "ln-sigma/4":
            return arithmetic(sigma).log(sigma) / 4
        return t * {"t": 1.0, "999t": 999.0, "1000t": 1000.0}[self.time_input]

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        level = sigma / alpha if self.kind == "edm" or self.time_input == "ln-sigma/4" else sigma
        dtype = next(self.net.parameters()).dtype
        c_noise = self._time(t, level)
        if isinstance(c_noise, Tensor):
            times = c_noise.to(x.device, dtype).reshape(-1)
        else:
            times = torch.full((1,), float(c_noise), dtype=dtype, device=x.device)
        given = x
        if self.kind == "edm":
            c_skip, c_out, c_in, _ = edm_scalings(level, self.sigma_data)
            given = x * spread(c_in / alpha, x)
        raw, taps = self.net.trace(given.to(dtype), times, cond, self._plan)  # type: ignore[operator]
        if raw is None:  # the plan stops before the end; only its taps are wanted
            raw = given.new_zeros(len(x), self.shape[0] * (2 if self.learned_variance else 1), *self.shape[1:])
        raw = raw.to(x.dtype)
        mix = None
        if self.learned_variance:
            raw, mix = raw.chunk(2, dim=1)
        a, s = spread(alpha, x), spread(sigma, x)
        if self.kind == "edm":
            level, c_skip, c_out = spread(level, x), spread(c_skip, x), spread(c_out, x)
            # eps = (x/alpha - mean)/level with the two x terms merged: level/(level^2+sd^2) x/alpha - c_out/level F.
            mean = (c_skip / a, c_out)
            eps = (c_skip * level / self.sigma_data**2 / a, -c_out / level)
        elif self.kind == "eps":
            mean, eps = (1 / a, -s / a), (0.0, 1.0)
        elif self.kind == "v":
            mean, eps = (a, -s), (s, a)
        elif self.kind == "x0":
            mean, eps = (0.0, 1.0), (1 / s, -a / s)
        else:
            mean, eps = (1.0, -s), (1.0, a)
        return Posterior(x, raw, mean=mean, eps=eps, sigma=s, mix=mix, taps=taps)

    def target(self, x0: Tensor, x: Tensor, t: Time, noise: Tensor) -> Tensor:
        """What the network should answer for x = x_t = alpha x_0 + sigma noise, in its own kind.

        With kind "edm" the target is (x_0 - c_skip x/alpha)/c_out, whose mean square error is EDM's weighted loss.
        """
        alpha, sigma = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        if self.kind == "edm":
            c_skip, c_out, _, _ = edm_scalings(self.schedule.sigma(t) / self.schedule.alpha(t), self.sigma_data)
            return (x0 - spread(c_skip, x) * x / alpha) / spread(c_out, x)
        if self.kind == "v":
            return alpha * noise - sigma * x0
        return {"eps": noise, "x0": x0, "flow": noise - x0}[self.kind]

    def check(self, times: Time) -> None:
        super().check(times)
        if self.kind not in ("eps", "edm"):
            return
        values = np.asarray(times.detach().cpu() if isinstance(times, Tensor) else times, dtype=np.float64)
        top = float(values.max())
        if self.schedule.alpha(top) == 0:
            mend = f"kind {self.kind} says nothing of x_0 where no signal is left; start below, or use v or x0"
            raise InputError("time", top, mend)

    def null(self, cond: Cond) -> Cond:
        return self.net.null(cond)  # type: ignore[operator]

    def under(self, plan: Any) -> Preconditioned:
        self.net.check(plan)  # type: ignore[operator]
        view = copy.copy(self)
        view._plan = plan
        return view
