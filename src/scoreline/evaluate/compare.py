"""The main job: one model, sampled several ways at several costs, each scored.

Every (arm, seed) is stored as it ends and a stopped run goes on from there. Deterministic samplers are judged first by
their distance, image by image, to the converged ODE at the same noise; Frechet distances stand beside it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import shlex
import warnings as python_warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import scoreline
from scoreline.core.cost import machine, measured
from scoreline.core.denoiser import Denoiser
from scoreline.core.device import pick_device
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.files import atomic_path, write_json
from scoreline.core.flow_map import FlowMap
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.data import load_images
from scoreline.data.grid import picture_grid, write_png
from scoreline.evaluate.arms import Arm, arms_of, model_macs, students_of
from scoreline.evaluate.ledger import Ledger
from scoreline.evaluate.progress import progress
from scoreline.evaluate.protocols import FrechetProtocol, features_of, pick_encoder
from scoreline.evaluate.specs import adds_noise, asked_labels, guided, labels_for, make_sampler
from scoreline.metrics.intervals import mean_interval
from scoreline.nn.features import Pixels

__all__ = ["compare", "converged", "converged_sampler", "model_macs", "rmse_per_image"]

PICTURES = 20
REFERENCE_STEPS = 64
GUESS = 60  # evaluations of an adaptive run, for the time left that is shown
CPU = torch.device("cpu")


def rmse_per_image(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of each image, (B,), in units of the pixels ([-1, 1])."""
    return (a.double() - b.double()).flatten(1).square().mean(1).sqrt()


def converged_sampler(model: Denoiser) -> Sampler:
    """The sampler that stands for the exact ODE: third-order multistep on a fine grid, state in float64.

    On a table of levels the grid is Karras' too, whose levels reach the cleanest entry; evenly spaced ones stop short
    of it. Where that grid does not fit the table, every level of it is visited, up to 192.
    """
    schedule = model.schedule
    grid = "logsnr" if schedule.known is None and schedule.grid == "time" else "karras"
    sampler = make_sampler(f"dpm-solver++3m:grid={grid}", steps=REFERENCE_STEPS)
    if schedule.known is not None:
        try:
            sampler.times(schedule)
        except InputError:
            return make_sampler("dpm-solver++3m:grid=trailing", steps=min(3 * REFERENCE_STEPS, len(schedule.known)))
    return sampler


def _given(model: Denoiser, indices: range, labels: list[int] | None, device: torch.device) -> Denoiser:
    cond = labels_for(indices, model.num_classes, labels)
    return model.given(cond if cond is None else cond.to(device))


def converged(
    model: Denoiser,
    seed: int,
    count: int,
    chosen: list[int] | None,
    batch_size: int,
    device: torch.device = CPU,
) -> Tensor:
    """The first `count` images of a seed by the converged ODE, (count, C, H, W) float32 on the CPU.

    The state is kept in float64, on Metal, which has none, in float32.
    """
    images = []
    dtype = torch.float32 if device.type == "mps" else torch.float64
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        draws = Noise(seed).at(indices, model.shape, device=device, dtype=dtype)
        sample = converged_sampler(model)(_given(model, indices, chosen, device), draws)
        images.append(model.decode(sample.x.float()).clamp(-1, 1).cpu())
    return torch.cat(images)


def compare(
    model_name: str,
    samplers: Sequence[str],
    budgets: Sequence[int],
    out: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    count: int = 500,
    pairs: int = 128,
    batch_size: int = 500,
    guidance: float | None = None,
    clip: bool = False,
    labels: str | None = None,
    data: str | None = None,
    features: str = "auto",
    students: Sequence[str] = (),
    device: str = "auto",
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Sample one model several ways and score every one.

    Args:
        model_name: built-in name or path of a denoiser.
        samplers: names, with settings as `ddim:eta=1`.
        budgets: network evaluations per image; each sampler spends the most it can not above it.
        out: folder for results.json, results.csv, pictures, plots and report.html; a stopped run in it goes on.
        seeds: one set of images each, for the error bars.
        count: images a seed.
        pairs: how many of them are compared with the converged ODE.
        batch_size: images a batch.
        guidance: s of classifier-free guidance, None or 1 for none.
        clip: keep the predicted clean image in [-1, 1].
        labels: classes asked for in turn, as `0,1,7`, or `none`; None takes all.
        data: reference data set, None for the one in the model's card.
        features: feature network, see `pick_encoder`.
        students: paths of students of the model, each sampled in its own way at every budget that it was made for, from
            the same noise.
        device: where to sample, see `pick_device`; scores are computed on the CPU.
        command: what the user typed, for the record.
        quiet: no progress on stderr.

    Returns:
        What is in results.json.

    Raises:
        InputError: something is misspelt or does not fit; nothing was run.
        ArtefactError: the folder holds another run.
    """
    bare = load(model_name)
    if isinstance(bare, FlowMap) and not bare.scored:
        mend = "knows no score, so there is no converged ODE to hold it against; compare its teacher, with --students"
        raise InputError("model", model_name, mend)
    model = guided(bare, guidance, clip=clip)
    arms, warnings = arms_of(model, samplers, budgets)
    arms += students_of(bare, students, samplers, budgets, warnings)
    if guidance not in (None, 1) and students:
        warnings.append("students are sampled as they are; guidance is the model's alone")
    header = bare.header
    card = header.get("card", {})
    source = data or card.get("data")
    if source is None:
        raise InputError("data", None, "the model's card names no data set; give --data")
    chosen = asked_labels(labels, bare)
    if count < 2:
        raise InputError("count", count, "a Frechet distance needs at least 2 images a seed")
    for thing, value in (("pairs", pairs), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(thing, value, "must be 1 or more")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError("seeds", list(seeds), "give distinct numbers from 0 on")
    split = "test" if source == "digits" else None
    reference = load_images(source, split=split)
    made = tuple(model.decode(torch.zeros(1, *model.shape)).shape[1:])
    if reference.shape != made:
        raise InputError("data", source, f"holds images of shape {reference.shape}, the model makes {made}")
    how = "none" if model.num_classes is None else "labels-uniform" if chosen is None else f"labels:{labels}"
    scorers = [FrechetProtocol(pick_encoder(features, reference), reference, split=split or "", conditions=how)]
    if not isinstance(scorers[0].encoder, Pixels):
        scorers.append(FrechetProtocol(Pixels(reference.shape), reference, split=split or "", conditions=how))
    for scorer in scorers:
        fewest, dim = min(count, len(reference)), scorer.encoder.dim
        if fewest <= dim:
            mend = "such a distance is far too high; raise --count" if fewest == count else "take a larger reference"
            warnings.append(f"{scorer.name(count)}: {fewest} images a set, but {dim} features: {mend}")
    pairs = min(pairs, count)
    place = pick_device(device)
    macs = model_macs(bare)
    own_macs = {id(arm.model): model_macs(arm.model) for arm in arms if arm.model is not None}
    model = model.to(place)
    for arm in arms:
        if arm.model is not None:
            arm.model.to(place)

    folder = Path(out)
    job = {
        "model": header["fingerprint"], "guidance": guidance, "clip": clip, "labels": labels, "count": count,
        "pairs": pairs, "batch_size": batch_size, "protocols": [s.protocol(count).fingerprint for s in scorers],
        "device": place.type, "version": scoreline.__version__,
    }  # fmt: skip
    ledger = Ledger(folder / "ledger.jsonl", job)
    spent = sum(arm.nfe or GUESS for arm in arms)
    units = len(seeds) * (pairs * converged_sampler(model).cost(REFERENCE_STEPS) + count * spent)
    with progress("compare", units, quiet=quiet) as advance:
        exact = {}
        for seed in seeds:
            exact[seed] = _stored_reference(folder, model, seed, pairs, chosen, batch_size, place)
            advance(pairs * converged_sampler(model).cost(REFERENCE_STEPS), f"converged ODE, seed {seed}")
        for arm in arms:
            for seed in seeds:
                key = _key(arm, seed)
                if key not in ledger:
                    made_now = _run(
                        arm.model or model, arm, seed, count, chosen, batch_size, scorers, exact[seed], folder, place
                    )
                    ledger.add(key, **made_now)
                advance(count * (arm.nfe or GUESS), f"{arm.name}, seed {seed}")
        real = reference.batch(range(min(PICTURES, len(reference)))).image
        write_png(folder / "pictures" / "real.png", picture_grid(real, columns=10))
        write_png(folder / "pictures" / "converged.png", picture_grid(exact[seeds[0]][:PICTURES], columns=10))
    plainly = ["--seeds", f"0:{count}", "--noise-seed", str(seeds[0])]
    plainly += [] if labels is None else ["--labels", labels]
    shared = plainly + ([] if guidance is None else ["--guidance", f"{guidance:g}"]) + (["--clip"] if clip else [])
    names = ["ode-rmse", *(s.name(count) for s in scorers)]
    rows = []
    for arm in arms:
        command_of = ["scoreline", "sample", arm.student or model_name]
        row = _arm_result(arm, ledger, seeds, names, command_of, shared if arm.model is None else plainly)
        row["macs"] = int(row["nfe"] * own_macs.get(id(arm.model), macs))
        row["parameters"] = sum(p.numel() for p in (arm.model or bare).parameters())
        rows.append(row)
    independent = load_images(source, split="train") if source == "digits" else None
    floors: dict[str, float | None] = dict.fromkeys(names)
    if independent is not None:
        with _known_to_be_few():
            floors = {name: scorer.floor(independent, count) for name, scorer in zip(names[1:], scorers)}
    results = {
        "format": "scoreline/compare/1",
        "version": scoreline.__version__,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "title": f"{model_name}: {', '.join(dict.fromkeys(arm.series for arm in arms))}",
        "model": {
            "name": model_name, "fingerprint": header["fingerprint"], "shape": list(model.shape),
            "num_classes": model.num_classes, "parameters": sum(p.numel() for p in bare.parameters()), "macs": macs,
            "guidance": guidance,
        },
        "data": {
            "name": source, "split": split, "fingerprint": reference.fingerprint, "count": len(reference),
        },
        "machine": machine() | {"device": str(place)},
        "seeds": list(seeds),
        "interval": "95 % Student t interval of the mean over seeds",
        "count": count,
        "pairs": pairs,
        "reference": {
            "sampler": "dpm-solver++3m", "nfe": converged_sampler(model).cost(converged_sampler(model).plan()),
            "text": f"{converged_sampler(model)!r}, state in float64, {pairs} images a seed",
        },
        "scores": {
            "ode-rmse": {
                "title": "Distance to the converged ODE", "unit": "median RMSE per image, pixels in [-1, 1]",
                "higher_is_better": False, "log": True, "floor": None, "converged": None,
            },
            **{
                name: {
                    "title": _title(name, count), "unit": "", "higher_is_better": False, "log": True,
                    "floor": floors[name], "converged": None,
                }
                for name in names[1:]
            },
        },
        "protocol": {name: scorer.protocol(count).to_dict() for name, scorer in zip(names[1:], scorers)},
        "arms": rows,
        "pictures": {"reference": "pictures/converged.png", "real": "pictures/real.png"},
        "warnings": warnings,
    }  # fmt: skip
    write_json(folder / "results.json", results)
    return results


def _title(name: str, count: int) -> str:
    titles = {"fd-digits": f"FD-digits, {count:,} images", "fd-pixel": "FD-pixel", "fid@digits": "FID@digits"}
    return titles.get(name, name)


@contextmanager
def _known_to_be_few() -> Iterator[None]:
    """That the images are fewer than the features is said once, among the warnings of the comparison."""
    with python_warnings.catch_warnings():
        python_warnings.filterwarnings("ignore", "(generated|real): ", UserWarning)
        yield


def _picture(arm: Arm, seed: int) -> str:
    return f"pictures/{arm.name}-seed-{seed}.png"


def _settings(sampler: Sampler) -> dict[str, Any]:
    """What the sampler was made with, besides cost and grid; infinity as text, which JSON lacks."""
    given: dict[str, Any] = sampler._arguments  # type: ignore[attr-defined]
    shown = {k: v for k, v in given.items() if v is not None and k not in ("steps", "nfe", "grid")}
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in shown.items()}


def _key(arm: Arm, seed: int) -> str:
    settings = json.dumps({**_settings(arm.sampler), "grid": arm.sampler.grid}, sort_keys=True)
    mark = "" if arm.student is None else f"{arm.series}:{arm.fingerprint[:16]}|"
    return f"{mark}{arm.spec}|{arm.nfe}|{hashlib.sha256(settings.encode()).hexdigest()[:8]}|{seed}"


def _stored_reference(
    folder: Path, model: Denoiser, seed: int, pairs: int, labels: list[int] | None, batch_size: int,
    device: torch.device,
) -> Tensor:  # fmt: skip
    path = folder / "converged" / f"seed-{seed}.npy"
    if path.is_file():
        try:
            stored = torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError, TypeError) as error:
            mend = f"cannot be read ({error}); delete it, and it is made again"
            raise ArtefactError("file", str(path), mend) from None
        if len(stored) != pairs or stored.dtype != torch.float32 or not bool(stored.isfinite().all()):
            raise ArtefactError(
                "file", str(path), "does not hold the images it should; delete it, and it is made again"
            )
        return stored
    images = converged(model, seed, pairs, labels, batch_size, device)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, images.numpy(), allow_pickle=False)
    return images


def _run(
    model: Denoiser, arm: Arm, seed: int, count: int, labels: list[int] | None, batch_size: int,
    scorers: Sequence[FrechetProtocol], exact: Tensor, folder: Path,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    images, seconds, memory, nfe, spent = [], 0.0, 0, 0.0, 0.0
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        draws = Noise(seed).at(indices, model.shape, device=device)
        given = _given(model, indices, labels, device)
        with measured(device) as cost:
            sample = arm.sampler(given, draws)
            made = model.decode(sample.x).clamp(-1, 1)
        spent += sample.nfe * len(indices)
        seconds, memory, nfe = seconds + cost.seconds, max(memory, cost.peak_memory), max(nfe, sample.nfe_max)
        images.append(made.cpu())
    x = torch.cat(images)
    if not bool(torch.isfinite(x).all()):
        raise InputError("arm", arm.name, "made images that are not finite; try more steps, another grid or --clip")
    write_png(folder / _picture(arm, seed), picture_grid(x[:PICTURES], columns=10))
    with _known_to_be_few():
        values = {s.name(count): s.distance(features_of(s.encoder, x)) for s in scorers}
    # A student that puts noise back is still held against the path from its first noise.
    if arm.model is not None or not adds_noise(arm.sampler, model):
        values["ode-rmse"] = float(rmse_per_image(x[: len(exact)], exact).median())
    return {"values": values, "seconds": seconds / count, "peak_memory": memory, "nfe": spent / count, "nfe_max": nfe}


def _arm_result(
    arm: Arm, ledger: Ledger, seeds: Sequence[int], names: Sequence[str], command: list[str], shared: list[str]
) -> dict[str, Any]:
    rows = [ledger[_key(arm, seed)] for seed in seeds]
    scores: dict[str, Any] = {}
    for name in names:
        values = [row["values"].get(name) for row in rows]
        if None in values:
            scores[name] = {"values": [], "mean": None, "low": None, "high": None}
            continue
        mean = float(np.mean(values))
        low = high = mean
        if len(values) > 1:
            interval = mean_interval(values, method="t")
            low, high = interval.low, interval.high
        scores[name] = {"values": values, "mean": mean, "low": low, "high": high}
    seconds = float(np.median([row["seconds"] for row in rows]))
    cost = ["--nfe", str(arm.budget)] if arm.budget else []
    return {
        "name": arm.name,
        "sampler": arm.series,
        "student": None
        if arm.student is None
        else {"path": arm.student, "fingerprint": arm.fingerprint, "sampler": arm.spec},
        "settings": _settings(arm.sampler),
        "grid": arm.sampler.grid or "default",
        "budget": arm.budget or max(row["nfe_max"] for row in rows),
        "nfe": float(np.mean([row["nfe"] for row in rows])),
        "nfe_max": max(row["nfe_max"] for row in rows),
        "seconds": seconds,
        "images_per_second": 1 / seconds,
        "peak_memory": max(row["peak_memory"] for row in rows),
        "scores": scores,
        "pictures": _picture(arm, seeds[0]),
        "command": shlex.join([*command, "--sampler", arm.spec, *cost, *shared, "--out", "images"]),
    }
