"""Carrying out a recipe with a partition: a student for each share of the classes, and the model that joins them.

    partition: {students: 4, by: consecutive}      # or interleaved, random, clusters (both with seed: 0), or
    partition: {by: quadrants}                     # of a teacher that reads captions: four, by their embeddings, or
    partition: {shares: [[0, 1, 2], [3, 4]]}

    OUT/share-0, OUT/share-1, ...   a run each, as :mod:`scoreline.fewstep.distill` leaves it
    OUT/pairs                       pairs of the teacher (OUT/pairs-<stage> where there are several stages); every
                                    student learns from all of them
    OUT/model.safetensors           the students joined, when all are there, with an account of what they cost
    OUT/steps.png                   pictures of it

Student 0 has the recipe's seed, the others have seeds made of it, so that a partition of one share is the recipe
without a partition. Students may be trained in parallel processes, or each on a machine of its own: whoever finds all
of them in the folder joins them. Each run goes on where it was stopped.

Reference: Song et al. 2025 (Multi-student Diffusion Distillation, arXiv 2410.23274).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from scoreline.core.artefact import read_header, save_artefact
from scoreline.core.denoiser import Denoiser
from scoreline.core.device import pick_device
from scoreline.core.errors import ArtefactError, InputError, ScorelineError, unknown_name
from scoreline.core.load import load
from scoreline.core.names import lookup
from scoreline.core.noise import derive
from scoreline.data.grid import write_png
from scoreline.evaluate.pairs import write_pairs
from scoreline.evaluate.processes import become_worker
from scoreline.evaluate.progress import progress
from scoreline.fewstep.class_shares import (
    ClassRouter,
    Shares,
    check_shares,
    clustered_shares,
    consecutive_shares,
    interleaved_shares,
    random_shares,
)
from scoreline.fewstep.distill import COSTS, _is_picture, _pair_plan, distill, steps_picture
from scoreline.fewstep.msd import Routed
from scoreline.fewstep.recipe import TEACHER, Recipe, Stage
from scoreline.fewstep.text_shares import TextRouter, text_router, text_shares
from scoreline.train.recipe import opened

__all__ = ["PARTITIONS", "account", "distill_shares", "join_students", "share_recipe", "shares_of"]

PARTITIONS = ("consecutive", "interleaved", "random", "clusters")


def shares_of(partition: Mapping[str, Any], num_classes: int | None, data: Mapping[str, Any] | None = None) -> Shares:
    """The shares that a recipe's `partition` stands for.

    Args:
        partition: {students:, by:, seed:} or {shares:}.
        num_classes: of the teacher.
        data: the recipe's images, of which clusters takes the mean of each class.

    Raises:
        InputError: a key, name or number is wrong, classes are left out, or the teacher has none.
    """
    if num_classes is None:
        raise InputError("partition", dict(partition), "the teacher has no classes to be shared out")
    for key in partition:
        if key not in ("students", "by", "seed", "shares"):
            raise unknown_name("key of partition", str(key), ("students", "by", "seed", "shares"))
    if "shares" in partition:
        shares = partition["shares"]
        if len(partition) > 1 or not isinstance(shares, list) or not all(isinstance(s, list) for s in shares):
            raise InputError("partition", dict(partition), "give shares as lists of classes, and nothing beside them")
        check_shares(shares, num_classes)
        return [list(share) for share in shares]
    students, by, seed = partition.get("students"), partition.get("by", "consecutive"), partition.get("seed", 0)
    if type(students) is not int or type(seed) is not int:
        raise InputError("partition", dict(partition), "give students: K, a whole number, and a whole seed")
    if by not in PARTITIONS:
        raise unknown_name("partition by", str(by), (*PARTITIONS, "quadrants"))
    if by in ("random", "clusters"):
        return random_shares(num_classes, students, seed) if by == "random" else _clusters(num_classes, partition, data)
    return (consecutive_shares if by == "consecutive" else interleaved_shares)(num_classes, students)


def share_recipe(recipe: Recipe, shares: Shares, number: int) -> Recipe:
    """The recipe of one student: real images and drawn labels of its share, pairs as they are, a seed of its own.

    Args:
        recipe: with a partition.
        shares: all shares.
        number: of the student, 0 to K-1.

    Raises:
        InputError: there is no such share, or a stage could not be kept to it.
    """
    if not 0 <= number < len(shares):
        raise InputError("share", number, f"the students are 0 to {len(shares) - 1}")
    classes, stages = list(shares[number]), []
    for stage in recipe.stages:
        given = copy.deepcopy(stage.given)
        settings, data = given.get("settings") or {}, given.get("data") or {}
        if "classes" in settings or "classes" in data:
            raise InputError(f"classes of stage {stage.name}", settings, "leave them out; the partition says which")
        takes = "classes" in inspect.signature(lookup("method", stage["method"])).parameters
        if takes:
            given["settings"] = {**settings, "classes": classes}
        if data:
            given["data"] = {**data, "classes": classes}
        if not takes and not data:
            mend = "draws no labels of its own and learns from pairs of all classes, so that no share could be kept to"
            raise InputError(f"method of stage {stage.name}", stage["method"], mend)
        if number:
            given["seed"] = derive(stage.seed, "share", number) % 2**31
        stages.append(Stage(stage.name, given))
    return Recipe(f"{recipe.name}, share {number}", stages, recipe.teacher, recipe.requires)


def distill_shares(
    recipe: Recipe,
    folder: Path,
    *,
    share: int | None = None,
    processes: int = 1,
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
    """Train the students of a partition and join them.

    Args:
        recipe: with a partition.
        folder: where the runs live.
        share: the one student to be trained here; None trains all that are not there.
        processes: how many students are trained at once, each by one thread; on CUDA they take the GPUs in turn. One
            trains them one after the other in this process.
        device, precision, accumulate, checkpoint_every, sample_every, skip_nonfinite, dry_run, command, quiet: see
            :func:`scoreline.fewstep.distill.distill`.

    Returns:
        As :func:`scoreline.fewstep.distill.distill`, with "missing", the students that are not there yet.

    Raises:
        InputError: the partition or the share is wrong, or a student's recipe does not fit.
        ArtefactError: the folder holds students of another teacher, share or recipe.
    """
    if processes < 1:
        raise InputError("processes", processes, "must be 1 or more")
    if recipe.teacher is None:
        raise InputError("partition", recipe.partition, "needs a teacher: give --teacher MODEL")
    teacher: Any = load(recipe.teacher)
    pictured = next((stage["data"] for stage in recipe.stages if stage.get("data")), None)
    partition = recipe.partition or {}
    router = text_router(teacher, partition) if partition.get("by") == "quadrants" else None
    shares = shares_of(partition, teacher.num_classes, pictured) if router is None else text_shares(router)
    wanted = range(len(shares)) if share is None else [share]
    recipes = {k: share_recipe(recipe, shares, k) for k in wanted}
    settings: dict[str, Any] = {
        "precision": precision, "accumulate": accumulate, "checkpoint_every": checkpoint_every,
        "sample_every": sample_every, "skip_nonfinite": skip_nonfinite, "command": command,
    }  # fmt: skip
    plans = [distill(one, folder, device=device, dry_run=True, **settings) for one in recipes.values()]
    # What is there already must be of this teacher and these shares.
    _present(folder, recipe, shares, teacher)
    if dry_run:
        return {**plans[0], "resolved": {**plans[0]["resolved"], "partition": {"shares": shares}}}
    _shared_pairs(recipe, recipes, folder, str(pick_device(device)), processes, quiet)
    results = []
    if min(processes, len(recipes)) == 1:
        for k, one in recipes.items():
            trained = distill(one, folder / f"share-{k}", device=device, quiet=quiet, **settings)
            results += [{**stage, "name": f"share {k}, {stage['name']}"} for stage in trained["stages"]]
    else:
        results = _in_parallel(recipes, folder, processes, device, settings, quiet)
    found = _present(folder, recipe, shares, teacher)
    missing = [k for k, path in enumerate(found) if path is None]
    if missing:
        model = str(folder / f"share-{share}" / "model.safetensors")
        return {"model": model, "folder": str(folder), "picture": None, "stages": results, "missing": missing}
    routed, cards = join_students([str(path) for path in found], shares, router)
    by = "shares" if "shares" in partition else partition.get("by", "consecutive")
    card = {
        **{key: value for key, value in cards[0].items() if key not in (*COSTS, "stages", "stage", "classes")},
        "command": command, "method": "msd", "base": cards[0]["method"], "seed": recipe.stages[-1].seed,
        "partition": {"students": len(shares), "by": by, "shares": shares}, **account(routed, cards),
    }  # fmt: skip
    save_artefact(folder / "model.safetensors", routed, card=card)
    picture = folder / "steps.png"
    if "sampling" in card and _is_picture(routed):
        write_png(picture, steps_picture(routed, card["sampling"], teacher))
    shown = str(picture) if picture.is_file() else None
    model = str(folder / "model.safetensors")
    return {"model": model, "folder": str(folder), "picture": shown, "stages": results, "missing": []}


def join_students(
    paths: Sequence[str], shares: Shares, router: TextRouter | None = None
) -> tuple[Routed, list[dict[str, Any]]]:
    """The students of all shares as one model, and their cards.

    Args:
        paths: an artefact for each share, in their order.
        shares: the partition.
        router: who answers whom; None goes by the classes of the shares.

    Raises:
        ArtefactError: they were made from different teachers, or one of another share.
        InputError: their number or form differs.
    """
    if len(paths) != len(shares):
        raise InputError("students", len(paths), f"the classes are shared out among {len(shares)}")
    models = [load(path) for path in paths]
    cards = [dict(model.header.get("card", {})) for model in models]
    for path, card, classes in zip(paths, cards, shares):
        _check_student(path, card, classes, (cards[0].get(TEACHER) or {}).get("fingerprint"))
    return Routed(models, ClassRouter(shares) if router is None else router).eval(), cards


def account(routed: Routed, cards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the students cost in all: training, pairs (made once), parameters stored, parameters that run for an image.

    Args:
        routed: the model.
        cards: of its students.

    Returns:
        {"training_seconds", "training_evaluations", "pair_evaluations", "stages", "students", "parameters",
        "parameters_per_image", "storage_bytes"}; the first three are sums over students, of all stages; seconds are
        those of machines, however many worked at once.
    """
    stages = [list(card.get("stages") or [{"stage": card.get("stage"), **card}]) for card in cards]
    rows = []
    for of_all in zip(*stages):
        row: dict[str, Any] = {"stage": of_all[0]["stage"]}
        for key in COSTS:
            values = [one.get(key) for one in of_all]
            if all(value is not None for value in values):
                row[key] = values[0] if key == "pair_evaluations" else round(sum(values), 3)
        rows.append(row)
    counts = [sum(p.numel() for p in student.parameters()) for student in routed.students]
    tensors = routed.state_dict().values()
    totals = {key: round(sum(row[key] for row in rows if key in row), 3) for key in COSTS}
    return {
        **{key: value for key, value in totals.items() if any(key in row for row in rows)},
        "stages": rows,
        "students": len(counts),
        "parameters": sum(counts),
        "parameters_per_image": max(counts),
        "storage_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }


def _clusters(num_classes: int, partition: Mapping[str, Any], data: Mapping[str, Any] | None) -> Shares:
    """Shares by the means of the classes' images."""
    if data is None:
        raise InputError("partition by", "clusters", "takes the means of the classes' images; the recipe has none")
    images = opened(data)
    if images.num_classes != num_classes or images.labels is None:
        raise InputError("data", images.name, f"has {images.num_classes} classes, the teacher {num_classes}")
    total, count = torch.zeros(num_classes, *images.shape, dtype=torch.float64), torch.zeros(num_classes)
    for batch in images.batches(256):
        known = batch.label >= 0
        total.index_add_(0, batch.label[known], batch.image[known].double())
        count += torch.bincount(batch.label[known], minlength=num_classes)
    if not bool(count.all()):
        raise InputError("data", images.name, f"holds no image of class {int((count == 0).nonzero()[0])}")
    means = total.flatten(1) / count[:, None].double()
    return clustered_shares(means, partition["students"], partition.get("seed", 0))


def _shared_pairs(
    recipe: Recipe, recipes: Mapping[int, Recipe], folder: Path, device: str, processes: int, quiet: bool
) -> None:
    """Make the pairs of the teacher once; every student's recipe then names their folder."""
    several = len(recipe.stages) > 1
    for number, stage in enumerate(recipe.stages):
        given = stage.get("pairs") or {}
        if not given or "folder" in given or given.get("from", TEACHER) != TEACHER:
            continue
        store = folder / (f"pairs-{stage.name}" if several else "pairs")
        plan = _pair_plan(stage, {TEACHER: str(recipe.teacher)}, device)
        header = {key: value for key, value in (plan or {}).items() if key != "from"}
        write_pairs(store, header, processes=processes, quiet=quiet)
        for one in recipes.values():
            one.stages[number].given["pairs"] = {"folder": str(store)}


def _present(folder: Path, recipe: Recipe, shares: Shares, teacher: Denoiser) -> list[Path | None]:
    """Where the finished student of each share lies; None where there is none, or one of fewer steps."""
    mark: Any = teacher.header["fingerprint"]  # type: ignore[index]
    found: list[Path | None] = []
    for number, classes in enumerate(shares):
        path = folder / f"share-{number}" / "model.safetensors"
        if not path.is_file():
            found.append(None)
            continue
        card = read_header(path)["card"]
        _check_student(str(path), card, classes, mark)
        found.append(path if card.get("steps", 0) >= int(recipe.stages[-1]["steps"]) else None)
    return found


def _check_student(path: str, card: Mapping[str, Any], classes: Sequence[int], mark: str | None) -> None:
    theirs = (card.get(TEACHER) or {}).get("fingerprint")
    if theirs is None or theirs != mark:
        raise ArtefactError("student", path, "was made from another teacher; students of one teacher can be joined")
    if card.get("classes") != list(classes):
        mend = f"was trained for the classes {card.get('classes')}, not for {list(classes)}; choose another folder"
        raise ArtefactError("student", path, mend)


def _in_parallel(
    recipes: Mapping[int, Recipe], folder: Path, processes: int, device: str, settings: dict[str, Any], quiet: bool
) -> list[dict[str, Any]]:
    places = [device]
    if pick_device(device).type == "cuda":
        places = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    # Forking a process that runs threads of torch may lock up.
    pool = ProcessPoolExecutor(min(processes, len(recipes)), mp_context=get_context("spawn"), initializer=become_worker)
    made: dict[int, dict[str, Any]] = {}
    try:
        with progress("students", len(recipes), quiet=quiet) as advance:
            jobs = {
                pool.submit(_train, one, folder / f"share-{k}", places[i % len(places)], settings): k
                for i, (k, one) in enumerate(recipes.items())
            }
            for job in as_completed(jobs):
                made[jobs[job]] = job.result()
                advance(1, f"share {jobs[job]}")
    except BrokenProcessPool:
        mend = "a process died; out of memory? try fewer; the same command goes on"
        raise ScorelineError("processes", processes, mend) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [
        {**stage, "name": f"share {k}, {stage['name']}"} for k in sorted(made) for stage in made[k]["stages"]
    ]  # fmt: skip


def _train(recipe: Recipe, folder: Path, device: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One student, in a worker."""
    return distill(recipe, folder, device=device, quiet=True, **settings)
