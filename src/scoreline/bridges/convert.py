"""Checkpoints of others as models of ours: EDM's pickles, OpenAI's consistency models and guided diffusion.

The files are read without running anything in them (`bridges/unpickling.py`); what they hold is numbers and the
arguments of constructors. The numbers go into our U-Net by name, every tensor to its place and none left over; channels
of queries, keys and values are put into our order. The result is a .safetensors file with its card.

Layouts:
    edm                  Karras et al. 2022: SongUNet (DDPM++, NCSN++) or DhariwalUNet (ADM) in EDMPrecond or VPPrecond
    consistency          Song et al. 2023: ADM in the scalings of a consistency function
    consistency-teacher  the EDM model beside it
    guided-diffusion     Dhariwal and Nichol 2021: ADM that predicts noise and a variance on a table of betas
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.bridges.consistency import ConsistencyFunction
from scoreline.bridges.unpickling import Record, read_checkpoint, tensors_of
from scoreline.core.artefact import save_artefact
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.nn.blocks import Attention, ConvResample, ResBlock
from scoreline.nn.unet import Stage, UNet

__all__ = ["LAYOUTS", "convert", "edm_arguments", "edm_names", "guided_arguments", "guided_names", "qkv_in_our_order"]

LAYOUTS = ("edm", "consistency", "consistency-teacher", "guided-diffusion")
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


# --- EDM ---------------------------------------------------------------------------------------------------------------


def edm_arguments(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our U-Net for a network of EDM's code.

    Args:
        kind: "SongUNet" or "DhariwalUNet".
        given: its constructor's keyword arguments.

    Raises:
        InputError: a network or setting that our U-Net does not have.
    """
    song = kind == "SongUNet"
    if not song and kind != "DhariwalUNet":
        raise unknown_name("network", kind, ("SongUNet", "DhariwalUNet"))
    defaults: dict[str, Any] = {
        "label_dim": 0, "augment_dim": 0, "channel_mult_emb": 4, "dropout": 0.1, "label_dropout": 0,
        **({"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16],
            "embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard",
            "decoder_type": "standard", "resample_filter": [1, 1]} if song else
           {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]}),
    }  # fmt: skip
    needed = ("img_resolution", "in_channels", "out_channels")
    for name in given:
        if name not in (*defaults, *needed):
            raise unknown_name(f"argument of {kind}", name, (*defaults, *needed))
    for name in needed:
        if name not in given:
            raise InputError(f"argument of {kind}", name, "is not in the file")
    s = defaults | dict(given)
    if s.get("encoder_type") == "skip" or s.get("decoder_type") == "skip":
        raise InputError("encoder_type, decoder_type", "skip", "only standard and residual encoders are understood")
    if not song and s["channel_mult"][0] != 1:
        raise InputError("channel_mult", s["channel_mult"], "the first level must be as wide as the input convolution")
    size, base = int(s["img_resolution"]), int(s["model_channels"])
    heights = {size >> level for level in range(len(s["channel_mult"]))}
    ours: dict[str, Any] = {
        "in_shape": (int(s["in_channels"]), size, size), "out_channels": int(s["out_channels"]), "base_channels": base,
        "channel_mult": tuple(s["channel_mult"]), "num_blocks": int(s["num_blocks"]),
        "attention": tuple(r for r in s["attn_resolutions"] if r in heights), "dropout": float(s["dropout"]),
        "embedding_channels": base * int(s["channel_mult_emb"]), "num_classes": int(s["label_dim"]) or None,
        "augment_dim": int(s["augment_dim"]),
    }  # fmt: skip
    if song:
        fourier = s["embedding_type"] == "fourier"
        return ours | {
            "decoder_attention": "last", "rescale": True, "resampling_projection": True,
            "resampling_filter": tuple(s["resample_filter"]), "input_pyramid": s["encoder_type"] == "residual",
            "time_features": "fourier" if fourier else "sin-cos", "time_channels": base * int(s["channel_mult_noise"]),
        }  # fmt: skip
    return ours | {
        "head_channels": 64, "modulation": "scale-shift", "norm_eps": 1e-5, "init": "default",
        "time_features": "cos-sin", "labels": "output",
    }  # fmt: skip


def edm_names(net: UNet, song: bool) -> Names:
    """(our name, EDM's name) of every tensor of a U-Net."""
    size, levels = net.in_shape[1], len([s for s in net.encoder if _resamples(s)]) + 1
    blocks = (len(net.encoder) - levels + 1) // levels
    yield from _both("input", f"enc.{size}x{size}_conv")
    for i, (own, other) in enumerate((("mlp.linear0", "map_layer0"), ("mlp.linear1", "map_layer1"))):
        assert i < 2
        yield from _both(f"embedding.{own}", other)
    if net.embedding.label is not None:
        yield "embedding.label.weight", "map_label.weight"
        if net.embedding.label.bias is not None:
            yield "embedding.label.bias", "map_label.bias"
    if net.embedding.augment is not None:
        yield "embedding.augment.weight", "map_augment.weight"
    if net.embedding.features.kind == "fourier":
        yield "embedding.features.frequencies", "map_noise.freqs"
    encoder, decoder = [], []
    for level in range(levels):
        side = f"{size >> level}x{size >> level}"
        encoder += [f"{side}_down"] * (level > 0) + [f"{side}_block{b}" for b in range(blocks)]
    for level in reversed(range(levels)):
        side = f"{size >> level}x{size >> level}"
        decoder += [f"{side}_block{b}" for b in range(blocks + 1)]
        decoder += [f"{size >> (level - 1)}x{size >> (level - 1)}_up"] * (level > 0)
    for i, name in enumerate(encoder):
        yield from _stage(f"encoder.{i}", f"enc.{name}", net.encoder[i])
        if str(i) in net.pyramid:
            yield from _both(f"pyramid.{i}.conv", f"enc.{name.replace('_down', '_aux_residual')}")
    low = f"{size >> (levels - 1)}x{size >> (levels - 1)}"
    for i in range(2):
        yield from _stage(f"middle.{i}", f"dec.{low}_in{i}", net.middle[i])
    for i, name in enumerate(decoder):
        yield from _stage(f"decoder.{i}", f"dec.{name}", net.decoder[i])
    head = (f"dec.{size}x{size}_aux_norm", f"dec.{size}x{size}_aux_conv") if song else ("out_norm", "out_conv")
    yield from _both("output_norm", head[0])
    yield from _both("output", head[1])


def _resamples(stage: Any) -> bool:
    return isinstance(stage.block, ResBlock) and stage.block.resample is not None


def _both(ours: str, theirs: str) -> Names:
    for part in ("weight", "bias"):
        yield f"{ours}.{part}", f"{theirs}.{part}"


def _stage(ours: str, theirs: str, stage: Any) -> Names:
    pairs = [(f"block.{part}", part) for part in ("norm0", "conv0", "affine", "norm1", "conv1")]
    pairs += [("block.projection", "skip")] if stage.block.projection is not None else []
    if stage.attention is not None:
        pairs += [("attention.norm", "norm2"), ("attention.qkv", "qkv"), ("attention.proj", "proj")]
    for own, other in pairs:
        yield from _both(f"{ours}.{own}", f"{theirs}.{other}")


def _of_edm(value: Any, name: str) -> tuple[Denoiser, dict[str, Any]]:
    found = value
    if isinstance(value, Mapping):
        found = next((value[key] for key in ("ema", "net") if isinstance(value.get(key), Record)), None)
    if not isinstance(found, Record):
        raise ArtefactError("checkpoint", name, "holds no network of EDM's code (ema)")
    wrapper, model = found.origin, found.__dict__["state"].get("_modules", {}).get("model")
    if not isinstance(model, Record):
        raise ArtefactError("checkpoint", name, f"{wrapper or 'the object in it'} holds no model")
    if wrapper not in ("EDMPrecond", "VPPrecond"):
        raise unknown_name("preconditioning", wrapper, ("EDMPrecond", "VPPrecond"))
    arguments = edm_arguments(model.origin, model.arguments)
    song = model.origin == "SongUNet"
    net = UNet(**arguments)
    source = {k: v for k, v in tensors_of(model).items() if not k.endswith("resample_filter")}
    _fill(net, source, edm_names(net, song), "interleaved", name, table_is_linear=True)
    given = found.arguments
    if wrapper == "EDMPrecond":
        denoiser = Preconditioned(net, EDM(), sigma_data=float(given.get("sigma_data", 0.5)))
    else:
        if given.get("M", 1000) != 1000:
            raise InputError("M", given["M"], "only the time input 999 t of VPPrecond is understood")
        low, span = float(given.get("beta_min", 0.1)), float(given.get("beta_d", 19.9))
        schedule = VP(beta_min=low, beta_max=low + span, t_min=float(given.get("epsilon_t", 1e-5)))
        denoiser = Preconditioned(net, schedule, kind="eps", time_input="999t")
    return denoiser, {"layout": "edm", "network": model.origin, "preconditioning": wrapper}


# --- OpenAI ------------------------------------------------------------------------------------------------------------


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
    mults, attention, blocks, level = [], set(), 0, 0
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
    yield from _both("input", "input_blocks.0.0")
    yield from _both("embedding.mlp.linear0", "time_embed.0")
    yield from _both("embedding.mlp.linear1", "time_embed.2")
    if net.embedding.label is not None:
        yield "embedding.label.weight", "label_emb.weight"
    for i, stage in enumerate(net.encoder):
        yield from _guided_stage(f"encoder.{i}", f"input_blocks.{i + 1}", stage)
    yield from _guided_block("middle.0.block", "middle_block.0", net.middle[0].block)
    yield from _guided_attention("middle.0.attention", "middle_block.1")
    yield from _guided_block("middle.1.block", "middle_block.2", net.middle[1].block)
    block, place = -1, 0
    for i, stage in enumerate(net.decoder):
        assert isinstance(stage, Stage)
        if _resamples(stage):  # stands in the block before it, behind what is there
            yield from _guided_block(f"decoder.{i}.block", f"output_blocks.{block}.{place}", stage.block)
            continue
        block, place = block + 1, 2 if stage.attention is not None else 1
        yield from _guided_stage(f"decoder.{i}", f"output_blocks.{block}", stage)
    yield from _both("output_norm", "out.0")
    yield from _both("output", "out.2")


def _guided_stage(ours: str, theirs: str, stage: Any) -> Names:
    yield from _guided_block(f"{ours}.block", f"{theirs}.0", stage.block)
    if stage.attention is not None:
        yield from _guided_attention(f"{ours}.attention", f"{theirs}.1")


def _guided_block(ours: str, theirs: str, block: Any) -> Names:
    assert not isinstance(block, ConvResample)
    parts = {"norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0",
             "conv1": "out_layers.3"}  # fmt: skip
    parts |= {"projection": "skip_connection"} if block.projection is not None else {}
    for own, other in parts.items():
        yield from _both(f"{ours}.{own}", f"{theirs}.{other}")


def _guided_attention(ours: str, theirs: str) -> Names:
    for own, other in (("norm", "norm"), ("qkv", "qkv"), ("proj", "proj_out")):
        yield from _both(f"{ours}.{own}", f"{theirs}.{other}")


def _of_openai(
    state: Any, name: str, layout: str, size: int | None, head_channels: int, betas: str
) -> tuple[Denoiser, dict[str, Any]]:
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ArtefactError("checkpoint", name, "is no state dict: tensors by name")
    if size is None:
        raise InputError("size", None, "no tensor of such a file tells the side of the images; say --size 64")
    guided = layout == "guided-diffusion"
    arguments = guided_arguments(state, size, head_channels, 1.0 if guided else 1000.0)
    net = UNet(**arguments)
    _fill(net, state, guided_names(net), "legacy" if guided else "split", name, table_is_linear=False)
    card = {"layout": layout, "network": "ADM", "head_channels": head_channels}
    if not guided:
        if net.out_channels != net.in_shape[0]:
            raise InputError("layout", layout, f"the network has {net.out_channels} outputs; try guided-diffusion")
        if layout == "consistency":
            return ConsistencyFunction(net, EDM()), card
        return Preconditioned(net, EDM()), card
    learned = net.out_channels == 2 * net.in_shape[0]
    return Preconditioned(net, Discrete(betas=betas), kind="eps", learned_variance=learned), card | {"betas": betas}


# --- all ---------------------------------------------------------------------------------------------------------------


def _fill(
    net: UNet, source: Mapping[str, Tensor], names: Names, order: str, name: str, *, table_is_linear: bool
) -> None:
    """Put every tensor in its place; none may be missing, left over or of another shape."""
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


def convert(
    path: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    layout: str | None = None,
    size: int | None = None,
    head_channels: int = 64,
    betas: str = "linear",
) -> dict[str, Any]:
    """Write a checkpoint of others as a model of ours.

    Args:
        path: a .pkl of EDM or a .pt of OpenAI.
        to: the .safetensors file to write.
        layout: one of :data:`LAYOUTS`; None looks at the file, as far as it tells.
        size: side of the images; needed for .pt files.
        head_channels: channels of an attention head in .pt files.
        betas: the table of a guided-diffusion model, "linear" or "cosine".

    Returns:
        What was written: file, fingerprint, shape, classes, parameters, and the card.

    Raises:
        ArtefactError: the file is missing, truncated or hostile, or its tensors do not fit.
        InputError: an unknown layout, or one that the file is not of.
    """
    source, target = Path(path), Path(to)
    if target.suffix != ".safetensors":
        raise InputError("to", str(to), "must end in .safetensors")
    if layout is not None and layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if size is not None and size < 1:
        raise InputError("size", size, "must be a positive number of pixels")
    value = read_checkpoint(source)
    layout = layout or _guess(value, str(path))
    if layout == "edm":
        model, card = _of_edm(value, str(path))
    else:
        model, card = _of_openai(value, str(path), layout, size, head_channels, betas)
    card = {"converted_from": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest(), **card}
    with torch.no_grad():
        mark = save_artefact(target, model.eval(), card=card)
    return {
        "file": str(target), "fingerprint": mark, "shape": list(model.shape), "num_classes": model.num_classes,
        "parameters": sum(p.numel() for p in model.parameters()), **card,
    }  # fmt: skip


def _guess(value: Any, name: str) -> str:
    """The layout of a file, where the file tells."""
    if isinstance(value, Record) or (isinstance(value, Mapping) and isinstance(value.get("ema"), Record)):
        return "edm"
    if isinstance(value, Mapping) and "time_embed.0.weight" in value:
        if value["out.2.weight"].shape[0] != value["input_blocks.0.0.weight"].shape[1]:
            return "guided-diffusion"
        mend = "consistency models and their teachers look alike; say --from consistency or consistency-teacher"
        raise InputError("layout", None, mend)
    raise ArtefactError("checkpoint", name, f"is of no known layout; known: {', '.join(LAYOUTS)}")
