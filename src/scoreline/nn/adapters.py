"""Low-rank adapters: W + (alpha/r) U D in place of a layer's weight W, of which only U and D are trained.

    dense        D (r, in),       U (out, r)
    convolution  D (r, in k k),   U (out, r): a convolution to r channels, then a 1x1 convolution
U starts at zero, so that an adapted network starts as the network. `LoRA` holds the small matrices and is what is
saved; attached to a network it changes what the network computes, and `merged` writes the sum into a copy's weights.

Reference: Hu et al. 2021 (LoRA, arXiv 2106.09685).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.errors import InputError

__all__ = ["LoRA", "is_adapted", "merged"]

N = TypeVar("N", bound=nn.Module)

LAYERS = (nn.Linear, nn.Conv2d)


_CLASSES: dict[type, type] = {}


def _adapted(kind: type) -> type:
    """The class of layers whose weight is a sum; the layer's own is called base.

    A class for each kind of layer, and not torch's parametrizations, whose class a copy shares with its original, so
    that taking them off a copy breaks the original.
    """

    def weight(layer: Any) -> Tensor:
        return layer.base + (layer.adapter_scale * (layer.up @ layer.down)).view(layer.base.shape)

    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"Adapted{kind.__name__}", (kind,), {"weight": property(weight), "plain": kind})
    return _CLASSES[kind]


@recorded
class LoRA(nn.Module):
    """The adapters of some layers of a network.

    Args:
        shapes: shape of each layer's weight by the layer's name in the network, (out, in) or (out, in, k, k);
            :meth:`of` reads them from a network.
        rank: r; a layer with fewer rows or columns takes as many as it has.
        alpha: the sum is scaled by alpha/rank; None for alpha = rank.

    Raises:
        InputError: no layers, a rank below 1, or a shape of another kind.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], *, rank: int = 64, alpha: float | None = None) -> None:
        super().__init__()
        if rank < 1:
            raise InputError("rank", rank, "must be 1 or more")
        if not shapes:
            raise InputError("layers", None, "an adapter needs at least one dense layer or convolution")
        self.names, self.rank, self.scale = list(shapes), rank, (rank if alpha is None else alpha) / rank
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, shape in shapes.items():
            if len(shape) not in (2, 4):
                raise InputError(f"shape of {name}", list(shape), "is (out, in) or (out, in, k, k)")
            rows, columns = shape[0], math.prod(shape[1:])
            r = min(rank, rows, columns)
            self.down[_key(name)] = nn.Parameter(torch.empty(r, columns).uniform_(-1, 1) / math.sqrt(columns))
            self.up[_key(name)] = nn.Parameter(torch.zeros(rows, r))

    @classmethod
    def of(
        cls, net: nn.Module, *, rank: int = 64, alpha: float | None = None, layers: Sequence[str] | None = None
    ) -> LoRA:
        """New adapters for a network's dense layers and (ungrouped) convolutions.

        Args:
            net: any network.
            rank, alpha: as for the class.
            layers: patterns of names (`net.named_modules()`), as "decoder.*" or "*.qkv"; None takes all.

        Raises:
            InputError: a pattern fits no such layer, or the network has adapters already.
        """
        if isinstance(layers, str):
            raise InputError("layers", layers, "give a list of patterns")
        if is_adapted(net):
            raise InputError("network", type(net).__name__, "has adapters already; merge them first")
        found = {name: list(m.weight.shape) for name, m in net.named_modules() if _fits(m)}
        for pattern in layers or ():
            if not any(fnmatchcase(name, pattern) for name in found):
                raise InputError("layers", pattern, f"fits none of {len(found)} layers, as {next(iter(found), None)!r}")
        if layers is not None:
            found = {name: shape for name, shape in found.items() if any(fnmatchcase(name, p) for p in layers)}
        return cls(found, rank=rank, alpha=alpha)

    def attach(self, net: N) -> N:
        """Let a network compute with these adapters, in place; all its own parameters are frozen.

        The matrices are shared: what is trained in the network is trained here. Its tensors are named differently from
        then on, so that it is saved by :func:`merged`, or by saving the adapters.

        Raises:
            InputError: a layer is missing, has another shape, or is adapted already.
        """
        modules = dict(net.named_modules())
        for name in self.names:
            module, wanted = modules.get(name), (self.up[_key(name)].shape[0], self.down[_key(name)].shape[1])
            if not _fits(module):
                raise InputError("layer", name, f"is no dense layer or convolution of this {type(net).__name__}")
            shape = tuple(module.weight.flatten(1).shape)  # type: ignore[union-attr]
            if shape != wanted or hasattr(module, "plain"):
                raise InputError("layer", name, f"has a weight {shape} or adapters of its own; these are for {wanted}")
        net.requires_grad_(False)
        for name in self.names:
            layer: Any = modules[name]
            base, rest = layer._parameters["weight"], {k: v for k, v in layer._parameters.items() if k != "weight"}
            down, up = self.down[_key(name)], self.up[_key(name)]
            down.data, up.data = down.data.to(base), up.data.to(base)
            layer._parameters = {"base": base, "down": down, "up": up, **rest}
            layer.__class__, layer.adapter_scale = _adapted(type(layer)), self.scale
            if hasattr(layer, "winograd"):
                layer.winograd = False  # filters that it keeps would not see the sum change
        return net

    def delta(self, name: str) -> Tensor:
        """(alpha/r) U D of a layer, (out, in k k)."""
        return self.scale * (self.up[_key(name)] @ self.down[_key(name)])


def is_adapted(net: nn.Module) -> bool:
    """Whether adapters are attached to a network."""
    return any(hasattr(module, "plain") for module in net.modules())


@torch.no_grad()
def merged(net: N) -> N:
    """A copy whose weights hold the sum, without adapters, every parameter trainable; a plain network to save."""
    made = copy.deepcopy(net)
    for module in made.modules():
        if hasattr(module, "plain"):
            layer: Any = module
            rest = {k: v for k, v in layer._parameters.items() if k not in ("base", "down", "up")}
            layer._parameters = {"weight": nn.Parameter(layer.weight.clone()), **rest}
            layer.__class__ = layer.plain
            layer.__dict__.pop("winograd", None)
            del layer.adapter_scale
    return made.requires_grad_(True)


def _fits(module: nn.Module | None) -> bool:
    return isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1


def _key(name: str) -> str:
    return name.replace(".", "/")
