from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as sklearn_digits

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data import digits as digits_file
from scoreline.data import load_images
from scoreline.data.digits import load_digits
from scoreline.data.splits import choose

# These never change: every claim and score on digits rests on them.
FINGERPRINTS = {
    None: "bd3b29e543a22c8586d036b903a5c3b044fd241bcb3af2926ffd705c6aaa416f",
    "train": "aded3bb1125c8d5f49a9666ae243cba4f5b72e15b6054c4ced8de48b9a2aff59",
    "test": "cca4b1be673783887475dc008e71dbbc089a151ea127d6a1d56bfdf43987988a",
}


def test_the_digits_are_those_of_scikit_learn() -> None:
    images, labels = sklearn_digits(return_X_y=True)
    batch = load_digits().batch(range(1797))
    assert batch.image.dtype == torch.float32
    assert torch.equal(batch.image, torch.from_numpy(images / 8 - 1).float().view(-1, 1, 8, 8))
    assert batch.label is not None
    assert batch.label.tolist() == labels.tolist()
    assert batch.index.tolist() == list(range(1797))


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_fingerprints_are_fixed(split: str | None) -> None:
    assert load_images("digits", split=split).fingerprint == FINGERPRINTS[split]


def test_the_split_is_stratified_and_covers_everything_once() -> None:
    train, test = load_digits("train"), load_digits("test")
    assert (len(train), len(test)) == (1297, 500)
    assert sorted([*train.index, *test.index]) == list(range(1797))
    everything = load_digits().labels
    assert everything is not None
    assert test.labels is not None
    share = np.bincount(test.labels, minlength=10) - 500 * np.bincount(everything) / 1797
    assert np.abs(share).max() < 1
    batch = test.batch([0, 499])
    assert torch.equal(batch.image, load_digits().batch(batch.index).image)


def test_the_split_follows_the_written_rule() -> None:
    # The rule again, in other words: of the zeros, those whose SHA-256 of "0:index" is smallest.
    labels = load_digits().labels
    test = load_digits("test")
    assert labels is not None
    zeros = [i for i in range(1797) if labels[i] == 0]
    chosen = sorted(zeros, key=lambda i: hashlib.sha256(f"0:{i}".encode()).hexdigest())
    count = sum(labels[test.index] == 0)
    assert sorted(chosen[:count]) == [i for i in test.index if labels[i] == 0]


def test_wrong_split_and_wrong_data(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="did you mean 'train'"):
        load_digits("trian")
    monkeypatch.setattr(digits_file, "DIGITS_SHA256", "0" * 64)
    digits_file._table.cache_clear()
    try:
        with pytest.raises(ArtefactError, match="other digits"):
            load_digits()
    finally:
        digits_file._table.cache_clear()


def test_loading_imports_no_heavy_library() -> None:
    code = (
        "import sys; from scoreline.data import load_images; load_images('digits'); "
        "print(sorted({'sklearn', 'scipy', 'datasets', 'pyarrow', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_choose_gives_each_class_its_share() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 21])
    chosen = choose(np.arange(101), labels, 10)
    # Shares 4.95, 2.97, 2.08: the integer parts, and one more each for the two largest remainders.
    assert np.bincount(labels[chosen]).tolist() == [5, 3, 2]
    assert choose(np.arange(101), None, 10).sum() == 10
    assert (choose(np.arange(101), labels, 10, seed=1) != chosen).any()
    assert choose(np.arange(101), labels, 0).sum() == 0
    assert choose(np.arange(101), labels, 101).all()


def test_choose_depends_on_indices_not_on_order() -> None:
    index = np.arange(40)
    order = np.random.default_rng(0).permutation(40)
    labels = index % 3
    straight, shuffled = choose(index, labels, 13), choose(order, order % 3, 13)
    assert set(index[straight]) == set(order[shuffled])


def test_choose_refuses() -> None:
    with pytest.raises(InputError, match="between 0 and 4"):
        choose(np.arange(4), None, 5)
    with pytest.raises(InputError, match="more than once"):
        choose(np.array([1, 1, 2]), None, 1)
