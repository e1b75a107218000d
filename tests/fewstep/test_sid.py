"""SiD's loss against the printed formula and exact Gaussians, and the method in the loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.matching import Matched
from scoreline.fewstep.sid import FLOOR, SiD, sid_loss
from scoreline.nn.mlp import MLP

G = torch.Generator().manual_seed(0)
X, REAL, FAKE = (torch.randn(5, 2, 3, 3, generator=G, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_the_printed_formula_summed_over_pixels_and_over_the_normaliser(alpha):
    omega = (X - REAL).abs().mean((1, 2, 3))
    expected = ((REAL - FAKE) * ((REAL - X) - alpha * (REAL - FAKE))).sum((1, 2, 3))
    assert torch.allclose(sid_loss(X, REAL, FAKE, alpha), expected / omega, atol=1e-12)
    assert torch.allclose(sid_loss(X, REAL, FAKE, alpha, None), expected, atol=1e-12)
    if alpha == 1:
        assert torch.allclose(expected, ((REAL - FAKE) * (FAKE - X)).sum((1, 2, 3)), atol=1e-12)


def test_the_normaliser_has_a_floor_and_no_gradient():
    near = X + 1e-7
    assert torch.allclose(sid_loss(X, near, FAKE, 1.0), ((near - FAKE) * (FAKE - X)).sum((1, 2, 3)) / FLOOR)
    with pytest.raises(InputError, match="positive"):
        sid_loss(X, REAL, FAKE, floor=0.0)
    x, real = X.clone().requires_grad_(), REAL.clone().requires_grad_()
    sid_loss(x, real, FAKE).sum().backward()
    omega = (X - REAL).abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(x.grad, -(REAL - FAKE) / omega)
    assert torch.allclose(real.grad, ((REAL - X) - 1.2 * (REAL - FAKE) + (1 - 1.2) * (REAL - FAKE)) / omega)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_with_an_exact_critic_its_value_is_a_share_of_the_squared_gap(alpha):
    # quadrature over x_0 ~ N(m, s^2) and the noise, exact for squares
    node, weight = np.polynomial.hermite_e.hermegauss(6)
    z, eps = (torch.from_numpy(v.ravel()) for v in np.meshgrid(node, node))
    w = torch.from_numpy(np.outer(weight, weight).ravel() / weight.sum() ** 2)
    m, s, sigma = 0.4, 0.7, 0.5
    student = Gaussian(EDM(), torch.tensor([m], dtype=torch.float64), s**2)
    teacher = Gaussian(EDM(), torch.tensor([-0.2], dtype=torch.float64), 1.0)
    x = (m + s * z)[:, None]
    x_t = x + sigma * eps[:, None]
    real, fake = teacher(x_t, sigma).mean, student(x_t, sigma).mean
    value = (w * sid_loss(x, real, fake, alpha, None)).sum()
    assert value == pytest.approx(float((1 - alpha) * (w * (real - fake).square()[:, 0]).sum()), abs=1e-12)


def test_the_method_has_the_papers_settings_and_its_own_loss():
    torch.manual_seed(0)
    teacher = Preconditioned(MLP(in_shape=(3,), width=8, depth=1), EDM())
    made = SiD(SiD.student_of(teacher), teacher)
    assert made.start_levels == [2.5]
    assert [update.name for update in made.updates] == ["critic", "student"]
    assert made.updates[0].settings == {"betas": (0.0, 0.999)}
    m = Matched(X, X, torch.ones(5), X, REAL, FAKE)
    assert made.term(m) == pytest.approx(100 * float(sid_loss(X, REAL, FAKE, 1.2).mean()))
    with pytest.raises(InputError, match="positive"):
        SiD(SiD.student_of(teacher), teacher, floor=-1.0)
    with pytest.raises(InputError, match="positive"):
        SiD(SiD.student_of(teacher), teacher, scale=0.0)
