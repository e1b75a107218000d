"""Every sampler of the table, found by itself, put through the same questions.

A new sampler takes part as soon as it has its line in `scoreline.core.names`. `VARIANTS` lists further settings worth
asking (keyword arguments beside the defaults); an entry for a sampler that is gone fails.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scoreline.core.artefact import build, describe
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.flow_map import FlowMap
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.core.schedule import Schedule, Time
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.preconditioned import Preconditioned

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ddim": [{"eta": 0.6}, {"eta": 1.0}],
    "ddpm": [{"variance": "small"}],
    "heun": [{"s_churn": 4.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}],
    "ancestral": [{"eta": 0.4, "s_noise": 0.9}],
    "dpm-solver++3m": [{"variant": "released"}],
    "denoising-mcmc": [
        {"of": "kar2", "n_skip": 3, "start_steps": 5, "burn_in": 2, "settle": 2, "chains": 4, "emissions": 3},
        {"rule": "sample", "metropolis": True, "tweedie": 0.0, "start_steps": 4, "burn_in": 1, "settle": 1},
    ],
    "dpm-solver-v3": [
        {"solver_order": 3, "corrector": False, "lower_order_final": False},
        {"variant": "released"},
        {"pseudo": True, "half": True, "statistics": "data"},
    ],
    "usf": [{"like": "deis-2"}, {"like": "dpm-solver-2"}],
    "deis": [
        {"degree": 2},
        {"family": "rhoab", "degree": 1},
        {"family": "log-rho", "degree": 2},
        {"family": "ipndm"},
        {"family": "rhork"},
        {"family": "rhork", "tableau": "2heun"},
    ],
    "unipc": [
        {"solver_order": 1, "solver": "bh1"},
        {"prediction": "noise", "solver": "bh1"},
        {"solver_order": 3, "corrector": False, "lower_order_final": False},
    ],
    "pndm": [{"kind": "s"}],
    "pc": [
        {"predictor": "none", "snr": 0.3, "corrector_steps": 2},
        {"predictor": "ancestral", "corrector": "annealed"},
        {"predictor": "euler-maruyama", "corrector_steps": 0},
    ],
    "er-sde": [{"phi": "ode"}, {"phi": "er-sde-1"}],
    "planned": [{"of": "dpm-solver++2m"}],
    "straight": [{"heun": True}, {"rule": "default", "heun": True}],
    "time-shift": [
        {"of": "ddpm", "cutoff": 0, "window": 200},
        {"of": "dpm-solver++2m", "cutoff": 0},
        {"mode": "official_target", "cutoff": 0},
        {"of": "heun", "mode": "official_input", "cutoff": 0},
    ],
}
Case = tuple[str, dict[str, Any]]
CASES: list[Case] = [(name, kwargs) for name in names("sampler") for kwargs in [{}, *VARIANTS.get(name, [])]]
SCHEDULES = names("schedule")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make(case: Case, **more: Any) -> Sampler:
    name, kwargs = case
    try:
        return lookup("sampler", name)(**kwargs, **more)
    except (TypeError, InputError) as error:
        pytest.fail(f"{name} cannot be made with its defaults and {more}; give it an entry in VARIANTS ({error})")


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return value[0] + "".join(f",{k}={v}" for k, v in value[1].items())
    return str(value)


every = pytest.mark.parametrize("case", CASES, ids=shown)
every_schedule = pytest.mark.each("schedule_name", SCHEDULES)
ODE_CASES = [case for case in CASES if make(case).order is not None]
PER_IMAGE = [case for case in CASES if make(case).per_image]
RISING = [case for case in CASES if make(case).rising]


def test_variants_name_samplers_that_exist() -> None:
    assert set(VARIANTS) <= set(names("sampler"))


# --- an oracle that shares no code with the library: the mixture's ODE in y = x/alpha, level = sigma/alpha ---

MEANS = np.array([[-1.0, 0.4, 0.3], [0.8, 1.0, -0.5], [0.2, -1.2, 0.9]])
VARIANCES = np.array([0.05, 0.1, 0.2])
LOW, HIGH = -1.5, 2.0  # lambda at the start and at the end of the runs
START = np.random.default_rng(0).normal(size=(6, 3)) * np.exp(-LOW) * 1.2


def _eps(y: np.ndarray, level: float) -> np.ndarray:
    total = VARIANCES + level**2
    d = y[:, None] - MEANS
    log_r = -(d * d).sum(-1) / (2 * total) - 1.5 * np.log(total)
    r = np.exp(log_r - log_r.max(1, keepdims=True))
    r /= r.sum(1, keepdims=True)
    return level * ((r / total)[:, :, None] * d).sum(1)


@pytest.fixture(scope="module")
def solution() -> np.ndarray:
    """y at lambda = HIGH for START at lambda = LOW, by an eighth-order solver."""
    run = solve_ivp(
        lambda s, y: _eps(y.reshape(START.shape), s).ravel(),
        (np.exp(-LOW), np.exp(-HIGH)),
        START.ravel(),
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    return run.y[:, -1].reshape(START.shape)


class Jumping(FlowMap):
    """A denoiser that also jumps, by a step of DDIM, so that samplers of flow maps are asked what all others are."""

    anywhere = scored = True

    @property
    def end(self) -> float:  # type: ignore[override]
        return self.schedule.t_min

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        s = max(s, self.end)
        return self(x, t, cond).combine(0.0, self.schedule.alpha(s), self.schedule.sigma(s))


class MixtureMap(Mixture, Jumping):
    """The mixture, which jumps."""


class NetworkMap(Preconditioned, Jumping):
    """A network, which jumps."""


def mixture(schedule: Schedule) -> Mixture:
    return MixtureMap(schedule, torch.tensor(MEANS), torch.tensor(VARIANCES))


def graded(steps: int) -> np.ndarray:
    """Uniform in lambda after a start that grows from h^2, so that the first, low-order steps do not hide the order."""
    h = (HIGH - LOW) / steps
    lam, gap = [LOW], 0.3 * h * h
    while gap < h:
        lam.append(lam[-1] + gap)
        gap *= 2
    rest = HIGH - lam[-1]
    return np.append(lam, lam[-1] + rest * np.linspace(0, 1, int(np.ceil(rest / h)) + 1)[1:])


def error(sampler: Sampler, schedule: Schedule, lam: np.ndarray, solution: np.ndarray) -> float:
    times = schedule.time(lam)
    draws = Noise(0).at(range(6), (3,), dtype=torch.float64)
    x = torch.tensor(START) * float(schedule.alpha(times[0]))
    end = sampler(mixture(schedule), draws, times=times, x=x).x.numpy() / schedule.alpha(times[-1])
    return float(np.sqrt(((end - solution) ** 2).mean()))


@pytest.mark.parametrize("case", ODE_CASES, ids=shown)
@every_schedule
def test_order_is_what_it_declares(case: Case, schedule_name: str, solution: np.ndarray) -> None:
    """The error falls with the declared order: not slower, and not faster either."""
    sampler, schedule = make(case), lookup("schedule", schedule_name)()
    assert sampler.order is not None
    errors = [error(sampler, schedule, graded(n), solution) for n in (48, 96)]
    # High orders show late: they are measured on the finest runs above rounding, and above the corners of a table.
    for n in (192, 384) if sampler.order >= 4 and schedule.known is None else ():
        if (finer := error(sampler, schedule, graded(n), solution)) < 1e-10:
            break
        errors.append(finer)
    slope = np.log2(errors[-2] / errors[-1])
    assert abs(slope - sampler.order) < 0.25, f"declared {sampler.order}, measured {slope:.2f}, errors {errors}"
    # All converge to the same image: the one of the independent solver.
    assert errors[-1] < 0.02


@pytest.mark.parametrize("case", ODE_CASES, ids=shown)
@every_schedule
def test_default_runs_reach_the_exact_flow_of_a_gaussian(case: Case, schedule_name: str) -> None:
    schedule = lookup("schedule", schedule_name)()
    model = Gaussian(schedule, torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64), torch.tensor([0.5, 0.1, 1.0]))
    draws = Noise(1).at(range(4), (3,), dtype=torch.float64)
    grid = lookup("grid", "logsnr") if np.isfinite(schedule.lam(schedule.t_max)) and schedule.known is None else None
    errors = []
    for steps in (25, 100):
        sampler = make(case, steps=steps, grid="logsnr" if grid else None)
        times = sampler.times(schedule)
        if schedule.alpha(times[0]) == 0 and "heun" in case[0]:
            times[0] *= 0.999  # refused where no signal is left, see test_heun
        x = draws.normal() * float(schedule.prior(float(times[0])))
        exact = model.flow(x, float(times[0]), schedule.clean)
        errors.append((sampler(model, draws, times=times, x=x).x - exact).abs().max().item())
    assert errors[1] < 0.2, errors
    assert errors[1] < errors[0] / 3 or errors[1] < 1e-3, errors


@pytest.mark.parametrize("case", RISING, ids=shown)
@every_schedule
def test_encoding_then_decoding_returns_the_input(case: Case, schedule_name: str) -> None:
    schedule = lookup("schedule", schedule_name)()
    model, draws = mixture(schedule), Noise(0).at(range(6), (3,), dtype=torch.float64)
    start = torch.tensor(MEANS).repeat(2, 1) + 0.3 * draws.normal()
    errors = []
    for steps in (12, 24, 48):
        up = schedule.time(np.linspace(HIGH, LOW, steps + 1))
        sampler = make(case)
        code = sampler(model, draws, times=up, x=start).x
        back = sampler(model, draws, times=up[::-1].copy(), x=code).x
        errors.append((back - start).abs().max().item())
    assert errors[2] < 0.2
    assert errors[0] / errors[1] > 1.5, errors
    assert errors[1] / errors[2] > 1.5, errors


@pytest.mark.parametrize("case", [c for c in CASES if not make(c).rising], ids=shown)
def test_rising_times_are_refused_where_not_declared(case: Case) -> None:
    model = mixture(lookup("schedule", "edm")())
    draws = Noise(0).at([0], (3,), dtype=torch.float64)
    with pytest.raises(InputError, match="decreasing"):
        make(case)(model, draws, times=[0.5, 1.0, 2.0], x=torch.ones(1, 3, dtype=torch.float64))


# --- the same image whatever the batch ----------------------------------------------------------------------


def network(schedule: Schedule, tiny_net: Any) -> Preconditioned:
    return NetworkMap(tiny_net(), schedule, kind="edm", time_input="ln-sigma/4").eval()


BATCH_SCHEDULES = ["edm", "vp", "discrete"]


@every
@pytest.mark.each("schedule_name", BATCH_SCHEDULES)
def test_an_image_depends_on_its_number_only(case: Case, schedule_name: str) -> None:
    model = mixture(lookup("schedule", schedule_name)())
    sampler = make(case, steps=6)
    order = [7, 3, 11, 0]
    whole = sampler(model, Noise(5).at(order, (3,), dtype=torch.float64)).x
    for row, index in enumerate(order):
        alone = sampler(model, Noise(5).at([index], (3,), dtype=torch.float64)).x[0]
        assert (whole[row] - alone).abs().max() < 1e-10
    shuffled = sampler(model, Noise(5).at(order[::-1], (3,), dtype=torch.float64)).x
    assert (whole.flip(0) - shuffled).abs().max() < 1e-10
    other_seed = sampler(model, Noise(6).at(order, (3,), dtype=torch.float64)).x
    assert (whole - other_seed).abs().max() > 1e-2


@every
@pytest.mark.each("schedule_name", BATCH_SCHEDULES)
def test_an_image_of_a_float32_network_depends_on_its_number_only(
    case: Case, schedule_name: str, tiny_net: Any
) -> None:
    model = network(lookup("schedule", schedule_name)(), tiny_net)
    sampler = make(case, steps=6)
    order = [2, 9, 4]
    whole = sampler(model, Noise(5).at(order, (1, 4, 4))).x
    for row, index in enumerate(order):
        alone = sampler(model, Noise(5).at([index], (1, 4, 4))).x[0]
        assert (whole[row] - alone).abs().max() < 1e-4
    assert torch.isfinite(whole).all()


@pytest.mark.parametrize("case", PER_IMAGE, ids=shown)
@pytest.mark.each("schedule_name", BATCH_SCHEDULES)
def test_per_image_times_equal_runs_one_by_one(case: Case, schedule_name: str) -> None:
    schedule = lookup("schedule", schedule_name)()
    lam = np.array([[-2.0, -1.0, -1.6], [-0.5, -0.4, 0.3], [0.4, 1.1, 1.9]])
    times = schedule.snap(schedule.time(lam))
    sampler, model = make(case), mixture(schedule)
    for last in (None, np.full(3, schedule.clean)):
        runs = times if last is None else np.vstack([times, last])
        together = sampler(model, Noise(2).at(range(3), (3,), dtype=torch.float64), times=torch.tensor(runs))
        for i in range(3):
            alone = sampler(model, Noise(2).at([i], (3,), dtype=torch.float64), times=runs[:, i])
            assert (together.x[i] - alone.x[0]).abs().max() < 1e-10
            assert together.nfe == alone.nfe


@pytest.mark.parametrize("case", PER_IMAGE, ids=shown)
def test_per_image_times_of_images(case: Case, tiny_net: Any) -> None:
    """Per-image numbers are spread over all dimensions of an image, not over its last one."""
    schedule = lookup("schedule", "edm")()
    times = np.array([[8.0, 9.0, 10.0, 12.0], [2.0, 3.0, 2.5, 1.0], [0.3, 0.2, 0.5, 0.4], [0.0, 0.0, 0.0, 0.0]])
    sampler, model = make(case), network(schedule, tiny_net)
    together = sampler(model, Noise(2).at(range(4), (1, 4, 4), dtype=torch.float64), times=torch.tensor(times)).x
    for i in range(4):
        alone = sampler(model, Noise(2).at([i], (1, 4, 4), dtype=torch.float64), times=times[:, i]).x[0]
        assert (together[i] - alone).abs().max() < 1e-4


@pytest.mark.parametrize("case", PER_IMAGE, ids=shown)
def test_an_image_may_reach_the_clean_end_while_another_does_not(case: Case) -> None:
    model = mixture(lookup("schedule", "edm")())
    times = np.array([[8.0, 9.0], [2.0, 3.0], [0.0, 0.5]])
    sampler = make(case)
    together = sampler(model, Noise(2).at(range(2), (3,), dtype=torch.float64), times=torch.tensor(times)).x
    for i in range(2):
        alone = sampler(model, Noise(2).at([i], (3,), dtype=torch.float64), times=times[:, i]).x[0]
        assert (together[i] - alone).abs().max() < 1e-10


@pytest.mark.parametrize("case", [c for c in CASES if not make(c).per_image], ids=shown)
def test_per_image_times_are_refused_where_not_declared(case: Case) -> None:
    times = torch.tensor([[3.0, 2.0], [1.0, 1.0], [0.5, 0.4]])
    with pytest.raises(InputError, match="one list of times"):
        make(case)(mixture(lookup("schedule", "edm")()), Noise(0).at(range(2), (3,)), times=times)


# --- no waiting for the device ------------------------------------------------------------------------------

WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "nonzero_static", "argwhere", "equal",
    "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount",
}  # fmt: skip
ON_HOST = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")


class NoWaiting(TorchDispatchMode):
    """Fails on every operation whose result, or the shape of it, the host must wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        assert name not in WAITING, f"{name} makes the host wait"
        if name in ("index", "index_put", "index_put_"):
            for at in args[1]:
                assert at is None or at.dtype not in (torch.bool, torch.uint8), "a mask as an index makes the host wait"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    def refuse(name: str) -> Any:
        def method(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"Tensor.{name} makes the host wait")

        return method

    with pytest.MonkeyPatch.context() as patch, NoWaiting():
        for name in ON_HOST:
            patch.setattr(Tensor, name, refuse(name))
        yield


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.item(),
        lambda x: float(x[0]),
        lambda x: bool(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: np.asarray(x),
        lambda x: x.tolist(),
        lambda x: 1 if x.sum() > 0 else 2,
        lambda x: torch.equal(x, x),
        lambda x: range(4)[x[0].long()],
    ],
)
def test_the_guard_against_waiting_guards(wait: Any) -> None:
    x = torch.ones(3)
    with no_waiting():
        x * 2 + torch.where(x > 0, x, x)
        with pytest.raises(AssertionError, match="wait"):
            wait(x)
    assert float(x[0]) == 1.0


def steps_without_waiting(sampler: Sampler, model: Denoiser, draws: Any, times: Any) -> None:
    rows = sampler.coefficients(model.schedule, times)
    state = sampler.init(model, draws, rows)
    for row in rows:
        with torch.no_grad(), no_waiting():
            state = sampler.step(model, state, row)


@every
@every_schedule
def test_no_step_waits_for_the_device(case: Case, schedule_name: str, tiny_net: Any) -> None:
    schedule = lookup("schedule", schedule_name)()
    times = schedule.snap(schedule.time(np.array([-2.0, -1.0, 0.0, 1.0, 1.5])))
    times = np.append(times, schedule.clean)
    for device in DEVICES:
        draws = Noise(0).at(range(2), (1, 4, 4), device=device)
        steps_without_waiting(make(case), network(schedule, tiny_net).to(device), draws, times)
    draws = Noise(0).at(range(2), (3,), dtype=torch.float64)
    steps_without_waiting(make(case), mixture(schedule), draws, times)


@pytest.mark.parametrize("case", PER_IMAGE, ids=shown)
@every_schedule
def test_no_step_with_per_image_times_waits(case: Case, schedule_name: str, tiny_net: Any) -> None:
    schedule = lookup("schedule", schedule_name)()
    lam = np.array([[-2.0, -1.0], [-1.0, 0.0], [0.5, 1.5]])
    times = np.vstack([schedule.snap(schedule.time(lam)), np.full(2, schedule.clean)])
    for device in DEVICES:
        at = torch.tensor(times, device=device)
        draws = Noise(0).at(range(2), (1, 4, 4), device=device)
        steps_without_waiting(make(case), network(schedule, tiny_net).to(device), draws, at)


# --- numbers: type, device, cost ----------------------------------------------------------------------------


@every
@pytest.mark.each("device", DEVICES)
@pytest.mark.each("dtype", [torch.float32, torch.float64])
def test_images_have_the_type_and_device_of_the_noise(
    case: Case, dtype: torch.dtype, device: str, tiny_net: Any
) -> None:
    model = network(lookup("schedule", "edm")(), tiny_net).to(device)
    sample = make(case, steps=5)(model, Noise(0).at(range(2), (1, 4, 4), dtype=dtype, device=device))
    assert sample.x.dtype == dtype
    assert sample.x.device.type == device
    assert sample.x.shape == (2, 1, 4, 4)
    assert all(p.dtype == torch.float32 for p in model.parameters())


@every
def test_float32_states_follow_float64_states(case: Case) -> None:
    model = mixture(lookup("schedule", "edm")())
    sampler = make(case, steps=8)
    single, double = (sampler(model, Noise(0).at(range(4), (3,), dtype=d)).x for d in (torch.float32, torch.float64))
    assert (single - double).abs().max() < 1e-4


class Asked(Jumping):
    """Counts by itself how often it is asked, for the images of a batch; `evaluations` as a guided model would."""

    def __init__(self, inner: Denoiser, evaluations: int = 1) -> None:
        super().__init__()
        self.inner, self.schedule, self.shape, self.evaluations = inner, inner.schedule, inner.shape, evaluations
        self.calls = 0

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        self.calls += 1
        return self.inner(x, t, cond)


# A chain's start is shared by all images of its life, so that two images alone cost more than their share; that a whole
# life costs what is said, and that budgets hold for it, is asked in tests/samplers/test_denoising_mcmc.py.
ALONE = [case for case in CASES if case[0] != "denoising-mcmc"]
each_alone = pytest.mark.parametrize("case", ALONE, ids=shown)


@each_alone
@pytest.mark.each("evaluations", [1, 2])
def test_cost_is_what_is_counted(case: Case, evaluations: int) -> None:
    draws = Noise(0).at(range(2), (3,))
    for steps in (make(case).min_steps, 7):
        sampler = make(case, steps=steps)
        model = Asked(mixture(lookup("schedule", "edm")()), evaluations)
        sample = sampler(model, draws)
        assert model.calls == sampler.cost(steps)
        assert sample.nfe == sample.nfe_max == sampler.cost(steps) * evaluations
        assert len(sample.times) == steps + 1


@each_alone
@pytest.mark.each("evaluations", [1, 2])
def test_a_budget_buys_the_largest_run_not_above_it(case: Case, evaluations: int) -> None:
    schedule = lookup("schedule", "edm")()
    draws = Noise(0).at([0], (3,))
    least = make(case).cost(make(case).min_steps) * evaluations
    for budget in range(least, least + 9):
        sampler = make(case, nfe=budget)
        model = Asked(mixture(schedule), evaluations)
        sample = sampler(model, draws)
        steps = len(sample.times) - 1
        assert sample.nfe == model.calls * evaluations <= budget
        assert sampler.cost(steps + 1) * evaluations > budget
    if least > 1:
        model = Asked(mixture(schedule), evaluations)
        with pytest.raises(InputError, match=f"at least {least}"):
            make(case, nfe=least - 1)(model, draws)
        assert model.calls == 0


@every
def test_steps_below_the_least_are_refused(case: Case) -> None:
    cls = lookup("sampler", case[0])
    for bad in (0, -3, 2.5, cls.min_steps - 1):
        with pytest.raises(InputError):
            cls(**case[1], steps=bad)
    with pytest.raises(InputError, match="give one of them"):
        cls(**case[1], steps=10, nfe=10)
    with pytest.raises(InputError, match="did you mean 'karras'"):
        cls(**case[1], steps=10, grid="karas")
    with pytest.raises(InputError, match="nfe"):
        cls(**case[1])(mixture(lookup("schedule", "edm")()), Noise(0).at([0], (3,)))


# --- coefficients and times ---------------------------------------------------------------------------------


@every
@every_schedule
def test_coefficients_stand_alone_in_float64(case: Case, schedule_name: str) -> None:
    schedule = lookup("schedule", schedule_name)()
    times = np.append(schedule.snap(schedule.time(np.array([-2.0, -1.0, 0.0, 1.0]))), schedule.clean)
    rows = make(case).coefficients(schedule, times)
    assert len(rows) == 4
    assert [row.i for row in rows] == [0, 1, 2, 3]
    assert [row.t for row in rows] == list(times[:-1])
    assert [row.s for row in rows] == list(times[1:])
    for name, column in rows.columns.items():
        column = np.asarray(column)
        assert len(column) == 4, name
        assert column.dtype in (np.float64, np.bool_), (name, column.dtype)
        assert np.isfinite(column).all() or "log" in name, name


@every
def test_explicit_times_are_used_as_they_are(case: Case) -> None:
    schedule = lookup("schedule", "edm")()
    draws = Noise(0).at([0, 1], (3,), dtype=torch.float64)
    times = [10.0, 4.0, 1.5, 0.6, 0.2, 0.0]
    sampler = make(case, steps=17, grid="logsnr")
    sample = sampler(mixture(schedule), draws, times=times, trajectory=True)
    assert list(sample.times) == times
    assert sample.trajectory is not None
    assert len(sample.trajectory) == 6
    assert sample.trajectory[-1] is sample.x or torch.equal(sample.trajectory[-1], sample.x)
    assert torch.equal(sample.trajectory[0], draws.normal() * 10.0)
    for given in (np.array(times), torch.tensor(times, dtype=torch.float64), tuple(times)):
        assert torch.equal(sampler(mixture(schedule), draws, times=given).x, sample.x)


@every
def test_a_trajectory_holds_the_states_and_not_their_later_values(case: Case) -> None:
    schedule = lookup("schedule", "edm")()
    draws, times = Noise(0).at([0, 1], (3,), dtype=torch.float64), [10.0, 4.0, 1.5, 0.6, 0.2]
    sampler = make(case).calibrated(mixture(schedule))
    path = sampler(mixture(schedule), draws, times=times, trajectory=True).trajectory
    rows = sampler.coefficients(schedule, np.array(times))
    state = sampler.init(mixture(schedule), draws, rows)
    kept = [state.x.clone()]
    for row in rows:
        state = sampler.step(mixture(schedule), state, row)
        kept.append(state.x.clone())
    assert path is not None
    assert all(torch.equal(a, b) for a, b in zip(path, kept))
    assert all((a - b).abs().max() > 1e-6 for a, b in itertools.pairwise(path))


BAD_TIMES = {
    "rise in the middle": lambda s: [s.time(-2.0), s.time(0.0), s.time(-1.0)],
    "stand still": lambda s: [s.time(-2.0), s.time(-1.0), s.time(-1.0)],
    "one only": lambda s: [s.time(-2.0)],
    "none": lambda s: [],
    "above the schedule": lambda s: [s.t_max * 1.5 + 1, s.time(0.0)],
    "below the clean end": lambda s: [s.time(-2.0), s.clean - 1.0],
    "not a number": lambda s: [s.time(-2.0), float("nan")],
    "start at the clean end": lambda s: [s.clean, s.time(0.0)],
    "the clean end in the middle": lambda s: [s.time(-2.0), s.clean, s.clean],
}


@every
@pytest.mark.each("bad", BAD_TIMES)
@every_schedule
def test_bad_times_are_refused_before_any_evaluation(case: Case, schedule_name: str, bad: str) -> None:
    schedule = lookup("schedule", schedule_name)()
    model = Asked(mixture(schedule))
    with pytest.raises(InputError):
        make(case)(model, Noise(0).at([0], (3,)), times=BAD_TIMES[bad](schedule), x=torch.ones(1, 3))
    assert model.calls == 0


@every
def test_times_of_the_wrong_shape_are_refused(case: Case) -> None:
    model = Asked(mixture(lookup("schedule", "edm")()))
    for bad in (3.0, torch.tensor([[2.0], [1.0]]), np.ones((2, 2, 2))):
        with pytest.raises(InputError, match="times"):
            make(case)(model, Noise(0).at(range(2), (3,)), times=bad)
    assert model.calls == 0


@every
def test_noise_of_another_shape_than_the_model_is_refused(case: Case) -> None:
    """(1, 3) noise would broadcast against a model of (3,) points without a word."""
    model = Asked(mixture(lookup("schedule", "edm")()))
    with pytest.raises(InputError):
        make(case, steps=5)(model, Noise(0).at(range(2), (1, 3)))
    with pytest.raises(InputError):
        make(case, steps=5)(model, Noise(0).at(range(2), (3,)), x=torch.ones(5, 3))


@every
def test_a_run_ends_with_the_schedules_clean_image_and_starts_at_its_prior(case: Case) -> None:
    for name in SCHEDULES:
        schedule = lookup("schedule", name)()
        times = make(case, steps=10).times(schedule)
        assert times.dtype == np.float64
        assert times[-1] == schedule.clean
        assert len(times) == 11
        assert (np.diff(times) < 0).all()


@every
def test_a_given_start_replaces_the_noise(case: Case) -> None:
    model, draws = mixture(lookup("schedule", "edm")()), Noise(0).at(range(2), (3,), dtype=torch.float64)
    times = [3.0, 2.0, 1.0, 0.5]
    x = draws.normal() * 3.0
    kept = x.clone()
    assert torch.equal(make(case)(model, draws, times=times).x, make(case)(model, draws, times=times, x=x).x)
    assert torch.equal(x, kept), "the caller's tensor was written to"


@every
def test_gradients_pass_through_a_step(case: Case) -> None:
    """Steps are usable inside training: gradients reach the start, and equal a finite difference."""
    schedule = lookup("schedule", "edm")()
    model, draws = mixture(schedule), Noise(0).at([0], (3,), dtype=torch.float64)
    rows = make(case).coefficients(schedule, np.array([2.0, 1.2, 0.7, 0.5]))

    def run(x: Tensor) -> Tensor:
        sampler = make(case)
        state = sampler.init(model, draws, rows, x)
        for row in rows:
            state = sampler.step(model, state, row)
        return state.x.sum()

    x = torch.tensor([[0.5, -0.2, 0.4]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(run(x), x)
    step = 1e-6 * torch.tensor([[0.3, 0.5, -0.8]], dtype=torch.float64)
    with torch.no_grad():
        measured = (run(x + step) - run(x - step)) / 2
    assert (gradient * step).sum().item() == pytest.approx(measured.item(), rel=1e-5)


# --- settings -----------------------------------------------------------------------------------------------


@every
def test_settings_survive_a_description(case: Case) -> None:
    sampler = make(case, nfe=40, grid="time")
    text = json.dumps(describe(sampler))
    again = build(json.loads(text))
    assert type(again) is type(sampler)
    assert describe(again) == describe(sampler)
    assert describe(sampler)["name"] == case[0]
    assert set(describe(sampler)["args"]) == set(inspect.signature(type(sampler)).parameters)
    for key, value in {**case[1], "nfe": 40, "grid": "time"}.items():
        assert getattr(again, key) == value
    schedule = lookup("schedule", "edm")()
    mine, theirs = (s.coefficients(schedule, s.times(schedule)) for s in (sampler, again))
    for name in mine.columns:
        assert np.array_equal(np.asarray(mine[name]), np.asarray(theirs[name])), name


@every
def test_a_misspelt_setting_names_the_nearest(case: Case) -> None:
    with pytest.raises(InputError, match="did you mean 'steps'"):
        lookup("sampler", case[0])(step=10)


@every
def test_repr_shows_arguments_only(case: Case) -> None:
    sampler = make(case, steps=9)
    text = repr(sampler)
    assert text.startswith(type(sampler).__name__ + "(")
    assert "steps=9" in text
    known = set(inspect.signature(type(sampler)).parameters)
    inside = text[text.index("(") + 1 : -1]
    assert {part.split("=")[0] for part in inside.split(", ") if part} <= known


@every
def test_settings_hold_no_model_and_no_state(case: Case) -> None:
    model, draws = mixture(lookup("schedule", "edm")()), Noise(0).at(range(2), (3,))
    sampler = make(case, steps=5)
    before = dict(vars(sampler))
    first = sampler(model, draws).x
    sampler(mixture(lookup("schedule", "vp")()), draws)
    assert vars(sampler) == before
    assert torch.equal(first, sampler(model, draws).x)
