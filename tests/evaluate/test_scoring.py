"""Saved statistics; the rest is in tests/cli/test_score.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.moments import Moments
from scoreline.evaluate.scoring import read_statistics, score_sets, write_statistics
from scoreline.nn.features import Pixels


def test_statistics_come_back(tmp_path: Path) -> None:
    x = torch.randn(50, 12, dtype=torch.float64)
    write_statistics(tmp_path / "s.npz", Moments.of(x), Pixels((3, 2, 2)))
    found = read_statistics(tmp_path / "s.npz")
    assert found is not None
    torch.testing.assert_close(found.mean, x.mean(0))
    torch.testing.assert_close(found.cov, x.T.cov())
    assert (found.count, found.features, found.weights) == (50, "pixels", "none")
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"mu", "sigma", "count", "features", "weights"}


def test_what_is_no_statistics_is_left_to_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    for source in (str(tmp_path / "images.npz"), "digits", str(tmp_path), "none.npz"):
        assert read_statistics(source) is None


def test_damaged_statistics(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.zeros(4), sigma=np.eye(4))
    whole = (tmp_path / "s.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_statistics(tmp_path / "cut.npz")
    np.savez(tmp_path / "text.npz", mu=np.array(["a"] * 4), sigma=np.eye(4))
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_statistics(tmp_path / "text.npz")


def test_every_score_carries_cost_and_protocol_and_unlike_ones_do_not_compare() -> None:
    found = score_sets(
        "digits", "digits", features="pixels", metrics=["fd", "kid"], generated_split="train", quiet=True
    )
    for score in found["scores"]:
        assert score["cost"]["seconds"] > 0
        assert score["protocol"]["reference_fingerprint"]
    prints = [score["protocol"] for score in found["scores"]]
    assert prints[0] != prints[1]


def test_nothing_is_opened_for_a_metric_that_is_misspelt() -> None:
    with pytest.raises(InputError, match="did you mean 'prdc'"):
        score_sets("./nowhere", "./nowhere", metrics=["prcd"], quiet=True)
