"""Making a model forget classes, or a concept that captions name, and telling what was kept: recipe, training and
measurement.

A concept is a word or several: requests whose caption names it are to follow the teacher's answer to the same caption
with another word in its place.

OUT/model.safetensors      the one-step generator that has forgotten, with its card
OUT/forgetting.json        the measurement: before, after, class by class
OUT/forgetting.png         the same requests before and after
OUT/measured.jsonl         finished measurements, so that a killed run goes on
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import scoreline
from scoreline.core.artefact import save_artefact
from scoreline.core.device import pick_device
from scoreline.core.errors import InputError
from scoreline.core.files import write_json
from scoreline.core.load import load
from scoreline.data import load_images
from scoreline.data.captions import classes_of, replaced
from scoreline.evaluate.forgetting import (
    mark_of,
    measure_forgetting,
    open_judge,
    request_grid,
    retention_protocol,
)
from scoreline.evaluate.ledger import Ledger
from scoreline.evaluate.progress import progress
from scoreline.evaluate.specs import check_fit, choose_sampler
from scoreline.fewstep.distill import distill
from scoreline.fewstep.recipe import Recipe, Stage, read_recipe
from scoreline.fewstep.sfd import kept_classes
from scoreline.nn.text import text_network

__all__ = ["FORMAT", "Concept", "concept_of", "forget", "forgetting_recipe"]

FORMAT = "scoreline-forgetting/1"


def forgetting_recipe(
    model: str,
    classes: Sequence[int],
    override: int | Sequence[int] | str,
    *,
    preset: str = "digits",
    weight: float | None = None,
    judge: str | None = None,
    distil_steps: int = 0,
    changes: dict[str, Any] | None = None,
) -> Recipe:
    """The recipe of a model that forgets: a preset of SFD with other classes, or in two stages.

    Args:
        model: name or path of the teacher.
        classes, override: see :class:`scoreline.fewstep.sfd.SFD`.
        preset: digits, cifar10 or stl10.
        weight: of the forgotten requests in both losses; None takes the preset's.
        judge: the classifier that finds overrides "argmax" and "sampled".
        distil_steps: of a first stage that forgets nothing; the second starts from its generator and from the teacher's
            score, which then learns three times as fast, as in the paper.
        changes: keys that replace the preset's, see :func:`scoreline.fewstep.recipe.read_recipe`.
    """
    recipe = read_recipe("sfd", preset=preset, teacher=model, changes=changes)
    (stage,) = recipe.stages
    settings = {**stage.get("settings", {}), "forget": list(classes), "override": override}
    if weight is not None:
        settings |= {"forget_weight": weight, "critic_forget_weight": weight}
    if override in ("argmax", "sampled"):
        settings["classifier"] = {"from": judge}
    stage.given["settings"] = settings
    if distil_steps:
        plain = {key: value for key, value in settings.items() if key not in ("forget", "override", "classifier")}
        first = {**stage.given, "settings": plain, "steps": distil_steps}
        stage.given["student"] = {"from": "distil"}
        stage.given["settings"] = {**settings, "critic_lr": 3 * settings["critic_lr"]}
        recipe.stages = [Stage("distil", first), Stage("forget", stage.given)]
    return recipe


@dataclass(frozen=True)
class Concept:
    """A concept in numbers.

    Attributes:
        prompts: numbers of the prompts that name it.
        overrides: number of the prompt with the other word, for each of them.
        judged: the judge's class of each prompt of the model.
    """

    prompts: list[int]
    overrides: list[int]
    judged: list[int]

    @property
    def classes(self) -> list[int]:
        """The judge's classes that are forgotten, ascending."""
        return sorted({self.judged[k] for k in self.prompts})

    @property
    def shown(self) -> list[int]:
        """The judge's class that each of them is to show instead."""
        instead = {self.judged[k]: self.judged[o] for k, o in zip(self.prompts, self.overrides)}
        return [instead[c] for c in self.classes]


def concept_of(teacher: Any, concept: str, override: str, data: str | None = None) -> Concept:
    """A concept among the prompts that a model knows by number.

    Args:
        teacher: reads captions.
        concept: what to forget, a word or several.
        override: the words to stand in its place.
        data: images with captions and labels, which say what captions show; None takes the model's.

    Raises:
        InputError: the model reads none, no prompt or every prompt names the concept, a prompt with the other word is
            none of the model's; or captions with and without the concept show the same classes, which no judge could
            tell apart.
    """
    reads = text_network(teacher)
    if reads is None or not reads.prompts:
        raise InputError("concept", concept, "needs a model that reads captions and knows some by number")
    prompts, card = reads.prompts, teacher.header.get("card", {})
    other = {k: text for k, prompt in enumerate(prompts) if (text := replaced(prompt, concept, override)) is not None}
    if not other or len(other) == len(prompts):
        mend = f"is named by {'all' if other else 'none'} of the model's captions, such as {prompts[0]!r}"
        raise InputError("concept", concept, mend)
    missing = [text for text in other.values() if text not in prompts]
    if missing:
        raise InputError("override", override, f"{missing[0]!r} is none of the model's captions; name another word")
    source = data or card.get("data")
    if source is None:
        raise InputError("data", None, "is needed: images with captions and labels, which say what captions show")
    judged = classes_of(load_images(str(source), **card.get("caption_settings", {})), prompts)
    same = {judged[k] for k in other} & {judged[k] for k in range(len(prompts)) if k not in other}
    if same:
        named = ", ".join(map(str, sorted(same)))
        raise InputError("concept", concept, f"captions with and without it show the same classes ({named})")
    return Concept(list(other), [prompts.index(text) for text in other.values()], judged)


def forget(
    model_name: str,
    classes: Sequence[int] | str,
    override: int | Sequence[int] | str,
    out: str | os.PathLike[str],
    *,
    preset: str = "digits",
    weight: float | None = None,
    distil_steps: int = 0,
    changes: dict[str, Any] | None = None,
    judge: str | None = None,
    data: str | None = None,
    features: str = "auto",
    sampler: str | None = None,
    nfe: int | None = None,
    count: int = 2000,
    measure_batch: int = 250,
    device: str = "auto",
    precision: str = "float32",
    accumulate: int = 1,
    checkpoint_every: int = 500,
    sample_every: int | None = None,
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Distil a model into a one-step generator that has forgotten classes or a concept, and measure both.

    A killed run goes on when the same call is made again, and ends with the same weights and numbers.

    Args:
        model_name: class-conditional, or one that reads captions; built-in name or path.
        classes: to be forgotten; or a concept, see :func:`concept_of`.
        override: what to give in their place, see :class:`scoreline.fewstep.sfd.SFD`; of a concept other words.
        out: folder of the run.
        preset, weight, distil_steps, changes: see :func:`forgetting_recipe`.
        judge: classifier, see :func:`scoreline.evaluate.forgetting.open_judge`.
        data: real images for retention; None takes the data set in the model's card; without any, none is measured.
        features: of the Frechet distance.
        sampler, nfe: of the model before; None takes its own, or heun at 35 evaluations.
        count: images measured of each model.
        measure_batch: images at a time, in measuring.
        device, precision, accumulate, checkpoint_every, sample_every: see :func:`scoreline.train.run.run`.
        command: what the user typed.
        quiet: no progress.

    Returns:
        What is in forgetting.json.

    Raises:
        InputError: see :func:`scoreline.fewstep.sfd.kept_classes` and :func:`concept_of`; or something is misspelt;
            nothing was trained.
        ArtefactError: the folder holds another run.
    """
    teacher = load(model_name)
    if not classes:
        raise InputError("classes", None, "name what to forget, as 0 or 0,3; to forget nothing, distil")
    reads, concept = text_network(teacher), None
    prompts: Sequence[int]
    instead: int | Sequence[int] | str
    if isinstance(classes, str):
        concept = concept_of(teacher, classes, str(override), data)
        prompts, instead = concept.prompts, concept.overrides
        kept_classes(teacher.num_classes, prompts, instead)
    elif reads is not None:
        raise InputError("classes", list(classes), "this model reads captions; name a concept: --concept zero")
    else:
        kept_classes(teacher.num_classes, classes, override)
        prompts, instead = classes, override
    made = tuple(teacher.decode(torch.zeros(1, *teacher.shape)).shape[1:])
    if made != tuple(teacher.shape):
        raise InputError("model", model_name, "makes latents, whose students do not decode; take a model of pixels")
    found = open_judge(judge, teacher)
    known = getattr(found, "num_classes", None)
    if concept is not None and max(concept.judged) >= (known or 0):
        mend = f"knows {known} classes, the captions show class {max(concept.judged)}"
        raise InputError("judge", judge or "digits-net", mend)
    gone = list(prompts) if concept is None else concept.classes
    judged = None if concept is None else concept.judged
    source = data or teacher.header.get("card", {}).get("data")
    protocol = None if source is None else retention_protocol(str(source), features, teacher, gone)
    if count < 2 * teacher.num_classes:
        raise InputError("count", count, f"give {2 * teacher.num_classes} or more, two of each class")
    spec, before = choose_sampler(teacher, sampler, nfe=nfe)
    check_fit(before, teacher)
    recipe = forgetting_recipe(
        model_name, prompts, instead, preset=preset, weight=weight, judge=judge or "digits-net",
        distil_steps=distil_steps, changes=changes,
    )  # fmt: skip
    folder, place = Path(out), pick_device(device)
    trained = distill(
        recipe, folder, device=device, precision=precision, accumulate=accumulate, checkpoint_every=checkpoint_every,
        sample_every=sample_every, command=command, quiet=quiet,
    )  # fmt: skip
    student = load(trained["model"])
    own, after = choose_sampler(student, None)
    fixed = None if isinstance(override, str) else [override] if isinstance(override, int) else list(override)
    overrides = fixed * len(gone) if fixed is not None and len(fixed) == 1 else fixed
    if concept is not None:
        overrides = concept.shown
    job = {
        "forget": gone if concept is None else classes, "override": override, "judge": mark_of(found),
        "version": scoreline.__version__,
        "reference": None if protocol is None else protocol.protocol(count).fingerprint,
    }  # fmt: skip
    ledger, rows = Ledger(folder / "measured.jsonl", job), {}
    models = [("before", spec, teacher, before), ("after", own, student, after)]
    with progress("measure", 2 * count, quiet=quiet) as advance:
        for name, text, model, chosen in models:
            key = f"{mark_of(model)}|{text}|{chosen.plan(model.evaluations)}|{count}"
            if key not in ledger:
                ledger.add(
                    key,
                    scores=measure_forgetting(
                        model, chosen, found, gone, overrides, judged=judged, protocol=protocol, count=count,
                        batch_size=measure_batch, device=place,
                    ),
                )  # fmt: skip
            rows[name] = {"sampler": text, **ledger[key]["scores"]}
            advance(count, name)
    first, beside = prompts, None
    if judged is not None:  # of captions one of each class
        first = [judged.index(c) for c in gone]
        beside = [judged.index(c) for c in dict.fromkeys(judged) if c not in gone]
    shown: list[Any] = request_grid(
        [(name, model, chosen) for name, _, model, chosen in models], first,
        folder / "forgetting.png", kept=beside, device=place,
    )  # fmt: skip
    if reads is not None:
        shown = [reads.prompts[k] for k in shown]
    result: dict[str, Any] = {
        "format": FORMAT, "title": "Forgetting", "command": command, "model": model_name, "student": trained["model"],
        "classes": gone, "concept": None if concept is None else classes, "override": override,
        "overrides": overrides, "kept": [c for c in range(known or 0) if c not in gone], "data": source,
        "judge": judge or "digits-net", "stages": trained["stages"], "rows": rows, "columns": shown,
        "picture": str(folder / "forgetting.png"), "warnings": _warnings(rows, protocol),
    }  # fmt: skip
    write_json(folder / "forgetting.json", result)
    told = {key: rows["after"][key] for key in ("unlearning accuracy", "override hits", "distance", "name")}
    forgotten = {"classes": gone, "override": override} | ({} if concept is None else {"concept": classes})
    card = {**student.header["card"], "forgotten": {**forgotten, **told}}
    save_artefact(trained["model"], student.cpu(), card=card)
    return result


def _warnings(rows: dict[str, Any], protocol: Any) -> list[str]:
    out = []
    if protocol is None:
        out.append("no data set is known, so distances are left out; give --data")
    accuracy = rows["before"]["accuracy"]
    low = [c for c in range(len(accuracy)) if accuracy[c] is not None and accuracy[c] < 0.9]
    if low:
        named = ", ".join(map(str, low))
        out.append(
            f"before, the judge agrees with fewer than 90 % of the requests for {named}: take its word with care"
        )
    if protocol is not None:
        fewest, dim = min(rows["after"]["kept"], len(protocol.reference)), protocol.encoder.dim
        if fewest <= dim:
            out.append(f"{rows['after']['name']}: {fewest} images, but {dim} features: such a distance is far too high")
    return out
