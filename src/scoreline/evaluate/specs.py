"""Samplers, guidance and labels from what a user types."""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.names import lookup
from scoreline.core.sampler import Sampler
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.guidance.thresholding import Thresholded

__all__ = ["check_fit", "guided", "is_adaptive", "labels_for", "make_sampler", "parse_labels", "parse_spec"]
__all__ += ["asked_labels", "sampler_options"]


def sampler_options(name: str) -> list[str]:
    """The settings of a sampler besides its cost."""
    known = inspect.signature(lookup("sampler", name).__init__).parameters
    return [option for option in known if option not in ("self", "steps", "nfe")]


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """`name:key=value:key=value` -> (name, settings), each value of the type that the sampler declares.

    Raises:
        InputError: an unknown sampler or setting, or a value of another type.

    >>> parse_spec("ddim:eta=0.5:grid=leading")
    ('ddim', {'eta': 0.5, 'grid': 'leading'})
    """
    name, *pairs = spec.split(":")
    lookup("sampler", name)
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError("sampler setting", pair, "settings are written name:key=value")
        if key not in sampler_options(name):
            raise unknown_name(f"setting of {name}", key, sampler_options(name))
        if key in settings:
            raise InputError(f"setting of {name}", key, "is given twice")
        settings[key] = _value(name, key, value)
    return name, settings


def _value(name: str, key: str, text: str) -> Any:
    """A typed setting as the sampler's constructor wants it: its annotation decides."""
    hint = str(inspect.signature(lookup("sampler", name).__init__).parameters[key].annotation)
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    wanted: dict[str, tuple[Any, str]] = {
        "bool": (bool, "true or false"),
        "int": (int, "a whole number"),
        "float": ((int, float), "a number"),
    }
    for kind, (types, words) in wanted.items():
        if kind not in hint:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool") or value != value:
            raise InputError(f"setting {key} of {name}", text, f"must be {words}")
        return value
    return text


def make_sampler(spec: str, *, nfe: int | None = None, steps: int | None = None) -> Sampler:
    """The sampler that a text like `heun` or `ddim:eta=1` stands for.

    Raises:
        InputError: an unknown sampler or setting.
    """
    name, settings = parse_spec(spec)
    return lookup("sampler", name)(**settings, nfe=nfe, steps=steps)


def is_adaptive(spec: str) -> bool:
    """Whether a sampler chooses its steps by itself, so that it takes no budget.

    Raises:
        InputError: an unknown sampler or setting.
    """
    return bool(getattr(make_sampler(spec), "adaptive", False))


def check_fit(sampler: Sampler, model: Denoiser) -> int:
    """The network evaluations an image will cost; all that the sampler would refuse on this model is refused here.

    Raises:
        InputError: no run fits the budget, or the sampler does not fit the model's schedule.
    """
    sampler = sampler.calibrated(model)
    times = sampler.times(model.schedule, model.evaluations)
    model.check(times)
    sampler.coefficients(model.schedule, times)
    return sampler.cost(len(times) - 1) * model.evaluations


def guided(model: Denoiser, guidance: float | None, *, clip: bool = False) -> Denoiser:
    """The model with guidance (s; None or 1 leaves it alone) and, if asked, with its clean image kept in [-1, 1]."""
    if guidance is not None and guidance != 1:
        if model.num_classes is None:
            raise InputError("guidance", guidance, "this model has no classes, so there is nothing to guide by")
        _without_class("guidance", guidance, model, "leave it out")
        model = ClassifierFree(model, guidance)
    return Thresholded(model) if clip else model


def parse_labels(text: str | None, num_classes: int | None) -> list[int] | None:
    """`3`, `0,1,7` or `none`; None takes all classes in turn.

    Raises:
        InputError: a label outside the model's classes, or labels for a model without classes.
    """
    if text is None:
        return None
    if num_classes is None:
        raise InputError("labels", text, "this model has no classes")
    if text == "none":
        return [num_classes]
    labels = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not 0 <= int(part) < num_classes:
            raise InputError("label", part, f"labels are numbers from 0 to {num_classes - 1}, or none")
        labels.append(int(part))
    return labels


def asked_labels(text: str | None, model: Denoiser) -> list[int] | None:
    """As :func:`parse_labels`, and `none` is refused on a model that cannot be asked for no class.

    Raises:
        InputError: see :func:`parse_labels`; or the model knows no "no class".
    """
    chosen = parse_labels(text, model.num_classes)
    if text == "none":
        _without_class("labels", text, model, "ask for classes, as 0,1")
    return chosen


def _without_class(thing: str, value: Any, model: Denoiser, mend: str) -> None:
    """Refuse what needs a model's answer without a class where it has none."""
    try:
        model.null(Cond(labels=torch.zeros(1, dtype=torch.int64)))
    except InputError as error:
        raise InputError(thing, value, f"{error.mend}; {mend}") from None


def labels_for(indices: Any, num_classes: int | None, chosen: list[int] | None = None) -> Cond | None:
    """The conditions of images by number: image i gets class i mod C, or entry i mod L of the chosen ones."""
    if num_classes is None:
        return None
    classes = torch.tensor(chosen if chosen is not None else range(num_classes))
    return Cond(labels=classes[torch.as_tensor(indices) % len(classes)])
