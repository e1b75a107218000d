"""How fast DPM-Solver-v3's model statistics are estimated: points a second, a point being one noised image at one node.

"ours" takes the sufficient statistics of a node from two Jacobian-vector products; "two passes" is the paper's order,
which asks the model once more (a product for l at all nodes first, then an evaluation and a product for f and f');
"forward" is one evaluation of the network, the floor. The model is the shipped `digits`, and a hub-sized estimation
(1024 points at 121 nodes) is given in minutes.

    python benchmarks/bench_statistics.py [--batch 256] [--rounds 20] [--threads 2] [--quick] [--json FILE]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common import finish, load, options, parser, race, table
from scoreline import load as load_model
from scoreline.core.cond import Cond
from scoreline.core.noise import Noise
from scoreline.data import load_images
from scoreline.samplers.statistics_estimation import jvp, moments

LAM = 0.5


def two_passes(model: Any, x0: Tensor, noise: Tensor, cond: Cond, probe: Tensor) -> Tensor:
    """The same node in the paper's order, on EDM's schedule: l in a pass of its own, then f and f'."""
    level = math.exp(-LAM)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    x, t = x0 + level * noise, torch.full((len(x0),), level, dtype=torch.float64)

    def mean(x: Tensor, t: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (x, t, cond)).mean

    _, product = jvp(lambda x: mean(x, t), (x,), (probe,))
    D = mean(x, t)
    _, D_ = jvp(mean, (x, t), (D - x, -t))
    parts = (probe * product, x, D, D_, x * x, x * D, D * D, x * D_, D * D_)
    return torch.stack([part.double().sum(0) for part in parts])


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__, rounds=20)
    made.add_argument("--batch", type=int, default=256, help="points a batch (default 256)")
    chosen = options(made, argv)
    count, before = 8 if chosen.quick else chosen.batch, load()
    model = load_model("digits")
    batch = load_images("digits", split="train").batch(range(count))
    draws, cond = Noise(0).at(range(count), model.shape), Cond(labels=batch.label)
    noise, probe, level = draws.normal(), torch.sign(draws.normal(1)), math.exp(-LAM)
    timed = race(
        {
            "ours": lambda: moments(model, LAM, batch.image, noise, cond, probe=probe),
            "two passes": lambda: two_passes(model, batch.image, noise, cond, probe),
            "forward": lambda: model(batch.image + level * noise, level, cond).mean,
        },
        chosen.rounds,
    )
    difference = float((timed.values["ours"] - timed.values["two passes"]).abs().max() / count)
    rates = {name: count / timed.median(name) for name in timed.seconds}
    print(f"model statistics of digits, {count} points a batch, points a second at one node")
    print(table(["", "points/s", "time over ours"], [[n, rates[n], timed.ratio(n, "ours")] for n in rates]))
    minutes = 1024 * 121 / rates["ours"] / 60
    print(f"1024 points at 121 nodes: {minutes:.1f} minutes; largest difference of a mean {difference:.0e}")
    result = {
        "batch": count,
        "points_per_second": rates,
        "ratio": {name: timed.ratio(name, "ours") for name in rates},
        "minutes_1024_121": minutes,
        "difference": difference,
    }
    return finish("statistics", chosen, result, before)


if __name__ == "__main__":
    main()
