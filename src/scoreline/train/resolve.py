"""What a run is, as plain values: printed by a dry run, stored with the run, compared before it goes on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import scoreline
from scoreline.core.device import pick_device
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.files import read_json, write_json
from scoreline.core.method import Method, Update
from scoreline.train.checkpoint import count_parameters, frozen_fingerprints
from scoreline.train.ema import EMA, decays
from scoreline.train.fit import pick_autocast
from scoreline.train.groups import group_updates
from scoreline.train.order import Data, Feed

__all__ = ["claim_folder", "differences", "resolve"]


def resolve(
    method: Method,
    data: Data,
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "float32",
    accumulate: int = 1,
    ema: EMA = None,
    skip_nonfinite: int = 0,
    world: int = 1,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The resolved run, checked, without doing any of it; arguments as those of :func:`scoreline.train.run.run`.

    Returns:
        {"config": what makes the run the one it is, "plan": how and how long it is carried out}, ready for JSON.

    Raises:
        InputError: an argument is wrong; whatever `run` would refuse is refused here.
    """
    for name, value in {"steps": steps, "accumulate": accumulate}.items():
        if value < 1:
            raise InputError(name, value, "must be 1 or more")
    place = pick_device(device)
    pick_autocast(precision, place)
    feed = Feed(data, batch_size=batch_size, seed=seed, device=torch.device("cpu"), pieces=world * accumulate)
    updates, _ = group_updates(method)
    if ema is not None and method.averaged() is None:
        raise InputError("ema", str(ema), f"{type(method).__name__}.averaged() names no module")
    described = feed.describe()
    count = described["count"]
    total = count_parameters(method)
    identity = {
        "method": type(method).__name__,
        "updates": [_describe(name, update, len(group.parameters)) for name, update, group in updates],
        "frozen": frozen_fingerprints(method),
        "data": described,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "seed": seed,
        "precision": precision,
        "ema": {name: repr(schedule) for name, schedule in decays(ema).items()},
        "skip_nonfinite": skip_nonfinite,
        "given": _plain(dict(config or {})),
    }
    plan = {
        "steps": steps,
        "epochs": None if count is None else round(steps * batch_size / count, 2),
        "steps_per_epoch": None if count is None else math.ceil(count / batch_size),
        "images": steps * batch_size,
        "parameters": total,
        "trainable": count_trainable(updates),
        "device": str(place),
        "processes": world,
        "threads": torch.get_num_threads(),
        "versions": {"scoreline": scoreline.__version__, "torch": torch.__version__},
    }
    return {"config": identity, "plan": plan}


def count_trainable(updates: list[Any]) -> int:
    """Numbers that some update moves, each once."""
    return sum({id(p): p.numel() for _, _, group in updates for p in group.parameters}.values())


def claim_folder(folder: Path, resolved: Mapping[str, Any]) -> None:
    """Write the resolved run into its folder, or see that the same run stands there already.

    Raises:
        ArtefactError: the folder holds another run; what differs is named.
    """
    path = folder / "run.json"
    if path.exists():
        other = differences(read_json(path).get("config", {}), resolved["config"])
        if other:
            raise ArtefactError(str(folder), None, f"holds another run: {'; '.join(other)}; choose another folder")
    elif any((folder / "checkpoints").glob("*.safetensors")):
        raise ArtefactError(str(folder), None, "holds checkpoints without a run.json; choose another folder")
    write_json(path, dict(resolved))


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, as "name is A there, B here"."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = sorted(there.keys() | here.keys())
        return [d for k in keys for d in differences(there.get(k), here.get(k), f"{name}.{k}" if name else str(k))]
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        return [d for k, (a, b) in enumerate(zip(there, here)) for d in differences(a, b, f"{name}[{k}]")]
    return [] if there == here else [f"{name} is {there!r} there, {here!r} here"]


def _describe(name: str, update: Update, tensors: int) -> dict[str, Any]:
    modules = update.modules if isinstance(update.modules, tuple) else (update.modules,)
    return {
        "name": name,
        "modules": [type(module).__name__ for module in modules],
        "parameters": sum(p.numel() for p in update.parameters()),
        "tensors": tensors,
        "every": update.every,
        "unless": update.unless,
        "optimizer": update.optimizer.__name__,
        "lr": _plain(update.lr),
        "settings": _plain(dict(update.settings)),
        "clip": update.clip,
        "clip_value": update.clip_value,
    }


def _plain(value: Any) -> Any:
    """A value as JSON keeps it: numbers and texts as they are, schedules by their arguments, functions by name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if callable(value) and not dataclasses.is_dataclass(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)
