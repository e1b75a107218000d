"""A recipe of two stages, killed with SIGKILL again and again; prints what came out of it as JSON.

One process imports torch; every attempt is a fork of it, so that a kill costs no start.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from small_methods import Dropped, Regression, Student, points

from scoreline.train import fit, run

SETTINGS = {"batch_size": 20, "steps": 120, "checkpoint_every": 7, "log_every": 10, "ema": (0.9, 0.99), "quiet": True}


def recipe(root: Path) -> None:
    teacher = run(Dropped(), points(), root / "teacher", device="cpu", **SETTINGS).result()
    run(Student(teacher), points(seed=8), root / "student", device="cpu", seed=1, **SETTINGS)


def attempt(root: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            recipe(root)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return child


def reached(root: Path) -> tuple[str, int]:
    """(the last stage that has a record, the step of its newest checkpoint)."""
    stage = "student" if (root / "student" / "run.json").exists() else "teacher"
    steps = [int(path.stem) for path in (root / stage / "checkpoints").glob("[0-9]*.safetensors")]
    return stage, max(steps, default=-1)


def further(stood: tuple[str, int], moment: tuple[str, int]) -> bool:
    return (stood[0] == "student", stood[1]) >= (moment[0] == "student", moment[1])


def outcome(root: Path) -> dict:
    out = {}
    for stage in ("teacher", "student"):
        rows = (root / stage / "log.csv").read_text().splitlines()
        out[stage] = {
            "files": sorted(path.name for path in (root / stage / "checkpoints").iterdir()),
            "log": [row.split(",")[:-2] for row in rows],
        }
    return out


def main(root: Path) -> None:
    torch.set_num_threads(1)
    fit(Regression(), points(), steps=1, batch_size=2)
    began = time.monotonic()
    _, status = os.waitpid(attempt(root / "straight"), 0)
    assert status == 0
    whole = time.monotonic() - began
    chance, stood = random.Random(0), []
    # Now at a random moment, now just when a stage has come so far; twice right at the boundary of the stages.
    last = SETTINGS["steps"]
    moments = [None, ("teacher", 0), None, ("teacher", 35), ("teacher", last), ("student", -1)]
    moments += [("student", 0), None, ("student", 70), ("student", last)]
    for moment in moments:
        child = attempt(root / "killed")
        limit = time.monotonic() + (chance.uniform(0.05, 0.2) if moment is None else 10) * whole
        while time.monotonic() < limit and not (moment and further(reached(root / "killed"), moment)):
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            stood.append(reached(root / "killed"))
    _, status = os.waitpid(attempt(root / "killed"), 0)
    equal = {}
    for stage in ("teacher", "student"):
        last = f"{stage}/checkpoints/{SETTINGS['steps']:09d}.safetensors"
        a, b = load_file(root / "straight" / last), load_file(root / "killed" / last)
        equal[stage] = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    print(
        json.dumps(
            {
                "status": status,
                "stood": stood,
                "equal": equal,
                "straight": outcome(root / "straight"),
                "killed": outcome(root / "killed"),
                "leftovers": [str(path) for path in root.rglob(".*")],
                "accelerate": "accelerate" in sys.modules,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
