"""Frechet distance from moments: the symmetric route against SciPy's sqrtm and the eigenvalues of the product.

Where pytorch-fid and torch-fidelity are installed, their own functions run beside ours too. All routes run in turn in
one process on the same moments, of features with the slowly decaying spectrum of a real network's. Prints seconds,
ratios and relative agreement, then the rank-deficient case against the nuclear norm.

    python benchmarks/bench_frechet.py [--dim 2048] [--rounds 1] [--quick] [--json FILE]
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from common import finish, load, options, parser, race, table
from scoreline.core.moments import Moments
from scoreline.metrics.frechet import frechet_distance, frechet_distance_from_statistics


def features(count: int, dim: int, seed: int) -> Tensor:
    """Correlated features: eigenvalues fall like 1/i, in a random basis common to both sets, with an offset each."""
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0))).Q
    generator = torch.Generator().manual_seed(seed)
    scale = 1 / torch.arange(1, dim + 1).sqrt()
    return (torch.randn(count, dim, generator=generator) * scale) @ basis.T + 0.05 * seed


def nuclear(x: Tensor, y: Tensor) -> float:
    """The reference for N < d: the nuclear norm of the N x M product, straight from its definition."""
    x, y = x.double(), y.double()
    xc, yc = (x - x.mean(0)) / (len(x) - 1) ** 0.5, (y - y.mean(0)) / (len(y) - 1) ** 0.5
    root = torch.linalg.matrix_norm(xc @ yc.T, "nuc")
    return float((x.mean(0) - y.mean(0)).square().sum() + xc.square().sum() + yc.square().sum() - 2 * root)


def peers(statistics: Sequence[Tensor]) -> dict[str, Callable[[], float]]:
    """The functions of the peers that can be imported, on the same moments; torchvision may refuse another torch."""
    m1, s1, m2, s2 = (part.numpy() for part in statistics)
    found: dict[str, Callable[[], float]] = {}
    try:
        theirs = importlib.import_module("pytorch_fid.fid_score").calculate_frechet_distance
        found["pytorch-fid"] = lambda: float(theirs(m1, s1, m2, s2))
    except (ImportError, RuntimeError):
        pass
    try:
        module = importlib.import_module("torch_fidelity.metric_fid")
        sides = {"mu": m1, "sigma": s1}, {"mu": m2, "sigma": s2}
        found["torch-fidelity"] = lambda: float(*module.fid_statistics_to_metric(*sides, False).values())
    except (ImportError, RuntimeError):
        pass
    return found


def full_rank(dim: int, rounds: int, warmup: int = 0) -> dict[str, Any]:
    """Our routes, and the peers' functions, on the moments of N = M = 2d features."""
    a, b = Moments.of(features(2 * dim, dim, 1)), Moments.of(features(2 * dim, dim, 2))
    statistics = a.mean, a.cov(), b.mean, b.cov()
    routes: tuple[Literal["symmetric", "eigvals", "sqrtm"], ...] = ("symmetric", "eigvals", "sqrtm")
    runs: dict[str, Callable[[], float]] = {
        method: partial(frechet_distance_from_statistics, *statistics, method=method) for method in routes
    }
    runs |= peers(statistics)
    timed = race(runs, rounds, warmup=warmup)
    ours = timed.values["symmetric"]
    return {
        "dim": dim,
        "counts": [2 * dim, 2 * dim],
        "values": timed.values,
        "seconds": timed.summary("symmetric"),
        "relative_difference": {method: abs(value / ours - 1) for method, value in timed.values.items()},
    }


def deficient(dim: int, rounds: int, warmup: int = 0) -> dict[str, Any]:
    """The routes on d/4 and d/2 features, against the nuclear norm."""
    x, y = features(dim // 4, dim, 1), features(dim // 2, dim, 2)
    a, b = Moments.of(x), Moments.of(y)
    runs = {
        "features": lambda: frechet_distance(x, y),
        "moments": lambda: frechet_distance(a, b),
        "eigvals": lambda: frechet_distance(a, b, method="eigvals"),
        "nuclear": lambda: nuclear(x, y),
    }
    timed = race(runs, rounds, warmup=warmup)
    exact = timed.values["nuclear"]
    return {
        "dim": dim,
        "counts": [len(x), len(y)],
        "values": timed.values,
        "seconds": timed.summary("features"),
        "ratio_to_eigvals": {route: timed.ratio("eigvals", route) for route in ("features", "moments")},
        "relative_error": {route: abs(value / exact - 1) for route, value in timed.values.items()},
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__, rounds=1)
    made.add_argument("--dim", type=int, default=2048, help="feature dimension (default 2048; quick 128)")
    chosen = options(made, argv)
    dim, before = 128 if chosen.quick else chosen.dim, load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        full_rank(32, 1), deficient(32, 1)  # the first calls load SciPy and start LAPACK's threads
        full, few = full_rank(dim, chosen.rounds), deficient(dim, chosen.rounds)
    print(f"full rank, d = {dim}, N = M = {2 * dim}, from moments; agreement within 1e-8 is the aim")
    aims = {"symmetric": "-", "eigvals": 2.5, "sqrtm": 10.0, "torch-fidelity": 2.5, "pytorch-fid": 10.0}
    rows = [
        [route, f["median"], f["ratio"], aims[route], f"{full['relative_difference'][route]:.1e}"]
        for route, f in full["seconds"].items()
    ]
    print(table(["route", "seconds", "times ours", "aim", "difference"], rows))
    print(f"rank deficient, d = {dim}, N, M = {few['counts']}; 1e-6 to the nuclear norm is the aim")
    rows = [
        [route, f["median"], few["ratio_to_eigvals"].get(route, "-"), f"{few['relative_error'][route]:.1e}"]
        for route, f in few["seconds"].items()
    ]
    print(table(["route", "seconds", "eigvals / it", "error"], rows))
    return finish("frechet", chosen, {"full_rank": full, "deficient": few}, before)


if __name__ == "__main__":
    main()
