"""Pixels to tensors and back, antialiased resize, centre crop, flip: pure functions on float32 NCHW in [-1, 1].

The resize is the antialiased bicubic one whose importance for Frechet distances Parmar, Zhang and Zhu show in "On
Aliased Resizing and Surprising Subtleties in GAN Evaluation" (CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise, derive

__all__ = ["from_uint8", "to_uint8", "resize", "centre_crop", "fit_square", "scaled_sides", "flips", "random_flip"]


def from_uint8(pixels: Tensor) -> Tensor:
    """Bytes to float: x = u / 127.5 - 1.

    Args:
        pixels: uint8, any shape.

    Returns:
        float32 in [-1, 1], same shape.

    >>> from_uint8(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    if pixels.dtype != torch.uint8:
        raise InputError("pixel dtype", str(pixels.dtype), "from_uint8 takes torch.uint8")
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(x: Tensor, *, rounding: Literal["nearest", "truncate"] = "nearest") -> Tensor:
    """Float to bytes: u = floor(clamp((x + 1) 127.5 + 1/2, 0, 255)), the exact inverse of :func:`from_uint8`.

    Args:
        x: any shape; what lies outside [-1, 1] is clamped.
        rounding: "nearest", or "truncate" for u = floor(clamp((x + 1) 127.5, 0, 255)), the habit of many released
            samplers, which darkens by half a level on average and inverts `from_uint8` only up to one level.

    Returns:
        uint8, same shape.

    Raises:
        InputError: `x` is not floating point, or holds NaN.
    """
    if rounding not in ("nearest", "truncate"):
        raise InputError("rounding", rounding, "use 'nearest' or 'truncate'")
    if not x.is_floating_point():
        raise InputError("image dtype", str(x.dtype), "to_uint8 takes floats in [-1, 1]")
    # 127.5 (x + 1) needs 9 bits before the point: half precision would lose levels.
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    if bool(wide.isnan().any()):
        raise InputError("image", None, "holds NaN, which has no pixel value")
    shift = 0.5 if rounding == "nearest" else 0.0
    return ((wide + 1.0) * 127.5 + shift).clamp_(0.0, 255.0).to(torch.uint8)


def scaled_sides(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) after the shorter side became `size` and the ratio was kept, never below `size`.

    >>> scaled_sides(100, 200, 32)
    (32, 64)
    """
    short = min(height, width)
    return max(size, round(height * size / short)), max(size, round(width * size / short))


def resize(
    x: Tensor, height: int, width: int, *, filter: Literal["bicubic", "bilinear"] = "bicubic", clamp: bool = True
) -> Tensor:
    """Antialiased resize: when shrinking, the filter widens with the factor, as in Pillow.

    Args:
        x: (B, C, H, W) float in [-1, 1].
        height: new height in pixels.
        width: new width in pixels.
        filter: "bicubic" (a = -0.5) or "bilinear"; both agree with Pillow's on float images.
        clamp: bicubic overshoots at edges; True cuts the result back to [-1, 1].

    Returns:
        (B, C, height, width), dtype of `x`; `x` itself when it has that size already.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError("images", f"{tuple(x.shape)} {x.dtype}", "resize takes (B, C, H, W) floats")
    if filter not in ("bicubic", "bilinear"):
        raise InputError("filter", filter, "use 'bicubic' or 'bilinear'")
    if height < 1 or width < 1:
        raise InputError("size", (height, width), "sides are 1 pixel or more")
    if x.shape[-2:] == (height, width):
        return x
    out = interpolate(x, (height, width), mode=filter, align_corners=False, antialias=True)
    return out.clamp_(-1.0, 1.0) if clamp else out


def centre_crop(x: Tensor, height: int, width: int) -> Tensor:
    """The middle (height, width) part of (..., H, W); with an odd remainder the extra pixel is cut at the far side.

    Raises:
        InputError: the image is smaller than the part.
    """
    if height > x.shape[-2] or width > x.shape[-1]:
        raise InputError("crop", (height, width), f"does not fit into images of {tuple(x.shape[-2:])}; resize first")
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def fit_square(x: Tensor, size: int) -> Tensor:
    """Resize the shorter side of (B, C, H, W) to `size`, then cut the middle square."""
    return centre_crop(resize(x, *scaled_sides(x.shape[-2], x.shape[-1], size)), size, size)


def flips(index: Tensor | np.ndarray | Sequence[int], *, seed: int, epoch: int) -> Tensor:
    """Which images are mirrored, (B,) bool, each with probability 1/2: a pure function of (seed, epoch, index)."""
    return Noise(derive(seed, "flip")).at(index, ()).uniform(step=epoch) < 0.5


def random_flip(x: Tensor, index: Tensor | np.ndarray | Sequence[int], *, seed: int, epoch: int) -> Tensor:
    """Mirror half of the images left to right, the choice a pure function of (seed, epoch, index).

    Args:
        x: (B, ..., W); images, or masks that go with them.
        index: (B,) original indices.
        seed: of the run.
        epoch: every epoch chooses anew.
    """
    chosen = flips(index, seed=seed, epoch=epoch).to(x.device)
    if len(chosen) != len(x):
        raise InputError("index", len(chosen), f"needs one entry for each of {len(x)} images")
    return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
