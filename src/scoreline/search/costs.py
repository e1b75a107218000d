"""What one evaluation of a network costs, and what leaving out each of its layers saves: counted, or measured.

Shapes do not change when a layer is left out, so savings add up: exactly for layers and multiply-accumulates, and about
for seconds.
"""

from __future__ import annotations

import time
from statistics import median

import torch

from scoreline.core.cost import count_macs
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.evaluate.specs import labels_for
from scoreline.nn.plan import Plan

__all__ = ["UNITS", "layer_costs", "layer_count"]

UNITS = ("layers", "macs", "seconds")


def layer_count(model: Denoiser) -> int:
    """Number of layers of the model's network that a plan can leave out; 0 where it has none."""
    for module in model.modules():
        layers = getattr(module, "num_layers", None)
        if isinstance(layers, int):
            return layers
    return 0


@torch.no_grad()
def layer_costs(model: Denoiser, unit: str, *, batch: int = 32, repeats: int = 7) -> tuple[float, tuple[float, ...]]:
    """What an evaluation of one image costs, and what leaving out each layer saves.

    Args:
        model: a denoiser whose network has layers to leave out.
        unit: "layers" (every layer is 1), "macs" (counted) or "seconds" (measured: median of `repeats` in turn).
        batch, repeats: of the measurement.

    Returns:
        (cost, savings by layer), savings at least 0.

    Raises:
        InputError: an unknown unit, or a network without layers.
    """
    if unit not in UNITS:
        raise unknown_name("cost", unit, UNITS)
    layers = layer_count(model)
    if not layers:
        raise InputError("model", type(model).__name__, "has no layers to leave out; search steps alone")
    if unit == "layers":
        return float(layers), (1.0,) * layers
    views = [model, *(model.under(Plan(drop=frozenset([i]))) for i in range(layers))]
    t = 0.5 * (model.schedule.t_min + model.schedule.t_max)
    count = 1 if unit == "macs" else batch
    x, cond = torch.zeros(count, *model.shape), labels_for(range(count), model.num_classes)
    if unit == "macs":
        costs = [float(count_macs(view, x, t, cond)) for view in views]
    else:
        spent: list[list[float]] = [[] for _ in views]
        for turn in range(repeats + 1):
            # In turn, so that a machine that slows down slows all of them.
            for view, seconds in zip(views, spent):
                start = time.perf_counter()
                view(x, t, cond)
                if turn:
                    seconds.append((time.perf_counter() - start) / count)
        costs = [median(seconds) for seconds in spent]
    return costs[0], tuple(max(costs[0] - cost, 0.0) for cost in costs[1:])
