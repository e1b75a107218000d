"""What consistency training and distillation share: the form of the student, and the branch that is the target.

A student and its target must drop the same units, or their difference holds the difference of two masks, which at
neighbouring noise levels is far larger than what is to be learned. Both branches therefore start from the same state of
the generator: it is put back after the target's answer, and the student's answer, which comes second, draws the same
masks. The loop seeds the generator anew in every step, so that a resumed training draws them too.

Reference: Song et al. 2023 (Consistency Models); Song & Dhariwal 2024 (iCT), section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.maps import ConsistencyFunction
from scoreline.fewstep.teachers import innermost, rebuilt

__all__ = ["as_target", "consistency_student"]


def consistency_student(teacher: Denoiser | None, net: nn.Module | None = None) -> ConsistencyFunction:
    """The student of consistency training and distillation, on EDM's levels 0.002 to 80.

    Args:
        teacher: whose network is copied with its weights; one of another kind than EDM's gives a mere start. Beside a
            network of one's own it gives sigma_data alone.
        net: a network to train, or a ConsistencyFunction, which stays as it is.

    Raises:
        InputError: neither is given, the teacher has no network, or shapes or classes differ.
    """
    inner = None if teacher is None else innermost(teacher)
    if net is None:
        if inner is None:
            raise InputError("student", None, "needs a network, or a teacher whose network is copied")
        if not isinstance(inner, Preconditioned):
            mend = "has no network to copy; give the student a network of its own"
            raise InputError("teacher", type(inner).__name__, mend)
        net, _ = rebuilt(inner.net, {"out_channels": inner.shape[0]} if inner.learned_variance else {})
    if teacher is not None:
        shape, classes = tuple(getattr(net, "in_shape", getattr(net, "shape", ()))), getattr(net, "num_classes", None)
        if shape != tuple(teacher.shape):
            raise InputError("student", shape, f"the teacher's images are {tuple(teacher.shape)}; give the same shape")
        if classes not in (None, teacher.num_classes):
            mend = f"the teacher knows {teacher.num_classes} classes; a student takes the same ones, or none"
            raise InputError("student", f"{classes} classes", mend)
    if isinstance(net, ConsistencyFunction):
        return net
    sigma_data = inner.sigma_data if isinstance(inner, Preconditioned) and inner.kind == "edm" else 0.5
    return ConsistencyFunction(net.requires_grad_(True), EDM(), sigma_data=sigma_data)


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
