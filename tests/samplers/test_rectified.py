"""Sampling rectified flows as their released code does: grids, labels, and noise that leaves the marginals alone."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import Flow
from scoreline.nn.mlp import MLP
from scoreline.samplers.euler import Euler
from scoreline.samplers.rectified import euler, euler_times, pipeline_labels, stochastic_drift, time_label

F8 = torch.float64
MU, S = 0.7, 0.4
MODEL = Gaussian(Flow(), torch.tensor([MU], dtype=F8), S * S)


def velocity(x, t):
    return -MODEL.velocity(x, 1 - t)


def draws(count: int = 5):
    return Noise(2).at(range(count), (1,), dtype=F8)


@pytest.mark.check(system=13, number=10)
def test_the_pipelines_labels_are_what_euler_asks_a_flow_for():
    assert pipeline_labels(4) == [1000.0, 750.0, 500.0, 250.0]
    net = MLP(in_shape=(1,), width=4, depth=1)
    told: list[float] = []
    trace = net.trace
    net.trace = lambda x, t, *rest: told.extend(t.tolist()) or trace(x, t, *rest)  # type: ignore[method-assign]
    Euler(steps=4)(Preconditioned(net, Flow(), kind="flow"), Noise(0).at([0], (1,)))
    assert told == pipeline_labels(4)
    assert [time_label(i / 4, "pipeline") for i in range(4)] == pipeline_labels(4)
    assert time_label(0.0) == 0.0
    assert time_label(1.0) == 999.0
    with pytest.raises(InputError, match="cifar10"):
        time_label(0.5, "cifar")


def test_grids():
    times, steps = euler_times(4)
    assert times.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert steps.tolist() == [0.25] * 4
    times, steps = euler_times(4, variant="released")
    assert times == pytest.approx([0.001, 0.25075, 0.5005, 0.75025])
    assert steps.tolist() == [0.25] * 4
    assert euler_times(1, eps=0.01, variant="released")[0].tolist() == [0.01]
    for bad in ({"steps": 0}, {"steps": 2, "variant": "relesed"}):
        with pytest.raises(InputError):
            euler_times(**bad)  # type: ignore[arg-type]


def test_on_the_papers_grid_it_is_the_sampler_and_the_released_one_is_off_by_eps():
    ours = Euler(steps=8)(MODEL, draws()).x
    assert torch.allclose(euler(velocity, draws().normal(), 8), ours, atol=1e-12)
    released = euler(velocity, draws().normal(), 8, variant="released")
    assert 1e-5 < (released - ours).abs().max() < 3e-3
    # the model is told 0.999 t of ours while the state stands at t
    z = draws().normal()
    assert torch.allclose(euler(velocity, z, 1, variant="released"), z - MODEL.velocity(z, 0.999), atol=1e-12)


@pytest.mark.check(system=13, number=5)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_straight_field_gives_the_same_in_any_number_of_steps(steps: int):
    z = draws().normal()
    for variant in ("paper", "released"):
        assert torch.allclose(euler(lambda x, t: torch.full_like(x, 2.5), z, steps, variant=variant), z + 2.5)


def test_noise_leaves_every_marginal_as_it_is():
    """The drift is linear, dx = (a x + b) dt + sigma dW, so that mean and variance follow ODEs: m' = a m + b and
    var' = 2 a var + sigma^2 must be those of X_t = t X_1 + (1 - t) X_0."""

    def line(t: float, sigma: float, variant: str = "paper") -> tuple[float, float]:
        x = torch.tensor([[0.0], [1.0]], dtype=F8)
        b, a_b = stochastic_drift(velocity(x, t), x, t, sigma, variant=variant).flatten().tolist()
        return a_b - b, b

    for t in (0.0, 0.3, 0.8):
        mean, var = t * MU, (t * S) ** 2 + (1 - t) ** 2
        slope_of_var = 2 * t * S * S - 2 * (1 - t)
        for sigma in (0.0, 0.5, 2.0):
            a, b = line(t, sigma)
            assert a * mean + b == pytest.approx(MU)
            assert 2 * a * var + sigma**2 == pytest.approx(slope_of_var)
    # the released drift agrees at the start alone
    assert line(0.0, 1.0, "released") == pytest.approx(line(0.0, 1.0))
    a, b = line(0.5, 1.0, "released")
    assert a * 0.5 * MU + b != pytest.approx(MU, abs=0.01)
    half = 1.0 / (2 * 0.5**2)
    x = torch.tensor([[0.3]], dtype=F8)
    v = velocity(x, 0.5)
    expected = v + half * (0.5 * 0.5 * 0.5 * v - 0.5 * 1.5 * x)
    assert torch.allclose(stochastic_drift(v, x, 0.5, 1.0, variant="released"), expected)


def test_a_noisy_run_has_the_datas_moments():
    many = Noise(5).at(range(2000), (1,), dtype=F8)
    x = euler(velocity, many.normal(), 100, sigma_var=1.5, draws=many)
    still = euler(velocity, many.normal(), 100)
    assert x.mean().item() == pytest.approx(MU, abs=0.03)
    assert x.std().item() == pytest.approx(S, abs=0.03)
    assert (x - still).abs().mean() > 0.1
    # one step: sigma_0 = sigma_var, and the drift towards the mean
    z = many.normal()
    one = euler(velocity, z, 1, sigma_var=0.5, draws=many)
    assert torch.allclose(one, z + velocity(z, 0.0) - 0.125 * z + 0.5 * math.sqrt(1.0) * many.normal(1))
    with pytest.raises(InputError, match="streams"):
        euler(velocity, z, 1, sigma_var=0.5)
