"""Denoisers: views, changes of schedule, posteriors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, affine
from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.schedules import EDM, VP, Discrete, Flow
from scoreline.samplers.ddim import DDIM

F8 = torch.float64
SCHEDULES = [lookup("schedule", name)() for name in names("schedule")]


def gaussian(schedule: Schedule) -> Gaussian:
    return Gaussian(schedule, torch.tensor([0.4, -1.0], dtype=F8), torch.tensor([0.3, 0.05], dtype=F8))


def test_affine_is_a_x_plus_b_y() -> None:
    x, y = torch.randn(2, 3, dtype=F8), torch.randn(2, 3, dtype=F8)
    column = torch.tensor([[0.5], [-2.0]], dtype=F8)
    for a, b in itertools.product((0.0, 1.0, -0.3, column), (0.0, 1.0, 2.5, column)):
        kept = x.clone(), y.clone()
        assert torch.allclose(affine(a, x, b, y), a * x + b * y)
        assert torch.equal(x, kept[0])
        assert torch.equal(y, kept[1])


@pytest.mark.parametrize("inner, outer", list(itertools.permutations(SCHEDULES, 2)), ids=lambda s: type(s).__name__)
def test_a_model_on_another_schedule_is_the_model_built_there(inner: Schedule, outer: Schedule) -> None:
    moved, built = gaussian(inner).on(outer), gaussian(outer)
    times = outer.time(np.array([-2.0, -0.5, 0.0, 1.0, 2.5]))
    x = torch.randn(5, 2, dtype=F8)
    for t, i in zip(times.tolist(), range(5)):
        for name in ("mean", "eps", "score"):
            assert torch.allclose(getattr(moved(x, t), name), getattr(built(x, t), name), rtol=1e-9, atol=1e-9)
        parts = (0.3, -0.8, 1.4)
        assert torch.allclose(moved(x, t).combine(*parts), built(x, t).combine(*parts), rtol=1e-9, atol=1e-9)
        assert torch.allclose(moved.velocity(x, t), built.velocity(x, t), rtol=1e-8, atol=1e-8)
        one = moved(x, torch.tensor(times))
        assert torch.allclose(one.mean[i], moved(x[i : i + 1], t).mean[0], rtol=1e-10)


def test_on_its_own_schedule_a_model_is_itself() -> None:
    model = gaussian(VP())
    assert model.on(model.schedule) is model
    back = model.on(EDM()).on(model.schedule)
    x = torch.randn(3, 2, dtype=F8)
    assert torch.allclose(back(x, 0.3).mean, model(x, 0.3).mean, rtol=1e-10)


@pytest.mark.parametrize(
    "inner, outer, times",
    [
        (EDM(), EDM(t_max=200.0), [150.0, 1.0]),
        (EDM(), EDM(t_min=1e-5), [1.0, 1e-4]),
        (VP(), EDM(t_max=1000.0), [900.0, 1.0]),
        (Discrete(), EDM(t_max=1000.0), [900.0, 1.0]),
        (Discrete(), EDM(), [10.0, 0.002]),
        (EDM(), Flow(), [1.0, 0.5]),
    ],
    ids=lambda v: type(v).__name__ if " at 0x" in repr(v) else str(v),
)
def test_levels_beyond_the_training_range_need_a_word(inner: Schedule, outer: Schedule, times: list[float]) -> None:
    draws = Noise(0).at([0], (2,), dtype=F8)
    with pytest.raises(InputError, match="extrapolate=True"):
        DDIM()(gaussian(inner).on(outer), draws, times=times)


@pytest.mark.parametrize("inner", [VP(), Discrete(), EDM()], ids=lambda s: type(s).__name__)
def test_extrapolation_is_right_or_refused(inner: Schedule) -> None:
    """A table cannot say what lies above its last entry; it must not answer for another level."""
    outer, x = EDM(t_max=1000.0), torch.randn(2, 2, dtype=F8) * 900
    try:
        model = gaussian(inner).on(outer, extrapolate=True)
        model.check([900.0, 1.0])
        mean = model(x, 900.0).mean
    except InputError:
        return
    assert torch.allclose(mean, gaussian(outer)(x, 900.0).mean, rtol=1e-6)


def test_the_whole_range_of_the_inner_model_is_known() -> None:
    """Rounding of the two maps must not refuse the ends themselves."""
    for inner in SCHEDULES:
        if not np.isfinite(inner.lam(inner.t_max)):
            continue
        outer = EDM(t_min=1e-6, t_max=1e6)
        ends = outer.time(inner.lam(np.array([inner.t_max, inner.t_min])))
        model = gaussian(inner).on(outer)
        model.check(ends)
        assert torch.isfinite(model(torch.ones(1, 2, dtype=F8), float(ends[1])).mean).all()


def test_conditions_are_bound_by_views() -> None:
    means = torch.tensor([[-2.0], [2.0]], dtype=F8)
    model = Mixture(EDM(), means, 0.1, labels=torch.tensor([0, 1]))
    x = torch.zeros(2, 1, dtype=F8)
    cond, other = Cond(labels=torch.tensor([0, 1])), Cond(labels=torch.tensor([1, 0]))
    view = model.given(cond)
    expected = model(x, 1.0, cond).mean
    assert torch.equal(view(x, 1.0).mean, expected)
    assert torch.equal(view(x, 1.0, other).mean, model(x, 1.0, other).mean)
    assert not torch.equal(model(x, 1.0).mean, expected)
    assert torch.equal(view.on(VP(), extrapolate=True)(x, 0.5).mean, model.on(VP()).given(cond)(x, 0.5).mean)
    assert torch.equal(view.given(other)(x, 1.0).mean, model(x, 1.0, other).mean)
    assert torch.equal(view.given(None)(x, 1.0).mean, model(x, 1.0).mean)


def test_views_share_their_weights_and_move_together() -> None:
    model = Mixture(EDM(), torch.tensor([[-2.0], [2.0]]), 0.1, labels=torch.tensor([0, 1]))
    view = model.given(Cond(labels=torch.tensor([0])))
    assert view.means is model.means
    assert {k: v.data_ptr() for k, v in view.state_dict().items()} == {
        k: v.data_ptr() for k, v in model.state_dict().items()
    }


class Planned(Denoiser):
    """Says 0, or under a plan the plan; refuses nothing."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.schedule, self.shape, self.value = EDM(), (2,), value

    def posterior(self, x: torch.Tensor, t: float, cond: Cond | None) -> Posterior:
        shift = 0.0 if cond is None or cond.labels is None else cond.labels.double()[:, None]
        return Posterior.of_mean(x, torch.full_like(x, self.value) + shift, 1.0, 1.0)

    def under(self, plan: float) -> Planned:
        return Planned(plan)


def test_plans_pass_through_views_and_keep_what_was_bound() -> None:
    x = torch.zeros(1, 2, dtype=F8)
    view = Planned().on(VP()).given(Cond(labels=torch.tensor([3])))
    assert view(x, 0.5).mean.tolist() == [[3.0, 3.0]]
    assert view.under(5.0)(x, 0.5).mean.tolist() == [[8.0, 8.0]]
    assert view(x, 0.5).mean.tolist() == [[3.0, 3.0]]
    with pytest.raises(InputError, match="plan"):
        gaussian(EDM()).under(object())


def test_velocity_is_the_ode() -> None:
    x = torch.randn(3, 2, dtype=F8)
    for schedule in SCHEDULES:
        model, t = gaussian(schedule), float(schedule.time(0.3))
        f, g2 = schedule.drift(t)
        assert torch.allclose(model.velocity(x, t), f * x - 0.5 * g2 * model.score(x, t), rtol=1e-9, atol=1e-9)


def test_of_mean() -> None:
    x, mean = torch.randn(2, 3, dtype=F8), torch.randn(2, 3, dtype=F8)
    post = Posterior.of_mean(x, mean, 0.6, 0.8)
    assert torch.equal(post.mean, mean)
    assert torch.allclose(post.eps, (x - 0.6 * mean) / 0.8)
    assert torch.allclose(post.score, -(x - 0.6 * mean) / 0.64)
    assert torch.allclose(post.combine(0.1, 0.2, 0.3), 0.1 * x + 0.2 * mean + 0.3 * post.eps)
    assert post.taps == {}
    assert post.mix is None
