"""Jumps: the law of what comes out for every gamma, levels, counting and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.maps import ConsistencyFunction, GaussianMap
from scoreline.nn.mlp import MLP
from scoreline.samplers.jumps import Jumps

MEAN, VARIANCE = torch.tensor([0.5, -1.0], dtype=torch.float64), 0.25
EXACT = GaussianMap(EDM(), MEAN, VARIANCE)


def draws(count=8):
    return Noise(0).at(range(count), (2,), dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_the_law_of_the_images_is_that_of_the_data(gamma):
    x = Jumps(gamma=gamma, steps=3)(EXACT, draws(20_000)).x
    bias = MEAN * 0.5 / 80  # one jump from pure noise forgets the mean up to c/sigma_max
    assert (x.mean(0) - MEAN).abs().max() < 4 * 0.5 / 20_000**0.5 + bias.abs().max()
    assert (x.var(0) - VARIANCE).abs().max() < 4 * VARIANCE * (2 / 20_000) ** 0.5 + 1e-4


def test_without_noise_the_number_of_steps_does_not_matter_and_with_it_only_the_first_is_shared():
    one, seven = Jumps(steps=1)(EXACT, draws()).x, Jumps(steps=7)(EXACT, draws()).x
    assert torch.allclose(one, seven, atol=1e-10)
    assert torch.equal(Jumps(gamma=1.0, steps=1)(EXACT, draws()).x, one)
    assert not torch.allclose(Jumps(gamma=1.0, steps=2)(EXACT, draws()).x, one, atol=1e-2)


def test_arithmetic_of_a_step():
    rows = Jumps(gamma=0.6)
    rows._map = EXACT
    table = rows.coefficients(EXACT.schedule, np.array([80.0, 2.0, 0.5, 0.0]))
    goal = 0.002 + 0.8 * (np.array([2.0, 0.5]) - 0.002)
    assert np.allclose(table["goal"], [*goal, 0.002])
    assert np.allclose(table["std"], [*np.sqrt(np.array([4.0, 0.25]) - goal**2), 0.0])
    assert np.allclose(table["ratio"], 1.0)


def test_a_consistency_function_takes_gamma_one_and_counts_its_evaluations():
    torch.manual_seed(0)
    model = ConsistencyFunction(MLP(in_shape=(2,), width=8, depth=1), EDM())
    noise = Noise(0).at(range(3), (2,))
    sample = Jumps(steps=2)(model, noise, times=[80.0, 0.821, 0.0])
    assert sample.nfe == 2
    first = model.answer(noise.normal() * 80, 80.0)
    again = first + noise.normal(1) * (0.821**2 - 0.002**2) ** 0.5
    assert torch.allclose(sample.x, model.answer(again, 0.821), atol=1e-6)
    with pytest.raises(InputError, match="gamma must be 1"):
        Jumps(gamma=0.0, steps=2)(model, noise)


def test_without_noise_the_goal_is_the_next_level_to_the_last_bit():
    for steps in (2, 9, 17):
        times = np.append(EXACT.levels(steps), 0.0)
        table = Jumps(gamma=0.0).coefficients(EXACT.schedule, times)
        assert (table["goal"][:-1] == times[1:-1]).all()
        assert (table["std"] == 0).all()


def test_a_grid_by_name_wastes_no_jump_at_the_end():
    named, own = (Jumps(steps=3, grid=grid)(EXACT, draws()) for grid in ("karras", None))
    assert np.array_equal(named.times, own.times)
    assert named.times[-2] > 0.1
    assert np.allclose(Jumps(steps=2, grid="time-to-clean")(EXACT, draws()).times, [80.0, 40.0, 0.0])


def test_refusals():
    with pytest.raises(InputError, match="needs a flow map"):
        Jumps(steps=2)(Gaussian(EDM(), MEAN, VARIANCE), draws())
    with pytest.raises(InputError, match=r"gamma.*\[0, 1\]"):
        Jumps(gamma=1.5)
