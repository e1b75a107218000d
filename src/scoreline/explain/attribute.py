"""From a workflow's file to the record of what its components contributed: the work behind `scoreline attribute`."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import scoreline
from scoreline.core.cost import machine, measured
from scoreline.core.device import pick_device
from scoreline.core.encoder import Encoder
from scoreline.core.errors import InputError
from scoreline.core.files import write_json
from scoreline.data.grid import picture_grid, write_png
from scoreline.evaluate.progress import progress
from scoreline.evaluate.protocols import pick_encoder
from scoreline.explain.coalitions import PICTURES
from scoreline.explain.copyscope import CopyScope
from scoreline.explain.workflow import read_workflow

__all__ = ["FORMAT", "attribute"]

FORMAT = "scoreline/attribute/1"


def attribute(
    name: str,
    out: str | Path,
    *,
    images: int | None = None,
    seed_sets: Sequence[int] | None = None,
    utilities: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    bootstrap: int | None = None,
    method: Literal["auto", "exact", "permutation"] = "auto",
    samples: int | None = None,
    workers: int = 1,
    device: str = "auto",
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Divide the similarity of a workflow's images to an artwork among its components.

    Args:
        name: shipped workflow or .yaml / .json file.
        out: folder for results.json and pictures; a stopped run in it goes on.
        images, seed_sets, utilities, features: instead of the file's.
        bootstrap: joint resamples for the error bars; None takes 100 where there is one seed set, else none.
        method, samples, workers: as for :meth:`scoreline.explain.copyscope.CopyScope.run`.
        device: where models run, see `pick_device`; with more workers than one only the CPU.
        command: what was typed, for the record.
        quiet: no progress.

    Returns:
        What is in results.json.

    Raises:
        InputError: something is misspelt or does not fit; nothing was run.
        ArtefactError: a file is missing, or the folder holds another run.
    """
    workflow = read_workflow(name)
    place = pick_device("cpu" if device == "auto" and workers > 1 else device)
    if workers > 1 and place.type != "cpu":
        raise InputError("workers", workers, f"processes cannot share {place}; use 1 worker, or --device cpu")
    if images is not None and workflow.folder is not None:
        raise InputError("images", images, "finished images are taken from their folders as they are")
    if images is not None and images < 2:
        raise InputError("images", images, "give 2 or more")
    workflow = dataclasses.replace(
        workflow,
        images=images or workflow.images,
        seed_sets=tuple(seed_sets if seed_sets is not None else workflow.seed_sets),
        utilities=tuple(utilities if utilities is not None else workflow.utilities),
        features=tuple(features if features is not None else workflow.features),
        device=place,
    )
    if workflow.folder is not None and len(workflow.seed_sets) > 1:
        raise InputError(
            "seed_sets", list(workflow.seed_sets), "finished images are one set; bootstrap gives the errors"
        )
    encoders: dict[str, Encoder] = {}
    for feature in workflow.features:
        encoder = pick_encoder(feature, workflow.source)
        encoders[encoder.protocol["features"]] = encoder
    scope = CopyScope(
        workflow.components,
        workflow.make,
        workflow.artwork,
        encoders,
        utilities=workflow.utilities,
        seeds=workflow.seed_sets,
        bootstrap=bootstrap if bootstrap is not None else 100 * (len(workflow.seed_sets) == 1),
        owners=workflow.owners,
        same=workflow.same,
    )
    masks = scope.masks(method == "exact" or (method == "auto" and scope.exact), samples)
    active = [scope.coalitions.active(mask) for mask in masks]
    workflow.check(active)
    folder = Path(out)
    units = len({workflow.same(coalition) for coalition in active}) * len(workflow.seed_sets)
    # What the images depend on; a folder with other ones is refused.
    job = {
        "workflow": {coalition: workflow.same(a) for a, coalition in zip(active, map(_text, active))},
        "images": workflow.images, "device": place.type, "version": scoreline.__version__,
    }  # fmt: skip
    with measured() as cost, progress("attribute", units, quiet=quiet) as advance:
        found = scope.run(folder, method=method, samples=samples, workers=workers, job=job, advance=advance)
    write_png(folder / "pictures" / "artwork.png", picture_grid(workflow.artwork[:PICTURES], columns=PICTURES))
    pictures = {}
    for mask in masks:
        # Coalitions of equal images share a picture.
        path = scope.coalitions.picture(scope.coalitions.leaders[mask])
        if (folder / path).is_file():
            pictures[str(mask)] = path
    results = {
        "format": FORMAT,
        "version": scoreline.__version__,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "title": workflow.title,
        "about": workflow.about,
        "workflow": dict(workflow.described),
        "artwork": {
            "source": workflow.source.name,
            "fingerprint": workflow.source.fingerprint,
            "count": len(workflow.artwork),
            "shape": list(workflow.source.shape),
            "picture": "pictures/artwork.png",
        },
        "images": next(iter(found.values())).protocol.generated_count,
        "seed_sets": list(workflow.seed_sets),
        "coalitions": {"asked": len(masks), "different": units // len(workflow.seed_sets)},
        "machine": machine() | {"device": str(place)},
        "seconds": cost.seconds,
        "attributions": [attribution.to_dict() for attribution in found.values()],
        "pictures": pictures,
    }
    write_json(folder / "results.json", results)
    return results


def _text(active: frozenset[str]) -> str:
    return " + ".join(sorted(active)) or "nothing"
