"""Peak memory of `scoreline score` on stored features, from 10,000 rows to 1,000,000: it must not grow with N.

Each size runs in a process of its own, and what it held beyond the imports is printed: anonymous memory (the features
themselves lie in files, whose mapped pages the system takes back when it likes).

    python benchmarks/bench_memory.py [--dim 256] [--metrics fd,kid] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import finish, load, options, parser, table

SIZES = (10_000, 100_000, 1_000_000)


def write_features(path: Path, count: int, dim: int, seed: int) -> None:
    """Correlated float32 rows, written part by part."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(dim, dim)).astype(np.float32) / dim**0.5
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (count, dim))
    for start in range(0, count, 10_000):
        part = rows[start : start + 10_000]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32) @ mix + 0.05 * seed
    rows.flush()


def anonymous() -> int:
    """Bytes of memory that belong to no file."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def run_size(work: Path, metrics: Sequence[str]) -> dict[str, Any]:
    """Score the two feature files of a folder in this process and watch its memory."""
    import scipy.stats  # noqa: F401  what is imported on first use counts as imports

    from scoreline.evaluate.scoring import score_sets

    before, highest, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    found = score_sets(str(work / "real.npy"), str(work / "made.npy"), metrics=metrics, quiet=True, cache=False)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"bytes": highest - before, "seconds": seconds, "value": found["scores"][0]["value"]}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__, rounds=1)
    made.add_argument("--dim", type=int, default=256, help="features a row (default 256; quick 16)")
    made.add_argument("--metrics", default="fd", help="metrics, separated by commas (default fd)")
    made.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    chosen = options(made, argv)
    metrics = chosen.metrics.split(",")
    if chosen.only:
        result = run_size(chosen.only, metrics)
        (chosen.only / "result.json").write_text(json.dumps(result))
        return result
    sizes = (2000, 20_000) if chosen.quick else SIZES
    dim, before, found = 16 if chosen.quick else chosen.dim, load(), {}
    for count in sizes:
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            for seed, role in enumerate(("real", "made")):
                write_features(work / f"{role}.npy", count, dim, seed)
            if chosen.quick:
                found[str(count)] = run_size(work, metrics)
                continue
            command = [sys.executable, __file__, "--only", name, "--metrics", chosen.metrics]
            subprocess.run(command, check=True)
            found[str(count)] = json.loads((work / "result.json").read_text())
    rows = [[f"{int(n):,}", f["bytes"] / 2**20, f["seconds"], f"{f['value']:.6g}"] for n, f in found.items()]
    print(f"{chosen.metrics} of two sets of stored features, d = {dim}")
    print(table(["rows a set", "MiB beyond the imports", "seconds", metrics[0]], rows))
    return finish("memory", chosen, {"dim": dim, "metrics": metrics, "sizes": found}, before)


if __name__ == "__main__":
    main()
