"""fit(): a training without files, for the many small ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoreline.core.device import pick_device
from scoreline.core.errors import InputError
from scoreline.core.method import Method
from scoreline.train.ema import EMA, Averages
from scoreline.train.loop import Loop, kept_generators
from scoreline.train.order import Data

__all__ = ["Trained", "fit"]


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Args:
        method: the trained method, in evaluation mode, with its own (not averaged) weights.
        averages: its moving averages, or None.
        step: steps made.
        counts: optimizer steps made, by update name; updates of the same modules share a counter.
        losses: of the last step made here, by update name; empty when no step was left to make.
        skipped: non-finite updates left out.
    """

    method: Method
    averages: Averages | None
    step: int
    counts: dict[str, int]
    losses: dict[str, float]
    skipped: int

    def result(self, average: str | None = "first") -> Any:
        """`method.result()`, with an average's weights put into the method.

        Args:
            average: name of an average; "first" takes the first one if there is any; None takes the trained weights.
        """
        if average == "first":
            average = next(iter(self.averages.values), None) if self.averages is not None else None
        if self.averages is not None:
            self.averages.put(average)
        elif average is not None:
            raise InputError("average", average, "this training kept none; give ema=")
        return self.method.result()


def fit(
    method: Method,
    data: Data,
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str = "float32",
    accumulate: int = 1,
    ema: EMA = None,
    skip_nonfinite: int = 0,
    on_step: Callable[[int, dict[str, Tensor]], bool | None] | None = None,
) -> Trained:
    """Train a method in memory.

    Args:
        method: what is trained; it is changed in place.
        data: Images; a tensor (N, ...); a pair (images, labels); or None for methods that make their own data.
        steps: turns of the loop, 0 or more.
        batch_size: images a step.
        seed: of order, noise and dropout; networks were initialised before.
        device: auto, cpu, cuda or mps; None trains where the method is.
        precision: float32, bf16, or fp16 (CUDA only).
        accumulate: parts into which a batch is cut, their gradients averaged.
        ema: decay or decays of the moving average, see :mod:`scoreline.train.ema`.
        skip_nonfinite: how many non-finite updates may be left out.
        on_step: called as on_step(step, losses) after each step; returning True ends the training.

    Returns:
        The method and what belongs to it; `.result()` is what it leaves, with averaged weights if there are any.

    Raises:
        NonFiniteError: a loss or gradient is not finite.
        InputError: an argument is wrong.
    """
    if steps < 0:
        raise InputError("steps", steps, "must be 0 or more")
    first = next(method.parameters(), torch.empty(0))
    place = first.device if device is None else pick_device(device)
    loop = Loop(
        method,
        data,
        batch_size=batch_size,
        seed=seed,
        device=place,
        autocast=pick_autocast(precision, place),
        accumulate=accumulate,
        ema=ema,
        skip_nonfinite=skip_nonfinite,
    )
    losses: dict[str, Tensor] = {}
    step = 0
    loop.train_mode()
    with kept_generators(loop.device):
        for step in range(1, steps + 1):
            losses = loop.turn(step - 1)
            if on_step is not None and on_step(step - 1, losses):
                break
    loop.check()
    return finish(loop, step, losses)


def finish(loop: Loop, step: int, losses: dict[str, Tensor]) -> Trained:
    """The method in evaluation mode, with what belongs to it."""
    loop.method.eval()
    counts = {name: group.count for name, _, group in loop.updates}
    values = {name: float(value) for name, value in losses.items()}
    return Trained(loop.method, loop.averages, step, counts, values, loop.skipped)


def pick_autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of a precision name, None for float32.

    Raises:
        InputError: the name is unknown, or the device cannot train in it.
    """
    if precision in ("float32", "fp32"):
        return None
    if precision in ("bf16", "bfloat16"):
        return torch.bfloat16
    if precision in ("fp16", "float16"):
        if device.type != "cuda":
            raise InputError("precision", precision, f"trains on CUDA only; on {device.type} use bf16 or float32")
        return torch.float16
    raise InputError("precision", precision, "use float32, bf16 or fp16")
