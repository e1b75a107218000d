"""One U-Net for the published pixel networks: DDPM, DDPM++, NCSN++, ADM and their descendants.

Block, resampling and embedding choices are arguments, as in EDM (Karras et al. 2022, arXiv 2206.00364, appendix C);
:mod:`scoreline.nn.unet_presets` names the published settings. The network is raw: it knows no noise schedule and no
preconditioning; its time input is whatever the caller maps the noise level to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.nn.blocks import (
    ALMOST_ZERO,
    Attention,
    BlockStyle,
    ConvResample,
    CrossAttention,
    FIRDownConv,
    Resample,
    ResBlock,
    conv2d,
    group_norm,
    linear_layer,
    norm_silu,
)
from scoreline.nn.embeddings import Conditioning, TimeFeatures, require_choice
from scoreline.nn.network import Network
from scoreline.nn.plan import Tracer

__all__ = ["Joint", "UNet"]


NOTHING: frozenset[int] = frozenset()


class Joint(NamedTuple):
    """A skip joint: the decoder block at `resolution` reads concat(hidden, skip) of so many channels."""

    resolution: int
    hidden: int
    skip: int


class Stage(nn.Module):
    """A residual block (or DDPM's resampling) and the attention parts that follow it."""

    def __init__(
        self, block: ResBlock | ConvResample, attention: Attention | None = None, cross: CrossAttention | None = None
    ) -> None:
        super().__init__()
        self.block, self.attention, self.cross = block, attention, cross

    def layers(self) -> list[ResBlock | Attention | CrossAttention]:
        """The parts that a plan can drop, in forward order."""
        parts = (self.block, self.attention, self.cross)
        return [part for part in parts if part is not None and not isinstance(part, ConvResample)]

    def forward(
        self,
        h: Tensor,
        emb: tuple[Tensor, Tensor | None],
        context: tuple[Tensor, Tensor | None] | None,
        tracer: Tracer | None = None,
    ) -> Tensor:
        """The features after this stage; under a plan, what follows the last wanted tap is left out."""
        drop = NOTHING if tracer is None else tracer.plan.drop
        if isinstance(self.block, ConvResample):
            h = self.block(h)
        else:
            h = self.block.shortcut(h) if self.block.index in drop else self.block(h, *emb)
            if tracer is not None and tracer.keep(self.block.name, h):
                return h
        if self.attention is not None:
            if self.attention.index not in drop:
                h = self.attention(h, tracer)
            if tracer is not None and (tracer.done or tracer.keep(self.attention.name, h)):
                return h
        if self.cross is not None and context is not None:
            if self.cross.index not in drop:
                h = self.cross(h, *context, tracer)
            if tracer is not None and not tracer.done:
                tracer.keep(self.cross.name, h)
        return h


class Head(nn.Module):
    """Norm, SiLU and the convolution to the output's channels, of one level."""

    def __init__(self, channels: int, out_channels: int, eps: float, init: str) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps)
        self.conv = conv2d(channels, out_channels, init=init, gain=ALMOST_ZERO)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(norm_silu(h, self.norm))


@recorded
class UNet(Network):
    """A U-Net with residual blocks, attention at chosen resolutions and skip joints.

    Layers are numbered in forward order over encoder, middle and decoder: every residual block (resampling ones
    included) and every attention part; the input convolution, DDPM's resampling convolutions, the embedding and the
    head are none. Joints are numbered from the deepest. Taps: "input", "layer.i", "attention.i" (the softmax map,
    inside the graph), "bottleneck" (what the encoder hands to the middle), "middle", "joint.i.skip" and
    "joint.i.hidden" (as concatenated, after the plan's factors), "decoder" (before the head), "embedding".

    Args:
        in_shape: (C, H, W) of the noisy image.
        out_channels: channels of the output; None for C (2C for a learned variance).
        base_channels: channels of the first convolution.
        channel_mult: channels of each level, as multiples of `base_channels`; every level halves the resolution.
        num_blocks: residual blocks a level; the decoder has one more.
        attention: resolutions (heights) with self-attention.
        decoder_attention: "each": after every decoder block there (ADM, DDPM); "last": after the level's last (DDPM++).
        middle_attention: attention between the two middle blocks.
        head_channels: channels of an attention head, None for a single head.
        dropout: rate in the residual blocks.
        modulation: "shift" or "scale-shift", how the embedding enters a block.
        rescale: divide every residual sum by sqrt(2).
        resampling: "block": in residual blocks (BigGAN); "conv": by plain convolutions (DDPM).
        resampling_filter: (1, 1) or (1, 3, 3, 1).
        resampling_projection: 1x1 convolution in the shortcut of resampling blocks.
        input_pyramid: add the FIR-downsampled input at each level, by convolutions (NCSN++'s residual encoder).
        input_skip: add the downsampled input itself at each level, by 1x1 convolutions (NCSN++ from 256 pixels on).
        output_skip: sum heads of all levels, upsampled, in place of one head (NCSN++ from 256 pixels on).
        norm_eps: epsilon of the norms.
        init: "xavier" (Song et al.) or "default" (ADM; output convolutions zero).
        time_features: "sin-cos", "cos-sin" or "fourier".
        time_channels: number of time features; None for `base_channels`, twice that for "fourier".
        time_scale: multiplies the time input.
        fourier_scale: standard deviation of the "fourier" frequencies.
        embedding_channels: size of the embedding, None for 4 `base_channels`.
        second_time: take two times, t of shape (B, 2) (CTM).
        num_classes: number of classes, None for an unconditional network.
        labels: where labels enter: "input", "output", "output-bias" or "separate".
        null_label: "zero" or "learned", the row of label `num_classes`.
        augment_dim: number of augmentation labels, 0 for none; they may be left out of a call.
        context_dim: size of context tokens, 0 for none; cross-attention follows every self-attention.
        vector_dim: size of a global vector, 0 for none.
        image_channels: channels of an image that is concatenated to the input, 0 for none.
        weight_input: take a guidance strength as an input (guidance distillation).

    Raises:
        InputError: a setting is impossible.
    """

    def __init__(
        self,
        *,
        in_shape: Sequence[int],
        out_channels: int | None = None,
        base_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention: Sequence[int] = (16,),
        decoder_attention: str = "each",
        middle_attention: bool = True,
        head_channels: int | None = None,
        dropout: float = 0.0,
        modulation: str = "shift",
        rescale: bool = False,
        resampling: str = "block",
        resampling_filter: Sequence[int] = (1, 1),
        resampling_projection: bool = False,
        input_pyramid: bool = False,
        input_skip: bool = False,
        output_skip: bool = False,
        norm_eps: float = 1e-6,
        init: str = "xavier",
        time_features: str = "sin-cos",
        time_channels: int | None = None,
        time_scale: float = 1.0,
        fourier_scale: float = 16.0,
        embedding_channels: int | None = None,
        second_time: bool = False,
        num_classes: int | None = None,
        labels: str = "input",
        null_label: str = "zero",
        augment_dim: int = 0,
        context_dim: int = 0,
        vector_dim: int = 0,
        image_channels: int = 0,
        weight_input: bool = False,
    ) -> None:
        super().__init__()
        _check_settings(in_shape, base_channels, channel_mult, num_blocks, attention)
        require_choice("decoder_attention", decoder_attention, ("each", "last"))
        require_choice("resampling", resampling, ("block", "conv"))
        if input_pyramid and input_skip:
            raise InputError("input_skip", True, "is another form of the input pyramid; choose one of the two")
        channels, height, _ = self.in_shape = (int(in_shape[0]), int(in_shape[1]), int(in_shape[2]))
        self.out_channels = channels if out_channels is None else out_channels
        self.num_classes, self.second_time = num_classes, second_time
        given = {"labels": num_classes is not None, "tokens": context_dim, "mask": context_dim, "vector": vector_dim}
        given |= {"image": image_channels, "weight": weight_input, "augment": augment_dim}
        self.accepts = frozenset(name for name, there in given.items() if there)

        emb = 4 * base_channels if embedding_channels is None else embedding_channels
        if time_channels is None:
            time_channels = base_channels * (2 if time_features == "fourier" else 1)
        self.embedding = Conditioning(
            TimeFeatures(time_channels, time_features, scale=time_scale, fourier_scale=fourier_scale),
            emb,
            partial(linear_layer, init=init),
            num_classes=num_classes,
            labels=labels,
            null_label=null_label,
            second_time=second_time,
            augment_dim=augment_dim,
            vector_dim=vector_dim,
            weight_input=weight_input,
        )
        style = BlockStyle(
            embedding_channels=self.embedding.out_channels,
            second_channels=emb if second_time else 0,
            modulation=modulation,
            residual_scale=math.sqrt(0.5) if rescale else 1.0,
            filter=tuple(resampling_filter),
            project=resampling_projection,
            head_channels=head_channels,
            eps=norm_eps,
            dropout=dropout,
            init=init,
        )

        def stage(c_in: int, c_out: int, attend: bool, resample: str | None = None) -> Stage:
            if resample is not None and resampling == "conv":
                return Stage(ConvResample(c_in, resample, style))
            cross = CrossAttention(c_out, context_dim, style) if attend and context_dim else None
            return Stage(ResBlock(c_in, c_out, style, resample), Attention(c_out, style) if attend else None, cross)

        # Encoder: what each stage hands on is a skip; `pyramid` keys the input pyramid by encoder stage.
        self.input = conv2d(channels + image_channels, base_channels, init=init)
        self.encoder, self.pyramid = nn.ModuleList(), nn.ModuleDict()
        self.shrink = Resample("down", style.filter) if input_skip else None
        skips, c, side = [base_channels], base_channels, channels + image_channels
        for level, mult in enumerate(channel_mult):
            attend = height >> level in attention
            if level:
                if input_pyramid:
                    self.pyramid[str(len(self.encoder))] = FIRDownConv(side, c, style)
                    side = c
                elif input_skip:
                    self.pyramid[str(len(self.encoder))] = conv2d(side, c, 1, init=init)
                self.encoder.append(stage(c, c, False, "down"))
                skips.append(c)
            for _ in range(num_blocks):
                self.encoder.append(stage(c, base_channels * mult, attend))
                c = base_channels * mult
                skips.append(c)
        self.middle = nn.ModuleList([stage(c, c, middle_attention), stage(c, c, False)])

        # Decoder: a stage that is no upsampling one reads concat(hidden, skip).
        # With `output_skip` the levels' heads are keyed by the last decoder stage of their resolution.
        self.decoder, joints = nn.ModuleList(), []
        self.heads = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_blocks + 1):
                attend = height >> level in attention and (decoder_attention == "each" or i == num_blocks)
                joints.append(Joint(height >> level, c, skips.pop()))
                self.decoder.append(stage(c + joints[-1].skip, base_channels * mult, attend))
                c = base_channels * mult
            if output_skip:
                self.heads[str(len(self.decoder) - 1)] = Head(c, self.out_channels, norm_eps, init)
            if level:
                self.decoder.append(stage(c, c, False, "up"))
        self.joints = tuple(joints)
        self._joins = tuple(i % (num_blocks + 2) <= num_blocks for i in range(len(self.decoder)))
        self.widen = Resample("up", style.filter) if output_skip else None
        if not output_skip:
            self.output_norm = group_norm(c, norm_eps)
            self.output = conv2d(c, self.out_channels, init=init, gain=ALMOST_ZERO)
        self._pyramid_scale = style.residual_scale
        # On the CPU convolutions run faster forwards on channels-last pixels; the gradients of norms run slower.
        # Anybody may set it.
        self.channels_last = True
        self._number()

    def _number(self) -> None:
        stages: list[Stage] = [*self.encoder, *self.middle, *self.decoder]
        layers = [layer for stage in stages for layer in stage.layers()]
        maps = 0
        for index, layer in enumerate(layers):
            layer.index, layer.name = index, f"layer.{index}"
            if not isinstance(layer, ResBlock):
                layer.map_name, maps = f"attention.{maps}", maps + 1
        self.num_layers, self.num_attention_maps = len(layers), maps
        self.taps = (
            *("input", "bottleneck", "middle", "decoder", "embedding"),
            *(f"layer.{i}" for i in range(len(layers))),
            *(f"attention.{i}" for i in range(maps)),
            *(f"joint.{i}.{side}" for i in range(len(self.joints)) for side in ("skip", "hidden")),
        )

    def _run(self, x: Tensor, t: Tensor, cond: Cond, tracer: Tracer | None) -> Tensor | None:
        emb = self.embedding(t, cond, x.dtype)
        context = None if cond.tokens is None else _masked(cond.tokens.to(x.dtype), cond.mask)
        if cond.image is not None:
            x = torch.cat([x, cond.image.expand(x.shape[0], -1, -1, -1)], 1)
        h = self.input(x)
        if self.channels_last and h.device.type == "cpu" and not torch.is_grad_enabled():
            h = h.contiguous(memory_format=torch.channels_last)
        if tracer is not None and (tracer.keep("embedding", emb[0]) or tracer.keep("input", h)):
            return None

        skips, side = [h], x
        for i, stage in enumerate(self.encoder):
            h = stage(h, emb, context, tracer)
            if str(i) in self.pyramid:
                if self.shrink is not None:
                    side = self.shrink(side)
                    h = self.pyramid[str(i)](side) + h
                else:
                    h = side = (self.pyramid[str(i)](side) + h) * self._pyramid_scale
            if tracer is not None and tracer.done:
                return None
            skips.append(h)
        if tracer is not None and tracer.keep("bottleneck", h):
            return None
        for stage in self.middle:
            h = stage(h, emb, context, tracer)
        if tracer is not None and (tracer.done or tracer.keep("middle", h)):
            return None

        joint, out = 0, None
        for i, (joins, stage) in enumerate(zip(self._joins, self.decoder)):
            if joins:
                skip = skips.pop()
                if tracer is not None:
                    h, skip = tracer.join(joint, h, skip)
                    joint += 1
                h = torch.cat([h, skip], 1)
            h = stage(h, emb, context, tracer)
            if tracer is not None and tracer.done:
                return None
            if self.widen is not None and str(i) in self.heads:
                # The network's answer is a pyramid: the head of every level, on top of the coarser ones.
                head = self.heads[str(i)](h)
                out = head if out is None else self.widen(out) + head
        if tracer is not None and tracer.keep("decoder", h):
            return None
        return self.output(norm_silu(h, self.output_norm)) if out is None else out


def _masked(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens and mask for attention; an image with all its tokens masked sees null tokens, not 0 / 0."""
    if mask is None:
        return tokens, None
    some = mask.any(1)
    return tokens * some[:, None, None], (mask | ~some[:, None])[:, None, None]


def _check_settings(
    in_shape: Sequence[int], base_channels: int, channel_mult: Sequence[int], num_blocks: int, attention: Sequence[int]
) -> None:
    if len(in_shape) != 3 or min(in_shape) < 1:
        raise InputError("in_shape", tuple(in_shape), "give (channels, height, width)")
    if base_channels < 4 or base_channels % 4:
        raise InputError("base_channels", base_channels, "must be a multiple of 4")
    if not channel_mult or min(channel_mult) < 1:
        raise InputError("channel_mult", tuple(channel_mult), "give one positive multiple a level")
    if num_blocks < 1:
        raise InputError("num_blocks", num_blocks, "must be at least 1")
    factor = 2 ** (len(channel_mult) - 1)
    for side in in_shape[1:]:
        if side % factor:
            mend = f"{len(channel_mult)} levels halve the image {len(channel_mult) - 1} times: {factor} must divide it"
            raise InputError("in_shape", tuple(in_shape), mend)
    heights = [in_shape[1] >> level for level in range(len(channel_mult))]
    for resolution in attention:
        if resolution not in heights:
            raise InputError("attention resolution", resolution, f"the levels have heights {heights}")
