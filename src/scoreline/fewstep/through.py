"""The turn of the data-free methods whose gradients pass through teacher and critic: SiD, SIM.

    critic     first, on images of its own noise:  (s^2 + sd^2)/(s sd)^2 |D_f(x_t) - x|^2,  ln s ~ N(-1.2, 1.2^2)
    generator  x = D(sigma_init z, sigma_init), sigma_init = 2.5;  x_t = alpha x + sigma eps,
               s = sigma/alpha = (80^(1/7) + (1 - u)(0.002^(1/7) - 80^(1/7)))^7,  u ~ U[0, 0.8], so s <= 24.4
D_r and D_f see x_t with its graph: the noise itself carries no gradient, so all of it comes through the networks.
Memory is that of the generator and of two networks with their activations.

Reference: Zhou et al. 2024 (SiD, arXiv 2404.04057) and its released code, which SIM's family shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.noise import Draws
from scoreline.core.schedule import Schedule, Time, arithmetic
from scoreline.diffusion.levels import draw_levels
from scoreline.diffusion.preconditioned import edm_weight
from scoreline.fewstep.matching import Matching, Turn
from scoreline.fewstep.mean_map import MeanMap

__all__ = ["SIGMA_INIT", "TOP", "Through", "karras_level", "level_of", "online_score_loss"]

SIGMA_INIT, TOP = 2.5, 0.8


def karras_level(u: Time, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Time:
    """sigma = (smax^(1/rho) + (1 - u)(smin^(1/rho) - smax^(1/rho)))^rho: sigma_min at u = 0, sigma_max at u = 1.

    Args:
        u: 0 to 1, float, array or tensor; the generator's levels are those of u ~ U[0, 0.8].
        sigma_min, sigma_max, rho: of the spacing.

    >>> [round(karras_level(u), 4) for u in (0.0, 0.8, 1.0)]
    [0.002, 24.4083, 80.0]
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + (1 - u) * (low - high)) ** rho


def level_of(schedule: Schedule, sigma: Time) -> Time:
    """The time of a schedule at which sigma(t)/alpha(t) has this value, within its range, on a table the nearest entry.

    Args:
        schedule: of teacher and student.
        sigma: noise over signal, > 0, float or tensor.
    """
    t = schedule.time(-arithmetic(sigma).log(sigma))
    if isinstance(t, Tensor):
        return schedule.snap(t.clamp(schedule.t_min, schedule.t_max))
    return schedule.snap(min(max(float(t), schedule.t_min), schedule.t_max))


def online_score_loss(fake: Tensor, x: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """(sigma^2 + sd^2)/(sigma sd)^2 |D_f - x|^2 of each image, (B,): a sum over its entries.

    A critic of EDM's kind is trained on its raw answer, which has this loss (over the number of entries).

    Args:
        fake: D_f(x + sigma eps, sigma), (B, ...).
        x: the generator's images, without a graph.
        sigma: (B,).
        sigma_data: standard deviation of the data.
    """
    each = (fake - x).square().flatten(1).sum(1)
    return edm_weight(sigma, sigma_data).to(each) * each


class Through(Matching):
    """One step from sigma_init z, the critic first; a paper's class adds `term`, whose gradients pass through both.

    Args:
        student, teacher, critic, ratio, guidance, classes, lr, critic_lr, optimizer, settings, clip, clip_value: see
            :class:`scoreline.fewstep.matching.Matching`; `settings` None is Adam's betas (0, 0.999).
        sigma_init: sigma/alpha where the generator starts.
        top: largest u of the generator's levels, see :func:`karras_level`.

    Raises:
        InputError: a setting is out of range, or student, teacher and critic do not fit.
    """

    through = True

    def __init__(
        self,
        student: MeanMap,
        teacher: Denoiser,
        critic: Denoiser | None = None,
        *,
        sigma_init: float = SIGMA_INIT,
        top: float = TOP,
        ratio: int = 1,
        guidance: float | None = None,
        classes: Sequence[int] | None = None,
        lr: float | Callable[[int], float] = 1e-5,
        critic_lr: float | Callable[[int], float] = 1e-5,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        if not 0 < sigma_init < math.inf:
            raise InputError("sigma_init", sigma_init, "is the noise level at which the generator starts, 2.5 usually")
        if not 0 < top <= 1:
            raise InputError("top", top, "must lie in (0, 1]; 1 is sigma = 80")
        if settings is None and issubclass(optimizer, torch.optim.Adam | torch.optim.AdamW):
            settings = {"betas": (0.0, 0.999)}
        start = float(level_of(student.schedule, sigma_init))
        super().__init__(
            student, teacher, critic, ratio=ratio, start=start, guidance=guidance, classes=classes, lr=lr,
            critic_lr=critic_lr, optimizer=optimizer, settings=settings, clip=clip, clip_value=clip_value,
        )  # fmt: skip
        student.begin(start, scaled=True)
        self.top = top
        self.updates.reverse()

    def prepare(self, batch: Any, step: int) -> Turn:
        turn, draws = super().prepare(batch, step), batch.draws.reshaped(self.student.shape)
        with torch.no_grad():
            z = draws.normal(part=12) * self.student.prior(turn.level)
            turn.made = self.student.answer(z, turn.level, turn.cond)
        return turn

    def level(self, draws: Draws, part: int) -> Tensor:
        return level_of(self.schedule, karras_level(self.top * draws.uniform(part=part)))

    def critic_level(self, draws: Draws, part: int) -> Tensor:
        t = draw_levels("lognormal", draws.uniform(part=part), self.schedule)
        return t.clamp(self.schedule.t_min, self.schedule.t_max)
