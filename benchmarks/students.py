"""Few-step students of the digits under the fixed protocol: the table of the page "Which distillation should I use".

Every student makes 10,000 images a seed at every number of steps that it was made for; fid@digits, the Frechet distance
of the pixels, precision and recall stand beside those of its teacher's converged ODE (`--teacher`), of the teacher at
the same number of evaluations, and of the floor, 10,000 draws from the training split. A student that has forgotten
classes is asked for the others, and compared with true images and the teacher's converged ODE of these. Each (student,
steps, seed) is kept as it ends, so that a stopped run goes on.

    python benchmarks/students.py runs/*/model.safetensors [--steps 1,2,4] [--quick] [--json FILE]
    python benchmarks/students.py --page docs/which-distillation.md --json benchmarks/results/students.json
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import markdown, placed, save, table
from scoreline.core.cond import Cond
from scoreline.core.cost import machine
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.core.systems import system
from scoreline.data import load_images
from scoreline.evaluate.compare import converged_sampler, model_macs
from scoreline.evaluate.protocols import FID_DIGITS_COUNT, FrechetProtocol, digits_net, digits_protocols, features_of
from scoreline.evaluate.specs import labels_for, make_sampler
from scoreline.fewstep.class_shares import of_classes
from scoreline.metrics.prdc import prdc

SEEDS = (0, 1, 2)
# What the teacher's samplers are at few evaluations; the best of them stands beside the students.
TEACHERS = ("ddim", "dpm-solver++2m", "deis")
REAL = 500
KEPT = ("command", "method", "steps", "stages", "training_seconds", "training_evaluations", "pair_evaluations")
KEPT += ("learns_from",)


@torch.no_grad()
def images(model: Any, sampler: Sampler, seed: int, count: int, classes: Sequence[int]) -> Iterator[Tensor]:
    """`count` images of a seed, the classes in turn, in batches."""
    for start in range(0, count, 500):
        indices = range(start, min(start + 500, count))
        draws = Noise(seed).at(indices, model.shape)
        cond = labels_for(indices, model.num_classes)
        if classes:
            cond = Cond(labels=torch.tensor(classes)[np.asarray(indices) % len(classes)])
        sample = sampler(model.given(cond), draws)
        yield model.decode(sample.x.float()).clamp(-1, 1)


def measured(model: Any, sampler: Sampler, seed: int, count: int, classes: Sequence[int] = ()) -> dict[str, float]:
    """fid@digits and its kin of one set; of some classes only, against true images of these."""
    x = torch.cat(list(images(model, sampler, seed, count, classes)))
    real, protocols = load_images("digits", split="test"), digits_protocols()
    if classes:
        real = of_classes(real, classes)
        protocols = {name: FrechetProtocol(p.encoder, real, split="test") for name, p in protocols.items()}
    found = {f"fd-{name}": p.distance(features_of(p.encoder, x)) for name, p in protocols.items()}
    net, few = digits_net(), min(REAL, len(real))
    shares = prdc(features_of(net, real.batch(range(few)).image), features_of(net, x[:few]))
    return found | {"precision": shares.precision, "recall": shares.recall}


def card(model: Any) -> dict[str, Any]:
    return dict(model.header.get("card", {}))


def kept(model: Any) -> tuple[int, ...]:
    """The classes of a student that has forgotten some; nothing stands for all."""
    gone = card(model).get("forgotten", {}).get("classes", ())
    return tuple(y for y in range(model.num_classes) if y not in gone) if gone else ()


Arm = tuple[str, str, Any, Sampler, int, tuple[int, ...]]


def arms(paths: Sequence[str], teacher_name: str, steps: Sequence[int]) -> Iterator[Arm]:
    """(key, name, model, sampler, evaluations, classes or none), the teacher first."""
    teacher = load(teacher_name)
    exact = f"{teacher_name}, converged ODE"
    yield f"{teacher_name}|converged", exact, teacher, converged_sampler(teacher), 64, ()
    for spec in TEACHERS:
        for n in steps:
            try:
                sampler = make_sampler(spec, steps=n)
            except ValueError:
                continue
            yield f"{teacher_name}|{spec}|{n}", f"{teacher_name}, {spec}", teacher, sampler, n, ()
    for path in paths:
        model = load(path)
        said, classes = card(model)["sampling"], kept(model)
        if classes:
            key = f"{teacher_name}|converged|{','.join(map(str, classes))}"
            yield key, exact, teacher, converged_sampler(teacher), 64, classes
        for n in said.get("steps") or steps:
            key = f"{model.header['fingerprint'][:16]}|{n}"
            name = str(card(model).get("method", Path(path).stem))
            yield key, name, model, make_sampler(said["sampler"], steps=n), n, classes


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure what is not in the record yet."""
    count = 500 if chosen.quick else FID_DIGITS_COUNT
    record: dict[str, Any] = {"count": count, "machine": machine(), "arms": {}}
    if chosen.json is not None and chosen.json.is_file():
        known = json.loads(chosen.json.read_text(encoding="utf-8"))
        record["arms"] = known["arms"] if known.get("count") == count else {}
    train = load_images("digits", split="train")
    record["floor"] = {f"fd-{name}": p.floor(train, count) for name, p in digits_protocols().items()}
    for key, name, model, sampler, n, classes in arms(chosen.students, chosen.teacher, chosen.steps):
        entry = record["arms"].setdefault(
            key, {"name": name, "steps": n, "parameters": 0, "macs": 0, "card": {}, "seeds": {}}
        )
        entry |= {"name": name, "parameters": sum(p.numel() for p in model.parameters()), "macs": model_macs(model)}
        entry |= {"classes": list(classes)} if classes else {}
        entry["card"] = {k: v for k, v in card(model).items() if k in KEPT}
        entry["card"]["command"] = re.sub(r" --out \S+", "", str(entry["card"].get("command", "")))
        for seed in SEEDS[:1] if chosen.quick else SEEDS:
            if str(seed) not in entry["seeds"]:
                entry["seeds"][str(seed)] = measured(model, sampler, seed, count, classes)
                if chosen.json is not None:
                    save(chosen.json, json.dumps(record, indent=1) + "\n")
        print(f"{name} at {n}: {summary(entry)}", flush=True)
    if chosen.json is not None:
        save(chosen.json, json.dumps(record, indent=1) + "\n")
    return record


def summary(entry: Mapping[str, Any]) -> dict[str, float]:
    """Means over seeds."""
    rows = list(entry["seeds"].values())
    return {name: round(mean(row[name] for row in rows), 4) for name in rows[0]}


def spread(entry: Mapping[str, Any], name: str) -> str:
    """mean (least to largest) over seeds."""
    values = [row[name] for row in entry["seeds"].values()]
    return f"{mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def over(record: Mapping[str, Any]) -> dict[str, float]:
    """fid@digits of every arm over that of the teacher's converged ODE, on the same classes."""
    arms = record["arms"]
    base = {str(e.get("classes")): summary(e)["fd-digits"] for key, e in arms.items() if "|converged" in key}
    return {key: summary(e)["fd-digits"] / base[str(e.get("classes"))] for key, e in arms.items()}


def overview(record: Mapping[str, Any]) -> list[list[object]]:
    """A row for each training, the best at its fewest steps first, the teacher last: quality at 1, 2, 4 steps, cost."""
    ratio, found, lines = over(record), dict[str, dict[int, str]](), []
    for key, e in record["arms"].items():
        found.setdefault(title(e), {})[e["steps"]] = key

    def order(item: tuple[str, dict[int, str]]) -> tuple[bool, int, float]:
        name, at = item
        return not name.startswith("`"), min(at), ratio[at[min(at)]]

    for name, at in sorted(found.items(), key=order):
        if 64 in at:  # the teacher's converged ODE, the measure of all others
            continue
        cells = []
        for n in COLUMNS:
            e = record["arms"].get(at.get(n, ""))
            cells.append("" if e is None else f"{summary(e)['fd-digits']:.3g} ({ratio[at[n]]:.2f})")
        entry = record["arms"][at[min(at)]]
        lines.append([name, paper(entry), *cells, f"{entry['parameters'] / 1e3:.0f}k", *cost(entry["card"])])
    return lines


def details(record: Mapping[str, Any]) -> list[list[object]]:
    """A row for each number of steps, with the spread over seeds and the scores beside the fixed one."""
    ratio = over(record)
    order = sorted(record["arms"].items(), key=lambda item: (item[1]["steps"] % 64, ratio[item[0]]))
    return [
        [
            title(e), e["steps"], spread(e, "fd-digits"), f"{ratio[key]:.2f}", spread(e, "fd-pixels"),
            f"{summary(e)['precision']:.2f}", f"{summary(e)['recall']:.2f}",
        ]
        for key, e in order
    ]  # fmt: skip


def trained_as(entry: Mapping[str, Any]) -> str:
    """The name that the command of a student's training gives."""
    found = re.match(r"scoreline (?:distill|train|forget) (\S+)", entry["card"].get("command", ""))
    return found[1].split("-digits")[0] if found else ""


def title(entry: Mapping[str, Any]) -> str:
    """The command of a student's training, its stage where that is not the last, and the classes if only some."""
    told, parts = entry["card"], [str(entry["name"])]
    if "training_seconds" in told:
        parts = [f"`{told['command'].removeprefix('scoreline ')}`"]
    if entry["name"] in STAGES:
        parts.append(f"its stage {entry['name']}")
    if entry.get("classes"):
        parts.append("classes " + " ".join(map(str, entry["classes"])))
    return ", ".join(parts)


def paper(entry: Mapping[str, Any]) -> str:
    """The system that a student's method belongs to, as a link to its page."""
    number = SYSTEM_OF.get(trained_as(entry), "") if "training_seconds" in entry["card"] else ""
    name = f"{number}-{system(number).slug}" if number else ""
    return f"[{number}](systems/{name}.md)" if number else ""


def cost(told: Mapping[str, Any]) -> tuple[str, str, str]:
    """Evaluations and minutes of all stages of a student, and what it learned from; nothing of what is no student."""
    if "method" not in told or "training_seconds" not in told:
        return "", "", ""
    stages = told.get("stages") or [told]
    spent = sum((s.get("training_evaluations") or 0) + (s.get("pair_evaluations") or 0) for s in stages)
    seconds = sum(s.get("training_seconds") or 0 for s in stages)
    return f"{spent / 1e6:.1f}M", f"{seconds / 60:.1f}", ", ".join(told.get("learns_from") or ["images"])


COLUMNS = (1, 2, 4)
OVERVIEW = ["trained by scoreline", "system", *(f"{n} step{'s' * (n > 1)}" for n in COLUMNS), "parameters"]
OVERVIEW += ["evaluations in training", "minutes", "learns from"]
DETAILS = ["trained by scoreline", "steps", "fid@digits", "/ teacher's ODE", "fd-pixel", "precision", "recall"]
STAGES = ("rectified-flow",)
SYSTEM_OF = {
    "cd": "14", "ict": "14", "ctm": "34", "scott": "10", "instaflow": "13", "rfpp": "19", "slimflow": "31",
    "dmd2": "32", "dmd": "32", "diff-instruct": "32", "sim": "20", "sid": "20", "f-distill": "21", "msd": "30",
    "guided-distillation": "17", "progressive": "17", "digits": "36", "sfd": "36",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("students", nargs="*", help="artefacts of students")
    made.add_argument("--teacher", default="digits")
    made.add_argument("--steps", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4])
    made.add_argument("--quick", action="store_true", help="500 images, one seed: shows that it runs")
    made.add_argument("--json", type=Path, default=None, metavar="FILE")
    made.add_argument("--page", type=Path, default=None, metavar="FILE", help="write the record's table into the page")
    chosen = made.parse_args(argv)
    record = run(chosen) if chosen.page is None else json.loads(chosen.json.read_text(encoding="utf-8"))
    print(table(OVERVIEW, overview(record)))
    if chosen.page is not None:
        floor = ", ".join(f"{name} {value:.3g}" for name, value in record["floor"].items())
        texts = {
            "table": markdown(OVERVIEW, overview(record)),
            "details": markdown(DETAILS, details(record)),
            "floor": f"Floor (10,000 draws from the training split): {floor}.",
        }
        save(chosen.page, placed(chosen.page.read_text(encoding="utf-8"), "students", texts))


if __name__ == "__main__":
    main()
