"""Pictures of a data set restyled: encoded by a student of the way up, decoded as another class at another strength."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.device import pick_device
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.data import load_images
from scoreline.data.grid import picture_grid, write_png
from scoreline.diffusion.latent import Latent
from scoreline.evaluate.specs import parse_labels, sampling_of
from scoreline.evaluate.strengths import strengths_of
from scoreline.fewstep.guidance_students import Noising, check_interval, interval_of
from scoreline.fewstep.guided_distillation import restyle
from scoreline.fewstep.halving import on_cosine

__all__ = ["restyle_to"]


def restyle_to(
    out: str | Path,
    decoder: str,
    encoder: str,
    *,
    data: str = "digits",
    split: str | None = None,
    images: Sequence[int] = range(6),
    labels: str | None = None,
    source_weight: float = 0.0,
    target_weight: float | None = None,
    steps: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Encode images under their own class, decode each as every class asked for, and write all beside the originals.

    Args:
        out: folder; OUT/restyled.png, and OUT/samples/<image>-<class>.png.
        decoder: name or path of a student that makes images, or of any conditional model.
        encoder: path of a student of the way up (`direction: up`), or of any conditional model.
        data, split: images with labels.
        images: their positions.
        labels: classes to decode as, as 3 or 0,1; None takes all.
        source_weight: w of the encoding, 0 unguided, for an encoder that is told one.
        target_weight: w of the decoding; None takes the decoder's own.
        steps: steps each way; None takes those that the decoder was made for.
        device: where to run.

    Returns:
        {"out", "picture", "count", "steps"}.

    Raises:
        InputError: the models do not fit each other or the data, a class does not exist, or a weight is out of range.
        ArtefactError: a file cannot be read or written.
    """
    there, back = load(encoder), load(decoder)
    if tuple(there.shape) != tuple(back.shape) or there.num_classes != back.num_classes:
        mend = f"makes {tuple(back.shape)} of {back.num_classes} classes; give an encoder of the same, not {encoder}"
        raise InputError("model", decoder, mend)
    if isinstance(back, Noising):
        raise InputError("model", decoder, "runs from images to noise; it is an --encoder")
    if back.num_classes is None:
        raise InputError("model", decoder, "has no classes, so that nothing could be another")
    if any(isinstance(module, Latent) for module in (*there.modules(), *back.modules())):
        raise InputError("model", decoder, "is one of latents; restyle them with fewstep.guided_distillation.restyle")
    found = load_images(data, split=split, channels=back.shape[0], size=back.shape[1])
    if not images or max(images) >= len(found) or min(images) < 0:
        raise InputError("images", list(images)[:5], f"{data} has images 0 to {len(found) - 1}")
    shown = found.subset(list(images)).batch(range(len(images)))
    if shown.label is None or tuple(shown.image.shape[1:]) != tuple(back.shape):
        raise InputError("data", data, f"must have labels and images of shape {tuple(back.shape)}")
    wanted = parse_labels(labels, back.num_classes) or list(range(back.num_classes))
    made_for = [own[1][0] for model in (back, there) if (own := sampling_of(model)) is not None and own[1]]
    count = steps or (made_for[0] if made_for else 16)
    source = _told("source_weight", there, source_weight)
    target = _told("target_weight", back, target_weight)
    place = pick_device(device)
    there, back = on_cosine(there).to(place), on_cosine(back).to(place)  # the steps are even in its time
    image, label = shown.image.to(place), shown.label.to(place)
    rows = [shown.image]
    for each in wanted:
        goal = torch.full_like(label, each)
        made = restyle(there, back, image, _cond(label, source), _cond(goal, target), steps=count)
        rows.append(made.clamp(-1, 1).float().cpu())
    folder = Path(out)
    for each, row in zip(wanted, rows[1:], strict=True):
        for position, picture in zip(images, row, strict=True):
            write_png(folder / "samples" / f"{position:06d}-{each}.png", picture_grid(picture[None], scale=1, pad=0))
    picture = folder / "restyled.png"
    names = ["original", *(f"as {each}" for each in wanted)]
    write_png(picture, picture_grid(torch.cat(rows), columns=len(images), row_labels=names))
    return {"out": str(folder), "picture": str(picture), "count": len(wanted) * len(images), "steps": count}


def _told(thing: str, model: Denoiser, weight: float | None) -> float | None:
    """The strength that a model is told, or None of one that is told none."""
    interval = interval_of(model)
    if interval is None:
        if weight:
            raise InputError(thing, weight, "this model takes no strength as an input")
        return None
    if weight is None:
        told = strengths_of(model)
        return None if told is None else float(told["default"])
    low, high = check_interval(interval)
    if not low <= weight <= high:
        raise InputError(thing, weight, f"this student was trained with strengths from {low:g} to {high:g}")
    return weight


def _cond(labels: torch.Tensor, weight: float | None) -> Cond:
    return Cond(labels=labels, weight=None if weight is None else torch.full((len(labels),), weight).to(labels.device))
