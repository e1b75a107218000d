from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import bomb, encoded, random_picture
from PIL import Image

from scoreline.core.errors import ArtefactError
from scoreline.data.decode import decode, inspect

COLOUR = random_picture(0, 12, 10)
GREY = random_picture(1, 12, 10, channels=1)


def test_plain_pictures_come_out_as_they_are() -> None:
    np.testing.assert_array_equal(decode(encoded(COLOUR), "a.png", channels=3), COLOUR)
    np.testing.assert_array_equal(decode(encoded(GREY), "a.png", channels=1), GREY[:, :, None])
    np.testing.assert_array_equal(decode(encoded(GREY), "a.png", channels=3), GREY[:, :, None].repeat(3, axis=2))
    header = inspect(encoded(COLOUR), "a.png")
    assert (header.height, header.width, header.grey, header.format) == (12, 10, False, "PNG")
    assert inspect(encoded(GREY), "a.png").grey


def test_colour_to_grey_is_luma() -> None:
    luma = (COLOUR * np.array([0.299, 0.587, 0.114])).sum(axis=2)
    grey = decode(encoded(COLOUR), "a.png", channels=1)[:, :, 0]
    assert np.abs(grey - luma).max() < 1


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format: str) -> None:
    wide = np.array([[0, 128, 129, 257, 1000], [32896, 40000, 65278, 65407, 65535]], dtype=np.uint16)
    data = encoded(wide, format)
    assert inspect(data, "a").grey
    np.testing.assert_array_equal(decode(data, "a", channels=1)[:, :, 0], np.round(wide / 257))


def test_transparency_stands_on_white() -> None:
    pixels = np.zeros((2, 3, 4), dtype=np.uint8)
    pixels[:, :, 0] = 200
    pixels[:, :, 3] = [0, 51, 255]  # clear, one fifth, opaque
    out = decode(encoded(pixels), "a.png", channels=3)
    assert out[0].tolist() == [[255, 255, 255], [244, 204, 204], [200, 0, 0]]
    grey = encoded(Image.fromarray(pixels[:, :, [0, 3]], "LA"))
    assert inspect(grey, "a.png").grey
    assert decode(grey, "a.png", channels=1)[0, :, 0].tolist() == [255, 244, 200]


def test_palettes_become_their_colours() -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert not inspect(encoded(picture), "a").grey
    assert decode(encoded(picture), "a", channels=3).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    see_through = encoded(picture, transparency=1)
    assert decode(see_through, "a", channels=3).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_a_transparent_colour_in_rgb_and_grey() -> None:
    rgb = encoded(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8), transparency=(1, 2, 3))
    assert decode(rgb, "a", channels=3).tolist() == [[[255, 255, 255], [4, 5, 6]]]
    grey = encoded(np.array([[7, 8]], dtype=np.uint8), transparency=7)
    assert decode(grey, "a", channels=1).tolist() == [[[255], [8]]]


def test_one_bit_and_cmyk() -> None:
    bits = encoded(Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1"))
    assert inspect(bits, "a").grey
    assert decode(bits, "a", channels=1).tolist() == [[[0], [255]]]
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert decode(cmyk, "a", channels=3)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation, turned", [(1, False), (3, False), (6, True), (8, True)])
def test_exif_orientation_is_applied(format: str, orientation: int, turned: bool) -> None:
    # Blocks of one colour survive JPEG: the mark sits in the upper left corner as stored.
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels, format, exif=exif)
    header = inspect(data, "a")
    out = decode(data, "a", channels=3)
    assert out.shape[:2] == (header.height, header.width) == ((32, 16) if turned else (16, 32))
    row, column = {1: (0, 0), 3: (-1, -1), 6: (0, -1), 8: (-1, 0)}[orientation]
    assert out[row, column].min() > 200
    assert (out > 128).mean() < 0.2


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, "a.gif", channels=3)[0, 0].tolist() == [255, 0, 0]


def test_size_resizes_the_shorter_side_and_cuts_the_middle() -> None:
    pixels = np.zeros((10, 40, 3), dtype=np.uint8)
    pixels[:, 15:25] = 255
    out = decode(encoded(pixels), "a", channels=3, size=10)
    assert out.shape == (10, 10, 3)
    assert out.min() == 255
    small = decode(encoded(pixels), "a", channels=3, size=5)
    assert small.shape == (5, 5, 3)
    expected = Image.fromarray(pixels).resize((20, 5), Image.Resampling.BICUBIC).crop((7, 0, 12, 5))
    np.testing.assert_array_equal(small, np.asarray(expected))


def test_bombs_are_refused_before_decoding_with_the_limit_named() -> None:
    limit = f"{Image.MAX_IMAGE_PIXELS:,}"
    for data in (bomb(), bomb(10_000, 10_000)):  # beyond twice Pillow's limit, and between once and twice
        for read in (
            lambda data=data: inspect(data, "bomb.png"),
            lambda data=data: decode(data, "bomb.png", channels=3),
        ):
            with pytest.raises(ArtefactError, match=r"bomb\.png: is too large") as caught:
                read()
            assert limit in str(caught.value)


def test_the_limit_can_be_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ArtefactError, match="limit is 100 pixels"):
        decode(encoded(COLOUR), "a", channels=3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120)
    assert decode(encoded(COLOUR), "a", channels=3).shape == (12, 10, 3)


def test_empty_foreign_and_wrongly_moded_files_are_named() -> None:
    with pytest.raises(ArtefactError, match=r"cat\.png: is empty"):
        inspect(b"", "cat.png")
    with pytest.raises(ArtefactError, match=r"cat\.png: is no picture"):
        inspect(b"GET / HTTP/1.1", "cat.png")
    floats = encoded(Image.fromarray(np.zeros((3, 3), dtype=np.float32)), "TIFF")
    for read in (lambda: inspect(floats, "cat.tif"), lambda: decode(floats, "cat.tif", channels=1)):
        with pytest.raises(ArtefactError, match=r"cat\.tif: has pixel mode 'F'"):
            read()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"])
def test_a_truncated_file_is_an_error_or_complete(format: str) -> None:
    data = encoded(COLOUR, format)
    whole = decode(data, "a", channels=3)
    broken = 0
    for cut in [*range(0, len(data), 7), len(data) - 1]:
        try:
            part = decode(data[:cut], "a", channels=3)
        except ArtefactError:
            broken += 1
        else:  # only what follows the pixels was cut off
            np.testing.assert_array_equal(part, whole)
    assert broken > len(data) // 7 * 0.9


@given(data=st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_random_bytes_never_crash(data: bytes) -> None:
    with pytest.raises(ArtefactError):
        decode(data, "noise", channels=3)


@given(
    place=st.integers(0, 10_000),
    value=st.integers(0, 255),
    format=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]),
)
@settings(max_examples=200, deadline=None)
def test_a_damaged_byte_gives_pixels_or_one_kind_of_error(place: int, value: int, format: str) -> None:
    data = bytearray(encoded(COLOUR, format))
    data[place % len(data)] = value
    try:
        header = inspect(bytes(data), "a")
        out = decode(bytes(data), "a", channels=3)
    except ArtefactError:
        pass
    else:
        assert out.dtype == np.uint8
        assert out.shape == (header.height, header.width, 3)


def test_functions_and_errors_travel_between_processes() -> None:
    assert pickle.loads(pickle.dumps(decode)) is decode
    with pytest.raises(ArtefactError) as caught:
        decode(b"", "a", channels=1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
