"""Frechet distance from moments: the symmetric route against SciPy's sqrtm and the eigenvalues of the product.

All routes run in turn in one process on the same moments, of features with the slowly decaying spectrum of a real
network's. Prints seconds, ratios and relative agreement, then the rank-deficient case against the nuclear norm.

    python benchmarks/bench_frechet.py [--dim 2048] [--repeats 1] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from scoreline.core.moments import Moments
from scoreline.metrics.frechet import frechet_distance, frechet_distance_from_statistics


def features(count: int, dim: int, seed: int) -> Tensor:
    """Correlated features: eigenvalues fall like 1/i, in a random basis common to both sets, with an offset each."""
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0))).Q
    generator = torch.Generator().manual_seed(seed)
    scale = 1 / torch.arange(1, dim + 1).sqrt()
    return (torch.randn(count, dim, generator=generator) * scale) @ basis.T + 0.05 * seed


def timed(function: Callable[[], float], repeats: int) -> tuple[float, float]:
    """(value, seconds of the fastest repeat)."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = function()
        seconds.append(time.perf_counter() - start)
    return value, min(seconds)


def nuclear(x: Tensor, y: Tensor) -> float:
    """The reference for N < d: the nuclear norm of the N x M product, straight from its definition."""
    x, y = x.double(), y.double()
    xc, yc = (x - x.mean(0)) / (len(x) - 1) ** 0.5, (y - y.mean(0)) / (len(y) - 1) ** 0.5
    root = torch.linalg.matrix_norm(xc @ yc.T, "nuc")
    return float((x.mean(0) - y.mean(0)).square().sum() + xc.square().sum() + yc.square().sum() - 2 * root)


def full_rank(dim: int, repeats: int) -> dict[str, object]:
    a, b = Moments.of(features(2 * dim, dim, 1)), Moments.of(features(2 * dim, dim, 2))
    statistics = a.mean, a.cov(), b.mean, b.cov()
    result: dict[str, object] = {"dim": dim, "count": 2 * dim}
    for method in ("symmetric", "eigvals", "sqrtm"):
        run = partial(frechet_distance_from_statistics, *statistics, method=method)
        value, seconds = timed(run, repeats)
        result |= {f"{method}_value": value, f"{method}_seconds": seconds}
    ours = float(result["symmetric_value"]), float(result["symmetric_seconds"])
    for method in ("eigvals", "sqrtm"):
        result[f"{method}_ratio"] = float(result[f"{method}_seconds"]) / ours[1]
        result[f"{method}_relative_difference"] = abs(float(result[f"{method}_value"]) / ours[0] - 1)
    return result


def deficient(dim: int, repeats: int) -> dict[str, object]:
    x, y = features(dim // 4, dim, 1), features(dim // 2, dim, 2)
    exact, reference_seconds = timed(lambda: nuclear(x, y), repeats)
    from_features, features_seconds = timed(lambda: frechet_distance(x, y), repeats)
    a, b = Moments.of(x), Moments.of(y)
    from_moments, moments_seconds = timed(lambda: frechet_distance(a, b), repeats)
    eigvals, eigvals_seconds = timed(lambda: frechet_distance(a, b, method="eigvals"), repeats)
    return {
        "dim": dim,
        "counts": [len(x), len(y)],
        "nuclear_value": exact,
        "nuclear_seconds": reference_seconds,
        "features_seconds": features_seconds,
        "features_relative_error": abs(from_features / exact - 1),
        "moments_seconds": moments_seconds,
        "moments_relative_error": abs(from_moments / exact - 1),
        "eigvals_seconds": eigvals_seconds,
        "eigvals_relative_error": abs(eigvals / exact - 1),
        "features_ratio_to_eigvals": eigvals_seconds / features_seconds,
        "moments_ratio_to_eigvals": eigvals_seconds / moments_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=2048, help="feature dimension (default 2048)")
    parser.add_argument("--repeats", type=int, default=1, help="the fastest of so many runs counts (default 1)")
    parser.add_argument("--quick", action="store_true", help="dimension 128, three repeats")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    dim, repeats = (128, 3) if options.quick else (options.dim, options.repeats)
    warnings.simplefilter("ignore", UserWarning)

    full_rank(32, 1), deficient(32, 1)  # the first calls load SciPy and start LAPACK's threads
    result = {
        "machine": f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads",
        "full_rank": full_rank(dim, repeats),
        "deficient": deficient(dim, repeats),
    }
    if options.json:
        print(json.dumps(result))
        return
    full, few = result["full_rank"], result["deficient"]
    print(result["machine"])
    print(f"full rank, d = {dim}, N = M = {2 * dim}, from moments")
    print(f"  symmetric {full['symmetric_seconds']:8.3f} s   FD {full['symmetric_value']:.10f}")
    for method, aim in (("eigvals", 2.5), ("sqrtm", 10)):
        print(
            f"  {method:9s} {full[f'{method}_seconds']:8.3f} s   {full[f'{method}_ratio']:5.2f} times ours (aim {aim})"
            f"   relative difference {full[f'{method}_relative_difference']:.1e} (aim 1e-8)"
        )
    print(f"rank deficient, d = {dim}, N, M = {few['counts']}, against the nuclear norm (aim 1e-6)")
    for route in ("features", "moments", "eigvals"):
        ratio = f"   {few['eigvals_seconds'] / few[f'{route}_seconds']:5.2f} times faster than eigvals"
        print(
            f"  {route:9s} {few[f'{route}_seconds']:8.3f} s   "
            f"relative error {few[f'{route}_relative_error']:.1e}{ratio}"
        )


if __name__ == "__main__":
    main()
