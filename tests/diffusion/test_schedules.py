"""Schedules: laws that hold for each of them, and the tables of betas."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.schedule import Schedule
from scoreline.diffusion.betas import BETAS, beta_table, rescale_zero_terminal_snr
from scoreline.diffusion.schedules import (
    EDM,
    VE,
    VP,
    Cosine,
    Discrete,
    Flow,
    SubVP,
)

SCHEDULES: dict[str, Schedule] = {
    **{name: lookup("schedule", name)() for name in names("schedule")},
    "vp-other": VP(beta_min=0.3, beta_max=11.0, t_max=0.9),
    "edm-other": EDM(t_min=0.01, t_max=500.0),
    "cosine-other": Cosine(s=0.02, t_max=0.97),
    "ve-other": VE(sigma_min=0.05, sigma_max=7.0),
    "discrete-cosine": Discrete(betas="cosine", T=100),
    "discrete-values": Discrete(betas=[0.1, 0.3, 0.2, 0.5]),
}
ZERO = {"zero-snr": Discrete(zero_terminal_snr=True), "jsd": Discrete(betas="jsd", T=50)}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
shares = st.lists(st.floats(0, 1), min_size=1, max_size=8)
quick = settings(max_examples=12, deadline=None)


def number(value: object) -> float:
    """The one number in a float, an array or a tensor."""
    return float(np.asarray(value).reshape(()))


def inside(schedule: Schedule, share: float | list[float]) -> np.ndarray:
    """Times in [t_min, t_max], even in lambda where that is finite, else in time."""
    high, low = schedule.lam(schedule.t_max), schedule.lam(schedule.t_min)
    w = np.asarray(share)
    if not np.isfinite(high):
        return schedule.t_max + w * (schedule.t_min - schedule.t_max)
    return np.clip(schedule.time(high + w * (low - high)), schedule.t_min, schedule.t_max)


@every
@quick
@given(share=shares)
def test_time_inverts_lambda(schedule: Schedule, share: list[float]) -> None:
    t = inside(schedule, share)
    again = schedule.time(schedule.lam(t))
    assert again == pytest.approx(t, rel=1e-10, abs=1e-10 * (schedule.t_max - schedule.t_min))


@every
@quick
@given(share=shares)
def test_lambda_inverts_time(schedule: Schedule, share: list[float]) -> None:
    high, low = schedule.lam(schedule.t_max * (1 - 1e-4)), schedule.lam(schedule.t_min)
    lam = high + np.asarray(share) * (low - high)
    assert schedule.lam(schedule.time(lam)) == pytest.approx(lam, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), Cosine(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_float_array_and_tensor_invert_without_losing_digits(schedule: Schedule) -> None:
    """Near t_min sigma is small; a log(1 + small) would lose half of the digits."""
    for t in np.geomspace(schedule.t_min, 10 * schedule.t_min, 7):
        lam = schedule.lam(float(t))
        values = [schedule.time(lam), schedule.time(np.array([lam]))[0], schedule.time(torch.tensor([lam]).double())]
        lam64 = torch.tensor([lam], dtype=torch.float64)
        values[2] = schedule.time(lam64).item()
        # Cosine's offset t + s bounds what is possible there to eps s/t.
        rel = 1e-12 if isinstance(schedule, Cosine) else 1e-13
        assert values[0] == pytest.approx(values[2], rel=rel)
        assert values[1] == pytest.approx(values[2], rel=rel)


QUANTITIES: dict[str, Callable] = {
    "alpha": lambda s, t: s.alpha(t),
    "sigma": lambda s, t: s.sigma(t),
    "lam": lambda s, t: s.lam(t),
    "da": lambda s, t: s.rates(t)[0],
    "ds": lambda s, t: s.rates(t)[1],
    "f": lambda s, t: s.drift(t)[0],
    "g2": lambda s, t: s.drift(t)[1],
    "prior": lambda s, t: s.prior(t),
    "snap": lambda s, t: s.snap(t),
    "time": lambda s, t: s.time(s.lam(t)),
}


@pytest.mark.parametrize("quantity", QUANTITIES)
@every
@quick
@given(share=shares)
def test_float_array_and_tensor_agree(schedule: Schedule, quantity: str, share: list[float]) -> None:
    function = QUANTITIES[quantity]
    t = np.minimum(inside(schedule, share), schedule.t_max * (1 - 1e-6))
    array = function(schedule, t)
    tensor = function(schedule, torch.tensor(t))
    floats = [function(schedule, float(v)) for v in t]
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float64
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float64
    assert all(isinstance(v, float) for v in floats)
    scale = {"rel": 1e-13, "abs": 1e-14 * max(1.0, float(np.abs(array).max()))}
    assert array == pytest.approx(np.array(floats), **scale)
    assert tensor.numpy() == pytest.approx(array, **scale)


@every
def test_single_precision_and_whole_numbers_are_taken_in_double(schedule: Schedule) -> None:
    t = 0.5 * (schedule.t_min + schedule.t_max)
    t = float(np.float32(t))
    for given_as in (torch.tensor([t]), np.array([t], dtype=np.float32)):
        for function in (schedule.alpha, schedule.sigma, schedule.lam):
            assert float(function(given_as)[0]) == pytest.approx(function(t), rel=1e-13)
    assert schedule.alpha(int(schedule.t_max)) == schedule.alpha(float(int(schedule.t_max)))


@every
@quick
@given(share=st.floats(0.02, 0.98))
def test_rates_are_derivatives(schedule: Schedule, share: float) -> None:
    """Also between the entries of a table, where log alpha is interpolated: the rate is that of the interpolation."""
    t = float(inside(schedule, share))
    if schedule.known is not None:
        t = min(math.floor(t) + 0.1 + 0.8 * share, schedule.t_max - 0.1)
    h = 1e-4 * (t - schedule.clean if schedule.clean == 0 else 0.1)
    da, ds = schedule.rates(t)
    for rate, f in ((da, schedule.alpha), (ds, schedule.sigma)):
        measured = (f(t - 2 * h) - 8 * f(t - h) + 8 * f(t + h) - f(t + 2 * h)) / (12 * h)
        assert rate == pytest.approx(measured, rel=1e-6, abs=1e-9)


@every
@quick
@given(share=st.floats(0.02, 0.98))
def test_drift_moves_the_variance_as_the_schedule_says(schedule: Schedule, share: float) -> None:
    """d alpha/dt = f alpha and d sigma^2/dt = 2 f sigma^2 + g^2, with g^2 >= 0."""
    t = float(inside(schedule, share))
    (f, g2), (da, ds) = schedule.drift(t), schedule.rates(t)
    assert da == pytest.approx(f * schedule.alpha(t), rel=1e-12, abs=1e-300)
    assert 2 * schedule.sigma(t) * ds == pytest.approx(2 * f * schedule.sigma(t) ** 2 + g2, rel=1e-10)
    assert g2 >= 0


@quick
@given(t=st.floats(1e-3, 1.0))
def test_drift_of_the_published_equations(t: float) -> None:
    beta = 0.1 + t * 19.9
    f, g2 = VP().drift(t)
    assert f == pytest.approx(-beta / 2, rel=1e-10)
    assert g2 == pytest.approx(beta, rel=1e-9)
    f, g2 = SubVP().drift(t)
    assert f == pytest.approx(-beta / 2, rel=1e-10)
    assert g2 == pytest.approx(beta * -math.expm1(-2 * (0.1 * t + 0.5 * t * t * 19.9)), rel=1e-8)
    f, g2 = VE().drift(t)
    assert f == 0
    assert g2 == pytest.approx(2 * math.log(5000) * (0.01 * 5000**t) ** 2, rel=1e-12)
    f, g2 = EDM().drift(t)
    assert (f, g2) == (0, pytest.approx(2 * t))


@every
def test_the_clean_end(schedule: Schedule) -> None:
    clean = schedule.clean
    for t in (clean, np.array([clean]), torch.tensor([clean], dtype=torch.float64)):
        assert number(schedule.alpha(t)) == 1.0
        assert number(schedule.sigma(t)) == 0.0
        assert number(schedule.lam(t)) == math.inf
        assert number(schedule.snap(t)) == clean


@every
def test_infinite_lambda_is_the_clean_end(schedule: Schedule) -> None:
    for lam in (math.inf, np.array([math.inf]), torch.tensor([math.inf], dtype=torch.float64)):
        assert number(schedule.time(lam)) == pytest.approx(schedule.clean, abs=1e-12)


@pytest.mark.parametrize("schedule", [Flow(), *ZERO.values()], ids=["flow", *ZERO])
def test_the_end_without_signal(schedule: Schedule) -> None:
    top = schedule.t_max
    for t in (top, np.array([top]), torch.tensor([top], dtype=torch.float64)):
        assert number(schedule.alpha(t)) == 0
        assert number(schedule.sigma(t)) == 1
        assert number(schedule.lam(t)) == -math.inf
        assert number(schedule.time(schedule.lam(t))) == top


@pytest.mark.parametrize("schedule", ZERO.values(), ids=ZERO.keys())
def test_tables_without_terminal_signal_have_no_holes(schedule: Discrete) -> None:
    """Between and at the last entries every kind of argument gives finite, equal numbers."""
    top = schedule.t_max
    t = np.array([top - 2.5, top - 2, top - 1.5, top - 1, top - 0.5, top])
    array, tensor = schedule.alpha(t), schedule.alpha(torch.tensor(t)).numpy()
    floats = np.array([schedule.alpha(float(v)) for v in t])
    assert np.isfinite(array).all()
    assert np.array_equal(array, floats)
    assert tensor == pytest.approx(floats, rel=1e-13)
    assert schedule.time(schedule.lam(t[:4])) == pytest.approx(t[:4], abs=1e-6)
    for v in t[[0, 1, 3, 5]]:
        assert np.isfinite(schedule.rates(float(v))).all(), v


@every
def test_noise_grows_with_time(schedule: Schedule) -> None:
    t = inside(schedule, list(np.linspace(0, 1, 200)))
    assert (np.diff(schedule.lam(t)) > 0).all()
    assert (np.diff(t) < 0).all()
    assert schedule.prior() == schedule.sigma(schedule.t_max)


@pytest.mark.parametrize("schedule", [VP(), Cosine(), Discrete(), ZERO["jsd"]], ids=["vp", "cosine", "table", "jsd"])
def test_variance_preserving(schedule: Schedule) -> None:
    t = np.linspace(schedule.t_min, schedule.t_max, 60)
    assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(np.ones(60), abs=1e-14)


def test_known_values() -> None:
    t = 0.37
    assert VP().alpha(t) == pytest.approx(math.exp(-0.25 * t * t * 19.9 - 0.05 * t), rel=1e-14)
    assert SubVP().sigma(t) == pytest.approx(1 - VP().alpha(t) ** 2, rel=1e-14)
    assert VE().sigma(t) == pytest.approx(0.01 * 5000**t, rel=1e-13)
    assert Flow().alpha(t) == 1 - t
    assert EDM().sigma(t) == t
    ratio = math.cos(math.pi / 2 * (t + 0.008) / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008)
    assert Cosine().alpha(t) == pytest.approx(ratio, rel=1e-13)


# --- q(x_t | x_s) -------------------------------------------------------------------------------------------


@every
@quick
@given(shares=st.tuples(*[st.floats(0.01, 1)] * 3))
def test_transitions_compose(schedule: Schedule, shares: tuple[float, float, float]) -> None:
    """q(x_t | x_r) is q(x_t | x_s) after q(x_s | x_r); and after q(x_r | x_0) it is q(x_t | x_0)."""
    t, s, r = inside(schedule, sorted(shares)).tolist()
    (a_sr, v_sr), (a_ts, v_ts), (a_tr, v_tr) = (schedule.transition(*p) for p in ((r, s), (s, t), (r, t)))
    assert a_tr == pytest.approx(a_ts * a_sr, rel=1e-12, abs=1e-300)
    scale = schedule.sigma(t) ** 2
    assert v_tr**2 == pytest.approx(v_ts**2 + (a_ts * v_sr) ** 2, rel=1e-9, abs=1e-13 * scale)
    a, v = schedule.transition(schedule.clean, t)
    assert (a, v) == (pytest.approx(schedule.alpha(t)), pytest.approx(schedule.sigma(t)))


@every
def test_renoise_and_marginal_move_images(schedule: Schedule) -> None:
    x, noise = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    t, s = inside(schedule, [0.2, 0.7]).tolist()
    assert torch.allclose(schedule.marginal(x, t, noise), schedule.alpha(t) * x + schedule.sigma(t) * noise)
    a, v = schedule.transition(s, t)
    assert torch.allclose(schedule.renoise(x, s, t, noise), a * x + v * noise)
    times = torch.tensor(inside(schedule, [0.1, 0.5, 0.9]))
    many = schedule.marginal(x, times, noise)
    for i in range(3):
        one = schedule.marginal(x[i : i + 1], float(times[i]), noise[i : i + 1])
        assert torch.allclose(many[i : i + 1], one, rtol=1e-12)
    assert schedule.marginal(x.float(), times, noise.float()).dtype == torch.float32


# --- tables -------------------------------------------------------------------------------------------------


@pytest.mark.check(system=9, number=1)
def test_linear_and_cosine_tables() -> None:
    assert Discrete().abar[999] == pytest.approx(4.0358e-5, rel=1e-4)
    betas = beta_table("cosine", 1000)
    assert (betas == 0.999).sum() == 1
    assert betas[-1] == 0.999
    assert betas[0] == pytest.approx(4.128e-5, rel=1e-3)
    assert Discrete(betas="cosine").abar[-1] == pytest.approx(2.4e-9, rel=0.05)


@pytest.mark.check(system=9, number=10)
@pytest.mark.parametrize("name", ["linear", "cosine", "quadratic", "sigmoid", "constant"])
def test_zero_terminal_snr(name: str) -> None:
    plain, zero = Discrete(betas=name), Discrete(betas=name, zero_terminal_snr=True)
    assert zero.abar[-1] == 0
    assert zero.alpha(999.0) == 0
    assert zero.abar[0] == plain.abar[0]
    assert zero.betas[-1] == 1
    s = np.sqrt(plain.abar)
    assert np.sqrt(zero.abar) == pytest.approx((s - s[-1]) * s[0] / (s[0] - s[-1]), abs=1e-12)
    assert np.cumprod(1 - rescale_zero_terminal_snr(plain.betas)) == pytest.approx(zero.abar, abs=1e-15)


def test_values_of_the_other_tables() -> None:
    assert beta_table("linear", 100)[[0, -1]] == pytest.approx([1e-3, 0.2])
    assert beta_table("quadratic", 7)[[0, 3, 6]] == pytest.approx(
        [0.00085, ((math.sqrt(0.00085) + math.sqrt(0.012)) / 2) ** 2, 0.012]
    )
    sigmoid = beta_table("sigmoid", 5)
    assert sigmoid[2] == pytest.approx((1e-4 + 0.02) / 2)
    assert sigmoid[0] == pytest.approx(1e-4 + 0.0199 / (1 + math.exp(6)))
    assert (beta_table("constant", 4) == 0.02).all()
    assert beta_table("jsd", 4) == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1])
    assert all(beta_table(name, 9).shape == (9,) and beta_table(name, 9).dtype == np.float64 for name in BETAS)


def test_tables_that_leave_the_unit_interval_are_refused() -> None:
    assert beta_table("linear", 10)[-1] == 2.0
    with pytest.raises(InputError, match=r"t = 9 is|t = 4 is|outside \(0, 1\)"):
        Discrete(T=10)
    for bad in ([0.1, 0.0], [0.1, 1.0], [-0.1], [0.1, float("nan")], []):
        with pytest.raises(InputError, match="beta"):
            Discrete(betas=bad)
    for T in (0, -5):
        with pytest.raises(InputError):
            Discrete(T=T)
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        Discrete(betas="cosin")


@pytest.mark.parametrize("name", [n for n in BETAS if n != "jsd"])
def test_a_table_is_its_cumulative_product(name: str) -> None:
    schedule = Discrete(betas=name, T=60)
    abar = 1.0
    for t, beta in enumerate(beta_table(name, 60)):
        abar *= 1 - beta
        assert schedule.alpha(float(t)) == pytest.approx(math.sqrt(abar), rel=1e-12)
        assert schedule.sigma(float(t)) == pytest.approx(math.sqrt(1 - abar), rel=1e-12)
        assert schedule.transition(t - 1.0, float(t))[1] ** 2 == pytest.approx(beta, rel=1e-9)


def test_between_the_entries_log_alpha_is_interpolated() -> None:
    schedule = Discrete()
    assert schedule.alpha(10.25) == pytest.approx(schedule.alpha(10.0) ** 0.75 * schedule.alpha(11.0) ** 0.25)


def test_times_outside_a_table_are_the_same_for_every_kind_of_argument() -> None:
    """Not one of them may wrap round to the other end of the table."""
    schedule = Discrete()
    for t in (-2.0, -7.0):
        assert number(schedule.alpha(torch.tensor([t]))) == 1.0
        assert schedule.alpha(t) == 1.0
        assert schedule.alpha(np.array([t]))[0] == 1.0


@quick
@given(st.lists(st.floats(-0.99, 999), min_size=1, max_size=9))
def test_snap_is_the_nearest_entry(times: list[float]) -> None:
    schedule = Discrete()
    near = schedule.snap(np.array(times))
    assert (np.abs(near - times) <= np.maximum(0.5, -np.array(times)) + 1e-12).all()
    assert set(near) <= set(schedule.known)
    assert torch.equal(schedule.snap(torch.tensor(times, dtype=torch.float64)), torch.tensor(near))
    assert schedule.snap(times[0]) == near[0]
    assert schedule.snap(torch.tensor([[1.4, 2.6]])).tolist() == [[1.0, 3.0]]


@every
def test_check_names_what_leaves_the_schedule(schedule: Schedule) -> None:
    schedule.check([schedule.clean, schedule.t_min, schedule.t_max])
    schedule.check(torch.tensor([[schedule.t_min], [schedule.t_max]], dtype=torch.float64))
    for bad in (schedule.clean - 0.01, schedule.t_max * 1.01, math.nan, math.inf):
        with pytest.raises(InputError, match="knows times from"):
            schedule.check([schedule.t_max, bad])


@pytest.mark.parametrize(
    "make",
    [
        lambda: VP(beta_min=-1.0),
        lambda: VP(beta_min=3.0, beta_max=1.0),
        lambda: VP(t_min=2.0, t_max=1.0),
        lambda: EDM(t_min=0.0),
        lambda: EDM(t_min=80.0, t_max=0.002),
        lambda: VE(sigma_min=0.0),
        lambda: VE(sigma_min=5.0, sigma_max=1.0),
        lambda: Flow(t_max=1.5),
        lambda: Cosine(t_max=1.2),
    ],
)
def test_settings_that_make_no_schedule_are_refused(make: Callable[[], Schedule]) -> None:
    with pytest.raises(InputError):
        make()
