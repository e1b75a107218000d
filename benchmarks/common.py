"""What the benchmarks share: runs timed in turn in one process, ratios pair by pair, a table, a JSON file.

On a shared machine seconds drift, so the sides alternate (A B, B A, A B, ...) and a ratio is the median of the ratios
inside the rounds, whose two runs are neighbours in time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from scoreline.core.cost import machine

__all__ = ["Race", "finish", "load", "options", "parser", "peer_module", "race", "table"]


@dataclass(frozen=True)
class Race:
    """Seconds of every side, one a round.

    Attributes:
        seconds: by name, in the order of the rounds.
        values: what each side returned in the last round.
    """

    seconds: dict[str, list[float]]
    values: dict[str, Any]

    def median(self, name: str) -> float:
        """The middle round's seconds."""
        return median(self.seconds[name])

    def best(self, name: str) -> float:
        """The fastest round's seconds."""
        return min(self.seconds[name])

    def ratio(self, name: str, ours: str) -> float:
        """How many times longer `name` took than `ours`: the median over rounds."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[ours], strict=True))

    def summary(self, ours: str) -> dict[str, dict[str, float]]:
        """Median, minimum and ratio to `ours` of every side."""
        return {
            name: {"median": self.median(name), "min": self.best(name), "ratio": self.ratio(name, ours)}
            for name in self.seconds
        }


def race(
    runs: Mapping[str, Callable[..., Any]],
    rounds: int,
    *,
    prepare: Mapping[str, Callable[[], Any]] | None = None,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Time every run once a round, in alternating order.

    Args:
        runs: the sides by name.
        rounds: timed rounds, at least 1.
        prepare: for some sides, what makes the argument of the run; not timed.
        warmup: untimed rounds before.
        clock: the clock, in seconds.
    """
    prepare = prepare or {}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    values: dict[str, Any] = {}
    for i in range(-warmup, rounds):
        for name in list(runs) if i % 2 == 0 else list(reversed(list(runs))):
            given = (prepare[name](),) if name in prepare else ()
            start = clock()
            values[name] = runs[name](*given)
            spent = clock() - start
            if i >= 0:
                seconds[name].append(spent)
    return Race(seconds, values)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns: the first to the left, the others to the right; floats with three significant digits."""
    cells = [list(header)] + [[_shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def _shown(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:#.3g}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; figures with three digits."""

    def cell(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        if value != 0 and abs(value) < 1e-4:
            return f"{value:.1e}"
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")

    return "\n".join("| " + " | ".join(cell(c) for c in line) + " |" for line in [head, ["---"] * len(head), *rows])


def placed(page: str, tag: str, texts: Mapping[str, str]) -> str:
    """The page with each text under its line `% tag: name`, in place of the lines that follow it up to an empty one.

    Raises:
        ValueError: a place without a text, or a text without a place.
    """
    names = re.findall(rf"^% {tag}: (\S+)$", page, re.M)
    if sorted(names) != sorted(texts):
        raise ValueError(f"the page has places for {sorted(names)}, the record tables for {sorted(texts)}")
    for name, text in texts.items():
        place = re.compile(rf"(^% {tag}: {re.escape(name)}\n)(?:.+\n)*", re.M)
        page = place.sub(lambda found, text=text: f"{found[1]}{text}\n", page)
    return page


def save(file: Path, text: str) -> None:
    """Write whole or not at all."""
    partial = file.with_name(file.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def load() -> float | None:
    """The machine's load average over the last minute, None where it is not told."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have: --rounds, --threads, --quick, --json FILE."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=_positive, default=None, help=f"timed rounds (default {rounds}, quick 3)")
    made.add_argument("--threads", type=_positive, default=None, help="threads of torch (default: torch's own)")
    made.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    made.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write every figure to FILE")
    made.set_defaults(full_rounds=rounds)
    return made


def options(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, settle the number of rounds, set torch's threads."""
    import torch

    chosen = made.parse_args(argv)
    chosen.rounds = chosen.rounds or (3 if chosen.quick else chosen.full_rounds)
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    return chosen


def finish(name: str, chosen: argparse.Namespace, result: Mapping[str, Any], before: float | None) -> dict[str, Any]:
    """Print the machine and its load, write the JSON file whole or not at all, hand back all that was measured."""
    record = {"benchmark": name, "quick": chosen.quick, "rounds": chosen.rounds, "machine": machine()}
    record |= {"load_before": before, "load_after": load(), **result}
    facts = record["machine"]
    print(f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}, load {before} to {load()}")
    if chosen.json is not None:
        save(chosen.json, json.dumps(record, indent=1) + "\n")
    return record


def peer_module(name: str) -> Any:
    """A library that is only measured against, quiet; or one line that says how to get it."""
    import importlib

    try:
        module = importlib.import_module(name)
    except ImportError:
        raise SystemExit(f"{name} is not installed: pip install 'scoreline[bench]'") from None
    return module


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value
