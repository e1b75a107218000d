"""RK45 on the probability-flow ODE: SciPy's steps, one image at a time, both ways, and what it costs."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.core.schedule import Time
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.sde import angle, flow_slope, radius
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.samplers.rk45 import RK45

MEANS = torch.tensor([[-1.0, 0.4, 0.3], [0.8, 1.0, -0.5], [0.2, -1.2, 0.9]], dtype=torch.float64)
VARIANCES = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)
every_schedule = pytest.mark.parametrize("name", names("schedule"))


def mixture(name: str) -> Mixture:
    return Mixture(lookup("schedule", name)(), MEANS, VARIANCES, labels=torch.tensor([0, 1, 2]))


def draws(indices: list[int], dtype: torch.dtype = torch.float64) -> Any:
    return Noise(0).at(indices, (3,), dtype=dtype)


@every_schedule
def test_one_image_is_scipys(name: str) -> None:
    model = mixture(name)
    schedule = model.schedule
    t, s = schedule.t_max, schedule.t_min
    start = draws([2]).normal() * float(schedule.prior())

    def slope(phi: float, u: np.ndarray) -> np.ndarray:
        return flow_slope(model, torch.tensor(u)[None], torch.tensor([phi], dtype=torch.float64))[0].numpy()

    ends = (angle(schedule, t), angle(schedule, s))
    u0 = (start / float(radius(schedule, t)))[0].numpy()
    theirs = solve_ivp(slope, ends, u0, method="RK45", rtol=1e-5, atol=1e-5)
    mine = RK45(rtol=1e-5)(model, draws([2]), times=[t, s])
    assert mine.nfe == mine.nfe_max == theirs.nfev
    assert np.abs(mine.x[0].numpy() / float(radius(schedule, s)) - theirs.y[:, -1]).max() < 1e-12


@every_schedule
def test_no_image_depends_on_its_batch(name: str) -> None:
    """10 rtol is allowed; the steps are an image's own, so that it is rounding."""
    model, rtol = mixture(name), 1e-5
    together = RK45(rtol=rtol)(model, draws([0, 1, 2, 3, 4]))
    spent = []
    for i in range(5):
        alone = RK45(rtol=rtol)(model, draws([i]))
        assert (alone.x[0] - together.x[i]).abs().max() < 10 * rtol * 1e-4
        spent.append(alone.nfe)
    assert together.nfe == pytest.approx(np.mean(spent))
    assert together.nfe_max == max(spent) > min(spent)


class Watched(Denoiser):
    """Counts for itself how many images it is asked for."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.schedule, self.shape, self.asked = inner, inner.schedule, inner.shape, 0
        self.num_classes = inner.num_classes

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        self.asked += len(x)
        return self.inner(x, t, cond)


def test_images_that_have_arrived_are_not_evaluated_again() -> None:
    model = Watched(mixture("vp"))
    sample = RK45(rtol=1e-5)(model, draws([0, 1, 2, 3, 4]))
    assert model.asked == round(5 * sample.nfe) < 5 * sample.nfe_max


def test_labels_stay_with_their_images_and_guidance_counts_twice() -> None:
    labels = torch.tensor([0, 1, 2, 1, 0])
    model = mixture("vp").given(Cond(labels=labels))
    together = RK45(rtol=1e-6)(model, draws([0, 1, 2, 3, 4]))
    nearest = (together.x[:, None] - MEANS).norm(dim=2).argmin(1)
    assert torch.equal(nearest, labels)
    guided = RK45(rtol=1e-6)(ClassifierFree(mixture("vp"), 1.5).given(Cond(labels=labels)), draws([0, 1, 2, 3, 4]))
    for i in range(5):
        one = mixture("vp").given(Cond(labels=labels[i : i + 1]))
        assert (RK45(rtol=1e-6)(one, draws([i])).x[0] - together.x[i]).abs().max() < 1e-9
        one = ClassifierFree(mixture("vp"), 1.5).given(Cond(labels=labels[i : i + 1]))
        alone = RK45(rtol=1e-6)(one, draws([i]))
        assert (alone.x[0] - guided.x[i]).abs().max() < 1e-9
        assert alone.nfe % 2 == 0


@every_schedule
def test_up_and_down_again_returns_the_image(name: str) -> None:
    model = mixture(name)
    ends = [model.schedule.t_min, model.schedule.t_max]
    x = MEANS + 0.2 * draws([0, 1, 2]).normal()
    code = RK45(rtol=1e-6)(model, draws([0, 1, 2]), times=ends, x=x).x
    back = RK45(rtol=1e-6)(model, draws([0, 1, 2]), times=ends[::-1], x=code).x
    assert (back - x).abs().max() < 1e-4
    assert (code - x).abs().max() > 0.4


@every_schedule
def test_the_flow_of_a_gaussian(name: str) -> None:
    schedule = lookup("schedule", name)()
    model = Gaussian(schedule, torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64), torch.tensor([0.5, 0.1, 1.0]))
    run = RK45(rtol=1e-7)(model, draws([0, 1]), trajectory=True)
    assert run.trajectory is not None
    assert len(run.trajectory) == 3
    start = draws([0, 1]).normal() * float(schedule.prior())
    assert torch.equal(run.trajectory[0], start)
    t_min = schedule.t_min
    assert (run.trajectory[1] - model.flow(start, schedule.t_max, t_min)).abs().max() < 1e-5
    assert torch.allclose(run.x, model(run.trajectory[1], t_min).mean)


def test_a_smaller_tolerance_costs_more_and_is_closer() -> None:
    model = mixture("ve")
    exact = RK45(rtol=1e-9)(model, draws([0, 1, 2])).x
    runs = [RK45(rtol=rtol)(model, draws([0, 1, 2])) for rtol in (1e-3, 1e-5, 1e-7)]
    errors = [(run.x - exact).abs().max().item() for run in runs]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert runs[0].nfe < runs[1].nfe < runs[2].nfe
    loose = RK45(rtol=1e-7, atol=1e-3)(model, draws([0, 1, 2]))
    assert runs[0].nfe <= loose.nfe < runs[2].nfe


def test_float32_and_float64_states() -> None:
    model = mixture("vp")
    single, double = (RK45(rtol=1e-5)(model, draws([0, 1], dtype)) for dtype in (torch.float32, torch.float64))
    assert single.x.dtype == torch.float32
    assert double.x.dtype == torch.float64
    assert (single.x - double.x).abs().max() < 1e-4
    with pytest.raises(InputError, match="float64"):
        RK45(rtol=1e-8)(model, draws([0], torch.float32))


def test_fixed_steps_cost_six_evaluations_and_the_last_one() -> None:
    assert [RK45(steps=n).cost(n) for n in (2, 3, 10)] == [7, 13, 55]
    assert RK45(nfe=30)(mixture("vp"), draws([0])).nfe == 25


BAD = [
    ({"rtol": 0.0}, "rtol 0.0"),
    ({"rtol": -1e-5}, "rtol"),
    ({"rtol": 1e-5, "atol": -1.0}, "atol -1.0"),
    ({"atol": 1e-5}, "give rtol too"),
    ({"rtol": 1e-5, "nfe": 20}, "nfe 20: with rtol the run is adaptive"),
    ({"rtol": 1e-5, "steps": 20}, "steps 20"),
    ({"rtol": 1e-5, "grid": "karras"}, "grid 'karras'"),
    ({"rtl": 1e-5}, "did you mean 'rtol'"),
]


@pytest.mark.parametrize("settings, words", BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RK45(**settings)  # type: ignore[arg-type]


def test_bad_input_of_an_adaptive_run_is_refused_before_any_evaluation() -> None:
    model = Watched(mixture("vp"))
    run = RK45(rtol=1e-5)
    with pytest.raises(InputError, match="rtol="):
        RK45()(model, draws([0]))
    with pytest.raises(InputError, match="the model makes"):
        run(model, Noise(0).at([0], (4,)))
    with pytest.raises(InputError, match=r"needs shape \(2, 3\)"):
        run(model, draws([0, 1]), x=torch.ones(3, 3))
    for times in ([1.0, 0.5, 0.5], [0.0, 1.0], [2.0, 0.1], [1.0]):
        with pytest.raises(InputError, match="time"):
            run(model, draws([0]), times=times)
    with pytest.raises(InputError, match="one list of times"):
        run(model, draws([0, 1]), times=torch.tensor([[1.0, 1.0], [0.5, 0.4]]))
    assert model.asked == 0


# --- the adaptive reference ---------------------------------------------------------------------------------


def deterministic() -> list[str]:
    """Samplers that can be made with their defaults, declare an order and need no calibration."""
    found = []
    for name in names("sampler"):
        cls: type[Sampler] = lookup("sampler", name)
        if all(p.default is not p.empty for p in inspect.signature(cls).parameters.values()):
            sampler = cls()
            if sampler.order is not None and not sampler.stochastic and type(sampler).calibrated is Sampler.calibrated:
                found.append(name)
    return found


def test_all_deterministic_samplers_are_found() -> None:
    assert {"ddim", "euler", "heun", "dpm-solver++2m", "dpm-solver++3m", "rk45"} <= set(deterministic())


LEVELS = np.linspace(-1.5, 2.0, 81)


@functools.cache
def reference(schedule_name: str) -> tuple[Mixture, np.ndarray, Tensor, Tensor]:
    """A model, times even in lambda, states at the first of them, and where the adaptive run takes these."""
    model = mixture(schedule_name)
    times = model.schedule.time(LEVELS)
    x = 1.2 * np.exp(1.5) * float(model.schedule.alpha(times[0])) * draws([0, 1, 2]).normal()
    return model, times, x, RK45(rtol=1e-9)(model, draws([0, 1, 2]), times=times[[0, -1]], x=x).x


@pytest.mark.parametrize("schedule_name", ["vp", "edm", "flow"])
@pytest.mark.parametrize("name", deterministic())
def test_every_deterministic_sampler_converges_to_the_adaptive_image(name: str, schedule_name: str) -> None:
    model, times, x, exact = reference(schedule_name)
    errors = []
    for stride in (4, 1):
        run = lookup("sampler", name)()(model, draws([0, 1, 2]), times=times[::stride].copy(), x=x)
        errors.append((run.x - exact).square().mean().sqrt().item() / float(model.schedule.alpha(times[-1])))
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 2 or errors[1] < 1e-8
