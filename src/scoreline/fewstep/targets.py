"""The other branch of a consistency loss: a network that answers as a target, with the student's dropout mask.

A student and its target must drop the same units, or their difference holds the difference of two masks, which at
neighbouring noise levels is far larger than what is to be learned. Both branches therefore start from the same state of
the generator: it is put back after the target's answer, and the student's answer, which comes second, draws the same
masks. The loop seeds the generator anew in every step, so that a resumed training draws them too.

Reference: Song & Dhariwal 2024 (iCT), section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["as_target"]


@contextmanager
def as_target(net: nn.Module) -> Iterator[None]:
    """Inside the block no gradient reaches the parameters of `net`, and what it draws is drawn again after the block.

    Gradients are not switched off as a whole: networks take other routes then, in another order of memory, in which
    the same generator makes other masks and rounding differs. With frozen parameters nothing is recorded either. State
    is kept on the host, so that no device is waited for.

    Args:
        net: the student itself, or a target network.

    >>> net = nn.Dropout(0.5)
    >>> with as_target(net):
    ...     target = net(torch.ones(64))
    >>> bool((net(torch.ones(64)) == target).all())
    True
    """
    moving = [p for p in net.parameters() if p.requires_grad]
    place = next(net.parameters(), torch.empty(0)).device
    cpu = torch.get_rng_state()
    other = None
    if place.type == "cuda":
        other = torch.cuda.get_rng_state(place)
    elif place.type == "mps":
        other = torch.mps.get_rng_state()
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)
        torch.set_rng_state(cpu)
        if other is not None and place.type == "cuda":
            torch.cuda.set_rng_state(other, place)
        elif other is not None:
            torch.mps.set_rng_state(other)
