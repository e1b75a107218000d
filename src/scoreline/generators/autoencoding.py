"""Training of the KL-regularised autoencoder (Rombach et al. 2022, arXiv 2112.10752, section 3.1 and appendix G).

loss = distance(x, xhat) + kl_weight KL(q(z|x) || N(0, I)),   xhat = decode(z),   z = mean + exp(logvar/2) xi.

The distance is a mean over the pixels of an image, the KL a sum over its latents; both are averaged over the batch. A
weight w meant for a distance summed over C H W pixel values is therefore kl_weight = w/(C H W) here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.method import Method, Update
from scoreline.nn.autoencoder import KLAutoencoder, kl, sample

__all__ = ["DISTANCES", "KLAutoencoding", "autoencoding_loss", "reconstruction"]

DISTANCES = ("l1", "l2")


def reconstruction(x: Tensor, xhat: Tensor, *, distance: str = "l1") -> Tensor:
    """Mean over an image's values of |x - xhat| ("l1") or (x - xhat)^2 ("l2").

    Args:
        x, xhat: (B, ...) images in [-1, 1] and what was made of them.
        distance: one of `DISTANCES`.

    Returns:
        (B,) one value an image.

    Raises:
        InputError: an unknown distance.
    """
    if distance not in DISTANCES:
        raise unknown_name("distance", distance, DISTANCES)
    error = (x - xhat).flatten(1)
    return (error.abs() if distance == "l1" else error.square()).mean(1)


def autoencoding_loss(
    x: Tensor, xhat: Tensor, mean: Tensor, logvar: Tensor, *, kl_weight: float = 1e-6, distance: str = "l1"
) -> Tensor:
    """reconstruction(x, xhat) + kl_weight 1/2 sum(mean^2 + e^logvar - 1 - logvar), averaged over the batch.

    Args:
        x, xhat: (B, C, H, W) images and their reconstructions.
        mean, logvar: (B, ...) of the latents' Gaussian.
        kl_weight: weight of the KL, in nats summed over an image's latents.
        distance: one of `DISTANCES`.

    Returns:
        scalar.

    Reference:
        Rombach et al. 2022, appendix G.
    """
    return (reconstruction(x, xhat, distance=distance) + kl_weight * kl(mean, logvar)).mean()


class KLAutoencoding(Method):
    """Train a KL autoencoder.

    Args:
        autoencoder: the network; it takes the gradients.
        kl_weight: weight of the KL, summed over an image's latents, against the distance, averaged over its pixels.
        distance: "l1" or "l2".
        lr: learning rate, or a function of the step.
        optimizer, settings, clip: see :class:`scoreline.core.method.Update`.

    Raises:
        InputError: a negative weight or an unknown distance.
    """

    def __init__(
        self,
        autoencoder: KLAutoencoder,
        *,
        kl_weight: float = 1e-6,
        distance: str = "l1",
        lr: float | Callable[[int], float] = 1e-3,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= kl_weight < float("inf"):
            raise InputError("kl_weight", kl_weight, "must be a finite number, 0 or more")
        if distance not in DISTANCES:
            raise unknown_name("distance", distance, DISTANCES)
        self.autoencoder, self.kl_weight, self.distance = autoencoder, kl_weight, distance
        self.updates = [Update(autoencoder, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    def averaged(self) -> nn.Module:
        return self.autoencoder

    def loss(self, batch: Any, shared: Any, step: int) -> dict[str, Tensor]:
        x, model = batch.image, self.autoencoder
        mean, logvar = model.encode(x)
        xi = batch.draws.reshaped(model.latent_shape).normal()
        xhat = model.decode(sample(mean, logvar, xi))
        loss = autoencoding_loss(x, xhat, mean, logvar, kl_weight=self.kl_weight, distance=self.distance)
        distance = reconstruction(x.detach(), xhat.detach(), distance=self.distance).mean()
        return {"loss": loss, self.distance: distance, "kl": kl(mean.detach(), logvar.detach()).mean()}

    def result(self) -> KLAutoencoder:
        return self.autoencoder.eval()
