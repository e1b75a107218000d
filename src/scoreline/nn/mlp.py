"""A residual MLP for points (N, D) and very small images, with time and label embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.nn.blocks import linear_layer
from scoreline.nn.embeddings import Conditioning, TimeFeatures
from scoreline.nn.network import Network
from scoreline.nn.plan import Tracer

__all__ = ["MLP"]


class _Layer(nn.Module):
    """h + SiLU(W h + b + W' emb)."""

    def __init__(self, width: int, emb: int) -> None:
        super().__init__()
        self.linear = linear_layer(width, width, init="xavier")
        self.affine = linear_layer(emb, width, init="xavier")

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return h + F.silu(self.linear(h) + self.affine(emb))


@recorded
class MLP(Network):
    """h_0 = W x; h_i = h_(i-1) + SiLU(W_i h_(i-1) + b_i + W'_i emb(t, cond)); y = W_out h_depth.

    Layers are numbered 0 to depth - 1; a dropped one is the identity. Taps: "input", "layer.i", "decoder" (before the
    output layer), "embedding". There are no skip joints.

    Args:
        in_shape: (D,) for points, (C, H, W) for images, which are flattened inside.
        out_channels: D or C of the output; None for the same as the input.
        width: hidden size.
        depth: number of residual layers.
        num_classes: number of classes, None for unconditional; "no label" has a learned row.
        time_features: "sin-cos", "cos-sin" or "fourier".
        time_channels: number of time features.
        time_scale: multiplies the time input.
        fourier_scale: standard deviation of the "fourier" frequencies.
        second_time: take two times, t of shape (B, 2).
        vector_dim: size of a global vector, 0 for none.
        image_channels: channels of an image that is concatenated to the input (images only), 0 for none.
        weight_input: take a guidance strength as an input.

    Raises:
        InputError: a setting is impossible.
    """

    def __init__(
        self,
        *,
        in_shape: Sequence[int],
        out_channels: int | None = None,
        width: int = 128,
        depth: int = 3,
        num_classes: int | None = None,
        time_features: str = "sin-cos",
        time_channels: int = 32,
        time_scale: float = 1.0,
        fourier_scale: float = 1.0,
        second_time: bool = False,
        vector_dim: int = 0,
        image_channels: int = 0,
        weight_input: bool = False,
    ) -> None:
        super().__init__()
        if len(in_shape) not in (1, 3) or min(in_shape) < 1:
            raise InputError("in_shape", tuple(in_shape), "give (D,) or (channels, height, width)")
        for name, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise InputError(name, value, "must be at least 1")
        if image_channels and len(in_shape) != 3:
            raise InputError("image_channels", image_channels, "an image is concatenated to images, not to points")
        self.in_shape = tuple(int(side) for side in in_shape)
        self.out_channels = self.in_shape[0] if out_channels is None else out_channels
        self.out_shape = (self.out_channels, *self.in_shape[1:])
        self.num_classes, self.second_time = num_classes, second_time
        given = {"labels": num_classes is not None, "vector": vector_dim, "weight": weight_input}
        given["image"] = image_channels
        self.accepts = frozenset(name for name, there in given.items() if there)
        make = partial(linear_layer, init="xavier")
        self.embedding = Conditioning(
            TimeFeatures(time_channels, time_features, scale=time_scale, fourier_scale=fourier_scale),
            width,
            make,
            num_classes=num_classes,
            labels="output",
            null_label="learned",
            second_time=second_time,
            vector_dim=vector_dim,
            weight_input=weight_input,
        )
        self.input = make(math.prod(self.in_shape) + image_channels * math.prod(self.in_shape[1:]), width)
        self.layers = nn.ModuleList(_Layer(width, width * (2 if second_time else 1)) for _ in range(depth))
        self.output = make(width, math.prod(self.out_shape))
        self.num_layers, self.num_attention_maps = depth, 0
        self.taps = ("input", "decoder", "embedding", *(f"layer.{i}" for i in range(depth)))

    def _run(self, x: Tensor, t: Tensor, cond: Cond, tracer: Tracer | None) -> Tensor | None:
        emb, second = self.embedding(t, cond, x.dtype)
        if second is not None:
            emb = torch.cat([emb, second.expand(emb.shape[0], -1)], 1)
        flat = x.flatten(1)
        if cond.image is not None:
            flat = torch.cat([flat, cond.image.to(flat).flatten(1).expand(len(flat), -1)], 1)
        h = self.input(flat)
        if tracer is not None and (tracer.keep("embedding", emb) or tracer.keep("input", h)):
            return None
        for i, layer in enumerate(self.layers):
            if tracer is None or i not in tracer.plan.drop:
                h = layer(h, emb)
            if tracer is not None and tracer.keep(f"layer.{i}", h):
                return None
        if tracer is not None and tracer.keep("decoder", h):
            return None
        return self.output(h).unflatten(1, self.out_shape)
