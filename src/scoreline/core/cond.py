"""Conditions: everything a model may be told besides the noisy image and its noise level."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from scoreline.core.errors import InputError

__all__ = ["Cond"]


@dataclass(frozen=True)
class Cond:
    """Conditions of a batch; every field is None or has the batch as its first dimension.

    Args:
        labels: (B,) int64 classes in [0, num_classes]; `num_classes` means "no label". (B, L) floats for multi-label.
        tokens: (B, L, D) context tokens for cross-attention.
        mask: (B, L) bool, True where a token counts.
        vector: (B, D) a global vector.
        image: (B, C, H, W) an image that is concatenated to the input, in [-1, 1].
        weight: (B,) guidance strength that a guidance-distilled model takes as an input.
        augment: (B, A) augmentation labels of an EDM-style network.
    """

    labels: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    vector: Tensor | None = None
    image: Tensor | None = None
    weight: Tensor | None = None
    augment: Tensor | None = None

    def items(self) -> list[tuple[str, Tensor]]:
        """The fields that are set, as (name, tensor)."""
        return [(f.name, v) for f in fields(self) if (v := getattr(self, f.name)) is not None]

    def require(self, accepted: Iterable[str], who: str) -> None:
        """Refuse fields that `who` does not accept.

        Raises:
            InputError: a field is set that is not in `accepted`.
        """
        allowed = set(accepted)
        for name, _ in self.items():
            if name not in allowed:
                mend = f"{who} accepts {', '.join(sorted(allowed))}" if allowed else f"{who} takes no conditions"
                raise InputError("condition", name, mend)

    def map(self, function: Callable[[Tensor], Tensor]) -> Cond:
        """The same conditions with `function` applied to each tensor that is set."""
        return Cond(**{name: function(value) for name, value in self.items()})

    def to(self, device: torch.device | str) -> Cond:
        """The same conditions on `device`."""
        return self.map(lambda v: v.to(device))

    def __getitem__(self, rows: Tensor | slice) -> Cond:
        return self.map(lambda v: v[rows])

    def cat(self, other: Cond) -> Cond:
        """The conditions of two batches, one after the other; both must set the same fields.

        Raises:
            InputError: the two do not set the same fields.
        """
        mine, theirs = dict(self.items()), dict(other.items())
        if mine.keys() != theirs.keys():
            raise InputError("conditions", sorted(mine.keys() ^ theirs.keys()), "set the same fields on both sides")
        return Cond(**{name: torch.cat([value, theirs[name]]) for name, value in mine.items()})

    def replace(self, **changes: Tensor | None) -> Cond:
        """A copy with some fields changed."""
        return replace(self, **changes)
