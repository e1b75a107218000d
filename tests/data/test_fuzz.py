"""Damaged files of every kind, thousands of them, seeded: a clear error or a counted skip, never a wrong number.

Formats with checksums (PNG, .npz) must give the picture itself or an error. Formats without any (BMP, TIFF, GIF, the
scan of a JPEG, plain .npy) cannot tell changed pixels; for them nothing but our own errors may come out, and a cut file
is never read as a whole one.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError, ScorelineError
from scoreline.data import load_images
from scoreline.data.decode import decode, inspect

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (24, 20, 3), dtype=np.uint8)


def encoded(format: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    settings = {"lossless": True} if format == "WEBP" else {}
    Image.fromarray(COLOURS).convert(mode).save(out, format, **settings)
    return out.getvalue()


def damaged(data: bytes, count: int, *, cut: bool, seed: int = 1) -> Iterator[bytes]:
    """Files cut short, or with one to three bytes changed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        bad = bytearray(data)
        if cut:
            bad = bad[: rng.integers(0, len(bad))]
        else:
            for place in rng.integers(0, len(bad), rng.integers(1, 4)):
                bad[place] ^= int(rng.integers(1, 256))
        yield bytes(bad)


def read(data: bytes) -> np.ndarray | None:
    """The pixels, or None for an error of ours; anything else that is raised fails the test."""
    try:
        inspect(data, "x")
        return decode(data, "x", channels=3)
    except ArtefactError:
        return None


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "PIL")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_png_is_the_picture_or_an_error(mode: str, cut: bool) -> None:
    data = encoded("PNG", mode)
    whole = read(data)
    assert whole is not None
    found = [read(bad) for bad in damaged(data, 400, cut=cut)]
    assert all(x is None or np.array_equal(x, whole) for x in found)
    assert sum(x is None for x in found) > 350


@pytest.mark.parametrize(
    "format, mode", [("JPEG", "RGB"), ("BMP", "RGB"), ("TIFF", "RGB"), ("GIF", "P"), ("WEBP", "RGB")]
)
def test_a_cut_picture_is_never_read_as_a_whole_one(format: str, mode: str) -> None:
    data = encoded(format, mode)
    whole = read(data)
    assert whole is not None
    found = [read(bad) for bad in damaged(data, 300, cut=True)]
    # a missing end mark or trailing directory loses no pixel
    assert all(x is None or np.array_equal(x, whole) for x in found)
    assert sum(x is None for x in found) > 270


@pytest.mark.parametrize(
    "format, mode", [("JPEG", "RGB"), ("BMP", "RGB"), ("TIFF", "RGB"), ("GIF", "P"), ("WEBP", "RGB")]
)
def test_changed_bytes_raise_nothing_but_our_own_errors(format: str, mode: str) -> None:
    for bad in damaged(encoded(format, mode), 300, cut=False):
        x = read(bad)
        assert x is None or (x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] == 3)


def all_of(path: Path, **options: Any) -> Tensor | None:
    """All images, or None for an error of ours that names the file."""
    try:
        images = load_images(str(path), **options)
        return images.batch(range(len(images))).image
    except ScorelineError as error:
        if path.name not in str(error):
            raise
        return None


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("cut", [True, False])
def test_damaged_array_files(tmp_path: Path, suffix: str, cut: bool) -> None:
    path, arrays = tmp_path / f"x{suffix}", RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    if suffix == ".npz":
        np.savez(path, arr_0=arrays, arr_1=np.arange(5))
    else:
        np.save(path, arrays)
    whole = load_images(str(path)).batch(range(5)).image
    for bad in damaged(path.read_bytes(), 250, cut=cut):
        path.write_bytes(bad)
        x = all_of(path)
        if x is None:
            continue
        assert x.isfinite().all()
        assert x.abs().max() <= 1
        if cut or suffix == ".npz":
            assert x.equal(whole)


def read_all(place: Path) -> None:
    images = load_images(str(place))
    images.batch(range(len(images)))


def folder(tmp_path: Path) -> Path:
    """Three good pictures."""
    for i in range(3):
        Image.fromarray(np.roll(COLOURS, i)).save(tmp_path / f"good-{i}.png")
    return tmp_path


BAD = {
    "zero.png": b"",
    "text.png": b"this is no picture\n" * 5,
    "cut.jpg": encoded("JPEG")[:-100],
    "half.png": encoded("PNG")[:700],
    "head.gif": b"GIF89a",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_stops_the_reading_or_is_counted(tmp_path: Path, name: str) -> None:
    place = folder(tmp_path)
    (place / name).write_bytes(BAD[name])
    with pytest.raises(ArtefactError, match=name):
        read_all(place)
    images = load_images(str(place), on_bad_image="skip")
    assert [Path(path).name for path, _ in images.skipped] == [name]
    assert images.batch(range(len(images))).image.shape == (3, 3, 24, 20)
    assert images.sides == {(20, 24): 3}


def test_unusual_but_good_pictures_become_what_a_viewer_shows(tmp_path: Path) -> None:
    place = folder(tmp_path)
    layered = np.dstack([COLOURS, np.zeros((24, 20), np.uint8)])
    Image.fromarray(layered, "RGBA").save(place / "clear.png")
    Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257).save(place / "deep.png")
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    frames[0].save(place / "moving.gif", save_all=True, append_images=frames[1:])
    images = load_images(str(place))
    names = ["clear.png", "deep.png", "good-0.png", "good-1.png", "good-2.png", "moving.gif"]
    x = dict(zip(names, (images.batch(range(6)).image + 1) * 127.5, strict=True))
    assert x["clear.png"].min() == 255
    assert np.array_equal(x["deep.png"][0].round().numpy(), COLOURS[..., 0])
    still = np.asarray(Image.open(place / "moving.gif").convert("RGB"))
    assert np.array_equal(x["moving.gif"].round().numpy(), still.transpose(2, 0, 1))


def test_sets_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no pictures"):
        load_images(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ArtefactError, match="no picture that can be read"):
        load_images(str(tmp_path), on_bad_image="skip")
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    assert len(load_images(str(tmp_path))) == 1
    Image.fromarray(COLOURS[:10]).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"20 x 24.*20 x 10.*--size"):
        load_images(str(tmp_path))
