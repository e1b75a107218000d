"""Images made from images: a model that is told a source, run over a set, and its table of scores.

psnr [dB], ssim, the Frechet distance of pixels, colour shift |mean over all pixels of (made - target)|, mean over
channels, and seconds an image. Above 32 pixels a side images are averaged to 32 x 32 for the Frechet distance, whose
name then says so (fd-pixel-32): it has too many dimensions otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.metrics.frechet import frechet_distance
from scoreline.metrics.image_quality import psnr, ssim
from scoreline.samplers.generator import Sampled

__all__ = ["colour_shift", "translate", "translation_scores"]

MOST = 32


def colour_shift(made: Tensor, target: Tensor) -> float:
    """|mean(made) - mean(target)| over images and pixels, mean over channels; images in [-1, 1].

    Args:
        made, target: (N, C, H, W).

    >>> round(colour_shift(torch.full((2, 1, 4, 4), 0.1), torch.zeros(2, 1, 4, 4)), 6)
    0.1
    """
    return float((made.double().mean((0, 2, 3)) - target.double().mean((0, 2, 3))).abs().mean())


def translation_scores(made: Tensor, target: Tensor) -> dict[str, float]:
    """PSNR, SSIM, Frechet distance of pixels and colour shift of images and their targets.

    Args:
        made, target: (N, C, H, W) in [-1, 1], pair by pair; at least 2, of 6 pixels or more a side.

    Raises:
        InputError: shapes differ, or there are fewer than two.
    """
    if made.shape != target.shape or len(made) < 2:
        raise InputError("target", tuple(target.shape), f"needs 2 or more images, of shape {tuple(made.shape)}")
    side = min(made.shape[2:])
    scores = {
        "psnr": psnr(target, made, data_range=2.0),
        "ssim": ssim(target, made, data_range=2.0, border="valid" if side >= 11 else "reflect"),
    }
    small, name = [made, target], "fd-pixel"
    if max(made.shape[2:]) > MOST:
        small, name = [F.adaptive_avg_pool2d(x, MOST) for x in small], f"fd-pixel-{MOST}"
    scores[name] = frechet_distance(small[1].flatten(1).double(), small[0].flatten(1).double())
    return {**scores, "colour shift": colour_shift(made, target)}


@torch.no_grad()
def translate(
    model: Denoiser,
    sampler: Sampler,
    sources: Callable[[range], Tensor],
    count: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    done: Callable[[range, Tensor], Any] | None = None,
) -> tuple[Tensor | None, dict[str, float]]:
    """Make an image from each source.

    Args:
        model: takes `Cond(image=...)`.
        sampler: with its steps chosen.
        sources: from positions to (B, C', H, W) in [-1, 1].
        count: how many there are; image i has noise i of the seed.
        seed: of the noise.
        batch_size: images at a time.
        device: where the model runs.
        done: called with positions and images of each batch; then nothing is kept in memory.

    Returns:
        (images on the host, or None, {"nfe", "seconds per image"}); the first batch's time is left out where there are
        several, since it warms up.
    """
    generator = Sampled(model.to(device).eval(), sampler)
    kept, spent, timed = [], 0.0, 0
    for start in range(0, count, batch_size):
        here = range(start, min(start + batch_size, count))
        cond = Cond(image=sources(here).to(device))
        begin = time.perf_counter()
        made = generator.generate(here, Noise(seed), cond).cpu()
        if start or count <= batch_size:
            spent, timed = spent + time.perf_counter() - begin, timed + len(here)
        if done is None:
            kept.append(made)
        else:
            done(here, made)
    told = {"nfe": float(generator.nfe), "seconds per image": spent / timed}
    return (torch.cat(kept) if done is None else None), told
