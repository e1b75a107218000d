"""Learning rates as functions of an update's own counter n = 0, 1, 2, ...

Each is a frozen dataclass, so that it can be printed, compared and stored with a run. All of them warm up linearly over
the first `warmup` updates: the factor is min((n + 1) / warmup, 1), so that the first update already moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scoreline.core.errors import InputError

__all__ = ["Constant", "Cosine", "InverseSqrt", "Linear", "Sparse", "Step"]


def _warm(n: int, warmup: int) -> float:
    return min((n + 1) / warmup, 1.0) if warmup else 1.0


def _check(lr: float, **counts: int) -> None:
    if not (math.isfinite(lr) and lr >= 0):
        raise InputError("lr", lr, "must be a finite number, 0 or more")
    for name, value in counts.items():
        if value < 0:
            raise InputError(name, value, "counts updates: 0 or more")


@dataclass(frozen=True)
class Constant:
    """lr(n) = lr, after the warm-up.

    >>> [Constant(1.0, warmup=4)(n) for n in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    lr: float
    warmup: int = 0

    def __post_init__(self) -> None:
        _check(self.lr, warmup=self.warmup)

    def __call__(self, n: int) -> float:
        return self.lr * _warm(n, self.warmup)


@dataclass(frozen=True)
class Linear:
    """From lr to `floor` in a straight line over updates warmup ... steps, then `floor`."""

    lr: float
    steps: int
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self.lr, warmup=self.warmup, steps=self.steps - self.warmup - 1)

    def __call__(self, n: int) -> float:
        done = min(max(n - self.warmup, 0) / (self.steps - self.warmup), 1.0)
        return (self.lr + (self.floor - self.lr) * done) * _warm(n, self.warmup)


@dataclass(frozen=True)
class Cosine:
    """lr(n) = floor + (lr - floor) (1 + cos(pi p)) / 2 with p from 0 to 1 over updates warmup ... steps.

    Reference: Loshchilov and Hutter, SGDR, 2017 (one period).
    """

    lr: float
    steps: int
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self.lr, warmup=self.warmup, steps=self.steps - self.warmup - 1)

    def __call__(self, n: int) -> float:
        done = min(max(n - self.warmup, 0) / (self.steps - self.warmup), 1.0)
        return (self.floor + (self.lr - self.floor) * 0.5 * (1 + math.cos(math.pi * done))) * _warm(n, self.warmup)


@dataclass(frozen=True)
class InverseSqrt:
    """lr(n) = lr / sqrt(max(n / reference, 1)), after the warm-up.

    Reference: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, equation 67.
    """

    lr: float
    reference: int
    warmup: int = 0

    def __post_init__(self) -> None:
        _check(self.lr, warmup=self.warmup, reference=self.reference - 1)

    def __call__(self, n: int) -> float:
        return self.lr / math.sqrt(max(n / self.reference, 1.0)) * _warm(n, self.warmup)


@dataclass(frozen=True)
class Step:
    """lr times `factor` at each milestone that update n has reached, after the warm-up.

    >>> [Step(1.0, (2, 3), 0.5)(n) for n in range(4)]
    [1.0, 1.0, 0.5, 0.25]
    """

    lr: float
    milestones: tuple[int, ...]
    factor: float = 0.1
    warmup: int = 0

    def __post_init__(self) -> None:
        _check(self.lr, warmup=self.warmup)

    def __call__(self, n: int) -> float:
        return self.lr * self.factor ** sum(n >= milestone for milestone in self.milestones) * _warm(n, self.warmup)


@dataclass(frozen=True)
class Sparse:
    """lr(n) = rule(n * every): a rule that counts steps, for an update that is made on every so-many-th of them.

    >>> [Sparse(Constant(1.0, warmup=10), every=5)(n) for n in range(3)]
    [0.1, 0.6, 1.0]
    """

    rule: Callable[[int], float]
    every: int

    def __call__(self, n: int) -> float:
        return self.rule(n * self.every)
