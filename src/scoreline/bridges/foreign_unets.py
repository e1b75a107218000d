"""Tensors of a foreign U-Net put into ours by name: every one in its place, none left over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from scoreline.core.errors import ArtefactError
from scoreline.nn.blocks import Attention, ResBlock
from scoreline.nn.unet import UNet

__all__ = ["Names", "both", "fill", "qkv_in_our_order", "resamples"]

Names = Iterator[tuple[str, str]]


def qkv_in_our_order(tensor: Tensor, heads: int, order: str) -> Tensor:
    """Rows of a projection to queries, keys and values, sorted as ours: [q, k, v][head][channel].

    Args:
        tensor: (3C, ...) weight or bias.
        heads: number of heads.
        order: "interleaved": [head][channel][q, k, v] (EDM); "legacy": [head][q, k, v][channel] (guided diffusion);
            "split": ours already.
    """
    rest = tensor.shape[1:]
    width = len(tensor) // (3 * heads)
    if order == "interleaved":
        return tensor.reshape(heads, width, 3, *rest).movedim(2, 0).reshape(tensor.shape)
    if order == "legacy":
        return tensor.reshape(heads, 3, width, *rest).movedim(1, 0).reshape(tensor.shape)
    return tensor


def resamples(stage: Any) -> bool:
    """Whether a stage of our U-Net is a residual block that halves or doubles the resolution."""
    return isinstance(stage.block, ResBlock) and stage.block.resample is not None


def both(ours: str, theirs: str) -> Names:
    """Weight and bias of one layer."""
    for part in ("weight", "bias"):
        yield f"{ours}.{part}", f"{theirs}.{part}"


def fill(
    net: UNet, source: Mapping[str, Tensor], names: Names, order: str, name: str, *, table_is_linear: bool
) -> None:
    """Put every tensor in its place.

    Args:
        net: our network.
        source: the tensors by their own names.
        names: (our name, their name) of every tensor.
        order: of queries, keys and values in `source`, see :func:`qkv_in_our_order`.
        name: of the file, for errors.
        table_is_linear: the label table is stored as a dense layer on one-hot labels.

    Raises:
        ArtefactError: a tensor is missing, left over or of another shape.
    """
    heads = {f"{path}.": part.heads for path, part in net.named_modules() if isinstance(part, Attention)}
    left, state = dict(source), {}
    target = net.state_dict()
    for ours, theirs in names:
        if theirs not in left:
            raise ArtefactError("checkpoint", name, f"has no tensor {theirs}")
        tensor = left.pop(theirs).detach().float()
        if ".qkv." in ours:
            tensor = qkv_in_our_order(tensor, heads[ours[: ours.index("qkv")]], order)
        if ours == "embedding.label.weight" and table_is_linear:
            tensor = tensor.T  # a dense layer on one-hot labels there, a table here
        if ours == "embedding.features.frequencies":
            tensor = tensor * (2 * math.pi)
        want = target[ours]
        if tensor.numel() != want.numel() or tensor.shape[0] != want.shape[0]:
            mend = f"tensor {theirs} has shape {tuple(tensor.shape)}, the network wants {tuple(want.shape)}"
            raise ArtefactError("checkpoint", name, mend)
        state[ours] = tensor.reshape(want.shape)
    if left:
        raise ArtefactError("checkpoint", name, f"tensor {sorted(left)[0]} has no place in the network")
    net.load_state_dict(state)
