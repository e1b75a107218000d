"""Confusion cells as a torchmetrics class: batches, order, merging, saving, and what it refuses."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.metrics.binary_curves import confusion
from scoreline.metrics.imbalance import cell_metrics
from scoreline.metrics.streaming_cells import ConfusionCells

G = torch.Generator().manual_seed(0)
SCORES, LABELS = torch.rand(300, generator=G), torch.rand(300, generator=G) < 0.1
AT = [0.9, 0.5, math.inf]


def fed(order: torch.Tensor, batch: int) -> ConfusionCells:
    metric = ConfusionCells(AT)
    for part in order.split(batch):
        metric.update(SCORES[part], LABELS[part])
    return metric


def test_batches_and_order_do_not_matter_and_it_equals_its_function() -> None:
    expected = cell_metrics(confusion(SCORES, LABELS, AT))
    for metric in (fed(torch.arange(300), 300), fed(torch.arange(300).flip(0), 7)):
        assert [c.tolist() for c in metric.cells] == [c.tolist() for c in confusion(SCORES, LABELS, AT)]
        found = metric.compute()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_state_survives_saving_merging_and_reset() -> None:
    metric = fed(torch.arange(300), 50)
    metric.persistent(True)
    fresh = ConfusionCells(AT)
    fresh.persistent(True)
    fresh.load_state_dict(metric.state_dict())
    assert torch.equal(fresh.compute()["f1"], metric.compute()["f1"])
    half = fed(torch.arange(150), 50)
    half.merge_state(fed(torch.arange(150, 300), 50))
    assert torch.equal(half.counts, metric.counts)
    assert torch.equal(pickle.loads(pickle.dumps(metric)).counts, metric.counts)
    metric.reset()
    assert int(metric.counts.sum()) == 0
    assert metric.higher_is_better is True


def test_an_empty_batch_and_what_0_over_0_is() -> None:
    metric = ConfusionCells([2.0], ["precision"], zero_division=0.5)
    metric.update(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    metric.update(SCORES, LABELS)
    assert metric.compute()["precision"].item() == 0.5


def test_refusals() -> None:
    with pytest.raises(InputError, match="thresholds"):
        ConfusionCells([])
    with pytest.raises(InputError, match="thresholds"):
        ConfusionCells([math.nan])
    with pytest.raises(InputError, match="did you mean 'mcc'"):
        ConfusionCells([0.5], ["mc"])
    metric = ConfusionCells([0.5])
    with pytest.raises(InputError, match="-1 and 1"):
        metric.update(torch.tensor([0.1, 0.2]), torch.tensor([-1, 1]))
    assert int(metric.counts.sum()) == 0
