"""Samplers of the reverse SDE: Euler-Maruyama, reverse diffusion, and predictor-corrector with Langevin steps.

With the forward step x_t = a x_s + G z from one level s of the run up to the next, t:
    Euler-Maruyama     mean = x + (f x - g^2 score)(s - t),   std = g sqrt(t - s)
    reverse diffusion  mean = (2 - a) x + G^2 score,          std = G
    ancestral          mean = E[x_s|x_t, E[x_0|x_t]],         std = G, where noise explodes G sigma_s/sigma_t
    Langevin           x + e score + sqrt(2 e) z,             e = 2 a^2 (r |z|/|score|)^2
    annealed Langevin  the same,                              e = 2 a^2 (r sigma_t)^2
A level is first corrected, then left by the predictor; the last step, to the clean image, adds no noise. Any schedule
has what is needed. The released code corrects in this order; its algorithms in the paper correct after the predictor,
which is the same chain but for one correction of pure noise at the start.

variant="paper" takes a and G between the levels visited, exactly. variant="released" takes the released code's tables
of as many entries as steps, at truncated indices, and steps of 1/N.

Reference: Song et al. 2021 (arXiv 2011.13456), section 4, appendices E, F and G.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule, spread
from scoreline.diffusion.schedules import VE, VP
from scoreline.diffusion.sde import discretised, released_table
from scoreline.samplers.steps import need_signal, posterior_step

__all__ = ["CORRECTORS", "NORMS", "PC", "PREDICTORS", "EulerMaruyama", "ReverseDiffusion", "langevin_step"]

PREDICTORS = ("euler-maruyama", "reverse-diffusion", "ancestral", "none")
CORRECTORS = ("langevin", "annealed")
NORMS = ("image", "batch")
VARIANTS = ("paper", "released")


def langevin_step(score: Tensor, noise: Tensor, snr: float, shrink: Any, *, norm: str = "image") -> Any:
    """e = 2 a^2 (r |z|/|score|)^2, the step of the Langevin corrector.

    Args:
        score: (B, ...).
        noise: z, the same shape.
        snr: r, the ratio of signal to noise that the step aims at.
        shrink: a^2 of this level (1 - beta on variance-preserving tables, 1 on VE), a float or (B, 1, ...).
        norm: "image": norms of each image, (B, 1, ...); "batch": means of the norms over the batch, as in the paper's
            code, so that images depend on their batch.
    """
    over_z, over_g = noise.flatten(1).norm(dim=1), score.flatten(1).norm(dim=1)
    if norm == "batch":
        return 2 * shrink * (snr * over_z.mean() / over_g.mean()) ** 2
    return 2 * shrink * (snr * over_z / over_g).view(-1, *[1] * (score.dim() - 1)) ** 2


def _columns(
    predictor: str, schedule: Schedule, times: Any, *, variant: str, denoise: bool, ode: bool = False
) -> dict[str, Any]:
    """Columns of mean = a x + b E[x_0|x_t] + c eps, of std, and a^2 and sigma_t for correctors."""
    xp: Any = torch if isinstance(times, Tensor) else np
    t, s = times[:-1], times[1:]
    ends, sigma = s <= schedule.clean, schedule.sigma(t)
    share = 0.5 if ode else 1.0
    zero = 0.0 * t
    if variant == "released":
        if not isinstance(schedule, (VE, VP)):
            mend = f"exists for the schedules ve, vp and subvp, this is {type(schedule).__name__}; use variant=paper"
            raise InputError("variant", variant, mend)
        if isinstance(times, Tensor):
            raise InputError("variant", variant, "takes one list of times for the whole batch; use variant=paper")
        ratio, variance = released_table(schedule, t, len(t))
        h = zero - schedule.t_max / len(t)
    else:
        ratio, variance = discretised(schedule, s, t)
        h = xp.where(ends, zero, s - t)
    a, b, c, std = 2 - ratio, zero, -share * variance / sigma, xp.sqrt(variance)
    if ode and denoise:
        # Half the score would leave half of the last noise.
        a, b, c = xp.where(ends, zero, a), xp.where(ends, zero + 1, zero), xp.where(ends, zero, c)
    if predictor == "euler-maruyama":
        need_signal(schedule, t, "Euler-Maruyama")
        f, g2 = schedule.drift(t)
        a, c = 1 + f * h, g2 * h / sigma
        jumps = ends & (variant == "paper")
        # Euler has no step to the clean end of a schedule whose time does not lead there: it jumps to E[x_0|x_t].
        a, b, c = xp.where(jumps, zero, a), xp.where(jumps, zero + 1, zero), xp.where(jumps, zero, c)
        std = xp.where(jumps, std, xp.sqrt(xp.abs(g2 * h)))
    elif predictor == "ancestral":
        c1, c2, small, large = posterior_step(schedule, t, s)
        explodes = bool((schedule.alpha(t) == 1).all())
        a, b, c, std = c2, c1, zero, xp.sqrt(small if explodes else large)
        if variant == "released":
            # mean = (x + beta score)/sqrt(1 - beta); on VE the same with the table's neighbour.
            below = xp.sqrt(xp.clip(sigma**2 - variance, 0, None))
            a, b, c = 1 / ratio, zero, -variance / (ratio * sigma)
            std = xp.sqrt(variance) * (below / sigma if explodes else 1.0)
    elif predictor == "none":
        # Only correctors move the image; the run ends with one denoising step.
        a, b, c, std = xp.where(ends, zero, zero + 1), xp.where(ends, zero + 1, zero), zero, zero
    noisy = xp.where(ends, 0.0, 1.0) if denoise else zero + 1
    return {"a": a, "b": b, "c": c, "std": zero if ode else std * noisy, "shrink": ratio * ratio, "sigma": sigma}


def _check(thing: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise unknown_name(thing, value, known)
    return value


class _Predicting(Sampler):
    """What all have: a run of one predictor; the noise of step i is draw (i + 1, 0)."""

    per_image = True
    stochastic = True
    predictor: str
    ode: bool = False

    def __init__(
        self,
        *,
        denoise: bool = True,
        variant: str = "paper",
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        self.denoise, self.variant = denoise, _check("variant", variant, VARIANTS)

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        how = {"denoise": self.denoise, "ode": self.ode}
        return Rows(times, **_columns(self.predictor, schedule, times, variant=self.variant, **how))

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x = state.x
        ahead = denoiser(x, row.t).combine(spread(row.a, x), spread(row.b, x), spread(row.c, x))
        if isinstance(row.std, Tensor) or row.std:
            assert state.noise is not None
            ahead = ahead + state.noise.normal(row.i + 1) * spread(row.std, x)
        return state._replace(x=ahead)


@recorded
class EulerMaruyama(_Predicting):
    """Euler-Maruyama on the reverse SDE, in the schedule's own time.

    Args:
        denoise: end without noise, with the mean of the last step.
        variant: "paper" or "released"; see the module.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.
    """

    predictor = "euler-maruyama"


@recorded
class ReverseDiffusion(_Predicting):
    """Reverse diffusion: the forward step with its drift turned round; `ode` gives the ODE's, without noise.

    Args:
        ode: half the score and no noise, the probability-flow form.
        denoise: end without noise, with the mean of the last step; with `ode`, end with E[x_0|x_t].
        variant: "paper" or "released"; see the module.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.
    """

    predictor = "reverse-diffusion"

    def __init__(
        self,
        *,
        ode: bool = False,
        denoise: bool = True,
        variant: str = "paper",
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(denoise=denoise, variant=variant, steps=steps, nfe=nfe, grid=grid)
        self.ode = ode
        if ode:
            self.order, self.stochastic = 1, False


@recorded
class PC(_Predicting):
    """Predictor-corrector: at every level some Langevin steps, then a step of the predictor.

    Args:
        predictor: "reverse-diffusion", "euler-maruyama", "ancestral", or "none" for annealed Langevin dynamics alone.
        corrector: "langevin", whose step follows the norms of noise and score, or "annealed", where it follows sigma.
        corrector_steps: Langevin steps a level, 0 for the predictor alone.
        snr: r; 0.16 on CIFAR-10, 0.17 on CelebA, 0.075 on LSUN and CelebA-HQ-256, 0.15 on FFHQ-1024.
        norm: "image", or "batch" for the released code's means over the batch, see :func:`langevin_step`.
        denoise: end without noise, with the mean of the last step.
        variant: "paper" or "released"; see the module.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`; a level costs corrector_steps + 1.

    Raises:
        InputError: a name is misspelt, or a number out of range.
    """

    def __init__(
        self,
        *,
        predictor: str = "reverse-diffusion",
        corrector: str = "langevin",
        corrector_steps: int = 1,
        snr: float = 0.16,
        norm: str = "image",
        denoise: bool = True,
        variant: str = "paper",
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(denoise=denoise, variant=variant, steps=steps, nfe=nfe, grid=grid)
        self.predictor = _check("predictor", predictor, PREDICTORS)
        self.corrector, self.norm = _check("corrector", corrector, CORRECTORS), _check("norm", norm, NORMS)
        least = 1 if predictor == "none" else 0
        if not isinstance(corrector_steps, int) or corrector_steps < least:
            raise InputError("corrector_steps", corrector_steps, f"must be a whole number, {least} or more")
        if not 0 < snr < float("inf"):
            raise InputError("snr", snr, "must be positive; 0.16 is the paper's on CIFAR-10")
        self.corrector_steps, self.snr = corrector_steps, snr

    def cost(self, steps: int) -> int:
        if self.predictor == "none":
            return steps * self.corrector_steps + 1
        return steps * (self.corrector_steps + 1)

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        columns = _columns(self.predictor, schedule, times, variant=self.variant, denoise=self.denoise)
        moves = np.array([self.predictor != "none"] * (len(times) - 1))
        moves[-1] |= bool(np.any(np.asarray(times[-1]) <= schedule.clean)) if len(times) else False
        return Rows(times, **columns, moves=moves)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        assert state.noise is not None
        x = state.x
        for n in range(self.corrector_steps):
            score, z = denoiser(x, row.t).score, state.noise.normal(row.i + 1, n + 1)
            shrink = spread(row.shrink, x)
            if self.corrector == "annealed":
                size = 2 * shrink * (self.snr * spread(row.sigma, x)) ** 2
                root = size.mul(2).sqrt() if isinstance(size, Tensor) else (2 * size) ** 0.5
            else:
                size = langevin_step(score, z, self.snr, shrink, norm=self.norm)
                root = (2 * size).sqrt()
            x = x + size * score + root * z
        if not row.moves:
            return state._replace(x=x)
        return super().step(denoiser, state._replace(x=x), row)
