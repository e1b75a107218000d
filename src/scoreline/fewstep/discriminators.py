"""The discriminators that have a name in settings: heads on what a frozen network sees."""

from __future__ import annotations

import math

import torch
from torch import nn

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.schedule import Schedule
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.fewstep.teachers import copied, innermost
from scoreline.nn.discriminator import FeatureDiscriminator, TapDiscriminator

__all__ = ["frozen_part", "named_discriminator", "seen_by"]


def named_discriminator(
    given: nn.Module | str | None, teacher: Denoiser | None, schedule: Schedule, shape: tuple[int, ...]
) -> nn.Module | None:
    """The discriminator that a setting stands for: `discriminator(x, t, cond)` -> logits (B, K).

    Args:
        given: "taps", heads on frozen features of the teacher's network; "features", heads on the frozen classifier of
            digits, for their images; a module or None, as it is.
        teacher: whose network is tapped.
        schedule: in whose coordinates x and t are.
        shape: (C, H, W) of the images.

    Raises:
        InputError: an unknown name, no teacher with a network, or no feature network for such images.
    """
    if not isinstance(given, str):
        return given
    if given == "taps":
        return TapDiscriminator(seen_by(teacher, schedule))
    if given == "features":
        from scoreline.evaluate.protocols import digits_net

        if tuple(shape) != (1, 8, 8):
            mend = "stands for the classifier of 8x8 digits; give {kind: discriminator, name: features, args: ...}"
            raise InputError("discriminator", given, f"{mend} for images of shape {tuple(shape)}")
        with torch.random.fork_rng(devices=[]):  # it is read once; new heads must not tell whether this was the time
            net = copied(digits_net())
        return FeatureDiscriminator(net, ("conv2", "conv4", net.tap))
    raise unknown_name("discriminator", given, ("features", "taps"))


def seen_by(teacher: Denoiser | None, schedule: Schedule, *, copy: bool = False) -> Preconditioned:
    """The teacher's network as it is asked in coordinates of a schedule, whose features a discriminator taps.

    Args:
        teacher: whose network it is.
        schedule: in whose coordinates x and t are.
        copy: whether it is a copy of the network, which can be trained.

    Raises:
        InputError: there is no teacher with a network, or its network knows levels of another schedule alone.
    """
    inner = None if teacher is None else innermost(teacher)
    if not isinstance(inner, Preconditioned):
        mend = "has no network to tap; give a discriminator of one's own, or null"
        raise InputError("teacher", None if inner is None else type(inner).__name__, mend)
    middle = 0.5 * (schedule.t_min + schedule.t_max)
    alike = all(
        math.isclose(mine(t), its(t), rel_tol=1e-9)
        for t in (schedule.t_min, middle)
        for mine, its in ((schedule.alpha, inner.schedule.alpha), (schedule.sigma, inner.schedule.sigma))
    )
    if not alike and (inner.kind, inner.time_input) != ("edm", "ln-sigma/4"):
        known = type(inner.schedule).__name__
        mend = f"the teacher's network knows levels of {known} alone; give a discriminator of one's own"
        raise InputError("discriminator", "taps", mend)
    return Preconditioned(
        copied(inner.net) if copy else inner.net, schedule, kind=inner.kind, sigma_data=inner.sigma_data,
        time_input=inner.time_input, learned_variance=inner.learned_variance,
    )  # fmt: skip


def frozen_part(discriminator: nn.Module | None) -> tuple[nn.Module, ...]:
    """The network inside a discriminator that only its heads' training goes through, for `Method.frozen`."""
    if isinstance(discriminator, TapDiscriminator) and discriminator.frozen_trunk:
        return (discriminator.trunk,)
    return (discriminator.encoder,) if isinstance(discriminator, FeatureDiscriminator) else ()
