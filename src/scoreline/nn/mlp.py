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
from scoreline.nn.embeddings import Conditioning, TimeFeatures, check_inputs, null_cond
from scoreline.nn.plan import Plan, Tracer, check_plan

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
class MLP(nn.Module):
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
        weight_input: bool = False,
    ) -> None:
        super().__init__()
        if len(in_shape) not in (1, 3) or min(in_shape) < 1:
            raise InputError("in_shape", tuple(in_shape), "give (D,) or (channels, height, width)")
        for name, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise InputError(name, value, "must be at least 1")
        self.in_shape = tuple(int(side) for side in in_shape)
        self.out_channels = self.in_shape[0] if out_channels is None else out_channels
        self.out_shape = (self.out_channels, *self.in_shape[1:])
        self.num_classes, self.second_time = num_classes, second_time
        given = {"labels": num_classes is not None, "vector": vector_dim, "weight": weight_input}
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
        self.input = make(math.prod(self.in_shape), width)
        self.layers = nn.ModuleList(_Layer(width, width * (2 if second_time else 1)) for _ in range(depth))
        self.output = make(width, math.prod(self.out_shape))
        self.joints: tuple[()] = ()
        self.num_layers, self.num_attention_maps = depth, 0
        self.taps = ("input", "decoder", "embedding", *(f"layer.{i}" for i in range(depth)))

    def null(self, cond: Cond | None) -> Cond:
        """`cond` with labels and vector replaced by "nothing known"."""
        return null_cond(cond, self.num_classes)

    def check(self, plan: Plan) -> None:
        """Refuse a plan that names layers or taps that this network does not have.

        Raises:
            InputError: with the valid range.
        """
        check_plan(plan, self.num_layers, 0, self.taps)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The output (B, out_channels) or (B, out_channels, H, W).

        Args:
            x: (B, D) points or (B, C, H, W) images.
            t: (B,) or (1,) time input; with `second_time` (B, 2) or (1, 2).
            cond: the conditions that the network `accepts`.

        Raises:
            InputError: a shape does not fit, a condition is missing or not taken.
        """
        out = self._run(x, t, cond, None)
        assert out is not None
        return out

    def trace(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, plan: Plan | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The output under a plan (None when the plan stops before it) and the tapped features by name.

        Args:
            x: as for :meth:`forward`.
            t: as for :meth:`forward`.
            cond: as for :meth:`forward`.
            plan: what to drop and tap.

        Raises:
            InputError: as for :meth:`forward`, or the plan does not fit this network.
        """
        if plan is None:
            return self._run(x, t, cond, None), {}
        self.check(plan)
        tracer = Tracer(plan)
        return self._run(x, t, cond, tracer), tracer.taps

    def _run(self, x: Tensor, t: Tensor, cond: Cond | None, tracer: Tracer | None) -> Tensor | None:
        cond = check_inputs("this MLP", x, t, cond, self.in_shape, self.accepts, 2 if self.second_time else 1)
        emb, second = self.embedding(t, cond, x.dtype)
        if second is not None:
            emb = torch.cat([emb, second.expand(emb.shape[0], -1)], 1)
        h = self.input(x.flatten(1))
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
