"""A very small image network, with everything that `Preconditioned` asks of one, and what samplers want estimated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond


class TinyNet(nn.Module):
    """Two convolutions and a time shift; smooth, so that rounding is not blown up."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.in_shape, self.num_classes = (1, 4, 4), None
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, channels, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def trace(self, x: Tensor, t: Tensor, cond: Cond | None = None, plan: object = None) -> tuple[Tensor, dict]:
        shift = torch.sin(t).reshape(-1, 1, 1, 1)
        return self.last(torch.tanh(self.first(x) + shift)), {}


@pytest.fixture
def tiny_net() -> Callable[..., nn.Module]:
    return TinyNet


@functools.cache
def smooth_statistics() -> Any:
    """Statistics for DPM-Solver-v3 that suit any image: smooth in lambda, over all levels that any schedule has. The
    sampler must converge with its order whatever they are."""
    from scoreline.samplers.model_statistics import ModelStatistics

    made = ModelStatistics(shape=(), nodes=800, low=-7.0, high=12.0).double()
    lam = torch.as_tensor(made.lam)
    made.l.copy_(torch.sigmoid(-2 * lam))
    made.s.copy_(-0.3 - 0.4 * torch.tanh(lam))
    made.b.copy_(0.2 / torch.cosh(lam))
    return made


@functools.cache
def level_predictor() -> nn.Module:
    """An untrained predictor of noise levels for the images of the networks here; a chain may follow any."""
    from scoreline.samplers.level_prediction import LevelPredictor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = LevelPredictor(in_shape=[1, 4, 4], channels=[8], levels=30, sigma_max=20.0)
    return made.eval()


@pytest.fixture(autouse=True)
def calibrations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model here has a file of statistics: the samplers that need some hold these from the start."""
    if "case" in request.fixturenames:
        from scoreline.samplers.dpm_solver_v3 import DPMSolverV3

        monkeypatch.setattr(DPMSolverV3, "_held", smooth_statistics())
        monkeypatch.setattr("scoreline.samplers.denoising_mcmc.find", lambda *_: level_predictor())
