"""ER-SDE: noise scales by their formulas, DDIM at both ends, the variance that first-order steps keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, Discrete
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.er_sde import ERSDE, NOISE_SCALES, er_sde_step, noise_scale

TABLE = Discrete(betas="quadratic")
TIMES = [999.0, 991.0, 700.0, 24.0, 8.0]
FORMULAS = {
    "ode": lambda x: x,
    "sde": lambda x: x**2,
    "er-sde-1": lambda x: x * (math.exp(-1 / x) + 10),
    "er-sde-2": lambda x: x**1.5,
    "er-sde-3": lambda x: x**2.5,
    "er-sde-4": lambda x: x**0.9 * math.log10(1 + 100 * x**1.5),
    "er-sde-5": lambda x: x * (math.exp(x**0.3) + 10),
}


@pytest.mark.parametrize("phi", list(NOISE_SCALES))
def test_noise_scales(phi: str) -> None:
    at = [0.02, 0.7, 1.0, 14.6]
    want = [FORMULAS[phi](x) for x in at]
    assert np.allclose(noise_scale(np.array(at), phi), want, rtol=1e-12)
    assert np.allclose(noise_scale(torch.tensor(at, dtype=torch.float64), phi).numpy(), want, rtol=1e-12)
    assert noise_scale(0.0, phi) == noise_scale(-0.0, phi) == 0


@pytest.mark.check(system=10, number=2)
@pytest.mark.parametrize("phi, eta", [("ode", 0.0), ("sde", 1.0)])
def test_the_ends_are_ddim(phi: str, eta: float) -> None:
    torch.manual_seed(0)
    model = Preconditioned(MLP(in_shape=(3,), width=16, depth=2).double(), TABLE, kind="eps")
    draws = Noise(0).at(range(4), (3,), dtype=torch.float64)
    ours = ERSDE(phi=phi)(model, draws, times=TIMES, trajectory=True).trajectory
    theirs = DDIM(eta=eta)(model, draws, times=TIMES, trajectory=True).trajectory
    assert ours is not None
    assert theirs is not None
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs)) < 1e-12
    # Between them: another image.
    assert (ERSDE()(model, draws, times=TIMES).x - ours[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("phi", list(NOISE_SCALES))
def test_a_step_by_its_formula(phi: str) -> None:
    t, s = np.array([999.0, 500.0]), np.array([900.0, 24.0])
    a, b, std = er_sde_step(TABLE, t, s, phi)
    now, later = (TABLE.sigma(v) / TABLE.alpha(v) for v in (t, s))
    r = noise_scale(later, phi) / noise_scale(now, phi)
    assert np.allclose(a, TABLE.alpha(s) / TABLE.alpha(t) * r, rtol=1e-12)
    assert np.allclose(b, TABLE.alpha(s) * (1 - r), rtol=1e-12)
    # A point x_0 alone: alpha x_0 + sigma eps stays that, with the variance that noise and xi leave together.
    assert np.allclose(a * TABLE.alpha(t) + b, TABLE.alpha(s), rtol=1e-12)
    assert np.allclose((a * TABLE.sigma(t)) ** 2 + std**2, TABLE.sigma(s) ** 2, rtol=1e-12)
    assert (std > 0).all() == (phi != "ode")


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'er-sde-5'"):
        ERSDE(phi="er-sde-6")
    with pytest.raises(InputError, match="infinite"):
        ERSDE().coefficients(Discrete(zero_terminal_snr=True), [999.0, 500.0])
    assert (ERSDE(phi="ode").order, ERSDE().order, ERSDE(phi="ode").stochastic) == (1, None, False)
    assert len(ERSDE(steps=3).times(EDM())) == 4
