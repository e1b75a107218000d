"""DEIS: coefficients against their integrals and closed forms, exactness, orders, counts, diffusers' scheduler."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule, Time, spread
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.grids import power_t
from scoreline.diffusion.schedules import EDM, VE, VP, Cosine, Discrete, Flow, SubVP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.deis import DEIS, TABLEAUX, multistep_table, runge_kutta_table

F8 = torch.float64
POLYNOMIAL = ("tab", "rhoab", "log-rho")
MULTISTEP = (*POLYNOMIAL, "ipndm")
EVERY = [
    *({"family": family, "degree": degree} for family in MULTISTEP for degree in range(4)),
    *({"family": "rhork", "tableau": tableau} for tableau in TABLEAUX),
]
SCHEDULES = [VP(), Cosine(), SubVP(), VE(), EDM(), Flow(), Discrete()]
every_schedule = pytest.mark.each("schedule", SCHEDULES)


class Given(Denoiser):
    """A denoiser whose noise estimate is a function of (x, t)."""

    def __init__(self, schedule: Schedule, eps: Any, shape: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        self.schedule, self.shape, self.function = schedule, shape, eps

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        a, s = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        return Posterior(x, self.function(x, t), mean=(1 / a, -s / a), eps=(0.0, 1.0), sigma=s)


def rho(schedule: Schedule, t: Any) -> Any:
    return schedule.sigma(t) / schedule.alpha(t)


def levels(schedule: Schedule, count: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    """Uneven times that every schedule knows."""
    lam = np.linspace(low, high, count) + 0.1 * np.sin(np.arange(count))
    return np.asarray(schedule.time(lam))


def run(sampler: DEIS, model: Denoiser, times: Any, x: Tensor) -> Tensor:
    return sampler(model, Noise(0).at(range(len(x)), model.shape, dtype=F8), times=times, x=x).x


START = torch.tensor([[0.4, -1.1], [1.7, 0.2], [-0.3, -0.9]], dtype=F8)


@pytest.mark.check(system=12, number=1)
@pytest.mark.parametrize("name", names("schedule"))
def test_order_zero_is_ddim(name: str) -> None:
    schedule = lookup("schedule", name)()
    model = Mixture(schedule, torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=F8), 0.1)
    draws = Noise(0).at(range(3), (2,), dtype=F8)
    times = DDIM(steps=9).times(schedule)
    want = DDIM()(model, draws, times=times).x
    for settings in [*({"family": f, "degree": 0} for f in MULTISTEP), {"family": "rhork", "tableau": "1euler"}]:
        got = DEIS(**settings)(model, draws, times=times).x  # type: ignore[arg-type]
        assert torch.allclose(got, want, rtol=0, atol=1e-12), settings


@pytest.mark.check(system=12, number=2)
@every_schedule
@pytest.mark.parametrize("family", MULTISTEP)
def test_coefficients_sum_to_those_of_ddim(schedule: Schedule, family: str) -> None:
    times = levels(schedule, 20)
    for degree in range(4):
        psi, C = multistep_table(schedule, times, family=family, degree=degree)
        ratio = schedule.alpha(times[1:]) / schedule.alpha(times[:-1])
        ddim = schedule.sigma(times[1:]) - ratio * schedule.sigma(times[:-1])
        assert psi == pytest.approx(ratio, rel=1e-14)
        assert C.shape == (19, degree + 1)
        assert C.sum(1) == pytest.approx(ddim, rel=1e-10)
        assert C.dtype == np.float64


@pytest.mark.check(system=12, number=2)
@every_schedule
def test_rho_coefficients_sum_to_the_step_in_rho(schedule: Schedule) -> None:
    """A_ij = C_ij/alpha_{i+1}; the sum is the step, while single weights are not."""
    times = levels(schedule, 8)
    C = multistep_table(schedule, times, family="rhoab", degree=3)[1]
    A = C / schedule.alpha(times[1:])[:, None]
    assert A.sum(1) == pytest.approx(np.diff(rho(schedule, times)), rel=1e-10)
    assert (np.abs(A[3:, 1:]) > 1e-6).all()


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
@every_schedule
@pytest.mark.parametrize("family", POLYNOMIAL)
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_coefficients_are_the_integrals_of_the_paper(schedule: Schedule, family: str, degree: int) -> None:
    """C_ij by adaptive quadrature, integrating over lambda instead of rho: d rho = -rho d lambda."""
    times = levels(schedule, 18)
    C = multistep_table(schedule, times, family=family, degree=degree)[1]
    variable = {"tab": lambda t: t, "rhoab": lambda t: rho(schedule, t), "log-rho": lambda t: -schedule.lam(t)}[family]
    i = 5
    nodes = [variable(float(t)) for t in times[i - degree : i + 1]][::-1]

    def integrand(lam: float, j: int) -> float:
        u = variable(schedule.time(lam))
        basis = math.prod((u - m) / (nodes[j] - m) for k, m in enumerate(nodes) if k != j)
        return -math.exp(-lam) * basis

    for j in range(degree + 1):
        low, high = schedule.lam(times[i]), schedule.lam(times[i + 1])
        want = float(schedule.alpha(times[i + 1])) * quad(integrand, low, high, args=(j,), limit=200)[0]
        # On a table t(rho) has corners, at which quadrature rules differ by a little.
        assert C[i, j] == pytest.approx(want, rel=1e-9 if schedule.known is None else 1e-5)


def test_log_rho_has_the_closed_forms() -> None:
    """Antiderivatives of the basis of two and of three points, as the authors gave them for diffusers."""
    schedule = EDM()
    times = np.array([9.0, 7.0, 4.0, 2.5, 1.4, *np.geomspace(1.2, 0.1, 14)])

    def two(t: float, b: float, c: float) -> float:
        return t * (math.log(t) - 1 - math.log(c)) / (math.log(b) - math.log(c))

    def three(t: float, b: float, c: float, d: float) -> float:
        B, C, D, T = (math.log(v) for v in (b, c, d, t))
        return t * (T * T - (C + D + 2) * T + C * D + C + D + 2) / ((B - C) * (B - D))

    b, c, d, s = times[3], times[2], times[1], times[4]
    got = multistep_table(schedule, times, family="log-rho", degree=1)[1][3]
    assert got == pytest.approx([two(s, b, c) - two(b, b, c), two(s, c, b) - two(b, c, b)], rel=1e-11)
    got = multistep_table(schedule, times, family="log-rho", degree=2)[1][3]
    want = [three(s, *p) - three(b, *p) for p in ((b, c, d), (c, d, b), (d, b, c))]
    assert got == pytest.approx(want, rel=1e-11)


@pytest.mark.check(system=12, number=3)
@every_schedule
@pytest.mark.parametrize("settings", EVERY, ids=lambda s: "-".join(map(str, s.values())))
def test_constant_noise_is_integrated_exactly_in_one_step(schedule: Schedule, settings: dict[str, Any]) -> None:
    """v = x/alpha moves by eps times the step in rho."""
    model = Given(schedule, lambda x, t: torch.full_like(x, 0.7))
    ends = np.asarray(schedule.time(np.array([-1.5, 1.5])))
    for times in (ends, levels(schedule, 7)):
        a, r = schedule.alpha(times), rho(schedule, times)
        exact = a[-1] * (START / a[0] + 0.7 * (r[-1] - r[0]))
        assert torch.allclose(run(DEIS(**settings), model, times, START), exact, rtol=1e-9)


@pytest.mark.check(system=12, number=4)
@every_schedule
@pytest.mark.parametrize("family", ["tab", "rhoab", "log-rho"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_polynomial_noise_is_integrated_exactly(schedule: Schedule, family: str, degree: int) -> None:
    """Once there are degree + 1 points; one degree more is not."""
    variable = {"tab": lambda t: t / schedule.t_max, "rhoab": lambda t: rho(schedule, t), "log-rho": schedule.lam}[
        family
    ]
    times = levels(schedule, 22)
    first = degree  # the first step that uses degree + 1 points
    r = rho(schedule, times)
    for power, close in ((degree, True), (degree + 1, False)):

        def eps(lam: float, power: int = power) -> float:
            return float(variable(schedule.time(lam))) ** power

        model = Given(schedule, lambda x, t, power=power: torch.full_like(x, float(variable(t)) ** power))
        draws = Noise(0).at(range(3), (2,), dtype=F8)
        path = DEIS(family=family, degree=degree)(model, draws, times=times, x=START, trajectory=True).trajectory
        assert path is not None
        moved = quad(lambda u: -math.exp(-u) * eps(u), *schedule.lam(times[[first, 12]]), limit=300)[0]
        a = schedule.alpha(times)
        got = (path[12] / a[12] - path[first] / a[first]).mean().item()
        tolerance = (1e-9 if schedule.known is None else 1e-5) * abs(r[first])
        assert bool(abs(got - moved) < tolerance) is close, (power, got, moved)


@pytest.mark.check(system=12, number=5)
@pytest.mark.parametrize("settings", EVERY, ids=lambda s: "-".join(map(str, s.values())))
def test_a_gaussian_is_carried_along_its_flow(settings: dict[str, Any]) -> None:
    m, c = torch.tensor([0.5, -0.2], dtype=F8), 0.3
    for schedule in (VP(), Flow()):
        model = Gaussian(schedule, m, c)
        t, s = float(schedule.time(-1.5)), float(schedule.time(2.0))
        a_t, a_s = float(schedule.alpha(t)), float(schedule.alpha(s))
        v_t, v_s = float(schedule.sigma(t)) ** 2, float(schedule.sigma(s)) ** 2
        exact = a_s * m + math.sqrt((a_s**2 * c + v_s) / (a_t**2 * c + v_t)) * (START - a_t * m)
        errors = []
        for steps in (20, 80):
            times = schedule.time(np.linspace(-1.5, 2.0, steps + 1))
            errors.append((run(DEIS(**settings), model, times, START) - exact).abs().max().item())
        assert errors[1] < 0.03
        assert errors[1] < errors[0] / 3.3


@pytest.mark.check(system=12, number=6)
@pytest.mark.parametrize("settings, order", [
    *(({"family": family, "degree": r}, r + 1) for family in ("tab", "rhoab") for r in range(4)),
    *(({"family": "rhork", "tableau": name}, tableau.order) for name, tableau in TABLEAUX.items()),
], ids=str)  # fmt: skip
def test_slopes(settings: dict[str, Any], order: int) -> None:
    """Between 20 and 80 even steps of an exact Gaussian on VP: about r + 1, and the stages' order for Runge-Kutta."""
    schedule = VP()
    model = Gaussian(schedule, torch.tensor([0.5, -0.2], dtype=F8), 0.3)
    t, s = 0.6, 0.05
    exact = model.flow(START, t, s)
    errors = []
    for steps in (20, 80) if order < 4 else (40, 160):
        times = np.linspace(t, s, steps + 1)
        if settings["family"] != "rhork":
            # Even steps after a start that hides the low order of the first ones.
            early = t - (t - s) / steps * 2.0 ** -np.arange(8, 0, -1)
            times = np.concatenate([times[:1], early, times[1:]])
        errors.append((run(DEIS(**settings), model, times, START) - exact).abs().max().item())
    slope = math.log2(errors[0] / errors[1]) / 2
    assert abs(slope - order) < (0.35 if order < 4 else 0.8), (slope, errors)


@pytest.mark.check(system=12, number=7)
def test_even_steps_in_rho_give_the_classical_weights() -> None:
    h = 0.3
    times = np.arange(5.0, 1.0, -h)
    A = multistep_table(EDM(), times, family="rhoab", degree=3)[1]
    assert A[0] == pytest.approx([-h, 0, 0, 0])
    assert A[1] == pytest.approx(-h * np.array([3 / 2, -1 / 2, 0, 0]))
    assert A[2] == pytest.approx(-h * np.array([23, -16, 5, 0]) / 12)
    for row in A[3:]:
        assert row == pytest.approx(-h * np.array([55, -59, 37, -9]) / 24, rel=1e-10)


def test_ipndm_has_the_classical_weights_on_any_grid() -> None:
    times = np.array([0.9, 0.7, 0.6, 0.3, 0.2, 0.02])
    psi, C = multistep_table(VP(), times, family="ipndm", degree=3)
    ddim = VP().sigma(times[1:]) - psi * VP().sigma(times[:-1])
    assert C[2] / ddim[2] == pytest.approx(np.array([23, -16, 5, 0]) / 12)
    for i in (3, 4):
        assert C[i] / ddim[i] == pytest.approx(np.array([55, -59, 37, -9]) / 24)


@pytest.mark.check(system=12, number=8)
@every_schedule
def test_rho_and_back(schedule: Schedule) -> None:
    low = schedule.t_min if schedule.t_min > schedule.clean else 1e-3
    high = schedule.t_max if schedule.alpha(schedule.t_max) > 0 else 0.999
    t = np.linspace(low, high, 201)
    t = schedule.snap(t)
    back = schedule.time(-np.log(rho(schedule, t)))
    assert back == pytest.approx(t, rel=1e-8, abs=1e-8)


@pytest.mark.check(system=12, number=8)
def test_largest_rho_of_the_score_sde_models() -> None:
    assert rho(VP(), 1.0) == pytest.approx(math.sqrt(math.exp(10.05) - 1), rel=1e-12)
    assert rho(VP(), 1.0) == pytest.approx(152.167, abs=1e-3)


@pytest.mark.check(system=12, number=9)
@pytest.mark.parametrize("settings", EVERY, ids=lambda s: "-".join(map(str, s.values())))
def test_evaluations_are_counted(settings: dict[str, Any]) -> None:
    """N steps between noisy levels cost N, or s N with s stages; the step to the clean end costs one."""
    schedule = VP()
    stages = len(TABLEAUX[settings["tableau"]].c) if "tableau" in settings else 1
    calls = []
    model = Given(schedule, lambda x, t: calls.append(t) or torch.zeros_like(x))
    draws = Noise(0).at(range(2), (2,), dtype=F8)
    sampler = DEIS(**settings)
    sample = sampler(model, draws, times=np.linspace(1, 0.01, 7 + 1))
    assert sample.nfe == len(calls) == 7 * stages
    calls.clear()
    sample = sampler(model, draws, times=[1.0, 0.6, 0.3, 0.01, 0.0])
    assert sample.nfe == len(calls) == 3 * stages + 1 == sampler.cost(4)


@pytest.mark.check(system=12, number=10)
def test_the_grid_of_the_paper() -> None:
    times = DEIS(steps=10).times(VP())
    assert times[1] == pytest.approx((1 - 0.1 * (1 - math.sqrt(0.001))) ** 2, rel=1e-12)
    assert times[1] == pytest.approx(0.81570, abs=5e-6)
    assert len(times) == 11
    assert power_t(VP(), 10, k=1)[1] == pytest.approx(1 - 0.1 * 0.999)
    assert power_t(VP(), 10, k=3)[4] == pytest.approx((1 - 0.4 * 0.9) ** 3)


@pytest.mark.parametrize("steps", [1, 2, 7, 31, 100, 400, 999, 1000])
def test_the_grid_on_a_table_has_distinct_entries(steps: int) -> None:
    """Rounded down; what falls together gives way to the smallest free entries, so that the count is kept."""
    grid = power_t(Discrete(), steps)
    assert len(np.unique(grid)) == len(grid) == steps
    assert (np.diff(grid) < 0).all()
    assert grid[0] == 999
    assert np.array_equal(grid, np.floor(grid))
    assert grid[-1] >= 0
    want = np.unique(np.floor((math.sqrt(999) * (1 - np.arange(steps) / steps)) ** 2 + 1e-9))
    assert np.isin(want, grid).all()
    extra = np.setdiff1d(grid, want)
    free = np.setdiff1d(np.arange(1000), want)
    assert np.array_equal(extra, free[: len(extra)])


def test_the_grid_refuses_more_levels_than_a_table_has() -> None:
    with pytest.raises(InputError, match="1000 levels"):
        power_t(Discrete(), 1001)


def test_each_schedule_has_its_spacing() -> None:
    for schedule, grid in ((VP(), "power-t"), (Discrete(), "power-t"), (EDM(), "karras"), (Flow(), "time-to-clean"),
                           (VE(), "time")):  # fmt: skip
        want = lookup("grid", grid)(schedule, 6)
        assert DEIS(steps=6).times(schedule)[:-1] == pytest.approx(want)
    assert DEIS(steps=6, family="ipndm").times(VP())[1] == pytest.approx(1 - 0.2 * 0.999)
    assert DEIS(steps=6, grid="logsnr").times(VP())[1] == pytest.approx(lookup("grid", "logsnr")(VP(), 6)[1])


def test_ends_without_signal_or_noise() -> None:
    """Flow starts at rho = inf: what cannot be extrapolated through is not; the clean end is reached at full degree."""
    times = Flow().snap(np.array([1.0, 0.8, 0.6, 0.4, 0.2, 0.0]))
    rows = DEIS(family="rhoab", degree=2).coefficients(Flow(), times)
    assert rows["c1"][1] == 0  # the only other point is at infinite rho
    assert rows["c1"][2] != 0
    assert rows["c2"][2] == 0
    rows = DEIS(family="tab", degree=2).coefficients(Flow(), times)
    assert rows["c1"][1] != 0  # in t it is a point like any other
    assert rows["c2"][4] != 0
    assert DEIS(family="log-rho", degree=2).coefficients(Flow(), times)["c1"][4] == 0
    assert DEIS(family="tab").coefficients(VE(), np.array([1.0, 0.5, 0.2, 1e-5, -1.0]))["c1"][3] == 0
    assert not runge_kutta_table(Flow(), times)["stages"][[0, -1]].any()
    assert runge_kutta_table(Flow(), times)["stages"][1:-1].all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_log_rho_is_the_scheduler_of_diffusers(degree: int) -> None:
    from diffusers import DEISMultistepScheduler

    schedule = Discrete()
    model = Mixture(schedule, torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=F8), 0.1)
    for steps in (10, 20):
        scheduler = DEISMultistepScheduler(
            beta_schedule="linear", beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing", solver_order=degree + 1
        )
        scheduler.set_timesteps(steps)
        times = np.append(scheduler.timesteps.numpy().astype(np.float64), 0.0)
        ours = torch.tensor(rho(schedule, times))
        assert torch.allclose(scheduler.sigmas.double(), ours, rtol=1e-4)
        scheduler.sigmas = ours  # theirs are float32; only rounding is left
        x = START
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, float(t)).eps, t, x, return_dict=False)[0]
        got = run(DEIS(family="log-rho", degree=degree), model, times, START)
        assert (got - x).abs().max() < 1e-9


def test_runge_kutta_tableaux_are_consistent() -> None:
    """sum b = 1, row sums c, and the order conditions sum b c^(k-1) = 1/k."""
    for name, tableau in TABLEAUX.items():
        assert sum(tableau.b) == pytest.approx(1), name
        for c, row in zip(tableau.c, tableau.a):
            assert sum(row) == pytest.approx(c), name
        for k in range(1, tableau.order + 1):
            assert sum(b * c ** (k - 1) for b, c in zip(tableau.b, tableau.c)) == pytest.approx(1 / k), name


def test_two_stages_in_rho_are_heun_of_edm() -> None:
    model = Mixture(EDM(), torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=F8), 0.1)
    draws = Noise(0).at(range(3), (2,), dtype=F8)
    heun = lookup("sampler", "heun")(steps=7)(model, draws)
    two = DEIS(family="rhork", tableau="2heun", steps=7)(model, draws)
    assert torch.allclose(two.x, heun.x, atol=1e-11)
    assert two.nfe == heun.nfe == 13


def test_extrapolating_the_noise_beats_freezing_it() -> None:
    """The paper's ladder at 10 evaluations: each degree lowers the error."""
    model = Mixture(VP(), torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=F8), 0.1)
    draws = Noise(0).at(range(64), (2,), dtype=F8)
    times = np.append(power_t(VP(), 10), 1e-3)
    truth = run(DEIS(family="rhork", tableau="4rk"), model, np.append(power_t(VP(), 400), 1e-3), draws.normal())
    errors = []
    for degree in range(4):
        end = DEIS(degree=degree)(model, draws, times=times, x=draws.normal()).x
        errors.append((end - truth).square().mean(1).sqrt().median().item())
    assert all(b < a for a, b in itertools.pairwise(errors)), errors
    assert errors[3] < errors[0] / 2


def test_settings() -> None:
    with pytest.raises(InputError, match="did you mean 'rhoab'"):
        DEIS(family="rhoAB")
    with pytest.raises(InputError, match="did you mean '3kutta'"):
        DEIS(family="rhork", tableau="kutta3")
    for bad in (4, -1, 1.5, True):
        with pytest.raises(InputError, match="degree"):
            DEIS(degree=bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 4"):
        DEIS(steps=3)
    with pytest.raises(InputError, match="at least 4"):
        DEIS(nfe=3).plan()
    assert DEIS(family="rhork", nfe=10).plan() == 4  # 3 stages, the last step one: 3 * 3 + 1
    assert DEIS(family="rhork", nfe=9).plan() == 3
