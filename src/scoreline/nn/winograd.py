"""3x3 convolutions of many channels on the CPU by Winograd's minimal filtering F(4x4, 3x3).

A tile of 4x4 outputs takes 36 multiplications a channel pair instead of 144 (Lavin and Gray 2016, arXiv 1509.09308):

    Y = A^T [ (G g G^T) * (B^T d B) ] A,    d a 6x6 tile of the input, g the 3x3 filter

summed over the input channels, which makes 36 matrix products. The result differs from the direct convolution by
rounding only (about 3e-6 of its norm in float32, against 1e-6 for the direct one).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

__all__ = ["Conv3x3", "winograd_conv2d", "winograd_weight"]

# Below this the direct kernel is as fast or faster (benchmarks/bench_unet.py).
MIN_CHANNELS, MIN_SIDE = 128, 4

_B = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
_B += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
_G += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """B^T x B^T (36, 36) and A^T x A^T (16, 36) in float32, G (6, 3) in float64."""
    b, g, a = (torch.tensor(m, dtype=torch.float64) for m in (_B, _G, _A))
    return torch.kron(b, b).float(), torch.kron(a, a).float(), g


@torch.library.custom_op("scoreline::winograd_weight", mutates_args=())
def winograd_weight(weight: Tensor) -> Tensor:
    """G g G^T of every filter: (O, C, 3, 3) -> (36, C, O) float32, computed in float64; counts as no arithmetic."""
    g = _transforms()[2]
    u = torch.einsum("ia,ocab,jb->ijco", g, weight.double(), g)
    return u.reshape(36, weight.shape[1], weight.shape[0]).float()


@winograd_weight.register_fake
def _(weight: Tensor) -> Tensor:
    return weight.new_empty(36, weight.shape[1], weight.shape[0], dtype=torch.float32)


@torch.library.custom_op("scoreline::winograd_conv2d", mutates_args=())
def winograd_conv2d(x: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution with stride 1 and padding 1.

    Args:
        x: (B, C, H, W) float32 on the CPU, best in channels-last memory.
        u: (36, C, O), see :func:`winograd_weight`.
        bias: (O,) or None.

    Returns:
        (B, O, H, W), channels-last in memory. Its multiply-accumulates are counted as those of the convolution.
    """
    b, c, h, w = x.shape
    rows, columns, out = -(-h // 4), -(-w // 4), u.shape[2]
    to_tiles, from_tiles, _ = _transforms()
    p = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + 4 * columns - w, 1, 1 + 4 * rows - h)).contiguous()
    image, row, column, _ = p.stride()
    # The 6x6 tiles overlap by two pixels; leading axes are the places in a tile.
    tiles = p.as_strided((6, 6, b, rows, columns, c), (row, column, image, 4 * row, 4 * column, 1))
    v = (to_tiles @ tiles.reshape(36, -1)).view(36, b * rows * columns, c)
    y = (from_tiles @ torch.bmm(v, u).view(36, -1)).view(4, 4, b, rows, columns, out)
    y = y.permute(2, 3, 0, 4, 1, 5).reshape(b, 4 * rows, 4 * columns, out)
    y = y[:, :h, :w].contiguous()
    return (y if bias is None else y.add_(bias)).permute(0, 3, 1, 2)


@winograd_conv2d.register_fake
def _(x: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    b, _, h, w = x.shape
    return x.new_empty(b, h, w, u.shape[2]).permute(0, 3, 1, 2)


@register_flop_formula(torch.ops.scoreline.winograd_conv2d)
def _flops(x_shape: Any, u_shape: Any, bias_shape: Any, out_shape: Any = None) -> int:
    b, c, h, w = x_shape
    return 2 * b * h * w * 9 * c * u_shape[2]


class Conv3x3(nn.Conv2d):
    """A size-keeping 3x3 convolution that takes Winograd's route where that is faster: float32 on the CPU without
    gradients, outside `torch.compile`, from 128 channels on both sides.

    The transformed filters, four times the size of the weights, are kept from the first such call on, and made anew
    when the weights have changed. Only a change behind autograd's back goes unseen (`weight.data.mul_(...)`): write
    in place under `torch.no_grad()` instead, or call :meth:`forget`.

    Attributes:
        winograd: whether that route may be taken; anybody may set it.
    """

    winograd = True
    _kept: tuple[int, int, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles go without the transformed filters.
        return {key: value for key, value in self.__dict__.items() if key != "_kept"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Conv3x3:
        # There and back between two types may end at the old address with other weights.
        self.forget()
        return super()._apply(fn, recurse)

    def forget(self) -> None:
        """Drop the transformed filters."""
        self._kept = None

    def _suits(self, x: Tensor) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not self.winograd:
            return False
        weight = self.weight
        if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
            return False
        if torch.is_autocast_enabled("cpu") or weight.is_inference():
            return False
        return min(weight.shape[:2]) >= MIN_CHANNELS and min(x.shape[2:]) >= MIN_SIDE

    def forward(self, x: Tensor) -> Tensor:
        if not self._suits(x):
            return super().forward(x)
        now = (self.weight._version, self.weight.data_ptr())
        if self._kept is None or self._kept[:2] != now:
            self._kept = (*now, winograd_weight(self.weight))
        return winograd_conv2d(x, self._kept[2], self.bias)
