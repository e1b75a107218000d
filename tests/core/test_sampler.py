"""The mechanics of samplers, on one that is written here; the real ones are asked by the harness."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.core.sampler import Rows, Sampler, State, check_shapes
from scoreline.core.schedule import Schedule
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.schedules import EDM, VP, Discrete


class Add(Sampler):
    """Adds the step number; costs three evaluations a step and two at the start."""

    per_image = True
    min_steps = 2

    def cost(self, steps: int) -> int:
        return 3 * steps + 2

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        return Rows(times, gap=times[1:] - times[:-1], flag=np.arange(len(times) - 1) > 0)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        return state._replace(x=state.x + row.i, memory=(*state.memory, row.t))


def gaussian(schedule: Schedule | None = None) -> Gaussian:
    return Gaussian(schedule or EDM(), torch.zeros(2, dtype=torch.float64), 1.0)


def test_rows_are_columns_and_steps() -> None:
    rows = Rows(np.array([3.0, 2.0, 0.5]), w=np.array([1.5, -1.0]), on=np.array([True, False]))
    assert len(rows) == 2
    assert rows["t"].tolist() == [3.0, 2.0]
    assert rows["s"].tolist() == [2.0, 0.5]
    assert rows["w"].dtype == np.float64
    first, second = rows
    assert (first.i, first.t, first.s, first.w, first.on) == (0, 3.0, 2.0, 1.5, True)
    assert (second.i, second.w) == (1, -1.0)
    assert type(first.w) is float
    assert type(first.on) is bool
    many = list(Rows(torch.tensor([[3.0, 4.0], [1.0, 2.0]]), w=torch.tensor([[0.1, 0.2]])))
    assert many[0].t.tolist() == [3.0, 4.0]
    assert many[0].w.tolist() == pytest.approx([0.1, 0.2])
    assert [row.i for row in rows] == [0, 1], "rows can be walked twice"


def test_the_run() -> None:
    draws = Noise(3).at([4, 9], (2,), dtype=torch.float64)
    sample = Add()(gaussian(), draws, times=[5.0, 2.0, 1.0, 0.0], trajectory=True)
    start = draws.normal() * 5.0
    assert torch.equal(sample.x, start + 3)
    assert sample.trajectory is not None
    assert [torch.equal(a, start + n) for a, n in zip(sample.trajectory, (0, 0, 1, 3))] == [True] * 4
    assert (sample.nfe, sample.nfe_max) == (0, 0)
    assert Add(steps=4)(gaussian(), draws).trajectory is None


@pytest.mark.parametrize("schedule", [EDM(), VP(), Discrete()])
def test_the_start_has_the_size_of_its_own_level(schedule: Schedule) -> None:
    draws = Noise(3).at([4, 9], (2,), dtype=torch.float64)
    model = gaussian(schedule)
    t = float(schedule.snap(0.5 * schedule.t_max)) if schedule.known is not None else 0.5 * schedule.t_max
    sampler = Add()
    rows = sampler.coefficients(schedule, np.array([t, schedule.clean]))
    assert torch.equal(sampler.init(model, draws, rows).x, draws.normal() * schedule.sigma(t))
    both = torch.tensor([[t, schedule.t_max], [schedule.clean] * 2], dtype=torch.float64)
    x = sampler.init(model, draws, sampler.coefficients(schedule, both)).x
    assert torch.allclose(x[1], draws.normal()[1] * schedule.prior(), rtol=1e-14)
    given = torch.ones(2, 2)
    assert sampler.init(model, draws, rows, given).x is given


def test_budgets() -> None:
    assert [Add(nfe=n).plan() for n in (8, 10, 11, 13, 14)] == [2, 2, 3, 3, 4]
    assert [Add(nfe=n).plan(2) for n in (16, 21, 22)] == [2, 2, 3]
    assert Add(steps=7).plan(5) == 7
    with pytest.raises(InputError, match="nfe 7: Add needs at least 8"):
        Add(nfe=7).plan()
    with pytest.raises(InputError, match="nfe 15: Add needs at least 16"):
        Add(nfe=15).plan(2)
    with pytest.raises(InputError, match="needs steps="):
        Add().plan()
    with pytest.raises(InputError, match="at least 2"):
        Add(steps=1)
    for bad in (0, -1, 2.0, "5"):
        with pytest.raises(InputError, match="positive whole number"):
            Add(nfe=bad)  # type: ignore[arg-type]


def test_levels_come_from_the_grid() -> None:
    assert Add(steps=3).times(EDM()) == pytest.approx([80, 2.5152, 0.002, 0], rel=1e-4)
    assert Add(steps=3, grid="time").times(VP()) == pytest.approx([1, 0.5005, 0.001, 0])
    assert Add(steps=4).times(Discrete()).tolist() == [999, 749, 499, 249, -1]
    assert Add(nfe=8).times(Discrete()).tolist() == [999, 499, -1]


def test_per_image_times_need_one_column_an_image() -> None:
    draws = Noise(0).at(range(3), (2,), dtype=torch.float64)
    with pytest.raises(InputError, match="must be the batch, 3"):
        Add()(gaussian(), draws, times=np.array([[3.0, 3.0], [1.0, 1.0]]))
    with pytest.raises(InputError, match="strictly decreasing"):
        Add()(gaussian(), draws, times=np.array([[3.0, 3.0, 1.0], [1.0, 1.0, 2.0]]))
    sample = Add()(gaussian(), draws, times=np.array([[3.0, 3.0, 5.0], [1.0, 0.0, 2.0]]))
    assert sample.times.shape == (2, 3)


def test_per_image_times_live_where_the_noise_lives() -> None:
    """Rows of per-image numbers are made on the device of the images, once; not moved there at every step."""
    if not torch.cuda.is_available():
        return
    draws = Noise(0).at(range(2), (2,), device="cuda")
    sample = Add()(gaussian().to("cuda"), draws, times=torch.tensor([[3.0, 3.0], [1.0, 0.0]]))
    assert sample.times.device.type == "cuda"


def test_no_graph_is_kept() -> None:
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    draws = Noise(0).at([0], (2,), dtype=torch.float64)
    assert not Add()(gaussian(), draws, times=[2.0, 1.0, 0.5], x=x).x.requires_grad


def test_what_follows_from_the_arguments_is_not_shown() -> None:
    sampler = Add(steps=3)
    sampler.order, sampler.per_image, sampler.rising, sampler.stochastic, sampler.min_steps = 1, False, True, True, 3
    assert repr(sampler) == "Add(steps=3)"


def test_shapes_that_do_not_fit_are_refused() -> None:
    model, draws = gaussian(), Noise(0).at([0, 1], (2,))
    check_shapes(model, draws)
    check_shapes(model, draws, torch.zeros(2, 2))
    with pytest.raises(InputError, match=r"noise shape \(3,\): the model makes \(2,\)"):
        check_shapes(model, Noise(0).at([0], (3,)))
    with pytest.raises(InputError, match=r"x \(3, 2\): needs shape \(2, 2\)"):
        check_shapes(model, draws, torch.zeros(3, 2))
