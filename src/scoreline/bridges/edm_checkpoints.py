"""EDM's networks in our U-Net: SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM), in any of its preconditionings.

With D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), F the network:
    EDMPrecond    edm_scalings                                                          kind edm on EDM's schedule
    VPPrecond     1, -sigma, 1/sqrt(sigma^2 + 1), 999 t(sigma)                          kind eps on VP
    VEPrecond     1, sigma, 1, ln(sigma/2)                                              kind eps on VE, F = -eps
    iDDPMPrecond  1, -sigma, 1/sqrt(sigma^2 + 1), M - 1 - argmin_j |u_j - sigma|        kind eps on a cosine table

Reference: Karras et al. 2022 (arXiv 2206.00364), table 1 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from scoreline.bridges.foreign_unets import Names, both, fill, resamples
from scoreline.bridges.unpickling import Record, tensors_of
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VE, VP, Discrete
from scoreline.nn.unet import UNet

__all__ = ["PRECONDITIONINGS", "edm_arguments", "edm_names", "iddpm_betas", "of_edm"]


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
    size, levels = net.in_shape[1], len([s for s in net.encoder if resamples(s)]) + 1
    blocks = (len(net.encoder) - levels + 1) // levels
    yield from both("input", f"enc.{size}x{size}_conv")
    yield from both("embedding.mlp.linear0", "map_layer0")
    yield from both("embedding.mlp.linear1", "map_layer1")
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
        decoder += [f"{2 * (size >> level)}x{2 * (size >> level)}_up"] * (level > 0)
    for i, name in enumerate(encoder):
        yield from _stage(f"encoder.{i}", f"enc.{name}", net.encoder[i])
        if str(i) in net.pyramid:
            yield from both(f"pyramid.{i}.conv", f"enc.{name.replace('_down', '_aux_residual')}")
    low = f"{size >> (levels - 1)}x{size >> (levels - 1)}"
    for i in range(2):
        yield from _stage(f"middle.{i}", f"dec.{low}_in{i}", net.middle[i])
    for i, name in enumerate(decoder):
        yield from _stage(f"decoder.{i}", f"dec.{name}", net.decoder[i])
    head = (f"dec.{size}x{size}_aux_norm", f"dec.{size}x{size}_aux_conv") if song else ("out_norm", "out_conv")
    yield from both("output_norm", head[0])
    yield from both("output", head[1])


def _stage(ours: str, theirs: str, stage: Any) -> Names:
    pairs = [(f"block.{part}", part) for part in ("norm0", "conv0", "affine", "norm1", "conv1")]
    pairs += [("block.projection", "skip")] if stage.block.projection is not None else []
    if stage.attention is not None:
        pairs += [("attention.norm", "norm2"), ("attention.qkv", "qkv"), ("attention.proj", "proj")]
    for own, other in pairs:
        yield from both(f"{ours}.{own}", f"{theirs}.{other}")


def of_edm(value: Any, name: str) -> tuple[Denoiser, dict[str, Any]]:
    """The model of what a pickle of EDM holds, and what its card says.

    Args:
        value: the content, with classes as :class:`~scoreline.bridges.unpickling.Record`.
        name: of the file, for errors.

    Raises:
        ArtefactError: no network of EDM, or tensors that do not fit it.
        InputError: a network, setting or preconditioning that is not understood.
    """
    found = value
    if isinstance(value, Mapping):
        found = next((value[key] for key in ("ema", "net") if isinstance(value.get(key), Record)), None)
    if not isinstance(found, Record):
        raise ArtefactError("checkpoint", name, "holds no network of EDM's code (ema)")
    wrapper, model = found.origin, found.__dict__["state"].get("_modules", {}).get("model")
    if not isinstance(model, Record):
        raise ArtefactError("checkpoint", name, f"{wrapper or 'the object in it'} holds no model")
    if wrapper not in PRECONDITIONINGS:
        raise unknown_name("preconditioning", wrapper, PRECONDITIONINGS)
    arguments = edm_arguments(model.origin, model.arguments)
    song = model.origin == "SongUNet"
    net = UNet(**arguments)
    source = {k: v for k, v in tensors_of(model).items() if not k.endswith("resample_filter")}
    fill(net, source, edm_names(net, song), "interleaved", name, table_is_linear=True)
    channels = net.in_shape[0]
    wanted = (channels, 2 * channels) if wrapper == "iDDPMPrecond" else (channels,)
    if net.out_channels not in wanted:
        raise InputError("out_channels", net.out_channels, f"{wrapper} has {' or '.join(map(str, wanted))}")
    denoiser = PRECONDITIONINGS[wrapper](net, found.arguments)
    return denoiser, {"layout": "edm", "network": model.origin, "preconditioning": wrapper}


def _edm(net: UNet, given: Mapping[str, Any]) -> Denoiser:
    return Preconditioned(net, EDM(), sigma_data=float(given.get("sigma_data", 0.5)))


def _vp(net: UNet, given: Mapping[str, Any]) -> Denoiser:
    if given.get("M", 1000) != 1000:
        raise InputError("M", given["M"], "only the time input 999 t of VPPrecond is understood")
    low, span = float(given.get("beta_min", 0.1)), float(given.get("beta_d", 19.9))
    schedule = VP(beta_min=low, beta_max=low + span, t_min=float(given.get("epsilon_t", 1e-5)))
    return Preconditioned(net, schedule, kind="eps", time_input="999t")


@torch.no_grad()
def _ve(net: UNet, given: Mapping[str, Any]) -> Denoiser:
    schedule = VE(sigma_min=float(given.get("sigma_min", 0.02)), sigma_max=float(given.get("sigma_max", 100.0)))
    # D = x + sigma F is the model whose noise estimate is -F: the sign goes into the last layer.
    for parameter in net.output.parameters():
        parameter.neg_()
    return Preconditioned(net, schedule, kind="eps", time_input="ln-half-sigma")


def iddpm_betas(M: int = 1000, C_1: float = 0.001, C_2: float = 0.008) -> list[float]:
    """The betas of the levels u_j of iDDPMPrecond, least noise first: level t is j = M - 1 - t.

    u_{j-1} = sqrt((u_j^2 + 1)/max(a_{j-1}/a_j, C_1) - 1), u_M = 0, a_j = sin^2(pi/2 j/(M (C_2 + 1))); since
    abar = 1/(u^2 + 1), beta is 1 - max(a_{j-1}/a_j, C_1).

    Args:
        M: number of levels.
        C_1: least ratio of two neighbours.
        C_2: offset of the cosine.

    Raises:
        InputError: a setting is out of range.
    """
    if M < 2 or not 0 < C_1 < 1 or not C_2 > 0:
        raise InputError("M, C_1, C_2", (M, C_1, C_2), "need M >= 2, 0 < C_1 < 1 and C_2 > 0")
    a = [math.sin(0.5 * math.pi * j / M / (C_2 + 1)) ** 2 for j in range(M + 1)]
    return [1 - max(a[j - 1] / a[j], C_1) for j in range(M, 0, -1)]


def _iddpm(net: UNet, given: Mapping[str, Any]) -> Denoiser:
    levels, least, offset = (given.get(key, usual) for key, usual in (("M", 1000), ("C_1", 0.001), ("C_2", 0.008)))
    schedule = Discrete(betas=iddpm_betas(int(levels), float(least), float(offset)))
    return Preconditioned(net, schedule, kind="eps", learned_variance=net.out_channels == 2 * net.in_shape[0])


PRECONDITIONINGS: dict[str, Callable[[UNet, Mapping[str, Any]], Denoiser]] = {
    "EDMPrecond": _edm, "VPPrecond": _vp, "VEPrecond": _ve, "iDDPMPrecond": _iddpm,
}  # fmt: skip
