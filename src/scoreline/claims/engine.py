"""How a claim of a paper is measured again: the same few rules for all of them.

A claim names its arms and seeds, measures one (arm, seed) at a time, and turns the numbers into a verdict by a rule
that is committed before any result; a result stores fingerprints of that rule and of the system's source. Every
(arm, seed) is on disk when it ends, so that a killed run goes on where it was. The smoke scale only shows that the code
runs: it stores nothing.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, TypeVar

import scoreline
from scoreline.core.cost import machine
from scoreline.core.errors import ArtefactError, InputError, NonFiniteError, unknown_name
from scoreline.core.files import read_json, write_json
from scoreline.core.systems import source_hash, sources, system
from scoreline.evaluate.ledger import Ledger
from scoreline.evaluate.progress import progress

__all__ = ["BUDGET", "LEAST_SEEDS", "RESULTS", "SCALES", "VERDICTS", "Claim", "Memo", "Numbers", "Part"]
__all__ += ["measure", "settle", "summary"]

SCALES = ("laptop", "smoke", "gpu")
VERDICTS = ("holds", "in part", "not seen", "refuted")
LEAST_SEEDS = 3

# Every run states what training it rests on, in images times network evaluations: forward 1, backward 2.
BUDGET = "training_evaluations"

RESULTS = Path(__file__).with_name("results")

Numbers = Mapping[str, Mapping[str, Sequence[float | None]]]
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One sentence of what a paper promises, judged.

    Args:
        says: the sentence.
        holds: whether the numbers agree with it; None where this setting cannot tell.
        seen: the numbers, in words.
    """

    says: str
    holds: bool | None
    seen: str

    def __str__(self) -> str:
        word = {True: "yes", False: "no", None: "cannot tell"}[self.holds]
        return f"{word}: {self.says} ({self.seen})"


def settle(parts: Sequence[Part]) -> str:
    """The verdict on all parts: "holds" if all do, "in part" if some do, "refuted" if none does, "not seen" if none can
    be told.

    >>> settle([Part("a", True, ""), Part("b", None, "")])
    'in part'
    """
    judged = [part.holds for part in parts if part.holds is not None]
    if not judged:
        return "not seen"
    if not any(judged):
        return "refuted"
    return "holds" if all(part.holds for part in parts) else "in part"


class Memo:
    """What the arms of one seed share (trained networks), made at its first use.

    >>> memo = Memo()
    >>> memo("net", lambda: 1), memo("net", lambda: 2)
    (1, 1)
    """

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __call__(self, name: str, make: Callable[[], T]) -> T:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


class Claim:
    """What a paper promises, and how it is measured again. A claim's module holds one instance, `CLAIM`.

    Attributes:
        system: number of the system, "01" to "48".
        statement: the promise, in a sentence.
        arms: names of what is compared.
        seeds: those of a full run, at least three.
        seconds: what one seed takes at each scale, on two quiet cores (scale "gpu": on one GPU).
        shrunk: what the laptop scale made smaller than the paper, or than the plan of the small claim.
    """

    system: str
    statement: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    seconds: Mapping[str, float]
    shrunk: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Number of the claim, that of its system."""
        return self.system

    @property
    def paper(self) -> str:
        """The paper that promises it."""
        return system(self.system).paper

    def weight(self, arm: str, scale: str) -> float:
        """Share of an arm in the work of a seed, in any unit; only for the time left that is shown."""
        return 1.0

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        """Measure one arm with one seed.

        Args:
            arm: one of `arms`.
            seed: decides everything that is random.
            scale: one of `SCALES`.
            memo: what was made for other arms of this seed.

        Returns:
            numbers by name, `training_evaluations` among them; None for what cannot be measured at this scale.
        """
        raise NotImplementedError(f"{type(self).__name__} measures nothing")

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        """The verdict, one of `VERDICTS`, and its parts.

        Args:
            numbers: arm -> name -> one value a seed, the seeds in the same order everywhere.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rule")

    def findings(self, numbers: Numbers) -> list[str]:
        """What else was seen, in sentences that the verdict does not rest on."""
        return []


def summary(numbers: Numbers) -> dict[str, dict[str, dict[str, float]]]:
    """arm -> name -> mean, standard deviation (ddof 1), median, least and largest value over seeds."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for arm, columns in numbers.items():
        out[arm] = {}
        for name, values in columns.items():
            known = [value for value in values if value is not None]
            if known:
                spread = stdev(known) if len(known) > 1 else 0.0
                out[arm][name] = {
                    "mean": mean(known), "std": spread, "median": median(known), "min": min(known), "max": max(known)
                }  # fmt: skip
    return out


def measure(
    claim: Claim,
    *,
    scale: str = "laptop",
    seeds: Sequence[int] | None = None,
    out: str | os.PathLike[str] = "claims",
    store: bool = False,
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure a claim and judge it.

    Args:
        claim: what is measured.
        scale: "laptop", "gpu", or "smoke", which takes seconds and stores nothing.
        seeds: nothing takes the claim's own, or one at the smoke scale.
        out: folder of the result, `<id>.json`, and of the ledger from which a stopped run goes on.
        store: also put the result among those of the package (maintainers).
        command: what was typed, for the record.
        quiet: say nothing on the way.

    Returns:
        the result; "stored" lists the files written.

    Raises:
        InputError: an unknown scale, fewer than three seeds for a result that is stored.
        ArtefactError: the folder holds runs of another rule, source or machine.
        NonFiniteError: a number is not finite.
    """
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    if scale not in claim.seconds:
        mend = f"claim {claim.id} cannot be measured at it; known: {', '.join(claim.seconds)}"
        raise InputError("scale", scale, mend)
    smoke = scale == "smoke"
    chosen = list(dict.fromkeys(seeds if seeds is not None else claim.seeds[:1] if smoke else claim.seeds))
    if not smoke and len(chosen) < LEAST_SEEDS:
        raise InputError("seeds", chosen, f"a result needs at least {LEAST_SEEDS}; --scale smoke stores nothing")
    if store and smoke:
        raise InputError("store", True, "a smoke test is no measurement; use --scale laptop or gpu")
    row, module = system(claim.system), type(claim).__module__
    origin = {"rule_hash": source_hash([module]), "source_hash": source_hash([row.module, *row.parts])}
    commit = committed(sources(module)[0])
    if store and commit is None:
        raise InputError("store", True, f"{module} is not committed; a rule is committed before its result")

    here = machine()
    ledger = None
    if not smoke:
        job = {"claim": claim.id, "scale": scale, "machine": here, **origin}
        ledger = Ledger(Path(out) / f"{claim.id}-{scale}" / "runs.jsonl", job)
    # A run that was stopped began when its ledger did.
    began = ledger.path.with_suffix(".job.json").stat().st_mtime if ledger is not None else time.time()
    runs = _runs(claim, scale, chosen, ledger, quiet=quiet)

    names = list(dict.fromkeys(name for run in runs.values() for name in run))
    numbers = {
        arm: {name: [runs[arm, seed].get(name) for seed in chosen] for name in names if name in runs[arm, chosen[0]]}
        for arm in claim.arms
    }
    verdict, parts = claim.verdict(numbers)
    if verdict not in VERDICTS:
        raise unknown_name("verdict", verdict, VERDICTS)
    result: dict[str, Any] = {
        "id": claim.id,
        "name": row.name,
        "paper": claim.paper,
        "statement": claim.statement,
        "scale": scale,
        "verdict": verdict,
        "parts": [{"says": part.says, "holds": part.holds, "seen": part.seen} for part in parts],
        "reasons": [str(part) for part in parts],
        "findings": claim.findings(numbers),
        "shrunk": list(claim.shrunk) if scale == "laptop" else [],
        "arms": list(claim.arms),
        "seeds": chosen,
        "summary": summary(numbers),
        "runs": [{"arm": arm, "seed": seed, **run} for (arm, seed), run in runs.items()],
        **origin,
        "commit": commit,
        "machine": here,
        "versions": versions(),
        "command": command,
        "started": _utc(began),
        "finished": _utc(time.time()),
    }
    files = [] if smoke else [Path(out) / f"{claim.id}.json"]
    files += [RESULTS / f"{claim.id}.json"] if store else []
    for file in files:
        write_json(file, result)
    return {**result, "stored": [str(file) for file in files]}


def _runs(
    claim: Claim, scale: str, seeds: Sequence[int], ledger: Ledger | None, *, quiet: bool
) -> dict[tuple[str, int], dict[str, Any]]:
    """The numbers of every (arm, seed); those in the ledger are not measured again."""
    done = {(arm, seed) for seed in seeds for arm in claim.arms if ledger is not None and f"{seed}/{arm}" in ledger}
    weights = {arm: claim.weight(arm, scale) for arm in claim.arms}
    total = sum(weights.values())
    left = [(arm, seed) for seed in seeds for arm in claim.arms if (arm, seed) not in done]
    if not quiet:
        seconds = claim.seconds[scale] * sum(weights[arm] for arm, _ in left) / total
        known = f", {len(done)} known already" if done else ""
        text = f"claim {claim.id}, {scale}: {len(claim.arms)} arms, {len(seeds)} seeds{known}; about {_spoken(seconds)}"
        print(text, file=sys.stderr)
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    with progress(f"claim {claim.id}", math.ceil(sum(weights[arm] for arm, _ in left)), quiet=quiet) as advance:
        whole = fraction = 0.0
        for seed in seeds:
            memo = Memo()
            for arm in claim.arms:
                key = f"{seed}/{arm}"
                if ledger is not None and key in ledger:
                    runs[arm, seed] = {k: v for k, v in ledger[key].items() if k != "key"}
                    continue
                run = claim.run(arm, seed, scale, memo)
                _check(run, key)
                runs[arm, seed] = ledger.add(key, **run) if ledger is not None else run
                runs[arm, seed] = {k: v for k, v in runs[arm, seed].items() if k != "key"}
                fraction += weights[arm]
                advance(int(fraction - whole), f"seed {seed}, {arm}")
                whole += int(fraction - whole)
    return runs


def _check(run: Mapping[str, Any], key: str) -> None:
    if BUDGET not in run:
        raise InputError("run", key, f"states no {BUDGET}, so that arms cannot be compared at equal budgets")
    bad = [name for name, value in run.items() if value is not None and not math.isfinite(value)]
    if bad:
        raise NonFiniteError("run", key, f"{', '.join(bad)} not finite")


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def committed(file: Path) -> str | None:
    """The commit that holds a file as it stands, or None: changed since, not under version control, no git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package may be installed below another project's repository, whose commit would say nothing about it.
    if git("ls-files", "--error-unmatch", file.name) is None or git("status", "--porcelain", "--", file.name) != "":
        return None
    return git("rev-parse", "HEAD")


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    found = {"scoreline": scoreline.__version__}
    for name in ("torch", "numpy", "scipy", "scikit-learn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def stored_result(id: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """The stored result of a claim, or None.

    Raises:
        ArtefactError: the file is broken.
    """
    file = folder / f"{id}.json"
    if not file.exists():
        return None
    result = read_json(file)
    if not isinstance(result, dict) or result.get("id") != id:
        raise ArtefactError(str(file), None, f"is no result of claim {id}")
    return result
