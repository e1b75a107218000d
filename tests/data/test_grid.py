from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data import from_arrays, load_images, picture_grid, write_png
from scoreline.data.summary import overview, summarise


def test_images_stand_in_rows_with_white_between() -> None:
    images = torch.linspace(-1, 0.5, 5).view(5, 1, 1, 1).expand(5, 1, 2, 3)
    sheet = np.asarray(picture_grid(images, columns=2, scale=4, pad=1))
    assert sheet.shape == (1 + 3 * (8 + 1), 1 + 2 * (12 + 1), 3)
    levels = [0, 48, 96, 143, 191]
    for number, level in enumerate(levels):
        row, column = divmod(number, 2)
        cell = sheet[1 + 9 * row : 9 + 9 * row, 1 + 13 * column : 13 + 13 * column]
        assert np.unique(cell).tolist() == [level]
    assert (sheet[[0, 9, 18, 27]] == 255).all()
    assert (sheet[:, [0, 13, 26]] == 255).all()
    assert (sheet[19:27, 14:26] == 255).all()  # the sixth place is empty


def test_pixels_are_repeated_not_smoothed() -> None:
    x = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).view(1, 1, 2, 2)
    sheet = np.asarray(picture_grid(x, pad=0, scale=3))[:, :, 0]
    assert sheet.tolist() == np.kron([[0, 255], [255, 0]], np.ones((3, 3), dtype=int)).tolist()


def test_colours_keep_their_channels() -> None:
    x = torch.full((1, 3, 2, 2), -1.0)
    x[:, 0] = 1.0
    assert np.asarray(picture_grid(x, pad=0))[0, 0].tolist() == [255, 0, 0]


def test_small_images_are_enlarged_and_large_ones_left() -> None:
    assert picture_grid(torch.zeros(1, 1, 8, 8), pad=0).size == (48, 48)
    assert picture_grid(torch.zeros(1, 3, 100, 80), pad=0).size == (80, 100)
    assert picture_grid(torch.zeros(10, 3, 48, 48), pad=0).size == (4 * 48, 3 * 48)


def test_row_labels_stand_left_of_their_rows() -> None:
    plain = picture_grid(torch.ones(4, 1, 16, 16), columns=2, scale=1)
    sheet = picture_grid(
        torch.ones(4, 1, 16, 16), columns=2, scale=1, row_labels=["heun", "a very long name that goes on and on"]
    )
    assert sheet.height == plain.height
    margin = np.asarray(sheet)[:, : sheet.width - plain.width]
    assert (margin[:18] < 128).any()
    assert (margin[20:] < 128).any()
    assert (np.asarray(sheet)[:, sheet.width - plain.width + 2 :] == 255).all()


def test_wrong_grids_are_refused() -> None:
    for bad in (torch.zeros(0, 1, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1, 4, 2, 2)):
        with pytest.raises(InputError, match="grid takes"):
            picture_grid(bad)
    with pytest.raises(InputError, match="2 rows"):
        picture_grid(torch.zeros(4, 1, 2, 2), columns=2, row_labels=["a"])
    for options in ({"columns": 0}, {"scale": 0}, {"pad": -1}):
        with pytest.raises(InputError, match="1 or more"):
            picture_grid(torch.zeros(4, 1, 2, 2), **options)
    with pytest.raises(InputError, match="NaN"):
        picture_grid(torch.full((1, 1, 2, 2), float("nan")))


def test_png_files_are_whole_or_absent(tmp_path: Path) -> None:
    sheet = picture_grid(torch.zeros(1, 1, 8, 8))
    write_png(tmp_path / "new" / "a.png", sheet)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), np.asarray(sheet))
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="not a folder"):
        write_png(tmp_path / "file" / "a.png", sheet)


def test_a_summary_describes_and_draws(tmp_path: Path) -> None:
    said = summarise("digits", split="test", out=tmp_path / "grid.png")
    assert (said["name"], said["count"], said["grid"]) == ("digits:test", 500, str(tmp_path / "grid.png"))
    assert sum(said["classes"].values()) == 500
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.height == 2 + 10 * (48 + 2)
        assert picture.width > 2 + 10 * (48 + 2)
    assert summarise("digits", split="test")["grid"] is None
    with pytest.raises(InputError, match=r"ends with \.png"):
        summarise("digits", out=tmp_path)


def test_an_overview_shows_each_class_or_the_whole_range() -> None:
    digits = load_images("digits")
    positions, labels = overview(digits)
    assert labels == [str(k) for k in range(10)]
    assert digits.labels is not None
    assert digits.labels[positions].tolist() == np.repeat(range(10), 10).tolist()
    assert len(set(positions.tolist())) == 100
    positions, labels = overview(digits.relabel(None))
    assert (labels, len(positions), positions[0], positions[-1]) == (None, 100, 0, 1796)
    few = from_arrays(np.zeros((3, 1, 4, 4), dtype=np.uint8), [0, 1, 1])
    assert overview(few)[0].tolist() == [0, 1, 2]
