"""Carrying out a student's recipe: teacher, pairs, training and artefact, stage by stage, in one folder.

    OUT/model.safetensors      the student of the last stage, averaged weights, with its card
    OUT/steps.png              1, 2, 4 and 8 steps at fixed noise, and the teacher
    OUT/samples/, quality.csv  what is looked at in between (:mod:`scoreline.fewstep.monitor`)
    OUT/<stage>/               the run of a stage (OUT itself where there is one stage)
    OUT/<stage>.safetensors    what a stage left, where there are several
    OUT/pairs-<stage>/         the pairs that a stage learns from (OUT/pairs where there is one stage)

Killed, the same call goes on in the first unfinished stage, and ends with the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from scoreline.core.artefact import read_header, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.cost import Evaluations, evaluations
from scoreline.core.denoiser import Denoiser
from scoreline.core.device import pick_device
from scoreline.core.errors import InputError
from scoreline.core.flow_map import FlowMap
from scoreline.core.generator import ImageGenerator
from scoreline.core.load import load
from scoreline.core.method import Method
from scoreline.core.noise import Noise
from scoreline.data.captions import by_prompt
from scoreline.data.grid import picture_grid, write_png
from scoreline.data.pair_store import PairStore
from scoreline.data.paired import Paired
from scoreline.diffusion.denoising import source_of
from scoreline.evaluate.compare import converged
from scoreline.evaluate.pairs import plan_pairs, write_pairs
from scoreline.evaluate.specs import check_fit, labels_for, make_sampler
from scoreline.evaluate.strengths import strengths_of
from scoreline.fewstep.class_shares import of_classes
from scoreline.fewstep.monitor import Quality, draw
from scoreline.fewstep.recipe import TEACHER, Recipe, Stage, check_students, make_method, make_student
from scoreline.nn.text import text_network, tokens_of
from scoreline.samplers.generator import Sampled
from scoreline.train.checkpoint import newest
from scoreline.train.recipe import call, caption_settings, opened
from scoreline.train.resolve import resolve
from scoreline.train.run import run

__all__ = ["distill", "networks", "steps_picture"]

STEPS = (1, 2, 4, 8)
SHOWN = 10
COSTS = ("training_seconds", "training_evaluations", "pair_evaluations")
SMALL = 10  # steps that a preset sized for CUDA may run elsewhere, to be looked at


def distill(
    recipe: Recipe,
    out: str | os.PathLike[str] | None = None,
    *,
    pairs: str | None = None,
    pair_count: int | None = None,
    processes: int = 1,
    share: int | None = None,
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
    """Train a student.

    Args:
        recipe: from :func:`scoreline.fewstep.recipe.read_recipe`.
        out: folder; None takes runs/<name of the recipe>.
        pairs: folder of pairs made before, for a recipe in which one stage learns from pairs.
        pair_count: how many pairs are made, instead of the recipe's.
        processes: how many processes make pairs, or train the students of a partition.
        share: of a recipe with a partition, the one student that is trained here; None trains all.
        device, precision, accumulate, checkpoint_every, sample_every, skip_nonfinite: see `scoreline.train.run.run`.
        dry_run: resolve and check the first stage and the form of the others, and stop.
        command: what the user typed, for the student's card.
        quiet: no progress.

    Returns:
        {"resolved": ...} for a dry run, else {"model", "folder", "picture", "stages"}, and "guidance_weight" with the
        strengths of a student that is told one, else None; of a partition also "missing", the students that are not
        there yet.

    Raises:
        InputError: something is misspelt or does not fit.
        ArtefactError: a folder holds another run, or pairs of another teacher.
    """
    place = pick_device(device)
    longest = max(int(stage["steps"]) for stage in recipe.stages)
    if recipe.requires == "cuda" and place.type != "cuda" and not dry_run and longest > SMALL:
        mend = f"is sized for a CUDA device; try digits, or set --steps {SMALL} to see it run"
        raise InputError("preset", recipe.name, mend)
    folder = Path(out or f"runs/{recipe.name}")
    made: dict[str, str] = {} if recipe.teacher is None else {TEACHER: recipe.teacher}
    if pairs is not None or pair_count is not None:
        _own_pairs(recipe, pairs, pair_count)
    if recipe.partition is not None:
        from scoreline.fewstep.partitioned import distill_shares

        return distill_shares(
            recipe, folder, share=share, processes=processes, device=device, precision=precision,
            accumulate=accumulate, checkpoint_every=checkpoint_every, sample_every=sample_every,
            skip_nonfinite=skip_nonfinite, dry_run=dry_run, command=command, quiet=quiet,
        )  # fmt: skip
    if share is not None:
        mend = f"{recipe.name} trains one student; shares belong to a recipe with a partition"
        raise InputError("share", share, mend)
    several = len(recipe.stages) > 1
    results, resolved, costs = [], {}, list[dict[str, Any]]()
    for number, stage in enumerate(recipe.stages):
        spot = folder / stage.name if several else folder
        store = folder / (f"pairs-{stage.name}" if several else "pairs")
        teacher = _teacher(stage, made)
        student = make_student(stage, teacher, made)
        check_students(student, teacher, None)
        method = make_method(stage, student, teacher)
        plan = _pair_plan(stage, made, str(place))
        data = (
            _images(stage, student) if plan is None else _pairs(plan, store, student, made, processes, dry_run, quiet)
        )
        check_students(student, teacher, data)
        settings: dict[str, Any] = {
            "steps": int(stage["steps"]), "batch_size": int(stage["batch_size"]), "seed": stage.seed, "device": device,
            "precision": precision, "accumulate": accumulate, "ema": stage.get("ema"),
            "skip_nonfinite": skip_nonfinite, "config": _config(stage, teacher),
        }  # fmt: skip
        if dry_run:
            resolved[stage.name] = {**resolve(method, data, **settings), "pairs": plan}
            left = [later.name for later in recipe.stages[number + 1 :]]
            return {"resolved": resolved, "later": left}
        every = sample_every or stage.get("sample_every")
        with evaluations(networks(method)) as counted:
            before = _steps_done(spot)
            quality = Quality(spot / "quality.csv", before, data, teacher, quiet=quiet) if every else None

            def look(
                method: Method, step: int, path: Path, counted: Evaluations = counted, quality: Any = quality
            ) -> None:
                counted.paused = True
                draw(method, step, path)
                quality.measure(method, step)
                counted.paused = False

            trained = run(
                method, data, spot, checkpoint_every=checkpoint_every, sample_every=every,
                sample=look if every else None, quiet=quiet, **settings,
            )  # fmt: skip
        target = folder / (f"{stage.name}.safetensors" if several else "model.safetensors")
        spent = counted.total * trained.step / (trained.step - before) if trained.step > before else None
        card = _card(stage, method, teacher, made, data, spot, command, spent, target)
        result = trained.result()
        told = method.measured()
        if told:
            card["measured"] = told
        costs.append({"stage": stage.name} | {key: card[key] for key in COSTS if key in card})
        if several:
            card["stages"] = list(costs)
        model = result.denoiser if isinstance(result, Sampled) else result
        model = model.cpu()
        strengths = strengths_of(model)
        if strengths is not None:
            card["guidance_weight"] = strengths
        save_artefact(target, model, card=card)
        if several and number == len(recipe.stages) - 1:
            save_artefact(folder / "model.safetensors", model, card=card)
        made[stage.name] = str(target)
        results.append(
            {
                "name": stage.name,
                "model": str(target),
                "steps": trained.step,
                "losses": trained.losses,
                "measured": told,
            }
        )
    picture = folder / "steps.png"
    if isinstance(result, Sampled) and _is_picture(model):
        taught = card.get("classes")
        write_png(picture, steps_picture(model, card["sampling"], _teacher(stage, made), data=data, classes=taught))
    shown = str(picture) if picture.is_file() else None
    return {
        "model": str(folder / "model.safetensors"), "folder": str(folder), "picture": shown, "stages": results,
        "guidance_weight": strengths,
    }  # fmt: skip


def networks(method: Method) -> dict[str, nn.Module]:
    """The networks of a method by name: what its denoisers hold, discriminators, encoders, each once."""
    found: dict[str, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> None:
        holders = (Denoiser, ImageGenerator, nn.ModuleList, nn.ModuleDict)
        if isinstance(module, holders) and not hasattr(module, "trace"):
            for key, child in module.named_children():
                visit(f"{name}.{key}" if name else key, child)
        elif next(module.parameters(), None) is not None and all(module is not known for known in found.values()):
            found[name] = module

    for key, child in method.named_children():
        visit(key, child)
    for number, module in enumerate(method.frozen()):
        visit(f"frozen.{number}", module)
    return found


def steps_picture(
    student: Denoiser,
    sampling: Mapping[str, Any],
    teacher: Denoiser | None = None,
    *,
    data: Any = None,
    count: int = SHOWN,
    classes: list[int] | None = None,
) -> Image.Image:
    """Images at fixed noise and labels, a row for each of 1, 2, 4, 8 steps that the student was made for, and the
    teacher's converged ODE below. Of students that are told an image, with that image and the true one.

    Args:
        student: makes pictures.
        sampling: {"sampler": spec, "steps": counts, or None for any}, as in the student's card.
        teacher: or None.
        data: paired images, of which a student that is told an image sees the first; others need none.
        count: images a row.
        classes: what is asked for in turn; None asks for all.
    """
    count = min(count, len(data)) if isinstance(data, Paired) else count
    cond, reads = labels_for(range(count), student.num_classes, classes), text_network(student)
    if reads is not None and not reads.prompts and "caption" in getattr(data, "extras", {}):
        cond = (cond or Cond()).replace(tokens=tokens_of(student, data.batch(range(count))))
    rows, names = [], []
    pairs = data.batch(range(count)) if isinstance(data, Paired) else None
    if pairs is not None:
        cond = (Cond() if cond is None else cond).replace(image=source_of(pairs))
    for steps in STEPS if sampling["steps"] is None else sampling["steps"]:
        sampler = make_sampler(sampling["sampler"], steps=steps)
        try:
            check_fit(sampler, student)
        except InputError:
            continue  # a sampler of higher order has a least number of steps
        rows.append(Sampled(student, sampler).generate(range(count), Noise(0), cond))
        names.append(f"{steps} step{'s' * (steps > 1)}")
    if teacher is not None and (pairs is not None or (reads is not None and not reads.prompts)):
        solver = make_sampler("ddim", steps=50)
        rows.append(Sampled(teacher.cpu(), solver).generate(range(count), Noise(0), cond))
        names.append("teacher, 50 steps")
    elif teacher is not None and not (isinstance(teacher, FlowMap) and not teacher.scored):
        rows.append(converged(teacher.cpu(), 0, count, classes, count))
        names.append("teacher")
    if pairs is not None:
        rows += [source_of(pairs).mean(1, keepdim=True).expand(-1, student.shape[0], -1, -1), pairs.image]
        names += ["stand-in source" if data.stand_in else "source", "true"]
    return picture_grid(torch.cat(rows), columns=count, row_labels=names)


def _is_picture(model: Denoiser) -> bool:
    if len(model.shape) != 3:
        return False
    with torch.no_grad():
        made = model.decode(torch.zeros(1, *model.shape)).shape[1:]
    return len(made) == 3 and made[0] in (1, 3)


def _teacher(stage: Stage, made: Mapping[str, str]) -> Denoiser | None:
    given = stage.get(TEACHER)
    name = made[given["from"]] if isinstance(given, dict) else made.get(TEACHER)
    if name is None:
        return None
    model: Denoiser = load(name)
    return model


def _images(stage: Stage, student: Denoiser) -> Any:
    given = dict(stage.get("data") or {})
    classes = given.pop("classes", None)
    images = opened(given) if given else None
    reads = text_network(student)
    if images is not None and reads is not None and reads.prompts:
        images = by_prompt(images, reads.prompts)
    return images if classes is None else of_classes(images, classes)


def _own_pairs(recipe: Recipe, folder: str | None, count: int | None) -> None:
    stages = [stage for stage in recipe.stages if stage.get("pairs")]
    if not stages:
        raise InputError("pairs", folder or count, f"{recipe.name} learns from images, not from pairs")
    if folder is not None:
        if len(stages) > 1:
            names = ", ".join(stage.name for stage in stages)
            raise InputError("pairs", folder, f"{recipe.name} has several stages with pairs of their own ({names})")
        kept = {key: stages[0]["pairs"][key] for key in ("from", "flips") if key in stages[0]["pairs"]}
        stages[0].given["pairs"] = {**kept, "folder": folder}
        return
    for stage in stages:
        stage.given["pairs"] = {**stage["pairs"], "count": count}


def _pair_plan(stage: Stage, made: Mapping[str, str], device: str) -> dict[str, Any] | None:
    """What the stage's pairs are: the header of a store to be made, or where one lies."""
    given = dict(stage.get("pairs") or {})
    if not given:
        return None
    source = given.pop("from", TEACHER)
    if source not in made:
        raise InputError("teacher", None, "the pairs need one: give --teacher MODEL")
    if "folder" in given:
        return {"from": source, **given}
    if os.environ.get("WORLD_SIZE", "1") != "1":
        mend = "are made by one job; make them first with scoreline pairs, then give --pairs FOLDER"
        raise InputError("pairs", source, mend)
    return call("setting of pairs", plan_pairs, {**given, "device": device}, made[source]) | {"from": source}


def _pairs(
    plan: dict[str, Any], folder: Path, student: Denoiser, made: Mapping[str, str], processes: int, dry_run: bool,
    quiet: bool,
) -> PairStore | None:  # fmt: skip
    teacher: str = load(made[plan["from"]]).header["fingerprint"]
    shape = tuple(student.shape)
    if "folder" in plan:
        return PairStore(plan["folder"], flips=plan.get("flips"), teacher=teacher, shape=shape)
    if tuple(plan["shape"]) != shape:
        raise InputError("pairs", tuple(plan["shape"]), f"the student makes images of shape {shape}")
    if dry_run:
        return None
    header = {key: value for key, value in plan.items() if key != "from"}
    write_pairs(folder, header, processes=processes, quiet=quiet)
    return PairStore(folder, teacher=teacher, shape=shape)


def _config(stage: Stage, teacher: Denoiser | None) -> dict[str, Any]:
    """What makes the run the one it is; the number of steps is not in it, so that a run may be prolonged."""
    mark = None if teacher is None else teacher.header["fingerprint"]  # type: ignore[index]
    left = ("steps", "sample_every", TEACHER)
    return {"stage": {k: v for k, v in stage.given.items() if k not in left}, TEACHER: mark}


def _steps_done(folder: Path) -> int:
    found = newest(folder / "checkpoints")
    return 0 if found is None else int(found[1]["step"])


def _card(
    stage: Stage, method: Any, teacher: Any, made: Mapping[str, str], data: Any, folder: Path, command: str,
    spent: float | None, target: Path,
) -> dict[str, Any]:  # fmt: skip
    """What a reader should know of a student."""
    card: dict[str, Any] = {
        "command": command, "method": stage["method"], "stage": stage.name, "steps": int(stage["steps"]),
        "batch_size": int(stage["batch_size"]), "seed": stage.seed, "teacher": None,
    }  # fmt: skip
    if teacher is not None:
        given = stage.get(TEACHER)
        name = made[given["from"]] if isinstance(given, dict) else made[TEACHER]
        card[TEACHER] = {"name": str(name), "fingerprint": teacher.header["fingerprint"]}
    images = stage.get("data") or {}
    told = teacher.header.get("card", {}) if teacher is not None else {}
    if isinstance(data, PairStore):
        told = told or load(made[stage["pairs"].get("from", TEACHER)]).header.get("card", {})
        card["pairs"] = {key: data.header[key] for key in ("count", "solver", "nfe", "guidance", "seed", "teacher")}
        card["pairs"]["flips"] = data.flips
    card["data"], card["split"] = images.get("source", told.get("data")), images.get("split", told.get("split"))
    if getattr(data, "captions", None) is not None:
        card["captions"] = data.captions
    settings = caption_settings(images)
    card |= settings or {key: told[key] for key in ("caption_settings",) if key in told}
    if "paired" in images:
        card["paired"] = data.name
    share = (stage.get("settings") or {}).get("classes", images.get("classes"))
    if share is not None:
        card["classes"] = list(share)
    gone = (stage.get("settings") or {}).get("forget")
    if gone:
        card["forgotten"] = {"classes": list(gone), "override": stage["settings"].get("override", "random")}
    sources = {"teacher": teacher is not None, "images": bool(images), "pairs": isinstance(data, PairStore)}
    card["learns_from"] = [name for name, used in sources.items() if used]
    if hasattr(method, "made_for"):
        counts = method.made_for
        card["sampling"] = {"sampler": method.sampler, "steps": None if counts is None else list(counts)}
    found = newest(folder / "checkpoints")
    card["training_seconds"] = None if found is None else round(float(found[1]["seconds"]), 3)
    # Images times network evaluations, a forward pass 1 and a backward pass 2; a resumed run is reckoned by its last
    # part, and one that had ended before keeps its figure.
    if spent is None and target.is_file():
        spent = read_header(target)["card"].get("training_evaluations")
    card["training_evaluations"] = None if spent is None else round(spent)
    if isinstance(data, PairStore):
        card["pair_evaluations"] = round(data.header["count"] * data.header["nfe"])
    return card
