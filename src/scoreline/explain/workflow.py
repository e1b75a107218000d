"""Workflows as small YAML or JSON files: which components make the images, and what stands in for each.

title: Whose threes are these?
artwork: {source: digits, labels: [3], post: [{shift: [0, 1]}]}
neutral: {model: noise, labels: all, guidance: 1, sampler: dpm-solver++2m, nfe: 10}     # every stand-in
components:                                                                             # what each one changes
  model: {model: digits}
  prompt: {labels: [3]}
  guidance: {guidance: 3}
  finishing: {post: [{shift: [0, 1]}]}
owners: {studio: [prompt, guidance]}                                                    # optional
images: 500
seed_sets: [0, 1, 2]
utility: [fd, kid]
features: auto

A coalition runs with the neutral settings, changed by its components in the order of the file. A setting is the
business of one component, except post, where every component adds its steps. Instead of `neutral`, `folders` names a
folder with one folder of finished images for each coalition ("nothing", "model", "model + prompt", ...), for workflows
that run elsewhere; `components` is then a list of names.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.core.artefact import read_header
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.core.load import load, model_path
from scoreline.core.noise import Noise
from scoreline.data import load_images
from scoreline.data.images import Images
from scoreline.evaluate.specs import check_fit, guided, labels_for, make_sampler, parse_labels, parse_spec
from scoreline.explain.attribution import Component
from scoreline.explain.coalitions import coalition_name
from scoreline.explain.finishing import finish, read_finishing, said

__all__ = ["NOISE", "SETTINGS", "Workflow", "read_workflow", "workflows"]

NOISE = "noise"
"""The stand-in for a model: Gaussian pixels with mean and standard deviation of the artwork's data set."""

SETTINGS: dict[str, Any] = {
    "model": NOISE, "labels": "all", "guidance": 1.0, "clip": False, "sampler": "dpm-solver++2m", "nfe": 10, "post": (),
}  # fmt: skip
"""What a component may change, and its neutral value where the file names none."""

_SHIPPED = Path(__file__).resolve().parent.parent / "presets" / "workflows"
_KEYS = {"title", "about", "artwork", "neutral", "components", "owners", "folders", "images", "seed_sets"}
_KEYS |= {"utility", "features"}
_ARTWORK = {"source", "split", "labels", "post", "count", "size"}
_BATCH = 250
_KEPT = 2**28  # bytes of drawn images that a process keeps


def workflows() -> list[str]:
    """Names of the shipped workflows."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


@dataclass(frozen=True)
class Workflow:
    """A workflow that was read and checked; `make` and `same` are what CopyScope asks for.

    Args:
        title, about: for people.
        artwork: the reference images, made as the file says. source: the data set they come from.
        changes: component -> what it sets. neutral: all settings without any component.
        folder: of finished coalitions, instead of settings.
        owners: owner -> components.
        images: a coalition. seed_sets, utilities, features: as CopyScope takes them.
        described: what the file says, for the record.
    """

    title: str
    about: str
    artwork: Tensor
    source: Images
    changes: Mapping[str, Mapping[str, Any]]
    neutral: Mapping[str, Any]
    folder: Path | None
    owners: Mapping[str, Sequence[str]]
    images: int
    seed_sets: tuple[int, ...]
    utilities: tuple[str, ...]
    features: tuple[str, ...]
    described: Mapping[str, Any]
    device: torch.device = field(default=torch.device("cpu"))
    _drawn: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def components(self) -> list[Component]:
        """The players, with what they are and what stands in for them, in words."""
        if self.folder is not None:
            return [Component(name, "images of the folder", "images without it") for name in self.changes]
        return [
            Component(
                name,
                ", ".join(_worded(key, value) for key, value in change.items()),
                ", ".join(_worded(key, self.neutral[key]) for key in change),
            )
            for name, change in self.changes.items()
        ]

    def settings(self, active: frozenset[str]) -> dict[str, Any]:
        """What a coalition runs with; settings that noise has no use for are left out."""
        resolved = dict(self.neutral)
        for name, change in self.changes.items():
            if name in active:
                for key, value in change.items():
                    resolved[key] = (*resolved["post"], *value) if key == "post" else value
        if resolved["model"] == NOISE:
            return {key: resolved[key] for key in ("model", "post")}
        return resolved

    def same(self, active: frozenset[str]) -> str:
        """Everything that the images of a coalition depend on besides noise and count: equal texts, equal images."""
        if self.folder is not None:
            return f"{self._name(active)}: {self._open(active).fingerprint}"
        settings = self.settings(active)
        noise = settings["model"] == NOISE
        source: Any = _level(self.source) if noise else _fingerprint(settings["model"])
        return json.dumps([settings, source], sort_keys=True)

    def make(self, active: frozenset[str], noise: Noise) -> Tensor:
        """The images of a coalition."""
        if self.folder is not None:
            finished = self._open(active)
            return finished.batch(range(len(finished))).image
        settings = self.settings(active)
        post = settings.pop("post")
        key = json.dumps([noise.seed, settings], sort_keys=True)
        if key not in self._drawn:
            # Coalitions that differ only in what is done afterwards share their drawing.
            images = self._draw(settings, noise)
            self._drawn[key] = images
            while sum(kept.nbytes for kept in self._drawn.values()) > _KEPT and len(self._drawn) > 1:
                del self._drawn[next(iter(self._drawn))]
        return finish(self._drawn[key], post)

    def _draw(self, settings: Mapping[str, Any], noise: Noise) -> Tensor:
        if settings["model"] == NOISE:
            mean, std = _level(self.source)
            return (mean + std * noise.at(range(self.images), self.source.shape).normal()).clamp(-1, 1)
        bare, model = self._model(settings)
        sampler = make_sampler(settings["sampler"], nfe=settings["nfe"])
        chosen = parse_labels(_label_text(settings["labels"]), bare.num_classes)
        made = []
        for start in range(0, self.images, _BATCH):
            indices = range(start, min(start + _BATCH, self.images))
            cond = labels_for(indices, bare.num_classes, chosen)
            given = model.given(cond if cond is None else cond.to(self.device))
            sample = sampler(given, noise.at(indices, model.shape, device=self.device))
            made.append(model.decode(sample.x.float()).clamp(-1, 1).cpu())
        return torch.cat(made)

    def check(self, coalitions: Sequence[frozenset[str]]) -> None:
        """Refuse, before any image is made, whatever some coalition could not run with.

        Raises:
            InputError: settings that do not fit together, images of another shape than the artwork.
            ArtefactError: a model or folder that cannot be read.
        """
        done: set[str] = set()
        for active in coalitions:
            text = self.same(active)
            if text in done or self.folder is not None:
                continue
            done.add(text)
            settings = self.settings(active)
            if settings["model"] == NOISE:
                continue
            try:
                bare, model = self._model(settings)
                check_fit(make_sampler(settings["sampler"], nfe=settings["nfe"]), model)
                parse_labels(_label_text(settings["labels"]), bare.num_classes)
            except InputError as error:
                raise InputError(error.thing, error.value, f"{error.mend} (coalition {self._name(active)})") from None
            made = tuple(model.decode(torch.zeros(1, *model.shape, device=self.device)).shape[1:])
            if made != self.source.shape:
                shapes = f"makes images of shape {made}, the artwork has {self.source.shape}"
                raise InputError("model", settings["model"], shapes)

    def _model(self, settings: Mapping[str, Any]) -> tuple[Denoiser, Denoiser]:
        bare = _loaded(settings["model"])
        labels = _label_text(settings["labels"])
        # Without classes there is nothing to ask for; only an explicit wish is refused.
        if bare.num_classes is None and labels is not None:
            raise InputError("labels", settings["labels"], f"the model {settings['model']} has no classes")
        return bare, guided(bare, settings["guidance"], clip=settings["clip"]).to(self.device)

    def _name(self, active: frozenset[str]) -> str:
        return coalition_name([name for name in self.changes if name in active])

    def _open(self, active: frozenset[str]) -> Images:
        """The finished images of a coalition."""
        assert self.folder is not None
        name = self._name(active)
        if not (self.folder / name).is_dir():
            raise ArtefactError(f"folder of coalition {name}", str(self.folder / name), "is missing")
        images = load_images(str(self.folder / name))
        if images.shape != self.source.shape:
            shapes = f"holds images of shape {images.shape}, the artwork has {self.source.shape}"
            raise InputError(f"folder of coalition {name}", str(self.folder / name), shapes)
        return images


def read_workflow(name: str) -> Workflow:
    """A shipped workflow by name, or a .yaml, .yml or .json file by path.

    Raises:
        InputError: an unknown name or key, a setting that does not fit.
        ArtefactError: the file is missing or broken.
    """
    import yaml

    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml", ".json") and "/" not in name:
        path = _SHIPPED / f"{name}.yaml"
        if not path.is_file():
            error = unknown_name("workflow", name, workflows())
            raise InputError("workflow", name, f"{error.mend}; a file is given as a path, e.g. ./{name}.yaml")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except FileNotFoundError:
        raise ArtefactError("workflow", str(path), "no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as failure:
        raise ArtefactError("workflow", str(path), f"cannot be read: {' '.join(str(failure).split())}") from None
    if not isinstance(given, dict):
        raise ArtefactError("workflow", str(path), "must be a mapping of keys, see the shipped workflows")
    _check_keys(given, _KEYS, path.name)
    for key in ("artwork", "components"):
        if not given.get(key):
            raise InputError(f"{key} of {path.name}", given.get(key), "is missing")
    source, artwork = _artwork(given["artwork"], path)
    folder, neutral = None, dict(SETTINGS)
    if "folders" in given:
        if "neutral" in given or not isinstance(given["components"], list):
            raise InputError("folders", given["folders"], "goes with a list of components and without neutral settings")
        folder = path.parent / str(given["folders"])
        changes: dict[str, dict[str, Any]] = {str(component): {} for component in given["components"]}
    else:
        neutral |= _settings(given.get("neutral") or {}, "neutral")
        changes = _changes(given["components"])
    owners = given.get("owners") or {}
    if not isinstance(owners, dict) or not all(isinstance(parts, list) for parts in owners.values()):
        raise InputError("owners", owners, "give owner: [components]")
    seed_sets = given.get("seed_sets", [0] if folder else [0, 1, 2])
    seed_sets = list(range(seed_sets)) if type(seed_sets) is int else seed_sets
    if not isinstance(seed_sets, list) or not all(type(seed) is int and seed >= 0 for seed in seed_sets):
        raise InputError("seed_sets", seed_sets, "give numbers from 0 on, or how many")
    images = given.get("images", 500)
    if type(images) is not int or images < 2:
        raise InputError("images", images, "give a whole number, 2 or more")
    return Workflow(
        title=str(given.get("title", path.stem)), about=str(given.get("about") or ""), artwork=artwork, source=source,
        changes=changes, neutral=neutral, folder=folder, owners=owners, images=images, seed_sets=tuple(seed_sets),
        utilities=_listed(given.get("utility", ["fd", "kid"])), features=_listed(given.get("features", "auto")),
        described=given,
    )  # fmt: skip


def _changes(given: Any) -> dict[str, dict[str, Any]]:
    """Component -> settings; no setting has two masters."""
    if not isinstance(given, dict):
        raise InputError("components", given, "give name: {setting: value}")
    changes: dict[str, dict[str, Any]] = {}
    masters: dict[str, str] = {}
    for name, change in given.items():
        if not isinstance(change, dict) or not change:
            raise InputError(f"component {name}", change, "give the settings it changes, for instance {guidance: 3}")
        changes[str(name)] = _settings(change, f"component {name}")
        for key in change:
            if key != "post" and key in masters:
                raise InputError(f"setting {key}", str(name), f"is that of component {masters[key]} already")
            masters[key] = str(name)
    return changes


def _settings(given: Any, thing: str) -> dict[str, Any]:
    """Checked values of some settings."""
    if not isinstance(given, Mapping):
        raise InputError(thing, given, "give setting: value")
    _check_keys(given, SETTINGS, thing)
    found: dict[str, Any] = {}
    for key, value in given.items():
        where = f"{key} of {thing}"
        if key == "post":
            value = read_finishing(value, where)
        elif key == "labels":
            value = value if isinstance(value, list) else str(value)
            if not (
                value in ("all", "none") or (isinstance(value, list) and value and all(type(v) is int for v in value))
            ):
                raise InputError(where, value, "give all, none or a list of classes")
        elif key == "guidance":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e6:
                raise InputError(where, value, "give a number, 1 for none")
            value = float(value)
        elif key == "clip":
            if not isinstance(value, bool):
                raise InputError(where, value, "give true or false")
        elif key == "nfe":
            if type(value) is not int or value < 1:
                raise InputError(where, value, "give a whole number, 1 or more")
        elif not isinstance(value, str):
            raise InputError(where, value, "give a name")
        elif key == "sampler":
            parse_spec(value)
        elif value != NOISE:
            _loaded(value)
        found[key] = value
    return found


def _artwork(given: Any, path: Path) -> tuple[Images, Tensor]:
    """The data set behind the artwork, and the artwork itself."""
    if isinstance(given, str):
        given = {"source": given}
    if not isinstance(given, dict) or not isinstance(given.get("source"), str):
        raise InputError("artwork", given, "give at least {source: data set or folder}")
    _check_keys(given, _ARTWORK, "artwork")
    where = given["source"]
    if where.startswith("."):  # beside the workflow's file
        where = str(path.parent / where)
    source = load_images(where, split=given.get("split"), size=given.get("size"))
    chosen = source
    if "labels" in given:
        wanted = given["labels"] if isinstance(given["labels"], list) else [given["labels"]]
        if source.labels is None or source.labels.ndim != 1:
            raise InputError("labels of artwork", wanted, f"{source.name} has no single labels")
        rows = [i for i, label in enumerate(source.labels.tolist()) if label in wanted]
        if not rows:
            raise InputError("labels of artwork", wanted, f"{source.name} holds no image of these classes")
        chosen = source.subset(rows)
    count = given.get("count", len(chosen))
    if type(count) is not int or not 1 <= count <= len(chosen):
        raise InputError("count of artwork", count, f"there are {len(chosen)} images")
    images = chosen.batch(range(count)).image
    return source, finish(images, read_finishing(given.get("post") or [], "artwork"))


@functools.cache
def _loaded(name: str) -> Denoiser:
    model: Denoiser = load(name)
    return model


@functools.cache
def _fingerprint(name: str) -> str:
    return str(read_header(model_path(name))["fingerprint"])


@functools.cache
def _level(images: Images) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of a data set."""
    described = images.describe()
    mean = sum(described["mean"]) / len(described["mean"])
    square = sum(s**2 + m**2 for s, m in zip(described["std"], described["mean"])) / len(described["mean"])
    return mean, max(square - mean**2, 0.0) ** 0.5


def _label_text(value: Any) -> str | None:
    """As `parse_labels` reads them."""
    if value == "all":
        return None
    return value if isinstance(value, str) else ",".join(map(str, value))


def _worded(key: str, value: Any) -> str:
    if key == "post":
        return said(value) or "nothing done afterwards"
    if key == "labels":
        return {"all": "all classes in turn", "none": "no class"}.get(str(value), f"class {_label_text(value)}")
    if key == "model":
        return "pixel noise" if value == NOISE else f"model {value}"
    if key == "guidance":
        return "no guidance" if value == 1 else f"guidance {value:g}"
    if key == "clip":
        return "clipping" if value else "no clipping"
    return f"{key} {value}"


def _listed(given: Any) -> tuple[str, ...]:
    parts = given if isinstance(given, list) else str(given).split(",")
    return tuple(str(part).strip() for part in parts if str(part).strip())


def _check_keys(given: Mapping[Any, Any], known: Any, thing: str) -> None:
    for key in given:
        if key not in known:
            raise unknown_name(f"key of {thing}", str(key), known)
