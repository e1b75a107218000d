"""Latent diffusion: a denoiser that works on an autoencoder's scaled latents.

z = scale * latent, scale = 1/std(latent) measured on data; images are decode(z/scale). Clean latents have no range, so
E[z_0|z_t] must not be clipped.

Reference: Rombach et al. 2022 (arXiv 2112.10752), section 3 and appendix G.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError
from scoreline.core.schedule import Time
from scoreline.nn.autoencoder import KLAutoencoder

__all__ = ["Latent", "latent_scale"]


@torch.no_grad()
def latent_scale(autoencoder: KLAutoencoder, images: Tensor) -> float:
    """1/std of the posterior means of some images, (B, C, H, W) in [-1, 1], over all their entries."""
    return 1.0 / float(autoencoder.encode(images)[0].std())


@recorded
class Latent(View):
    """A denoiser of scaled latents together with the autoencoder that turns them into images.

    Args:
        denoiser: a model whose shape is that of the latents.
        autoencoder: encodes images to (mean, logvar) and decodes latents.
        scale: factor on latents before diffusion; 0.18215 for Stable Diffusion's f8 autoencoder.

    Raises:
        InputError: the scale is not positive, or the shapes do not fit.
    """

    def __init__(self, denoiser: Denoiser, autoencoder: KLAutoencoder, *, scale: float) -> None:
        super().__init__(denoiser)
        if not scale > 0:
            raise InputError("scale", scale, "must be positive; measure it with latent_scale")
        if tuple(denoiser.shape) != autoencoder.latent_shape:
            raise InputError("latent shape", tuple(denoiser.shape), f"the autoencoder's is {autoencoder.latent_shape}")
        self.autoencoder, self.scale = autoencoder, scale

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        return self.inner(x, t, cond)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Scaled posterior means of images (B, C, H, W)."""
        return self.autoencoder.encode(images)[0] * self.scale

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        return self.autoencoder.decode(x / self.scale)
