"""Steps after generation, by name: what a workflow may do to finished images, and what artwork may be made with.

All are pure functions of float images in [-1, 1]; -1 is black.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name

__all__ = ["FINISHING", "finish", "read_finishing", "said"]


def shift(x: Tensor, down: int, right: int) -> Tensor:
    """Move by whole pixels; what enters is black.

    >>> shift(torch.ones(1, 1, 1, 3), 0, 1)
    tensor([[[[-1.,  1.,  1.]]]])
    """
    height, width = x.shape[-2:]
    out = torch.full_like(x, -1.0)
    if abs(down) < height and abs(right) < width:
        rows, columns = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
        from_rows, from_columns = (
            slice(max(-down, 0), height - max(down, 0)),
            slice(max(-right, 0), width - max(right, 0)),
        )
        out[..., rows, columns] = x[..., from_rows, from_columns]
    return out


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `sigma` pixels, edges repeated."""
    radius = max(1, math.ceil(3 * sigma))
    places = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (places / sigma).square())
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    for dims in ((1, 2 * radius + 1), (2 * radius + 1, 1)):
        pad = [radius * (dims[1] > 1)] * 2 + [radius * (dims[0] > 1)] * 2
        padded = torch.nn.functional.pad(x, pad, mode="replicate")
        x = torch.nn.functional.conv2d(padded, kernel.reshape(x.shape[1], 1, *dims), groups=x.shape[1])
    return x


def contrast(x: Tensor, factor: float) -> Tensor:
    """Multiply differences to mid-grey, and cut off at black and white."""
    return (factor * x).clamp(-1, 1)


def brightness(x: Tensor, added: float) -> Tensor:
    """Add to every pixel, in units of the range [-1, 1], and cut off."""
    return (x + added).clamp(-1, 1)


def levels(x: Tensor, count: int) -> Tensor:
    """Round to so many grey levels, black and white among them."""
    return ((x + 1) / 2 * (count - 1)).round() * 2 / (count - 1) - 1


def turn(x: Tensor, quarters: int) -> Tensor:
    """Rotate by quarter turns, anticlockwise."""
    return x.rot90(quarters, (-2, -1))


FINISHING: dict[str, tuple[Callable[..., Tensor], tuple[type, ...], str, Callable[..., bool]]] = {
    "shift": (shift, (int, int), "[rows down, columns right], whole pixels", lambda down, right: True),
    "blur": (blur, (float,), "a sigma in pixels, above 0", lambda sigma: 0 < sigma < 100),
    "contrast": (contrast, (float,), "a factor, 0 or more", lambda factor: factor >= 0),
    "brightness": (brightness, (float,), "a number between -2 and 2", lambda added: -2 <= added <= 2),
    "levels": (levels, (int,), "2 levels or more", lambda count: count >= 2),
    "turn": (turn, (int,), "quarter turns, 0 to 3", lambda quarters: 0 <= quarters <= 3),
    "mirror": (lambda x: x.flip(-1), (), "true", lambda: True),
    "invert": (lambda x: -x, (), "true", lambda: True),
}
"""Name -> (function, types of its arguments, what they are in words, whether they are allowed)."""

Step = tuple[str, tuple[float, ...]]


def read_finishing(given: Any, thing: str) -> tuple[Step, ...]:
    """Steps from a list such as [{blur: 0.5}, mirror], checked.

    Raises:
        InputError: an unknown step, or arguments that do not fit it.

    >>> read_finishing([{"shift": [0, 1]}, "mirror"], "post")
    (('shift', (0, 1)), ('mirror', ()))
    """
    if not isinstance(given, list):
        raise InputError(thing, given, "give a list of steps, for instance [{blur: 0.5}]")
    steps: list[Step] = []
    for entry in given:
        if isinstance(entry, str):
            entry = {entry: True}
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise InputError(thing, entry, "write each step as {name: setting}")
        ((name, setting),) = entry.items()
        if name not in FINISHING:
            raise unknown_name(f"step of {thing}", str(name), FINISHING)
        _, types, words, allowed = FINISHING[name]
        if not types:
            arguments: Sequence[Any] = () if setting is True else (setting,)
        else:
            arguments = setting if isinstance(setting, list) else (setting,)
        fits = len(arguments) == len(types) and all(map(_is, arguments, types))
        if not fits or not allowed(*arguments):
            raise InputError(f"{name} of {thing}", setting, f"give {words}")
        steps.append((name, tuple(arguments)))
    return tuple(steps)


def _is(value: Any, kind: type) -> bool:
    return type(value) in (int, kind) and math.isfinite(value)  # a bool is no number here


def finish(images: Tensor, steps: Sequence[Step]) -> Tensor:
    """The images after all steps, in order."""
    for name, arguments in steps:
        images = FINISHING[name][0](images, *arguments)
    return images


def said(steps: Sequence[Step]) -> str:
    """Steps in words.

    >>> said((("shift", (0, 1)), ("mirror", ())))
    'shift 0, 1; mirror'
    """
    return "; ".join(" ".join([name, ", ".join(f"{a:g}" for a in arguments)]).strip() for name, arguments in steps)
