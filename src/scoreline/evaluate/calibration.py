"""What a sampler wants to know of a model beforehand, estimated once and put where the sampler finds it."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.core.denoiser import Denoiser
from scoreline.core.device import pick_device
from scoreline.core.errors import InputError
from scoreline.core.files import atomic_path, cache_folder
from scoreline.core.load import load
from scoreline.core.names import lookup
from scoreline.core.noise import Noise, derive
from scoreline.data import from_arrays, load_images
from scoreline.data.images import Images
from scoreline.evaluate.progress import progress
from scoreline.evaluate.specs import labels_for
from scoreline.samplers.calibrations import fingerprint_of, save
from scoreline.samplers.dpm_solver_pp import DPMSolverPP2M

__all__ = ["calibrate", "model_samples", "settings_of"]

# What every calibration takes; all else in its signature is a setting of its own.
_COMMON = {"denoiser", "images", "samples", "batch_size", "seed", "folder", "advance"}
STEPS = 200
MOST_SAMPLES = 10_000
"""Images that a model makes of itself at most; a calibration that wants more noised ones shows them again."""


def settings_of(name: str) -> list[str]:
    """The settings of a calibration besides those that all have."""
    return [key for key in inspect.signature(lookup("calibration", name).calibrate).parameters if key not in _COMMON]


def calibrate(
    model_name: str,
    name: str,
    *,
    data: str | None = None,
    split: str | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    out: str | None = None,
    device: str = "auto",
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Estimate a calibration of a model and store it.

    A stopped run goes on in a folder of the cache, which is named by all that decides its result, and ends with the
    same file.

    Args:
        model_name: built-in name or path.
        name: short name of the calibration.
        data: clean images: a data set, or "samples" for images that the model makes itself; None takes the data set
            that stands in the model's card.
        split: of the data set; None takes the card's, or the training split where there is one.
        samples, batch_size: None takes the calibration's own.
        seed: of all that is random.
        settings: the calibration's own, by name.
        out: a file; None puts it where the sampler looks for it.
        device: where to run.
        command: what was typed, for the card.
        quiet: show no progress.

    Returns:
        what was made, and where it lies.

    Raises:
        InputError: an unknown calibration, model or setting, or no data is known.
        ArtefactError: a file is missing or damaged.
    """
    kind, own = lookup("calibration", name), dict(settings or {})
    for key in own:
        if key not in settings_of(name):
            known = ", ".join(sorted(settings_of(name))) or "none"
            raise InputError("setting", key, f"is none of {name}; it has: {known}")
    if out is not None and Path(out).suffix != ".safetensors":
        raise InputError("out", out, "must end in .safetensors")
    defaults = inspect.signature(kind.calibrate).parameters
    samples = defaults["samples"].default if samples is None else samples
    batch_size = defaults["batch_size"].default if batch_size is None else batch_size
    for thing, value in (("samples", samples), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(thing, value, "must be a positive whole number")
    model = load(model_name).to(pick_device(device))
    source, part = _source(model, data, split)
    job = {"for": name, "model": fingerprint_of(model), "data": source, "split": part, "samples": samples}
    job |= {"batch_size": batch_size, "seed": seed, **own}
    mark = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "calibrations" / f"{name}-{mark}.unfinished"
    made_first = min(samples, MOST_SAMPLES) if source == "samples" else 0
    with progress(f"calibrate {name}", samples + made_first, quiet=quiet) as advance:
        if source == "samples":
            images = model_samples(model, made_first, folder, seed=seed, batch_size=batch_size, advance=advance)
        else:
            images = load_images(source, split=part)
        made = kind.calibrate(
            model, images, samples=samples, batch_size=batch_size, seed=seed, folder=folder, advance=advance, **own
        )
    card = {"command": command, **{key: value for key, value in job.items() if key not in ("for", "model")}}
    path = save(name, model, made, card=card, out=out, dtype=getattr(made, "stored_as", None))
    shutil.rmtree(folder, ignore_errors=True)
    found = made.summary() if hasattr(made, "summary") else ""
    return {**job, "name": model_name, "file": str(path), "found": found, "given_out": out is not None}


def _source(model: Denoiser, data: str | None, split: str | None) -> tuple[str, str | None]:
    """(data set, split) of the clean images."""
    card = getattr(model, "header", {}).get("card", {})
    if data is None:
        if not card.get("data"):
            raise InputError("data", None, "the model's card names none; give --data, or --data samples for its own")
        data, split = str(card["data"]), split or card.get("split")
    if data == "samples" and split is not None:
        raise InputError("split", split, "the model's own samples have no splits")
    return data, "train" if data == "digits" and split is None else split


@torch.no_grad()
def model_samples(
    model: Denoiser, count: int, folder: str | os.PathLike[str], *, seed: int, batch_size: int, advance: Any = None
) -> Images:
    """Images that a model makes itself, by 200 steps of DPM-Solver++(2M), classes in turn; kept in `folder`.

    Args:
        model: the model.
        count: how many.
        folder: finished batches lie here, one file each.
        seed: of their noise.
        batch_size: images a batch.
        advance: told of finished images.
    """
    from safetensors.torch import load_file, save_file

    noise, parts = Noise(derive(seed, "calibration samples")), []
    sampler = DPMSolverPP2M(steps=STEPS if model.schedule.known is None else min(STEPS, len(model.schedule.known)))
    device = next((v.device for v in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        file = Path(folder) / f"samples-{start:08d}.safetensors"
        if not file.exists():
            cond = labels_for(indices, model.num_classes)
            given = model.given(cond.to(device) if cond is not None else None)
            x = model.decode(sampler(given, noise.at(indices, model.shape, device=device)).x).clamp(-1, 1).cpu()
            with atomic_path(file) as temporary:
                save_file({"images": x.contiguous()}, temporary)
        parts.append(load_file(file)["images"])
        if advance is not None:
            advance(len(indices), "samples of the model")
    images: Tensor = torch.cat(parts)
    labels = None if model.num_classes is None else torch.arange(count) % model.num_classes
    return from_arrays(images, labels, name="samples", num_classes=model.num_classes)
