"""SiD: the generator's loss of score identity distillation, on clean images.

    l = sum_{C,H,W} (D_r - D_f) [(D_r - x) - alpha (D_r - D_f)] / omega,   omega = max(mean_{C,H,W}|x - D_r|, 1e-5)
With alpha = 1 it is (D_r - D_f)(D_f - x)/omega. Gradients flow through x and through x_t into both networks; omega has
none. With an exact critic the expectation without omega is (1 - alpha) E|D_r - D_f|^2: zero at alpha = 1, negative at
the usual 1.2, so the value of this loss says nothing of the images.

Reference: Zhou et al. 2024 (Score identity Distillation, arXiv 2404.04057), and its released code.
"""

from __future__ import annotations

from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.schedule import spread

__all__ = ["FLOOR", "sid_loss"]

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

    Reference: Zhou et al. 2024, eq. 23 in the released code's form.

    >>> import torch
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
