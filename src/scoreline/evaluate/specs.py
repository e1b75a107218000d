"""Samplers, guidance and labels from what a user types."""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.flow_map import FlowMap
from scoreline.core.names import lookup
from scoreline.core.sampler import Sampler
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.guidance.thresholding import Thresholded
from scoreline.nn.text import text_network

__all__ = ["check_fit", "guided", "is_adaptive", "labels_for", "make_sampler", "parse_labels", "parse_spec"]
__all__ += ["adds_noise", "asked_labels", "check_counts", "choose_sampler", "sampler_options", "sampling_of"]


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
        InputError: no run fits the budget, or the sampler does not fit the model or its schedule.
    """
    if isinstance(model, FlowMap) and not (model.scored or sampler.of_maps):
        mend = f"needs a score, which a {type(model).__name__} does not know; sample it with jumps"
        raise InputError("sampler", type(sampler).__name__, mend)
    sampler = sampler.calibrated(model)
    times = sampler.times(model.schedule, model.evaluations)
    model.check(times)
    sampler.coefficients(model.schedule, times)
    return sampler.cost(len(times) - 1) * model.evaluations


def adds_noise(sampler: Sampler, model: Denoiser) -> bool:
    """Whether a run of this sampler on this model draws noise after its start; a single jump of a flow map does not."""
    ready = sampler.calibrated(model)
    return ready.stochastic and not (ready.of_maps and ready.plan(model.evaluations) == 1)


def sampling_of(model: Denoiser) -> tuple[str, list[int] | None] | None:
    """How a student wants to be sampled: (sampler, step counts it was made for or None for any); None of other models.

    Raises:
        InputError: its card says so in a form that is not understood.
    """
    said = (getattr(model, "header", None) or {}).get("card", {}).get("sampling")
    if said is None:
        return None
    counts = said.get("steps") if isinstance(said, dict) else said
    if not isinstance(said, dict) or not isinstance(said.get("sampler"), str) or not isinstance(counts, list | None):
        raise InputError("sampling", said, "in the model's card is not {sampler:, steps:}; was the file changed?")
    return said["sampler"], counts


def choose_sampler(
    model: Denoiser, spec: str | None, *, nfe: int | None = None, steps: int | None = None
) -> tuple[str, Sampler]:
    """The sampler that was asked for, or the model's own: (text, sampler).

    A student has its own sampler, and its first step count where no cost is given; any other model takes heun and 35
    evaluations.

    Args:
        model: with its header.
        spec: what the user typed, or None.
        nfe, steps: cost, or None.

    Raises:
        InputError: an unknown sampler, or a step count that the student was not made for.
    """
    own = sampling_of(model)
    chosen = spec or (own[0] if own is not None else "heun")
    if nfe is None and steps is None and not is_adaptive(chosen):
        if own is not None and parse_spec(chosen)[0] == parse_spec(own[0])[0]:
            steps = own[1][0] if own[1] else 1
        else:
            nfe = 35
    sampler = make_sampler(chosen, nfe=nfe, steps=steps)
    check_counts(model, chosen, sampler)
    return chosen, sampler


def check_counts(model: Denoiser, spec: str, sampler: Sampler) -> None:
    """Refuse a number of steps that a student was not made for, where it is sampled by its own sampler.

    Raises:
        InputError: names the counts that it was made for.
    """
    own = sampling_of(model)
    if own is None or own[1] is None or parse_spec(spec)[0] != parse_spec(own[0])[0] or is_adaptive(spec):
        return
    steps = sampler.plan(model.evaluations)
    if steps not in own[1]:
        raise InputError("steps", steps, f"this student was made for {', '.join(map(str, own[1]))}")


def guided(model: Denoiser, guidance: float | None, *, clip: bool = False) -> Denoiser:
    """The model with guidance (s; None or 1 leaves it alone) and, if asked, with its clean image kept in [-1, 1]."""
    if guidance is not None and guidance != 1:
        reads = text_network(model) is not None
        if model.num_classes is None and not reads:
            raise InputError("guidance", guidance, "this model has no classes, so there is nothing to guide by")
        _needs_score("guidance", guidance, model)
        if not reads:
            _without_class("guidance", guidance, model, "leave it out")
        model = ClassifierFree(model, guidance)
    if clip:
        _needs_score("clip", clip, model)
    return Thresholded(model) if clip else model


def _needs_score(thing: str, value: Any, model: Denoiser) -> None:
    if isinstance(model, FlowMap) and not model.scored:
        raise InputError(thing, value, f"changes a score, which a {type(model).__name__} does not know; leave it out")


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
