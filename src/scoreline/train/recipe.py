"""Recipes: a whole training as a small YAML file, the form of the shipped presets.

data: {source: digits, split: train}
model: {kind: denoiser, name: preconditioned, args: {...}}     # as in an artefact's header
method: denoising                                              # a short name
settings: {lr: {cosine: {lr: 0.003, warmup: 100}}, ...}        # the method's arguments
steps: 4000
batch_size: 128
seed: 0
ema: 0.999                                                     # or a list of decays
sample_every: 1000                                             # steps between sample grids
requires: cuda                                                 # presets that a laptop cannot finish say so
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoreline.core.artefact import build, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.device import pick_device
from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.core.method import Method
from scoreline.core.names import lookup
from scoreline.core.noise import Noise, derive
from scoreline.data import load_images
from scoreline.data.grid import picture_grid, write_png
from scoreline.data.paired import load_paired
from scoreline.nn.text import TextConditioned, text_network
from scoreline.train import lr as schedules
from scoreline.train.resolve import resolve
from scoreline.train.run import run

__all__ = ["apply_changes", "call", "check_images", "check_keys", "is_student_recipe", "learning_rate", "make_method"]
__all__ += ["opened", "presets", "read_recipe", "recipe_file", "train"]

_PRESETS = Path(__file__).resolve().parent.parent / "presets"
_LR = {
    "constant": schedules.Constant,
    "linear": schedules.Linear,
    "cosine": schedules.Cosine,
    "inverse-sqrt": schedules.InverseSqrt,
    "step": schedules.Step,
}
_KEYS = {"data", "model", "method", "settings", "steps", "batch_size", "seed", "ema", "sample_every", "requires"}
_NEEDED = {"data", "model", "method", "steps", "batch_size"}
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def presets() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in _PRESETS.glob("*.yaml"))


def recipe_file(name: str) -> dict[str, Any]:
    """What stands in a preset, by name, or in a .yaml file, by path; its keys are not looked at.

    Raises:
        InputError: an unknown preset.
        ArtefactError: the file is missing or no YAML mapping.
    """
    import yaml

    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) or "/" in name else _PRESETS / f"{name}.yaml"
    if path.parent == _PRESETS and not path.is_file():
        raise unknown_name("preset", name, presets())
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError("config", str(path), "no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ArtefactError("config", str(path), f"cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise ArtefactError("config", str(path), "must be a mapping of keys, see the shipped presets")
    return _numbers(recipe)


def is_student_recipe(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe is one of a student (:mod:`scoreline.fewstep.recipe`), and not of a model of its own."""
    return "model" not in recipe and bool({"student", "teacher", "pairs", "stages"} & recipe.keys())


def check_keys(
    recipe: Mapping[str, Any], file: str, *, known: set[str], needed: set[str], mappings: tuple[str, ...]
) -> None:
    """Refuse keys that are unknown, missing, or of another form.

    Args:
        recipe: the recipe, or one stage of it.
        file: name of the file, for errors.
        known, needed: keys.
        mappings: keys whose values are mappings; only `settings` may be an empty one.
    """
    for key in recipe:
        if key not in known:
            raise unknown_name(f"key of {file}", str(key), known)
    missing = sorted(needed - recipe.keys())
    if missing:
        raise InputError("config", file, f"lacks {', '.join(missing)}")
    for key in ("steps", "batch_size", "seed"):
        if type(recipe.get(key, 0)) is not int:
            raise InputError(f"{key} of {file}", recipe[key], "give a whole number")
    for key in mappings:
        if key not in recipe:
            continue
        if not isinstance(recipe[key] or {}, dict) or (key != "settings" and not recipe[key]):
            raise InputError(f"{key} of {file}", recipe[key], "give a mapping, see the shipped presets")


def read_recipe(name: str) -> dict[str, Any]:
    """A preset by name, or a .yaml file by path.

    Raises:
        InputError: an unknown preset, key, or a key that is missing or of another form.
        ArtefactError: the file is missing or no YAML.
    """
    recipe = recipe_file(name)
    file = Path(name).name if name.endswith((".yaml", ".yml")) or "/" in name else f"{name}.yaml"
    check_keys(recipe, file, known=_KEYS, needed=_NEEDED, mappings=("data", "model", "settings"))
    return recipe


def make_method(recipe: Mapping[str, Any]) -> Method:
    """The method of a recipe, its networks freshly initialised from the recipe's seed.

    Raises:
        InputError: a name or setting is unknown, or the model is none that the method trains.
    """
    cls = lookup("method", recipe["method"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(int(recipe.get("seed", 0)), "init") % 2**63)
        model = build(recipe["model"])
    settings = dict(recipe.get("settings") or {})
    if "lr" in settings:
        settings["lr"] = learning_rate(settings["lr"], int(recipe["steps"]))
    first = next(iter(inspect.signature(cls).parameters))
    wanted = typing.get_type_hints(cls.__init__)[first]
    if isinstance(wanted, type) and not isinstance(model, wanted):
        mend = f"the method {recipe['method']} trains a {wanted.__name__}"
        raise InputError("model", type(model).__name__, mend)
    method: Method = call(f"setting of method {recipe['method']}", cls, settings, model)
    return method


def learning_rate(given: Any, steps: int) -> Any:
    """A number, or the rule of `scoreline.train.lr` that a mapping such as {cosine: {lr: 0.003}} stands for.

    Args:
        given: what the recipe says.
        steps: of the training, for rules that end with it.

    Raises:
        InputError: an unknown rule or setting.
    """
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return given
    if not isinstance(given, Mapping) or len(given) != 1:
        raise InputError("lr", given, "give a number, or one rule with its settings, e.g. {cosine: {lr: 0.003}}")
    ((rule, arguments),) = given.items()
    if rule not in _LR:
        raise unknown_name("learning-rate rule", rule, _LR)
    if not isinstance(arguments, Mapping):
        raise InputError(f"lr rule {rule}", arguments, "give its settings, e.g. {lr: 0.003}")
    if rule in ("linear", "cosine"):
        arguments = {"steps": steps, **arguments}
    return call(f"setting of lr rule {rule}", _LR[rule], arguments)


def call(thing: str, function: Callable[..., Any], settings: Mapping[str, Any], *first: Any) -> Any:
    """function(*first, **settings), with misspelt, missing and ill-typed settings refused in one line."""
    known = list(inspect.signature(function).parameters)[len(first) :]
    for key in settings:
        if key not in known:
            raise unknown_name(thing, key, known)
    try:
        return function(*first, **settings)
    except TypeError as error:
        raise InputError(thing, None, str(error)) from error


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; here it is the number that whoever wrote it meant."""
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def train(
    name: str,
    out: str | None,
    changes: Mapping[str, Any],
    *,
    device: str = "auto",
    precision: str = "float32",
    accumulate: int = 1,
    checkpoint_every: int = 500,
    sample_every: int | None = None,
    skip_nonfinite: int = 0,
    dry_run: bool = False,
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Carry out a recipe in a folder, and leave `model.safetensors` there.

    Args:
        name: preset or .yaml file.
        out: folder; None takes runs/<name>.
        changes: keys that replace the recipe's: steps, batch_size, seed, data (a source), lr (the peak). A warm-up
            that would not end within fewer steps is cut to a tenth of them.
        device, precision, accumulate, checkpoint_every, sample_every, skip_nonfinite: see `scoreline.train.run.run`.
        dry_run: resolve and check everything, and stop.
        command: what the user typed, for the model's card.
        quiet: no progress.

    Returns:
        {"resolved": ...} for a dry run, else {"model", "folder", "steps", "losses"}.
    """
    recipe = read_recipe(name)
    apply_changes(recipe, changes)
    if recipe.get("requires") == "cuda" and pick_device(device).type != "cuda" and not dry_run and recipe["steps"] > 10:
        raise InputError("preset", name, "is sized for a CUDA device; try digits, or set --steps 10 to see it run")
    data = opened(recipe["data"])
    method = make_method(recipe)
    check_images(method, data)
    config = {"recipe": {k: v for k, v in recipe.items() if k not in ("steps", "sample_every", "requires")}}
    steps, batch_size = int(recipe["steps"]), int(recipe["batch_size"])
    settings: dict[str, Any] = {
        "steps": steps, "batch_size": batch_size, "seed": int(recipe.get("seed", 0)), "device": device,
        "precision": precision, "accumulate": accumulate, "ema": recipe.get("ema"), "skip_nonfinite": skip_nonfinite,
        "config": config,
    }  # fmt: skip
    if dry_run:
        return {"resolved": resolve(method, data, **settings)}
    folder = Path(out or f"runs/{Path(name).stem}")
    every = sample_every or recipe.get("sample_every")
    reads = text_network(getattr(method, "denoiser", method))
    silent = reads is not None and not reads.prompts  # no caption is at hand there
    sample = _draw if hasattr(method, "denoiser") and every and not silent else None
    trained = run(
        method, data, folder, checkpoint_every=checkpoint_every, sample_every=every if sample else None, sample=sample,
        quiet=quiet, **settings,
    )  # fmt: skip
    model = trained.result()
    target = folder / "model.safetensors"
    card = {
        "command": command, "data": recipe["data"]["source"], "split": recipe["data"].get("split"), "steps": steps,
        "batch_size": batch_size, "seed": settings["seed"],
    }  # fmt: skip
    if getattr(data, "captions", None) is not None:
        card["captions"] = data.captions
    card |= caption_settings(recipe["data"])
    save_artefact(target, model, card=card)
    return {"model": str(target), "folder": str(folder), "steps": trained.step, "losses": trained.losses}


def opened(data: Mapping[str, Any]) -> Any:
    """The data set of a recipe: images, or pairs of them where it names `paired`.

    Raises:
        InputError: a setting is unknown or does not fit.
    """
    return call("setting of data", load_paired if "paired" in data else load_images, data)


def caption_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's card says of the captions of a recipe's data: {"caption_settings": {...}}, or nothing."""
    told = {key: data[key] for key in ("captions", "caption_column") if data.get(key) is not None}
    return {"caption_settings": told} if told else {}


def check_images(method: nn.Module, data: Any) -> None:
    """Refuse images and classes that the networks cannot take, before any work."""
    for module in method.modules():
        shape, classes = getattr(module, "in_shape", None), getattr(module, "num_classes", None)
        if shape is not None and tuple(shape) != tuple(data.shape):
            raise InputError("data", tuple(data.shape), f"the model takes images of shape {tuple(shape)}")
        told, given = getattr(data, "source_shape", None), getattr(module, "_arguments", {})
        if "image" in getattr(module, "accepts", ()) and (
            told is None or told[0] != given.get("image_channels", told[0])
        ):
            mend = f"the model is told an image of {given.get('image_channels')} channels; give paired images of those"
            raise InputError("data", data.name if told is None else tuple(told), mend)
        if isinstance(module, TextConditioned) and "caption" not in getattr(data, "extras", {}):
            mend = "has no captions, and the model takes some; name a column, or make them: captions: digits"
            raise InputError("data", getattr(data, "name", type(data).__name__), mend)
        if classes is not None and (data.num_classes is None or data.num_classes > classes):
            found = "has no labels" if data.num_classes is None else f"has {data.num_classes} classes"
            raise InputError("data", data.name, f"{found}, and the model is one of {classes} classes")


def apply_changes(recipe: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put what the user asked for (see :func:`train`) into a recipe, in place."""
    for key, value in changes.items():
        if key == "data":
            # Another set has its own splits; the same one keeps the recipe's, so that no test image is trained on.
            if (recipe.get("data") or {}).get("source") != value:
                recipe["data"] = {"source": value}
        elif key == "lr":
            settings = recipe["settings"] = recipe.get("settings") or {}
            if isinstance(settings.get("lr"), dict):
                next(iter(settings["lr"].values()))["lr"] = value
            else:
                settings["lr"] = value
        else:
            recipe[key] = value
    if "steps" in changes:  # a shorter training also warms up for a shorter time
        for key, rules in (recipe.get("settings") or {}).items():
            if isinstance(rules, dict) and (key == "lr" or key.endswith("_lr")):
                _shorten_warmup(rules, recipe["steps"])


def _shorten_warmup(rules: dict[str, Any], steps: int) -> None:
    for rule, arguments in rules.items():
        if rule in ("linear", "cosine") and isinstance(arguments, dict) and arguments.get("warmup", 0) >= steps:
            arguments["warmup"] = steps // 10


def _draw(method: Any, step: int, path: Path) -> None:
    """A grid of samples, the same noise and labels every time, so that progress is seen."""
    model = method.denoiser
    count = 40
    cond = None
    if model.num_classes is not None:
        cond = Cond(labels=torch.arange(count) % model.num_classes)
    place = next(model.parameters()).device
    draws = Noise(0).at(range(count), model.shape, device=place)
    given = model.given(cond if cond is None else cond.to(place))
    sample = lookup("sampler", "dpm-solver++2m")(steps=10)(given, draws)
    write_png(path, picture_grid(model.decode(sample.x).clamp(-1, 1), columns=10))
