"""DDPM: the posterior, its variances, and where it is exact."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.samplers.ddpm import DDPM, learned_log_variance
from scoreline.samplers.steps import posterior_step

F8 = torch.float64
TABLES = ["linear", "cosine", "quadratic", "sigmoid", "constant"]


@pytest.mark.check(system=9, number=2)
@pytest.mark.parametrize("name", TABLES)
def test_posterior_is_consistent(name: str) -> None:
    """c1 + c2 sqrt(abar_t) = sqrt(abar_{t-1}) for every t."""
    schedule = Discrete(betas=name)
    t = np.arange(999.0, -1, -1)
    c1, c2, small, large = posterior_step(schedule, t, t - 1)
    abar = np.append(schedule.abar, 1.0)
    now, before, beta = abar[t.astype(int)], abar[t.astype(int) - 1], schedule.betas[t.astype(int)]
    assert c1 + c2 * np.sqrt(now) == pytest.approx(np.sqrt(before), abs=1e-12)
    assert c1 == pytest.approx(beta * np.sqrt(before) / (1 - now), rel=1e-9)
    assert c2 == pytest.approx((1 - before) * np.sqrt(1 - beta) / (1 - now), rel=1e-9)
    assert small == pytest.approx(beta * (1 - before) / (1 - now), rel=1e-9)
    assert large == pytest.approx(beta, rel=1e-9)


@pytest.mark.parametrize("schedule", [VP(), EDM()], ids=lambda s: type(s).__name__)
def test_posterior_on_any_schedule_is_bayes(schedule: Schedule) -> None:
    """q(x_s | x_t, x_0) from q(x_s | x_0) and q(x_t | x_s), by precision weights."""
    t, s = schedule.time(np.array([-1.0, 0.5])), schedule.time(np.array([0.2, 1.1]))
    c1, c2, small, _ = posterior_step(schedule, t, s)
    ratio, std = schedule.transition(s, t)
    precision = 1 / schedule.sigma(s) ** 2 + ratio**2 / std**2
    assert small == pytest.approx(1 / precision, rel=1e-10)
    assert c1 == pytest.approx(schedule.alpha(s) / schedule.sigma(s) ** 2 / precision, rel=1e-10)
    assert c2 == pytest.approx(ratio / std**2 / precision, rel=1e-10)


@pytest.mark.check(system=9, number=8)
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize(
    "times", [[999.0, 998.0, 997.0], [40.0, 20.0, 0.0, -1.0], [3.0, 2.0, 1.0, 0.0, -1.0], [5.0, -1.0]]
)
def test_the_clean_step_adds_no_noise_and_its_log_is_finite(variance: str, times: list[float]) -> None:
    schedule = Discrete()
    rows = DDPM(variance=variance).coefficients(schedule, np.array(times))
    assert np.isfinite(rows["log_small"]).all()
    assert np.isfinite(rows["log_large"]).all()
    noisy = np.array(times[1:]) >= 0
    assert rows["noisy"].tolist() == noisy.tolist()
    assert (rows["std"] > 0).tolist() == noisy.tolist()
    _, _, small, large = posterior_step(schedule, np.array(times[:-1]), np.array(times[1:]))
    if times[-1] == -1:
        assert small[-1] == 0
        if len(times) > 2:
            assert rows["log_small"][-1] == pytest.approx(math.log(small[-2]))
    assert rows["log_large"] == pytest.approx(np.log(large))


def test_the_step_to_the_clean_end_is_the_mean() -> None:
    schedule = Discrete()
    model = Gaussian(schedule, torch.tensor([0.4, -0.1], dtype=F8), 0.3)
    x = torch.randn(3, 2, dtype=F8)
    for variance in ("small", "large"):
        ends = [
            DDPM(variance=variance)(model, Noise(seed).at(range(3), (2,), dtype=F8), times=[0.0, -1.0], x=x).x
            for seed in (0, 1)
        ]
        assert torch.equal(*ends)
        assert torch.allclose(ends[0], model(x, 0.0).mean, atol=1e-12)


@pytest.mark.check(system=9, number=4)
@pytest.mark.parametrize("times", [list(range(999, -1, -3)), [999, 700, 400, 90, 0]])
def test_large_variance_is_exact_on_standard_normal_data(times: list[int]) -> None:
    """x' = sqrt(alpha_t) x + sqrt(beta_t) xi, which keeps N(0, 1), on a respaced chain too."""
    schedule = Discrete()
    model = Gaussian(schedule, torch.zeros(2, dtype=F8), 1.0)
    draws = Noise(3).at(range(2), (2,), dtype=F8)
    x = start = draws.normal() * schedule.sigma(999.0)
    variance = 1.0
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        alpha = schedule.abar[t] / schedule.abar[s]
        x = math.sqrt(alpha) * x + math.sqrt(1 - alpha) * draws.normal(i + 1)
        variance = alpha * variance + 1 - alpha
    assert variance == pytest.approx(1, abs=1e-12)
    run = DDPM(variance="large")(model, draws, times=times, x=start).x
    assert torch.allclose(run, x, atol=1e-9)


@pytest.mark.check(system=9, number=4)
def test_small_variance_is_exact_for_a_point() -> None:
    """Every intermediate state has the mean and variance of q(x_t)."""
    schedule = Discrete()
    point = torch.tensor([0.6], dtype=F8).expand(40000)
    draws = Noise(3).at([0], (40000,), dtype=F8)
    model = Gaussian(schedule, point, 0.0)
    x = schedule.alpha(999.0) * point + schedule.sigma(999.0) * draws.normal()
    path = DDPM(variance="small")(model, draws, times=[999, 600, 200, 20], x=x, trajectory=True).trajectory
    assert path is not None
    for t, state in zip((600.0, 200.0, 20.0), path[1:]):
        sigma = schedule.sigma(t)
        assert state.mean().item() == pytest.approx(schedule.alpha(t) * 0.6, abs=5 * sigma / 200)
        assert state.std().item() == pytest.approx(sigma, rel=5 / math.sqrt(2 * 40000))
    assert torch.allclose(
        DDPM(variance="small")(model, draws, times=[999, 200, -1], x=x).x, point.expand(1, 40000), atol=1e-10
    )


def test_small_variance_is_wrong_for_wide_data_and_large_for_a_point() -> None:
    """The two are not interchangeable: exchanging their columns would be seen."""
    schedule = Discrete()
    small, large = (
        DDPM(variance=v).coefficients(schedule, np.array([999.0, 500.0, 250.0])) for v in ("small", "large")
    )
    assert (large["std"] > small["std"] * 1.001).all()
    assert DDPM().variance == "large"


class Learned(Denoiser):
    """A Gaussian that also says how to mix the variances."""

    def __init__(self, schedule: Schedule, mix: float) -> None:
        super().__init__()
        self.inner, self.schedule, self.shape, self.mix = Gaussian(schedule, torch.zeros(2), 1.0), schedule, (2,), mix

    def posterior(self, x: torch.Tensor, t: float, cond: Cond | None) -> Posterior:
        post = self.inner(x, t, cond)
        post.mix = torch.full_like(x, self.mix)
        return post


@pytest.mark.parametrize("times", [[999.0, 500.0, 20.0, 0.0], [60.0, 20.0, -1.0]])
def test_learned_variance_lies_between_the_two(times: list[float]) -> None:
    """mix = 1 is log beta, mix = -1 log beta~, 0 their geometric mean."""
    schedule = Discrete()
    draws = Noise(1).at(range(3), (2,), dtype=F8)
    plain = Gaussian(schedule, torch.zeros(2, dtype=F8), 1.0)
    for mix, variance in ((1.0, "large"), (-1.0, "small")):
        learned = DDPM(variance="learned")(Learned(schedule, mix), draws, times=times).x
        assert torch.allclose(learned, DDPM(variance=variance)(plain, draws, times=times).x, atol=1e-10)
    assert learned_log_variance(torch.tensor(0.0), math.log(4.0), math.log(1.0)).exp().item() == pytest.approx(2.0)
    assert learned_log_variance(torch.tensor(0.5), 1.0, 0.0).item() == pytest.approx(0.75)


def test_learned_variance_needs_a_model_that_learned_it() -> None:
    model = Gaussian(Discrete(), torch.zeros(2), 1.0)
    with pytest.raises(InputError, match="learned no variance"):
        DDPM(variance="learned", steps=3)(model, Noise(0).at([0], (2,)))
    with pytest.raises(InputError, match="did you mean 'large'"):
        DDPM(variance="larg")


def test_zero_terminal_snr_starts_from_pure_noise() -> None:
    schedule = Discrete(zero_terminal_snr=True)
    model = Gaussian(schedule, torch.tensor([0.4, -0.1], dtype=F8)[:, None].expand(2, 4000), 1.0)
    draws = Noise(0).at([0], (2, 4000), dtype=F8)
    # Large variance is exact for data of variance 1; the last step adds none.
    x = DDPM(steps=25, grid="linspace")(model, draws).x[0]
    assert x.mean(1).tolist() == pytest.approx([0.4, -0.1], abs=5 / math.sqrt(4000))
    assert x.var(1).tolist() == pytest.approx([1.0, 1.0], rel=5 * math.sqrt(2 / 4000))
