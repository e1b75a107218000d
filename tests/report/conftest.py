"""Made-up results of a comparison: the numbers follow a formula, nothing here was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scoreline.report import write_report

ORDERS = {"heun": 2.0, "ddim": 1.0, "deis": 2.4, "dpm-solver++": 2.2}


def made_up(samplers=("heun", "ddim", "deis", "dpm-solver++"), budgets=(5, 10, 20), seeds=(0, 1, 2)) -> dict[str, Any]:
    """Results as `scoreline compare` stores them, with a distance of (3 / nfe)^order."""
    arms: list[dict[str, Any]] = []
    for n, sampler in enumerate(samplers):
        for budget in budgets:
            nfe = budget - 1 + budget % 2 if sampler == "heun" else budget
            far = (3.0 / nfe) ** ORDERS.get(sampler, 1.0 + 0.13 * n)
            draws = np.random.default_rng([n, budget])
            centres = {
                "ode-rmse": (far, 0.06 * far),
                "fid@digits": (1.2 + 2.5 * far - 0.14 * (sampler == "ddim" and budget == 20), 0.05),
                "fd-pixel": (0.21 + 0.9 * far, 0.012),
            }
            scores = {}
            for name, (centre, spread) in centres.items():
                values = [float(centre + spread * draws.normal()) for _ in seeds]
                mean = float(np.mean(values))
                scores[name] = {"values": values, "mean": mean, "low": min(values), "high": max(values)}
            arms.append({
                "name": f"{sampler}-{nfe}", "sampler": sampler, "settings": {"order": 2}, "grid": "karras",
                "budget": budget, "nfe": nfe, "nfe_max": nfe, "macs": 1234567 * nfe, "seconds": 0.00041 * nfe,
                "images_per_second": 1 / (0.00041 * nfe), "peak_memory": 412_000_000 + 1_000_000 * n, "scores": scores,
                "pictures": f"pictures/{sampler}-{nfe}.png",
                "command": f"scoreline sample digits --sampler {sampler} --nfe {nfe} --seeds 0:500 --out a-{budget}",
            })  # fmt: skip
    numbers = ", ".join(map(str, budgets))
    protocol = {
        "metric": "fid", "version": "1", "features": "digits-classifier", "weights": "5f" * 32, "resize": "none",
        "quantisation": "uint8-round", "reference": "digits", "reference_split": "test", "reference_count": 500,
        "generated_count": 500, "method": "symmetric", "ddof": 1, "k": None, "extra": {"made up": "yes"},
    }  # fmt: skip
    return {
        "format": "scoreline/compare/1", "version": "0.1.0", "created": "2026-11-22T20:00:00Z",
        "command": f"scoreline compare digits --samplers {','.join(samplers)} --nfe {numbers.replace(' ', '')} --out o",
        "title": f"digits: {len(samplers)} sampler{'s' * (len(samplers) > 1)} at {numbers} NFE",
        "model": {"name": "digits", "fingerprint": "ab" * 32, "shape": [1, 8, 8], "num_classes": 10,
                  "parameters": 812345, "macs": 1234567},
        "data": {"name": "digits", "split": "test", "fingerprint": "cd" * 32, "count": 500},
        "machine": {"system": "Linux", "processor": "Made-up CPU", "cores": 2, "threads": 2, "python": "3.11.2",
                    "torch": "2.13.0"},
        "seeds": list(seeds), "count": 500,
        "reference": {"sampler": "heun", "nfe": 255, "text": "Heun with 128 steps in float64"},
        "scores": {
            "ode-rmse": {"title": "Distance to the converged ODE", "unit": "median RMSE per image",
                         "higher_is_better": False, "log": True, "floor": None, "converged": 0.0},
            "fid@digits": {"title": "FID@digits", "unit": "", "higher_is_better": False, "log": True, "floor": 0.51,
                           "converged": 1.2},
            "fd-pixel": {"title": "Pixel Fréchet distance", "unit": "", "higher_is_better": False, "log": True,
                         "floor": 0.08, "converged": 0.21},
        },
        "protocol": {"ode-rmse": {"metric": "ode-rmse", "precision": "float64"}, "fid@digits": protocol,
                     "fd-pixel": protocol | {"metric": "fd", "features": "pixels"}},
        "arms": arms,
        "pictures": {"reference": "pictures/reference.png", "real": "pictures/real.png"},
        "warnings": [],
    }  # fmt: skip


def draw_pictures(results: dict[str, Any], folder: Path) -> None:
    """Real digits with noise as the pictures of every arm: 4 rows of 5 with a border of 1 pixel."""
    from sklearn.datasets import load_digits

    digits = load_digits().images[:20] * (255 / 16)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    wanted = {arm["pictures"]: 60 / arm["nfe"] for arm in results["arms"]}
    for n, (path, noise) in enumerate({**wanted, **dict.fromkeys(results["pictures"].values(), 0.0)}.items()):
        canvas = np.full((4 * 9 + 1, 5 * 9 + 1), 128.0)
        for i, digit in enumerate(digits + noise * np.random.default_rng(n).normal(size=digits.shape)):
            canvas[9 * (i // 5) + 1 : 9 * (i // 5) + 9, 9 * (i % 5) + 1 : 9 * (i % 5) + 9] = digit
        Image.fromarray(canvas.clip(0, 255).astype("uint8")).save(folder / path)


@pytest.fixture(name="made_up")
def _made_up():
    return made_up


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """One report with pictures, written once: (results, folder, paths)."""
    folder = tmp_path_factory.mktemp("report")
    results = made_up()
    draw_pictures(results, folder)
    return results, folder, write_report(results, folder)
