from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded
from PIL import Image

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data import from_arrays, load_images
from scoreline.data.arrays import load_arrays
from scoreline.data.transforms import fit_square

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
EXPECTED = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 127.5 - 1


def test_every_layout_and_type_gives_the_same_images(tmp_path: Path) -> None:
    floats = (PIXELS / 127.5 - 1).astype(np.float32)
    arrays = [PIXELS, PIXELS.transpose(0, 3, 1, 2), floats, floats.transpose(0, 3, 1, 2), (PIXELS / 127.5 - 1)]
    for number, array in enumerate(arrays):
        path = tmp_path / f"{number}.npy"
        np.save(path, array)
        images = load_images(path)
        assert (images.shape, images.labels) == ((3, 9, 7), None)
        torch.testing.assert_close(images.batch(range(6)).image, EXPECTED, atol=1e-6, rtol=0)
    np.save(tmp_path / "grey.npy", PIXELS[..., 0])
    assert torch.equal(load_images(tmp_path / "grey.npy").batch([3]).image, EXPECTED[3:4, :1])


def test_npz_as_guided_diffusion_writes_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", PIXELS)
    np.savez(tmp_path / "b.npz", PIXELS, np.arange(6))
    np.savez_compressed(tmp_path / "c.npz", images=PIXELS, labels=np.arange(6, dtype=np.int32))
    assert load_images(tmp_path / "a.npz").num_classes is None
    for name in ("b.npz", "c.npz"):
        batch = load_images(tmp_path / name).batch([5, 0])
        assert torch.equal(batch.image, EXPECTED[[5, 0]])
        assert batch.label is not None
        assert batch.label.tolist() == [5, 0]


def test_a_large_npy_is_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(4000, 1, 64, 64)).flush()
    images = load_images(path)
    assert isinstance(images._pixels.array.base, np.memmap)  # type: ignore[attr-defined]
    assert images.batch([3999]).image.unique().tolist() == [-1.0]


def test_wrong_keys_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", samples=PIXELS, y=np.arange(6))
    with pytest.raises(ArtefactError, match="holds samples, y; images are looked for under arr_0"):
        load_images(tmp_path / "a.npz")


def test_pickles_are_refused_and_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "was_run"),)

    objects = np.array([Evil(), None], dtype=object)
    np.save(tmp_path / "a.npy", objects)
    np.savez(tmp_path / "b.npz", objects)
    np.savez(tmp_path / "c.npz", PIXELS, objects)
    for name in ("a.npy", "b.npz", "c.npz"):
        with pytest.raises(ArtefactError, match="pickled objects"):
            load_images(tmp_path / name)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_truncated_and_random_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    np.save(path, PIXELS) if name.endswith("npy") else np.savez(path, PIXELS)
    data = path.read_bytes()
    for cut in (0, 1, 5, 20, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(ArtefactError, match=r"broken|truncated|no \.npz"):
            load_arrays(path)


@given(
    data=st.binary(max_size=120),
    name=st.sampled_from(["a.npy", "a.npz"]),
    magic=st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"]),
)
@settings(max_examples=80, deadline=None)
def test_random_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str, magic: bytes
) -> None:
    path = tmp_path_factory.mktemp("noise") / name
    path.write_bytes(magic + data)
    with pytest.raises(ArtefactError):
        load_arrays(path)


def test_missing_files(tmp_path: Path) -> None:
    for name in ("none.npy", "none.npz"):
        with pytest.raises(ArtefactError, match="no such file"):
            load_images(tmp_path / name)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((2, 4, 4), np.nan, dtype=np.float32), "NaN"),
        (np.full((2, 4, 4), np.inf, dtype=np.float32), "infinity"),
        (np.full((2, 4, 4), 1.001), r"lie in \[-1, 1\]"),
        (np.full((2, 4, 4), -1.001), r"lie in \[-1, 1\]"),
        (np.full((2, 4, 4), 200.0), "store 0 to 255 as uint8"),
        (np.zeros((2, 4, 4), dtype=np.int64), "need uint8"),
        (np.zeros((2, 4, 4), dtype=bool), "need uint8"),
        (np.zeros((2, 4, 4), dtype=np.complex64), "need uint8"),
        (np.zeros((4, 4), dtype=np.uint8), "need shape"),
        (np.zeros((2, 4, 4, 4), dtype=np.uint8), "neither 1 nor 3 channels"),
        (np.zeros((2, 3, 8, 3), dtype=np.uint8), "could be"),
        (np.zeros((0, 3, 8, 8), dtype=np.uint8), "no pixels"),
        (np.zeros((2, 3, 0, 8), dtype=np.uint8), "no pixels"),
    ],
)
def test_wrong_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_arrays(array)


def test_a_bad_value_is_found_wherever_it_is() -> None:
    x = np.zeros((2500, 2, 2), dtype=np.float32)
    x[2400, 1, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        from_arrays(x)


def test_bytes_are_resized_like_pictures_and_floats_unrounded(tmp_path: Path) -> None:
    for number, pixels in enumerate(PIXELS):
        (tmp_path / f"{number}.png").write_bytes(encoded(pixels))
    files, arrays = load_images(tmp_path, size=5), from_arrays(PIXELS, size=5)
    assert arrays.shape == (3, 5, 5)
    assert torch.equal(files.batch(range(6)).image, arrays.batch(range(6)).image)
    floats = from_arrays(EXPECTED, size=5).batch(range(6)).image
    assert torch.equal(floats, fit_square(EXPECTED, 5))
    # On bytes Pillow rounds and clips after each of its two passes; the two ways differ by a few levels at most.
    apart = (floats - arrays.batch(range(6)).image) * 127.5
    assert 0 < apart.abs().max() < 4
    assert apart.mean().abs() < 0.2


def test_channels_are_converted() -> None:
    grey = from_arrays(PIXELS, channels=1).batch(range(6)).image
    for number in range(6):
        pillow = np.asarray(Image.fromarray(PIXELS[number]).convert("L"))
        assert torch.equal(grey[number, 0], torch.from_numpy(pillow.copy()) / 127.5 - 1)
    floats = from_arrays(EXPECTED, channels=1).batch(range(6)).image
    assert (floats - grey).abs().max() < 1.01 / 127.5
    rgb = from_arrays(grey, channels=3).batch(range(6)).image
    assert torch.equal(rgb, grey.expand(-1, 3, -1, -1))
    with pytest.raises(InputError, match="channels 2"):
        from_arrays(PIXELS, channels=2)
    with pytest.raises(InputError, match="size 0"):
        from_arrays(PIXELS, size=0)
    with pytest.raises(InputError, match="masks"):
        from_arrays(PIXELS, size=5, extras={"mask": np.zeros((6, 9, 7))})
