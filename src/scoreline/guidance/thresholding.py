"""Denoisers whose E[x_0|x_t] is kept in range: clipping and dynamic thresholding.

The noise estimate is made anew from the thresholded mean, so that samplers that use it stay consistent.

Reference: Ho et al. 2020 (clipping); Saharia et al. 2022 (dynamic thresholding).
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError
from scoreline.core.schedule import Time, spread
from scoreline.diffusion.latent import Latent

__all__ = ["Thresholded", "dynamic_threshold"]


def dynamic_threshold(mean: Tensor, percentile: float) -> Tensor:
    """Clip each image to its own `percentile` of |x_0|, at least 1, and divide by it.

    Args:
        mean: (B, ...) predicted clean images.
        percentile: in (0, 1]; 0.995 in the paper.
    """
    limit = torch.quantile(mean.flatten(1).abs().float(), percentile, dim=1).clamp_min(1).to(mean)
    limit = limit.view(-1, *[1] * (mean.dim() - 1))
    return mean.clamp(-limit, limit) / limit


class Thresholded(View):
    """A denoiser of pixels whose clean image stays in [-limit, limit].

    Args:
        inner: the model; not one of latents, which have no range.
        limit: the range.
        percentile: use dynamic thresholding with this percentile instead of clipping.

    Raises:
        InputError: a setting is out of range, or the model is one of latents.
    """

    def __init__(self, inner: Denoiser, *, limit: float = 1.0, percentile: float | None = None) -> None:
        super().__init__(inner)
        if percentile is not None and not 0 < percentile <= 1:
            raise InputError("percentile", percentile, "must lie in (0, 1]")
        if not limit > 0:
            raise InputError("limit", limit, "must be positive")
        if any(isinstance(module, Latent) for module in inner.modules()):
            raise InputError("model", type(inner).__name__, "latents have no range; threshold models of pixels only")
        self.limit, self.percentile = limit, percentile

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        post = self.inner(x, t, cond)
        if self.percentile is None:
            mean = post.mean.clamp(-self.limit, self.limit)
        else:
            mean = dynamic_threshold(post.mean / self.limit, self.percentile) * self.limit
        alpha, sigma = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        kept = Posterior.of_mean(x, mean, alpha, sigma, mix=post.mix)
        kept.taps = post.taps
        return kept
