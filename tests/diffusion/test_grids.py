"""Grids of noise levels: published values, and laws for each grid on each schedule."""

from __future__ import annotations

import numpy as np
import pytest

from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.schedule import Schedule
from scoreline.diffusion.grids import (
    fractional,
    karras,
    leading,
    linspace,
    logsnr,
    quadratic,
    time,
    time_to_clean,
    trailing,
)
from scoreline.diffusion.schedules import EDM, VE, VP, Cosine, Discrete, Flow, SubVP

ON_TABLES = {"leading", "trailing", "linspace", "fractional"}
IN_LAMBDA = {"karras", "logsnr"}  # undefined where the noisiest level keeps no signal
SCHEDULES = {name: lookup("schedule", name)() for name in names("schedule")}
SCHEDULES["zero-snr"] = Discrete(zero_terminal_snr=True)
SCHEDULES["short"] = Discrete(betas="cosine", T=25)


@pytest.mark.parametrize("name", names("grid"))
@pytest.mark.each("schedule_name", SCHEDULES)
@pytest.mark.each("steps", [1, 2, 3, 7, 20, 40])
def test_every_grid_on_every_schedule(name: str, schedule_name: str, steps: int) -> None:
    """Levels that the model knows, noisiest first; or a refusal, but only where the grid has no meaning."""
    grid, schedule = lookup("grid", name), SCHEDULES[schedule_name]
    table = schedule.known is not None
    if (name in ON_TABLES and not table) or (name in IN_LAMBDA and not np.isfinite(schedule.lam(schedule.t_max))):
        with pytest.raises(InputError, match=f"grid '{name}'"):
            grid(schedule, steps)
        return
    refusal: InputError | None = None
    try:
        levels = grid(schedule, steps)
    except InputError as error:
        refusal = error
    if refusal is not None:
        assert refusal.thing == "steps"
        if steps == 1 and name in ("leading", "quadratic"):  # their only level would be the cleanest
            return
        # Only a table can have too few levels.
        assert table, refusal
        assert steps >= (20 if len(schedule.known) > 100 else 7), refusal
        return
    if name == "quadratic" and table:
        assert 1 < len(levels) <= steps  # its first entries fall together
    else:
        assert levels.shape == (steps,)
    assert levels.dtype == np.float64
    assert (np.diff(levels) < 0).all()
    assert levels.max() <= schedule.t_max
    assert levels.min() >= schedule.t_min
    if table:
        assert set(levels) <= set(schedule.known)
    # The noisiest level is one at which hardly a trace of the image is left; `leading` and `quadratic` stop short.
    assert levels[0] >= (0.45 if name in ("leading", "quadratic") else 0.99) * schedule.t_max


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_schedules_own_grid_always_exists(schedule: Schedule) -> None:
    for steps in range(1, 26):
        assert len(lookup("grid", schedule.grid)(schedule, steps)) == steps


@pytest.mark.check(system=22, number=7)
def test_karras_levels() -> None:
    assert karras(EDM(), 5) == pytest.approx([80, 17.5278, 2.5152, 0.16975, 0.002], rel=1e-4)
    i = np.arange(18)
    levels = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert karras(EDM(), 18) == pytest.approx(levels, rel=1e-12)
    assert karras(EDM(), 9, rho=3.0)[4] == pytest.approx(((80 ** (1 / 3) + 0.002 ** (1 / 3)) / 2) ** 3, rel=1e-12)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), Cosine(), VE()], ids=lambda s: type(s).__name__)
def test_karras_and_logsnr_are_even_in_noise_to_signal(schedule: Schedule) -> None:
    root = np.exp(-schedule.lam(karras(schedule, 12))) ** (1 / 7)
    assert np.diff(root) == pytest.approx(np.full(11, (root[-1] - root[0]) / 11), rel=1e-6)
    lam = schedule.lam(logsnr(schedule, 12))
    assert np.diff(lam) == pytest.approx(np.full(11, (lam[-1] - lam[0]) / 11), rel=1e-6)
    for grid in (karras, logsnr):
        assert grid(schedule, 12)[[0, -1]].tolist() == [schedule.t_max, schedule.t_min]
        assert grid(schedule, 1).tolist() == [schedule.t_max]


def test_time_grids() -> None:
    assert time(VP(), 3) == pytest.approx([1, 0.5005, 1e-3])
    assert time_to_clean(Flow(), 4).tolist() == [1.0, 0.75, 0.5, 0.25]
    assert quadratic(Flow(t_min=0.01), 3) == pytest.approx([1, 0.55**2, 0.01])


def test_table_grids_of_the_papers() -> None:
    schedule = Discrete()
    assert leading(schedule, 50).tolist() == list(range(980, -1, -20))
    assert linspace(schedule, 4).tolist() == [999, 666, 333, 0]
    assert fractional(schedule, 50)[[0, 1, -2, -1]].tolist() == [999, 979, 20, 0]
    assert trailing(schedule, 10).tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert trailing(schedule, 3).tolist() == [999, 666, 332]
    assert quadratic(schedule, 10).tolist() == [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]
    assert trailing(schedule, 1000).tolist() == linspace(schedule, 1000).tolist() == list(range(999, -1, -1))
    assert leading(schedule, 1000).tolist() == list(range(999, -1, -1))
    assert logsnr(schedule, 5)[[0, -1]].tolist() == [999, 0]


@pytest.mark.parametrize("name", ["trailing", "linspace", "fractional", "time", "karras", "quadratic", "leading"])
def test_more_levels_than_the_table_holds_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="steps 26"):
        lookup("grid", name)(SCHEDULES["short"], 26)


def test_leading_says_when_no_stride_fits() -> None:
    with pytest.raises(InputError, match="no whole stride"):
        leading(Discrete(), 60)
