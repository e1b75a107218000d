"""Distances between a student's answer and its target, one number an image.

    squared        |a - b|^2 / d
    pseudo-Huber   sqrt(|a - b|^2 + c^2) - c, the norm over ALL d entries of an image
    element-wise   mean of sqrt((a - b)^2 + c^2) - c over the entries

Reference: Song & Dhariwal 2024 (iCT), section 3.3; Lee et al. 2024 (2-rectified flow++); Bai & Xu 2024 for the
element-wise form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from scoreline.core.errors import InputError, unknown_name

__all__ = ["DISTANCES", "Distance", "distance", "elementwise_huber", "huber_constant", "pseudo_huber", "squared"]
__all__ += ["lpips_size"]

Distance = Callable[[Tensor, Tensor], Tensor]
DISTANCES = ("squared", "pseudo-huber", "elementwise-huber", "lpips-vgg", "lpips-alex")


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each image, (B,).

    Args:
        a, b: (B, ...).
    """
    return (a - b).square().flatten(1).mean(1)


def huber_constant(shape: Sequence[int], rule: str = "sqrt") -> float:
    """c of the pseudo-Huber distance: 0.00054 sqrt(d), or 0.00054 d ("linear", the slip in released code of rfpp).

    Args:
        shape: of one image; d is its number of entries.
        rule: "sqrt" or "linear".

    >>> round(huber_constant((3, 32, 32)), 5), round(huber_constant((3, 32, 32), "linear"), 3)
    (0.02993, 1.659)
    """
    d = math.prod(shape)
    if rule not in ("sqrt", "linear"):
        raise unknown_name("rule", rule, ("sqrt", "linear"))
    return 0.00054 * (math.sqrt(d) if rule == "sqrt" else d)


def pseudo_huber(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c of each image, (B,), written without cancellation.

    Args:
        a, b: (B, ...).
        c: transition from squared to plain norm, > 0; None takes 0.00054 sqrt(d).

    Raises:
        InputError: c is not positive.
    """
    c = huber_constant(a.shape[1:]) if c is None else c
    if not c > 0:
        raise InputError("c", c, "must be positive; a squared distance is the limit of large c")
    u = (a - b).square().flatten(1).sum(1)
    return u / ((u + c * c).sqrt() + c)


def elementwise_huber(a: Tensor, b: Tensor, c: float = 1e-3) -> Tensor:
    """Mean over the entries of sqrt((a - b)^2 + c^2) - c, (B,).

    Args:
        a, b: (B, ...).
        c: transition from squared to absolute difference, > 0.

    Raises:
        InputError: c is not positive.
    """
    if not c > 0:
        raise InputError("c", c, "must be positive; a squared distance is the limit of large c")
    u = (a - b).square()
    return (u / ((u + c * c).sqrt() + c)).flatten(1).mean(1)


def distance(name: str, *, c: float | None = None, size: int | None = None) -> Distance:
    """A distance by name, for a method's setting.

    Args:
        name: one of `DISTANCES`.
        c: of the Huber forms; None takes the form's own.
        size: LPIPS only: images are resized to this many pixels first; None leaves them.

    Raises:
        InputError: the name is unknown, or LPIPS' weights are not here (the file and its place are named).
    """
    if name == "squared":
        return squared
    if name == "pseudo-huber":
        return lambda a, b: pseudo_huber(a, b, c)
    if name == "elementwise-huber":
        return lambda a, b: elementwise_huber(a, b, 1e-3 if c is None else c)
    if name not in DISTANCES:
        raise unknown_name("distance", name, DISTANCES)
    return _lpips(name.removeprefix("lpips-"), size)


def lpips_size(shape: Sequence[int]) -> int | None:
    """Pixels at which LPIPS sees images of a shape: 224 below 256, as the codes of consistency models; else their own.

    >>> lpips_size((3, 32, 32)), lpips_size((3, 256, 256))
    (224, None)
    """
    return 224 if shape[-1] < 256 else None


def _lpips(net: str, size: int | None) -> Distance:
    from torch.nn.functional import interpolate

    from scoreline.nn.lpips import LPIPS

    model = LPIPS.load(net)

    def apart(a: Tensor, b: Tensor) -> Tensor:
        pair = [x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x for x in (a, b)]
        if size is not None:
            pair = [interpolate(x, size=(size, size), mode="bilinear", align_corners=False) for x in pair]
        return model.to(a.device)(*pair)

    return apart
