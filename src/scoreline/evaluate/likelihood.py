"""The likelihood of a data set under a model, image by image; a stopped run goes on.

Every (dequantisation, batch) is on disk when it ends. The numbers of an image depend on its own noise only, not on its
batch, beyond ten times the tolerance of the integration.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import scoreline
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.device import pick_device
from scoreline.core.errors import InputError, NonFiniteError, unknown_name
from scoreline.core.files import atomic_path, write_json
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data import load_images
from scoreline.data.images import Images
from scoreline.diffusion.dormand_prince import check_tolerances
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.likelihood import DIVERGENCES, bin_width, bits_per_dim, dequantised, log_likelihood
from scoreline.evaluate.ledger import Ledger
from scoreline.evaluate.progress import progress
from scoreline.evaluate.specs import asked_labels
from scoreline.metrics.intervals import mean_interval

__all__ = ["likelihood"]


def likelihood(
    model_name: str,
    data: str,
    out: str | Path,
    *,
    split: str | None = None,
    count: int | None = None,
    levels: int | None = None,
    bins: str = "paper",
    repeats: int = 5,
    divergence: str = "rademacher",
    probes: int = 1,
    rtol: float = 1e-5,
    labels: str | None = None,
    batch_size: int = 100,
    noise_seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """bits/dim of every image of a data set, their mean and an interval.

    Args:
        model_name: built-in name or path of a denoiser.
        data: name or path of the images.
        out: folder for likelihood.json and likelihood.csv; a stopped run in it goes on.
        split: part of the data; None takes all, of the digits the test part.
        count: the first so many images; None takes all.
        levels: of the pixels; None takes 17 for the digits and 256 elsewhere; 0 takes the pixels as continuous.
        bins: see :func:`scoreline.diffusion.likelihood.dequantised`.
        repeats: dequantisations, each with probes of its own, over which an image's value is averaged.
        divergence, probes, rtol: see :func:`scoreline.diffusion.likelihood.log_likelihood`.
        labels: "none" asks a class-conditional model without a class; None with each image's own.
        batch_size: images a batch.
        noise_seed: seed of dequantisation and probes.
        device: where to run.
        quiet: no progress on stderr.

    Returns:
        what is in likelihood.json.

    Raises:
        InputError: something is misspelt or does not fit; nothing was run.
        ArtefactError: the folder holds another run.
        NonFiniteError: a likelihood is not finite.
    """
    if divergence not in DIVERGENCES:
        raise unknown_name("divergence", divergence, DIVERGENCES)
    for thing, value in (("repeats", repeats), ("probes", probes), ("batch_size", batch_size), ("count", count)):
        if value is not None and value < 1:
            raise InputError(thing, value, "must be 1 or more")
    check_tolerances(rtol, rtol)
    model = load(model_name)
    if isinstance(model, Latent):
        raise InputError("model", model_name, "makes images from latents, whose density is not that of images")
    images = load_images(data, split=split if split is not None or data != "digits" else "test")
    if tuple(images.shape) != tuple(model.shape):
        raise InputError("data", data, f"holds images of shape {images.shape}, the model knows {tuple(model.shape)}")
    if count is not None:
        if count > len(images):
            raise InputError("count", count, f"{data} holds {len(images)} images")
        images = images.subset(range(count))
    if levels is None:
        levels = 17 if data == "digits" else 256
    width = bin_width(levels, bins) if levels else 1.0
    if levels:
        first = images.batch(range(min(batch_size, len(images)))).image
        dequantised(first, levels, torch.zeros_like(first).double(), bins=bins)
    else:
        repeats = 1 if divergence == "exact" else repeats
    if labels is not None and labels != "none":
        raise InputError("labels", labels, "give none, or nothing for each image's own label")
    if labels is not None:
        asked_labels(labels, model)
    if model.num_classes is not None and labels is None and images.labels is None:
        raise InputError("labels", None, "the model is class-conditional and the images have none; give --labels none")
    place = pick_device(device)
    if place.type == "mps":
        if device != "auto":
            raise InputError("device", device, "has no float64, which the integration needs; use cpu or cuda")
        place = torch.device("cpu")
    if levels and len(images) * repeats < 2:
        raise InputError("count", len(images), "an interval needs at least 2 images")

    settings = {
        "data": images.fingerprint, "levels": levels, "bins": bins, "repeats": repeats, "divergence": divergence,
        "probes": probes, "rtol": rtol, "labels": labels, "noise_seed": noise_seed, "batch_size": batch_size,
    }  # fmt: skip
    job = {"model": model.header["fingerprint"], **settings, "device": place.type, "version": scoreline.__version__}
    folder = Path(out)
    ledger = Ledger(folder / "ledger.jsonl", job)
    dims = math.prod(model.shape)
    bare, model = model, model.to(place)
    starts = range(0, len(images), batch_size)
    with progress("likelihood", repeats * len(images), quiet=quiet) as advance:
        for repeat in range(repeats):
            for start in starts:
                key = f"{repeat}/{start}"
                places = range(start, min(start + batch_size, len(images)))
                if key not in ledger:
                    ledger.add(key, **_measured(model, images, places, repeat, settings, place))
                advance(len(places), f"dequantisation {repeat + 1} of {repeats}")

    nats = np.array([[v for start in starts for v in ledger[f"{r}/{start}"]["log_p"]] for r in range(repeats)])
    spent = np.array([[v for start in starts for v in ledger[f"{r}/{start}"]["nfe"]] for r in range(repeats)])
    bits = bits_per_dim(torch.from_numpy(nats), dims, width).numpy()
    each = bits.mean(0)
    interval = mean_interval(each.tolist(), method="t") if len(each) > 1 else None
    result = {
        "format": "scoreline/likelihood/1",
        "version": scoreline.__version__,
        "model": {"name": model_name, "fingerprint": bare.header["fingerprint"]},
        "dataset": {"name": images.name, "count": len(images), "fingerprint": images.fingerprint},
        "settings": settings,
        "dims": dims,
        "bits_per_dim": float(each.mean()),
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "interval": "95 % Student t interval of the mean over images",
        "nats": float(nats.mean()),
        "offset": -math.log2(width),
        "nfe": float(spent.mean()),
        "nfe_max": int(spent.max()),
        "between_repeats": float(bits.std(0, ddof=1).mean()) if repeats > 1 else None,
        "images": [
            {"index": int(index), "bits_per_dim": float(b), "log_p": float(n)}
            for index, b, n in zip(images.index, each, nats.mean(0))
        ],
    }  # fmt: skip
    result["files"] = [str(folder / "likelihood.json"), str(folder / "likelihood.csv")]
    write_json(folder / "likelihood.json", result)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["index", "bits_per_dim", "log_p"])
    table.writerows([image["index"], image["bits_per_dim"], image["log_p"]] for image in result["images"])
    with atomic_path(folder / "likelihood.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return result


def _measured(
    model: Denoiser, images: Images, places: range, repeat: int, settings: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """log p and evaluations of the images of one batch, of one dequantisation."""
    batch = images.batch(places)
    draws = Noise(settings["noise_seed"]).at(batch.index, model.shape, device=device).derived("likelihood", repeat)
    x = batch.image.to(device)
    if settings["levels"]:
        x = dequantised(x, settings["levels"], draws.uniform(shape=model.shape), bins=settings["bins"])
    cond = None
    if model.num_classes is not None:
        none = torch.full((len(places),), model.num_classes)
        own = none if batch.label is None else torch.where(batch.label < 0, none, batch.label)
        cond = Cond(labels=none if settings["labels"] == "none" else own).to(device)
    solved = log_likelihood(
        model.given(cond), x, draws=draws, divergence=settings["divergence"], probes=settings["probes"],
        rtol=settings["rtol"],
    )  # fmt: skip
    if not bool(solved.log_p.isfinite().all()):
        raise NonFiniteError("log-likelihood", None, "is not finite; is the model trained?")
    return {"log_p": solved.log_p.tolist(), "nfe": solved.evaluations.tolist()}
