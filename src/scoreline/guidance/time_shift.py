"""Time shift: before a network call, the time is replaced by the one whose noise variance fits the state best.

Li, Qu, Yao, Sun & Moens 2024 (arXiv 2305.15583). With v the unbiased variance over all entries of ONE state,
    t_s = argmin over tau in [c - floor(w/2), c + floor(w/2)] of (v - (1 - abar_tau))^2   if c > t_c, else c,
c the time of the call, w the window and t_c the cut-off, all in steps of a table. The first step is never shifted: pure
noise says nothing about time.

Modes, since paper and released code differ:
- "paper", the printed algorithm: t_s is the source of the step, as the network's input and as abar ("both"), or as the
  network's input alone ("input"; solvers with memory keep their own grid for their coefficients);
- "official_target": the network is asked at the grid's time, the target of the step is replaced, c being that target
  (released for DDIM and PNDM);
- "official_input": "input" with w in place of floor(w/2) (released for DEIS).

The rule is written for alpha^2 + sigma^2 = 1. On other schedules it is taken in y = x / sqrt(alpha^2 + sigma^2), with
abar = alpha^2/(alpha^2 + sigma^2); continuous ones count in steps of the linear table of 1000 at equal lambda.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import Draws
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule, Time, spread
from scoreline.guidance.variance_rule import Table, nearest, shift_times, state_variance
from scoreline.samplers.ancestral import Ancestral
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.ddpm import DDPM, learned_log_variance
from scoreline.samplers.euler import Euler
from scoreline.samplers.score_sde import PC
from scoreline.samplers.steps import posterior_step
from scoreline.samplers.wrapped import Wrapped

__all__ = ["MODES", "TimeShift", "Trace", "sweep"]

MODES = ("paper", "official_target", "official_input")
_ONE_STEP = (DDIM, DDPM, Ancestral, Euler)


class _Rows(Rows):
    """Rows of the wrapper; each holds the inner sampler's row beside its own columns."""

    def __init__(self, times: np.ndarray, base: Rows, table: Table, **columns: np.ndarray) -> None:
        self.base, self.table, self._inner = base, table, list(base)
        super().__init__(times, **columns)

    def _row(self, i: int) -> SimpleNamespace:
        row = super()._row(i)
        row.base, row.table = self._inner[i], self.table
        return row


@dataclass(frozen=True)
class Trace:
    """What a shifted run did.

    Attributes:
        x: (B, ...) images.
        times: (S+1,) grid.
        chosen: (S, B) time that stood in place of the grid's: the source's, or the target's in "official_target".
        variance: (S+1, B) variance of each state over its entries, in y = x / sqrt(alpha^2 + sigma^2).
    """

    x: Tensor
    times: np.ndarray
    chosen: Tensor
    variance: Tensor


@recorded
class TimeShift(Wrapped):
    """A sampler whose times are shifted to where the state's variance belongs; no further network calls.

    Args:
        of: the sampler inside, a name or an object.
        window: w, in steps of the table; 0 and 1 leave the inner sampler as it is.
        cutoff: t_c; from this index of the table downwards nothing is shifted.
        mode: "paper", "official_target" or "official_input", see the top of this file.
        shift: "both" or "input"; None takes "both" for DDPM, DDIM, Euler and their stochastic kin, "input" for others.
        variance: var(x_0), mean variance over an image's entries; with it the state is compared with the variance of
            noised data, 1 - abar (1 - var(x_0)), instead of 1 - abar. In [0, 1).
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.

    Raises:
        InputError: the shift is not sound for the inner sampler, or a setting is out of range.
    """

    def __init__(
        self,
        *,
        of: str | Sampler = "ddim",
        window: int = 40,
        cutoff: int = 300,
        mode: str = "paper",
        shift: str | None = None,
        variance: float = 0.0,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(of, steps=steps, nfe=nfe, grid=grid)
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        one_step = isinstance(self._inner, _ONE_STEP)
        if shift is None:
            shift = "both" if one_step and mode != "official_input" else "input"
        if shift not in ("both", "input"):
            raise unknown_name("shift", shift, ("both", "input"))
        _check_inner(self._inner, mode, shift, one_step)
        if window < 0 or cutoff < 0:
            raise InputError("window, cutoff", (window, cutoff), "count steps of the table: 0 or more")
        if not 0 <= variance < 1:
            raise InputError("variance", variance, "must lie in [0, 1): above, variance would fall with time")
        self.window, self.cutoff, self.mode, self.shift, self.variance = window, cutoff, mode, shift, variance
        self.order, self.per_image, self.rising = None, False, False

    @property
    def reach(self) -> int:
        """Half the window."""
        return self.window if self.mode == "official_input" else self.window // 2

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        table, base = Table.of(schedule, self.variance), self._inner.coefficients(schedule, times)
        steps, T = len(times) - 1, len(table.times)
        centre = table.entry(times[1:] if self.mode == "official_target" else times[:-1])
        shifted = (centre > self.cutoff) & (np.arange(steps) > 0) & (self.reach > 0)
        if self.shift == "input":
            return _Rows(times, base, table, shifted=shifted)
        low, high = np.zeros(steps), np.full(steps, T - 1.0)
        if self.stochastic:
            # A noisy step goes down: with the target above the source there is no posterior.
            if self.mode == "official_target":
                high = np.maximum(table.entry(times[:-1]) - 1, 0.0)
            else:
                low = np.minimum(table.entry(times[1:]) + 1, T - 1.0)
        near = np.clip(centre[:, None] + np.arange(-self.reach, self.reach + 1.0), low[:, None], high[:, None])
        near = near.astype(np.int64)
        # The middle of the window is the grid's own time, not the entry of the table beside it.
        own = (times[1:] if self.mode == "official_target" else times[:-1])[:, None]
        tau = np.where((near == centre[:, None]) | ~shifted[:, None], own, table.times[near])
        t, s = np.broadcast_to(times[:-1, None], tau.shape), np.broadcast_to(times[1:, None], tau.shape)
        t, s = (t, tau) if self.mode == "official_target" else (tau, s)
        norm = _norm(schedule, tau) / _norm(schedule, own)
        if isinstance(self._inner, DDPM):
            c1, c2, small, large = posterior_step(schedule, t, s)
            pairs = {"a": c2, "b": c1, "small": np.maximum(small, 0.0), "large": np.maximum(large, 0.0)}
        else:
            pairs = {k: v[0] for k, v in self._inner.coefficients(schedule, np.stack([t, s])).columns.items()}
        return _Rows(
            times, base, table, shifted=shifted, levels=table.levels[near], tau=tau, norm=norm,
            own_norm=_norm(schedule, times[:-1]), **{f"pair_{name}": value for name, value in pairs.items()},
        )  # fmt: skip

    def init(self, denoiser: Denoiser, noise: Draws, rows: Rows, x: Tensor | None = None) -> State:
        if math.prod(noise.shape) < 2:
            raise InputError("image", noise.shape, "the variance of a single entry is not defined")
        assert isinstance(rows, _Rows)
        state = self._inner.init(denoiser, noise, rows.base, x)
        return state._replace(memory=(state.memory, None))

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        inner, memory = state._replace(memory=state.memory[0]), None
        if not row.shifted:
            after = self._inner.step(denoiser, inner, row.base)
        elif self.shift == "input":
            view = _ShiftedInput(denoiser, row.table, self.reach, self.cutoff)
            after = self._inner.step(view, inner, row.base)
            memory = view.chosen
        else:
            after, memory = self._pair_step(denoiser, inner, row)
        return after._replace(memory=(after.memory, memory))

    def _pair_step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> tuple[State, Tensor]:
        """One step of the inner sampler with a source, or target, of each image's own."""

        def tensor(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values, device=state.x.device)

        at = nearest(state_variance(state.x) / row.own_norm**2, tensor(row.levels))
        picked = {name: tensor(value)[at] for name, value in vars(row).items() if name.startswith("pair_")}
        tau, norm = tensor(row.tau)[at], tensor(row.norm)[at]
        pair = SimpleNamespace(**{name.removeprefix("pair_"): value for name, value in picked.items()})
        pair.i = row.i
        target = self.mode == "official_target"
        pair.t, pair.s = (row.t, tau) if target else (tau, row.s)
        if not target:
            # Where alpha^2 + sigma^2 is not 1 the state moves with its time: it is y that stays.
            state = state._replace(x=state.x * spread(norm, state.x))
        after = self._ddpm_step(denoiser, state, pair) if isinstance(self._inner, DDPM) else self._inner.step(
            denoiser, state, pair
        )  # fmt: skip
        return (after._replace(x=after.x / spread(norm, after.x)) if target else after), tau

    def _ddpm_step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        """Posterior mean and variance with the shifted pair of times."""
        assert isinstance(self._inner, DDPM)
        assert state.noise is not None
        post = denoiser(state.x, row.t)
        x = post.combine(spread(row.a, state.x), spread(row.b, state.x))
        if isinstance(row.s, float) and row.s <= denoiser.schedule.clean:
            return state._replace(x=x)
        if self._inner.variance == "learned":
            if post.mix is None:
                raise InputError("variance", "learned", "this model learned no variance; use ddpm's small or large")
            large, small = (spread(v.clamp_min(1e-300).log(), x) for v in (row.large, row.small))
            std: Tensor = (0.5 * learned_log_variance(post.mix, large, small)).exp()
        else:
            std = spread((row.large if self._inner.variance == "large" else row.small).sqrt(), x)
        return state._replace(x=x.addcmul(state.noise.normal(row.i + 1), std))

    def trace(self, denoiser: Denoiser, noise: Draws, *, times: Any = None) -> Trace:
        """Sample a batch and keep the chosen times and the states' variances, for inspection.

        Args:
            denoiser, noise, times: as for a call of the sampler.
        """
        grid = self.times(denoiser.schedule, denoiser.evaluations) if times is None else times
        grid = self._checked(denoiser, grid, noise)
        rows = self.coefficients(denoiser.schedule, grid)
        with torch.no_grad():
            state = self.init(denoiser, noise, rows)
            chosen, spreads = [], [state_variance(state.x)]
            for row in rows:
                state = self.step(denoiser, state, row)
                own = row.s if self.mode == "official_target" else row.t
                chosen.append(torch.full_like(spreads[0], own) if state.memory[1] is None else state.memory[1])
                spreads.append(state_variance(state.x))
        norms = torch.as_tensor(_norm(denoiser.schedule, grid), device=state.x.device)
        return Trace(state.x, grid, torch.stack(chosen), torch.stack(spreads) / norms[:, None] ** 2)


class _ShiftedInput(View):
    """A denoiser that is asked at the shifted time; its noise estimate is taken for that of the time asked for."""

    def __init__(self, inner: Denoiser, table: Table, reach: int, cutoff: int) -> None:
        super().__init__(inner)
        self.table, self.reach, self.cutoff = table, reach, cutoff
        self.chosen: Tensor | None = None

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        centre, norm = self.table.entry(t), _norm(self.schedule, t)
        if centre <= self.cutoff:
            return self.inner(x, t, cond)
        times, levels, norms = (torch.as_tensor(column, device=x.device) for column in self.table)
        at = shift_times(state_variance(x) / norm**2, centre, levels, window=2 * self.reach, cutoff=self.cutoff)
        tau = torch.where(at == centre, t, times[at])
        ratio = torch.where(at == centre, 1.0, norms[at] / norm)
        post = self.inner(x * spread(ratio, x), tau, cond)
        self.chosen = tau if self.chosen is None else self.chosen
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return Posterior(
            x, post.eps, mean=(1 / alpha, -sigma / alpha), eps=(0.0, 1.0), sigma=sigma, mix=post.mix, taps=post.taps
        )


def _norm(schedule: Schedule, t: Any) -> Any:
    return np.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)


def _check_inner(inner: Sampler, mode: str, shift: str, one_step: bool) -> None:
    """Refuse samplers around which the shift means nothing."""
    name = type(inner).__name__
    if isinstance(inner, TimeShift):
        raise InputError("of", name, "is shifted already; give the sampler inside it")
    if isinstance(inner, PC) and inner.corrector_steps:
        mend = "its corrector brings the state to the grid's level by itself; shift a sampler without one"
        raise InputError("of", name, mend)
    if type(inner).calibrated is not Sampler.calibrated:
        mend = (
            "holds a calibration made at the grid's times, or a sampler that may; shifted times do not fit it; use ddim"
        )
        raise InputError("of", name, mend)
    if mode == "official_target" and (shift == "input" or not one_step):
        mend = f"moves the target of a step, which {name} does not have on its own; use mode=official_input or paper"
        raise InputError("mode", mode, mend if not one_step else "shifts no input; leave shift out")
    if mode == "official_input" and shift == "both":
        raise InputError("shift", shift, "mode official_input shifts the input alone; leave shift out")
    if shift == "both" and not one_step:
        raise InputError("shift", shift, f"{name} remembers steps on its own grid; use shift=input")


def sweep(
    denoiser: Denoiser,
    noise: Draws,
    score: Callable[[Tensor], float],
    *,
    steps: int,
    of: str | Sampler = "ddim",
    windows: Sequence[int] = (20, 40, 80),
    cutoffs: Sequence[int] = (200, 300, 500),
    variance: float = 0.0,
    grid: str | None = None,
) -> list[dict[str, float]]:
    """Score every window with every cut-off, the best first; the unshifted sampler stands among them with window 0.

    Choose on one noise and report on another: the best of many is flattered by the noise it was chosen on.

    Args:
        denoiser: the model, its conditions bound.
        noise: streams of the images that are scored.
        score: images (B, ...) -> a number, lower is better.
        steps: levels of a run.
        of, windows, cutoffs, variance, grid: settings of :class:`TimeShift`.

    Returns:
        [{"window", "cutoff", "score"}, ...], ascending in score.
    """
    found = []
    for window, cutoff in [(0, 0), *((w, c) for w in windows for c in cutoffs)]:
        sampler = TimeShift(of=of, window=window, cutoff=cutoff, variance=variance, steps=steps, grid=grid)
        found.append({"window": window, "cutoff": cutoff, "score": float(score(sampler(denoiser, noise).x))})
    return sorted(found, key=lambda row: row["score"])
