"""Pairs (z, x) of a teacher, made into a store: sharded, by number, by several processes; a stopped run goes on.

x is where a deterministic sampler takes z; pair i is a function of (seed, i). A shard is made by one process in batches
that never reach into the next one, and on the CPU by one thread, so that the bytes do not depend on how many processes
there are. Reading is :class:`scoreline.data.pair_store.PairStore`.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scoreline.core.denoiser import Denoiser
from scoreline.core.device import pick_device
from scoreline.core.errors import ArtefactError, InputError, NonFiniteError, ScorelineError, unknown_name
from scoreline.core.files import atomic_path, read_json, sweep, write_json
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data import to_uint8
from scoreline.data.pair_store import FORMAT, HEADER, part_path, parts_of, shard_count
from scoreline.evaluate.processes import become_worker
from scoreline.evaluate.progress import progress
from scoreline.evaluate.specs import adds_noise, asked_labels, check_fit, guided, is_adaptive, labels_for, make_sampler

__all__ = ["plan_pairs", "write_pairs"]


def plan_pairs(
    model_name: str,
    *,
    count: int,
    sampler: str = "heun",
    nfe: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    labels: str | None = None,
    guidance: float | None = None,
    clip: bool = False,
    noise: str = "stored",
    dtype: str = "float32",
    flips: bool = False,
    shard_size: int = 5000,
    batch_size: int = 250,
    device: str = "auto",
) -> dict[str, Any]:
    """The header of a store, every setting checked, before any pair is made.

    Args:
        model_name: built-in name or path of the teacher.
        count: pairs in all.
        sampler: a deterministic one, with settings as `rk45:rtol=1e-5`.
        nfe, steps: cost, one of them; without either 35 evaluations.
        seed: of the noise source; pair i starts from draw (0, 0) of its image i.
        labels: classes asked for in turn, as `0,1,7`, or `none`; None takes all.
        guidance: s of classifier-free guidance, None or 1 for none.
        clip: keep the predicted clean image in [-1, 1].
        noise: "stored", or "seed" to keep the seed alone and make z again when it is read.
        dtype: of the stored images, "float32", or "uint8", which clamps them to [-1, 1].
        flips: whether readers see batches in the mirror; for teachers that were trained with flips.
        shard_size: pairs a file.
        batch_size: pairs a batch.
        device: where to sample, see `pick_device`.

    Returns:
        The header, ready for JSON.

    Raises:
        InputError: something is misspelt or does not fit, or the sampler adds noise.
    """
    for thing, value in (("count", count), ("shard_size", shard_size), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(thing, value, "must be 1 or more")
    for thing, word, known in (("noise", noise, ("stored", "seed")), ("dtype", dtype, ("float32", "uint8"))):
        if word not in known:
            raise unknown_name(thing, word, known)
    Noise(seed)
    bare = load(model_name)
    if nfe is None and steps is None and not is_adaptive(sampler):
        nfe = 35
    solver = make_sampler(sampler, nfe=nfe, steps=steps)
    model = guided(bare, guidance, clip=clip)
    asked_labels(labels, bare)
    check_fit(solver, model)
    if adds_noise(solver, model):
        raise InputError(
            "sampler", sampler, "adds noise, so that z alone does not say where x is; take heun, ddim or rk45"
        )
    shape = tuple(bare.shape)
    if dtype == "uint8" and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise InputError("dtype", dtype, f"keeps pictures; this model makes {shape}: take float32")
    if flips and len(shape) != 3:
        raise InputError("flips", flips, f"only pictures can be seen in the mirror; this model makes {shape}")
    return {
        "format": FORMAT, "count": count, "shape": list(shape), "num_classes": bare.num_classes,
        "shard_size": shard_size, "batch_size": batch_size, "dtype": dtype, "noise": noise, "seed": seed,
        "flips": flips, "teacher": {"name": str(model_name), "fingerprint": bare.header["fingerprint"]},
        "sampler": sampler, "solver": repr(solver), "budget": nfe, "steps": steps, "guidance": guidance, "clip": clip,
        "labels": labels, "device": pick_device(device).type,
    }  # fmt: skip


def write_pairs(
    out: str | os.PathLike[str], plan: dict[str, Any], *, processes: int = 1, quiet: bool = False
) -> dict[str, Any]:
    """Make the pairs that are not there yet.

    Args:
        out: folder of the store.
        plan: what :func:`plan_pairs` gave.
        processes: how many processes make shards at once; on CUDA they take the GPUs in turn.
        quiet: no progress.

    Returns:
        {"out", "count", "made", "shards", "nfe", "solver"}.

    Raises:
        InputError: processes is below 1.
        ArtefactError: the folder holds other pairs, or cannot be written.
        NonFiniteError: the sampler ran away.
    """
    if processes < 1:
        raise InputError("processes", processes, "must be 1 or more")
    folder, numbers = Path(out), range(shard_count(plan))
    _claim(folder, plan)
    missing = [n for n in numbers if not _done(folder, plan, n)]
    made = sum(_size(plan, n) for n in missing)
    with progress("pairs", made, quiet=quiet) as advance:
        for number in _shards(folder, plan, missing, processes):
            advance(_size(plan, number), f"shard {number}")
    known = read_json(folder / HEADER)
    if missing or known["files"] is None:
        spent = sum(read_json(_cost_path(folder, n))["nfe"] * _size(plan, n) for n in numbers)
        paths = [part_path(folder, part, n) for n in numbers for part in parts_of(plan)]
        known = {**plan, "nfe": spent / plan["count"], "files": {path.name: _sha256(path) for path in paths}}
        write_json(folder / HEADER, known)
    return {
        "out": str(folder), "count": plan["count"], "made": made, "shards": len(numbers), "nfe": known["nfe"],
        "solver": plan["solver"],
    }  # fmt: skip


def _claim(folder: Path, header: Mapping[str, Any]) -> None:
    """Write the unfinished header, or see that the folder holds the same pairs."""
    sweep(folder)
    path = folder / HEADER
    if path.is_file():
        known = read_json(path)
        if not isinstance(known, dict):
            raise ArtefactError("pair store", str(folder), f"{HEADER} is damaged; delete the folder")
        if known.get("teacher", {}).get("fingerprint") != header["teacher"]["fingerprint"]:
            raise ArtefactError("pair store", str(folder), "holds pairs of another teacher; choose another folder")
        differing = sorted(key for key in header if key != "teacher" and known.get(key) != header[key])
        if differing:
            mend = f"holds other pairs ({', '.join(differing)} differ); choose another folder"
            raise ArtefactError("pair store", str(folder), mend)
        return
    if folder.is_dir() and any(folder.iterdir()):
        mend = "is not empty and was not written by scoreline pairs; choose another folder"
        raise ArtefactError("folder", str(folder), mend)
    write_json(path, {**header, "nfe": None, "files": None})


def _size(header: Mapping[str, Any], number: int) -> int:
    size = int(header["shard_size"])
    return min(size, int(header["count"]) - number * size)


def _cost_path(folder: Path, number: int) -> Path:
    return folder / f"cost-{number:05d}.json"


def _done(folder: Path, header: dict[str, Any], number: int) -> bool:
    parts = [part_path(folder, part, number) for part in parts_of(header)]
    return all(path.is_file() for path in (*parts, _cost_path(folder, number)))


def _shards(folder: Path, header: dict[str, Any], missing: Sequence[int], processes: int) -> Iterator[int]:
    """Make the missing shards, here or in a pool; yields their numbers as they are done."""
    device = str(pick_device(header["device"]))
    if min(processes, len(missing)) <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for number in missing:
                yield _make(folder, header, number, device)
        finally:
            torch.set_num_threads(threads)
        return
    places = [device]
    if device == "cuda":
        places = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    # Forking a process that runs threads of torch may lock up.
    pool = ProcessPoolExecutor(min(processes, len(missing)), mp_context=get_context("spawn"), initializer=become_worker)
    try:
        jobs = [pool.submit(_make, folder, header, n, places[k % len(places)]) for k, n in enumerate(missing)]
        for job in as_completed(jobs):
            yield job.result()
    except BrokenProcessPool:
        mend = "a process died; out of memory? try fewer; the same command goes on"
        raise ScorelineError("processes", processes, mend) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@functools.lru_cache(maxsize=1)
def _teacher(name: str, mark: str, guidance: float | None, clip: bool, device: str) -> Denoiser:
    bare = load(name)
    if bare.header["fingerprint"] != mark:
        raise ArtefactError("teacher", name, "was changed while its pairs were made")
    return guided(bare, guidance, clip=clip).to(device)


def _make(folder: Path, header: dict[str, Any], number: int, device: str) -> int:
    """Make one shard and write its files, the image last, which says that it is done."""
    made_by = header["teacher"]
    model = _teacher(made_by["name"], made_by["fingerprint"], header["guidance"], header["clip"], device)
    solver = make_sampler(header["sampler"], nfe=header["budget"], steps=header["steps"])
    chosen = asked_labels(header["labels"], load(made_by["name"])) if header["labels"] is not None else None
    first = number * int(header["shard_size"])
    last = first + _size(header, number)
    parts: dict[str, list[np.ndarray]] = {part: [] for part in parts_of(header)}
    spent = 0.0
    for start in range(first, last, header["batch_size"]):
        indices = range(start, min(start + header["batch_size"], last))
        draws = Noise(header["seed"]).at(indices, model.shape, device=device)
        cond = labels_for(indices, model.num_classes, chosen)
        sample = solver(model.given(cond if cond is None else cond.to(device)), draws)
        x = sample.x.float().cpu()
        if not bool(torch.isfinite(x).all()):
            mend = "are not finite; try more evaluations, another sampler or --clip"
            raise NonFiniteError("images", f"{indices[0]} to {indices[-1]}", mend)
        spent += sample.nfe * len(indices)
        parts["image"].append((to_uint8(x.clamp(-1, 1)) if header["dtype"] == "uint8" else x).numpy())
        if "noise" in parts:
            parts["noise"].append(draws.normal().cpu().numpy())
        if "label" in parts and cond is not None and cond.labels is not None:
            parts["label"].append(cond.labels.numpy())
    write_json(_cost_path(folder, number), {"nfe": spent / (last - first)})
    for part, arrays in parts.items():
        with atomic_path(part_path(folder, part, number)) as temporary, open(temporary, "wb") as file:
            np.save(file, np.concatenate(arrays), allow_pickle=False)
    return number


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
