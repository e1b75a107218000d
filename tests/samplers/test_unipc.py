"""UniPC: weights against exact integrals, the fused step against the two-stage one, diffusers' scheduler."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.schedules import EDM, VP, Discrete, Flow
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.unipc import UniPC, point_weights

F8 = torch.float64


def mixture(schedule: Any) -> Mixture:
    return Mixture(schedule, torch.tensor([[-1.0, 0.4, 0.1], [0.8, 1.0, -0.6]], dtype=F8), 0.1)


def polynomial_integral(u: float, h: float, power: int, prediction: str) -> float:
    """Of what a prediction lambda^power contributes to x_s, in units of alpha_s or -sigma_s; lambda counted from t."""
    return math.exp(-(h - u) if prediction == "data" else h - u) * u**power


@pytest.mark.each("prediction", ["data", "noise"])
@pytest.mark.each("solver", ["bh1", "bh2", "vary"])
@pytest.mark.each("r", [[-0.7, -1.9], [-0.5, 1.0], [-0.6, -1.3, 1.0], [-1.0]])
def test_solved_weights_integrate_polynomials_exactly(r: list[float], solver: str, prediction: str) -> None:
    """n points and m_0 integrate degree n; for one point only where the system is solved."""
    h = 0.8
    places = np.array(r)
    w = point_weights(h, places, prediction=prediction, solver=solver, corrector=bool(r[-1] == 1))
    for power in range(1, len(r) + 1):
        got = w @ (places * h) ** power
        want = quad(polynomial_integral, 0, h, args=(h, power, prediction))[0] * (1 if prediction == "data" else -1)
        close = got == pytest.approx(want, rel=1e-9)
        assert close or (len(r) == 1 and solver != "vary")


def test_one_half_is_set_with_b_of_h() -> None:
    h = 0.6
    assert point_weights(h, np.array([1.0]), corrector=True) == pytest.approx([0.5 * (1 - math.exp(-h))])
    assert point_weights(h, np.array([1.0]), solver="bh1", corrector=True) == pytest.approx([0.5 * h])
    assert point_weights(h, np.array([-2.0]), prediction="noise") == pytest.approx([0.25 * math.expm1(h)])
    assert point_weights(h, np.array([-2.0]), prediction="noise", solver="bh1") == pytest.approx([0.25 * h])


def two_stage(model: Denoiser, x: Tensor, times: np.ndarray, sampler: UniPC) -> Tensor:
    """Predictor and corrector one after the other, with the corrected state kept: the paper's algorithm 5 and 6."""
    schedule = model.schedule
    lam, orders = schedule.lam(times), sampler.orders(np.diff(schedule.lam(times)), clean=False)
    ms: list[Tensor] = []
    before = x
    data = sampler.prediction == "data"

    def update(start: Tensor, i: int, order: int, new: Tensor | None) -> Tensor:
        a_t, a_s, s_t, s_s = (float(f(t)) for f in (schedule.alpha, schedule.sigma) for t in times[i : i + 2])
        h = lam[i + 1] - lam[i]
        m0 = ms[i]
        base = (
            s_s / s_t * start + (a_s - a_t * s_s / s_t) * m0
            if data
            else a_s / a_t * start + (s_s - a_s / a_t * s_t) * m0
        )
        r = [(lam[i - j] - lam[i]) / h for j in range(1, order)]
        values = [ms[i - j] for j in range(1, order)]
        if new is not None:
            r, values = [*r, 1.0], [*values, new]
        if not r:
            return base
        w = point_weights(
            h, np.array(r), prediction=sampler.prediction, solver=sampler.solver, corrector=new is not None
        )
        return base + (a_s if data else s_s) * sum(v * (m - m0) for v, m in zip(w, values))

    for i in range(len(times) - 1):
        post = model(x, float(times[i]))
        value = post.mean if data else post.eps
        if i and sampler.corrector:
            x = update(before, i - 1, int(orders[i - 1]), value)
        ms.append(value)
        before = x
        x = update(x, i, int(orders[i]), None)
    return x


@pytest.mark.each("corrector", [True, False])
@pytest.mark.each("prediction", ["data", "noise"])
@pytest.mark.each("order", [1, 2, 3, 4])
@pytest.mark.each("schedule_name", ["vp", "edm", "flow"])
def test_the_fused_step_is_predictor_then_corrector(
    order: int, prediction: str, corrector: bool, schedule_name: str
) -> None:
    schedule = lookup("schedule", schedule_name)()
    model, draws = mixture(schedule), Noise(0).at(range(3), (3,), dtype=F8)
    times = schedule.time(np.array([-1.5, -1.1, -0.4, 0.1, 0.9, 1.3, 2.0]))
    sampler = UniPC(solver_order=order, prediction=prediction, corrector=corrector)
    x = draws.normal() * float(schedule.prior(times[0]))
    got = sampler(model, draws, times=times, x=x).x
    assert torch.allclose(got, two_stage(model, x, times, sampler), atol=1e-12)


def diffusers_run(times: list[int], net: Any, x: Tensor, **settings: Any) -> Tensor:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing", **settings
    )
    scheduler.set_timesteps(len(times))
    assert scheduler.timesteps.tolist() == times
    # Their levels are float32; with ours in their place only rounding is left.
    schedule = Discrete()
    at = np.array([*times, -1.0 if settings["final_sigmas_type"] == "zero" else 0.0])
    levels = torch.tensor(schedule.sigma(at) / schedule.alpha(at))
    assert torch.allclose(scheduler.sigmas.double(), levels, rtol=1e-4)
    scheduler.sigmas = levels
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, float(t)), t, x, return_dict=False)[0]
    return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver, prediction, final", [
    ("bh2", "data", "zero"), ("bh2", "noise", "sigma_min"), ("bh1", "noise", "sigma_min"), ("bh1", "data", "sigma_min")
])  # fmt: skip
def test_it_is_the_scheduler_of_diffusers(order: int, solver: str, prediction: str, final: str) -> None:
    schedule = Discrete()
    model = mixture(schedule)
    times = [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    draws = Noise(0).at(range(3), (3,), dtype=F8)
    x = draws.normal()
    theirs = diffusers_run(
        times, lambda y, t: model(y, t).eps, x, solver_order=order, solver_type=solver,
        predict_x0=prediction == "data", final_sigmas_type=final, lower_order_final=final == "zero",
    )  # fmt: skip
    sampler = UniPC(solver_order=order, solver=solver, prediction=prediction)
    ours = sampler(model, draws, times=[*times, -1.0 if final == "zero" else 0.0], x=x).x
    assert (ours - theirs).abs().max() < 1e-10


def test_orders_rise_and_fall() -> None:
    gaps = np.ones(6)
    sampler = UniPC(solver_order=3)
    assert sampler.orders(gaps, clean=False).tolist() == [1, 2, 3, 3, 3, 3]
    assert sampler.orders(gaps, clean=True).tolist() == [1, 2, 3, 3, 2, 1]
    open_ends = np.array([np.inf, 1, 1, 1, 1, np.inf])
    assert UniPC(solver_order=3, lower_order_final=False).orders(open_ends, clean=True).tolist() == [1, 1, 2, 3, 3, 1]
    assert sampler.orders(open_ends, clean=True).tolist() == [1, 1, 2, 3, 2, 1]


@pytest.mark.each("name", names("schedule"))
@pytest.mark.each("prediction", ["data", "noise"])
def test_a_point_is_reached_exactly(name: str, prediction: str) -> None:
    """The data prediction is constant: nothing is extrapolated wrongly, ends without signal or noise included."""
    schedule = lookup("schedule", name)()
    point = torch.tensor([0.3, -0.7], dtype=F8)
    model, draws = Gaussian(schedule, point, 0.0), Noise(0).at(range(3), (2,), dtype=F8)
    sampler = UniPC(solver_order=3, prediction=prediction, steps=8)
    assert torch.allclose(sampler(model, draws).x, point.expand(3, 2), atol=1e-9)


def test_order_one_without_corrector_is_ddim() -> None:
    for schedule in (VP(), EDM(), Flow()):
        model, draws = mixture(schedule), Noise(0).at(range(3), (3,), dtype=F8)
        for prediction in ("data", "noise"):
            one = UniPC(solver_order=1, corrector=False, prediction=prediction, steps=6)(model, draws).x
            assert torch.allclose(one, DDIM(steps=6)(model, draws).x, atol=1e-12)


def test_settings() -> None:
    for bad in (0, 5, 2.5, True):
        with pytest.raises(InputError, match="solver_order"):
            UniPC(solver_order=bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'bh2'"):
        UniPC(solver="bh3")
    with pytest.raises(InputError, match="prediction"):
        UniPC(prediction="eps")
    with pytest.raises(InputError, match="at least 4"):
        UniPC(solver_order=3, steps=3)
    with pytest.raises(InputError, match="at least 4"):
        UniPC(solver_order=3, nfe=3).plan()
