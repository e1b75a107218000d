"""Every streaming metric through the same questions: batches, order and merging do not matter, it survives saving and a
reset, and it equals its pure function. Found by itself: every torchmetrics class in `scoreline.metrics`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from scoreline.metrics import cmmd, frechet_distance, inception_score, kernel_distance, prdc, streaming

G = torch.Generator().manual_seed(0)
REAL, FAKE = torch.randn(240, 5, generator=G), torch.randn(200, 5, generator=G) * 0.8 + 0.3
LOGITS = torch.randn(200, 5, generator=G)


def _two(metric: Metric, order: Tensor, batch: int) -> Metric:
    for part in REAL.split(batch):
        metric.update(real=part)
    for part in FAKE[order].split(batch):
        metric.update(generated=part)
    return metric


def _one(metric: Metric, order: Tensor, batch: int) -> Metric:
    for part in LOGITS[order].split(batch):
        metric.update(part)
    return metric


# class name -> (make, feed, the pure function's value, whether the order of images may matter)
SMALL: dict[str, tuple[Callable[[], Metric], Callable[..., Metric], Callable[[], float], bool]] = {
    "CMMD": (lambda: streaming.CMMD(sigma=2.0), _two, lambda: cmmd(REAL, FAKE, sigma=2.0), False),
    "FrechetDistance": (
        lambda: streaming.FrechetDistance(5), _two, lambda: frechet_distance(REAL, FAKE), False,
    ),
    "KernelDistance": (
        lambda: streaming.KernelDistance(subsets=4, subset_size=50), _two,
        lambda: kernel_distance(REAL, FAKE, subsets=4, subset_size=50).mean, True,
    ),
    "PrecisionRecallDensityCoverage": (
        lambda: streaming.PrecisionRecallDensityCoverage(), _two, lambda: prdc(REAL, FAKE).precision, False,
    ),
    "InceptionScore": (
        lambda: streaming.InceptionScore(mode="drop-remainder", splits=1), _one,
        lambda: inception_score(LOGITS, mode="drop-remainder", splits=1).mean, False,
    ),
}  # fmt: skip


def number(value: Any) -> float:
    """The first number of whatever compute() returns."""
    if isinstance(value, dict):
        value = value.get("precision", next(iter(value.values())))
    if isinstance(value, tuple | list):
        value = value[0]
    return float(value)


def test_every_streaming_metric_is_asked() -> None:
    classes = {
        name for name, cls in inspect.getmembers(streaming, inspect.isclass)
        if issubclass(cls, Metric) and cls.__module__ == streaming.__name__ and not name.startswith("_")
    }  # fmt: skip
    assert classes == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_batches_and_order_do_not_matter_and_it_equals_its_function(name: str) -> None:
    make, feed, expected, ordered = SMALL[name]
    straight = torch.arange(200)
    turned = straight if ordered else straight.flip(0)
    assert number(feed(make(), straight, 200).compute()) == pytest.approx(expected(), rel=1e-9, abs=1e-12)
    assert number(feed(make(), turned, 17).compute()) == pytest.approx(expected(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_state_survives_saving_and_reset_empties_it(name: str) -> None:
    make, feed, expected, _ = SMALL[name]
    metric = feed(make(), torch.arange(200), 50)
    metric.persistent(True)
    fresh = make()
    fresh.persistent(True)
    fresh.load_state_dict(metric.state_dict())
    assert number(fresh.compute()) == pytest.approx(expected(), rel=1e-9, abs=1e-12)
    metric.reset()
    assert number(feed(metric, torch.arange(200), 50).compute()) == pytest.approx(expected(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_which_way_is_up_is_stated(name: str) -> None:
    assert isinstance(SMALL[name][0]().higher_is_better, bool) or name == "PrecisionRecallDensityCoverage"
