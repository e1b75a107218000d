from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import encoded, random_picture, write_folder

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data import Images, load_images
from scoreline.data import load as load_file


def test_names_are_never_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="data set 'digit': did you mean 'digits'") as caught:
        load_images("digit")
    assert "hf:owner/name" in str(caught.value)
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", {"": 2})
    write_folder(tmp_path / "digits", {"": 2})
    with pytest.raises(InputError, match=r"write \./photos"):
        load_images("photos")
    assert len(load_images("./photos")) == 2
    assert len(load_images("digits")) == 1797
    assert len(load_images("./digits")) == len(load_images(Path("digits"))) == 2


@pytest.mark.parametrize("text", ["a/b", "a\\b", "./a", "..", "~/a", "a.npz", "a.NPY", "a.parquet", "a.png", "/tmp/x"])
def test_what_looks_like_a_path(text: str) -> None:
    assert load_file._looks_like_path(text)


@pytest.mark.parametrize("text", ["digits", "cifar10", "a b", "npz", "my-data_2"])
def test_what_looks_like_a_name(text: str) -> None:
    assert not load_file._looks_like_path(text)


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "photos", {"": 1})
    assert len(load_images("~/photos")) == 1


def test_cifar10_is_a_name_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(load_file, "load_table", lambda source, **options: asked.append((source, options["split"])))
    load_images("cifar10", split="train")
    load_images("hf:someone/something", split="test")
    assert asked == [("hf:uoft-cs/cifar10", "train"), ("hf:someone/something", "test")]


def test_options_that_do_not_fit_the_source_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4), dtype=np.uint8))
    for source in ("digits", str(tmp_path / "a.npy"), str(tmp_path)):
        for option in ({"streaming": True}, {"label_column": "label"}, {"config": "x"}):
            with pytest.raises(InputError, match="belongs to parquet files"):
                load_images(source, **option)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="without splits"):
        load_images(tmp_path / "a.npy", split="train")
    with pytest.raises(InputError, match="on_bad_image 'ignore'"):
        load_images("digits", on_bad_image="ignore")  # type: ignore[call-overload]
    for size in (0, -3, 10**6, 2.5, True):
        with pytest.raises(InputError, match="size"):
            load_images("digits", size=size)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="channels 4"):
        load_images("digits", channels=4)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(random_picture(0)))
    (tmp_path / "a.csv").write_text("1,2")
    for name in ("a.png", "a.csv"):
        with pytest.raises(InputError, match="pictures are read from folders"):
            load_images(tmp_path / name)
    for name in ("b.png", "b.npz", "b.parquet", "b"):
        with pytest.raises(ArtefactError, match="no such file"):
            load_images(tmp_path / name)


def test_digits_of_another_size_or_with_colours_keep_labels_and_indices() -> None:
    plain, large = load_images("digits", split="test"), load_images("digits", split="test", size=16, channels=3)
    assert isinstance(large, Images)
    assert large.shape == (3, 16, 16)
    assert np.array_equal(large.index, plain.index)
    assert np.array_equal(large.labels, plain.labels)  # type: ignore[arg-type]
    back = torch.nn.functional.avg_pool2d(large.batch(range(500)).image[:, :1], 2)
    assert (back - plain.batch(range(500)).image).abs().mean() < 0.1
    assert load_images("digits", size=8, channels=1).fingerprint == load_images("digits").fingerprint
