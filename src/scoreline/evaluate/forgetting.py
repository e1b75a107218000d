"""How well a model has forgotten, and what it cost the rest: judged by a classifier, class by class.

    unlearning accuracy   1 - (requests for c_f judged as c_f)/(requests for c_f)
    override hit rate     share of the requests for c_f judged as their override class
    retention             share of the requests for c judged as c, each kept class; the Frechet distance, precision and
                          recall of the images of all kept classes together against real images of these classes
The script released with SFD divides the hits by ALL images of a folder; with ten classes in it everything that is said
of the forgotten one comes out ten times too small. Both numbers are given here, and the first is right.

Reference: Chen, Zhang and Zhou 2024 (Score Forgetting Distillation, arXiv 2409.11219).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.artefact import fingerprint
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.encoder import Classifier
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.data import load_images
from scoreline.data.grid import picture_grid, write_png
from scoreline.data.images import Images
from scoreline.evaluate.protocols import FrechetProtocol, features_of, pick_encoder
from scoreline.evaluate.specs import labels_for
from scoreline.metrics.prdc import prdc
from scoreline.nn.text import text_network
from scoreline.samplers.generator import Sampled

__all__ = ["forgetting_scores", "kept_images", "mark_of", "measure_forgetting", "open_judge", "request_grid"]
__all__ += ["retention_protocol"]

COLUMNS, ROWS = 10, 3
MOST = 2000  # images of a side of precision and recall
LEAST = 6


def forgetting_scores(
    asked: Tensor, probabilities: Tensor, forgotten: Sequence[int], overrides: Sequence[int] | None = None
) -> dict[str, Any]:
    """What a judge says of images, in numbers.

    Args:
        asked: (N,) classes that were asked for.
        probabilities: (N, C) of the judge.
        forgotten: the classes.
        overrides: the class that each of them should give; None where it is drawn or found by a classifier, and the
            override is hit by any kept class.

    Returns:
        "accuracy" (a share for each class, None where it was not asked for), "unlearning accuracy", "released script"
        (what that script calls unlearning accuracy), "override hits", "forgotten probability" and "forgotten entropy"
        (means over the requests for forgotten classes; entropy of the judge in nats).

    Raises:
        InputError: no forgotten class was asked for, or shapes do not fit.

    >>> asked, seen = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    >>> found = forgetting_scores(asked, torch.eye(2)[seen], [0], [1])
    >>> found["unlearning accuracy"], found["released script"], found["accuracy"]
    (0.5, 0.75, [0.5, 1.0])
    """
    if probabilities.ndim != 2 or len(asked) != len(probabilities):
        raise InputError("probabilities", tuple(probabilities.shape), f"need one row for each of {len(asked)} images")
    seen, count = probabilities.argmax(1), len(asked)
    accuracy = [
        float((seen[asked == c] == c).double().mean()) if bool((asked == c).any()) else None
        for c in range(probabilities.shape[1])
    ]
    barred = torch.tensor(list(forgotten))
    mine = torch.isin(asked, barred)
    if not bool(mine.any()):
        raise InputError("classes", list(forgotten), "none of the images was asked for one of them")
    hits = mine & (seen == asked)
    wanted = torch.full_like(asked, -1)
    for c, o in zip(forgotten, overrides or ()):
        wanted[asked == c] = o
    hit = mine & (seen == wanted) if overrides is not None else mine & ~torch.isin(seen, barred)
    p = probabilities[mine].double()
    entropy = -(p * p.clamp_min(1e-300).log()).sum(1)
    return {
        "accuracy": accuracy,
        "unlearning accuracy": 1 - int(hits.sum()) / int(mine.sum()),
        "released script": 1 - int(hits.sum()) / count,
        "override hits": int(hit.sum()) / int(mine.sum()),
        "forgotten probability": float(p.gather(1, asked[mine, None]).mean()),
        "forgotten entropy": float(entropy.mean()),
    }


def kept_images(images: Images, forgotten: Sequence[int]) -> Images:
    """The real images of the kept classes.

    Raises:
        InputError: they have no labels, or only forgotten ones.
    """
    if images.labels is None or images.labels.ndim != 1:
        raise InputError(
            "data", images.name, "has no labels, so the kept classes cannot be told from the forgotten ones"
        )
    return images.subset(np.flatnonzero(~np.isin(images.labels, list(forgotten))))


def open_judge(name: str | None, model: Denoiser) -> Classifier:
    """The classifier that says what images show.

    Args:
        name: built-in name or path; None takes digits-net for 8x8 grey images.
        model: what it judges.

    Raises:
        InputError: none is known, or it knows other classes than a model that reads no captions.
        ArtefactError: the file is missing or damaged.
    """
    reads = text_network(model) is not None
    if name is None:
        if tuple(model.shape) != (1, 8, 8) or (model.num_classes != 10 and not reads):
            raise InputError("judge", None, "is needed: a classifier of the model's classes; give --judge FILE")
        name = "digits-net"
    judge = load(name, kind=None)
    if not isinstance(judge, Classifier):
        raise InputError("judge", name, f"is a {type(judge).__name__}, not a classifier")
    classes = getattr(judge, "num_classes", None)
    if classes != model.num_classes and not reads:
        raise InputError("judge", name, f"knows {classes} classes, the model {model.num_classes}")
    return judge


def retention_protocol(data: str, features: str, model: Denoiser, forgotten: Sequence[int]) -> FrechetProtocol:
    """The Frechet distance against real images of the kept classes; of digits those of the test split.

    Args:
        data: data set.
        features: see :func:`scoreline.evaluate.protocols.pick_encoder`.
        model: whose images are scored.
        forgotten: classes that are left out.

    Raises:
        InputError: the images do not fit the model, or have no labels.
    """
    split = "test" if data == "digits" else None
    real = kept_images(load_images(data, split=split), forgotten)
    made = tuple(model.decode(torch.zeros(1, *model.shape)).shape[1:])
    if real.shape != made:
        raise InputError("data", data, f"holds images of shape {real.shape}, the model makes {made}")
    conditions = f"labels-uniform without {','.join(map(str, forgotten))}"
    return FrechetProtocol(pick_encoder(features, real), real, split=split or "", conditions=conditions)


@torch.no_grad()
def measure_forgetting(
    model: Denoiser,
    sampler: Sampler,
    judge: Classifier,
    forgotten: Sequence[int],
    overrides: Sequence[int] | None = None,
    *,
    judged: Sequence[int] | None = None,
    protocol: FrechetProtocol | None = None,
    count: int = 2000,
    seed: int = 0,
    batch_size: int = 250,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Make images of all classes in turn, and judge them.

    Args:
        model: class-conditional.
        sampler: with its steps chosen.
        judge: see :func:`open_judge`.
        forgotten, overrides: see :func:`forgetting_scores`.
        judged: the judge's class of each class (prompt) of the model; None where they are the same.
        protocol: of the distance of the kept classes; None measures none.
        count: images in all; at least two of each class.
        seed: image i has noise i of it.
        batch_size: images at a time.
        device: where to sample and judge.

    Returns:
        What :func:`forgetting_scores` gives, and "nfe", "count", "kept" (images of kept classes), "name" and
        "distance", "precision", "recall".

    Raises:
        InputError: too few images.
    """
    classes = model.num_classes or 0
    if count < 2 * classes:
        raise InputError("count", count, f"is too small for {classes} classes; give {2 * classes} or more")
    generator, judge = Sampled(model.to(device).eval(), sampler), judge.to(device).eval()
    barred, show = torch.tensor(list(forgotten)), torch.tensor(range(classes) if judged is None else list(judged))
    asked, seen, kept = [], [], []
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        cond = labels_for(indices, classes)
        assert cond is not None
        assert cond.labels is not None
        images = generator.generate(indices, Noise(seed), cond.to(device))
        wanted = show[cond.labels]
        asked.append(wanted)
        seen.append(judge(images).softmax(1).cpu())
        if protocol is not None:
            kept.append(features_of(protocol.encoder, images[~torch.isin(wanted, barred)].cpu()))
    labels = torch.cat(asked)
    out: dict[str, Any] = {"count": count, "kept": int((~torch.isin(labels, barred)).sum()), "nfe": generator.nfe}
    out |= {"name": None, "distance": None, "precision": None, "recall": None}
    out |= forgetting_scores(labels, torch.cat(seen), forgotten, overrides)
    if protocol is not None:
        made = torch.cat(kept)
        out |= {"name": protocol.name(len(made)), "distance": protocol.distance(made)}
        real = protocol.reference.batch(range(min(len(protocol.reference), MOST))).image
        if min(len(real), len(made)) >= LEAST:
            shares = prdc(features_of(protocol.encoder, real), made[:MOST])
            out |= {"precision": shares.precision, "recall": shares.recall}
    return out


@torch.no_grad()
def request_grid(
    models: Sequence[tuple[str, Denoiser, Sampler]],
    forgotten: Sequence[int],
    path: str | Path,
    *,
    kept: Sequence[int] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[int]:
    """A picture of what models make of the same requests: a column a class, the forgotten ones first, the same noise
    along a row.

    Args:
        models: (name, model, sampler), shown one below the other.
        forgotten: the classes.
        path: of the PNG.
        kept: what stands beside them, as far as there is room; None takes the other classes in turn.
        seed: of the noise.
        device: where to sample.

    Returns:
        The classes of the columns.
    """
    known = models[0][1].num_classes or 0
    others = [c for c in range(known) if c not in forgotten] if kept is None else kept
    shown = [*forgotten, *others][: max(COLUMNS, len(forgotten))]
    parts, names = [], []
    for name, model, sampler in models:
        generator = Sampled(model.to(device).eval(), sampler)
        for row in range(ROWS):
            cond = Cond(labels=torch.tensor(shown, device=device))
            parts.append(generator.generate([row] * len(shown), Noise(seed), cond).cpu())
            names.append(name if row == 0 else "")
    write_png(path, picture_grid(torch.cat(parts), columns=len(shown), row_labels=names))
    return shown


def mark_of(model: Any) -> str:
    """What tells one model from another: the fingerprint of its file, or of its weights."""
    header = getattr(model, "header", None)
    return str(header["fingerprint"]) if header else fingerprint({}, model.state_dict())
