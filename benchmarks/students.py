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


def rows(record: Mapping[str, Any]) -> list[list[object]]:
    """The table, the best at one step first."""
    exact = [entry for key, entry in record["arms"].items() if "|converged" in key]
    base = {str(e.get("classes")): summary(e)["fd-digits"] for e in exact}
    over = {id(e): summary(e)["fd-digits"] / base[str(e.get("classes"))] for e in record["arms"].values()}
    order = sorted(record["arms"].values(), key=lambda e: (e not in exact, e["steps"], over[id(e)]))
    return [
        [
            title(e), e["steps"], spread(e, "fd-digits"), f"{over[id(e)]:.2f}",
            spread(e, "fd-pixels"), f"{summary(e)['precision']:.2f}", f"{summary(e)['recall']:.2f}",
            f"{e['parameters'] / 1e3:.0f}k", *cost(e["card"]),
        ]
        for e in order
    ]  # fmt: skip


def title(entry: Mapping[str, Any]) -> str:
    """The method, its preset where it is another than digits, how long each training was, and the classes if some."""
    told, parts = entry["card"], [entry["name"]]
    if "training_seconds" in told:
        preset = re.search(r"--preset (\S+)", told["command"])
        parts += [preset[1]] if preset else []
        parts += [f"{told['steps']} turns"]
    if entry.get("classes"):
        parts += ["classes " + " ".join(map(str, entry["classes"]))]
    return ", ".join(parts)


def cost(told: Mapping[str, Any]) -> tuple[str, str, str]:
    """Evaluations and minutes of all stages of a student, and what it learned from; dashes for what is no student."""
    if "method" not in told or "training_seconds" not in told:
        return "", "", ""
    stages = told.get("stages") or [told]
    spent = sum((s.get("training_evaluations") or 0) + (s.get("pair_evaluations") or 0) for s in stages)
    seconds = sum(s.get("training_seconds") or 0 for s in stages)
    return f"{spent / 1e6:.1f}M", f"{seconds / 60:.1f}", ", ".join(told.get("learns_from", ()))


HEAD = ["method", "steps", "fid@digits", "/ teacher's ODE", "fd-pixel", "precision", "recall", "parameters"]
HEAD += ["evaluations in training", "minutes", "learns from"]


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
    lines = rows(record)
    print(table(HEAD, lines))
    if chosen.page is not None:
        floor = ", ".join(f"{name} {value:.3g}" for name, value in record["floor"].items())
        texts = {"table": markdown(HEAD, lines), "floor": f"Floor (10,000 draws from the training split): {floor}."}
        save(chosen.page, placed(chosen.page.read_text(encoding="utf-8"), "students", texts))


if __name__ == "__main__":
    main()
