"""The kernel density of pairs: its formula by hand, its limits, what it is told."""

from __future__ import annotations

import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.joint_kernel import JointKernel, nearest_distance
from scoreline.diffusion.schedules import Discrete

TABLE = Discrete(betas="quadratic")
G = torch.Generator().manual_seed(0)
Y = torch.randn(6, 1, 2, 2, generator=G, dtype=torch.float64)
S = torch.randn(6, 1, 2, 2, generator=G, dtype=torch.float64)


def test_the_mean_by_hand():
    h, rho = 0.15, 0.7
    model = JointKernel(TABLE, Y, S, smoothing=h, width=rho)
    x, told = torch.randn(2, 3, 1, 2, 2, generator=G, dtype=torch.float64)
    t = torch.tensor([50.0, 400.0, 900.0], dtype=torch.float64)
    found = model(x, t, Cond(image=told)).mean
    for b in range(3):
        alpha, sigma = TABLE.alpha(float(t[b])), TABLE.sigma(float(t[b]))
        total = alpha**2 * h**2 + sigma**2
        near = ((x[b] - alpha * Y) ** 2).flatten(1).sum(1) / (2 * total)
        side = ((told[b] - S) ** 2).flatten(1).sum(1) / (2 * rho**2)
        w = (-near - side).softmax(0).view(-1, 1, 1, 1)
        expected = (w * (sigma**2 * Y + alpha * h**2 * x[b]) / total).sum(0)
        assert torch.allclose(found[b], expected, atol=1e-10)
    bound = model.given(Cond(image=told))
    assert torch.allclose(bound(x, t).mean, found)


def test_its_limits():
    x, t = torch.randn(6, 1, 2, 2, generator=G, dtype=torch.float64), 700.0
    wide = JointKernel(TABLE, Y, S, width=1e6)
    assert torch.allclose(wide(x, t, Cond(image=S)).mean, Empirical(TABLE, Y, smoothing=0.15)(x, t).mean, atol=1e-8)
    narrow = JointKernel(TABLE, Y, S, smoothing=0.0, width=1e-3)
    assert torch.allclose(narrow(x, t, Cond(image=S)).mean, Y, atol=1e-8)
    assert torch.allclose(narrow(x, t).mean, Empirical(TABLE, Y)(x, t).mean)


def test_widths_and_bad_input():
    points = torch.tensor([[0.0], [3.0], [4.0], [9.0]])
    assert nearest_distance(points) == 1.0
    assert JointKernel(TABLE, Y, S).width == pytest.approx(nearest_distance(S))
    with pytest.raises(InputError, match="source"):
        JointKernel(TABLE, Y, S[:2])
    with pytest.raises(InputError, match="width"):
        JointKernel(TABLE, Y, torch.zeros_like(S))
    with pytest.raises(InputError, match="labels"):
        JointKernel(TABLE, Y, S).given(Cond(labels=torch.zeros(1)))
