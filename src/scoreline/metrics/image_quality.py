"""Distances between paired images, and the diversity of a set: PSNR, SSIM, mean pairwise LPIPS.

PSNR = 10 log10(range^2 / MSE)
SSIM = mean over positions and channels of
       (2 mu_x mu_y + C1) (2 s_xy + C2) / ((mu_x^2 + mu_y^2 + C1) (s_x^2 + s_y^2 + C2))
with moments under an 11 x 11 Gaussian window of sigma 1.5, C1 = (.01 range)^2, C2 = (.03 range)^2
(Wang et al. 2004, IEEE Transactions on Image Processing 13).

The range is never guessed: 2 for images in [-1, 1], 1 for [0, 1], 255 for levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name

__all__ = ["pairwise_diversity", "psnr", "psnr_of_images", "ssim", "ssim_of_images"]

_WINDOW = 11


def psnr_of_images(target: Tensor, prediction: Tensor, *, data_range: float) -> Tensor:
    """Peak signal-to-noise ratio of every pair of images, in decibels.

    PSNR_i = 10 log10(range^2 / MSE_i)

    Args:
        target, prediction: (N, C, H, W), alike, any floating dtype.
        data_range: largest minus smallest value that an image may take: 2 for [-1, 1].

    Returns:
        (N,) float64; infinite where both images are equal.

    Raises:
        InputError: shapes that differ, values that are not finite or span more than the range.

    Reference: Wang et al. 2004.
    """
    x, y = _check(target, prediction, data_range)
    return 10 * torch.log10(data_range**2 / (x - y).square().flatten(1).mean(dim=1))


def psnr(
    target: Tensor, prediction: Tensor, *, data_range: float, average: Literal["images", "batch"] = "images"
) -> float:
    """Peak signal-to-noise ratio of a set of pairs, in decibels.

    Args:
        target, prediction, data_range: as for :func:`psnr_of_images`.
        average: "images", the mean of every image's PSNR, or "batch", the PSNR of one MSE over all (torchmetrics'
            default). The second is never larger (Jensen), and much smaller where some images fail.

    Returns:
        The ratio; infinite where images are equal.

    Raises:
        InputError: as there, or an unknown average.

    >>> x = torch.zeros(2, 1, 1, 2)
    >>> y = torch.tensor([0.1, 0.01]).view(2, 1, 1, 1).expand(2, 1, 1, 2)
    >>> round(psnr(x, y, data_range=1), 4), round(psnr(x, y, data_range=1, average="batch"), 4)
    (30.0, 22.9671)
    """
    if average not in ("images", "batch"):
        raise unknown_name("average", average, ["images", "batch"])
    if average == "images":
        return float(psnr_of_images(target, prediction, data_range=data_range).mean())
    x, y = _check(target, prediction, data_range)
    return float(10 * torch.log10(data_range**2 / (x - y).square().mean()))


def ssim_of_images(
    target: Tensor, prediction: Tensor, *, data_range: float, border: Literal["valid", "reflect"] = "valid"
) -> Tensor:
    """Structural similarity of every pair of images: the formula above, channel by channel, then averaged.

    Args:
        target, prediction: (N, C, H, W), alike, any floating dtype; at least 11 pixels a side ("reflect": 6).
        data_range: largest minus smallest value that an image may take: 2 for [-1, 1].
        border: "valid" averages the positions whose window lies inside the image (the authors' own code);
            "reflect" mirrors the image at its borders and averages all positions (torchmetrics).

    Returns:
        (N,) float64, 1 for equal images, from -1.

    Raises:
        InputError: shapes that differ, images too small for the window, values that are not finite or span more than
            the range, an unknown border.

    Reference: Wang et al. 2004.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if border not in ("valid", "reflect"):
        raise unknown_name("border", border, ["valid", "reflect"])
    x, y = _check(target, prediction, data_range)
    least = _WINDOW if border == "valid" else _WINDOW // 2 + 1
    if min(x.shape[2:]) < least:
        raise InputError("image size", tuple(x.shape[2:]), f"border={border!r} needs at least {least} pixels a side")
    _, positions = structural_similarity_index_measure(
        y, x, sigma=1.5, data_range=float(data_range), k1=0.01, k2=0.03, reduction="none", return_full_image=True
    )
    if border == "valid":  # what mirroring adds reaches half a window into the image
        half = _WINDOW // 2
        positions = positions[..., half:-half, half:-half]
    return positions.flatten(1).mean(dim=1)


def ssim(
    target: Tensor, prediction: Tensor, *, data_range: float, border: Literal["valid", "reflect"] = "valid"
) -> float:
    """Mean structural similarity of a set of pairs; arguments and errors as for :func:`ssim_of_images`."""
    return float(ssim_of_images(target, prediction, data_range=data_range, border=border).mean())


def pairwise_diversity(
    images: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    pairs: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Mean distance over pairs of different images of one set: diversity, with LPIPS as the distance.

    D = mean over i < j of distance(x_i, x_j)

    Args:
        images: (N, C, H, W), N >= 2.
        distance: of two equally long batches, image by image: (B, C, H, W), (B, C, H, W) -> (B,). Say which network
            it uses (AlexNet or VGG): their numbers differ.
        pairs: how many different pairs to draw; None for all N (N - 1) / 2.
        batch_size: pairs a call of `distance`.
        seed: of the draw.

    Returns:
        The mean, in units of the distance.

    Raises:
        InputError: fewer than two images, more pairs than there are, a distance of another shape.

    Reference: Zhang et al. 2018, 1801.03924; as a measure of diversity: Zhu et al. 2017, 1711.11586.
    """
    n = len(images)
    if n < 2:
        raise InputError("images", n, "a pair needs at least two")
    total = n * (n - 1) // 2
    if pairs is not None and not 1 <= pairs <= total:
        raise InputError("pairs", pairs, f"{n} images have 1 to {total} pairs")
    if batch_size < 1:
        raise InputError("batch_size", batch_size, "must be 1 or more")
    if pairs is None:
        table = torch.tensor(list(itertools.combinations(range(n), 2)))
    else:
        table = _pair(torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:pairs])
    found = []
    for part in table.to(images.device).split(batch_size):
        values = distance(images[part[:, 0]], images[part[:, 1]])
        if values.numel() != len(part):
            raise InputError("distance", tuple(values.shape), f"one number a pair is expected, ({len(part)},)")
        found.append(values.detach().reshape(-1).to(torch.float64))
    return float(torch.cat(found).mean())


def _pair(number: Tensor) -> Tensor:
    """The (K, 2) pairs i < j with these numbers j (j - 1) / 2 + i."""
    j = ((1 + (1 + 8 * number.to(torch.float64)).sqrt()) / 2).floor().long()
    j = torch.where(j * (j - 1) // 2 > number, j - 1, j)  # a root that was rounded up
    return torch.stack([number - j * (j - 1) // 2, j], dim=1)


def _check(target: Tensor, prediction: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    if not 0 < data_range < float("inf"):
        raise InputError("data_range", data_range, "is a positive number: 2 for images in [-1, 1]")
    if target.ndim != 4 or 0 in target.shape or target.shape != prediction.shape:
        shapes = tuple(target.shape), tuple(prediction.shape)
        raise InputError("image shapes", shapes, "target and prediction are alike, (N, C, H, W)")
    for name, images in (("target", target), ("prediction", prediction)):
        if not images.is_floating_point():
            raise InputError(name, str(images.dtype), "images are floating point numbers")
        low, high = (float(v) for v in torch.aminmax(images.detach()))
        if not high - low <= data_range * 1.001:  # NaN compares false, and so is refused
            raise InputError(name, (low, high), f"values span more than data_range = {data_range}, or are not finite")
    return target.detach().to(torch.float64), prediction.detach().to(torch.float64)
