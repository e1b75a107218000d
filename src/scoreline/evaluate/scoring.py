"""Scores of one set of images against another: the work behind `scoreline score`."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from scoreline.core.score import Protocol, Score
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

__all__ = ["METRICS", "Statistics", "read_statistics", "score_sets", "write_statistics"]

UNKNOWN = "these statistics do not say which network or how many images they are from"
METRICS = ("fd", "kid", "prdc", "is", "fd-infinity")


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features, and what is known of where they are from: count and network, where stored."""

    mean: Tensor
    cov: Tensor
    count: int | None = None
    features: str = ""
    weights: str = ""


def write_statistics(path: str | Path, moments: Moments, encoder: Encoder) -> None:
    """Mean and covariance as .npz with `mu` and `sigma`, float64: the layout of pytorch-fid and its descendants.

    What that layout lacks, the count and the network, stands beside them under names that others ignore.
    """
    named = {key: encoder.protocol[key] for key in ("features", "weights")}
    arrays: dict[str, Any] = {
        "mu": moments.mean.numpy(),
        "sigma": moments.cov().numpy(),
        "count": moments.count,
        **named,
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_statistics(path: str | Path) -> Statistics | None:
    """The statistics in an .npz file, or None when it holds something else (images, say).

    Raises:
        ArtefactError: the file is damaged.
        InputError: mean and covariance do not fit together, or are not finite.
    """
    file = Path(path).expanduser()
    if file.suffix != ".npz" or not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if not {"mu", "sigma"} <= set(arrays.files):
                return None
            mean, cov = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("mu", "sigma"))
            count = int(arrays["count"]) if "count" in arrays else None
            features, weights = (str(arrays[name]) if name in arrays else "" for name in ("features", "weights"))
    except Exception as error:  # zip, zlib and header parsing meet hostile bytes and raise nearly anything
        raise ArtefactError("statistics", str(path), f"cannot be read ({error})") from None
    if mean.dim() != 1 or cov.shape != (len(mean), len(mean)):
        shapes = (tuple(mean.shape), tuple(cov.shape))
        raise InputError(f"statistics in {path}", shapes, "mu has shape (d,), sigma has shape (d, d)")
    if not bool(mean.isfinite().all() and cov.isfinite().all()):
        raise InputError(f"statistics in {path}", None, "hold NaN or infinity; make them again")
    return Statistics(mean, cov, count, features, weights)


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
    metrics: Sequence[str] | None = None,
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
        metrics: of `METRICS`; None takes fd, kid and prdc, or fd alone where statistics are given.
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
    saved = {side: read_statistics(source) for side, source in (("real", real), ("generated", generated))}
    any_saved = any(s is not None for s in saved.values())
    if metrics is None:
        metrics = ["fd"] if any_saved else ["fd", "kid", "prdc"]
    for metric in metrics:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
    if not metrics:
        raise InputError("metrics", None, "give at least one")
    if any_saved and list(metrics) != ["fd"]:
        raise InputError("metrics", ",".join(metrics), "saved statistics give the Frechet distance only; use fd")
    if batch_size < 1:
        raise InputError("batch_size", batch_size, "must be 1 or more")
    if save_statistics is not None and (saved["real"] is not None or Path(save_statistics).suffix != ".npz"):
        raise InputError("save_statistics", save_statistics, "takes a name ending in .npz, and a real set of images")
    if real == "digits" and real_split is None:
        real_split = "test"
    opened: dict[str, Images] = {}
    for side, source, split in (("real", real, real_split), ("generated", generated, generated_split)):
        if saved[side] is None:
            opened[side] = load_images(source, split=split, size=size)
    if not opened:
        return _between_saved(saved, real)
    if len(opened) == 2 and opened["real"].shape != opened["generated"].shape:
        shapes = " and ".join("x".join(map(str, opened[side].shape)) for side in ("real", "generated"))
        raise InputError(
            "image shapes", shapes, "real and generated must be alike; give --size, or convert one of them"
        )

    some = next(iter(opened.values()))
    encoders = [pick_encoder(features, some)]
    if "is" in metrics and not isinstance(encoders[0], Classifier):
        raise InputError("metric", "is", "needs a feature network with class outputs; pixels have none")
    if not isinstance(encoders[0], Pixels) and some.shape == (1, 8, 8) and "fd" in metrics and len(opened) == 2:
        encoders.append(Pixels(some.shape))
    notes: list[str] = []
    scores: list[Score] = []
    floors: dict[str, float] = {}
    with (
        measured() as cost,
        progress("score", sum(map(len, opened.values())) * len(encoders), quiet=quiet) as advance,
        python_warnings.catch_warnings(record=True) as caught,
    ):
        python_warnings.simplefilter("always", UserWarning)
        for position, encoder in enumerate(encoders):
            found = {side: _features(encoder, images, batch_size, advance) for side, images in opened.items()}
            if len(found) == 2:
                scorer = FrechetProtocol(encoder, opened["real"], split=real_split or "")
                wanted = list(metrics) if position == 0 else ["fd"]
                scores += _scores(wanted, encoder, scorer, found["real"], found["generated"], seed)
                if real == "digits" and real_split == "test" and size in (None, 8):
                    count = len(found["generated"])
                    floors[scorer.name(count)] = scorer.floor(load_images("digits", split="train"), count)
            else:
                scores.append(_against_saved(encoder, found, saved, real))
            if save_statistics is not None and position == 0:
                write_statistics(save_statistics, Moments.of(found["real"]), encoder)
    notes += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    notes += _warnings(opened)
    facts = machine()
    for score in scores:
        score.cost.update(seconds=cost.seconds, peak_memory_bytes=cost.peak_memory, machine=facts)  # type: ignore[attr-defined]
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
            # The spread over subsets says nothing of the error from the images themselves, so it is no interval.
            spread = kernel_distance(r, g, subset_size=size, seed=seed)
            protocol = base.replace(metric="kid", method="unbiased", subsets=100, subset_size=size, estimator_seed=seed)
            found.append(Score("kid", spread.mean, protocol, higher_is_better=False))
        elif metric == "prdc":
            values = prdc(r, g)
            protocol = base.replace(metric="prdc", k=5, strict=True, method="prdc")
            for name in ("precision", "recall", "density", "coverage"):
                found.append(Score(name, getattr(values, name), protocol, higher_is_better=True))
        else:
            assert isinstance(encoder, Classifier)
            logits = encoder.head(g)
            spread = inception_score(logits)
            protocol = base.replace(metric="inception-score", tap="logits", method="10 splits", reference="none")
            found.append(Score("is", spread.mean, protocol, higher_is_better=True))
    return found


def _between_saved(saved: dict[str, Statistics | None], real: str) -> dict[str, Any]:
    first, second = saved["real"], saved["generated"]
    assert first is not None
    assert second is not None
    if first.mean.shape != second.mean.shape:
        raise InputError("statistics", (len(first.mean), len(second.mean)), "both need the same number of features")
    for name in ("features", "weights"):
        a, b = getattr(first, name), getattr(second, name)
        if a and b and a != b:
            raise InputError("statistics", f"{a} and {b}", f"are of different {name}; make both with the same network")
    value = frechet_distance_from_statistics(first.mean, first.cov, second.mean, second.cov)
    protocol = Protocol(
        metric="frechet-distance", features=first.features or "unknown", weights=first.weights or "unknown",
        reference=real, reference_count=first.count, generated_count=second.count, method="symmetric", ddof=1,
    )  # fmt: skip
    score = Score("fd", value, protocol, higher_is_better=False)
    notes = [f"{side}: {UNKNOWN}" for side, s in saved.items() if s is not None and not s.features]
    return {"scores": [score.to_dict()], "floor": {}, "protocol": str(protocol), "warnings": notes, "cost": {}}


def _against_saved(encoder: Encoder, found: dict[str, Tensor], saved: dict[str, Statistics | None], real: str) -> Score:
    ((side, features),) = found.items()
    moments = Moments.of(features)
    other = saved["generated" if side == "real" else "real"]
    assert other is not None
    named: dict[str, Any] = dict(encoder.protocol)
    if len(other.mean) != encoder.dim:
        raise InputError(
            "statistics", len(other.mean), f"are of another network: {named['features']} has {encoder.dim}"
        )
    for name in ("features", "weights"):
        if getattr(other, name) not in ("", named[name]):
            mend = f"are of other {name} than {named[name]}; give the same --features as when they were made"
            raise InputError("statistics", getattr(other, name), mend)
    if not other.features:
        python_warnings.warn(f"statistics: {UNKNOWN}", UserWarning, stacklevel=2)
    counts = (moments.count, other.count) if side == "generated" else (other.count, moments.count)
    protocol = Protocol(
        metric="frechet-distance", **named, reference=real, method="symmetric", ddof=1,
        generated_count=counts[0], reference_count=counts[1],
    )  # fmt: skip
    pair = [(moments.mean, moments.cov()), (other.mean, other.cov)]
    (m1, c1), (m2, c2) = pair if side == "real" else pair[::-1]
    return Score("fd", frechet_distance_from_statistics(m1, c1, m2, c2), protocol, higher_is_better=False)


def _warnings(opened: dict[str, Images]) -> list[str]:
    notes = []
    described = {side: images.describe() for side, images in opened.items()}
    few = [f"{len(images)} {side}" for side, images in opened.items() if len(images) < 2000]
    if few:
        mend = "compare it at equal counts only, or use --metrics fd-infinity"
        notes.append(f"few images ({', '.join(few)}): a Frechet distance of N images is too high by about c/N; {mend}")
    for side, images in opened.items():
        if images.skipped:
            notes.append(f"{side}: {len(images.skipped)} bad images were left out")
    formats = {side: set(d.get("formats") or ()) for side, d in described.items()}
    jpeg = {side: "JPEG" in f for side, f in formats.items()}
    if len(opened) == 2 and all(formats.values()) and jpeg["real"] != jpeg["generated"]:
        notes.append("one set is JPEG and the other is not: compression alone moves the score")
    return notes
