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
from scoreline.core.denoiser import Denoiser, Pair, Posterior
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.schedule import Schedule, Time, arithmetic, spread

__all__ = ["KINDS", "TIME_INPUTS", "Preconditioned", "edm_scalings", "edm_weight"]

KINDS = ("edm", "eps", "v", "x0", "flow")
TIME_INPUTS = ("t", "ln-sigma/4", "ln-half-sigma", "999t", "1000t", "999(1-t)")


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
        time_input: what the network is told of t: "t", "ln-sigma/4", "ln-half-sigma", "999t", "1000t" or "999(1-t)";
            None takes the kind's own.
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
        self._kept: dict[Any, Any] = {}
        # In a tuple, so that it is not registered a second time; its dtype is the network's, also after .half().
        self._probe = (next(net.parameters()),)

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        times, scale, mean, eps, sigma = self._coefficients(x, t)
        dtype = self._probe[0].dtype
        given = x if scale is None else x * scale
        raw, taps = self.net.trace(  # type: ignore[operator]
            given if given.dtype == dtype else given.to(dtype), times, cond, self._plan
        )
        if raw is None:  # the plan stops before the end; only its taps are wanted
            raw = given.new_zeros(len(x), self.shape[0] * (2 if self.learned_variance else 1), *self.shape[1:])
        if raw.dtype != x.dtype:
            raw = raw.to(x.dtype)
        mix = None
        if self.learned_variance:
            raw, mix = raw.chunk(2, dim=1)
        return Posterior(x, raw, mean=mean, eps=eps, sigma=sigma, mix=mix, taps=taps)

    def _coefficients(self, x: Tensor, t: Time) -> tuple[Tensor, Any, Pair, Pair, Any]:
        """(time input of the network, c_in, mean, eps, sigma) at time t, for images like x.

        A sampler asks for the same few shared times with every batch; those are kept.
        """
        if isinstance(t, Tensor):
            return self._make_coefficients(x, t)
        key = (t, x.dtype, x.device, self._probe[0].dtype)
        if key not in self._kept:
            if len(self._kept) >= 4096:
                self._kept.clear()
            self._kept[key] = self._make_coefficients(x, t)
        return self._kept[key]

    def _make_coefficients(self, x: Tensor, t: Time) -> tuple[Tensor, Any, Pair, Pair, Any]:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        dtype = self._probe[0].dtype
        if self.time_input == "ln-sigma/4":
            level = sigma / alpha
            c_noise = arithmetic(level).log(level) / 4
        elif self.time_input == "ln-half-sigma":
            level = 0.5 * sigma / alpha
            c_noise = arithmetic(level).log(level)
        elif self.time_input == "999(1-t)":  # flows whose time runs from noise to data
            c_noise = 999.0 * (1.0 - t)
        else:
            c_noise = t * {"t": 1.0, "999t": 999.0, "1000t": 1000.0}[self.time_input]
        if isinstance(c_noise, Tensor):
            times = c_noise.to(x.device, dtype).reshape(-1)
        else:
            times = torch.full((1,), float(c_noise), dtype=dtype, device=x.device)
        a, s = spread(alpha, x), spread(sigma, x)
        if self.kind == "edm":
            c_skip, c_out, c_in, _ = edm_scalings(sigma / alpha, self.sigma_data)
            scale = spread(c_in / alpha, x)
            level, c_skip, c_out = spread(sigma / alpha, x), spread(c_skip, x), spread(c_out, x)
            # eps = (x/alpha - mean)/level with the two x terms merged: level/(level^2+sd^2) x/alpha - c_out/level F.
            return times, scale, (c_skip / a, c_out), (c_skip * level / self.sigma_data**2 / a, -c_out / level), s
        if self.kind == "eps":
            return times, None, (1 / a, -s / a), (0.0, 1.0), s
        if self.kind == "v":
            return times, None, (a, -s), (s, a), s
        if self.kind == "x0":
            return times, None, (0.0, 1.0), (1 / s, -a / s), s
        return times, None, (1.0, -s), (1.0, a), s

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
