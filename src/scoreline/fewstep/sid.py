"""SiD: score identity distillation, without data, in one step.

    l = sum_{C,H,W} (D_r - D_f) [(D_r - x) - alpha (D_r - D_f)] / omega,   omega = max(mean_{C,H,W}|x - D_r|, 1e-5)
With alpha = 1 it is (D_r - D_f)(D_f - x)/omega. Gradients flow through x and through x_t into both networks; omega has
none. With an exact critic the expectation without omega is (1 - alpha) E|D_r - D_f|^2: zero at alpha = 1, negative at
the usual 1.2, so the value of this loss says nothing of the images.

Reference: Zhou et al. 2024 (Score identity Distillation, arXiv 2404.04057), and its released code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.schedule import spread
from scoreline.fewstep.matching import Matched
from scoreline.fewstep.mean_map import MeanMap
from scoreline.fewstep.through import SIGMA_INIT, TOP, Through

__all__ = ["FLOOR", "SiD", "sid_loss"]

FLOOR = 1e-5


def sid_loss(x: Tensor, real: Tensor, fake: Tensor, alpha: float = 1.2, floor: float | None = FLOOR) -> Tensor:
    """sum (D_r - D_f)[(D_r - x) - alpha (D_r - D_f)]/omega of each image, (B,): a sum over its entries, not a mean.

    Args:
        x: the generator's images, (B, ...), with their graph.
        real, fake: D_r and D_f at the same noised x, with their graphs through it.
        alpha: share of the squared gap that is taken away; 1 or 1.2 in the paper.
        floor: least value of omega = mean |x - D_r|, which takes no gradient; None leaves omega out.

    Raises:
        InputError: the floor is not positive.

    Reference: Zhou et al. 2024, in the form of the released code.

    >>> x, real, fake = torch.tensor([[0.0]]), torch.tensor([[2.0]]), torch.tensor([[1.0]])
    >>> float(sid_loss(x, real, fake, alpha=1.0, floor=None)), float(sid_loss(x, real, fake, alpha=1.0))
    (1.0, 0.5)
    """
    if floor is not None and not floor > 0:
        raise InputError("floor", floor, "must be positive; None leaves the normaliser out")
    gap = real - fake
    # At alpha = 1 the two terms with D_r cancel; merged beforehand they cannot cancel badly.
    each = gap * ((fake - x) + (1 - alpha) * gap)
    if floor is not None:
        each = each / spread((x - real).detach().abs().flatten(1).mean(1).clamp_min(floor), each)
    return each.flatten(1).sum(1)


class SiD(Through):
    """Score identity distillation.

    Args:
        student, teacher, critic, sigma_init, top, ratio, guidance, classes, lr, critic_lr, optimizer, settings, clip,
            clip_value: see :class:`scoreline.fewstep.through.Through`.
        alpha, floor: see :func:`sid_loss`.
        scale: factor on the generator's loss, 100 in the paper; with Adam it matters to clipping only.

    Raises:
        InputError: a setting is out of range, or student, teacher and critic do not fit.
    """

    def __init__(
        self,
        student: MeanMap,
        teacher: Denoiser,
        critic: Denoiser | None = None,
        *,
        alpha: float = 1.2,
        floor: float | None = FLOOR,
        scale: float = 100.0,
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
        if floor is not None and not floor > 0:
            raise InputError("floor", floor, "must be positive; None leaves the normaliser out")
        if not scale > 0:
            raise InputError("scale", scale, "must be positive")
        super().__init__(
            student, teacher, critic, sigma_init=sigma_init, top=top, ratio=ratio, guidance=guidance, classes=classes,
            lr=lr, critic_lr=critic_lr, optimizer=optimizer, settings=settings, clip=clip, clip_value=clip_value,
        )  # fmt: skip
        self.alpha, self.floor, self.scale = alpha, floor, scale

    def term(self, m: Matched) -> Tensor:
        return self.scale * sid_loss(m.x, m.real, m.fake, self.alpha, self.floor).mean()
