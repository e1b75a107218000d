from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise, derive
from scoreline.data import from_arrays
from scoreline.train.order import Feed, Order

CPU = torch.device("cpu")


@given(count=st.integers(1, 20), batch_size=st.integers(1, 45), seed=st.integers(0, 3))
def test_epochs_are_permutations_laid_end_to_end(count: int, batch_size: int, seed: int) -> None:
    order = Order(count, batch_size, seed)
    steps = -(-3 * count // batch_size)
    line = np.concatenate([order.positions(step) for step in range(steps)])
    assert len(line) == steps * batch_size
    for epoch in range(3):
        assert sorted(line[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_step_is_the_same_whatever_came_before_and_another_seed_differs() -> None:
    walked = Order(100, 30, 5)
    rows = [walked.positions(step) for step in range(12)]
    np.testing.assert_array_equal(Order(100, 30, 5).positions(11), rows[11])
    assert not np.array_equal(Order(100, 30, 6).positions(11), rows[11])
    assert not np.array_equal(rows[0], Order(100, 30, 5).positions(10)[:30])


def test_pieces_make_up_the_global_batch_with_the_same_noise() -> None:
    x = torch.randn(50, 2)
    whole = Feed(x, batch_size=12, seed=1, device=CPU).piece(7, 0)
    feed = Feed(x, batch_size=12, seed=1, device=CPU, pieces=3)
    pieces = [feed.piece(7, number) for number in range(3)]
    assert torch.equal(torch.cat([piece.image for piece in pieces]), whole.image)
    assert torch.equal(torch.cat([piece.draws.normal() for piece in pieces]), whole.draws.normal())
    assert torch.equal(whole.image, x[whole.index])


def test_noise_belongs_to_step_and_original_index() -> None:
    batch = Feed(torch.zeros(9, 4), batch_size=4, seed=2, device=CPU).piece(1, 0)
    expected = Noise(derive(2, "train", 1)).at(batch.index, (4,)).normal()
    assert torch.equal(batch.draws.normal(), expected)


def test_an_image_that_comes_twice_in_a_batch_sees_two_noises() -> None:
    batch = Feed(torch.zeros(5, 1), batch_size=15, seed=0, device=CPU).piece(0, 0)
    assert sorted(batch.index.tolist()) == sorted(3 * list(range(5)))
    assert len(batch.draws.normal().unique()) == 15


def test_subsets_keep_the_noise_of_their_original_index() -> None:
    images = from_arrays(np.zeros((20, 1, 2, 2), np.float32), name="zeros").subset([15, 3, 8])
    batch = Feed(images, batch_size=3, seed=0, device=CPU).piece(0, 0)
    assert sorted(batch.index.tolist()) == [3, 8, 15]
    expected = Noise(derive(0, "train", 0)).at(batch.index, (1, 2, 2)).normal()
    assert torch.equal(batch.draws.normal(), expected)


def test_no_data_gives_numbers_that_never_come_twice() -> None:
    feed = Feed(None, batch_size=6, seed=0, device=CPU, pieces=2)
    seen = torch.cat([feed.piece(step, number).index for step in range(3) for number in range(2)])
    assert seen.tolist() == list(range(18))
    assert feed.piece(0, 1).draws.reshaped((2,)).normal().shape == (3, 2)


def test_a_pair_keeps_images_and_labels_together() -> None:
    x = torch.arange(10.0).reshape(10, 1)
    batch = Feed((x, x * 3), batch_size=10, seed=0, device=CPU).piece(0, 0)
    assert torch.equal(batch.label, batch.image * 3)


@pytest.mark.parametrize(
    ("data", "batch_size", "pieces", "thing"),
    [
        (torch.zeros(4, 1), 6, 4, "batch_size"),
        (torch.zeros(4, 1), 0, 1, "batch_size"),
        (torch.zeros(0, 1), 2, 1, "data"),
        ((torch.zeros(4, 1), torch.zeros(3)), 2, 1, "labels"),
        ([1, 2, 3], 2, 1, "data"),
    ],
)
def test_wrong_data_is_refused(data: object, batch_size: int, pieces: int, thing: str) -> None:
    with pytest.raises(InputError, match=thing):
        Feed(data, batch_size=batch_size, seed=0, device=CPU, pieces=pieces)  # type: ignore[arg-type]
