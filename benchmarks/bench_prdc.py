"""Precision, recall, density, coverage: ours against `prdc`, the code of Naeem et al., on the same float64 features.

Both sides in turn in one process. Where `prdc` is not installed a literal implementation of it takes its place
(scikit-learn's pairwise_distances on 8 jobs, three full matrices, argpartition), and the record says so. Counts must be
the same; seconds, ratios and peak memory are printed. Peak memory is the process's resident set during one run less
that before it, so that features and libraries are not counted.

    python benchmarks/bench_prdc.py [--count 10000] [--dims 64 2048] [--rounds 3] [--quick] [--json FILE]
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from common import finish, load, options, parser, race, table
from scoreline.core.cost import measured
from scoreline.metrics.prdc import prdc

K = 5
AIMS = {64: 2.0, 2048: 1.4}  # times faster
MEMORY_AIM = 2**30
NAMES = ("precision", "recall", "density", "coverage")
Array = np.ndarray
Peer = Callable[[Array, Array, int], dict[str, float]]


def features(count: int, dim: int, seed: int, scale: float = 1.0) -> Array:
    """Normal features whose variances fall like 1/i, so that distances differ as much as a network's do."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return (scale * rows / torch.arange(1, dim + 1).sqrt()).numpy()


def literal(real: Array, generated: Array, k: int) -> dict[str, float]:
    """What the peer computes, in the same steps: all pairs of both sets and between them, in memory."""
    from sklearn.metrics import pairwise_distances

    def distances(a: Array, b: Array) -> Array:
        return pairwise_distances(a, b, metric="euclidean", n_jobs=8)

    def radii(points: Array) -> Array:
        table = distances(points, points)
        nearest = np.argpartition(table, k + 1, axis=-1)[:, : k + 1]  # the point itself is one of them
        return np.take_along_axis(table, nearest, axis=-1).max(axis=-1)

    real_radii, generated_radii = radii(real), radii(generated)
    between = distances(real, generated)
    return {
        "precision": (between < real_radii[:, None]).any(axis=0).mean(),
        "recall": (between < generated_radii[None, :]).any(axis=1).mean(),
        "density": (between < real_radii[:, None]).sum(axis=0).mean() / k,
        "coverage": (between.min(axis=1) < real_radii).mean(),
    }


def found_peer() -> tuple[str, Peer]:
    """The peer's own function, silenced, or the literal one."""
    try:
        compute = importlib.import_module("prdc").compute_prdc
    except ImportError:
        return "literal", literal

    def quiet(real: Array, generated: Array, k: int) -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            return compute(real, generated, k)

    return "prdc", quiet


def ours(real: Array, generated: Array, k: int) -> dict[str, float]:
    """Our function on the same arrays."""
    return prdc(torch.from_numpy(real), torch.from_numpy(generated), k=k)._asdict()


def counts(values: dict[str, float], count: int) -> dict[str, int]:
    """The whole numbers behind the four shares."""
    return {name: round(float(values[name]) * count * (K if name == "density" else 1)) for name in NAMES}


def extra_memory(run: Callable[[], Any]) -> int:
    """Bytes that one run adds at its peak to what was there before."""
    gc.collect()  # what is given back in the middle would hide what the run takes
    with measured() as before:
        pass
    with measured() as cost:
        run()
    return max(0, cost.peak_memory - before.peak_memory)


def compare(dim: int, count: int, rounds: int, peer: Peer) -> dict[str, Any]:
    """Both sides on N = M = count features of one dimension."""
    real, generated = features(count, dim, 1), features(count, dim, 2, 0.9)
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "ours": lambda: ours(real, generated, K),
        "peer": lambda: peer(real, generated, K),
    }
    memory = {name: extra_memory(run) for name, run in runs.items()}  # also the warm-up
    timed = race(runs, rounds)
    found = {name: counts(values, count) for name, values in timed.values.items()}
    return {
        "dim": dim,
        "count": count,
        "values": {name: {n: float(v[n]) for n in NAMES} for name, v in timed.values.items()},
        "counts": found,
        "same_counts": found["ours"] == found["peer"],
        "seconds": timed.summary("ours"),
        "peak_memory_bytes": memory,
    }


def main(argv: Sequence[str] | None = None, *, peer: Peer | None = None) -> dict[str, Any]:
    made = parser(__doc__, rounds=3)
    made.add_argument("--count", type=int, default=10_000, help="features a side (default 10000; quick 1500)")
    made.add_argument("--dims", type=int, nargs="+", default=[64, 2048], help="dimensions (default 64 2048; quick 16)")
    chosen = options(made, argv)
    count, dims = (1500, [16]) if chosen.quick else (chosen.count, chosen.dims)
    name, run = found_peer() if peer is None else ("stand-in", peer)
    before = load()
    results = [compare(dim, count, chosen.rounds, run) for dim in dims]
    print(f"N = M = {count}, k = {K}, strict, float64; the peer is {name}")
    rows = []
    for r in results:
        for side in ("ours", "peer"):
            seconds, memory = r["seconds"][side], r["peak_memory_bytes"][side]
            aim = AIMS.get(r["dim"], "-") if side == "peer" else "-"
            rows.append([f"d = {r['dim']} {side}", seconds["median"], seconds["ratio"], aim, f"{memory / 2**20:.0f}"])
    print(table(["side", "seconds", "times ours", "aim", "peak MiB"], rows))
    for r in results:
        same = "the same counts" if r["same_counts"] else f"COUNTS DIFFER: {r['counts']}"
        under = "under" if r["peak_memory_bytes"]["ours"] < MEMORY_AIM else "NOT under"
        print(f"d = {r['dim']}: {same}; ours is {under} 1 GiB")
    return finish("prdc", chosen, {"peer": name, "k": K, "dims": results}, before)


if __name__ == "__main__":
    main()
