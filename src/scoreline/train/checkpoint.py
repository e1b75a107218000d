"""Checkpoints: everything a training needs to go on, as tensors and JSON in one safetensors file each.

A file holds the method without its frozen modules, the optimizers' states, the moving averages, and in its header the
step, the counters and a fingerprint of all of it. There are no generator states, because every draw is a function of
(seed, step), and no pickles. A file appears whole or not at all, and the last two are kept.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoreline
from scoreline.core.artefact import fingerprint
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.files import atomic_path
from scoreline.core.method import Method
from scoreline.train.loop import Loop

__all__ = ["checkpoints", "frozen_fingerprints", "load_state", "newest", "prune", "read", "save", "state", "write"]

FORMAT = "scoreline-checkpoint/1"
KEPT = 2


def state(loop: Loop, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header, tensors) of a training after `step` steps."""
    tensors = {f"method/{name}": value for name, value in _live_state(loop.method).items()}
    numbers: dict[str, Any] = {}
    for g, group in enumerate(loop.groups):
        for p, entries in group.optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                place = f"optimizer/{g}/{p}/{key}"
                if isinstance(value, Tensor):
                    tensors[place] = value
                elif value is None or isinstance(value, (bool, int, float)):
                    numbers[place] = value
                else:
                    raise InputError("optimizer", type(group.optimizer).__name__, f"keeps {key}, which is no tensor")
    header: dict[str, Any] = {
        "step": step,
        "counts": [group.count for group in loop.groups],
        "skipped": loop.skipped,
        "scale": [loop.scale, loop.scale_age],
        "optimizer": numbers,
    }
    if loop.averages is not None:
        tensors |= {f"average/{name}": value for name, value in loop.averages.tensors().items()}
        header["averages"] = [loop.averages.n, loop.averages.images]
    return header, tensors


@torch.no_grad()
def load_state(loop: Loop, header: Mapping[str, Any], tensors: Mapping[str, Tensor], *, thing: str) -> int:
    """Put a state into a freshly made loop; returns its step.

    Raises:
        ArtefactError: the state belongs to another method, optimizer or average; names the first difference.
    """
    live = {f"method/{name}": value for name, value in _live_state(loop.method).items()}
    if loop.averages is not None:
        live |= {f"average/{name}": value for name, value in loop.averages.tensors().items()}
    stored = {name: value for name, value in tensors.items() if not name.startswith("optimizer/")}
    for name in sorted(live.keys() ^ stored.keys()):
        kind = "lacks" if name in live else "also holds"
        raise ArtefactError(thing, None, f"belongs to another method: it {kind} {name.partition('/')[2]!r}")
    for name, value in live.items():
        if value.shape != stored[name].shape or value.dtype != stored[name].dtype:
            shapes = f"{tuple(stored[name].shape)} there, {tuple(value.shape)} here"
            raise ArtefactError(thing, None, f"belongs to another method: {name.partition('/')[2]!r} is {shapes}")
    if len(header["counts"]) != len(loop.groups):
        raise ArtefactError(thing, None, "belongs to another method: it has another number of optimizers")
    for name, value in live.items():
        value.copy_(stored[name])
    entries: dict[int, dict[int, dict[str, Any]]] = {g: {} for g in range(len(loop.groups))}
    for place, entry in [*tensors.items(), *header["optimizer"].items()]:
        if place.startswith("optimizer/"):
            _, g, p, key = place.split("/", 3)
            entries[int(g)].setdefault(int(p), {})[key] = entry
    for g, group in enumerate(loop.groups):
        groups = group.optimizer.state_dict()["param_groups"]
        group.optimizer.load_state_dict({"state": entries[g], "param_groups": groups})
        group.count = header["counts"][g]
    loop.skipped = header["skipped"]
    loop.scale, loop.scale_age = header["scale"]
    if loop.averages is not None:
        loop.averages.n, loop.averages.images = header["averages"]
    return header["step"]


def write(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write one checkpoint file, whole and on the disk before it gets its name.

    Raises:
        ArtefactError: the disk is full, or the folder cannot be written to.
    """
    from safetensors.torch import save_file

    # A tensor of its own for each name: weights that two modules share are stored under their first name only, but
    # views into one storage may remain.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    full = {"format": FORMAT, "version": scoreline.__version__, **header}
    full["fingerprint"] = fingerprint(full, plain)
    with atomic_path(path) as temporary:
        save_file(plain, temporary, {"scoreline": json.dumps(full)})
        _sync(temporary)
    _sync(path.parent)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header, tensors) of a checkpoint file.

    Raises:
        ArtefactError: the file is missing, truncated, changed, or no checkpoint of this library.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(str(path), None, f"is truncated or no safetensors file ({error})") from None
    try:
        header = json.loads(metadata["scoreline"])
        stored = header.pop("fingerprint")
    except (KeyError, ValueError):
        raise ArtefactError(str(path), None, "is no checkpoint of scoreline") from None
    if header.get("format") != FORMAT:
        raise ArtefactError(str(path), None, f"has format {header.get('format')!r}, this version reads {FORMAT!r}")
    if fingerprint(header, tensors) != stored:
        raise ArtefactError(str(path), None, "its content does not match its fingerprint")
    return header, tensors


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, newest first."""
    found = [path for path in folder.glob("*.safetensors") if path.stem.isdigit()]
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def save(folder: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write the checkpoint of a step and remove all but the last two."""
    path = folder / f"{header['step']:09d}.safetensors"
    write(path, header, tensors)
    prune(folder)
    return path


def prune(folder: Path) -> None:
    """Remove all but the last two checkpoints."""
    for old in checkpoints(folder)[KEPT:]:
        old.unlink(missing_ok=True)


def newest(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]] | None:
    """The newest whole checkpoint of a folder, or None when there is none yet.

    Broken ones are named on stderr and set aside as .broken files, so that they do not count as the last two.

    Raises:
        ArtefactError: there are checkpoints, and none of them is whole.
    """
    found = checkpoints(folder)
    reasons: list[str] = []
    for place, path in enumerate(found):
        try:
            header, tensors = read(path)
        except ArtefactError as error:
            reasons.append(str(error))
            print(f"{error}; trying the one before", file=sys.stderr)
            continue
        for broken in found[:place]:
            broken.rename(broken.with_suffix(".broken"))
        return path, header, tensors
    if found:
        raise ArtefactError(str(folder), None, f"holds no whole checkpoint ({reasons[0]}); delete it to start anew")
    return None


def frozen_fingerprints(method: Method) -> dict[str, str]:
    """Fingerprint of each frozen module by its name in the method: a run goes on with the same teacher only."""
    names = {id(module): name for name, module in method.named_modules()}
    return {
        names.get(id(module), f"frozen {k}"): fingerprint({}, module.state_dict())
        for k, module in enumerate(method.frozen())
    }


def _live_state(method: Method) -> dict[str, Tensor]:
    """Parameters and saved buffers outside frozen modules, each once."""
    inside: set[int] = set()
    for module in method.frozen():
        inside |= {id(value) for value in module.state_dict(keep_vars=True).values()}
    out: dict[str, Tensor] = {}
    for name, value in method.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise InputError("method state", name, "is no tensor; keep what must be saved in buffers")
        if id(value) not in inside:
            inside.add(id(value))
            out[name] = value.detach()
    return out


def _sync(path: Path) -> None:
    """Have the system put a file, or a folder's list of names, on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # folders cannot be opened on some systems
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, each once."""
    return sum(p.numel() for p in module.parameters())
