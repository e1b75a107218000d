"""Counted evaluations, MACs, seconds and memory."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from scoreline.core.cond import Cond
from scoreline.core.cost import Counted, count_macs, evaluations, machine, measured
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.schedules import EDM


def mixture() -> Mixture:
    return Mixture(EDM(), torch.tensor([[0.0], [2.0]]), 0.1, labels=torch.tensor([0, 1]))


def test_counted_counts_evaluations_an_image() -> None:
    counted = Counted(Gaussian(EDM(), torch.zeros(2), 1.0))
    for batch in (1, 7):
        counted(torch.ones(batch, 2), 1.0)
    assert counted.nfe == 2
    guided = Gaussian(EDM(), torch.zeros(2), 1.0)
    guided.evaluations = 2
    counted = Counted(guided)
    counted.velocity(torch.ones(1, 2), 1.0)
    counted.eps(torch.ones(1, 2), 1.0)
    assert counted.nfe == 4


def test_counted_is_the_model() -> None:
    model, x = mixture(), torch.ones(2, 1)
    counted = Counted(model.given(Cond(labels=torch.tensor([0, 1]))))
    assert torch.equal(counted(x, 1.0).mean, model(x, 1.0, Cond(labels=torch.tensor([0, 1]))).mean)
    assert not torch.equal(counted(x, 1.0).mean, model(x, 1.0).mean)
    assert counted.shape == (1,)
    assert counted.num_classes == 2
    assert counted.null(Cond(labels=torch.tensor([0]))).labels.tolist() == [2]  # type: ignore[union-attr]


def test_macs_of_known_layers() -> None:
    x = torch.ones(3, 5)
    assert count_macs(nn.Linear(5, 7), x) == 3 * 5 * 7
    assert count_macs(nn.Conv2d(2, 4, 3, padding=1), torch.ones(1, 2, 6, 6)) == 6 * 6 * 9 * 2 * 4


def test_measured_seconds_and_memory() -> None:
    with measured() as cost:
        block = torch.ones(40_000_000)
        time.sleep(0.05)
    assert 0.05 < cost.seconds < 5
    with measured() as after:
        time.sleep(0.03)
    assert cost.peak_memory >= block.numel() * 4
    del block
    assert after.peak_memory > 0


def test_measured_keeps_the_time_of_a_failed_block() -> None:
    with pytest.raises(ZeroDivisionError), measured() as cost:
        _ = 1 / 0
    assert cost.seconds >= 0


def test_machine_says_what_a_timing_belongs_to() -> None:
    facts = machine()
    assert facts["torch"] == torch.__version__
    assert facts["cores"] >= 1
    assert facts["threads"] == torch.get_num_threads()


def test_evaluations_counts_images_forward_and_back_once_for_the_outer_call() -> None:
    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def trace(self, x: torch.Tensor) -> tuple[torch.Tensor, dict]:
            return self.inner(x), {}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.trace(x)[0]

    inner = nn.Linear(3, 3)
    outer = Outer(inner)
    with evaluations({"outer": outer, "inner": inner}, calls=True) as counted:
        outer(torch.zeros(5, 3)).sum().backward()
        with torch.no_grad():
            outer.trace(torch.zeros(2, 3))
        inner(torch.zeros(4, 3))  # a graph through which no gradient comes back
        counted.paused = True
        inner(torch.zeros(9, 3))
    assert (counted.forward, counted.backward, counted.total) == (11, 5, 21)
    told = [(call.name, call.method, len(call.args[0]), call.graph, call.back) for call in counted.calls]
    assert told == [
        ("outer", "forward", 5, True, True), ("outer", "trace", 2, False, False), ("inner", "forward", 4, True, False),
    ]  # fmt: skip
    outer(torch.zeros(7, 3))
    assert counted.forward == 11
    assert not {"forward", "trace"} & (set(vars(outer)) | set(vars(inner)))
