"""Networks that are read and not changed: for good, or for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

__all__ = ["freeze", "frozen"]

M = TypeVar("M", bound=nn.Module)


def freeze(module: M) -> M:
    """Switch a module to evaluation and its parameters' gradients off, for good; the module itself is returned.

    Graphs still pass through it, to whatever made its input.
    """
    return module.eval().requires_grad_(False)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside the block these modules are in evaluation mode and take no gradients; afterwards all is as before."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    flags = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    try:
        for module in modules:
            freeze(module)
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
