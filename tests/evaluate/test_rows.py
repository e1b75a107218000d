"""Feature files: streamed, mapped, and refused where they are something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scoreline.core.errors import ArtefactError, InputError
from scoreline.evaluate import rows
from scoreline.evaluate.rows import FeatureFile, open_features

X = np.random.default_rng(0).normal(size=(101, 6))


def opened(path: Path) -> FeatureFile:
    found = open_features(path, path.parent / "scratch")
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f8", "<f2"])
@pytest.mark.parametrize("kind", ["npy", "fortran.npy", "features.npz", "packed.npz"])
def test_all_ways_of_storing_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str
) -> None:
    monkeypatch.setattr(rows, "_CHUNK_BYTES", 8 * 6 * 7)
    path, x = tmp_path / f"x.{kind}", X.astype(dtype)
    if kind == "npy":
        np.save(path, x)
    elif kind == "fortran.npy":
        np.save(path, np.asfortranarray(x))
    elif kind == "features.npz":
        np.savez(path, features=x, labels=np.zeros(3))
    else:
        np.savez_compressed(path, arr_0=x)
    found, wanted = opened(path), torch.from_numpy(x.astype(x.dtype.newbyteorder("=")))
    assert (len(found), found.dim) == (101, 6)
    chunks = list(found.chunks())
    assert [len(chunk) for chunk in chunks] == [7] * 14 + [3]
    for read in (torch.cat(chunks), found.tensor()):
        assert torch.equal(read, wanted)
    shares = [torch.cat(list(found.chunks(share, 4))) for share in range(4)]
    assert [len(share) for share in shares] == [25, 25, 25, 26]
    assert torch.equal(torch.cat(shares), wanted)
    some = torch.tensor([3, 100, 0])
    assert torch.equal(found.take(some), wanted[some])


def test_a_plain_array_is_not_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    opened(tmp_path / "x.npy")
    assert not (tmp_path / "scratch").exists()


def test_rows_are_written_at_their_place_and_an_older_file_is_kept(tmp_path: Path) -> None:
    a = FeatureFile.create(tmp_path / "deep" / "rows.raw", 5, 2)
    a.write(3, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    b = FeatureFile.create(tmp_path / "deep" / "rows.raw", 5, 2)
    b.write(0, torch.tensor([[9.0, 9.0]]))
    assert b.tensor().tolist() == [[9, 9], [0, 0], [0, 0], [1, 2], [3, 4]]


def test_mapped_rows_do_not_change_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    opened(tmp_path / "x.npy").tensor().zero_()
    assert np.array_equal(np.load(tmp_path / "x.npy"), X)


def test_images_and_names_are_left_to_others(tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", np.zeros((3, 8, 8), np.uint8))
    np.savez(tmp_path / "colour.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name in ("grey.npy", "colour.npz", "other.npz", "none.npy", "."):
        assert open_features(tmp_path / name, tmp_path) is None
    assert open_features("digits", tmp_path) is None


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((4, 3), np.int64), "floating point"),
        (np.zeros((4, 3), np.uint8), "floating point"),
        (np.zeros((4, 3), np.complex128), "floating point"),
        (np.zeros((4, 3), np.longdouble), "floating point"),
        (np.zeros((0, 3)), "at least one row"),
        (np.zeros((3, 0)), "at least one row"),
    ],
)
def test_matrices_that_are_no_features(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match=words):
        open_features(tmp_path / "x.npy", tmp_path)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    for name in ("x.npy", "x.npz"):
        save = np.save if name == "x.npy" else np.savez
        array = np.array([[None, 1.0]], dtype=object)
        if name == "x.npy":
            save(tmp_path / name, array, allow_pickle=True)
        else:
            np.savez(tmp_path / name, features=array)
        with pytest.raises(ArtefactError, match="pickled"):
            open_features(tmp_path / name, tmp_path)


def test_a_file_that_shrinks_or_is_cut(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    found = opened(tmp_path / "x.npy")
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match="truncated"):
        list(found.chunks())
    for cut in (0, 5, 60, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.npy").write_bytes(whole[:cut])
        with pytest.raises(ArtefactError, match="truncated"):
            open_features(tmp_path / "x.npy", tmp_path)
