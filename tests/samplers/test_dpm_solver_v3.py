"""DPM-Solver-v3: against the paper's algorithm written out with its tables, on closed forms, and what it refuses."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.names import lookup
from scoreline.core.noise import Noise
from scoreline.core.sampler import State
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.schedules import EDM, VP, Discrete, Flow
from scoreline.evaluate.specs import check_fit, make_sampler
from scoreline.samplers import calibrations
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.dpm_solver_pp import DPMSolverPP3M
from scoreline.samplers.dpm_solver_v3 import DPMSolverV3, corrector_order, predictor_order
from scoreline.samplers.model_statistics import ModelStatistics, data_prediction
from scoreline.samplers.statistics_estimation import estimate

F8 = torch.float64
MEANS = torch.tensor([[-1.0, 0.4, 0.3], [0.8, 1.0, -0.5], [0.2, -1.2, 0.9]], dtype=F8)
VARIANCES = torch.tensor([0.05, 0.1, 0.2], dtype=F8)


def mixture(schedule: Any) -> Mixture:
    return Mixture(schedule, MEANS, VARIANCES)


@cache
def statistics() -> ModelStatistics:
    """Of the mixture, on the range of VP."""
    points = torch.randn(96, 3, generator=torch.Generator().manual_seed(0), dtype=F8)
    x0 = MEANS.repeat(32, 1) + VARIANCES.repeat(32)[:, None].sqrt() * points
    return estimate(mixture(VP()), (x0, None), samples=96, nodes=60, diagonal="exact", batch_size=96)


def smooth(*, nodes: int = 1000, low: float = -7.0, high: float = 12.0) -> ModelStatistics:
    made = ModelStatistics(shape=(), nodes=nodes, low=low, high=high).double()
    lam = torch.as_tensor(made.lam)
    made.l.copy_(torch.sigmoid(-2 * lam))
    made.s.copy_(-0.3 - 0.4 * torch.tanh(lam))
    made.b.copy_(0.2 / torch.cosh(lam))
    return made


def written_out(
    model: Mixture, stats: ModelStatistics, indices: list[int], x: np.ndarray, *, order: int, corrector: bool,
    pseudo: bool, pseudo_corrector: bool, lower_order_final: bool, corrects: Any = lambda t: True,
) -> np.ndarray:  # fmt: skip
    """The paper's algorithm with its cumulative tables over the nodes, one formula after the other."""
    lam, h = stats.lam, stats.lam[1] - stats.lam[0]
    l, s, b = (v.numpy() for v in (stats.l, stats.s, stats.b))  # noqa: E741

    def table(v: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros((1, v.shape[1])), np.cumsum(0.5 * h * (v[1:] + v[:-1]), axis=0)])

    L, S = table(l), table(s)
    B, I = table(np.exp(-S) * b), table(np.exp(L + S))  # noqa: E741
    C = table(np.exp(L + S) * B)
    time = [float(model.schedule.time(v)) for v in lam]
    alpha, sigma = ([float(f(t)) for t in time] for f in (model.schedule.alpha, model.schedule.sigma))

    def f_of(i: int, x: np.ndarray, eps: np.ndarray) -> np.ndarray:
        return (sigma[i] * eps - l[i] * x) / alpha[i]

    def update(
        start: int, end: int, x: np.ndarray, points: list[tuple[int, np.ndarray, np.ndarray]], fake: bool
    ) -> Any:
        """From node start to node end; points are (node, x, eps), the start first."""
        g = [np.exp(S[start] - S[i]) * f_of(i, px, pe) - np.exp(S[start]) * (B[i] - B[start]) for i, px, pe in points]
        A, n = np.exp(L[start] - L[end]), len(points) - 1
        out = alpha[end] / alpha[start] * A * x
        out = out - alpha[end] * np.exp(-L[end] - S[start]) * (I[end] - I[start]) * g[0]
        out = out - alpha[end] * np.exp(-L[end]) * (C[end] - C[start] - B[start] * (I[end] - I[start]))
        delta = [lam[i] - lam[start] for i, _, _ in points]
        if fake:
            D, derivatives = list(g), []
            for k in range(1, n + 1):
                D = [(D[j + 1] - D[j]) / (delta[j + k] - delta[j]) for j in range(len(D) - 1)]
                derivatives.append(math.factorial(k) * D[0])
        else:
            V = np.array([[d**j for j in range(1, n + 1)] for d in delta[1:]])
            rise = np.array([gk - g[0] for gk in g[1:]])
            y = np.linalg.solve(V, rise.reshape(n, -1)) if n else []
            derivatives = [math.factorial(j + 1) * np.reshape(v, x.shape) for j, v in enumerate(y)]
        between = slice(start, end + 1)
        for j, derivative in enumerate(derivatives, start=1):
            weight = np.exp((L + S)[between] - (L + S)[start]) * ((lam[between] - lam[start]) ** j)[:, None]
            out = out - alpha[end] * A * table(weight / math.factorial(j))[-1] * derivative
        return out

    M, xs, epss, orders = len(indices) - 1, [x], [], []
    for m in range(1, M + 1):
        i, before = indices[m - 1], indices[m - 2] if m > 1 else -1
        eps = model(torch.as_tensor(xs[-1]), time[i]).eps.numpy()
        if corrector and m > 1 and corrects(time[i]):
            c = orders[-1] + pseudo_corrector
            if c > 1:
                past = [(indices[j], xs[j], epss[j]) for j in range(m - 2, -1, -1)]
                points = [past[0], (i, xs[-1], eps), *past[1 : c - 1]]
                new = update(before, i, xs[-2], points, pseudo_corrector)
                eps = eps + l[i] * (new - xs[-1]) / sigma[i]
                xs[-1] = new
        epss.append(eps)
        p = min(order, m)
        if lower_order_final:
            p = min(p, M + 1 - m)
        orders.append(p)
        points = [(indices[j], xs[j], epss[j]) for j in range(m - 1, m - 1 - p, -1)]
        xs.append(update(i, indices[m], xs[-1], points, pseudo))
    return xs[-1]


SETTINGS: list[dict[str, Any]] = [
    {"solver_order": 1, "corrector": False},
    {"solver_order": 2, "corrector": False},
    {"solver_order": 2, "corrector": True},
    {"solver_order": 3, "corrector": True},
    {"solver_order": 3, "corrector": True, "lower_order_final": False},
    {"solver_order": 3, "corrector": True, "pseudo": True, "lower_order_final": False},
    {"solver_order": 3, "corrector": True, "pseudo_corrector": True},
    {"solver_order": 1, "corrector": True, "pseudo_corrector": True},
    {"solver_order": 2, "corrector": True, "half": True},
]


@pytest.mark.parametrize("kind", SETTINGS, ids=str)
def test_the_released_variant_is_the_papers_algorithm_with_its_tables(kind: dict[str, Any]) -> None:
    stats, model = statistics(), mixture(VP())
    indices = [0, 9, 17, 29, 36, 48, 60]
    times = np.array([model.schedule.time(lam) for lam in stats.lam[indices]])
    x = Noise(3).at(range(5), (3,), dtype=F8).normal()
    found = DPMSolverV3(**kind, variant="released").using(stats)(
        model, Noise(0).at(range(5), (3,), dtype=F8), times=times, x=x
    )
    full = {"corrector": True, "pseudo": False, "pseudo_corrector": False, "lower_order_final": True, **kind}
    order, half = full.pop("solver_order"), full.pop("half", False)
    # The released code corrects the noisier half.
    corrects = (lambda t: t > 0.5) if half else (lambda t: True)
    wanted = written_out(model, stats, indices, x.numpy(), order=order, corrects=corrects, **full)
    np.testing.assert_allclose(found.x.numpy(), wanted, rtol=0, atol=1e-10)
    assert found.nfe == 6


def test_half_corrects_the_cleaner_half_and_as_released_the_noisier() -> None:
    times = np.array([1.0, 0.8, 0.6, 0.5, 0.3, 0.1, 0.01])
    for variant, wanted in (("paper", [0, 0, 0, 1, 1, 1]), ("released", [0, 0, 1, 0, 0, 0])):
        sampler = DPMSolverV3(solver_order=2, half=True, variant=variant, statistics="data")
        assert sampler.coefficients(VP(), times)["correct"].tolist() == [bool(w) for w in wanted]
    every = DPMSolverV3(solver_order=2, statistics="data").coefficients(VP(), times)["correct"]
    assert every.tolist() == [False, False, True, True, True, True]


def test_orders() -> None:
    assert [predictor_order(m, 6, 3, False) for m in range(1, 7)] == [1, 2, 3, 3, 3, 3]
    assert [predictor_order(m, 6, 3, True) for m in range(1, 7)] == [1, 2, 3, 3, 2, 1]
    assert [corrector_order(p, False) for p in (1, 2, 3)] == [0, 2, 3]
    assert [corrector_order(p, True) for p in (1, 2, 3)] == [2, 3, 4]


@pytest.mark.check(system=25, number=2)
@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_one_step_of_order_one_is_exact_where_f_is_affine_in_itself(name: str) -> None:
    """A Gaussian, with its l = l* (f has no spread) and with l = 1 (f' = s f + b)."""
    schedule = lookup("schedule", name)()
    model = Gaussian(schedule, torch.tensor([0.4, -0.3], dtype=F8), torch.tensor([0.5, 0.1]))
    start, end = -1.0, 2.0
    times = np.array([schedule.time(start), schedule.time(end)])
    draws = Noise(1).at(range(4), (2,), dtype=F8)
    x = draws.normal() * float(schedule.sigma(times[0]))
    exact = model.flow(x, times[0], times[1])
    lam = torch.linspace(start - 0.1, end + 0.1, 1601, dtype=F8)[:, None]
    level2, v, m = torch.exp(-2 * lam), model.variance, model.mean_
    l_best, k = level2 / (v + level2), v / (v + level2)
    slope = -2 * l_best * (1 - l_best)
    for l, s, b in (  # noqa: E741
        (l_best, torch.zeros_like(l_best), -m * slope),
        # D = m + k (y - m), f = -D, f' = -k' (y - m) - k (D - y) = (2 (1 - k) + k - 1)(f + m)
        (torch.ones_like(k), 1 - k, (1 - k) * m),
    ):
        stats = ModelStatistics(shape=(2,), nodes=1600, low=float(lam[0]), high=float(lam[-1])).double()
        for name_, value in (("l", l), ("s", s), ("b", b)):
            getattr(stats, name_).copy_(value)
        found = DPMSolverV3(solver_order=1).using(stats)(model, draws, times=times, x=x).x
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
    ddim = DDIM()(model, draws, times=times, x=x).x
    assert (ddim - exact).abs().max() > 0.05


@pytest.mark.check(system=25, number=6)
def test_the_corrector_leaves_f_and_so_g_as_they_were() -> None:
    """The corrected x with eps + l (x_new - x)/sigma has the same f; at the start of a step g is f."""
    stats, model, sampler = statistics(), mixture(VP()), DPMSolverV3(solver_order=2).using(statistics())
    times = np.array([model.schedule.time(v) for v in (-3.0, -1.5, -0.2, 1.0)])
    rows = list(sampler.coefficients(model.schedule, times))
    draws = Noise(3).at(range(5), (3,), dtype=F8)
    state = sampler.init(model, draws, sampler.coefficients(model.schedule, times))
    for row in rows[:2]:
        state = sampler.step(model, state, row)
    predicted, row = state.x, rows[2]
    assert row.correct
    eps = model(predicted, row.t).eps
    state = sampler.step(model, state, row)
    _, corrected, (f, *_) = state.memory
    assert (corrected - predicted).abs().max() > 1e-4
    alpha, sigma, l = *(float(v(row.t)) for v in (model.schedule.alpha, model.schedule.sigma)), stats.at([-0.2])[0][0]  # noqa: E741
    changed = eps + l * (corrected - predicted) / sigma
    torch.testing.assert_close((sigma * changed - l * corrected) / alpha, f)
    torch.testing.assert_close((sigma * eps - l * predicted) / alpha, f)
    zero = stats.between(-0.2, -0.2)
    assert not zero.S.any()
    assert not zero.B.any()


@pytest.mark.check(system=25, number=7)
@pytest.mark.parametrize("corrector", [True, False])
def test_evaluations_and_nodes(corrector: bool) -> None:
    stats, schedule = statistics(), VP()
    for steps in (3, 5, 10):
        sampler = DPMSolverV3(steps=steps, corrector=corrector, variant="released", grid="logsnr").using(stats)
        sample = sampler(mixture(schedule), Noise(0).at([0, 1], (3,), dtype=F8))
        assert sample.nfe == steps
        nodes = stats.nearest(schedule.lam(sample.times))
        assert (nodes[0], nodes[-1]) == (0, 60)
        assert (np.diff(nodes) > 0).all()
        # All but the clean end lie on nodes.
        np.testing.assert_allclose(schedule.lam(sample.times[:-1]), stats.lam[nodes[:-1]], atol=1e-9)


def graded(steps: int, low: float = -1.5, high: float = 2.0) -> np.ndarray:
    """Uniform in lambda after a start that grows from h^2, so that the first steps do not hide the order."""
    h = (high - low) / steps
    lam, gap = [low], 0.3 * h * h
    while gap < h:
        lam.append(lam[-1] + gap)
        gap *= 2
    return np.append(lam, np.linspace(lam[-1], high, math.ceil((high - lam[-1]) / h) + 1)[1:])


@cache
def solution() -> tuple[Tensor, Tensor]:
    """(x at lambda -1.5, x at 2) of the mixture in EDM's coordinates, by an eighth-order solver."""
    start = Noise(2).at(range(4), (3,), dtype=F8).normal() * math.exp(1.5)
    model = mixture(EDM())
    run = solve_ivp(
        lambda t, x: model.velocity(torch.tensor(x).view(4, 3), float(t)).numpy().ravel(),
        (math.exp(1.5), math.exp(-2.0)), start.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-13,
    )  # fmt: skip
    return start, torch.tensor(run.y[:, -1]).view(4, 3)


@pytest.mark.check(system=25, number=10)
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_of_convergence(order: int, corrector: bool) -> None:
    start, end = solution()
    sampler = DPMSolverV3(solver_order=order, corrector=corrector, lower_order_final=False).using(smooth())
    errors = []
    for steps in (48, 192):
        times = EDM().time(graded(steps))
        x = sampler(mixture(EDM()), Noise(0).at(range(4), (3,), dtype=F8), times=times, x=start).x
        errors.append(float((x - end).square().mean().sqrt()))
    slope = math.log2(errors[0] / errors[1]) / 2
    assert slope > order - 0.25
    if not corrector:
        assert slope < order + 0.25
    assert sampler.order == order


@pytest.mark.parametrize("kind", [{"lower_order_final": True}, {"pseudo": True}, {"pseudo_corrector": True}], ids=str)
def test_lowered_and_pseudo_orders_leave_the_second(kind: dict[str, Any]) -> None:
    assert DPMSolverV3(solver_order=3, **{"lower_order_final": False, **kind}).order == 2
    assert DPMSolverV3(solver_order=3, corrector=False, lower_order_final=False, pseudo_corrector=True).order == 3


def test_with_l_one_order_three_is_the_quadratic_through_the_last_three_predictions() -> None:
    """The same integral as the third-order DPM-Solver++, wherever that has three points."""
    times = EDM().time(np.array([-1.5, -0.8, 0.1, 0.9, 1.4]))
    model, draws = mixture(EDM()), Noise(0).at(range(4), (3,), dtype=F8)
    kind = {"solver_order": 3, "corrector": False, "lower_order_final": False, "statistics": "data"}
    rows = DPMSolverV3(**kind).coefficients(EDM(), times)
    theirs = DPMSolverPP3M().coefficients(EDM(), times)
    for i in (2, 3):
        assert float(rows["a"][i]) == pytest.approx(float(theirs["a"][i]), rel=1e-10)
        for k in range(3):  # f = -x_0
            assert -float(rows[f"w{k}"][i]) == pytest.approx(float(theirs[f"w{k}"][i]), rel=1e-8)
    assert DPMSolverV3(**kind)(model, draws, times=times).nfe == 4


def test_the_last_step_goes_to_the_cleanest_level_and_denoises_there_by_what_g_implies() -> None:
    model, schedule = mixture(VP()), VP()
    times, stats = np.array([0.5, 0.2, 0.1, 0.0]), statistics()
    end = min(float(schedule.lam(schedule.t_min)), stats.high)
    sampler = DPMSolverV3(solver_order=1).using(stats)
    path = sampler(model, Noise(0).at(range(3), (3,), dtype=F8), times=times, trajectory=True).trajectory
    assert path is not None
    x, start = path[-2], float(schedule.lam(0.1))
    alpha, sigma = float(schedule.alpha(0.1)), float(schedule.sigma(0.1))
    f = (sigma * model(x, 0.1).eps - stats.at([start])[0][0] * x) / alpha
    # By small steps of y' = -(l y) - f and f = e^S (g + B), f' = s f + b.
    lam = np.linspace(start, end, 20_001)
    y, h = x / alpha, float(lam[1] - lam[0])
    middles = stats.at(0.5 * (lam[1:] + lam[:-1]))
    for l, s, b in zip(*middles):  # noqa: E741
        half_y, half_f = y - 0.5 * h * (l * y + f), f + 0.5 * h * (s * f + b)
        y, f = y - h * (l * half_y + half_f), f + h * (s * half_f + b)
    torch.testing.assert_close(path[-1], (1 - stats.at([end])[0][0]) * y - f, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["data", "noise"])
@pytest.mark.parametrize("end", [0.1, 0.001])
def test_without_statistics_the_last_step_is_the_posterior_mean_at_the_last_level(kind: str, end: float) -> None:
    model, draws = mixture(VP()), Noise(0).at(range(3), (3,), dtype=F8)
    sampler = DPMSolverV3(solver_order=1, statistics=kind)
    path = sampler(model, draws, times=np.array([0.5, 0.2, end, 0.0]), trajectory=True).trajectory
    assert path is not None
    torch.testing.assert_close(path[-1], model(path[-2], end).mean, rtol=0, atol=1e-9)


def test_at_the_cleanest_level_the_last_step_is_the_posterior_mean_there() -> None:
    model, stats, schedule = mixture(VP()), statistics(), VP()
    end = float(schedule.time(min(float(schedule.lam(schedule.t_min)), stats.high)))
    sampler = DPMSolverV3(solver_order=1).using(stats)
    draws = Noise(0).at(range(3), (3,), dtype=F8)
    path = sampler(model, draws, times=np.array([0.5, 0.2, end, 0.0]), trajectory=True).trajectory
    assert path is not None
    torch.testing.assert_close(path[-1], model(path[-2], end).mean, rtol=0, atol=1e-9)


def test_a_run_ends_at_the_cleanest_level_without_asking_there() -> None:
    schedule = EDM()
    levels = DPMSolverV3(steps=5, grid="logsnr", statistics="data").times(schedule)
    np.testing.assert_allclose(levels[:-1], lookup("grid", "logsnr")(schedule, 6)[:-1])
    # Grids that stop short of it are taken as they are.
    for schedule, grid in ((Flow(), None), (Discrete(), "trailing")):
        sampler = DPMSolverV3(steps=5, grid=grid, statistics="data")
        wanted = lookup("grid", grid or schedule.grid)(schedule, 5)
        np.testing.assert_allclose(sampler.times(schedule)[:-1], wanted)


def test_statistics_of_the_model_beat_those_of_none_at_few_evaluations() -> None:
    model, times = mixture(VP()), VP().time(np.linspace(-5.0, 4.0, 7))
    fine = VP().time(np.linspace(-5.0, 4.0, 400))
    draws = Noise(5).at(range(48), (3,), dtype=F8)
    exact = DPMSolverPP3M()(model, draws, times=fine).x

    def median(sampler: DPMSolverV3) -> float:
        return float((sampler(model, draws, times=times).x - exact).square().mean(1).sqrt().median())

    own = median(DPMSolverV3(solver_order=2).using(statistics()))
    assert own < 0.7 * median(DPMSolverV3(solver_order=2, statistics="data"))


# --- where the statistics come from ---------------------------------------------------------------------------


def test_statistics_are_found_kept_apart_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    model, other = mixture(VP()), Mixture(VP(), MEANS + 1, VARIANCES)
    draws = Noise(0).at(range(2), (3,), dtype=F8)
    sampler = make_sampler("dpm-solver-v3", nfe=6)
    with pytest.raises(InputError, match="scoreline calibrate MODEL --for dpm-solver-v3"):
        check_fit(sampler, model)
    with pytest.raises(InputError, match="statistics=data"):
        sampler.coefficients(VP(), VP().time(np.array([-1.0, 0.0, 1.0])))
    path = calibrations.save("dpm-solver-v3", model, statistics())
    assert check_fit(sampler, model) == 6
    found = sampler(model, draws).x
    wanted = DPMSolverV3(nfe=6).using(statistics())(model, draws).x
    torch.testing.assert_close(found, wanted)
    # Another schedule's coordinates and bound conditions keep the model's statistics.
    moved = model.on(EDM(t_min=0.02, t_max=80.0))
    assert sampler.calibrated(moved)._held is sampler.calibrated(model)._held
    with pytest.raises(InputError, match="calibrate"):
        check_fit(sampler, other)
    given = make_sampler(f"dpm-solver-v3:statistics={path}", nfe=6)
    assert torch.equal(given(model, draws).x, found)
    with pytest.raises(InputError, match=r"made for another model; .*calibrate"):
        check_fit(given, other)
    with pytest.raises(ArtefactError, match="no such file"):
        check_fit(make_sampler("dpm-solver-v3:statistics=none.safetensors", nfe=6), model)


def test_levels_outside_the_estimated_range_are_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    model = mixture(EDM())  # from lambda -4.4 to 6.2
    calibrations.save("dpm-solver-v3", model, data_prediction(low=-4.0, high=7.0))
    with pytest.raises(InputError, match="lambda from -4 to 7 only"):
        check_fit(make_sampler("dpm-solver-v3", nfe=6), model)


def test_bad_settings() -> None:
    for bad in ({"solver_order": 4}, {"solver_order": 0}, {"steps": 2}, {"solver_order": 3, "steps": 4}):
        with pytest.raises(InputError):
            DPMSolverV3(**bad)
    with pytest.raises(InputError, match="did you mean 'released'"):
        DPMSolverV3(variant="release")
    DPMSolverV3(solver_order=3, steps=3, lower_order_final=False)
    with pytest.raises(InputError, match="at least 5"):
        DPMSolverV3(solver_order=3, nfe=4).plan()


def test_the_state_can_be_moved_between_types() -> None:
    """A run in float32 holds its coefficients in float32."""
    sampler = DPMSolverV3(statistics="data")
    rows = sampler.coefficients(EDM(), np.array([5.0, 1.0, 0.3]))
    state = sampler.init(mixture(EDM()), Noise(0).at([0], (3,)), rows)
    assert isinstance(state, State)
    assert state.memory[0].dtype == torch.float32
