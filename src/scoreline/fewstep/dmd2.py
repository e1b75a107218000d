"""DMD2: distribution matching on two time scales, with an adversary, and several steps trained on their own inputs.

    g = (D_f - D_r)/mean_{C,H,W}|x - D_r|,  L = 0.5 mean |x - stopgrad(x - g)|^2 + lambda_g mean softplus(-d(x_s, s, c))
    the critic and its heads learn on every turn, the student on every fifth;  no pairs, no regression
    heads sit on the critic's bottleneck, which the discriminator's loss trains too
    N steps at the entries 999, 999 - 1000/N, ... of the table, each on noised images of the steps before it

The paper's weight keeps a factor alpha_t that its code leaves out; `keep_alpha` puts it back (1 on EDM's schedule).
Guidance acts on the teacher alone; D_r then holds a second term, which `guidance_part` gives apart.

Reference: Yin et al. 2024 (Improved Distribution Matching Distillation, arXiv 2405.14867), and its released code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.denoiser import Denoiser
from scoreline.fewstep.matching import Matched, Matching, matching_direction, matching_surrogate
from scoreline.fewstep.mean_map import MeanMap

__all__ = ["DMD2", "critic_lag", "guidance_part"]


def critic_lag(turns: int, *, a: float = 0.2, k: float = 0.1, ratio: int = 1) -> list[float]:
    """The student's error under a critic that lags behind: why two time scales help, in one dimension.

    Each turn moves the error by what the critic says, e <- e - a c, then the critic `ratio` times towards it,
    c <- c + k (e - c); both start at 1. The error falls like (1 - k)^(ratio/2) a turn while it swings; a critic that is
    updated more often lets it swing less.

    Args:
        turns: updates of the student.
        a: its rate.
        k: the critic's rate, 0 to 1.
        ratio: updates of the critic a turn.

    Returns:
        the errors after 0, 1, ..., `turns` turns.

    >>> [round(min(critic_lag(50, ratio=r)), 2) for r in (1, 5)]
    [-0.65, -0.02]
    """
    error = critic = 1.0
    errors = [error]
    for _ in range(turns):
        error -= a * critic
        for _ in range(ratio):
            critic += k * (error - critic)
        errors.append(error)
    return errors


def guidance_part(given: Tensor, nothing: Tensor, guidance: float) -> Tensor:
    """What guidance adds to the teacher's answer, (s - 1) (D(x_t, c) - D(x_t)): D_r = D(x_t, c) + this.

    In D_f - D_r it is a term of its own beside the matching term D_f - D(x_t, c), which may be weighted apart.

    Args:
        given, nothing: the teacher's answers with and without the condition, (B, *shape).
        guidance: s; 1 adds nothing.
    """
    return (guidance - 1) * (given - nothing)


class DMD2(Matching):
    """Improved distribution matching distillation.

    Args:
        student, teacher, critic, ratio, critic_rests, start, student_steps, simulate, levels, guidance, classes,
            matching_weight, gan_weight, critic_gan_weight, heads_on, taps, discriminator, lr, critic_lr, optimizer,
            settings, clip: see :class:`scoreline.fewstep.matching.Matching`.
        keep_alpha: multiply the direction by alpha_t, as the paper's weight says and its code does not.
    """

    def __init__(
        self,
        student: MeanMap,
        teacher: Denoiser,
        critic: Denoiser | None = None,
        *,
        ratio: int = 5,
        critic_rests: bool = False,
        start: float | None = None,
        student_steps: int = 1,
        simulate: bool = True,
        levels: Sequence[float] = (0.02, 0.98),
        keep_alpha: bool = False,
        guidance: float | None = None,
        classes: Sequence[int] | None = None,
        matching_weight: float = 1.0,
        gan_weight: float = 3e-3,
        critic_gan_weight: float = 1e-2,
        heads_on: str = "critic",
        taps: Sequence[str] | None = None,
        discriminator: nn.Module | None = None,
        lr: float | Callable[[int], float] = 2e-6,
        critic_lr: float | Callable[[int], float] = 2e-6,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        settings: dict[str, Any] | None = None,
        clip: float | None = 10.0,
    ) -> None:
        super().__init__(
            student, teacher, critic, ratio=ratio, critic_rests=critic_rests, start=start, student_steps=student_steps,
            simulate=simulate, levels=levels, guidance=guidance, classes=classes, matching_weight=matching_weight,
            gan_weight=gan_weight, critic_gan_weight=critic_gan_weight, heads_on=heads_on, taps=taps,
            discriminator=discriminator, lr=lr, critic_lr=critic_lr, optimizer=optimizer, settings=settings, clip=clip,
        )  # fmt: skip
        self.keep_alpha = keep_alpha

    def term(self, m: Matched) -> Tensor:
        weight = self.schedule.alpha(m.t) if self.keep_alpha else None
        return matching_surrogate(m.x, matching_direction(m.x, m.real, m.fake, weight))
