"""The strength that a guidance-distilled student is told, kept apart from guidance of a sampler.

    guidance s           eps_u + s (eps_c - eps_u), two evaluations of any conditional model; 1 is unguided
    guidance weight w    an input of a student that was trained with it, one evaluation; 0 is unguided, w = s - 1
Set the wrong one and nothing would look broken: a student guided once more is guided twice, and a model that takes no
strength would leave it unread. Both are refused.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError

__all__ = ["strengths_of", "told_strength"]


def strengths_of(model: Denoiser) -> dict[str, Any] | None:
    """{"default": w, "interval": [low, high] or None} of a student that is told a strength, None of other models."""
    default = getattr(model, "guidance", None)
    if not isinstance(default, torch.Tensor) or not getattr(model, "takes_weight", True):
        return None
    interval = getattr(model, "interval", None)
    known = None if interval is None or not bool(interval.isfinite().all()) else interval.tolist()
    return {"default": float(default), "interval": known}


def told_strength(model: Denoiser, weight: float | None, guidance: float | None = None) -> Denoiser:
    """The model with a guidance weight of its own where one is given, after the wrong parameter was refused.

    Args:
        model: any denoiser.
        weight: w, an input of guidance-distilled students, 0 is unguided; None takes the student's own default.
        guidance: s of classifier-free guidance, or None.

    Raises:
        InputError: guidance of a student that is told a strength, a weight of a model that is not, or a weight outside
            the interval of the student's training.
    """
    told = strengths_of(model)
    if told is None:
        if weight is None:
            return model
        mend = "this model takes no strength as an input; guide it with --guidance s, where s = 1 + w"
        raise InputError("guidance_weight", weight, mend)
    low, high = told["interval"] or (0.0, float("inf"))
    if guidance is not None:
        place = f" from {low:g} to {high:g}" if told["interval"] else ""
        mend = f"this student takes its strength as an input: --guidance-weight w{place}, where w = s - 1"
        raise InputError("guidance", guidance, mend)
    if weight is None:
        return model
    if not low <= weight <= high:
        mend = f"this student was trained with strengths w from {low:g} to {high:g}; beyond them it degrades unnoticed"
        raise InputError("guidance_weight", weight, mend)
    view = copy.copy(model)
    view._buffers = {**model._buffers, "guidance": torch.full_like(model._buffers["guidance"], weight)}  # type: ignore[arg-type]
    return view
