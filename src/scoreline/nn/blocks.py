"""The parts of the U-Net: group norm, resampling, residual block, attention.

One residual block covers DDPM, DDPM++, NCSN++ (Song et al. 2021) and ADM (Dhariwal and Nichol 2021) as unified by EDM
(Karras et al. 2022, table 1 and appendix C); the settings that tell them apart stand in :class:`BlockStyle`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.errors import InputError
from scoreline.nn.embeddings import require_choice
from scoreline.nn.plan import Tracer
from scoreline.nn.winograd import Conv3x3

__all__ = [
    "Attention",
    "BlockStyle",
    "ConvResample",
    "CrossAttention",
    "ResBlock",
    "Resample",
    "attend",
    "conv2d",
    "group_norm",
    "linear_layer",
]

# Output convolutions start almost (xavier) or exactly (default) at zero, as published.
ALMOST_ZERO = 1e-5


def _init(layer: nn.Conv2d | nn.Linear, init: str, gain: float) -> None:
    if init == "xavier":
        nn.init.xavier_uniform_(layer.weight, gain=gain)
        nn.init.zeros_(layer.bias) if layer.bias is not None else None
    elif gain == ALMOST_ZERO:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias) if layer.bias is not None else None


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    *,
    init: str,
    gain: float = 1.0,
    stride: int = 1,
    padding: int | None = None,
) -> nn.Conv2d:
    """A convolution that keeps the size, initialised as "xavier" (biases 0) or "default" (torch's own)."""
    padding = kernel // 2 if padding is None else padding
    kind = Conv3x3 if (kernel, stride, padding) == (3, 1, 1) else nn.Conv2d
    layer = kind(in_channels, out_channels, kernel, stride=stride, padding=padding)
    _init(layer, init, gain)
    return layer


def linear_layer(in_channels: int, out_channels: int, *, init: str, gain: float = 1.0) -> nn.Linear:
    """A dense layer, initialised as "xavier" (biases 0) or "default" (torch's own)."""
    layer = nn.Linear(in_channels, out_channels)
    _init(layer, init, gain)
    return layer


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm with min(32, channels / 4) groups, or the next smaller number that divides the channels."""
    groups = next(g for g in range(max(min(32, channels // 4), 1), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=eps)


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of one network have in common.

    Args:
        embedding_channels: size of the embedding, 0 for blocks that take none.
        second_channels: size of the embedding of a second time, 0 for none.
        modulation: "shift": the embedding is added before the second norm; "scale-shift": scales and shifts after it.
        residual_scale: factor on every residual sum, 1 or sqrt(1/2).
        filter: taps of the resampling filter, (1, 1) or (1, 3, 3, 1).
        project: a 1x1 convolution in the shortcut of resampling blocks.
        head_channels: channels of an attention head, None for a single head.
        eps: epsilon of the norms.
        dropout: rate before the second convolution.
        init: "xavier" or "default".
    """

    embedding_channels: int
    second_channels: int = 0
    modulation: str = "shift"
    residual_scale: float = 1.0
    filter: tuple[int, ...] = (1, 1)
    project: bool = False
    head_channels: int | None = None
    eps: float = 1e-6
    dropout: float = 0.0
    init: str = "xavier"

    def __post_init__(self) -> None:
        require_choice("modulation", self.modulation, ("shift", "scale-shift"))
        require_choice("init", self.init, ("xavier", "default"))
        if self.filter not in ((1, 1), (1, 3, 3, 1)):
            raise InputError("resampling filter", self.filter, "known: (1, 1), (1, 3, 3, 1)")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError("dropout", self.dropout, "must lie in [0, 1)")

    def heads(self, channels: int) -> int:
        """Number of attention heads for so many channels.

        Raises:
            InputError: the channels cannot be cut into heads of that size.
        """
        if self.head_channels is None:
            return 1
        if self.head_channels < 1 or channels % self.head_channels:
            raise InputError("head_channels", self.head_channels, f"must divide the {channels} channels at attention")
        return channels // self.head_channels


class Resample(nn.Module):
    """Half or double the resolution with the filter (1, 1) (mean, nearest) or (1, 3, 3, 1), normalised."""

    def __init__(self, direction: str, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.direction, self.fir = direction, taps != (1, 1)
        if self.fir:
            f = torch.tensor(taps, dtype=torch.float32)
            f = torch.outer(f, f) / f.sum() ** 2 * (4 if direction == "up" else 1)
            self.register_buffer("filter", f[None, None], persistent=False)
            self.filter: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.fir:
            return F.avg_pool2d(x, 2) if self.direction == "down" else F.interpolate(x, scale_factor=2.0)
        weight = self.filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        if self.direction == "down":
            return F.conv2d(x, weight, stride=2, padding=1, groups=x.shape[1])
        return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=x.shape[1])


class FIRDownConv(nn.Module):
    """A 3x3 convolution of the FIR-filtered input, then every second pixel: the input pyramid of NCSN++."""

    def __init__(self, in_channels: int, out_channels: int, style: BlockStyle) -> None:
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, init=style.init, stride=2, padding=0)
        f = torch.tensor(style.filter, dtype=torch.float32)
        self.register_buffer("filter", (torch.outer(f, f) / f.sum() ** 2)[None, None], persistent=False)
        self.filter: Tensor
        self.padding = (len(style.filter) - 1) // 2 + 1

    def forward(self, x: Tensor) -> Tensor:
        # Filtered first, the convolution can stride: the map of convolving at full size, at a quarter of the cost.
        weight = self.filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return self.conv(F.conv2d(x, weight, padding=self.padding, groups=x.shape[1]))


class ConvResample(nn.Module):
    """DDPM's resampling: a strided 3x3 convolution down, nearest and a 3x3 convolution up. No layer of a plan."""

    def __init__(self, channels: int, direction: str, style: BlockStyle) -> None:
        super().__init__()
        self.down = direction == "down"
        stride, padding = (2, 0) if self.down else (1, 1)
        self.conv = conv2d(channels, channels, init=style.init, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        # The published padding: one row and one column after the image only.
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0))


class ResBlock(nn.Module):
    """y = c (shortcut(x) + conv(dropout(SiLU(norm(conv(resample(SiLU(norm(x)))) modulated by emb))))).

    Args:
        in_channels: channels of x.
        out_channels: channels of y.
        style: what the blocks of a network have in common.
        resample: "up", "down" or None.
    """

    def __init__(self, in_channels: int, out_channels: int, style: BlockStyle, resample: str | None = None) -> None:
        super().__init__()
        self.scale_shift = style.modulation == "scale-shift"
        self.residual_scale, self.dropout = style.residual_scale, style.dropout
        self.index, self.name = -1, ""
        self.resample = Resample(resample, style.filter) if resample else None
        self.norm0 = group_norm(in_channels, style.eps)
        self.conv0 = conv2d(in_channels, out_channels, init=style.init)
        width = out_channels * (2 if self.scale_shift else 1)
        emb, second = style.embedding_channels, style.second_channels
        self.affine = linear_layer(emb, width, init=style.init) if emb else None
        self.affine2 = linear_layer(second, width, init=style.init) if second else None
        self.norm1 = group_norm(out_channels, style.eps)
        self.conv1 = conv2d(out_channels, out_channels, init=style.init, gain=ALMOST_ZERO)
        projected = in_channels != out_channels or (resample is not None and style.project)
        self.projection = conv2d(in_channels, out_channels, 1, init=style.init) if projected else None
        # A 1x1 convolution commutes with nearest upsampling to the last bit, and is four times cheaper before it.
        self.project_first = resample == "up" and style.filter == (1, 1)

    def shortcut(self, x: Tensor) -> Tensor:
        """What is left of the block when a plan drops it."""
        if self.projection is not None and self.project_first:
            x = pointwise(x, self.projection)
        if self.resample is not None:
            x = self.resample(x)
        if self.projection is not None and not self.project_first:
            x = pointwise(x, self.projection)
        return x

    def forward(self, x: Tensor, emb: Tensor | None = None, second: Tensor | None = None) -> Tensor:
        h = norm_silu(x, self.norm0)
        if self.resample is not None:
            h = self.resample(h)
        h = self.conv0(h)
        params = self.affine(emb) if self.affine is not None else None
        if params is not None and self.affine2 is not None:
            params = params + self.affine2(second)
        if params is not None and not self.scale_shift:
            # In place on the fresh output of a convolution, which needs it for no gradient.
            h, params = h.add_(params[:, :, None, None]), None
        h = norm_silu(h, self.norm1, params)
        if self.training and self.dropout:
            h = F.dropout(h, self.dropout)
        h = self.conv1(h).add_(self.shortcut(x))
        return h if self.residual_scale == 1.0 else h.mul_(self.residual_scale)


def pointwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 1x1 convolution; on channels-last pixels a matrix product without copies."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return conv(x)
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def norm_silu(h: Tensor, norm: nn.GroupNorm, params: Tensor | None = None) -> Tensor:
    """SiLU(norm(h)), or SiLU(norm(h) (1 + scale) + shift) with (scale, shift) = params (B or 1, 2C)."""
    if torch.is_grad_enabled():
        return F.silu(norm(h) if params is None else modulated_norm(h, norm, params))
    if _slow_norm(h):
        return F.silu(_channels_last_norm(h, norm, params), inplace=True)
    return F.silu(norm(h) if params is None else modulated_norm(h, norm, params), inplace=True)


def modulated_norm(h: Tensor, norm: nn.GroupNorm, params: Tensor) -> Tensor:
    """norm(h) (1 + scale) + shift with (scale, shift) = params, in one pass over h where its layout allows."""
    scale, shift = params.chunk(2, 1)
    scale = scale + 1
    b, c, height, width = h.shape
    if not h.is_contiguous():
        return torch.addcmul(shift[:, :, None, None], norm(h), scale[:, :, None, None])
    # The batch becomes channels, so that every image can have its own affine part inside the norm.
    weight = (norm.weight * scale).expand(b, c).reshape(-1)
    bias = torch.addcmul(shift, norm.bias, scale).expand(b, c).reshape(-1)
    flat = h.view(1, b * c, height, width)
    return F.group_norm(flat, b * norm.num_groups, weight, bias, norm.eps).view(b, c, height, width)


def _slow_norm(h: Tensor) -> bool:
    """Whether torch's CPU kernel would walk channels-last pixels group by group, 3 to 6 times slower than need be."""
    if h.device.type != "cpu" or h.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    small = h.shape[2] * h.shape[3] < 1024
    return small and not h.is_contiguous() and h.is_contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=64)
def _same_group(channels: int, size: int) -> Tensor:
    """(channels, channels), 1 where two channels are in one group of `size`."""
    group = torch.arange(channels) // size
    return (group[:, None] == group).float()


def _channels_last_norm(h: Tensor, norm: nn.GroupNorm, params: Tensor | None) -> Tensor:
    """Group norm of channels-last pixels in whole rows: sums a channel, sums a group, then h a + b a channel."""
    batch, channels, height, width = h.shape
    pixels = h.permute(0, 2, 3, 1).flatten(1, 2)
    square = pixels * pixels
    size = channels // norm.num_groups
    sums = torch.cat([pixels.sum(1), square.sum(1)]).mul_(1 / (height * width * size))
    mean, second = (sums @ _same_group(channels, size)).split(batch)
    a = torch.addcmul(second, mean, mean, value=-1).clamp_min_(0).add_(norm.eps).rsqrt_().mul_(norm.weight)
    b = torch.addcmul(norm.bias, mean, a, value=-1)
    if params is not None:
        scale, shift = params.chunk(2, 1)
        scale = scale + 1
        a, b = a * scale, torch.addcmul(shift, b, scale)
    out = torch.addcmul(b.unsqueeze(1), pixels, a.unsqueeze(1), out=square)
    return out.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, tracer: Tracer | None, name: str) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over (B, heads, N, d); the map (B, heads, N, M) is made only where it is tapped."""
    if tracer is None or not tracer.wants(name):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    logits = q @ k.transpose(-2, -1) * (1.0 / math.sqrt(q.shape[-1]))
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    weights = logits.softmax(-1)
    tracer.keep(name, weights)
    return weights @ v


class _ImageAttention(nn.Module):
    """The shared frame: norm, pixels as tokens, heads, output projection, residual sum."""

    def __init__(self, channels: int, style: BlockStyle) -> None:
        super().__init__()
        self.heads, self.residual_scale = style.heads(channels), style.residual_scale
        self.index, self.name, self.map_name = -1, "", ""
        self.norm = group_norm(channels, style.eps)
        self.proj = linear_layer(channels, channels, init=style.init, gain=ALMOST_ZERO)

    def normed(self, x: Tensor) -> Tensor:
        """norm(x) as tokens (B, N, C)."""
        fast = not torch.is_grad_enabled() and _slow_norm(x)
        return (_channels_last_norm(x, self.norm, None) if fast else self.norm(x)).flatten(2).transpose(1, 2)

    def split(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def finish(self, out: Tensor, x: Tensor) -> Tensor:
        """Join the heads, project, add x."""
        out = self.proj(out.transpose(1, 2).flatten(2))
        out = out.transpose(1, 2).unflatten(2, x.shape[2:]).add_(x)
        return out if self.residual_scale == 1.0 else out.mul_(self.residual_scale)


class Attention(_ImageAttention):
    """Self-attention over the pixels: y = c (x + W_o softmax(q k^T / sqrt(d)) v), q, k, v from norm(x)."""

    def __init__(self, channels: int, style: BlockStyle) -> None:
        super().__init__(channels, style)
        self.qkv = linear_layer(channels, 3 * channels, init=style.init, gain=math.sqrt(0.2))

    def forward(self, x: Tensor, tracer: Tracer | None = None) -> Tensor:
        tokens = self.normed(x)
        q, k, v = (self.split(part) for part in self.qkv(tokens).chunk(3, 2))
        return self.finish(attend(q, k, v, None, tracer, self.map_name), x)


class CrossAttention(_ImageAttention):
    """Attention of the pixels to context tokens (B, L, D), masked where a token does not count."""

    def __init__(self, channels: int, context_dim: int, style: BlockStyle) -> None:
        super().__init__(channels, style)
        self.q = linear_layer(channels, channels, init=style.init)
        self.kv = linear_layer(context_dim, 2 * channels, init=style.init)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None, tracer: Tracer | None = None) -> Tensor:
        q = self.split(self.q(self.normed(x)))
        k, v = (self.split(part) for part in self.kv(tokens).chunk(2, 2))
        return self.finish(attend(q, k, v, mask, tracer, self.map_name), x)
