"""Started by torchrun: several small runs, each process storing the weights it ends with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_methods import Dropped, Pair, Regression, points

from scoreline.core.errors import NonFiniteError
from scoreline.train import run
from scoreline.train.run import _processes


def main(root: Path) -> None:
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    settings = {"batch_size": 12, "device": "cpu", "quiet": True, "log_every": 5, "checkpoint_every": 4}
    _processes("cpu")
    # Another start in each process: the first one's must be taken.
    torch.manual_seed(int(rank))
    shifted = Regression()
    with torch.no_grad():
        shifted.net.weight += int(rank)
    methods = {
        "regression": (shifted, {"accumulate": 2, "ema": 0.9}),
        "pair": (Pair(clip=0.05), {}),
        "statistics": (Dropped(dropout=0.0), {}),
    }
    for name, (method, more) in methods.items():
        run(method, points(), root / name, steps=15, stop_at=7, **settings, **more)
        trained = run(method, points(), root / name, steps=15, **settings, **more)
        weights = {key: value.clone().contiguous() for key, value in trained.method.state_dict().items()}
        save_file(weights, root / f"{name}-{rank}.safetensors")
    try:
        # Only one process meets it: both must stop.
        poison = {4: float("nan")} if rank == "1" else {}
        run(Regression(poison=poison), points(), root / "poison", steps=8, **settings)
    except NonFiniteError as error:
        (root / f"poison-{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
