"""The variational bound: closed forms of its parts and the exact model's own bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from scoreline.diffusion.schedules import Discrete
from scoreline.diffusion.variational import (
    approximate_normal_cdf,
    discretized_gaussian_nll,
    log_variances,
    normal_kl,
    posterior_coefficients,
    prior_bits,
    vlb_term,
)

F8 = torch.float64
TABLES = [Discrete(T=40), Discrete(betas="cosine", T=40), Discrete(betas="quadratic", T=40)]
tables = pytest.mark.parametrize("schedule", TABLES, ids=["linear", "cosine", "quadratic"])
LEVELS = torch.linspace(-1, 1, 256, dtype=F8)


def test_kl_of_gaussians():
    torch.manual_seed(0)
    m1, l1, m2, l2 = torch.randn(4, 30, dtype=F8)
    assert torch.equal(normal_kl(m1, l1, m1, l1), torch.zeros(30, dtype=F8))
    want = kl_divergence(Normal(m1, (l1 / 2).exp()), Normal(m2, (l2 / 2).exp()))
    torch.testing.assert_close(normal_kl(m1, l1, m2, l2), want)


def test_cdf_is_the_normal_one_to_its_known_error():
    x = torch.linspace(-5, 5, 1001, dtype=F8)
    error = (approximate_normal_cdf(x) - Normal(0.0, 1.0).cdf(x)).abs()
    assert 1e-4 < float(error.max()) < 4e-4
    assert float(approximate_normal_cdf(torch.zeros(1, dtype=F8))) == 0.5
    want = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))
    assert float(approximate_normal_cdf(torch.ones(1, dtype=F8))) == pytest.approx(want, abs=1e-15)


@pytest.mark.parametrize("mean, std", [(0.0, 0.5), (0.93, 0.02), (-1.0, 0.1), (1.4, 0.3), (0.1, 3.0)])
def test_the_256_bins_hold_all_the_mass(mean, std):
    nll = discretized_gaussian_nll(LEVELS, torch.full_like(LEVELS, mean), torch.full_like(LEVELS, math.log(std)))
    mass = (-nll).exp()
    assert float(mass[mass > 2e-12].sum()) == pytest.approx(1, abs=1e-9)
    # A bin's mass is that of its own interval, width 2/255.
    edges = (LEVELS[1:] + LEVELS[:-1]) / 2
    cdf = approximate_normal_cdf((edges - mean) / std)
    want = torch.cat([cdf[:1], cdf.diff(), 1 - cdf[-1:]])
    torch.testing.assert_close(mass, want.clamp(min=1e-12), rtol=1e-6, atol=1e-12)


def test_impossible_bins_are_floored_at_1e_12():
    far = discretized_gaussian_nll(torch.tensor([0.5]), torch.tensor([-0.9]), torch.tensor([-6.0]))
    assert float(far) == pytest.approx(-math.log(1e-12))


@tables
@pytest.mark.check(system=9, number=2)
def test_posterior_coefficients_are_consistent(schedule):
    c1, c2 = posterior_coefficients(schedule)
    previous = np.append(1.0, schedule.abar[:-1])
    np.testing.assert_allclose(c1 + c2 * np.sqrt(schedule.abar), np.sqrt(previous), rtol=0, atol=1e-12)
    # Bayes' rule from the two Gaussians q(x_(t-1)|x_0) and q(x_t|x_(t-1)).
    t = 17
    precision = 1 / (1 - previous[t]) + (1 - schedule.betas[t]) / schedule.betas[t]
    assert c1[t] == pytest.approx(math.sqrt(previous[t]) / (1 - previous[t]) / precision)
    assert c2[t] == pytest.approx(math.sqrt(1 - schedule.betas[t]) / schedule.betas[t] / precision)
    small, large = log_variances(schedule)
    assert math.exp(small[t]) == pytest.approx(1 / precision)
    np.testing.assert_allclose(np.exp(large), schedule.betas)
    assert (small <= large + 1e-12)[1:].all()


@tables
@pytest.mark.check(system=9, number=8)
def test_posterior_variance_at_0_is_0_and_its_clipped_log_finite(schedule):
    previous = np.append(1.0, schedule.abar[:-1])
    raw = schedule.betas * (1 - previous) / (1 - schedule.abar)
    small, _ = log_variances(schedule)
    assert raw[0] == 0
    assert np.isfinite(small).all()
    assert small[0] == small[1] == pytest.approx(math.log(raw[1]))
    c1, c2 = posterior_coefficients(schedule)
    assert (c1[0], c2[0]) == pytest.approx((1, 0))


@tables
def test_the_exact_model_of_a_point_mass_pays_nothing_above_level_0(schedule):
    """With E[x_0|x_t] = x_0 and learned variance beta~ (mix = -1) p_theta is the posterior itself."""
    torch.manual_seed(0)
    x0 = torch.randn(39, 1, 2, 2, dtype=F8).clamp(-1, 1)
    t = torch.arange(1, 40, dtype=F8)
    x = schedule.marginal(x0, t, torch.randn_like(x0))
    assert vlb_term(schedule, x0, x, t, x0, torch.full_like(x0, -1.0)).abs().max() < 1e-12
    # With variance beta (mix = 1) each dimension pays 1/2 (log r - 1 + 1/r) nats, r = beta/beta~.
    small, large = (torch.from_numpy(v[1:]) for v in log_variances(schedule))
    want = 0.5 * ((large - small) - 1 + (small - large).exp()) / math.log(2)
    torch.testing.assert_close(vlb_term(schedule, x0, x, t, x0, torch.ones_like(x0)), want)
    # Halfway it is the geometric mean of the two.
    half = 0.5 * ((large - small) / 2 - 1 + ((small - large) / 2).exp()) / math.log(2)
    torch.testing.assert_close(vlb_term(schedule, x0, x, t, x0, torch.zeros_like(x0)), half)
    # A mean wrong by d pays c1^2 d^2/(2 beta~) more.
    c1 = torch.from_numpy(posterior_coefficients(schedule)[0][1:])
    off = vlb_term(schedule, x0, x, t, x0 + 0.3, torch.full_like(x0, -1.0))
    torch.testing.assert_close(off, (0.3 * c1) ** 2 / (2 * small.exp()) / math.log(2))


def test_level_0_is_the_discretised_likelihood_in_bits():
    schedule = TABLES[0]
    x0 = LEVELS[[3, 100, 255, 0]].view(1, 1, 2, 2)
    x = x0 + 0.01
    mean = x0 + 0.002
    small, large = log_variances(schedule)
    got = vlb_term(schedule, x0, x, torch.zeros(1, dtype=F8), mean, torch.full_like(x0, 0.5))
    std = torch.tensor(0.5 * (0.75 * large[0] + 0.25 * small[0]), dtype=F8)
    want = discretized_gaussian_nll(x0, mean, std.expand_as(x0)).mean() / math.log(2)
    torch.testing.assert_close(got, want[None])


def test_bound_of_each_image_is_its_own_and_float32_agrees():
    schedule = TABLES[1]
    torch.manual_seed(1)
    x0, noise, mean, mix = torch.randn(4, 5, 1, 2, 2, dtype=F8).clamp(-1, 1)
    t = torch.tensor([0.0, 1, 7, 20, 39], dtype=F8)
    x = schedule.marginal(x0, t, noise)
    whole = vlb_term(schedule, x0, x, t, mean, mix)
    for row in range(5):
        part = slice(row, row + 1)
        torch.testing.assert_close(vlb_term(schedule, x0[part], x[part], t[part], mean[part], mix[part]), whole[part])
    low = vlb_term(schedule, x0.float(), x.float(), t, mean.float(), mix.float())
    torch.testing.assert_close(low.double(), whole, rtol=2e-4, atol=1e-5)


def test_prior_term():
    schedule = Discrete(T=10, betas=[0.1] * 10)
    abar = 0.9**10
    x0 = torch.full((2, 1, 2, 2), 0.5, dtype=F8)
    want = 0.5 * (abar * 0.25 + (1 - abar) - 1 - math.log(1 - abar)) / math.log(2)
    torch.testing.assert_close(prior_bits(schedule, x0), torch.full((2,), want, dtype=F8))
    assert float(prior_bits(Discrete(zero_terminal_snr=True), x0).max()) == 0


def test_each_term_of_the_exact_gaussian_model_is_the_information_of_its_step():
    """Data N(0, 1), its exact model with variance beta: E L_t = I(x_0; x_(t-1)) - I(x_0; x_t)."""
    schedule = Discrete(T=30)
    rng = torch.Generator().manual_seed(0)
    count = 20000
    x0 = torch.randn(count, 1, generator=rng, dtype=F8)
    previous = np.append(1.0, schedule.abar[:-1])
    for t in (1, 12, 29):
        x = schedule.marginal(x0, float(t), torch.randn(count, 1, generator=rng, dtype=F8))
        mean = math.sqrt(schedule.abar[t]) * x  # E[x_0|x_t] of N(0, 1)
        # p(x_(t-1)|x_t) of N(0, 1) data is N(sqrt(1 - beta) x_t, beta): mix = 1.
        got = vlb_term(schedule, x0, x, torch.full((count,), float(t)), mean, torch.ones_like(x0)).mean()
        # I(x_0; x_t) = -1/2 log(1 - abar_t).
        want = -0.5 * math.log2((1 - previous[t]) / (1 - schedule.abar[t]))
        assert float(got) == pytest.approx(want, rel=0.05)
