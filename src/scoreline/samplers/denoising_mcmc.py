"""Denoising MCMC, Kim & Ye 2023 (arXiv 2209.14593): walk over images and noise levels, denoise only from low levels.

In y = x/alpha and s = sigma/alpha the chain of denoising Langevin Gibbs (DLG) has the target p(y | s) p(s), p(s) flat
over the table of levels. A sweep:
    1. y <- y + eta/2 score(y, s) + sqrt(eta) z                                     Langevin, no correction by default
    2. s <- the argmax (or a draw) of p(s | y)                          :mod:`scoreline.samplers.level_prediction`
Every n_skip sweeps a chain emits, of the states since its last emission (that one included), the one of smallest s. An
integrator takes it from its own level to 0, and a last Tweedie step y <- y + e^2 score(y, e) ends it. The chain goes on
from its own last state. A chain starts from a long stochastic Heun run, noise added, and burn-in sweeps.

The paper's settings are those of data in [0, 1]; here, at this edge, they are turned once into those of images in
[-1, 1]: levels twice as large, eta four times.

Image i of C chains is emission i // C of chain i mod C. A chain makes `emissions` images and is then begun anew, so
that every image is a function of (seed, index) whatever the batch, no chain creeps upwards for ever, and the start-up
is shared by a known number of images (:mod:`scoreline.samplers.chain_runs`).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.cost import Counted
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.names import lookup
from scoreline.core.noise import Draws
from scoreline.core.sampler import Rows, Sample, Sampler, State, check_shapes
from scoreline.core.schedule import Schedule, spread
from scoreline.samplers.calibrations import find
from scoreline.samplers.chain_runs import Kept, emitted
from scoreline.samplers.chains import Places, kar2
from scoreline.samplers.heun import Heun
from scoreline.samplers.level_prediction import exact_levels, largest_level

__all__ = ["ChainSample", "DenoisingMCMC", "levels_from"]

GRIDS = ("karras", "logsnr", "time")
RULES = ("argmax", "sample")
SIGMA_MAX = 50.0


@dataclass
class ChainSample(Sample):
    """A sample of chains; `nfe` is the mean over images with the start-up shared by all that a chain makes.

    Attributes:
        startup: the part of `nfe` that is the chains' start and burn-in.
        sweeps: the part of `nfe` that is the chains' sweeps between two emissions.
        spent: evaluations per image that this call really made: the whole start-up of its chains, and the sweeps up to
            the emissions asked for.
        levels: (B,) sigma/alpha at which the chains handed over.
    """

    startup: float = 0.0
    sweeps: float = 0.0
    spent: float = 0.0
    levels: Tensor | None = None


def levels_from(start: Any, low: float, steps: int, grid: str, schedule: Schedule, *, rho: float = 7.0) -> Any:
    """Times of a run from levels of one's own: (steps + 1,) or (steps + 1, B) float64, the clean end last.

    karras: s_i = (start^(1/rho) + i/(steps-1) (low^(1/rho) - start^(1/rho)))^rho, i = 0 ... steps-1, then 0;
    logsnr: the same in log s; time: even in the schedule's time.

    Args:
        start: sigma/alpha at the start, a float or a (B,) float64 tensor.
        low: sigma/alpha of the last level before the clean end; a run that starts below it stays at its start.
        steps: number of levels.
        grid: one of "karras", "logsnr", "time".
        schedule: in whose times the answer is.
        rho: of karras.
    """
    tensor = isinstance(start, Tensor)
    xp: Any = torch if tensor else np
    high = start[None] if tensor else np.asarray(start, dtype=np.float64)[None]
    share = np.arange(steps) / max(steps - 1, 1)
    i = torch.as_tensor(share, device=start.device)[:, None] if tensor else share
    below = xp.clip(high, None, low)
    if grid == "time":
        first, last = schedule.time(-xp.log(high)), schedule.time(-xp.log(below))
        times = first + i * (last - first)
    else:
        if grid == "karras":
            levels = (high ** (1 / rho) + i * (below ** (1 / rho) - high ** (1 / rho))) ** rho
        else:
            levels = xp.exp(xp.log(high) + i * (xp.log(below) - xp.log(high)))
        times = schedule.time(-xp.log(levels))
    times = schedule.snap(xp.clip(times, schedule.t_min, schedule.t_max))
    ends = xp.full_like(times[:1], schedule.clean)
    return xp.concatenate([times, ends])


def integrator(of: str | Sampler) -> Sampler:
    """The sampler that takes emitted states to the clean end, checked.

    Raises:
        InputError: an unknown name, or a sampler that cannot start each image at a level of its own.
    """
    if isinstance(of, Sampler):
        made = of
    elif of in ("kar1", "kar2"):
        made = kar2() if of == "kar2" else Heun()
    else:
        try:
            cls = lookup("sampler", of)
        except InputError as error:
            raise InputError("of", of, f"{error.mend}; or kar1, kar2") from None
        if cls is DenoisingMCMC:
            raise InputError("of", of, "the integrator cannot be the chain itself; use kar1, ddim, euler, ancestral")
        made = cls()
    if not made.per_image or getattr(made, "adaptive", False):
        mend = "gives all images the same times, but chains hand over at levels of their own; use kar1, ddim or euler"
        raise InputError("of", of if isinstance(of, str) else type(of).__name__, mend)
    return made


@recorded
class DenoisingMCMC(Sampler):
    """Chains over (image, noise level) with any integrator that takes times of each image's own.

    Args:
        of: the integrator: "kar1" (EDM's Heun, the paper's deterministic one), "kar2" (with churn, its stochastic one),
            another sampler's name, or a sampler. On few steps Heun's slope at the last level spoils the image; there
            the first-order "ddim" is the better one.
        eta: Langevin step, for data in [0, 1]; the paper's demo on CelebA-HQ has 0.8, small images want less.
        n_skip: sweeps between two emissions (thinning); nothing makes as many as the integrator has evaluations.
        chains: number of parallel chains; a multiple of the number of classes that are asked for in turn, or a chain
            that is asked for several classes is run once for each.
        emissions: images a chain makes before it is begun anew; its start-up is shared by them.
        rule: "argmax" takes the likeliest level, "sample" draws one.
        metropolis: accept or refuse each Langevin step; a sweep then costs two evaluations.
        sigma_min: lowest level of the integrator before the clean end, for data in [0, 1].
        tweedie: level of the last Tweedie step, for data in [0, 1]; 0 leaves it out.
        start_steps: levels of the stochastic Heun run from which a chain starts.
        burn_in: sweeps with step `burn_eta` that follow, then `settle` sweeps with `eta`.
        burn_eta, settle: see `burn_in`.
        classifier: file of a level predictor; nothing finds the model's own.
        steps, nfe, grid: of the integrator's levels, see :class:`scoreline.core.sampler.Sampler`; grid is karras (also
            where nothing is given), logsnr or time.

    With explicit `times`, or from a given x, the integrator runs alone.

    Raises:
        InputError: a setting is out of range, or the integrator cannot start each image at a level of its own.
    """

    per_image = True
    stochastic = True

    def __init__(
        self,
        *,
        of: str | Sampler = "ddim",
        eta: float = 0.1,
        n_skip: int | None = None,
        chains: int = 10,
        emissions: int = 50,
        rule: str = "argmax",
        metropolis: bool = False,
        sigma_min: float = 0.01,
        tweedie: float = 0.01,
        start_steps: int = 19,
        burn_in: int = 10,
        burn_eta: float = 0.5,
        settle: int = 10,
        classifier: str | None = None,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        if grid is not None and grid not in GRIDS:
            raise unknown_name("grid of levels of each image's own", grid, GRIDS)
        if rule not in RULES:
            raise unknown_name("rule", rule, RULES)
        for thing, value in (("eta", eta), ("burn_eta", burn_eta)):
            if not 0 < value < math.inf:
                raise InputError(thing, value, "must be positive")
        counts = {"n_skip": (n_skip, 1), "chains": (chains, 1), "emissions": (emissions, 1)}
        counts |= {"start_steps": (start_steps, 2), "burn_in": (burn_in, 0), "settle": (settle, 0)}
        for thing, (count, least) in counts.items():
            if count is not None and count < least:
                raise InputError(thing, count, f"must be {least} or more")
        if not 0 < sigma_min < SIGMA_MAX:
            raise InputError("sigma_min", sigma_min, f"is a noise level below {SIGMA_MAX:g}")
        if not 0 <= tweedie < SIGMA_MAX:
            raise InputError("tweedie", tweedie, "is a noise level, or 0 for no such step")
        self._integrator = integrator(of)
        self._predictor: Any = None
        self._kept = Kept()
        self.of, self.eta, self.n_skip, self.chains, self.emissions = of, eta, n_skip, chains, emissions
        self.rule, self.metropolis, self.tweedie, self.start_steps = rule, metropolis, tweedie, start_steps
        self.burn_in, self.burn_eta, self.settle, self.classifier = burn_in, burn_eta, settle, classifier
        self.sigma_min = sigma_min

    # --- cost ---

    def sweeps(self, steps: int) -> int:
        """Sweeps between two emissions of a run whose integrator has `steps` levels."""
        return self.n_skip if self.n_skip is not None else self._integrator.cost(steps)

    def startup(self) -> int:
        """Evaluations before the first emission's sweeps, of each chain."""
        return 2 * self.start_steps - 1 + (self.burn_in + self.settle) * (1 + self.metropolis)

    def cost(self, steps: int) -> int:
        """Evaluations per image of a chain's whole life, rounded up: the start-up is shared by its emissions."""
        own = self.sweeps(steps) * (1 + self.metropolis) + self._integrator.cost(steps) + (self.tweedie > 0)
        return math.ceil(own + self.startup() / self.emissions - 1e-9)

    # --- what belongs to the model ---

    def calibrated(self, denoiser: Denoiser) -> Self:
        if self._predictor is not None:
            return self
        predictor = None if self.classifier else exact_levels(denoiser)
        ready = self.holding(predictor or find("denoising-mcmc", denoiser, self.classifier))
        ready._kept = self._kept
        return ready

    def holding(self, predictor: Any) -> Self:
        """A copy with this predictor of levels: called as predictor(y, cond), with a `table` of levels."""
        ready = copy.copy(self)
        ready._predictor = predictor
        ready._kept = Kept()
        return ready

    # --- the integrator's arithmetic ---

    def times(self, schedule: Schedule, evaluations: int = 1) -> np.ndarray:
        """The levels of a hand-over at the top of the table; each image of a run has its own."""
        high = 2 * min(SIGMA_MAX, largest_level(schedule))
        return levels_from(high, self._low(schedule), self.plan(evaluations), self.grid or "karras", schedule)

    def _low(self, schedule: Schedule) -> float:
        """The integrator's lowest level, for images in [-1, 1]; the model's own where it knows none so low."""
        return max(2 * self.sigma_min, float(np.exp(-schedule.lam(schedule.t_min))))

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        return self._integrator.coefficients(schedule, times)

    def init(self, denoiser: Denoiser, noise: Draws, rows: Rows, x: Tensor | None = None) -> State:
        return self._integrator.init(denoiser, noise, rows, x)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        return self._integrator.step(denoiser, state, row)

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Draws,
        *,
        times: Any = None,
        x: Tensor | None = None,
        trajectory: bool = False,
    ) -> Sample:
        """Sample a batch; see :class:`scoreline.core.sampler.Sampler`.

        Returns:
            A :class:`ChainSample`, or the integrator's own sample where `times` or `x` is given.
        """
        if times is not None or x is not None:
            levels = self.times(denoiser.schedule, denoiser.evaluations) if times is None else times
            levels = self._checked(denoiser, levels, noise)
            return self._integrator(denoiser, noise, times=levels, x=x, trajectory=trajectory)
        check_shapes(denoiser, noise)
        steps = self.plan(denoiser.evaluations)
        ready = self.calibrated(denoiser)
        with torch.no_grad():
            return ready._run(denoiser, noise, steps, trajectory)

    def _run(self, denoiser: Denoiser, noise: Draws, steps: int, trajectory: bool) -> ChainSample:
        places = Places(self._predictor.table, denoiser.schedule, noise.device)
        y, at, cost = emitted(denoiser, noise, self._predictor, places, self, self.sweeps(steps), self._kept)
        schedule, counted = denoiser.schedule, Counted(denoiser)
        levels = places.levels[at]
        times = levels_from(levels, self._low(schedule), steps, self.grid or "karras", schedule)
        # The first time is the chain's own, to the last bit.
        times[0] = places.times[at]
        rows = self.coefficients(schedule, times)
        state = self.init(counted, noise, rows, y * spread(places.alphas[at], y))
        path = [state.x]
        for row in rows:
            state = self.step(counted, state, row)
            path.append(state.x)
        x = state.x
        if self.tweedie:
            x = path[-1] = tweedie(counted, x, 2 * self.tweedie)
        startup, sweeps = cost.startup / self.emissions, cost.block
        nfe = startup + sweeps + counted.nfe
        spent = cost.total / len(noise) + counted.nfe
        return ChainSample(
            x, nfe, math.ceil(nfe - 1e-9), times, path if trajectory else None,
            startup=startup, sweeps=sweeps, spent=spent, levels=levels,
        )  # fmt: skip


def tweedie(denoiser: Denoiser, y: Tensor, level: float) -> Tensor:
    """y + e^2 score(y, e) = E[x_0 | y at level e], e = sigma/alpha, not below the model's own lowest level."""
    schedule = denoiser.schedule
    t = float(schedule.snap(max(float(schedule.time(-math.log(level))), schedule.t_min)))
    return denoiser(y * schedule.alpha(t), t).mean
