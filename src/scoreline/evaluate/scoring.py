"""Scores of one set of images against another: the work behind `scoreline score`."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.cost import machine, measured
from scoreline.core.encoder import Classifier, Encoder
from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.core.files import atomic_path
from scoreline.core.moments import Moments
from scoreline.core.score import Interval, Protocol, Score
from scoreline.data import load_images
from scoreline.data.images import Images
from scoreline.evaluate.progress import progress
from scoreline.evaluate.protocols import FrechetProtocol, pick_encoder
from scoreline.metrics import (
    fid_infinity,
    frechet_distance,
    frechet_distance_from_statistics,
    frechet_interval,
    inception_score,
    kernel_distance,
    prdc,
)
from scoreline.nn.features import Pixels

__all__ = ["METRICS", "read_statistics", "score_sets", "write_statistics"]

METRICS = ("fd", "kid", "prdc", "is", "fd-infinity")


def write_statistics(path: str | Path, moments: Moments) -> None:
    """Mean and covariance as .npz with `mu` and `sigma`, float64: the layout of pytorch-fid and its descendants."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, mu=moments.mean.numpy(), sigma=moments.cov().numpy())


def read_statistics(path: str | Path) -> tuple[Tensor, Tensor] | None:
    """(mu, sigma) of an .npz that holds statistics, or None when it holds something else.

    Raises:
        ArtefactError: the file is damaged.
    """
    file = Path(path)
    if file.suffix != ".npz" or not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if not {"mu", "sigma"} <= set(arrays.files):
                return None
            mu, sigma = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("mu", "sigma"))
            return mu, sigma
    except (OSError, ValueError, EOFError) as error:
        raise ArtefactError("statistics", str(path), f"cannot be read ({error})") from None


@torch.no_grad()
def _features(encoder: Encoder, images: Images, batch_size: int, advance: Callable[[int, str], None]) -> Tensor:
    found = []
    for batch in images.batches(batch_size):
        found.append(encoder.features(batch.image))
        advance(len(batch), images.name)
    return torch.cat(found)


def score_sets(
    real: str,
    generated: str,
    *,
    features: str = "auto",
    metrics: Sequence[str] = ("fd",),
    real_split: str | None = None,
    generated_split: str | None = None,
    size: int | None = None,
    batch_size: int = 250,
    save_statistics: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score a generated set against a real one.

    Args:
        real, generated: data sets as `load_images` takes them, or .npz statistics.
        features: see `pick_encoder`.
        metrics: of `METRICS`.
        real_split, generated_split, size: as for `load_images`.
        batch_size: images a batch.
        save_statistics: path for the real set's statistics.
        seed: of subsets and intervals.
        quiet: no progress.

    Returns:
        {"scores": [...], "floor": {...}, "protocol": text, "warnings": [...], "cost": {...}}, plain values.

    Raises:
        InputError: names, shapes or metrics that do not fit.
        ArtefactError: files or weights that are missing or damaged.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
    if not metrics:
        raise InputError("metrics", None, "give at least one")
    saved = {"real": read_statistics(real), "generated": read_statistics(generated)}
    if any(s is not None for s in saved.values()) and list(metrics) != ["fd"]:
        raise InputError("metrics", list(metrics), "saved statistics give the Frechet distance only; use --metrics fd")
    if real == "digits" and real_split is None:
        real_split = "test"
    opened: dict[str, Images] = {}
    for side, source, split in (("real", real, real_split), ("generated", generated, generated_split)):
        if saved[side] is None:
            opened[side] = load_images(source, split=split, size=size)
    if len(opened) == 2 and opened["real"].shape != opened["generated"].shape:
        shapes = f"{opened['real'].shape} and {opened['generated'].shape}"
        raise InputError("shapes", shapes, "both sets need the same; give --size, or make them alike first")
    if not opened:
        assert saved["real"] is not None
        assert saved["generated"] is not None
        value = frechet_distance_from_statistics(*saved["real"], *saved["generated"])
        protocol = Protocol(metric="frechet-distance", features="unknown", reference=real, method="symmetric", ddof=1)
        score = Score("fd", value, protocol, higher_is_better=False)
        note = "saved statistics do not say which network or how many images they are from"
        return {"scores": [score.to_dict()], "floor": {}, "protocol": str(protocol), "warnings": [note], "cost": {}}

    some = next(iter(opened.values()))
    encoders = [pick_encoder(features, some)]
    if not isinstance(encoders[0], Pixels) and some.shape == (1, 8, 8) and "fd" in metrics and len(opened) == 2:
        encoders.append(Pixels(some.shape))
    notes: list[str] = []
    scores: list[Score] = []
    floors: dict[str, float] = {}
    with measured() as cost, progress("score", sum(map(len, opened.values())) * len(encoders), quiet=quiet) as advance:
        for position, encoder in enumerate(encoders):
            if len(opened) == 2:
                reference, judged = opened["real"], opened["generated"]
                r = _features(encoder, reference, batch_size, advance)
                g = _features(encoder, judged, batch_size, advance)
                scorer = FrechetProtocol(encoder, reference, split=real_split or "")
                wanted = list(metrics) if position == 0 else ["fd"]
                with python_warnings.catch_warnings(record=True) as caught:
                    python_warnings.simplefilter("always", UserWarning)
                    scores += _scores(wanted, encoder, scorer, r, g, seed)
                notes += [str(w.message) for w in caught]
                if (reference.name, real_split) == ("digits", "test"):
                    name = scorer.name(len(g))
                    floors[name] = scorer.floor(load_images("digits", split="train"), len(g))
                if save_statistics is not None and position == 0:
                    write_statistics(save_statistics, Moments.of(r))
            else:
                scores.append(_against_saved(encoder, opened, saved, real, batch_size, advance))
    notes += _warnings(opened)
    for score in scores:
        score.cost.update(seconds=cost.seconds, peak_memory_bytes=cost.peak_memory, machine=machine())  # type: ignore[attr-defined]
    return {
        "scores": [score.to_dict() for score in scores],
        "floor": floors,
        "protocol": str(scores[0].protocol),
        "warnings": list(dict.fromkeys(notes)),
        "cost": {"seconds": cost.seconds, "peak_memory_bytes": cost.peak_memory},
    }


def _scores(
    metrics: Sequence[str], encoder: Encoder, scorer: FrechetProtocol, r: Tensor, g: Tensor, seed: int
) -> list[Score]:
    base = scorer.protocol(len(g))
    found: list[Score] = []
    for metric in metrics:
        if metric == "fd":
            interval = None
            value = frechet_distance(r, g)
            if len(g) >= 40:
                value, interval = frechet_interval(r, g, seed=seed)
            found.append(Score(scorer.name(len(g)), value, base, higher_is_better=False, interval=interval))
        elif metric == "fd-infinity":
            smallest = min(5000, max(len(g) // 10, 2))
            limit = fid_infinity(r, g, smallest=smallest, seed=seed)
            protocol = base.replace(method="extrapolated", estimator_seed=seed, extra=(("smallest", smallest),))
            interval = getattr(limit, "interval", None)
            found.append(Score("fd-infinity", limit.value, protocol, higher_is_better=False, interval=interval))
        elif metric == "kid":
            size = min(1000, len(r), len(g))
            spread = kernel_distance(r, g, subset_size=size, seed=seed)
            protocol = base.replace(metric="kid", method="unbiased", subsets=100, subset_size=size, estimator_seed=seed)
            found.append(Score("kid", spread.mean, protocol, higher_is_better=False, interval=_spread(spread)))
        elif metric == "prdc":
            values = prdc(r, g)
            protocol = base.replace(metric="prdc", k=5, strict=True, method="prdc")
            for name in ("precision", "recall", "density", "coverage"):
                found.append(Score(name, getattr(values, name), protocol, higher_is_better=True))
        else:
            if not isinstance(encoder, Classifier):
                raise InputError("metric", metric, "needs a feature network with class outputs; pixels have none")
            logits = encoder.head(g)
            spread = inception_score(logits)
            protocol = base.replace(metric="inception-score", tap="logits", method="10 splits", reference="none")
            found.append(Score("is", spread.mean, protocol, higher_is_better=True, interval=_spread(spread)))
    return found


def _spread(spread: Any) -> Interval:
    return Interval(
        spread.mean - 1.96 * spread.std / len(spread.values) ** 0.5,
        spread.mean + 1.96 * spread.std / len(spread.values) ** 0.5,
        0.95,
        f"mean over {len(spread.values)} subsets, +- 1.96 standard errors",
    )


def _against_saved(
    encoder: Encoder,
    opened: dict[str, Images],
    saved: dict[str, tuple[Tensor, Tensor] | None],
    real: str,
    batch_size: int,
    advance: Callable[[int, str], None],
) -> Score:
    side, images = next(iter(opened.items()))
    moments = Moments.of(_features(encoder, images, batch_size, advance))
    other = saved["generated" if side == "real" else "real"]
    assert other is not None
    mine = (moments.mean, moments.cov())
    if other[0].shape != mine[0].shape:
        raise InputError("statistics", tuple(other[0].shape), f"these features have {encoder.dim} dimensions")
    pair = (*mine, *other) if side == "real" else (*other, *mine)
    named: dict[str, Any] = dict(encoder.protocol)
    protocol = Protocol(
        metric="frechet-distance", **named, reference=real, method="symmetric", ddof=1,
        generated_count=moments.count if side == "generated" else None,
    )  # fmt: skip
    return Score("fd", frechet_distance_from_statistics(*pair), protocol, higher_is_better=False)


def _warnings(opened: dict[str, Images]) -> list[str]:
    notes = []
    described = {side: images.describe() for side, images in opened.items()}
    for side, images in opened.items():
        if len(images) < 2000:
            notes.append(f"{side}: {len(images)} images; a Frechet distance of so few is biased upwards by about c/n")
        if images.skipped:
            notes.append(f"{side}: {len(images.skipped)} bad images were left out")
    formats = {side: set(d.get("formats") or ()) for side, d in described.items()}
    jpeg = {side: "JPEG" in f for side, f in formats.items()}
    if len(opened) == 2 and all(formats.values()) and jpeg["real"] != jpeg["generated"]:
        notes.append("one set is JPEG and the other is not: compression alone moves the score")
    return notes
