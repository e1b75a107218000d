"""Masks from what a user types: what is known, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scoreline.core.errors import ArtefactError, InputError
from scoreline.evaluate.masks import parse_mask


@pytest.mark.parametrize(
    "text, known",
    [
        ("left-half", (slice(None), slice(0, 3))),
        ("right-half", (slice(None), slice(3, 6))),
        ("top-half", (slice(0, 2), slice(None))),
        ("bottom-half", (slice(2, 4), slice(None))),
        ("box:1,2,5,3", (slice(2, 3), slice(1, 5))),
        ("box:0,0,6,4", (slice(None), slice(None))),
    ],
)
def test_words_and_boxes_name_what_is_known(text: str, known: tuple[slice, slice]) -> None:
    wanted = np.zeros((4, 6), dtype=bool)
    wanted[known] = True
    assert (parse_mask(text, 4, 6).numpy() == wanted).all()
    if text.startswith("box"):
        assert (parse_mask(text.replace("box", "hole"), 4, 6).numpy() == ~wanted).all()


def test_odd_sides_are_shared_out_whole() -> None:
    for a, b in (("left-half", "right-half"), ("top-half", "bottom-half")):
        assert (parse_mask(a, 5, 7) ^ parse_mask(b, 5, 7)).all()


def test_a_picture_is_white_where_known(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6), dtype=np.uint8)
    pixels[1, 2:5] = 255
    for mode in ("L", "1", "RGB", "P"):
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{mode}.png")
        assert (parse_mask(str(tmp_path / f"{mode}.png"), 4, 6).numpy() == (pixels > 0)).all()


@pytest.mark.parametrize(
    "text, word",
    [
        ("left-hafl", "did you mean 'left-half'"),
        ("half", "Known:"),
        ("box:1,2,3", "four numbers"),
        ("box:1,2,x,4", "four numbers"),
        ("box:-1,0,3,3", "four numbers"),
        ("box:0,0,7,4", "inside 6 x 4"),
        ("hole:0,0,6,5", "inside 6 x 4"),
        ("box:3,0,3,4", "at least one"),
    ],
)
def test_other_words_are_refused(text: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        parse_mask(text, 4, 6)


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    Image.new("L", (6, 5), 255).save(tmp_path / "tall.png")
    with pytest.raises(InputError, match="is 6 x 5 pixels, the images are 6 x 4"):
        parse_mask(str(tmp_path / "tall.png"), 4, 6)
    Image.new("L", (6, 4), 128).save(tmp_path / "grey.png")
    with pytest.raises(InputError, match="greys"):
        parse_mask(str(tmp_path / "grey.png"), 4, 6)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ArtefactError, match="no picture"):
        parse_mask(str(tmp_path / "broken.png"), 4, 6)
    with pytest.raises(ArtefactError, match="no such file"):
        parse_mask(str(tmp_path / "none.png"), 4, 6)
