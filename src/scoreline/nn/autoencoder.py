"""Autoencoder with a KL-regularised latent (Rombach et al. 2022, arXiv 2112.10752, appendix G): the network only.

The encoder gives mean and log variance of a Gaussian over latents, z = mean + exp(logvar / 2) xi. Losses and the
latent's scale belong to those who train it or diffuse in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.errors import InputError
from scoreline.nn.blocks import Attention, BlockStyle, ConvResample, ResBlock, conv2d, group_norm

__all__ = ["LOGVAR_RANGE", "KLAutoencoder", "kl", "sample"]

LOGVAR_RANGE = (-30.0, 20.0)


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, e^logvar) || N(0, 1)) = 1/2 sum(mean^2 + e^logvar - 1 - logvar), in nats.

    Args:
        mean: (B, ...) means.
        logvar: (B, ...) log variances, clamped to [-30, 20].

    Returns:
        (B,) one value an image.

    Reference:
        Kingma and Welling 2014, Auto-Encoding Variational Bayes, appendix B.
    """
    logvar = logvar.clamp(*LOGVAR_RANGE)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def sample(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """z = mean + exp(logvar / 2) noise.

    Args:
        mean: (B, ...) means.
        logvar: (B, ...) log variances, clamped to [-30, 20].
        noise: standard normal noise of the same shape.

    Returns:
        latents of the same shape.
    """
    return torch.addcmul(mean, (0.5 * logvar.clamp(*LOGVAR_RANGE)).exp(), noise)


@recorded
class KLAutoencoder(nn.Module):
    """Convolutional autoencoder that halves the image len(channel_mult) - 1 times.

    Args:
        in_shape: (C, H, W) of the image.
        latent_channels: channels of the latent.
        base_channels: channels of the first convolution.
        channel_mult: channels of each level, as multiples of `base_channels`; f = 2^(levels - 1).
        num_blocks: residual blocks a level of the encoder; the decoder has one more.
        middle_attention: attention between the two middle blocks of encoder and decoder.
        dropout: rate in the residual blocks.

    Raises:
        InputError: a setting is impossible.
    """

    def __init__(
        self,
        *,
        in_shape: Sequence[int],
        latent_channels: int = 4,
        base_channels: int = 32,
        channel_mult: Sequence[int] = (1, 2, 4),
        num_blocks: int = 1,
        middle_attention: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(in_shape) != 3 or min(in_shape) < 1:
            raise InputError("in_shape", tuple(in_shape), "give (channels, height, width)")
        if not channel_mult or min(channel_mult) < 1:
            raise InputError("channel_mult", tuple(channel_mult), "give one positive multiple a level")
        sizes = {"latent_channels": latent_channels, "base_channels": base_channels, "num_blocks": num_blocks}
        for name, value in sizes.items():
            if value < 1:
                raise InputError(name, value, "must be at least 1")
        self.in_shape = (int(in_shape[0]), int(in_shape[1]), int(in_shape[2]))
        self.factor = 2 ** (len(channel_mult) - 1)
        channels, height, width = self.in_shape
        if height % self.factor or width % self.factor:
            raise InputError("in_shape", self.in_shape, f"sides must divide by the factor {self.factor}")
        self.latent_shape = (latent_channels, height // self.factor, width // self.factor)
        style = BlockStyle(embedding_channels=0, dropout=dropout, init="default")
        widths = [base_channels * mult for mult in channel_mult]

        def middle(c: int) -> list[nn.Module]:
            attention: list[nn.Module] = [Attention(c, style)] if middle_attention else []
            return [ResBlock(c, c, style), *attention, ResBlock(c, c, style)]

        encoder: list[nn.Module] = [nn.Conv2d(channels, base_channels, 3, padding=1)]
        c = base_channels
        for level, out in enumerate(widths):
            if level:
                encoder.append(ConvResample(c, "down", style))
            for _ in range(num_blocks):
                encoder.append(ResBlock(c, out, style))
                c = out
        encoder += [*middle(c), group_norm(c, style.eps), nn.SiLU(), nn.Conv2d(c, 2 * latent_channels, 3, padding=1)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1))

        decoder: list[nn.Module] = [nn.Conv2d(latent_channels, latent_channels, 1)]
        decoder += [nn.Conv2d(latent_channels, c, 3, padding=1), *middle(c)]
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(num_blocks + 1):
                decoder.append(ResBlock(c, out, style))
                c = out
            if level:
                decoder.append(ConvResample(c, "up", style))
        decoder += [group_norm(c, style.eps), nn.SiLU(), conv2d(c, channels, init="default")]
        self.decoder = nn.Sequential(*decoder)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, clamped to [-30, 20], of the latent, each (B, *latent_shape).

        Raises:
            InputError: the image shape does not fit.
        """
        if tuple(x.shape[1:]) != self.in_shape:
            raise InputError("image shape", tuple(x.shape), f"give (B, {', '.join(map(str, self.in_shape))})")
        mean, logvar = self.encoder(x).chunk(2, 1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def sample(self, x: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, *latent_shape) drawn with the given standard normal noise of that shape."""
        return sample(*self.encode(x), noise)

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents; nothing is clipped.

        Raises:
            InputError: the latent shape does not fit.
        """
        if tuple(z.shape[1:]) != self.latent_shape:
            raise InputError("latent shape", tuple(z.shape), f"give (B, {', '.join(map(str, self.latent_shape))})")
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction decode(mean(x))."""
        return self.decode(self.encode(x)[0])
