"""Small flows by size: parameters, multiply-accumulates, latency on one CPU thread, evaluations and quality.

Each size is the network of the preset slimflow-digits with other base channels, trained by both stages; what is trained
already is read. fid@digits and the Frechet distance of pixels are the fixed protocol's, 10,000 images a seed. The
small flow is judged at 20 Euler steps, its one-step student at one. The latency is the median of 30 single images.

    python benchmarks/slimflow_sizes.py [--sizes 4,8,12,16] [--out runs/slimflow-sizes] [--steps N] [--quick]
    python benchmarks/slimflow_sizes.py --json FILE --page docs/systems/31-slimflow.md
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from common import markdown, placed, save, table
from scoreline.core.cost import machine
from scoreline.core.denoiser import Denoiser
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.evaluate.compare import model_macs
from scoreline.evaluate.protocols import FID_DIGITS_COUNT
from scoreline.evaluate.specs import labels_for, make_sampler
from scoreline.fewstep.distill import distill
from scoreline.fewstep.recipe import read_recipe
from students import measured

SEEDS = (0, 1, 2)
ROUNDS = 30
HEAD = ["network", "parameters", "MACs", "evaluations", "ms an image", "fid@digits", "fd-pixel"]


def trained(size: int, out: Path, steps: int | None) -> Path:
    """The folder in which a size is trained."""
    folder = out / f"base-{size}"
    if not (folder / "model.safetensors").is_file():
        recipe = read_recipe("slimflow", preset="digits", changes={} if steps is None else {"steps": steps})
        recipe.stages[0]["student"]["net"]["args"]["base_channels"] = size
        distill(recipe, folder, device="cpu", command=f"python benchmarks/slimflow_sizes.py --sizes {size}")
    return folder


def latency(model: Denoiser, sampler: Sampler) -> float:
    """Milliseconds of one image on one thread, the median over rounds."""
    given, draws = model.given(labels_for([0], model.num_classes)), Noise(0).at([0], model.shape)
    seconds = []
    for i in range(ROUNDS + 3):
        start = time.perf_counter()
        sampler(given, draws)
        if i >= 3:
            seconds.append(time.perf_counter() - start)
    return 1e3 * median(seconds)


def row(name: str, model: Denoiser, sampler: Sampler, quick: bool) -> dict[str, Any]:
    """What is told of a model at one cost."""
    count, seeds = (200, SEEDS[:1]) if quick else (FID_DIGITS_COUNT, SEEDS)
    found = [measured(model, sampler, seed, count) for seed in seeds]
    return {
        "name": name, "parameters": sum(p.numel() for p in model.parameters()), "macs": model_macs(model),
        "nfe": sampler.cost(sampler.plan()), "ms": latency(model, sampler),
        **{key: mean(one[key] for one in found) for key in ("fd-digits", "fd-pixels")},
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")], default=[4, 8, 12, 16])
    made.add_argument("--out", type=Path, default=Path("runs/slimflow-sizes"))
    made.add_argument("--steps", type=int, default=None, help="of both stages, instead of the preset's")
    made.add_argument("--quick", action="store_true", help="200 images, one seed: shows that it runs")
    made.add_argument("--json", type=Path, default=None, metavar="FILE")
    made.add_argument("--page", type=Path, default=None, metavar="FILE", help="write the record's table into the page")
    chosen = made.parse_args(argv)
    if chosen.page is not None:
        record = json.loads(chosen.json.read_text(encoding="utf-8"))
    else:
        torch.set_num_threads(1)
        rows = [row("teacher, heun", load("digits"), make_sampler("heun", nfe=35), chosen.quick)]
        for size in chosen.sizes:
            folder = trained(size, chosen.out, chosen.steps)
            flow, student = load(folder / "reflow.safetensors"), load(folder / "model.safetensors")
            rows.append(row(f"base {size}, flow", flow, make_sampler("euler", steps=20), chosen.quick))
            rows.append(row(f"base {size}, distilled", student, make_sampler("euler", steps=1), chosen.quick))
        record = {"machine": machine(), "rows": rows}
        if chosen.json is not None:
            save(chosen.json, json.dumps(record, indent=1) + "\n")
    lines = [
        [
            r["name"], f"{r['parameters'] / 1e3:.1f}k", f"{r['macs'] * r['nfe'] / 1e6:.2f}M", r["nfe"],
            f"{r['ms']:.2f}", f"{r['fd-digits']:.3g}", f"{r['fd-pixels']:.3g}",
        ]
        for r in record["rows"]
    ]  # fmt: skip
    print(table(HEAD, lines))
    if chosen.page is not None:
        save(chosen.page, placed(chosen.page.read_text(encoding="utf-8"), "sizes", {"table": markdown(HEAD, lines)}))


if __name__ == "__main__":
    main()
