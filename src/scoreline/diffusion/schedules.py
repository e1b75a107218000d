"""Noise schedules: VP (linear beta, cosine), sub-VP, VE, EDM, flow, and discrete tables.

Reference: Ho et al. 2020 (linear), Nichol & Dhariwal 2021 (cosine), Song et al. 2021 (VP, sub-VP, VE SDEs),
Karras et al. 2022 (EDM), Liu et al. 2022 and Lipman et al. 2022 (flow), Lin et al. 2023 (zero terminal SNR).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.errors import InputError
from scoreline.core.schedule import Schedule, Time, arithmetic, double
from scoreline.diffusion.betas import beta_table, rescale_zero_terminal_snr

__all__ = ["EDM", "VE", "VP", "Cosine", "Discrete", "Flow", "SubVP"]


def _ones(t: Time) -> Time:
    """1.0 in the kind of t."""
    return t * 0.0 + 1.0


def _range(name: str, low: float, t_min: float, t_max: float, high: float = math.inf) -> None:
    """Refuse a range of times that is empty or leaves (low, high]."""
    if not low <= t_min < t_max <= high:
        mend = f"{name} needs {low:g} <= t_min < t_max" + (f" <= {high:g}" if math.isfinite(high) else "")
        raise InputError("t_min, t_max", (t_min, t_max), mend)


def _linear_time(u: Time, beta_min: float, d: float) -> Time:
    """t with t^2 d/2 + t beta_min = u, without cancellation; infinite where u is."""
    if isinstance(u, Tensor):
        return torch.where(u.isinf(), u, 2 * u / (beta_min + torch.sqrt(beta_min**2 + 2 * d * u)))
    with np.errstate(invalid="ignore"):
        t = np.where(np.isinf(u), u, 2 * u / (beta_min + np.sqrt(beta_min**2 + 2 * d * u)))
    return t if isinstance(u, np.ndarray) else float(t)


def _log1p_exp(x: Time) -> Time:
    """log(1 + exp(x)) without overflow."""
    if isinstance(x, Tensor):
        return torch.logaddexp(x, torch.zeros_like(x))
    value = np.logaddexp(x, 0.0)
    return value if isinstance(x, np.ndarray) else float(value)


@recorded
class VP(Schedule):
    """Variance preserving with linear beta(t): log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2.

    Args:
        beta_min: beta(0).
        beta_max: beta(1).
        t_min: least time the model is trained at.
        t_max: largest time.

    Reference: Song et al. 2021, eq. 32-33.
    """

    grid = "time"

    def __init__(
        self, *, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3, t_max: float = 1.0
    ) -> None:
        _range("VP", 0.0, t_min, t_max)
        if not 0 <= beta_min < beta_max:
            raise InputError("beta_min, beta_max", (beta_min, beta_max), "need 0 <= beta_min < beta_max")
        self.beta_min, self.beta_max, self.t_min, self.t_max = beta_min, beta_max, t_min, t_max

    def _log_alpha(self, t: Time) -> Time:
        t = double(t)
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Time) -> Time:
        return arithmetic(t).exp(self._log_alpha(t))

    def sigma(self, t: Time) -> Time:
        xp = arithmetic(t)
        return xp.sqrt(-xp.expm1(2 * self._log_alpha(t)))

    def time(self, lam: Time) -> Time:
        # -2 log alpha = log(1 + exp(-2 lam)) =: u = t^2 d/2 + t beta_min
        return _linear_time(_log1p_exp(-2 * double(lam)), self.beta_min, self.beta_max - self.beta_min)

    def beta(self, t: Time) -> Time:
        """beta(t) = beta_min + t (beta_max - beta_min)."""
        return self.beta_min + double(t) * (self.beta_max - self.beta_min)

    def rates(self, t: Time) -> tuple[Time, Time]:
        alpha, sigma, half = self.alpha(t), self.sigma(t), 0.5 * self.beta(t)
        return -half * alpha, half * alpha**2 / sigma


@recorded
class SubVP(VP):
    """Sub-variance preserving: alpha as VP, sigma = 1 - alpha^2.

    Reference: Song et al. 2021, eq. 29.
    """

    def sigma(self, t: Time) -> Time:
        return -arithmetic(t).expm1(2 * self._log_alpha(t))

    def time(self, lam: Time) -> Time:
        # alpha/(1 - alpha^2) = exp(lam):  alpha = 2/(r + sqrt(r^2 + 4)), r = exp(-lam);  log alpha = -asinh(r/2).
        lam = double(lam)
        xp = arithmetic(lam)
        r = xp.exp(-lam) / 2
        u = 2 * (xp.arcsinh(r) if xp is np else xp.asinh(r))
        return _linear_time(u, self.beta_min, self.beta_max - self.beta_min)

    def rates(self, t: Time) -> tuple[Time, Time]:
        alpha, beta = self.alpha(t), self.beta(t)
        return -0.5 * beta * alpha, beta * alpha**2


@recorded
class Cosine(Schedule):
    """Cosine schedule in continuous time: alpha = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)), variance preserving.

    Args:
        s: offset.
        t_min: least time the model is trained at.
        t_max: largest time; at 1 the signal would vanish.

    Reference: Nichol & Dhariwal 2021, eq. 17; t_max as in DPM-Solver.
    """

    grid = "time"

    def __init__(self, *, s: float = 0.008, t_min: float = 1e-3, t_max: float = 0.9946) -> None:
        _range("Cosine", 0.0, t_min, t_max, 1.0)
        self.s, self.t_min, self.t_max = s, t_min, t_max
        self._rate = 0.5 * math.pi / (1 + s)
        self._phi0 = self._rate * s

    def _phi(self, t: Time) -> Time:
        return double(t) * self._rate + self._phi0

    def alpha(self, t: Time) -> Time:
        return arithmetic(t).cos(self._phi(t)) / math.cos(self._phi0)

    def sigma(self, t: Time) -> Time:
        # 1 - cos^2 p/cos^2 p0 = sin(p - p0) sin(p + p0)/cos^2 p0: no cancellation near t = 0.
        past, xp = double(t) * self._rate, arithmetic(t)
        return xp.sqrt(abs(xp.sin(past) * xp.sin(past + 2 * self._phi0))) / math.cos(self._phi0)

    def time(self, lam: Time) -> Time:
        log_alpha = -0.5 * _log1p_exp(-2 * double(lam))
        xp = arithmetic(log_alpha)
        alpha = xp.exp(log_alpha) * math.cos(self._phi0)
        # acos loses digits near 1; the sine does not.
        sine = xp.sqrt(-xp.expm1(2 * log_alpha + 2 * math.log(math.cos(self._phi0))))
        phi = xp.arctan2(sine, alpha) if xp is not math else math.atan2(sine, alpha)
        t = (phi - self._phi0) / self._rate
        return t.clamp_min(0) if isinstance(t, Tensor) else np.maximum(t, 0.0) if xp is np else max(t, 0.0)

    def rates(self, t: Time) -> tuple[Time, Time]:
        da = -arithmetic(t).sin(self._phi(t)) * self._rate / math.cos(self._phi0)
        return da, -self.alpha(t) * da / self.sigma(t)


@recorded
class EDM(Schedule):
    """alpha = 1, sigma = t.

    Args:
        t_min: smallest noise level.
        t_max: largest noise level.

    Reference: Karras et al. 2022.
    """

    grid = "karras"

    def __init__(self, *, t_min: float = 0.002, t_max: float = 80.0) -> None:
        if not t_min > 0:
            raise InputError("t_min", t_min, "EDM's smallest noise level is positive")
        _range("EDM", 0.0, t_min, t_max)
        self.t_min, self.t_max = t_min, t_max

    def alpha(self, t: Time) -> Time:
        return _ones(double(t))

    def sigma(self, t: Time) -> Time:
        return double(t)

    def time(self, lam: Time) -> Time:
        return arithmetic(lam).exp(-double(lam))

    def rates(self, t: Time) -> tuple[Time, Time]:
        one = _ones(double(t))
        return 0.0 * one, one


@recorded
class VE(Schedule):
    """Variance exploding: alpha = 1, sigma(t) = sigma_min (sigma_max/sigma_min)^t for t in (0, 1].

    Args:
        sigma_min: noise at t = 0.
        sigma_max: noise at t = 1.
        t_min: least time the model is trained at.

    Reference: Song et al. 2021, eq. 30. The clean end is a time of its own, t = -1, since sigma(0) is not 0.
    """

    grid = "time"
    clean = -1.0

    def __init__(self, *, sigma_min: float = 0.01, sigma_max: float = 50.0, t_min: float = 1e-5) -> None:
        _range("VE", 0.0, t_min, 1.0)
        if not 0 < sigma_min < sigma_max:
            raise InputError("sigma_min, sigma_max", (sigma_min, sigma_max), "need 0 < sigma_min < sigma_max")
        self.sigma_min, self.sigma_max, self.t_min, self.t_max = sigma_min, sigma_max, t_min, 1.0
        self._log_ratio = math.log(sigma_max / sigma_min)

    def alpha(self, t: Time) -> Time:
        return _ones(double(t))

    def sigma(self, t: Time) -> Time:
        t = double(t)
        value = self.sigma_min * arithmetic(t).exp(t * self._log_ratio)
        return value * (t > self.clean)

    def time(self, lam: Time) -> Time:
        lam = double(lam)
        t = (-lam - math.log(self.sigma_min)) / self._log_ratio
        if isinstance(t, Tensor):
            return torch.where(lam == math.inf, self.clean, t)
        t = np.where(lam == math.inf, self.clean, t)
        return t if isinstance(lam, np.ndarray) else float(t)

    def rates(self, t: Time) -> tuple[Time, Time]:
        return 0.0 * _ones(double(t)), self.sigma(t) * self._log_ratio


@recorded
class Flow(Schedule):
    """Straight paths between data and noise: alpha = 1 - t, sigma = t.

    Args:
        t_min: least time the model is trained at.
        t_max: largest time; at 1 the state is pure noise.

    Reference: Liu et al. 2022; Lipman et al. 2022.
    """

    grid = "time-to-clean"

    def __init__(self, *, t_min: float = 1e-5, t_max: float = 1.0) -> None:
        _range("Flow", 0.0, t_min, t_max, 1.0)
        self.t_min, self.t_max = t_min, t_max

    def alpha(self, t: Time) -> Time:
        return 1.0 - double(t)

    def sigma(self, t: Time) -> Time:
        return double(t)

    def time(self, lam: Time) -> Time:
        return arithmetic(lam).exp(-_log1p_exp(double(lam)))

    def rates(self, t: Time) -> tuple[Time, Time]:
        one = _ones(double(t))
        return -one, one


@recorded
class Discrete(Schedule):
    """A table of T noise levels, variance preserving: alpha_t = sqrt(abar_t), t = 0 ... T-1, t = 0 least noisy.

    Times between the entries interpolate log alpha linearly; samplers snap to the entries. The clean end is t = -1.

    Args:
        betas: name of a table in `scoreline.diffusion.betas.BETAS`, or the T values themselves, each in (0, 1).
        T: number of levels (ignored when `betas` holds values).
        zero_terminal_snr: rescale so that the last level holds no signal; then eps-prediction is undefined there.

    Raises:
        InputError: a beta leaves (0, 1).
    """

    grid = "trailing"
    clean = -1.0

    def __init__(self, *, betas: str | list[float] = "linear", T: int = 1000, zero_terminal_snr: bool = False) -> None:
        if T < 2:
            raise InputError("T", T, "a table has at least 2 levels")
        table = beta_table(betas, T) if isinstance(betas, str) else np.asarray(betas, dtype=np.float64)
        if table.ndim != 1 or len(table) < 2:
            raise InputError("betas", tuple(table.shape), "a table is a list of at least 2 numbers")
        allow_one = betas == "jsd"
        bad = np.flatnonzero(~((table > 0) & (table < 1))[: -1 if allow_one else None])
        if bad.size:
            mend = f"beta at t = {bad[0]} is {table[bad[0]]:.4g}, outside (0, 1); use more steps or another table"
            raise InputError("betas", betas if isinstance(betas, str) else "table", mend)
        self.betas = rescale_zero_terminal_snr(table) if zero_terminal_snr else table
        self.T = len(self.betas)
        self.abar = np.cumprod(1 - self.betas)
        if zero_terminal_snr or allow_one:
            self.abar[-1] = 0.0
        self.t_min, self.t_max = 0.0, float(self.T - 1)
        self.known = np.arange(self.T, dtype=np.float64)
        with np.errstate(divide="ignore"):
            # Entry 0 is the clean end, entry 1 + t is level t.
            self._log_alpha_table = np.append(0.0, 0.5 * np.log(self.abar))
        self._entries: list[float] = self._log_alpha_table.tolist()
        self._on: dict[torch.device, Tensor] = {}

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._on:
            self._on[device] = torch.as_tensor(self._log_alpha_table, device=device)
        return self._on[device]

    def _log_alpha(self, t: Time) -> Time:
        if isinstance(t, Tensor):
            table = self._table(t.device)
            at = (double(t) + 1).clamp_min(0)
            low = at.floor().clamp(max=self.T - 1)
            a, b, w = table[low.long()], table[low.long() + 1], at - low
            return torch.where(w == 0, a, torch.where(w == 1, b, a + w * (b - a)))
        if not isinstance(t, np.ndarray) and 0 <= t + 1 <= self.T and (t + 1) % 1 == 0:
            return self._entries[int(t) + 1]  # the fast path of samplers: a known level
        at = np.maximum(np.asarray(double(t) + 1.0), 0.0)
        low = np.minimum(np.floor(at), self.T - 1).astype(np.int64)
        a, b, w = self._log_alpha_table[low], self._log_alpha_table[low + 1], at - low
        with np.errstate(invalid="ignore"):
            # Entries exactly, -inf at a zero-SNR end included; beyond the last one the line goes on.
            value = np.where(w == 0, a, np.where(w == 1, b, a + w * (b - a)))
        return value if isinstance(t, np.ndarray) else float(value)

    def alpha(self, t: Time) -> Time:
        log_alpha = self._log_alpha(t)
        return arithmetic(log_alpha).exp(log_alpha)

    def sigma(self, t: Time) -> Time:
        log_alpha = self._log_alpha(t)
        xp = arithmetic(log_alpha)
        return xp.sqrt(-xp.expm1(2 * log_alpha))

    def time(self, lam: Time) -> Time:
        log_alpha = -0.5 * _log1p_exp(-2 * double(lam))
        if isinstance(log_alpha, Tensor):
            table = self._table(log_alpha.device)
            low = (torch.searchsorted(-table, -log_alpha) - 1).clamp(0, self.T - 1)
            a, b = table[low], table[low + 1]
            share = (log_alpha - a) / (b - a)
            return torch.where(log_alpha == b, low + 0.0, low - 1 + share.nan_to_num(0.0) * (log_alpha != a))
        value = np.asarray(log_alpha)
        low_ = np.clip(np.searchsorted(-self._log_alpha_table, -value) - 1, 0, self.T - 1)
        a_, b_ = self._log_alpha_table[low_], self._log_alpha_table[low_ + 1]
        with np.errstate(invalid="ignore"):
            # Beyond the last entry the line goes on, so that a level no model knows is seen to be one.
            t = np.where(value == b_, low_, low_ - 1 + np.where(value == a_, 0.0, (value - a_) / (b_ - a_)))
        return t.astype(np.float64) if isinstance(lam, np.ndarray) else float(t)

    def rates(self, t: Time) -> tuple[Time, Time]:
        # The slope of log alpha: of the interval that holds t, or at an entry the mean of the two beside it.
        at = np.asarray(t.detach().cpu() if isinstance(t, Tensor) else t, dtype=np.float64) + 1
        below = np.clip(np.ceil(at) - 1, 0, self.T - 1).astype(np.int64)
        above = np.clip(np.floor(at), 0, self.T - 1).astype(np.int64)
        with np.errstate(invalid="ignore"):
            slopes = np.diff(self._log_alpha_table)
        slope = 0.5 * (slopes[below] + np.where(np.isfinite(slopes[above]), slopes[above], slopes[below]))
        alpha, sigma = np.asarray(self.alpha(at - 1)), np.asarray(self.sigma(at - 1))
        with np.errstate(invalid="ignore"):
            da, ds = slope * alpha, -slope * alpha**2 / sigma
        # On the last step of a zero-SNR table log alpha has no slope; alpha itself has.
        ends = ~np.isfinite(slope)
        da = np.where(ends, -np.sqrt(self.abar[-2]), da)
        ds = np.where(ends, 1 - np.sqrt(1 - self.abar[-2]), ds)
        if isinstance(t, Tensor):
            return torch.as_tensor(da, device=t.device), torch.as_tensor(ds, device=t.device)
        return (da, ds) if isinstance(t, np.ndarray) else (float(da), float(ds))
