"""The vision transformer's parts (Dosovitskiy et al. 2021, 2010.11929), as CLIP and DINOv2 put them together.

A block is pre-norm: x <- x + g_1 attention(norm(x)), then x <- x + g_2 MLP(norm(x)), where g are DINOv2's layer scales
(1 elsewhere). Module names are those of DINOv2's published weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.encoder import check_images, quantise
from scoreline.core.errors import InputError, unknown_name
from scoreline.nn.blocks import attend
from scoreline.nn.resizing import resize_clean

__all__ = ["CROPS", "PATCH_RESIZES", "Block", "LayerScale", "PatchInput", "fast_copy", "quick_gelu"]

N = TypeVar("N", bound=nn.Module)

PATCH_RESIZES = ("pil-bicubic", "clean")
CROPS = ("none", "before", "after")


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the approximation of GELU with which CLIP was trained."""
    return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    """gamma x, a factor a channel (Touvron et al. 2021, 2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over the tokens, the maps of q, k, v in one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(q, k, v, mask, None, "").transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """fc2(activation(fc1(x))) with a hidden layer four times as wide."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block on tokens (B, N, width).

    Args:
        width: channels of a token.
        heads: attention heads.
        eps: of the layer norms.
        activation: of the MLP.
        layer_scale: whether the two branches have factors of their own.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        eps: float = 1e-5,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn, self.mlp = SelfAttention(width, heads), MLP(width, activation)
        self.ls1, self.ls2 = (LayerScale(width) if layer_scale else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), mask))
        return x + self.ls2(self.mlp(self.norm2(x)))


def fast_copy(net: N, compile: bool, dtype: torch.dtype | None) -> N:
    """A copy of a network of blocks, in another type, with its blocks compiled (one compilation serves them all).

    Raises:
        InputError: a type that is neither float32, float64 nor bfloat16.
    """
    if dtype not in (None, torch.float32, torch.float64, torch.bfloat16):
        raise InputError("dtype", str(dtype), "vision transformers run in float32, float64 or bfloat16")
    made = copy.deepcopy(net)
    if dtype is not None:
        made.to(dtype)
    for block in made.modules():
        if compile and isinstance(block, Block):
            block.compile(dynamic=False)
    return made


@dataclass(frozen=True)
class PatchInput:
    """Images in [-1, 1] to the normalised square input of a vision transformer.

    Quantise to uint8 levels, resize with Pillow's antialiased bicubic filter, take the centre square before or after
    that, then (u / 255 - mean) / std a channel. On the CPU, image by image; gradients do not pass.

    Args:
        size: pixels of a side.
        mean, std: of the channels, for images in [0, 1].
        crop: "before" takes the centre square, then resizes it (CMMD); "after" resizes the shorter side, then takes the
            centre square (OpenAI's CLIP); "none" squeezes a picture that is no square. Squares are alike in all three.
        resize: "pil-bicubic" resizes and rounds uint8 pictures as Pillow does; "clean" resizes floats and rounds not.
        quantisation: see `scoreline.core.encoder.quantise`.

    Raises:
        InputError: an unknown rule.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: str = "none"
    resize: str = "pil-bicubic"
    quantisation: str = "uint8-round"

    def __post_init__(self) -> None:
        for kind, value, known in (("resize", self.resize, PATCH_RESIZES), ("crop", self.crop, CROPS)):
            if value not in known:
                raise unknown_name(kind, value, known)
        quantise(torch.zeros(()), self.quantisation)  # refuses an unknown one
        if self.resize == "pil-bicubic" and self.quantisation == "none":
            raise InputError("quantisation", "none", "pil-bicubic resizes uint8 pictures; take resize clean for floats")

    @property
    def name(self) -> str:
        """What a protocol says of it."""
        crop = "" if self.crop == "none" else f", centre-crop {self.crop}"
        return f"{self.resize} {self.size}{crop}"

    def __call__(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to (N, 3, size, size).

        Raises:
            InputError: images of the wrong shape, dtype or range.
        """
        check_images(x, channels=3)
        levels, size = quantise(x, self.quantisation), (self.size, self.size)
        if self.crop == "before":
            side = min(levels.shape[2:])
            top, left = ((length - side) // 2 for length in levels.shape[2:])
            levels = levels[:, :, top : top + side, left : left + side]
        elif self.crop == "after":
            height, width = levels.shape[2:]
            short = min(height, width)
            size = self.size * height // short, self.size * width // short
        u = resize_clean(levels, size) if self.resize == "clean" else _resize_uint8(levels, size)
        if self.crop == "after":  # half a pixel rounds to even here, as in torchvision, and down above, as in CMMD
            top, left = (round((length - self.size) / 2) for length in size)
            u = u[:, :, top : top + self.size, left : left + self.size]
        mean, std = (torch.tensor(v, dtype=u.dtype, device=u.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (u / 255 - mean) / std


def _resize_uint8(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's bicubic on uint8 RGB pictures; size is (H, W)."""
    from PIL import Image

    pictures = levels.detach().round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    out = [np.asarray(Image.fromarray(p).resize(size[::-1], Image.Resampling.BICUBIC)) for p in pictures]
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).to(levels)
