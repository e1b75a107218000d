"""Published solvers as points of the decision space: they reproduce those samplers to rounding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.schedules import EDM, VP, Flow
from scoreline.samplers.known_solvers import KNOWN, Solver, known_solver, singlestep_groups, uniform
from scoreline.samplers.solver_schedule import Step
from scoreline.samplers.usf import USF

F8 = torch.float64
MEANS = torch.tensor([[-1.0, 0.4, 0.3], [0.8, 1.0, -0.5], [0.2, -1.2, 0.9]], dtype=F8)
SCHEDULES = names("schedule")

SAME: list[tuple[str, str, dict[str, Any]]] = [
    ("ddim", "ddim", {}),
    ("dpm-solver-1", "ddim", {}),
    ("dpm-solver++2m", "dpm-solver++2m", {}),
    ("dpm-solver++3m", "dpm-solver++3m", {}),
    ("unipc-1", "unipc", {"solver_order": 1}),
    ("unipc-2", "unipc", {"solver_order": 2}),
    ("unipc-3", "unipc", {"solver_order": 3}),
    ("unipc-2-bh1", "unipc", {"solver_order": 2, "solver": "bh1"}),
    ("deis-1", "deis", {"family": "log-rho", "degree": 1}),
    ("deis-2", "deis", {"family": "log-rho", "degree": 2}),
    ("deis-3", "deis", {"family": "log-rho", "degree": 3}),
    ("ipndm", "deis", {"family": "ipndm"}),
]


def mixture(schedule: Any) -> Mixture:
    return Mixture(schedule, MEANS, torch.tensor([0.05, 0.1, 0.2], dtype=F8))


def assert_same(one: Sampler, other: Sampler, schedule: Any, *, tolerance: float = 1e-10) -> None:
    model, draws = mixture(schedule), Noise(0).at(range(5), (3,), dtype=F8)
    times = other.times(schedule)
    a, b = one(model, draws, times=times), other(model, draws, times=times)
    assert (a.x - b.x).abs().max() < tolerance
    assert a.nfe == b.nfe


@pytest.mark.each("schedule_name", SCHEDULES)
@pytest.mark.parametrize(("like", "name", "settings"), SAME, ids=lambda v: str(v))
def test_reproduces_the_sampler_of_that_name(
    like: str, name: str, settings: dict[str, Any], schedule_name: str
) -> None:
    schedule = lookup("schedule", schedule_name)()
    # Below 15 steps the log-rho family ends with lower orders, as diffusers does.
    steps = 16 if settings.get("family") == "log-rho" else 9
    assert_same(USF(like=like), lookup("sampler", name)(steps=steps, **settings), schedule)


@pytest.mark.check(system=18, number=4)
@pytest.mark.each("schedule_name", SCHEDULES)
def test_data_order_2_with_dpmsolver_2_scaling_is_dpm_solver_pp_2m(schedule_name: str) -> None:
    schedule = lookup("schedule", schedule_name)()
    own = Solver("data", 2, ((2, "dpmsolver-2"),))
    times = USF(like="ddim", steps=9).times(schedule)
    with np.errstate(divide="ignore"):
        assert uniform(own, schedule.lam(times)) == known_solver("dpm-solver++2m", schedule.lam(times))
    assert_same(USF(like="dpm-solver++2m"), lookup("sampler", "dpm-solver++2m")(steps=9), schedule)


def dpm_solver(model: Mixture, x: Tensor, t: float, s: float, order: int) -> Tensor:
    """DPM-Solver-2 and -3, Lu et al. 2022, algorithms 1 and 2, written out."""
    schedule = model.schedule
    at, as_ = schedule.alpha(t), schedule.alpha(s)
    low, h = schedule.lam(t), schedule.lam(s) - schedule.lam(t)
    eps = model.eps(x, t)

    def point(r: float) -> float:
        return float(schedule.time(low + r * h))

    if order == 2:
        m = point(0.5)
        u = schedule.alpha(m) / at * x - schedule.sigma(m) * math.expm1(0.5 * h) * eps
        return as_ / at * x - schedule.sigma(s) * math.expm1(h) * model.eps(u, m)
    r1, r2 = 1 / 3, 2 / 3
    m1, m2 = point(r1), point(r2)
    u1 = schedule.alpha(m1) / at * x - schedule.sigma(m1) * math.expm1(r1 * h) * eps
    D1 = model.eps(u1, m1) - eps
    u2 = schedule.alpha(m2) / at * x - schedule.sigma(m2) * (
        math.expm1(r2 * h) * eps + r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * D1
    )
    D2 = model.eps(u2, m2) - eps
    return as_ / at * x - schedule.sigma(s) * (math.expm1(h) * eps + (math.expm1(h) / h - 1) / r2 * D2)


@pytest.mark.check(system=18, number=4)
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("schedule", [EDM(), VP()], ids=["edm", "vp"])
def test_singlestep_is_dpm_solver(schedule: Any, order: int) -> None:
    """Noise prediction with singlestep start points, on the grid that the sampler itself makes."""
    sampler = USF(like=f"dpm-solver-{order}", steps=2 * order + 2, grid="logsnr")
    times = sampler.times(schedule)
    model, draws = mixture(schedule), Noise(0).at(range(5), (3,), dtype=F8)
    x = draws.normal() * schedule.prior()
    run = sampler(model, draws)
    ends = [0, order, 2 * order]
    for i, j in ((0, 1), (1, 2)):
        x = dpm_solver(model, x, times[ends[i]], times[ends[j]], order)
    # One level is left over: a step of first order, and then the one to the clean end.
    last = times[2 * order]
    post = model(x, last)
    x = post.combine(0.0, schedule.alpha(times[-2]), schedule.sigma(times[-2]))
    assert (run.x - model(x, times[-2]).mean).abs().max() < 1e-10
    assert run.nfe == 2 * order + 2
    lam = schedule.lam(times[: order + 1])
    assert (lam - lam[0]) / (lam[-1] - lam[0]) == pytest.approx(np.arange(order + 1) / order)


def test_singlestep_grid_of_a_schedule_without_signal_at_the_start() -> None:
    times = USF(like="dpm-solver-2", steps=6).times(Flow())
    assert len(times) == 7
    lam = Flow().lam(times[1:6])
    assert (lam[1] - lam[0], lam[3] - lam[2]) == pytest.approx((lam[2] - lam[1], lam[4] - lam[3]))
    discrete = USF(like="dpm-solver-3", steps=7).times(lookup("schedule", "discrete")())
    assert (discrete == np.round(discrete)).all()
    with pytest.raises(InputError, match="fewer steps"):
        USF(like="dpm-solver-3", steps=1000).times(lookup("schedule", "discrete")())


def test_groups_of_singlestep_methods() -> None:
    assert singlestep_groups(7, 3, [True] * 7 + [False]) == [3, 3, 1]
    assert singlestep_groups(7, 3, [False] + [True] * 6 + [False]) == [1, 3, 2, 1]
    assert singlestep_groups(4, 2, [True] * 5) == [2, 2]
    assert singlestep_groups(1, 2, [False, False]) == [1]


def test_released_form_of_the_third_order_solver() -> None:
    released = lookup("sampler", "dpm-solver++3m")(steps=9, variant="released")
    assert_same(USF(like="dpm-solver++3m", variant="released"), released, EDM())
    paper = lookup("sampler", "dpm-solver++3m")(steps=9)
    with pytest.raises(AssertionError):
        assert_same(USF(like="dpm-solver++3m", variant="released"), paper, EDM())


def test_orders_rise_and_fall() -> None:
    lam = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, math.inf]
    assert [s.order for s in known_solver("dpm-solver++3m", lam)] == [1, 2, 3, 3, 3, 1]
    assert [s.order for s in known_solver("unipc-3", lam)] == [1, 2, 3, 3, 2, 1]
    assert [s.order for s in known_solver("unipc-3", lam[:-1])] == [1, 2, 3, 3, 3]
    assert [s.corrector for s in known_solver("unipc-1", lam)] == ["pseudo"] * 5 + [None]
    assert [s.order for s in known_solver("deis-2", [-math.inf, *lam[1:]])] == [1, 1, 2, 3, 3, 1]
    assert known_solver("unipc-2", [-math.inf, *lam[1:]])[0].corrector is None
    assert known_solver("ddim", lam) == (Step(),) * 6


def test_orders_of_convergence_are_declared() -> None:
    for name, solver in KNOWN.items():
        assert USF(like=name).order == solver.convergence
    assert USF(like="dpm-solver++3m", variant="released").order == 2


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'unipc-3'"):
        known_solver("unipc3", [0.0, 1.0])
    with pytest.raises(InputError, match="did you mean"):
        USF(like="dpm-solverpp2m")
    with pytest.raises(InputError, match="variant"):
        known_solver("ddim", [0.0, 1.0], variant="papr")
