"""Training levels: their distributions by their own quantiles, and per-image independence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from scoreline.core.errors import InputError
from scoreline.diffusion.levels import LEVELS, antithetic, draw_levels, logit_normal, lognormal, uniform, uniform_index
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
