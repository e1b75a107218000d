"""Noise that belongs to an image: addressed, independent, the same whatever the batch."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise, derive

indices = st.lists(st.integers(0, 2**40), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**63), batch=indices, step=st.integers(0, 2000), part=st.integers(0, 9), data=st.data())
def test_a_draw_depends_on_its_address_only(
    seed: int, batch: list[int], step: int, part: int, data: st.DataObject
) -> None:
    """Bit-equal in any batch and order, and whatever was drawn before."""
    order = data.draw(st.permutations(range(len(batch))))
    draws = Noise(seed).at(batch, (3, 2))
    draws.normal(step + 1, part)
    whole = draws.normal(step, part)
    shuffled = Noise(seed).at([batch[i] for i in order], (3, 2)).normal(step, part)
    assert torch.equal(whole[list(order)], shuffled)
    assert torch.equal(whole[:1], Noise(seed).at(batch[:1], (3, 2)).normal(step, part))
    assert torch.equal(whole[1:], draws[1:].normal(step, part))
    assert torch.equal(draws.uniform(step, part), Noise(seed).at(batch, (9,)).uniform(step, part))


def test_every_address_is_a_stream_of_its_own() -> None:
    """Seeds, images, steps and parts: no two of these 4^4 draws share a number."""
    seen = [
        Noise(seed).at([0, 1, 2, 3], (50,), dtype=torch.float64).normal(step, part).flatten()
        for seed in range(4)
        for step in range(4)
        for part in range(4)
    ]
    values = torch.cat(seen)
    assert len(values.unique()) == len(values)


def test_long_draws_do_not_run_into_the_next_step() -> None:
    draws = Noise(0).at([0], (20000,), dtype=torch.float64)
    values = torch.cat([draws.normal(0), draws.normal(1), draws.normal(0, 1)], 1).flatten()
    assert len(values.unique()) == len(values)


def test_draws_are_standard_normal_and_uniform() -> None:
    draws = Noise(3).at(range(200), (100,), dtype=torch.float64)
    assert stats.kstest(draws.normal(2).flatten().numpy(), "norm").pvalue > 1e-3
    uniform = draws.uniform(2, shape=(100,))
    assert uniform.shape == (200, 100)
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    # Correlation between neighbouring images, steps and seeds: 0 within five standard errors of 20000 products.
    a = draws.normal(2)
    for b in (draws.normal(3), draws.normal(2, 1), Noise(4).at(range(200), (100,), dtype=torch.float64).normal(2)):
        assert abs((a * b).mean().item()) < 5 / np.sqrt(20000)
    assert abs((a[1:] * a[:-1]).mean().item()) < 5 / np.sqrt(19900)


def test_float32_and_float64_hold_the_same_numbers() -> None:
    single, double = (Noise(1).at([4, 2], (7,), dtype=d).normal(3) for d in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    assert torch.equal(single, double.float())


def test_integers_are_even_and_in_range() -> None:
    values = Noise(0).at(range(6000), ()).integers(6)
    assert values.dtype == torch.int64
    assert stats.chisquare(torch.bincount(values, minlength=6).numpy()).pvalue > 1e-3
    assert len(torch.bincount(values)) == 6
    assert (Noise(0).at(range(9), ()).integers(1) == 0).all()
    with pytest.raises(InputError, match="high"):
        Noise(0).at([0], ()).integers(0)


def test_reshaped_and_derived() -> None:
    draws = Noise(9).at([1, 5], (4,))
    assert torch.equal(draws.reshaped((2, 2)).normal().flatten(1), draws.normal())
    assert not torch.equal(draws.derived("train").normal(), draws.normal())
    assert not torch.equal(draws.derived("train").normal(), draws.derived("train", 1).normal())
    assert torch.equal(draws.derived("train").normal()[1], Noise(derive(9, "train")).at([5], (4,)).normal()[0])


@given(st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=4)), max_size=3), st.integers(0, 2**62))
def test_derive_is_injective_in_practice(tags: list[int | str], seed: int) -> None:
    value = derive(seed, *tags)
    assert 0 <= value < 2**64
    assert value == derive(seed, *tags)
    assert value != derive(seed + 1, *tags)
    assert value != derive(seed, *tags, 0)


def test_derive_keeps_tags_apart() -> None:
    assert len({derive(0, "ab"), derive(0, "a", "b"), derive(0, "b", "a"), derive(0), derive(0, ""), derive(0, 0)}) == 6


@pytest.mark.parametrize("seed", [2**64, -1, 2**64 + 5])
def test_a_seed_is_refused_or_its_own(seed: int) -> None:
    try:
        mine = Noise(seed).at([0], (3,)).normal()
    except InputError:
        return
    assert not torch.equal(mine, Noise(seed % 2**64).at([0], (3,)).normal())


def test_a_point_without_dimensions_has_noise() -> None:
    assert Noise(0).at([0, 1], ()).normal().shape == (2,)


def test_indices_of_every_kind() -> None:
    expected = Noise(0).at([3, 1], (2,)).normal()
    for given_as in ((3, 1), np.array([3, 1]), torch.tensor([3, 1]), range(3, 0, -2)):
        assert torch.equal(Noise(0).at(given_as, (2,)).normal(), expected)
    assert Noise(0).at([], (2,)).normal().shape == (0, 2)
    assert len(Noise(0).at([3, 1], (2,))) == 2


def test_bad_input() -> None:
    with pytest.raises(InputError, match="index"):
        Noise(0).at([0, -1], (2,))
    with pytest.raises(InputError, match="dtype"):
        Noise(0).at([0], (2,), dtype=torch.float16)


def _draw(index: int) -> np.ndarray:
    return Noise(7).at([index], (5,)).normal(3).numpy()


def test_processes_draw_the_same() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        apart = np.concatenate(pool.map(_draw, range(4)))
    assert np.array_equal(apart, Noise(7).at(range(4), (5,)).normal(3).numpy())


def test_draws_survive_pickling() -> None:
    draws = Noise(7).at([2, 3], (5,))
    draws.normal()
    assert torch.equal(pickle.loads(pickle.dumps(draws)).normal(4), draws.normal(4))
