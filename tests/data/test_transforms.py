from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scoreline.core.errors import InputError
from scoreline.data.transforms import (
    centre_crop,
    fit_square,
    flips,
    from_uint8,
    random_flip,
    resize,
    scaled_sides,
    to_uint8,
)

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_bytes_round_trip_exactly() -> None:
    x = from_uint8(LEVELS)
    assert x.dtype == torch.float32
    assert (x[0], x[255]) == (-1.0, 1.0)
    torch.testing.assert_close(x.double(), LEVELS.double() / 127.5 - 1, rtol=0, atol=6e-8)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(to_uint8(x.to(dtype)), LEVELS)


def test_rounding_is_to_the_nearest_level_and_truncation_downwards() -> None:
    between = (LEVELS[:255].double() + 0.49) / 127.5 - 1
    above = (LEVELS[:255].double() + 0.51) / 127.5 - 1
    assert torch.equal(to_uint8(between), LEVELS[:255])
    assert torch.equal(to_uint8(above), LEVELS[1:])
    assert torch.equal(to_uint8(above, rounding="truncate"), LEVELS[:255])
    assert to_uint8(torch.tensor([-7.0, 7.0, 1.0, -1.0])).tolist() == [0, 255, 255, 0]
    assert to_uint8(torch.tensor([-7.0, 7.0, 1.0, -1.0]), rounding="truncate").tolist() == [0, 255, 255, 0]


def test_conversions_refuse_what_they_cannot_mean() -> None:
    with pytest.raises(InputError, match="NaN"):
        to_uint8(torch.tensor([0.0, float("nan")]))
    with pytest.raises(InputError, match="floats"):
        to_uint8(LEVELS)
    with pytest.raises(InputError, match="uint8"):
        from_uint8(torch.zeros(3))
    with pytest.raises(InputError, match="truncate"):
        to_uint8(torch.zeros(3), rounding="floor")  # type: ignore[arg-type]


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
@pytest.mark.parametrize("height, width", [(5, 7), (8, 8), (31, 23), (13, 40)])
def test_resize_agrees_with_pillow_on_floats(filter: str, height: int, width: int) -> None:
    x = torch.rand(2, 3, 20, 26, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = resize(x, height, width, filter=filter, clamp=False)  # type: ignore[arg-type]
    kind = Image.Resampling.BICUBIC if filter == "bicubic" else Image.Resampling.BILINEAR
    for image, resized in zip(x, out, strict=True):
        for channel, expected in zip(image, resized, strict=True):
            pillow = np.array(Image.fromarray(channel.numpy()).resize((width, height), kind))
            np.testing.assert_allclose(expected.numpy(), pillow, atol=1e-5)


def test_resize_is_antialiased_and_stays_in_range() -> None:
    # A checkerboard at the finest frequency averages to grey; picking every 8th pixel would give black or white.
    board = (torch.arange(64)[:, None] + torch.arange(64)[None, :]) % 2 * 2.0 - 1
    assert resize(board[None, None], 8, 8).abs().max() < 0.05
    edge = torch.where(torch.arange(32) < 16, -1.0, 1.0).expand(1, 1, 32, 32)
    assert resize(edge, 48, 48, clamp=False).max() > 1.01
    assert resize(edge, 48, 48).abs().max() == 1.0


def test_resize_of_an_image_does_not_depend_on_its_batch() -> None:
    x = torch.rand(5, 3, 17, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    together = fit_square(x, 9)
    assert all(torch.equal(fit_square(x[i : i + 1], 9)[0], together[i]) for i in range(5))


def test_centre_crop_takes_the_middle() -> None:
    x = torch.arange(7 * 6).view(1, 1, 7, 6)
    assert torch.equal(centre_crop(x, 3, 2), x[:, :, 2:5, 2:4])
    assert torch.equal(centre_crop(x, 4, 3), x[:, :, 1:5, 1:4])
    with pytest.raises(InputError, match="does not fit"):
        centre_crop(x, 8, 6)


@given(height=st.integers(1, 900), width=st.integers(1, 900), size=st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_the_shorter_side_becomes_the_size(height: int, width: int, size: int) -> None:
    new = scaled_sides(height, width, size)
    assert min(new) == size
    long = max(height, width) * size / min(height, width)
    assert abs(max(new) - max(long, size)) <= 0.5


def test_flips_are_a_function_of_seed_epoch_and_index() -> None:
    index = torch.arange(4000)
    first = flips(index, seed=3, epoch=0)
    assert torch.equal(flips([17, 5], seed=3, epoch=0), first[[17, 5]])
    for other in (flips(index, seed=3, epoch=1), flips(index, seed=4, epoch=0)):
        assert abs((first == other).double().mean() - 0.5) < 0.04
    assert abs(first.double().mean() - 0.5) < 0.04


def test_random_flip_mirrors_left_and_right_only_where_chosen() -> None:
    x = torch.rand(64, 3, 4, 5)
    index = torch.arange(64)
    out, chosen = random_flip(x, index, seed=0, epoch=2), flips(index, seed=0, epoch=2)
    assert 0 < chosen.sum() < 64
    assert torch.equal(out[chosen], x[chosen].flip(3))
    assert torch.equal(out[~chosen], x[~chosen])
    with pytest.raises(InputError, match="64 images"):
        random_flip(x, index[:3], seed=0, epoch=0)
