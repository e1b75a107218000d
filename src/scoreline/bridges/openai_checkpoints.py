"""OpenAI's ADM in our U-Net: consistency models, their EDM teachers, guided diffusion.

Reference: Dhariwal and Nichol 2021 (arXiv 2105.05233); Song et al. 2023 (arXiv 2303.01469).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scoreline.bridges.foreign_unets import Names, both, fill, resamples
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import ArtefactError, InputError
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, Discrete
from scoreline.fewstep.maps import ConsistencyFunction
from scoreline.nn.unet import UNet

__all__ = ["guided_arguments", "guided_names", "of_openai"]


def guided_arguments(state: Mapping[str, Tensor], size: int, head_channels: int, time_scale: float) -> dict[str, Any]:
    """The arguments of our U-Net for a state dict of guided diffusion's ADM; its tensors tell nearly all of them.

    Args:
        state: its tensors by name.
        size: side of the images, which no tensor tells.
        head_channels: channels of an attention head, which no tensor tells either.
        time_scale: multiplies the time input.

    Raises:
        InputError: another network, or a size that its levels cannot halve.
    """
    first = state.get("input_blocks.0.0.weight")
    if first is None or "time_embed.0.weight" not in state or "out.2.weight" not in state:
        raise InputError("state dict", None, "is not of guided diffusion's U-Net: input_blocks, time_embed, out")
    base, channels = int(first.shape[0]), int(first.shape[1])
    mults: list[int] = []
    attention: set[int] = set()
    blocks = level = 0
    for i in range(1, _count(state, "input_blocks")):
        convolution = state.get(f"input_blocks.{i}.0.in_layers.2.weight")
        if convolution is None:
            raise InputError("state dict", f"input_blocks.{i}", "only resampling in residual blocks is understood")
        if _is_resampling(state, i):
            level += 1
            continue
        if level == len(mults):
            mults.append(int(convolution.shape[0]) // base)
        blocks += level == 0
        if f"input_blocks.{i}.1.qkv.weight" in state:
            attention.add(size >> level)
    if base % 32 or base < 128:
        raise InputError("base channels", base, "norms of 32 groups are ours from 128 channels on, in steps of 32")
    labels = state.get("label_emb.weight")
    scale_shift = state["middle_block.0.emb_layers.1.weight"].shape[0] == 2 * mults[-1] * base
    return {
        "in_shape": (channels, size, size), "out_channels": int(state["out.2.weight"].shape[0]), "base_channels": base,
        "channel_mult": tuple(mults), "num_blocks": blocks, "attention": tuple(sorted(attention, reverse=True)),
        "head_channels": head_channels, "modulation": "scale-shift" if scale_shift else "shift", "norm_eps": 1e-5,
        "init": "default", "time_features": "cos-sin", "time_scale": time_scale, "labels": "output",
        "num_classes": None if labels is None else int(labels.shape[0]),
        "embedding_channels": int(state["time_embed.0.weight"].shape[0]),
    }  # fmt: skip


def _count(state: Mapping[str, Tensor], group: str) -> int:
    return 1 + max((int(name.split(".")[1]) for name in state if name.startswith(f"{group}.")), default=-1)


def _is_resampling(state: Mapping[str, Tensor], i: int) -> bool:
    """Whether input block i halves the resolution: it keeps the channels and output blocks pair up with it."""
    ends = [
        k for k in range(_count(state, "output_blocks"))
        if any(f"output_blocks.{k}.{j}.in_layers.2.weight" in state for j in (1, 2))
    ]  # fmt: skip
    levels = len(ends) + 1
    return i % (_count(state, "input_blocks") // levels) == 0


def guided_names(net: UNet) -> Names:
    """(our name, guided diffusion's name) of every tensor of a U-Net."""
    yield from both("input", "input_blocks.0.0")
    yield from both("embedding.mlp.linear0", "time_embed.0")
    yield from both("embedding.mlp.linear1", "time_embed.2")
    if net.embedding.label is not None:
        yield "embedding.label.weight", "label_emb.weight"
    for i, stage in enumerate(net.encoder):
        yield from _guided_stage(f"encoder.{i}", f"input_blocks.{i + 1}", stage)
    yield from _guided_block("middle.0.block", "middle_block.0", net.middle[0].block)
    yield from _guided_attention("middle.0.attention", "middle_block.1")
    yield from _guided_block("middle.1.block", "middle_block.2", net.middle[1].block)
    block, place = -1, 0
    for i, stage in enumerate(net.decoder):
        if resamples(stage):  # stands in the block before it, behind what is there
            yield from _guided_block(f"decoder.{i}.block", f"output_blocks.{block}.{place}", stage.block)
            continue
        block, place = block + 1, 2 if stage.attention is not None else 1
        yield from _guided_stage(f"decoder.{i}", f"output_blocks.{block}", stage)
    yield from both("output_norm", "out.0")
    yield from both("output", "out.2")


def _guided_stage(ours: str, theirs: str, stage: Any) -> Names:
    yield from _guided_block(f"{ours}.block", f"{theirs}.0", stage.block)
    if stage.attention is not None:
        yield from _guided_attention(f"{ours}.attention", f"{theirs}.1")


def _guided_block(ours: str, theirs: str, block: Any) -> Names:
    parts = {"norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0",
             "conv1": "out_layers.3"}  # fmt: skip
    parts |= {"projection": "skip_connection"} if block.projection is not None else {}
    for own, other in parts.items():
        yield from both(f"{ours}.{own}", f"{theirs}.{other}")


def _guided_attention(ours: str, theirs: str) -> Names:
    for own, other in (("norm", "norm"), ("qkv", "qkv"), ("proj", "proj_out")):
        yield from both(f"{ours}.{own}", f"{theirs}.{other}")


def of_openai(
    state: Any, name: str, layout: str, size: int | None, head_channels: int, betas: str
) -> tuple[Denoiser, dict[str, Any]]:
    """The model of a state dict of OpenAI's code, and what its card says.

    Args:
        state: tensors by name.
        name: of the file, for errors.
        layout: "consistency", "consistency-teacher" or "guided-diffusion".
        size: side of the images.
        head_channels: channels of an attention head.
        betas: the noise table of a guided-diffusion model.

    Raises:
        ArtefactError: no state dict, or tensors that do not fit.
        InputError: another network, or a setting that does not fit it.
    """
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ArtefactError("checkpoint", name, "is no state dict: tensors by name")
    if size is None:
        raise InputError("size", None, "no tensor of such a file tells the side of the images; say --size 64")
    guided = layout == "guided-diffusion"
    arguments = guided_arguments(state, size, head_channels, 1.0 if guided else 1000.0)
    net = UNet(**arguments)
    fill(net, state, guided_names(net), "legacy" if guided else "split", name, table_is_linear=False)
    card = {"layout": layout, "network": "ADM", "head_channels": head_channels}
    if not guided:
        if net.out_channels != net.in_shape[0]:
            raise InputError("layout", layout, f"the network has {net.out_channels} outputs; try guided-diffusion")
        if layout == "consistency":
            return ConsistencyFunction(net, EDM()), card
        return Preconditioned(net, EDM()), card
    learned = net.out_channels == 2 * net.in_shape[0]
    return Preconditioned(net, Discrete(betas=betas), kind="eps", learned_variance=learned), card | {"betas": betas}
