from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import bomb, encoded, random_picture, write_folder

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data import load_images
from scoreline.data import pixels as pixels_file


def test_subfolders_are_classes_in_order_of_their_names(tmp_path: Path) -> None:
    write_folder(tmp_path, {"dog": 2, "cat": 3, ".hidden": 1})
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "cat" / "deeper").mkdir()
    (tmp_path / "cat" / "deeper" / "x.PNG").write_bytes(encoded(random_picture(9)))
    (tmp_path / "empty").mkdir()
    images = load_images(tmp_path)
    assert images.class_names == ["cat", "dog"]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1]
    batch = images.batch([3, 4])
    assert torch.equal(batch.image[0], torch.from_numpy(random_picture(9)).permute(2, 0, 1) / 127.5 - 1)
    assert torch.equal(batch.image[1], torch.from_numpy(random_picture(0)).permute(2, 0, 1) / 127.5 - 1)
    assert images.describe()["formats"] == {"PNG": 6}


def test_a_flat_folder_has_no_labels_and_is_sorted_by_path(tmp_path: Path) -> None:
    for name, seed in (("b.bmp", 1), ("a.png", 0), ("c.tif", 2)):
        kind = {"bmp": "BMP", "png": "PNG", "tif": "TIFF"}[name[-3:]]
        (tmp_path / name).write_bytes(encoded(random_picture(seed), kind))
    images = load_images(str(tmp_path))
    assert (images.num_classes, images.labels, images.shape) == (None, None, (3, 8, 8))
    expected = torch.stack([torch.from_numpy(random_picture(seed)).permute(2, 0, 1) for seed in range(3)]) / 127.5 - 1
    assert torch.equal(images.batch(range(3)).image, expected)


def test_grey_folders_have_one_channel_and_one_coloured_file_makes_three(tmp_path: Path) -> None:
    write_folder(tmp_path, {"": 3}, channels=1)
    assert load_images(tmp_path).shape == (1, 8, 8)
    assert load_images(tmp_path, channels=3).shape == (3, 8, 8)
    (tmp_path / "z.png").write_bytes(encoded(random_picture(5)))
    images = load_images(tmp_path)
    assert images.shape == (3, 8, 8)
    grey = images.batch([0]).image[0]
    assert torch.equal(grey[0], grey[2])
    assert load_images(tmp_path, channels=1).shape == (1, 8, 8)


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    write_folder(tmp_path, {"": 2})
    (tmp_path / "z.png").write_bytes(encoded(random_picture(5, 8, 12)))
    with pytest.raises(InputError, match=r"0\.png is 8 x 8, .*z\.png is 12 x 8; give size="):
        load_images(tmp_path)
    assert load_images(tmp_path, size=6).batch(range(3)).image.shape == (3, 3, 6, 6)


def test_bad_pictures_are_named_or_skipped_and_listed(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 3, "b": 2})
    whole = encoded(random_picture(7))
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"empty\.png: is empty .*--on-bad-image skip"):
        load_images(tmp_path)
    (tmp_path / "a" / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "00bomb.png").write_bytes(bomb())
    (tmp_path / "b" / "text.jpg").write_bytes(b"<html>")
    images = load_images(tmp_path, on_bad_image="skip")
    assert [(Path(name).name, reason.split(" (")[0]) for name, reason in images.skipped] == [
        ("00bomb.png", "is too large"),
        ("empty.png", "is empty"),
        ("half.png", "is broken or truncated"),
        ("text.jpg", "is no picture that can be read, or is cut off; remove it or fetch it again"),
    ]
    # The good ones keep the place that they have among all files.
    assert images.index.tolist() == [0, 2, 3, 6, 7]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert images.describe()["skipped"][0]["name"].endswith("00bomb.png")
    clean = tmp_path / "clean"
    write_folder(clean, {"a": 3, "b": 2})
    assert torch.equal(images.batch(range(5)).image, load_images(clean).batch(range(5)).image)


def test_a_truncated_picture_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    write_folder(tmp_path, {"": 2})
    whole = encoded(random_picture(7))
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    images = load_images(tmp_path)
    assert len(images.batch([0])) == 1
    with pytest.raises(ArtefactError, match=r"1\.png: is broken or truncated"):
        images.batch([0, 1])


def test_files_that_change_or_vanish_after_opening(tmp_path: Path) -> None:
    write_folder(tmp_path, {"": 2})
    images = load_images(tmp_path)
    (tmp_path / "0.png").write_bytes(encoded(random_picture(0, 9, 9)))
    (tmp_path / "1.png").unlink()
    with pytest.raises(ArtefactError, match=r"0\.png: has \(9, 9\) pixels"):
        images.batch([0])
    with pytest.raises(ArtefactError, match=r"1\.png: cannot be read"):
        images.batch([1])


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="holds no pictures"):
        load_images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(ArtefactError, match=r"no picture that can be read \(1 bad; the first: .*a\.png"):
        load_images(tmp_path, on_bad_image="skip")
    with pytest.raises(ArtefactError, match="no such file or folder"):
        load_images(tmp_path / "none" / "at" / "all")


def test_splits_are_subfolders_and_share_their_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train/a": 2, "train/b": 1, "train/c": 1, "test/a": 1, "test/c": 1})
    with pytest.raises(InputError, match="holds test, train; choose one"):
        load_images(tmp_path)
    test = load_images(tmp_path, split="test")
    assert test.class_names == ["a", "b", "c"]
    assert test.labels is not None
    assert test.labels.tolist() == [0, 2]
    for bad in ("valid", "../x"):
        with pytest.raises(InputError, match="no such subfolder; it has: test, train"):
            load_images(tmp_path, split=bad)


def test_pictures_beside_class_folders_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"": 1, "a": 2})
    with pytest.raises(InputError, match=r"0\.png\) beside class folders"):
        load_images(tmp_path)


def test_numbered_samples_keep_their_numbers_and_have_no_classes(tmp_path: Path) -> None:
    for number in (0, 7, 1003, 2000):
        path = tmp_path / f"{number // 1000 * 1000:06d}" / f"{number:06d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(random_picture(number)))
    images = load_images(tmp_path)
    assert images.labels is None
    assert images.index.tolist() == [0, 7, 1003, 2000]
    (tmp_path / "000000" / "001000.png").write_bytes(encoded(random_picture(0)))  # not where a sample would lie
    assert load_images(tmp_path).num_classes == 3


def test_the_fingerprint_knows_names_and_contents_but_no_dates_or_places(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_folder(first, {"a": 2, "b": 2})
    shutil.copytree(first, second)
    for path in second.rglob("*.png"):
        os.utime(path, (0, 0))
    base = load_images(first).fingerprint
    assert load_images(second).fingerprint == base
    assert load_images(second, on_bad_image="skip").fingerprint == base
    assert load_images(second, size=8).fingerprint == base  # they have that size already
    used = load_images(second)
    list(used.batches(3))
    assert used.fingerprint == base
    assert load_images(second, size=4).fingerprint != base
    assert load_images(second, channels=1).fingerprint != base
    (second / "a" / "1.png").rename(second / "a" / "2.png")
    assert load_images(second).fingerprint != base
    (second / "a" / "2.png").rename(second / "a" / "1.png")
    (second / "a" / "1.png").write_bytes(encoded(random_picture(77)))
    assert load_images(second).fingerprint != base


@pytest.mark.parametrize("keep", [0, 2**20])
def test_pictures_are_the_same_kept_or_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    monkeypatch.setattr(pixels_file, "_KEEP_BYTES", keep)
    write_folder(tmp_path, {"a": 3, "b": 3})
    images = load_images(tmp_path)
    expected = torch.stack([torch.from_numpy(random_picture(seed)).permute(2, 0, 1) for seed in range(6)]) / 127.5 - 1
    for places in ([0, 3], [3, 1, 1], range(6), [5]):
        assert torch.equal(images.batch(places).image, expected[list(places)])
    shutil.rmtree(tmp_path / "a")
    if keep:
        assert torch.equal(images.subset([1]).batch([0]).image, expected[1:2])
        assert len(pickle.dumps(images)) < 5000  # what is kept does not travel to worker processes
    else:
        with pytest.raises(ArtefactError, match="cannot be read"):
            images.batch([1])


def test_images_of_a_folder_travel_to_worker_processes(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 3})
    images = load_images(tmp_path, size=4)
    images.batch([0])
    other = pickle.loads(pickle.dumps(images))
    assert torch.equal(other.batch([2, 0]).image, images.batch([2, 0]).image)
    assert np.array_equal(other.index, images.index)
