"""Embeddings of noise levels and conditions: sinusoids, random Fourier features, label tables, and how they are joined.

The published variants are settings of :class:`Conditioning`: EDM's DDPM++ and NCSN++ (labels and augmentation enter
before the time MLP), ADM (labels after it), DDIM's class-conditional descendant (labels through an MLP of their own,
concatenated) and CTM (a second time through an MLP of its own).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError, unknown_name

__all__ = ["TIME_FEATURES", "Conditioning", "LabelTable", "TimeFeatures", "check_inputs", "null_cond", "require_choice"]

TIME_FEATURES = ("sin-cos", "cos-sin", "fourier")
_FIELDS = ("labels", "tokens", "mask", "vector", "image", "weight", "augment")


def require_choice(thing: str, value: str, known: tuple[str, ...]) -> str:
    """`value` if it is one of `known`.

    Raises:
        InputError: it is not; the nearest valid one is named.
    """
    if value not in known:
        raise unknown_name(thing, str(value), known)
    return value


class TimeFeatures(nn.Module):
    """Features of a time input: [sin(w_j s t), cos(w_j s t)], j = 0..channels/2 - 1.

    Args:
        channels: number of features, even.
        kind: "sin-cos": w_j = 10000^(-j / (channels/2 - 1)) (DDPM and its descendants); "cos-sin": w_j =
            10000^(-j / (channels/2)), cosines first (ADM, DiT); "fourier": w_j = 2 pi `fourier_scale` N(0, 1), drawn
            once and stored (NCSN++).
        scale: s, multiplies the input.
        fourier_scale: standard deviation of the random frequencies.

    Raises:
        InputError: an odd or too small number of channels, or an unknown kind.
    """

    def __init__(self, channels: int, kind: str = "sin-cos", *, scale: float = 1, fourier_scale: float = 16) -> None:
        super().__init__()
        require_choice("time features", kind, TIME_FEATURES)
        if channels < 4 or channels % 2:
            raise InputError("time channels", channels, "must be even and at least 4")
        half = channels // 2
        self.channels, self.kind, self.scale = channels, kind, scale
        if kind == "fourier":
            frequencies = torch.randn(half) * (2 * math.pi * fourier_scale)
        else:
            exponent = torch.arange(half, dtype=torch.float64) / (half - 1 if kind == "sin-cos" else half)
            frequencies = (10000.0**-exponent * scale).float()
        # Deterministic frequencies are no part of a model's state.
        self.register_buffer("frequencies", frequencies, persistent=kind == "fourier")
        self.frequencies: Tensor

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TimeFeatures:
        exact = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype.itemsize < 4:
            # 999 times a frequency rounded to half precision would be wrong by radians.
            self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, t: Tensor) -> Tensor:
        """Features (B, channels) of t (B,)."""
        angle = t.unsqueeze(1) * self.frequencies
        if self.kind == "cos-sin":
            return torch.cat([angle.cos(), angle.sin()], 1)
        return torch.cat([angle.sin(), angle.cos()], 1)


class LabelTable(nn.Module):
    """One row a class, and what "no label" means.

    Args:
        num_classes: K; label K means "no label".
        channels: length of a row.
        null: "zero": label K adds nothing; "learned": it has a row of its own.
        bias: add a bias to every row, the null row included (a dense layer on one-hot labels).
        gain: multiplies the rows when they are read; EDM feeds sqrt(K) times the one-hot vector.
    """

    def __init__(
        self, num_classes: int, channels: int, *, null: str = "zero", bias: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__()
        require_choice("null label", null, ("zero", "learned"))
        if num_classes < 1:
            raise InputError("num_classes", num_classes, "must be at least 1; None for an unconditional network")
        self.num_classes, self.null, self.gain = num_classes, null, gain
        self.weight = nn.Parameter(torch.randn(num_classes + (null == "learned"), channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, labels: Tensor) -> Tensor:
        """Rows (B, channels) of labels: (B,) int64 in [0, K], or (B, K) weights of the classes."""
        table = F.pad(self.weight, (0, 0, 0, 1)) if self.null == "zero" else self.weight
        if labels.is_floating_point():
            rows = labels.to(table.dtype) @ self.weight[: self.num_classes]
        else:
            rows = F.embedding(labels, table)
        if self.gain != 1.0:
            rows = rows * self.gain
        return rows if self.bias is None else rows + self.bias


class _TimeMLP(nn.Module):
    """linear - SiLU - linear."""

    def __init__(self, in_channels: int, channels: int, make: Callable[[int, int], nn.Linear]) -> None:
        super().__init__()
        self.linear0 = make(in_channels, channels)
        self.linear1 = make(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear1(F.silu(self.linear0(features)))


class Conditioning(nn.Module):
    """Everything that is not an image, as one embedding vector (two with a second time).

    emb = SiLU( MLP(features(t) [+ label] [+ augment] [+ weight]) [+ label] [+ vector] ), or with labels "separate"
    emb = SiLU( concat(MLP(features(t)), MLP'(label)) ).

    Args:
        features: the features of the time input.
        channels: size of the embedding.
        make: makes a linear layer, so that a network's initialisation holds here too.
        num_classes: K, or None.
        labels: "input": before the MLP (EDM); "output": after it, no bias (ADM); "output-bias": after it (progressive
            distillation); "separate": an MLP of their own, concatenated, learned null (SFD).
        null_label: "zero" or "learned" ("separate" is always learned).
        second_time: t is (B, 2), the second column through features and MLP of its own (CTM).
        augment_dim: number of augmentation labels.
        vector_dim: length of a global vector.
        weight_input: take a guidance strength; its layer starts at zero, so that the start is unchanged.
    """

    def __init__(
        self,
        features: TimeFeatures,
        channels: int,
        make: Callable[[int, int], nn.Linear],
        *,
        num_classes: int | None = None,
        labels: str = "input",
        null_label: str = "zero",
        second_time: bool = False,
        augment_dim: int = 0,
        vector_dim: int = 0,
        weight_input: bool = False,
    ) -> None:
        super().__init__()
        self.labels = require_choice("labels", labels, ("input", "output", "output-bias", "separate"))
        self.features, inputs = features, features.channels
        self.mlp = _TimeMLP(inputs, channels, make)
        self.mlp2 = _TimeMLP(inputs, channels, make) if second_time else None
        self.label: LabelTable | None = None
        self.label_mlp: _TimeMLP | None = None
        self.out_channels = channels
        if num_classes is not None:
            if labels == "input":
                self.label = LabelTable(num_classes, inputs, null=null_label, bias=True, gain=math.sqrt(num_classes))
                nn.init.xavier_uniform_(self.label.weight)
            elif labels == "separate":
                self.label = LabelTable(num_classes, inputs, null="learned")
                self.label_mlp = _TimeMLP(inputs, channels, make)
                self.out_channels = 2 * channels
            else:
                self.label = LabelTable(num_classes, channels, null=null_label, bias=labels == "output-bias")
        self.augment = nn.Linear(augment_dim, inputs, bias=False) if augment_dim else None
        self.vector = make(vector_dim, channels) if vector_dim else None
        self.weight = nn.Linear(inputs, inputs, bias=False) if weight_input else None
        if self.weight is not None:
            nn.init.zeros_(self.weight.weight)
            self.weight_features = TimeFeatures(inputs, "sin-cos", scale=1000.0)

    def forward(self, t: Tensor, cond: Cond, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The embedding (B or 1, out_channels) and that of the second time, both after SiLU."""
        second = None
        if self.mlp2 is not None:
            t, s = t.unbind(1)
            second = F.silu(self.mlp2(self.features(s).to(dtype)))
        h = self.features(t).to(dtype)
        label = self.label(cond.labels) if self.label is not None and cond.labels is not None else None
        if label is not None and self.labels == "input":
            h = h + label
        if self.augment is not None and cond.augment is not None:
            h = h + self.augment(cond.augment.to(dtype))
        if self.weight is not None and cond.weight is not None:
            h = h + self.weight(self.weight_features(cond.weight).to(dtype))
        h = self.mlp(h)
        if label is not None and self.labels.startswith("output"):
            h = h + label
        if self.vector is not None and cond.vector is not None:
            h = h + self.vector(cond.vector.to(dtype))
        if self.label_mlp is not None and label is not None:
            # One time may serve many labels, and the other way round.
            h = torch.cat(torch.broadcast_tensors(h, self.label_mlp(label)), 1)
        return F.silu(h), second


def check_inputs(
    who: str,
    x: Tensor,
    t: Tensor,
    cond: Cond | None,
    in_shape: tuple[int, ...],
    accepts: frozenset[str],
    times: int = 1,
) -> Cond:
    """The conditions of a batch after everything that does not fit was refused.

    Args:
        who: the network's name, for the message.
        x: the batch.
        t: time input: (B,) or (1,), with two times (B, 2) or (1, 2).
        cond: the conditions, or None.
        in_shape: what an item of the batch must look like.
        accepts: condition fields that the network takes; all but mask and augment must be given.
        times: number of time inputs.

    Raises:
        InputError: a shape does not fit, a condition is missing or not taken.
    """
    if tuple(x.shape[1:]) != in_shape:
        raise InputError("input shape", tuple(x.shape), f"{who} takes (B, {', '.join(map(str, in_shape))})")
    batch = x.shape[0]
    if (
        t.ndim != (1 if times == 1 else 2)
        or (t.shape[0] != 1 and t.shape[0] != batch)
        or (times > 1 and t.shape[1] != times)
    ):
        want = f"({batch},) or (1,)" if times == 1 else f"({batch}, {times}) or (1, {times})"
        raise InputError("time shape", tuple(t.shape), f"{who} takes t of shape {want}")
    cond = Cond() if cond is None else cond
    for name in _FIELDS:
        value = getattr(cond, name)
        if value is None:
            if name in accepts and name not in ("mask", "augment"):
                hint = ", num_classes for none" if name == "labels" else ""
                raise InputError("condition", name, f"{who} needs it: pass Cond({name}=...){hint}")
        elif name not in accepts:
            cond.require(accepts, who)
        elif value.shape[0] != 1 and value.shape[0] != batch:  # spelt out: torch.compile traces it for any batch
            raise InputError(f"{name} shape", tuple(value.shape), f"give one row an image, {batch} in this batch")
    return cond


def null_cond(cond: Cond | None, num_classes: int | None) -> Cond:
    """The same conditions with labels, tokens and vector replaced by "nothing known".

    Labels become `num_classes` (class weights become 0), tokens and vector become 0; what is no guidance target (image,
    mask, weight, augment) stays.

    Raises:
        InputError: a class-conditional network was given no labels, so that the batch is unknown.
    """
    cond = Cond() if cond is None else cond
    changes: dict[str, Tensor | None] = {}
    if num_classes is not None:
        if cond.labels is None:
            raise InputError("condition", "labels", "pass labels to say for how many images (any class)")
        changes["labels"] = torch.full_like(cond.labels, 0.0 if cond.labels.is_floating_point() else num_classes)
    for name, value in (("tokens", cond.tokens), ("vector", cond.vector)):
        if value is not None:
            changes[name] = torch.zeros_like(value)
    return cond.replace(**changes) if changes else cond
