"""Discriminators that stand on what another network sees: on taps of a denoiser, on a feature network, on pairs.

    logits = concat over taps of head(feature),   (B, K)
A tapped denoiser is told the noise level, so that noised images are judged; a feature network sees clean ones. The pair
form judges two states of one path by one logit, head(concat(F(x, t), F(y, s))).

Reference: Sauer et al. 2023 (StyleGAN-T, heads on frozen features); Sauer et al. 2024 (latent adversarial diffusion
distillation, heads on the teacher); Bai & Xu 2024 (arXiv 2407.06095, pairs).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.encoder import Checked, Encoder
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.schedule import Time
from scoreline.nn.blocks import group_norm
from scoreline.nn.network import Network
from scoreline.nn.plan import Plan
from scoreline.nn.unet import UNet

__all__ = ["HEADS", "FeatureDiscriminator", "PairDiscriminator", "TapDiscriminator", "encoder_of", "head_for"]

HEADS = ("conv", "pool", "strided")
TRAINED = ("heads", "all")


class _Patches(nn.Module):
    """A logit for each pixel, token or vector: 3x3 convolution (dense elsewhere), norm, SiLU, dense; (B, K)."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.maps = len(shape) == 3
        channels = shape[0] if self.maps else shape[-1]
        self.mix = nn.Conv2d(channels, channels, 3, padding=1) if self.maps else nn.Linear(channels, channels)
        self.norm = group_norm(channels, 1e-5) if self.maps else nn.LayerNorm(channels)
        self.last = nn.Conv2d(channels, 1, 1) if self.maps else nn.Linear(channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        return self.last(F.silu(self.norm(self.mix(h)))).flatten(1)


class _Pooled(nn.Module):
    """Conv 3x3, norm, SiLU, conv 4x4 of stride 2, norm, SiLU, mean over pixels, dense: one logit, (B, 1)."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.maps = len(shape) == 3
        channels = shape[0] if self.maps else shape[-1]
        # A map of one pixel has nothing to halve; the kernel then is its middle.
        kernel, stride, padding = (4, 2, 1) if min(shape[1:], default=1) > 1 else (1, 1, 0)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1) if self.maps else nn.Linear(channels, channels),
            group_norm(channels, 1e-5) if self.maps else nn.LayerNorm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, kernel, stride, padding) if self.maps else nn.Linear(channels, channels),
            group_norm(channels, 1e-5) if self.maps else nn.LayerNorm(channels),
            nn.SiLU(),
        )
        self.last = nn.Linear(channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        h = self.layers(h)
        if h.dim() > 2:
            h = h.mean((2, 3)) if self.maps else h.mean(1)
        return self.last(h)


class _Strided(nn.Module):
    """Convolutions 4x4 of stride 2 down to 4x4 pixels, one of stride 4, each with norm and SiLU, conv 1x1: one logit.

    Vectors pass two dense layers in their place, tokens too, whose logits are averaged.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        maps, layers = len(shape) == 3, list[nn.Module]()
        channels, size = (shape[0], min(shape[1:])) if maps else (shape[-1], 0)
        while size > 4:
            layers += [nn.Conv2d(channels, channels, 4, 2, 1), group_norm(channels, 1e-5), nn.SiLU()]
            size //= 2
        if maps:
            layers += [nn.Conv2d(channels, channels, size, size), group_norm(channels, 1e-5), nn.SiLU()]
        else:
            layers += [
                part for _ in "ab" for part in (nn.Linear(channels, channels), nn.LayerNorm(channels), nn.SiLU())
            ]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(channels, 1, 1) if maps else nn.Linear(channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        return self.last(self.layers(h)).flatten(1).mean(1, keepdim=True)


_HEADS = {"conv": _Patches, "pool": _Pooled, "strided": _Strided}


def head_for(shape: Sequence[int], head: str = "conv") -> nn.Module:
    """A new head for features of one shape.

    Args:
        shape: of one image's feature: (C, H, W), (L, D) tokens or (D,).
        head: "conv", a logit a pixel, "pool", one logit in all (Bai & Xu 2024), or "strided", one logit by strided
            convolutions (Yin et al. 2024, DMD2).

    Raises:
        InputError: an unknown head.

    >>> sum(p.numel() for p in head_for((1024, 8, 8), "pool").parameters())
    26221569
    >>> sum(p.numel() for p in head_for((768, 8, 8), "strided").parameters())
    18879745
    """
    if head not in HEADS:
        raise unknown_name("head", head, HEADS)
    return _HEADS[head](tuple(shape))


def encoder_of(model: Network | Denoiser) -> Any:
    """A copy that ends after its middle: of a U-Net, alone or inside a denoiser, the decoder is left out."""
    model = copy.deepcopy(model).requires_grad_(True)
    net: Any = getattr(model, "net", model)
    if isinstance(net, UNet):
        net = cast(Any, net)
        net.decoder, net.heads = nn.ModuleList(), nn.ModuleDict()
        net.output_norm = net.output = net.widen = None
    return model


class _Tapped(nn.Module):
    """Features of a network or denoiser at a noise level, in one pass that ends after the last tap."""

    def __init__(self, net: Network | Denoiser, taps: Sequence[str] | None) -> None:
        super().__init__()
        self.model = net
        inner: Any = getattr(net, "net", net)
        if not isinstance(inner, Network):
            mend = "a discriminator taps a network of ours, or a denoiser that holds one"
            raise InputError("network", type(inner).__name__, mend)
        if taps is not None and (isinstance(taps, str) or not taps):
            raise InputError("taps", taps, "give a list of names, at least one")
        usual = ("middle",) if "middle" in inner.taps else (f"layer.{inner.num_layers - 1}",)
        self.plan = Plan(taps=tuple(taps or usual), stop=True)
        inner.check(self.plan)
        self.shapes = self._probe(inner)

    def forward(self, x: Tensor, t: Time, cond: Cond | None) -> list[Tensor]:
        if isinstance(self.model, Denoiser):
            found = self.model.under(self.plan)(x, t, cond).taps
        else:
            times = torch.as_tensor(t, dtype=x.dtype, device=x.device).reshape(-1)
            _, found = self.model.trace(x, times, cond, self.plan)
        return [found[name] for name in self.plan.taps]

    def _probe(self, inner: Any) -> list[tuple[int, ...]]:
        """Shapes of the features of one image."""
        given, place = getattr(inner, "_arguments", {}), next(inner.parameters())
        zeros = {
            "labels": None if inner.num_classes is None else (1,),
            "image": (1, given.get("image_channels", 0), *inner.in_shape[1:]),
            "tokens": (1, 1, given.get("context_dim") or 0),
            "vector": (1, given.get("vector_dim") or 0),
            "weight": (1,),
        }
        fields = {
            name: torch.zeros(shape, dtype=torch.int64 if name == "labels" else place.dtype, device=place.device)
            for name, shape in zeros.items()
            if name in inner.accepts and shape is not None
        }
        times = torch.ones((1, 2) if inner.second_time else (1,), dtype=place.dtype, device=place.device)
        x = torch.zeros(1, *inner.in_shape, dtype=place.dtype, device=place.device)
        training = inner.training
        with torch.no_grad():
            _, found = inner.eval().trace(x, times, Cond(**fields) if fields else None, self.plan)
        inner.train(training)
        return [tuple(found[name].shape[1:]) for name in self.plan.taps]


@recorded
class TapDiscriminator(nn.Module):
    """`discriminator(x, t, cond)` -> logits (B, K), from features inside a network that knows noise levels.

    Args:
        net: a network (U-Net, DiT, MLP), told x and t as they are, or a denoiser with its schedule, told x_t and t in
            its schedule. It is not copied.
        taps: names of features (`net.taps`); None takes the U-Net's "middle", the last layer elsewhere.
        head: "conv", "pool" or "strided", see :func:`head_for`; each tap has its own.
        trained: "heads" leaves the network as it is, "all" trains it with them.

    Raises:
        InputError: an unknown tap, head or choice, or a network that cannot be tapped.
    """

    def __init__(
        self, net: Network | Denoiser, taps: Sequence[str] | None = None, *, head: str = "conv", trained: str = "heads"
    ) -> None:
        super().__init__()
        if trained not in TRAINED:
            raise unknown_name("trained", trained, TRAINED)
        self.trunk, self.frozen_trunk = _Tapped(net, taps), trained == "heads"
        self.trunk.requires_grad_(not self.frozen_trunk)
        self.heads = nn.ModuleList(head_for(shape, head) for shape in self.trunk.shapes)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen_trunk:
            self.trunk.eval()
        return self

    def forward(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """Logits, (B, K).

        Args:
            x: (B, *shape), a noised image.
            t: its level, a float or (B,).
            cond: conditions of the batch.
        """
        return torch.cat([head(h) for head, h in zip(self.heads, self.trunk(x, t, cond))], 1)


@recorded
class FeatureDiscriminator(nn.Module):
    """`discriminator(x, t, cond)` -> logits (B, K), from a frozen feature network; t and cond are not looked at.

    Values outside [-1, 1], which feature networks were not made for, are moved to the border, their gradients kept.

    Args:
        encoder: the feature network; it is frozen.
        taps: names among its `tap_names`, or of modules inside it whose output is wanted; None takes its own tap.
        shape: (C, H, W) of the images; None where the encoder says it (`shape`).
        head: see :func:`head_for`.

    Raises:
        InputError: an unknown tap, or an encoder that rounds pixels to bytes, through which no gradient passes.
    """

    def __init__(
        self,
        encoder: Encoder,
        taps: Sequence[str] | None = None,
        *,
        shape: Sequence[int] | None = None,
        head: str = "conv",
    ) -> None:
        super().__init__()
        rounding = encoder.protocol.get("quantisation", "none")
        if rounding != "none":
            raise InputError("encoder", rounding, "rounds pixels, so that no gradient passes; take one that does not")
        self.encoder = encoder.requires_grad_(False).eval()
        self.taps = tuple(taps or (encoder.tap,))
        inside = dict(encoder.named_modules())
        for name in self.taps:
            if name not in encoder.tap_names and (not name or name not in inside):
                raise unknown_name("tap", name, [*encoder.tap_names, *filter(None, inside)])
        check = encoder.preprocess
        known = getattr(encoder, "shape", None)
        if known is None and isinstance(check, Checked) and check.size is not None and check.channels is not None:
            known = (check.channels, *check.size)
        if shape is None and known is None:
            raise InputError("shape", None, f"{type(encoder).__name__} takes images of any size; give shape=(C, H, W)")
        place = next(encoder.parameters(), torch.empty(0)).device
        with torch.no_grad():
            features = self._features(torch.zeros(1, *(shape or known or ()), device=place))
        self.heads = nn.ModuleList(head_for(h.shape[1:], head) for h in features)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x: Tensor, t: Time | None = None, cond: Cond | None = None) -> Tensor:
        """Logits, (B, K), of clean images (B, C, H, W)."""
        return torch.cat([head(h) for head, h in zip(self.heads, self._features(x))], 1)

    def _features(self, x: Tensor) -> list[Tensor]:
        x = x + (x.clamp(-1, 1) - x).detach()
        prepare = self.encoder.preprocess
        if not isinstance(prepare, Checked):  # a mere check would wait for the device in every step
            x = prepare(x)
        own = [name for name in self.taps if name in self.encoder.tap_names]
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            return lambda module, given, made: found.__setitem__(name, made)

        hooks = [
            self.encoder.get_submodule(name).register_forward_hook(keep(name)) for name in self.taps if name not in own
        ]
        try:
            found |= self.encoder.activations(x, own or [self.encoder.tap])
        finally:
            for hook in hooks:
                hook.remove()
        return [found[name] for name in self.taps]


@recorded
class PairDiscriminator(nn.Module):
    """One logit for two states of a path: head(concat(F(x, t), F(y, s))), F a feature of a network that is trained.

    Args:
        net: a network or denoiser, see :class:`TapDiscriminator`; a copy is trained, without what comes after the tap.
        tap: the feature; None takes the U-Net's "middle", the last layer elsewhere.
        head: see :func:`head_for`.

    Reference: Bai & Xu 2024.
    """

    def __init__(self, net: Network | Denoiser, tap: str | None = None, *, head: str = "pool") -> None:
        super().__init__()
        own = encoder_of(net) if tap in (None, "middle", "bottleneck") else copy.deepcopy(net)
        self.trunk = _Tapped(own, None if tap is None else (tap,))
        self.trunk.requires_grad_(True)
        shape = self.trunk.shapes[0]
        both = (2 * shape[0], *shape[1:]) if len(shape) != 2 else (shape[0], 2 * shape[1])
        self.head = head_for(both, head)

    def forward(self, x: Tensor, t: Time, y: Tensor, s: Time, cond: Cond | None = None) -> Tensor:
        """Logits, (B, K).

        Args:
            x, t: the first state and its level.
            y, s: the second state and its level.
            cond: conditions of both.
        """
        first, second = self.trunk(x, t, cond)[0], self.trunk(y, s, cond)[0]
        return self.head(torch.cat([first, second], 2 if first.dim() == 3 else 1))
