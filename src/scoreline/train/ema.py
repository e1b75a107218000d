"""Exponential moving averages of weights: parameters averaged, buffers copied.

theta_avg <- beta theta_avg + (1 - beta) theta, with several schedules of beta side by side. The averages are float32
master copies (float64 where the parameters are); buffers are not averaged, so the live module's own ones are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.core.errors import InputError, unknown_name

__all__ = ["EMA", "RULES", "Averages", "ConstantDecay", "Decay", "HalfLife", "PowerFunction", "WarmUpDecay", "decays"]

Decay = Callable[[int, int, int], float]
"""beta(n, images, batch): n = 1, 2, ... counts updates of the average; of the `images` so far, `batch` are new."""

EMA = float | Decay | Sequence[float | Decay] | Mapping[str, float | Decay] | None


def _check_decay(decay: float, start: int) -> None:
    if not 0 <= decay < 1:
        raise InputError("ema", decay, "a decay lies in [0, 1)")
    if start < 0:
        raise InputError("start", start, "counts updates: 0 or more")


@dataclass(frozen=True)
class ConstantDecay:
    """beta = decay; the first `start` updates copy the weights."""

    decay: float
    start: int = 0

    def __post_init__(self) -> None:
        _check_decay(self.decay, self.start)

    def __call__(self, n: int, images: int, batch: int) -> float:
        return self.decay if n > self.start else 0.0


@dataclass(frozen=True)
class WarmUpDecay:
    """beta = min(decay, (1 + n) / (10 + n)), n counted after `start` updates that copy.

    Reference: the moving average of Song et al., Score-Based Generative Modeling through SDEs, 2021.

    >>> WarmUpDecay(0.999)(1, 0, 0) == 2 / 11
    True
    """

    decay: float
    start: int = 0

    def __post_init__(self) -> None:
        _check_decay(self.decay, self.start)

    def __call__(self, n: int, images: int, batch: int) -> float:
        n -= self.start
        return min(self.decay, (1 + n) / (10 + n)) if n > 0 else 0.0


@dataclass(frozen=True)
class HalfLife:
    """beta = 2^(-batch / h), h = min(half-life, ramp * images seen before), both counted in images.

    Args:
        images: half-life in images.
        ramp: share of the images seen so far that the half-life may not exceed; None for no ramp-up.

    Reference: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022.
    """

    images: float
    ramp: float | None = 0.05

    def __post_init__(self) -> None:
        if self.images <= 0:
            raise InputError("half-life", self.images, "counts images: more than 0")

    def __call__(self, n: int, images: int, batch: int) -> float:
        half = self.images if self.ramp is None else min(self.images, (images - batch) * self.ramp)
        return 0.5 ** (batch / half) if half > 0 else 0.0


@dataclass(frozen=True)
class PowerFunction:
    """beta = (1 - batch / images)^(gamma + 1): the average's profile is t^gamma, of relative width `width`.

    width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Args:
        width: standard deviation of the profile as a share of the training so far, in (0, 0.28].

    Reference: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, section 3.1.

    >>> round(PowerFunction(0.1).gamma, 2), round(PowerFunction(0.05).gamma, 2)
    (6.94, 16.97)
    """

    width: float

    def __post_init__(self) -> None:
        if not 0 < self.width <= 12**-0.5:
            raise InputError("width", self.width, "a power-function average has a relative width in (0, 0.288]")

    @cached_property
    def gamma(self) -> float:
        """The exponent: largest real root of gamma^3 + 7 gamma^2 + (16 - w) gamma + 12 - w, w = width^-2."""
        w = self.width**-2
        roots = np.roots([1, 7, 16 - w, 12 - w])
        return max(float(root.real) for root in roots if abs(root.imag) < 1e-6)

    def __call__(self, n: int, images: int, batch: int) -> float:
        return (1 - batch / images) ** (self.gamma + 1)


RULES: dict[str, Callable[[float], Decay]] = {
    "warm-up": WarmUpDecay,
    "half-life": HalfLife,
    "power-function": PowerFunction,
}


def decays(ema: EMA) -> dict[str, Decay]:
    """The named schedules behind an `ema` argument: nothing, one decay or schedule, several, or a mapping of names.

    A mapping with one of `RULES` is that schedule, as recipes write it.

    >>> list(decays([0.9, HalfLife(1000)]))
    ['0.9', 'HalfLife(images=1000, ramp=0.05)']
    >>> decays({"warm-up": 0.999})
    {'warm-up': WarmUpDecay(decay=0.999, start=0)}
    """
    if ema is None:
        return {}
    if isinstance(ema, Mapping) and len(ema) == 1 and isinstance(value := next(iter(ema.values())), (int, float)):
        rule = next(iter(ema))
        if rule in RULES:
            return {rule: RULES[rule](float(value))}
    if isinstance(ema, Mapping):
        items: Iterable[tuple[str, float | Decay]] = ema.items()
    else:
        several = ema if isinstance(ema, Sequence) and not isinstance(ema, str) else [ema]
        items = [(f"{value}", value) for value in several]
    out: dict[str, Decay] = {}
    for name, value in items:
        if "/" in name or not name:
            raise InputError("ema", name, "a name of an average is not empty and has no '/'")
        if not callable(value) and not isinstance(value, (int, float)):
            raise InputError("ema", value, "give a decay in [0, 1) or a schedule from scoreline.train.ema")
        out[name] = value if callable(value) else ConstantDecay(float(value))
    return out


class Averages:
    """Moving averages of one module's parameters, under one or more schedules.

    Args:
        module: the live module; its parameters are read at every update.
        schedules: named schedules, see :func:`decays`.
    """

    def __init__(self, module: nn.Module, schedules: Mapping[str, Decay]) -> None:
        self.schedules = dict(schedules)
        self.live = [p for p in module.parameters() if p.is_floating_point()]
        self.values = {name: [_master(p) for p in self.live] for name in self.schedules}
        self.n = 0
        self.images = 0
        self._kept: list[Tensor] | None = None

    @torch.no_grad()
    def update(self, images: int) -> None:
        """One step of every average.

        Args:
            images: images seen by the training so far.
        """
        self.n, batch, self.images = self.n + 1, images - self.images, images
        for name, beta in self.schedules.items():
            average = self.values[name]
            live = [p.detach().to(a.dtype) for p, a in zip(self.live, average)]
            weight = beta(self.n, images, batch)
            if not (math.isfinite(weight) and 0 <= weight <= 1):
                raise InputError(f"ema {name}", weight, "a decay lies in [0, 1]")
            if weight == 0:
                torch._foreach_copy_(average, live)
            else:
                torch._foreach_lerp_(average, live, 1 - weight)

    @torch.no_grad()
    def put(self, name: str | None) -> None:
        """Put an average into the live module, or (None) the trained weights back."""
        if name is not None and name not in self.values:
            raise unknown_name("average", name, self.values)
        if self._kept is None:
            self._kept = [p.detach().clone() for p in self.live]
        for parameter, value in zip(self.live, self._kept if name is None else self.values[name]):
            parameter.copy_(value)
        if name is None:
            self._kept = None

    @contextmanager
    def applied(self, name: str | None) -> Iterator[None]:
        """Inside the block the live module holds an average (None changes nothing); afterwards its own weights."""
        if name is not None:
            self.put(name)
        try:
            yield
        finally:
            if name is not None:
                self.put(None)

    def tensors(self) -> dict[str, Tensor]:
        """All averages under "name/number", for a checkpoint."""
        return {f"{name}/{i}": value for name, values in self.values.items() for i, value in enumerate(values)}


def _master(parameter: Tensor) -> Tensor:
    kept = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
    return parameter.detach().to(kept, copy=True)
