"""Scores of anomaly maps, for one model or several on the same images: the work behind `scoreline anomaly`."""

from __future__ import annotations

import datetime
import hashlib
import math
import warnings as python_warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

import scoreline
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.score import Protocol, Score
from scoreline.data.anomaly_maps import AnomalySet, read_anomaly_set
from scoreline.evaluate.progress import progress
from scoreline.metrics.aupimo import (
    FPR_BOUNDS,
    AupimoResult,
    Route,
    aupimo,
    check_options,
    pimo_curves,
    random_model_aupimo,
)
from scoreline.metrics.intervals import mean_interval
from scoreline.metrics.per_image import boxplot_statistics, compare_models
from scoreline.metrics.pixel_curves import Convention, aupr, aupro, auroc, image_auroc

__all__ = ["FORMAT", "Exhibit", "ModelCurves", "score_anomaly_maps"]

FORMAT = "scoreline/anomaly/1"
CURVE_POINTS = 200


class ModelCurves(NamedTuple):
    """PIMO curves of a model, for plots.

    Attributes:
        fpr: (K,) falling.
        tpr: (A, K) of the anomalous images.
    """

    fpr: np.ndarray
    tpr: np.ndarray


class Exhibit(NamedTuple):
    """An image that stands for a statistic.

    Attributes:
        model, image: names.
        statistics: what it stands for, such as "median 0.52".
        score: its AUPIMO.
        scores: (H, W) its anomaly map.
        mask: (H, W) bool.
        levels: the map's values at which the shared FPR is U, and L.
    """

    model: str
    image: str
    statistics: str
    score: float
    scores: Tensor
    mask: Tensor
    levels: tuple[float, float]


def score_anomaly_maps(
    models: Mapping[str, str | AnomalySet],
    masks: str,
    *,
    fpr_bounds: tuple[float, float] = FPR_BOUNDS,
    route: Route = "plain",
    num_thresholds: int | None = None,
    force: bool = False,
    convention: Convention = "distinct",
    fpr_limit: float = 0.3,
    test: Literal["wilcoxon", "t"] = "wilcoxon",
    unmasked: Literal["error", "normal"] = "error",
    mask_above: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[dict[str, Any], dict[str, ModelCurves], list[Exhibit]]:
    """Score the anomaly maps of one or several models against the same masks.

    Args:
        models: name -> folder or file of maps, or a set that is read already.
        masks: folder or file of masks.
        fpr_bounds, route, num_thresholds, force: as for :func:`scoreline.metrics.aupimo.aupimo`.
        convention, fpr_limit: as for :func:`scoreline.metrics.pixel_curves.aupro`.
        test: how models are compared, "wilcoxon" or "t".
        unmasked, mask_above: as for :func:`scoreline.data.anomaly_maps.read_anomaly_set`.
        seed: of the intervals.
        quiet: no progress.

    Returns:
        (results with plain values alone, model -> its curves, the images behind the statistics of each model).

    Raises:
        InputError: names, sizes, masks or bounds that do not fit.
        ArtefactError: a file is missing or broken.
    """
    check_options(num_thresholds, fpr_bounds, route)
    if not 0 < fpr_limit <= 1:
        raise InputError("fpr_limit", fpr_limit, "a share of false positives in (0, 1]; 0.3 in the literature")
    for source in models.values():
        if not isinstance(source, AnomalySet) and not Path(source).exists():
            raise ArtefactError(str(source), None, "no such folder or file of maps")
    warnings: list[str] = []
    entries, curves, exhibits = [], {}, []
    names: list[str] = []
    truth = ""
    with progress("anomaly maps", len(models), quiet=quiet) as advance:
        for model, source in models.items():
            found = (
                source
                if isinstance(source, AnomalySet)
                else read_anomaly_set(source, masks, unmasked=unmasked, mask_above=mask_above)
            )
            fingerprint = _fingerprint(found)
            if not names:
                names, truth = found.names, fingerprint
            elif found.names != names or fingerprint != truth:
                differing = sorted(set(found.names) ^ set(names))
                mend = f"the first image that only one of them has is {differing[0]!r}" if differing else "masks differ"
                raise InputError("images of", model, f"are not those of {next(iter(models))}: {mend}")
            warnings += _notes(model, found)
            with python_warnings.catch_warnings(record=True) as caught:
                python_warnings.simplefilter("always", UserWarning)
                result = aupimo(
                    found.maps, found.masks, num_thresholds, fpr_bounds=fpr_bounds, route=route, force=force
                )
            warnings += [f"{model}: {entry.message}" for entry in caught]
            protocol = _protocol(found, result, truth, masks, route, num_thresholds, fpr_bounds)
            entries.append(
                _entry(model, source, found, result, protocol, convention=convention, fpr_limit=fpr_limit, seed=seed)
            )
            whole = pimo_curves(found.maps, found.masks, CURVE_POINTS, spacing="log-fpr")
            anomalous = whole.classes.numpy()
            curves[model] = ModelCurves(whole.shared_fpr.numpy(), whole.per_image_tpr.numpy()[anomalous])
            exhibits += _exhibits(model, found, result, entries[-1]["statistics"])
            advance(1, model)
    classes = [bool(value) for value in result.classes]
    results: dict[str, Any] = {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": scoreline.__version__,
        "masks": str(masks),
        "fpr_bounds": list(fpr_bounds),
        "chance": random_model_aupimo(fpr_bounds),
        "counts": {"normal": classes.count(False), "anomalous": classes.count(True)},
        "images": [{"name": name, "anomalous": anomalous} for name, anomalous in zip(names, classes)],
        "models": entries,
        "comparison": _comparison(entries, classes, test),
        "warnings": list(dict.fromkeys(warnings)),
    }
    return results, curves, exhibits


def _entry(
    model: str,
    source: str | AnomalySet,
    found: AnomalySet,
    result: AupimoResult,
    protocol: Protocol,
    *,
    convention: Convention,
    fpr_limit: float,
    seed: int,
) -> dict[str, Any]:
    known = result.scores[result.classes]
    interval = mean_interval(known, seed=seed) if len(known) > 1 else None
    data: dict[str, Any] = {
        "reference_fingerprint": protocol.reference_fingerprint, "image": protocol.image,
        "reference": protocol.reference, "generated_count": len(found.names),
    }  # fmt: skip
    ranked = {"auroc": auroc(found.maps, found.masks), "aupr": aupr(found.maps, found.masks)}
    ranked["image-auroc"] = image_auroc(found.maps, found.masks)
    overlap = aupro(found.maps, found.masks, fpr_limit=fpr_limit, convention=convention)
    limit = Protocol(metric="aupro", method=convention, extra=(("fpr_limit", fpr_limit),), **data)
    scores = [
        Score("aupimo", result.mean, protocol, True, interval),
        Score("aupro", overlap, limit, True),
        *(Score(name, value, Protocol(metric=name, **data), True) for name, value in ranked.items()),
    ]
    statistics = [
        {"name": s.name, "value": s.value, "image": found.names[s.image], "score": s.score}
        for s in boxplot_statistics(result.scores)
    ]
    return {
        "name": model,
        "maps": "" if isinstance(source, AnomalySet) else str(source),
        "scores": {score.name: score.to_dict() for score in scores},
        "reached": list(result.reached),
        "per_image": [None if math.isnan(value) else value for value in result.scores.tolist()],
        "statistics": statistics,
    }


def _protocol(
    found: AnomalySet,
    result: AupimoResult,
    truth: str,
    masks: str,
    route: str,
    num_thresholds: int | None,
    fpr_bounds: tuple[float, float],
) -> Protocol:
    sizes = {tuple(mask.shape) for mask in found.masks}
    image = "x".join(map(str, next(iter(sizes)))) if len(sizes) == 1 else f"{len(sizes)} sizes"
    normal = int((~result.classes).sum())
    return Protocol(
        metric="aupimo",
        method=route,
        image=image,
        reference=Path(masks).name if masks else "none",
        reference_fingerprint=truth,
        reference_count=normal,
        generated_count=len(found.names) - normal,
        extra=(
            ("fpr_lower", fpr_bounds[0]),
            ("fpr_upper", fpr_bounds[1]),
            ("thresholds", num_thresholds if num_thresholds is not None else "default" if route != "exact" else "none"),
        ),
    )


def _fingerprint(found: AnomalySet) -> str:
    """Of the names and masks of all images."""
    digest = hashlib.sha256()
    for name, mask in zip(found.names, found.masks):
        digest.update(f"{name}\n{tuple(mask.shape)}\n".encode("utf-8", "surrogateescape"))
        digest.update(np.packbits(mask.numpy()).tobytes())
    return digest.hexdigest()[:16]


def _notes(model: str, found: AnomalySet) -> list[str]:
    notes = []
    if found.resized:
        notes.append(
            f"{model}: {found.resized} of {len(found.names)} maps were enlarged bilinearly to their mask's size"
        )
    if found.unmasked:
        notes.append(f"{found.unmasked} of {len(found.names)} images have no mask and count as normal")
    return notes


def _exhibits(
    model: str, found: AnomalySet, result: AupimoResult, statistics: Sequence[Mapping[str, Any]]
) -> list[Exhibit]:
    """One exhibit an image, from the lowest score to the highest."""
    levels = float(result.curves.thresholds[0]), float(result.curves.thresholds[-1])
    by_image: dict[str, list[str]] = {}
    for s in statistics:
        by_image.setdefault(s["image"], []).append(f"{s['name'].replace('-', ' ')} {s['value']:.2f}")
    scores = {s["image"]: s["score"] for s in statistics}
    order = sorted(by_image, key=lambda image: scores[image])
    at = {name: i for i, name in enumerate(found.names)}
    return [
        Exhibit(
            model,
            image,
            ", ".join(by_image[image]),
            scores[image],
            found.maps[at[image]],
            found.masks[at[image]],
            levels,
        )
        for image in order
    ]


def _comparison(entries: Sequence[Mapping[str, Any]], classes: Sequence[bool], test: Any) -> dict[str, Any] | None:
    if len(entries) < 2 or sum(classes) < 2:
        return None
    scores = {e["name"]: [math.nan if v is None else v for v in e["per_image"]] for e in entries}
    found = compare_models(scores, test=test)
    rows = [[None if math.isnan(v) else v for v in row] for row in found.confidence.tolist()]
    return {
        "test": found.test,
        "alternative": found.alternative,
        "models": list(found.models),
        "merit": list(found.merit),
        "images": found.images,
        "confidence": rows,
    }
