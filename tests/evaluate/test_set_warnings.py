"""What is said about two sets, and what is not said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scoreline.data import from_arrays, load_images
from scoreline.data.images import Images
from scoreline.evaluate.set_warnings import set_warnings
from scoreline.evaluate.sources import Source
from scoreline.evaluate.statistics import Statistics


def pictures(folder: Path, sizes: list[tuple[int, int]], suffix: str = ".png", seed: int = 0, **load: Any) -> Images:
    folder.mkdir()
    for i, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(1000 * seed + i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}{suffix if isinstance(suffix, str) else suffix[i]}")
    return load_images(str(folder), **load)


def notes(real: Images, generated: Images, size: int | None = None, **marks: Any) -> list[str]:
    sources = {
        "real": Source("real", "a", images=real),
        "generated": Source("generated", "b", images=generated, **marks),
    }
    return set_warnings(sources, size)


def many(seed: int, count: int = 2000) -> Images:
    return from_arrays(torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)))


def test_enough_images_of_one_kind_are_not_talked_about() -> None:
    assert notes(many(0), many(1)) == []


def test_few_images_are_counted() -> None:
    (note,) = notes(many(0, 1999), many(1))
    assert "1999 real" in note
    assert "generated" not in note


def test_jpeg_against_png_and_jpeg_mixed_with_it(tmp_path: Path) -> None:
    png, jpeg = pictures(tmp_path / "p", [(8, 8)] * 3), pictures(tmp_path / "j", [(8, 8)] * 3, ".jpg", seed=1)
    mixed = pictures(tmp_path / "m", [(8, 8)] * 3, [".jpg", ".png", ".jpg"], seed=2)  # type: ignore[arg-type]
    assert any("JPEG against other formats (real: 3 PNG, generated: 3 JPEG)" in n for n in notes(png, jpeg))
    assert any("JPEG against other formats (real: 3 PNG, generated: 2 JPEG + 1 PNG)" in n for n in notes(png, mixed))
    same = pictures(tmp_path / "n", [(8, 8)] * 3, [".jpg", ".png", ".jpg"], seed=3)  # type: ignore[arg-type]
    assert any("JPEG mixed with other formats" in n for n in notes(mixed, same))
    assert not any("JPEG" in n for n in notes(jpeg, pictures(tmp_path / "k", [(8, 8)] * 3, ".jpg", seed=4)))


def test_resizing_of_one_set_alone_and_from_different_sizes(tmp_path: Path) -> None:
    large = pictures(tmp_path / "l", [(32, 32)] * 2, size=16)
    own = pictures(tmp_path / "o", [(16, 16)] * 2, seed=1, size=16)
    middle = pictures(tmp_path / "m", [(24, 24)] * 2, seed=2, size=16)
    (note,) = [n for n in notes(large, own, 16) if "resized" in n]
    assert "real from 32 x 32; generated already had that size" in note
    (note,) = [n for n in notes(large, middle, 16) if "resized" in n]
    assert "from different sizes: real from 32 x 32, generated from 24 x 24" in note
    again = pictures(tmp_path / "a", [(32, 32)] * 2, seed=3, size=16)
    assert not any("resized" in n for n in notes(large, again, 16))


def test_mixed_sizes_inside_a_set(tmp_path: Path) -> None:
    mixed = pictures(tmp_path / "m", [(32, 32), (20, 40), (16, 16)], size=16)
    own = pictures(tmp_path / "o", [(16, 16)] * 3, seed=1, size=16)
    assert any(
        "real: mixed sizes, 3 from 16 x 16 to 32 x 32, all brought to 16 x 16" in n for n in notes(mixed, own, 16)
    )


def test_arrays_know_their_size_before_resizing() -> None:
    array = np.zeros((3, 12, 10, 3), np.uint8)
    assert from_arrays(array).sides == {(10, 12): 3}
    assert from_arrays(array, size=8).sides == {(10, 12): 3}
    assert from_arrays(array).formats == {"uint8 array": 3}


def test_pictures_that_were_left_out_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    good = pictures(tmp_path / "g", [(8, 8)] * 3)
    (tmp_path / "g" / "1.png").write_bytes(b"GIF89a")
    some = load_images(str(tmp_path / "g"), on_bad_image="skip")
    (note,) = [n for n in notes(good, some) if "left out" in n]
    assert "generated: 1 bad images were left out, 2 are scored" in note
    assert "1.png" in note


def test_the_same_images_twice() -> None:
    assert any("real and generated are the same images" in n for n in notes(many(0), many(0)))


def test_grey_images_in_a_network_for_colours() -> None:
    assert any("generated: grey images, given three equal channels" in n for n in notes(many(0), many(1), grey=True))


def test_statistics_that_do_not_say_their_network() -> None:
    mean, cov = torch.zeros(2), torch.eye(2)
    for known, said in (({}, True), ({"features": "pixels"}, False)):
        source = Source("real", "s.npz", statistics=Statistics(mean, cov, known=known))
        found = set_warnings({"real": source, "generated": Source("generated", "b", images=many(0))}, None)
        assert any("do not say which network" in n for n in found) == said
