"""The contract between what a paper trains and the loop that trains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.errors import InputError

__all__ = ["Method", "Update"]

Loss = Callable[[Any, Any, int], Tensor | Mapping[str, Tensor]]


@dataclass(frozen=True)
class Update:
    """One kind of parameter update: which modules it moves, by which loss, and how often.

    Args:
        modules: only their parameters take gradients and change; graphs still pass through all others.
        loss: `loss(batch, shared, step)` returns the scalar to minimise, or a mapping whose "loss" entry is that scalar
            and whose other entries are logged.
        every: the update is made on steps that are multiples of `every`.
        unless: it is left out on steps that are multiples of `unless`; None leaves none out.
        optimizer: class from torch.optim.
        lr: learning rate, or a function of this update's own counter (see `scoreline.train.lr`).
        settings: further optimizer arguments (betas, weight_decay, ...).
        clip: largest gradient norm over all parameters of the update; None leaves gradients alone.
        clip_value: largest absolute gradient entry; None leaves gradients alone.
        name: shown in logs.
    """

    modules: nn.Module | tuple[nn.Module, ...]
    loss: Loss
    every: int = 1
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam
    lr: float | Callable[[int], float] = 1e-3
    settings: Mapping[str, Any] = field(default_factory=dict)
    clip: float | None = None
    clip_value: float | None = None
    name: str = "loss"
    unless: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError("every", self.every, "an update happens every 1 or more steps")
        if self.unless is not None and self.unless < 2:
            raise InputError("unless", self.unless, "steps are left out every 2 or more")
        if not self.parameters():
            raise InputError("update", self.name, "its modules have no trainable parameters")

    def due(self, step: int) -> bool:
        """Whether the update is made on this step."""
        return step % self.every == 0 and (self.unless is None or step % self.unless != 0)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that this update moves, each once."""
        modules = self.modules if isinstance(self.modules, tuple) else (self.modules,)
        return list({id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values())


class Method(nn.Module):
    """Whatever a paper trains; it holds no trainer.

    A subclass sets `updates` and may override the other members. The loop (`scoreline.train`) calls, for step
    0, 1, 2, ...: `prepare`, then each due update's loss, backward pass and optimizer step in the order of `updates`,
    then `after_update`. All randomness comes from `batch.draws`, a pure function of (seed, step, image index).
    """

    updates: list[Update]

    def frozen(self) -> tuple[nn.Module, ...]:
        """Modules that are only read (teachers, feature networks); they are not saved in checkpoints."""
        return ()

    def averaged(self) -> nn.Module | None:
        """The module of which the loop keeps exponential moving averages, or None."""
        return None

    def prepare(self, batch: Any, step: int) -> Any:
        """Tensors that the updates of this turn share."""
        return None

    def after_update(self, step: int) -> None:
        """What is no gradient: prototypes, ratio bins, target averages; their buffers are saved with the rest."""

    def measured(self) -> dict[str, float]:
        """Numbers told of the result at the end of a training, by name; most methods have none."""
        return {}

    def result(self) -> Any:
        """What is left when training ends: a generator, denoiser, tokenizer, classifier or detector."""
        raise InputError("method", type(self).__name__, "has no result(); a Method must define one")
