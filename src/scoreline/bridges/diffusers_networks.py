"""Networks of the diffusers library behind our network contract, plans included.

A plan needs to act inside blocks that belong to another library. For the time of one call the `forward` of the parts it
touches is replaced on the instance, and put back afterwards: without a plan the network is exactly what diffusers
built, and a dropped part is not computed. Skip joints are numbered from the deepest, one a residual block of the
decoder; layers in forward order, residual and attention parts apart, as in our own U-Net.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError, unknown_name
from scoreline.nn.network import Network
from scoreline.nn.plan import Tracer
from scoreline.nn.unet import Joint

__all__ = ["DiffusersDiT", "DiffusersUNet"]

Forward = Callable[..., Any]


class _Done(Exception):
    """The last wanted tap was reached; what follows is not computed."""


@contextmanager
def _replaced(forwards: list[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """The `forward` of some modules replaced for a while."""
    before = [(module, module.__dict__.get("forward")) for module, _ in forwards]
    try:
        for module, forward in forwards:
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in before:
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


def _keep(tracer: Tracer, name: str, value: Tensor) -> None:
    if tracer.keep(name, value) or tracer.done:
        raise _Done


def _module(given: nn.Module | Mapping[str, Any], known: tuple[str, ...]) -> nn.Module:
    """A network of diffusers, or the one that a config describes, freshly initialised."""
    if isinstance(given, nn.Module):
        return given
    from scoreline.bridges.diffusers_models import diffusers_library

    name = str(given.get("_class_name"))
    if name not in known:
        raise unknown_name("class of diffusers", name, known)
    return getattr(diffusers_library(), name).from_config(dict(given)).eval()


def _config(module: Any) -> dict[str, Any]:
    """The config of a network, as plain values from which it is built again."""
    said = json.loads(module.to_json_string())
    kept = {key: value for key, value in said.items() if not key.startswith("_")}
    return {"_class_name": type(module).__name__, **kept}


class _Foreign(Network):
    """What the networks below share: the call, with and without a plan.

    Args:
        module: diffusers' network.
        in_shape: (C, H, W).
        num_classes: number of classes, or None.
        null_row: whether the class table has a row for "no class" behind the others.
    """

    def __init__(self, module: nn.Module, in_shape: tuple[int, ...], num_classes: int | None, null_row: bool) -> None:
        super().__init__()
        self.module, self.in_shape, self.num_classes, self.null_row = module, in_shape, num_classes, null_row
        self.second_time, self.num_attention_maps = False, 0

    def null(self, cond: Cond | None) -> Cond:
        """`cond` with every label replaced by "no class".

        Raises:
            InputError: the model was not trained without its conditions, or nothing says how it was.
        """
        if not self.null_row:
            mend = "nothing in the folder says how this model is asked without its condition"
            raise InputError("null condition", type(self.module).__name__, mend)
        return super().null(cond)

    def _run(self, x: Tensor, t: Tensor, cond: Cond, tracer: Tracer | None) -> Tensor | None:
        t = t.expand(len(x))
        if tracer is None:
            return self._call(x, t, cond)
        try:
            with _replaced(self._forwards(tracer)):
                return self._call(x, t, cond)
        except _Done:
            return None

    def _call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network itself, (B, ...); each kind of network defines this."""
        raise NotImplementedError

    def _forwards(self, tracer: Tracer) -> list[tuple[nn.Module, Forward]]:
        """Which parts act differently under the tracer's plan, and how; each kind of network defines this."""
        raise NotImplementedError


class DiffusersUNet(_Foreign):
    """diffusers' `UNet2DModel` or `UNet2DConditionModel`.

    Taps: "input" (after the first convolution), "layer.i", "bottleneck", "middle", "joint.i.skip", "joint.i.hidden" and
    "decoder" (before the last norm). A dropped residual block keeps its shortcut with its resampling, a dropped
    attention part is the identity. Attention maps cannot be tapped.

    Args:
        module: the network, or its config, as an artefact holds it.
        in_shape: (C, H, W); None takes `sample_size` of its config.
        null_row: the last row of its class table means "no class".

    Raises:
        InputError: an input that has no place in our conditions, or no image size.
    """

    def __init__(
        self,
        module: nn.Module | Mapping[str, Any],
        in_shape: tuple[int, ...] | None = None,
        *,
        null_row: bool = False,
    ) -> None:
        module = _module(module, ("UNet2DModel", "UNet2DConditionModel"))
        config: Any = module.config
        size = config.sample_size
        if in_shape is None:
            if size is None:
                raise InputError("sample_size", None, "the config names no image size; give in_shape=(C, H, W)")
            in_shape = (config.in_channels, *((size, size) if isinstance(size, int) else size))
        rows = config.num_class_embeds
        if config.class_embed_type is not None:
            raise InputError("class_embed_type", config.class_embed_type, "only a table of classes is understood")
        if getattr(config, "addition_embed_type", None) is not None:
            raise InputError("addition_embed_type", config.addition_embed_type, "models with more inputs are not read")
        super().__init__(module, tuple(in_shape), None if rows is None else rows - null_row, null_row)
        # What a student that starts as a copy is saved with.
        self._arguments = {"module": _config(module), "in_shape": list(in_shape), "null_row": null_row}
        self.out_channels = config.out_channels
        self.tokens = type(module).__name__ == "UNet2DConditionModel"
        wanted = {"labels": rows is not None, "tokens": self.tokens, "mask": self.tokens}
        self.accepts = frozenset(name for name, there in wanted.items() if there)
        self._learned_time = getattr(config, "time_embedding_type", "") == "learned"

        parts: Any = module
        middle_block = [] if parts.mid_block is None else [parts.mid_block]
        blocks = [*parts.down_blocks, *middle_block, *parts.up_blocks]
        self._layers = [layer for block in blocks for layer in _layers_of(block)]
        self.num_layers = len(self._layers)
        self._joined = [resnet for block in parts.up_blocks for resnet in block.resnets]
        hidden = [int(parts.down_blocks[-1].resnets[-1].out_channels)]
        hidden += [int(resnet.out_channels) for resnet in self._joined[:-1]]
        height = in_shape[1] >> (len(parts.down_blocks) - 1)
        heights = [height << level for level, block in enumerate(parts.up_blocks) for _ in block.resnets]
        self.joints: tuple[Joint, ...] = tuple(
            Joint(side, h, int(resnet.in_channels) - h)
            for side, h, resnet in zip(heights, hidden, self._joined, strict=True)
        )
        middle = ("bottleneck", "middle") if parts.mid_block is not None else ()
        self.taps = (
            *("input", *middle, "decoder"),
            *(f"layer.{i}" for i in range(self.num_layers)),
            *(f"joint.{i}.{side}" for i in range(len(self.joints)) for side in ("skip", "hidden")),
        )

    def _call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        more: dict[str, Any] = {}
        if self.tokens:
            more = {"encoder_hidden_states": cond.tokens, "encoder_attention_mask": cond.mask}
        times = t.long() if self._learned_time else t
        return self.module(x, times, class_labels=cond.labels, return_dict=False, **more)[0]

    def _forwards(self, tracer: Tracer) -> list[tuple[nn.Module, Forward]]:
        module: Any = self.module
        joint_of = {id(resnet): i for i, resnet in enumerate(self._joined)}
        plan: list[tuple[nn.Module, Forward]] = [
            (layer, partial(self._layer, tracer, layer, index, joint_of.get(id(layer)), layer.forward))
            for index, layer in enumerate(self._layers)
        ]
        plan.append((module.conv_in, partial(_after, tracer, "input", module.conv_in.forward)))
        if module.mid_block is not None:
            plan.append((module.mid_block, partial(_around, tracer, "bottleneck", "middle", module.mid_block.forward)))
        last = module.conv_norm_out if module.conv_norm_out is not None else module.conv_out
        plan.append((last, partial(_before, tracer, "decoder", last.forward)))
        return plan

    def _layer(
        self, tracer: Tracer, layer: Any, index: int, joint: int | None, forward: Forward, x: Tensor,
        *args: Any, **more: Any,
    ) -> Any:  # fmt: skip
        if joint is not None:
            # The block reads concat(hidden, skip); both sides pass the plan's factors.
            sides = self.joints[joint]
            hidden, skip = tracer.join(joint, *x.split((sides.hidden, sides.skip), 1))
            if tracer.done:
                raise _Done
            x = torch.cat([hidden, skip], 1)
        if index in tracer.plan.drop:
            out: Any = _shortcut(layer, x)
            wrapped = (out,) if more.get("return_dict", True) is False else out
        else:
            wrapped = forward(x, *args, **more)
        _keep(tracer, f"layer.{index}", wrapped[0] if isinstance(wrapped, tuple) else wrapped)
        return wrapped


def _layers_of(block: Any) -> list[nn.Module]:
    """The residual and attention parts of a block in the order in which it calls them."""
    resnets, attentions = list(block.resnets), [a for a in getattr(block, "attentions", ()) if a is not None]
    if "Mid" in type(block).__name__:
        parts = [resnets[0]]
        for i, resnet in enumerate(resnets[1:]):
            parts += [attentions[i], resnet] if i < len(attentions) else [resnet]
        return parts
    if len(attentions) in (0, len(resnets)):
        parts = [part for pair in zip(resnets, attentions) for part in pair] if attentions else resnets
    else:
        parts = [*resnets, *attentions]
    resamplers = [*(getattr(block, "downsamplers", None) or ()), *(getattr(block, "upsamplers", None) or ())]
    resamplers += [getattr(block, name, None) for name in ("resnet_down", "resnet_up")]
    return [*parts, *(part for part in resamplers if part is not None and hasattr(part, "conv_shortcut"))]


def _shortcut(layer: Any, x: Tensor) -> Tensor:
    """What is left of a dropped part: of a residual block its shortcut, of attention nothing."""
    if not hasattr(layer, "conv_shortcut"):
        return x
    if layer.upsample is not None:
        x = layer.upsample(x)
    elif layer.downsample is not None:
        x = layer.downsample(x)
    return x if layer.conv_shortcut is None else layer.conv_shortcut(x)


def _before(tracer: Tracer, name: str, forward: Forward, x: Tensor, *args: Any, **more: Any) -> Any:
    _keep(tracer, name, x)
    return forward(x, *args, **more)


def _after(tracer: Tracer, name: str, forward: Forward, x: Tensor, *args: Any, **more: Any) -> Any:
    out = forward(x, *args, **more)
    _keep(tracer, name, out)
    return out


def _around(tracer: Tracer, first: str, last: str, forward: Forward, x: Tensor, *args: Any, **more: Any) -> Any:
    _keep(tracer, first, x)
    out = forward(x, *args, **more)
    _keep(tracer, last, out)
    return out


class DiffusersDiT(_Foreign):
    """diffusers' `DiTTransformer2DModel`: layers attention 0, MLP 1, attention 2, ...; the null class has its own row.

    Taps: "input" (tokens with positions), "layer.i" and "decoder" (tokens before the head). There are no skip joints.

    Args:
        module: the network, or its config, as an artefact holds it.
    """

    def __init__(self, module: nn.Module | Mapping[str, Any]) -> None:
        module = _module(module, ("DiTTransformer2DModel",))
        config: Any = module.config
        size = config.sample_size
        super().__init__(module, (config.in_channels, size, size), config.num_embeds_ada_norm, True)
        self._arguments = {"module": _config(module)}
        self.out_channels = config.in_channels if config.out_channels is None else config.out_channels
        self.accepts = frozenset({"labels"})
        self._blocks = list(module.transformer_blocks)  # type: ignore[arg-type]
        self.num_layers = 2 * len(self._blocks)
        self.taps = ("input", "decoder", *(f"layer.{i}" for i in range(self.num_layers)))

    def _call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert cond.labels is not None
        return self.module(x, timestep=t, class_labels=cond.labels.expand(len(x)), return_dict=False)[0]

    def _forwards(self, tracer: Tracer) -> list[tuple[nn.Module, Forward]]:
        module: Any = self.module
        plan: list[tuple[nn.Module, Forward]] = [
            (module.pos_embed, partial(_after, tracer, "input", module.pos_embed.forward)),
            (module.norm_out, partial(_before, tracer, "decoder", module.norm_out.forward)),
        ]
        for i, block in enumerate(self._blocks):
            # What the second norm reads are the tokens after the attention.
            plan.append((block.norm3, partial(_before, tracer, f"layer.{2 * i}", block.norm3.forward)))
            plan.append((block, partial(_after, tracer, f"layer.{2 * i + 1}", block.forward)))
            if 2 * i in tracer.plan.drop:
                plan.append((block.attn1, _nothing))
            if 2 * i + 1 in tracer.plan.drop:
                plan.append((block.ff, _nothing))
        return plan


def _nothing(x: Tensor, *args: Any, **more: Any) -> Tensor:
    """A dropped branch: the gate multiplies zeros, the residual sum stays what it was."""
    return torch.zeros_like(x)
