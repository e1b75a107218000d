"""Training levels: their distributions by their own quantiles, and per-image independence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from scoreline.core.errors import InputError
from scoreline.diffusion.levels import (
    LEVELS,
    antithetic,
    draw_levels,
    logit_normal,
    lognormal,
    mirrored,
    one_sided,
    u_shaped,
    u_shaped_density,
    u_shaped_quantile,
    uniform,
    uniform_index,
)
from scoreline.diffusion.schedules import EDM, VE, VP, Discrete, Flow

F8 = torch.float64
U = torch.tensor([0.1, norm.cdf(-1.0), 0.5, norm.cdf(2.0)], dtype=F8)


@pytest.mark.parametrize("schedule", [EDM(), VP(), VE(), Flow()], ids=lambda s: type(s).__name__)
def test_lognormal_is_normal_in_log_sigma_over_alpha(schedule):
    t = lognormal(U, schedule, mean=-0.4, std=0.7)
    got = (schedule.sigma(t) / schedule.alpha(t)).log()
    torch.testing.assert_close(got[1:], torch.tensor([-1.1, -0.4, 1.0], dtype=F8))
    # EDM's own figures are the defaults.
    assert float(lognormal(U, EDM())[1]) == pytest.approx(math.exp(-2.4))


def test_uniform_covers_the_range():
    schedule = VP(t_min=0.1, t_max=0.9)
    assert uniform(torch.tensor([0.0, 0.25], dtype=F8), schedule).tolist() == pytest.approx([0.1, 0.3])


def test_uniform_index_gives_every_level_its_share():
    schedule = Discrete(T=25)
    fine = (torch.arange(2500, dtype=F8) + 0.5) / 2500
    assert (torch.bincount(uniform_index(fine, schedule).long(), minlength=25) == 100).all()
    ends = uniform_index(torch.tensor([0.0, 1 - 2.0**-53], dtype=F8), schedule)
    assert ends.tolist() == [0.0, 24.0]
    with pytest.raises(InputError, match="no table"):
        uniform_index(fine, VP())


def test_logit_normal():
    t = logit_normal(U, Flow(), mean=0.3, std=0.5)
    torch.testing.assert_close(torch.logit(t[1:]), torch.tensor([-0.2, 0.3, 1.3], dtype=F8))


@pytest.mark.parametrize("name", sorted(LEVELS))
@pytest.mark.parametrize("schedule", [EDM(), VP(), Flow(), Discrete(T=50)], ids=lambda s: type(s).__name__)
def test_levels_are_a_function_of_each_images_own_draw(name, schedule):
    if name == "uniform-index" and schedule.known is None:
        return
    u = torch.tensor([0.0, 1e-12, 0.3, 0.9999, 1 - 2.0**-53], dtype=F8)
    t = draw_levels(name, u, schedule)
    assert t.dtype == F8
    assert t.shape == (5,)
    assert torch.isfinite(t).all()
    assert (t.diff() >= 0).all()
    for row in range(5):
        assert torch.equal(draw_levels(name, u[row : row + 1], schedule), t[row : row + 1])
    if schedule.known is not None:
        assert set(t.tolist()) <= set(schedule.known.tolist())


def test_unknown_rule():
    with pytest.raises(InputError, match="did you mean 'lognormal'"):
        draw_levels("log-normal", U, EDM())


def test_antithetic_pairs():
    t = torch.tensor([3.0, 7.0, 0.0, 9.0, 5.0])
    assert antithetic(t, 10).tolist() == [3, 7, 0, 6, 2]
    assert antithetic(t[:4], 10).tolist() == [3, 7, 0, 6]
    assert antithetic(t[:1], 10).tolist() == [3]
    assert antithetic(t[:0], 10).tolist() == []
    pairs = antithetic(torch.arange(100, 0, -1.0), 101)
    assert pairs[:49].add(pairs[51:]).unique().tolist() == [100]


def test_antithetic_levels_stay_uniform():
    rng = np.random.default_rng(0)
    u = torch.from_numpy(rng.random((500, 4)))
    t = torch.stack([antithetic(draw_levels("uniform-index", row, Discrete(T=1000)), 1000) for row in u])
    assert kstest((t.flatten().numpy() + 0.5) / 1000, "uniform").pvalue > 1e-3
    assert float(t[:, 3].add(t[:, 0]).unique()) == 999


@pytest.mark.check(system=19, number=1)
@pytest.mark.parametrize("a", [0.5, 4.0, 9.0])
def test_the_u_shaped_density(a: float):
    t = torch.linspace(0, 1, 20_001, dtype=F8)
    p = u_shaped_density(t, a)
    assert float(torch.trapezoid(p, t)) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(p, p.flip(0))
    assert float(p[0]) == pytest.approx(a * (math.exp(a) + 1) / (2 * (math.exp(a) - 1)))
    assert float(p[10_000]) == pytest.approx(a / (2 * math.sinh(a / 2)))
    # both of its printed forms
    other = a * (torch.exp(a * t) + torch.exp(a * (1 - t))) / (2 * (math.exp(a) - 1))
    torch.testing.assert_close(p, other)
    if a == 4:
        assert [round(float(v), 4) for v in (p[0], p[10_000])] == [2.0746, 0.5514]
    near = u_shaped_density(t, 1e-4)
    torch.testing.assert_close(near, torch.ones_like(t), atol=1e-7, rtol=0)
    assert torch.equal(u_shaped_density(t, 0.0), torch.ones_like(t))


@pytest.mark.check(system=19, number=1)
def test_times_of_the_u_have_its_density():
    u = (torch.arange(4000, dtype=F8) + 0.5) / 4000
    # the quantile undoes the distribution function, whose derivative is the density
    for a in (0.0, 0.3, 4.0, 9.0):
        t = u_shaped_quantile(u, a)
        slope = t.diff() / u.diff()
        torch.testing.assert_close(1 / slope, u_shaped_density((t[1:] + t[:-1]) / 2, a), rtol=1e-2, atol=1e-4)
        assert ((t >= 0) & (t <= 1)).all()
        torch.testing.assert_close(t + t.flip(0), torch.ones_like(t))
    # one half of the U: q(u) = a e^(a u)/(e^a - 1)
    half = one_sided(u, 4.0)
    q = 4 * torch.exp(4 * (half[1:] + half[:-1]) / 2) / (math.exp(4) - 1)
    torch.testing.assert_close(u.diff() / half.diff(), q, rtol=1e-3, atol=0)
    assert torch.equal(one_sided(u, 0.0), u)
    # with its mirror image it is the U
    both, _ = torch.cat([half, 1 - half]).sort()
    torch.testing.assert_close(both[::2], u_shaped_quantile(u, 4.0), atol=2e-3, rtol=0)
    flow = Flow(t_min=1e-5, t_max=1 - 1e-5)
    ends = u_shaped(torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=F8), flow)
    assert ends.tolist() == pytest.approx([1e-5, 0.5, 1 - 1e-5], abs=1e-12)
    torch.testing.assert_close(draw_levels("u-shaped", u, flow), 1e-5 + (1 - 2e-5) * u_shaped_quantile(u))
    for broken in (lambda: u_shaped_density(u, -1.0), lambda: one_sided(u, -1.0), lambda: u_shaped_quantile(u, -1.0)):
        with pytest.raises(InputError, match="steepness"):
            broken()


def test_a_batch_of_the_released_code_is_half_of_times_and_mirror_images():
    r = torch.tensor([0.1, 0.6, 0.9], dtype=F8)
    u = one_sided(r)
    keys = torch.tensor([0.5, 0.9, 0.1, 0.8, 0.7, 0.3], dtype=F8)
    torch.testing.assert_close(mirrored(r, keys), torch.stack([u[2], 1 - u[2], u[0]]))
    rng = np.random.default_rng(0)
    times = torch.cat([mirrored(*(torch.from_numpy(rng.random(n)) for n in (8, 16))) for _ in range(250)])
    a = 4.0
    p_value = kstest(times.numpy(), lambda t: 0.5 + np.sinh(a * (t - 0.5)) / (2 * math.sinh(a / 2))).pvalue
    assert p_value > 1e-3
    with pytest.raises(InputError, match="two for each"):
        mirrored(r, keys[:3])
