"""Diffusion transformer with adaLN-zero conditioning (Peebles and Xie 2023, arXiv 2212.09748), also the network of SiT.

Patches become tokens with fixed sine-cosine positions; every block modulates attention and MLP with shift, scale and
gate computed from the embedding c of time and label, and starts as the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError, unknown_name
from scoreline.nn.blocks import attend, linear_layer
from scoreline.nn.embeddings import Conditioning, TimeFeatures
from scoreline.nn.network import Network
from scoreline.nn.plan import Tracer

__all__ = ["DIT_SIZES", "DiT", "dit_preset", "sincos_positions"]

# depth, hidden size, heads (table 1 of the paper)
DIT_SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


def dit_preset(name: str, **changes: Any) -> dict[str, Any]:
    """The arguments of a published DiT, "DiT-XL/2" to "DiT-S/8", for 32x32x4 latents, 1000 classes, learned variance.

    Raises:
        InputError: the name is unknown.

    >>> dit_preset("DiT-B/4")["depth"]
    12
    """
    known = {f"DiT-{size}/{patch}": (size, patch) for size in DIT_SIZES for patch in (2, 4, 8)}
    if name not in known:
        raise unknown_name("DiT preset", name, known)
    size, patch = known[name]
    depth, width, heads = DIT_SIZES[size]
    shape = {"in_shape": (4, 32, 32), "out_channels": 8, "num_classes": 1000}
    return shape | {"patch": patch, "width": width, "depth": depth, "heads": heads} | changes


def sincos_positions(rows: int, columns: int, width: int, scale: float = 1.0) -> Tensor:
    """Fixed 2-D positions: half of the channels for the column, half for the row, each [sin(w_j p), cos(w_j p)].

    w_j = 10000^(-j / (width / 4)), j = 0..width/4 - 1.

    Args:
        rows: number of token rows.
        columns: number of token columns.
        width: channels of a token, a multiple of 4.
        scale: multiplies the coordinates; 1/2 lets a grid twice as fine span the range of the trained one.

    Returns:
        (rows * columns, width) float32.
    """
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def encode(count: int) -> Tensor:
        angle = torch.outer(torch.arange(count, dtype=torch.float64) * scale, omega)
        return torch.cat([angle.sin(), angle.cos()], 1)

    column = encode(columns)[None].expand(rows, -1, -1)
    row = encode(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], 2).reshape(rows * columns, width).float()


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift, the norm without parameters of its own."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), scale + 1)


class _Block(nn.Module):
    """x += gate_a attention(norm(x)); x += gate_m MLP(norm(x)), both norms modulated by c."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, emb: int, index: int) -> None:
        super().__init__()
        self.heads, self.index = heads, index
        self.modulation = nn.Linear(emb, 6 * width)
        make = partial(linear_layer, init="xavier")
        self.qkv, self.proj = make(width, 3 * width), make(width, width)
        hidden = int(width * mlp_ratio)
        self.fc1, self.fc2 = make(width, hidden), make(hidden, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def attention(self, h: Tensor, tracer: Tracer | None) -> Tensor:
        qkv = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.proj(attend(q, k, v, None, tracer, f"attention.{self.index}").transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, c: Tensor, tracer: Tracer | None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c).unsqueeze(1).chunk(6, 2)
        drop = () if tracer is None else tracer.plan.drop
        if 2 * self.index not in drop:
            x = torch.addcmul(x, gate_a, self.attention(_modulated(x, shift_a, scale_a), tracer))
        if tracer is not None and (tracer.done or tracer.keep(f"layer.{2 * self.index}", x)):
            return x
        if 2 * self.index + 1 not in drop:
            h = F.gelu(self.fc1(_modulated(x, shift_m, scale_m)), approximate="tanh")
            x = torch.addcmul(x, gate_m, self.fc2(h))
        if tracer is not None:
            tracer.keep(f"layer.{2 * self.index + 1}", x)
        return x


@recorded
class DiT(Network):
    """A diffusion transformer.

    Layers are numbered attention 0, MLP 1, attention 2, ...; a dropped one is the identity. Taps: "input" (tokens with
    positions), "layer.i" (tokens (B, N, width) after the layer), "attention.i" (the softmax map of block i, inside the
    graph), "decoder" (tokens before the head), "embedding". There are no skip joints.

    Args:
        in_shape: (C, H, W) of the noisy image or latent.
        out_channels: channels of the output; None for C (2C for a learned variance).
        patch: side of a patch.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden size of the MLP over `width`.
        num_classes: number of classes, None for unconditional; "no label" has a learned row.
        time_channels: number of time features.
        time_scale: multiplies the time input.
        second_time: take two times, t of shape (B, 2).
        vector_dim: size of a global vector, 0 for none.
        weight_input: take a guidance strength as an input.
        position_scale: multiplies the token coordinates.

    Raises:
        InputError: a setting is impossible.
    """

    def __init__(
        self,
        *,
        in_shape: Sequence[int],
        out_channels: int | None = None,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        time_channels: int = 256,
        time_scale: float = 1.0,
        second_time: bool = False,
        vector_dim: int = 0,
        weight_input: bool = False,
        position_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if len(in_shape) != 3 or min(in_shape) < 1:
            raise InputError("in_shape", tuple(in_shape), "give (channels, height, width)")
        channels, height, columns = self.in_shape = (int(in_shape[0]), int(in_shape[1]), int(in_shape[2]))
        if patch < 1 or height % patch or columns % patch:
            raise InputError("patch", patch, f"must divide the image sides {height} and {columns}")
        if width < 4 or width % 4 or heads < 1 or width % heads:
            raise InputError("width", width, f"must be a multiple of 4 and of the {heads} heads")
        if depth < 1:
            raise InputError("depth", depth, "must be at least 1")
        self.patch, self.num_classes, self.second_time = patch, num_classes, second_time
        self.out_channels = channels if out_channels is None else out_channels
        given = {"labels": num_classes is not None, "vector": vector_dim, "weight": weight_input}
        self.accepts = frozenset(name for name, there in given.items() if there)

        make = partial(linear_layer, init="xavier")
        self.embedding = Conditioning(
            TimeFeatures(time_channels, "cos-sin", scale=time_scale),
            width,
            make,
            num_classes=num_classes,
            labels="output",
            null_label="learned",
            second_time=second_time,
            vector_dim=vector_dim,
            weight_input=weight_input,
        )
        emb = width * (2 if second_time else 1)
        self.patches = make(channels * patch * patch, width)
        positions = sincos_positions(height // patch, columns // patch, width, position_scale)
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio, emb, i) for i in range(depth))
        self.modulation = nn.Linear(emb, 2 * width)
        self.output = nn.Linear(width, patch * patch * self.out_channels)
        self._start()
        self.num_layers, self.num_attention_maps = 2 * depth, depth
        self.taps = (
            *("input", "decoder", "embedding"),
            *(f"layer.{i}" for i in range(2 * depth)),
            *(f"attention.{i}" for i in range(depth)),
        )

    def _start(self) -> None:
        """The published start: small embeddings, head and modulations zero."""
        if self.embedding.label is not None:
            nn.init.normal_(self.embedding.label.weight, std=0.02)
        for linear in (self.embedding.mlp.linear0, self.embedding.mlp.linear1):
            nn.init.normal_(linear.weight, std=0.02)
        for linear in (self.modulation, self.output):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def _run(self, x: Tensor, t: Tensor, cond: Cond, tracer: Tracer | None) -> Tensor | None:
        c, second = self.embedding(t, cond, x.dtype)
        if second is not None:
            c = torch.cat([c, second.expand(c.shape[0], -1)], 1)
        p = self.patch
        b, channels, height, columns = x.shape
        rows, cols = height // p, columns // p
        h = x.reshape(b, channels, rows, p, cols, p).permute(0, 2, 4, 1, 3, 5).reshape(b, rows * cols, channels * p * p)
        h = self.patches(h) + self.positions.to(x.dtype)
        if tracer is not None and (tracer.keep("embedding", c) or tracer.keep("input", h)):
            return None
        for block in self.blocks:
            h = block(h, c, tracer)
            if tracer is not None and tracer.done:
                return None
        if tracer is not None and tracer.keep("decoder", h):
            return None
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, 2)
        h = self.output(_modulated(h, shift, scale))
        h = h.view(b, rows, cols, p, p, self.out_channels).permute(0, 5, 1, 3, 2, 4)
        return h.reshape(b, self.out_channels, height, columns)
