"""Recipes of students: a distillation, or several stages of one, as a small YAML file, the form of the shipped presets.

teacher: digits                                # default of --teacher; absent where a method needs none
data: {source: digits, split: train}           # or pairs: {from: teacher, count: 20000, sampler: heun, nfe: 35},
                                               # or pairs: {folder: made-before}
student: {init: teacher}                       # or {init: fresh, net: {kind: network, name: unet, args: {...}}}, or
                                               # {from: a-stage}, or a whole denoiser {kind:, name:, args:}
method: ict                                    # a short name
settings: {lr: 0.0001}                         # the method's arguments; networks among them as {kind:, name:, args:},
                                               # {from: teacher} is a copy of the teacher's network
steps: 3000
batch_size: 128
seed: 0
ema: 0.999                                     # or {warm-up: 0.999} for min(0.999, (1 + n)/(10 + n))
requires: cuda                                 # presets that a laptop cannot finish say so

Several stages stand under `stages:` by name, each with the keys above; what stands beside `stages` holds for all of
them. `{from: reflow}` names what an earlier stage left, `{from: teacher}` the teacher.

partition: {students: 4, by: consecutive}      # a student for each share of the classes, and the model that joins them:
                                               # :mod:`scoreline.fewstep.partitioned`
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoreline.core.artefact import build, describe
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.flow_map import FlowMap
from scoreline.core.load import load
from scoreline.core.method import Method
from scoreline.core.names import TABLE, lookup
from scoreline.core.noise import derive
from scoreline.fewstep.teachers import copied, innermost
from scoreline.train.recipe import apply_changes, call, check_images, check_keys, learning_rate, presets, recipe_file

__all__ = ["Recipe", "Stage", "check_students", "few_step_methods", "make_method", "make_student", "read_recipe"]
__all__ += ["staged_recipes"]

_STAGE = {"method", "data", "pairs", "student", "teacher", "settings", "steps", "batch_size", "seed", "ema"}
_STAGE |= {"sample_every"}
_TOP = {"requires", "partition"}
_NEEDED = {"method", "steps", "batch_size"}
_MAPPINGS = ("data", "pairs", "student", "settings")
TEACHER = "teacher"
DENOISING = "denoising"  # an early stage may train the teacher of a later one


@dataclass
class Stage:
    """One training of a recipe.

    Args:
        name: of the stage; a recipe without stages has one, called like its method.
        given: its keys.
    """

    name: str
    given: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.given[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.given.get(key, default)

    @property
    def seed(self) -> int:
        return int(self.given.get("seed", 0))


@dataclass
class Recipe:
    """A recipe, read and checked as far as a file can be.

    Args:
        name: preset, or stem of the file.
        stages: in the order in which they run.
        teacher: name or path of the teacher, or None.
        requires: "cuda" where a laptop cannot finish it.
        partition: how the classes are shared out among several students, or None.
    """

    name: str
    stages: list[Stage] = field(default_factory=list)
    teacher: str | None = None
    requires: str | None = None
    partition: dict[str, Any] | None = None


def few_step_methods() -> list[str]:
    """Short names of the methods that make students."""
    return sorted(name for name, path in TABLE["method"].items() if path.startswith("scoreline.fewstep."))


def staged_recipes() -> list[str]:
    """Names of papers whose recipe has stages of several methods or a partition, for which presets ship.

    A preset of a method that has stages too, as scott-digits-text, is reached by the method's name.
    """
    of_methods = tuple(f"{method}-" for method in few_step_methods())
    staged = (name for name in presets() if {"stages", "partition"} & recipe_file(name).keys())
    papers = {name.rpartition("-")[0] for name in staged if not name.startswith(of_methods)}
    # msd-digits-small is another preset of msd, not one of a paper msd-digits.
    return sorted(paper for paper in papers if not any(paper.startswith(f"{other}-") for other in papers))


def read_recipe(
    name: str, *, preset: str | None = None, teacher: str | None = None, changes: Mapping[str, Any] | None = None
) -> Recipe:
    """A recipe by method and preset, by the name of a preset, or by the path of a .yaml file.

    Args:
        name: the method, or paper of several stages, where `preset` is given, else a preset or file.
        preset: such as "digits", for presets/<method>-<preset>.yaml.
        teacher: replaces the recipe's teacher.
        changes: keys that replace those of every stage: steps, batch_size, seed, data (a source), lr (the peak).

    Raises:
        InputError: an unknown method, preset, key or setting, or one of another form.
        ArtefactError: the file is missing or no YAML.
    """
    if name.endswith((".yaml", ".yml")) or preset is None:
        stem = Path(name).stem if name.endswith((".yaml", ".yml")) else name
        given, file = recipe_file(name), Path(name).name
    else:
        if name not in (names := {*few_step_methods(), *staged_recipes()}):
            raise unknown_name("method", name, sorted(names))
        stem, known = f"{name}-{preset}", [p for p in presets() if p.startswith(f"{name}-")]
        if stem not in known:
            raise unknown_name(f"preset of {name}", preset, [p.removeprefix(f"{name}-") for p in known])
        given, file = recipe_file(stem), f"{stem}.yaml"
    shared = {key: value for key, value in given.items() if key in _STAGE}
    recipe = Recipe(stem, requires=given.get("requires"), partition=given.get("partition"))
    if "stages" not in given:
        check_keys(given, file, known=_STAGE | _TOP, needed=_NEEDED, mappings=(*_MAPPINGS, "partition"))
        recipe.stages.append(Stage(str(given["method"]), shared))
    else:
        mappings = (*_MAPPINGS, "partition", "stages")
        check_keys(given, file, known=_STAGE | _TOP | {"stages"}, needed=set(), mappings=mappings)
        if not isinstance(given["stages"], dict):
            raise InputError(f"stages of {file}", given["stages"], "give a mapping from names to stages")
        for stage, own in given["stages"].items():
            where = f"stage {stage} of {file}"
            if not isinstance(own, dict) or stage in (TEACHER, "pairs", "steps", "model"):
                raise InputError(where, own, "a stage has a name of its own and a mapping of keys")
            if not isinstance(own.get(TEACHER, {}), dict):
                raise InputError(f"teacher of {where}", own[TEACHER], "give {from: STAGE}; a name stands above stages")
            # A stage that names pairs does not inherit data, and the other way round.
            rival = {"pairs"} if "data" in own else {"data"} if "pairs" in own else set()
            merged = {**{k: v for k, v in shared.items() if k not in rival}, **own}
            check_keys(merged, where, known=_STAGE, needed=_NEEDED, mappings=_MAPPINGS)
            recipe.stages.append(Stage(str(stage), merged))
    if teacher is not None or isinstance(given.get(TEACHER), str):
        recipe.teacher = teacher or given[TEACHER]
    if "data" in (changes or {}) and not any(stage.get("data") for stage in recipe.stages):
        raise InputError("data", changes["data"], f"{stem} learns from pairs, not from images")  # type: ignore[index]
    for stage in recipe.stages:
        apply_changes(stage.given, {k: v for k, v in (changes or {}).items() if k != "data" or "data" in stage.given})
    _check(recipe, file)
    if teacher is not None and not any(_uses_teacher(stage) for stage in recipe.stages):
        mend = f"{stem} learns without one; leave it out, or use scoreline train {name if preset is None else stem}"
        raise InputError("teacher", teacher, mend)
    return recipe


def _uses_teacher(stage: Stage) -> bool:
    given = stage.get("student") or {"init": TEACHER}
    named = any((stage.get(key) or {}).get("from") == TEACHER for key in ("student", "pairs"))
    # A stage that says {from: an earlier one} has its teacher.
    takes = TEACHER in inspect.signature(lookup("method", stage["method"])).parameters
    takes = takes and not isinstance(stage.get(TEACHER), dict)
    return takes or named or "init" in given


def _check(recipe: Recipe, file: str) -> None:
    """Refuse what can be seen to be wrong without a model: methods, settings, names of stages."""
    made = [TEACHER] if recipe.teacher is not None else []
    for stage in recipe.stages:
        where = f"stage {stage.name} of {file}"
        known = [*few_step_methods(), *([DENOISING] if len(recipe.stages) > 1 else [])]
        if stage["method"] not in known:
            raise unknown_name(f"method of {where}", str(stage["method"]), known)
        cls = lookup("method", stage["method"])
        known = [key for key in inspect.signature(cls).parameters if key not in ("student", TEACHER, "steps")]
        for key in stage.get("settings") or {}:
            if key not in known:
                raise unknown_name(f"setting of method {stage['method']}", key, known)
        if stage.get("data") and stage.get("pairs"):
            raise InputError(where, None, "has data and pairs; a training learns from one of them")
        for key in ("student", "pairs", TEACHER):
            given = stage.get(key)
            if isinstance(given, dict) and "from" in given and given["from"] not in made:
                if given["from"] == TEACHER:
                    raise InputError(where, None, "needs a teacher: give --teacher MODEL")
                raise unknown_name(f"{key} of {where}, from", str(given["from"]), {*made, TEACHER})
        student = stage.get("student") or {"init": TEACHER}
        shapes: list[set[str]] = [{"init"}, {"init", "net"}, {"from"}, {"kind", "name", "args"}]
        if set(student) not in shapes or student.get("init", "fresh") not in (TEACHER, "fresh"):
            mend = "give {init: teacher}, {init: fresh, net: ...}, {from: STAGE}, or {kind:, name:, args:}"
            raise InputError(f"student of {where}", student, mend)
        if student.get("init") == "fresh" and "net" not in student:
            raise InputError(f"student of {where}", student, "init: fresh needs net: {kind: network, name:, args:}")
        if student.get("init") == TEACHER and recipe.teacher is None:
            raise InputError(where, None, "needs a teacher: give --teacher MODEL")
        made.append(stage.name)


def make_student(stage: Stage, teacher: Denoiser | None, made: Mapping[str, str]) -> Denoiser:
    """The student of a stage, new weights drawn from the stage's seed.

    Args:
        stage: of a recipe that was read.
        teacher: the model, or None.
        made: name -> path of the artefacts of the stages before, and of the teacher.

    Raises:
        InputError: the network or teacher is none that the method can make a student of.
    """
    cls: Any = lookup("method", stage["method"])
    given = stage.get("student") or {"init": TEACHER}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(stage.seed, "init") % 2**63)
        if "kind" in given:
            return build(given)
        if "from" in given:
            found: Denoiser = load(made[given["from"]])
            return found if isinstance(found, _wanted(cls)) else cls.student_of(found)
        return cls.student_of(teacher, build(given["net"])) if "net" in given else cls.student_of(teacher)


def _wanted(cls: type) -> type:
    """The class of students that a method's constructor asks for."""
    first = next(iter(inspect.signature(cls).parameters))
    hint = typing.get_type_hints(cls.__init__).get(first)  # type: ignore[misc]
    return hint if isinstance(hint, type) else Denoiser


def check_students(student: Denoiser, teacher: Denoiser | None, data: Any) -> None:
    """Refuse a student, teacher and data that do not go together, before any work.

    Args:
        student: what is trained.
        teacher: or None.
        data: images or pairs, or None.

    Raises:
        InputError: shapes or classes differ, or the student could not be saved.
    """
    if teacher is not None:
        if tuple(teacher.shape) != tuple(student.shape):
            mend = f"the student makes images of shape {tuple(student.shape)}; take a network of the teacher's shape"
            raise InputError("teacher", tuple(teacher.shape), mend)
        if student.num_classes not in (None, teacher.num_classes):
            mend = f"is its number of classes, the teacher's is {teacher.num_classes}; give both the same, or it none"
            raise InputError("student", student.num_classes, mend)
    try:
        describe(student)
    except InputError as error:
        mend = f"cannot be saved ({error}); give it a network of ours: student: {{init: fresh, net: ...}}"
        raise InputError("student", type(student).__name__, mend) from None
    if data is None:
        return
    for module in (student, *([] if teacher is None else [teacher])):
        check_images(module, data)
    if tuple(data.shape) != tuple(student.shape):
        raise InputError("data", tuple(data.shape), f"the student makes images of shape {tuple(student.shape)}")


def _built(value: Any, teacher: Denoiser | None) -> Any:
    """A setting with its descriptions built: {kind:, name:, args:}; {from: teacher} is a copy of the teacher's network,
    {from: digits-net} a built-in model or a path."""
    if isinstance(value, list):
        return [_built(entry, teacher) for entry in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"from"}:
        if value["from"] != TEACHER:
            return load(value["from"], kind=None)
        if teacher is None:
            raise InputError("setting", dict(value), "needs a teacher: give --teacher MODEL")
        network: Any = innermost(teacher).net
        return copied(network).requires_grad_(True)
    entries = {key: _built(entry, teacher) for key, entry in value.items()}
    if entries.keys() == {"kind", "name", "args"} and entries["kind"] in TABLE:
        return call(f"argument of {entries['name']}", lookup(entries["kind"], entries["name"]), entries["args"])
    return entries


def make_method(stage: Stage, student: nn.Module, teacher: Denoiser | None) -> Method:
    """The method of a stage.

    Raises:
        InputError: a setting is unknown or does not fit, or the method needs a teacher.
    """
    cls = lookup("method", stage["method"])
    parameters = inspect.signature(cls).parameters
    settings = dict(stage.get("settings") or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(stage.seed, "settings") % 2**63)
        for key, value in settings.items():
            rated = key == "lr" or key.endswith("_lr")
            settings[key] = learning_rate(value, int(stage["steps"])) if rated else _built(value, teacher)
    if TEACHER in parameters:
        if teacher is None and parameters[TEACHER].default is inspect.Parameter.empty:
            raise InputError("teacher", None, f"the method {stage['method']} needs one: give --teacher MODEL")
        needed = parameters[TEACHER].default is inspect.Parameter.empty
        if needed and isinstance(teacher, FlowMap) and not teacher.scored:
            mend = (
                f"knows no score, and {stage['method']} learns from the teacher's ODE; give the model it was made from"
            )
            raise InputError("teacher", type(teacher).__name__, mend)
        settings[TEACHER] = teacher
    if "steps" in parameters:
        settings["steps"] = int(stage["steps"])
    with torch.random.fork_rng(devices=[]):  # what a method makes of its own, as a discriminator's heads
        torch.manual_seed(derive(stage.seed, "method") % 2**63)
        method: Method = call(f"setting of method {stage['method']}", cls, settings, student)
    return method
