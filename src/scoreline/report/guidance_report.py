"""The page of a student that is told a guidance strength: the same noise at every strength, under a slider."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.files import atomic_path
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.data.grid import picture_grid
from scoreline.evaluate.specs import labels_for, make_sampler, sampling_of
from scoreline.evaluate.strengths import strengths_of
from scoreline.fewstep.guided import WeightGuided
from scoreline.report.page import rendered
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.generator import Sampled

__all__ = ["write_guidance_report"]

STOPS, COUNT, COLUMNS = 9, 20, 10
TEACHER_STEPS = 12


def write_guidance_report(
    model: str | Path, folder: str | Path, teacher: str | None = None, *, stops: int = STOPS, count: int = COUNT
) -> Path:
    """Write guidance.html: images of a student at strengths spread over its interval, and of its guided teacher.

    Every picture is of the same noise and classes, so that only the strength differs.

    Args:
        model: built-in name or path of a student that is told a strength.
        folder: where to write.
        teacher: name or path of the conditional model that it was made from; None leaves it out.
        stops: strengths, 2 or more.
        count: images at each.

    Returns:
        The page.

    Raises:
        InputError: the model is told no strength or not how it is sampled, knows no conditions by number, or makes no
            pictures.
        ArtefactError: a file cannot be read or written.
    """
    student = load(str(model))
    told, own = strengths_of(student), sampling_of(student)
    if told is None or told["interval"] is None or own is None:
        raise InputError("model", str(model), "is no student that takes a guidance weight as an input")
    if student.num_classes is None:
        raise InputError("model", str(model), "has neither classes nor prompts that it knows by number to be shown for")
    if stops < 2:
        raise InputError("stops", stops, "a slider has 2 or more")
    low, high = told["interval"]
    weights = np.linspace(low, high, stops)
    steps = (own[1] or [4])[0]
    shown = [{"name": f"student, {steps} evaluation{'s' * (steps > 1)}",
              "pictures": _pictures(student, make_sampler(own[0], steps=steps), weights, count)}]  # fmt: skip
    guide = None if teacher is None else load(teacher)
    if guide is not None:
        sampler = DDIM(steps=TEACHER_STEPS)
        name = f"guided teacher, {2 * TEACHER_STEPS} evaluations"
        shown.append({"name": name, "pictures": _pictures(WeightGuided(guide), sampler, weights, count)})
    card = student.header.get("card", {})
    page = rendered("guidance.html", {
        "results": {"title": f"Guidance weights of {Path(model).parent.name or model}"},
        "weights": [f"{w:.3g}" for w in weights],
        "scales": [f"{1 + w:.3g}" for w in weights],
        "start": int(np.abs(weights - told["default"]).argmin()),
        "default": f"{told['default']:g}",
        "interval": [f"{w:g}" for w in told["interval"]],
        "shown": shown,
        "command": card.get("command", ""),
        "sample": f"scoreline sample {model} --guidance-weight {weights[-1]:g}",
    })  # fmt: skip
    target = Path(folder) / "guidance.html"
    with atomic_path(target) as path:
        path.write_text(page, encoding="utf-8")
    return target


def _pictures(model: Denoiser, sampler: Sampler, weights: Any, count: int) -> list[str]:
    """A grid of pictures at each strength, as data of an <img>; all strengths are one batch."""
    indices = list(range(count)) * len(weights)
    told = torch.as_tensor(weights, dtype=torch.float32).repeat_interleave(count)
    cond = (labels_for(indices, model.num_classes) or Cond()).replace(weight=told)
    images = Sampled(model, sampler).generate(indices, Noise(0), cond)
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise InputError("model", tuple(images.shape[1:]), "makes no pictures")
    out = []
    for part in images.split(count):
        buffer = io.BytesIO()
        picture_grid(part, columns=COLUMNS).save(buffer, "PNG")
        out.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return out
