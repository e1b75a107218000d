"""A very small image network, with everything that `Preconditioned` asks of one."""

from __future__ import annotations

from collections.abc import Callable

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
