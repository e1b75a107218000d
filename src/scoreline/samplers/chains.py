"""Parallel chains over (image, noise level): the state and the sweeps of denoising MCMC.

Kim & Ye 2023 (arXiv 2209.14593), in y = x/alpha and s = sigma/alpha, for images in [-1, 1]. Every chain has a stream of
its own, so that it does not matter which others run beside it; its state can be saved and restored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.cost import Counted
from scoreline.core.denoiser import Denoiser
from scoreline.core.noise import Draws, Noise, derive
from scoreline.core.schedule import Schedule, spread
from scoreline.samplers.heun import Heun

__all__ = ["Chains", "Places", "accept_probability", "kar2", "langevin", "pick_level"]

# The noise added to a chain's first image, 0.5 for data in [0, 1].
START_NOISE = 2 * 0.5


def kar2() -> Heun:
    """The paper's stochastic Heun, EDM's with churn; the levels between which noise is put back, 0.05 and 1 for data in
    [0, 1], are doubled for images in [-1, 1]."""
    return Heun(s_churn=80.0, s_min=2 * 0.05, s_max=2 * 1.0, s_noise=1.007)


class Settings(Protocol):
    """What chains take from their sampler; see :class:`scoreline.samplers.denoising_mcmc.DenoisingMCMC`."""

    chains: int
    emissions: int
    eta: float
    rule: str
    metropolis: bool
    start_steps: int
    burn_in: int
    burn_eta: float
    settle: int


def langevin(y: Tensor, score: Tensor, eta: float, noise: Tensor) -> Tensor:
    """y + eta/2 score + sqrt(eta) z.

    For p = N(m, V) its stationary variance is V/(1 - eta/(4V)); it diverges from eta = 4V on.

    Args:
        y: (B, ...).
        score: grad log p(y), like y.
        eta: step, in squared units of y.
        noise: standard normal, like y.
    """
    return y + 0.5 * eta * score + eta**0.5 * noise


def accept_probability(y: Tensor, ahead: Tensor, score: Tensor, score_ahead: Tensor, eta: float) -> Tensor:
    """Metropolis-Hastings probability of the Langevin step from y to ahead, (B,):
    min(1, p(y') q(y|y') / p(y) q(y'|y)), log p(y') - log p(y) = (score + score')/2 . (y' - y).

    Only scores are known of a network; the trapezoid rule is exact for Gaussians and of third order in the step.
    """
    move = (ahead - y).flatten(1).double()
    there, here = score_ahead.flatten(1).double(), score.flatten(1).double()
    gain = 0.5 * ((there + here) * move).sum(1)
    back = (-move - 0.5 * eta * there).square().sum(1)
    forth = (move - 0.5 * eta * here).square().sum(1)
    return (gain - (back - forth) / (2 * eta)).clamp(max=0).exp()


def pick_level(logits: Tensor, uniform: Tensor | None) -> Tensor:
    """The likeliest level, or by `uniform` (B,) a draw from softmax(logits), (B,) places in the table."""
    if uniform is None:
        return logits.argmax(1)
    share = logits.double().softmax(1).cumsum(1)
    return (share < uniform.to(share)[:, None]).sum(1).clamp_(max=logits.shape[1] - 1)


class Places:
    """A table of levels as times of a schedule, (M,) float64 each: `levels` (sigma/alpha), `times`, `alphas`.

    Levels beyond those that the model knows become its last one; a model of discrete times gets times that it knows.
    """

    def __init__(self, table: np.ndarray, schedule: Schedule, device: torch.device | str = "cpu") -> None:
        with np.errstate(divide="ignore"):
            known = np.exp(-schedule.lam(np.array([schedule.t_min, schedule.t_max])))
        inside = np.clip(table, known[0], known[1])
        times = schedule.snap(np.clip(schedule.time(-np.log(inside)), schedule.t_min, schedule.t_max))
        self.table = table
        self.times = torch.as_tensor(times, device=device)
        # A snapped time has a level of its own; elsewhere the table's numbers stay as they are.
        levels = inside if schedule.known is None else np.exp(-schedule.lam(times))
        self.levels = torch.as_tensor(levels, device=device)
        self.alphas = torch.as_tensor(np.asarray(schedule.alpha(times)), device=device)


class Chains:
    """Chains of one model, all at the same sweep.

    Args:
        denoiser: the model.
        cond: conditions of a batch, or None.
        rows: whose conditions in that batch each chain has.
        numbers: (L,) number of each chain, which decides its stream.
        noise: seed, type and device of the streams.
        settings: of the chain.
        predictor: log p(s_j | y), called as predictor(y, cond) -> (L, M).
        places: the table of levels.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        cond: Cond | None,
        rows: Sequence[int],
        numbers: np.ndarray,
        noise: Draws,
        settings: Settings,
        predictor: Any,
        places: Places,
    ) -> None:
        self._denoiser, self._cond, self._noise = denoiser, cond, noise
        self.settings, self.predictor, self.places = settings, predictor, places
        self.sweeps, self.nfe = 0, 0
        self.y: Tensor | None = None
        self.at: Tensor | None = None
        self._choose(list(range(len(rows))), np.asarray(rows), np.asarray(numbers))

    def _choose(self, lanes: list[int], rows: np.ndarray, numbers: np.ndarray) -> None:
        self.lanes, self.rows, self.numbers = lanes, rows, numbers
        like = self._noise
        streams = Noise(derive(like.seed, "denoising-mcmc"))
        self.draws = streams.at(numbers, like.shape, device=like.device, dtype=like.dtype)
        self.sweep_draws = self.draws.derived("sweeps")
        self.cond = None if self._cond is None else self._cond[torch.as_tensor(rows, device=like.device)]
        self.counted = Counted(self._denoiser if self.cond is None else self._denoiser.given(self.cond))

    def keep(self, lanes: list[int]) -> None:
        """Go on with some of the chains, numbered as at the beginning."""
        if lanes == self.lanes:
            return
        where = [self.lanes.index(lane) for lane in lanes]
        if self.y is not None and self.at is not None:
            chosen = torch.tensor(where, device=self.y.device)
            self.y, self.at = self.y[chosen], self.at[chosen]
        self._choose(lanes, self.rows[where], self.numbers[where])

    def _score(self, y: Tensor, at: Tensor) -> Tensor:
        """grad log p(y | s) = -eps/s."""
        x = y * spread(self.places.alphas[at], y)
        eps = self.counted(x, self.places.times[at]).eps
        self.nfe += self.counted.evaluations
        return eps * spread(-1 / self.places.levels[at], eps)

    def _level(self, y: Tensor, turn: int) -> Tensor:
        uniform = self.sweep_draws.uniform(turn, 1) if self.settings.rule == "sample" else None
        return pick_level(self.predictor(y, self.cond), uniform)

    def start(self) -> None:
        """Images of a stochastic Heun run from the largest level, noise, level, and the burn-in sweeps."""
        settings, schedule = self.settings, self.counted.schedule
        rho = 7.0
        low = float(self.places.levels[-1])
        levels = np.linspace(float(self.places.levels[0]) ** (1 / rho), low ** (1 / rho), settings.start_steps) ** rho
        times = schedule.snap(np.clip(schedule.time(-np.log(levels)), schedule.t_min, schedule.t_max))
        times = np.append(np.unique(times)[::-1], schedule.clean)
        sample = kar2()(self.counted, self.draws, times=times)
        self.nfe += int(sample.nfe)
        self.y = sample.x + START_NOISE * self.draws.derived("start").normal()
        self.at = self._level(self.y, 0)
        for sweep in range(settings.burn_in + settings.settle):
            self.sweep(settings.burn_eta if sweep < settings.burn_in else settings.eta)

    def sweep(self, eta: float) -> None:
        """One Langevin step at the present level, then the level anew; `eta` is that of data in [0, 1]."""
        assert self.y is not None
        assert self.at is not None
        self.sweeps += 1
        y, eta = self.y, 4 * eta
        score = self._score(y, self.at)
        ahead = langevin(y, score, eta, self.sweep_draws.normal(self.sweeps))
        if self.settings.metropolis:
            chance = accept_probability(y, ahead, score, self._score(ahead, self.at), eta)
            taken = self.sweep_draws.uniform(self.sweeps, 2) < chance
            ahead = torch.where(taken.view(-1, *[1] * (y.dim() - 1)), ahead, y)
        self.y = ahead
        self.at = self._level(ahead, self.sweeps)

    def emit(self, n_skip: int) -> tuple[Tensor, Tensor]:
        """After n_skip sweeps: of the states from the present one on, each chain's of smallest level.

        Returns:
            y (L, ...) and its place in the table (L,); the chains themselves go on from their last state.
        """
        assert self.y is not None
        assert self.at is not None
        y, at = self.y, self.at
        for _ in range(n_skip):
            self.sweep(self.settings.eta)
            # The strictly smaller level; the first of equal ones stays.
            smaller = self.places.levels[self.at] < self.places.levels[at]
            y = torch.where(smaller.view(-1, *[1] * (y.dim() - 1)), self.y, y)
            at = torch.where(smaller, self.at, at)
        return y, at

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the chains: y, places in the table, sweeps made; their streams need no state."""
        assert self.y is not None
        assert self.at is not None
        return {"y": self.y.clone(), "at": self.at.clone(), "sweeps": torch.tensor([self.sweeps, self.nfe])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where another run of the same chains stopped."""
        device = self._noise.device
        self.y, self.at = state["y"].to(device), state["at"].to(device)
        self.sweeps, self.nfe = (int(n) for n in state["sweeps"])
