"""Evaluations a second of a search: in this process, and in pools of one and more workers.

One evaluation is 250 images of `digits-eps` by DDIM at 10 steps, scored in the features of the digits classifier; the
candidates are those of a random search over time steps. The pool is started and every worker has opened its model
before the clock runs (an untimed first generation), because a search takes minutes and a start seconds. Values are
compared as well: all sides must find the same.

    python benchmarks/bench_search.py [--workers 1,2] [--evaluations 40] [--rounds 3] [--quick] [--json FILE]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from common import finish, load, options, parser, table
from scoreline.core.load import load as load_model
from scoreline.search.autodiffusion import RandomSearch
from scoreline.search.candidates import Space
from scoreline.search.engine import search
from scoreline.search.objective import Objective
from scoreline.search.steps import planned_of

STEPS = 10


class Timed:
    """A searcher whose first generation warms the workers up; the clock runs from the second on."""

    def __init__(self, warm: int, evaluations: int) -> None:
        space = Space.of_steps(1000, STEPS)
        self.inner = RandomSearch(space, evaluations=warm + evaluations, seed=0, batch=evaluations)
        self.warm, self.began, self.seconds, self.values = warm, 0.0, 0.0, []  # type: ignore[var-annotated]

    def ask(self) -> list[dict[str, Any]]:
        if not self.began:
            self.inner.batch, batch = self.warm, self.inner.batch
            asked = self.inner.ask()
            self.inner.batch = batch
            self.began = -1.0
            return asked
        self.began = time.perf_counter()
        return self.inner.ask()

    def tell(self, genotypes: list[dict[str, Any]], results: list[dict[str, float]]) -> None:
        if self.began > 0:
            self.seconds = time.perf_counter() - self.began
            self.values = [result["value"] for result in results]
        self.inner.tell(genotypes, results)


def timed(workers: int, count: int, evaluations: int, warm: int) -> tuple[float, list[float]]:
    """(evaluations a second, their values) with so many workers."""
    objective = Objective("digits-eps", planned_of(load_model("digits-eps"), "ddim"), count=count, clip=True)
    searcher = Timed(warm, evaluations)
    with TemporaryDirectory() as folder:
        search(searcher, objective, ledger=Path(folder) / "runs.jsonl", workers=workers)
    return evaluations / searcher.seconds, searcher.values


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__, rounds=3)
    made.add_argument("--workers", default="1,2", help="numbers of workers (default 1,2)")
    made.add_argument("--evaluations", type=int, default=40, help="timed evaluations a round (default 40)")
    chosen = options(made, argv)
    sides = [int(part) for part in chosen.workers.split(",")]
    count, evaluations = (20, 4) if chosen.quick else (250, chosen.evaluations)
    rounds = 1 if chosen.quick else chosen.rounds
    before = load()
    rates: dict[int, list[float]] = {workers: [] for workers in sides}
    values: dict[int, list[float]] = {}
    for turn in range(rounds):
        for workers in sides if turn % 2 == 0 else sides[::-1]:
            rate, values[workers] = timed(workers, count, evaluations, warm=2 * max(sides))
            rates[workers].append(rate)
    speedup = {w: median(b / a for a, b in zip(rates[sides[0]], rates[w])) for w in sides}
    same = all(values[w] == values[sides[0]] for w in sides)
    rows = [[str(w), median(rates[w]), median(rates[w]) * count * STEPS, speedup[w]] for w in sides]
    print(table(["workers", "evaluations/s", "image steps/s", f"times {sides[0]}"], rows))
    print(f"values are {'the same' if same else 'NOT the same'} for all")
    result = {
        "count": count, "steps": STEPS, "evaluations": evaluations, "same_values": same,
        "evaluations_per_second": {str(w): rates[w] for w in sides}, "speedup": {str(w): speedup[w] for w in sides},
    }  # fmt: skip
    return finish("search", chosen, result, before)


if __name__ == "__main__":
    main()
