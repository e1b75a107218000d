"""`scoreline imbalance`: files in, table, JSON, CSV and picture out; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scoreline.metrics.binary_curves import auroc
from scoreline.metrics.binormal import Binormal

SCORES, LABELS = Binormal().sample(50, 1950, seed=0)


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = [f"{int(y)},{float(s):.9f}" for s, y in zip(SCORES, LABELS)]
    (tmp_path / "rows.csv").write_text("fraud,model\n" + "\n".join(rows))
    return "rows.csv"


QUICK = ("--resamples", "50")


def test_a_table_of_labels_and_scores(scoreline: Any, table: str, tmp_path: Path) -> None:
    answer = scoreline("imbalance", table, *QUICK, "--json")
    assert answer.code == 0, answer.err
    found = {m["name"]: m for m in answer.json["metrics"]}
    assert found["auroc"]["value"] == pytest.approx(auroc(SCORES, LABELS), abs=1e-6)
    assert answer.json["positives"] == 50
    assert answer.json["command"].startswith("scoreline imbalance rows.csv")
    assert answer.json["files"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]  # nothing was written unasked
    text = scoreline("imbalance", table, *QUICK).out
    for words in (
        "50 of 2,000 rows",
        "2.500%",
        "f1-then-g-mean",
        "what stays of the metric",
        "trusted to rank",
        "standard error",
    ):
        assert words in text
    assert "corrected" not in text


def test_noise_prevalence_and_files(scoreline: Any, table: str, tmp_path: Path) -> None:
    options = ("--miss-rate", "0.1", "--false-rate", "0.002", "--at-prevalence", "0.01", "--bootstrap", "plain")
    answer = scoreline("imbalance", table, *options, *QUICK, "--out", "made")
    assert answer.code == 0, answer.err
    for words in ("corrected", "at 0.01", "of the annotated positives are true", "written: made/imbalance.png"):
        assert words in answer.out
    stored = json.loads((tmp_path / "made/imbalance.json").read_text())
    assert stored["noise"]["false_rate"] == 0.002
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "imbalance.json", "metrics.csv", "thresholds.csv", "imbalance.png",
    }  # fmt: skip


def test_two_files_and_encodings(scoreline: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", LABELS.numpy() * 2 - 1)
    np.savez(tmp_path / "scores.npz", score=SCORES.numpy())
    answer = scoreline("imbalance", "labels.npy", "scores.npz", "--threshold", "2", *QUICK, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["threshold"] == 2
    assert "labels are -1 and 1" in answer.json["warnings"][0]
    np.save(tmp_path / "digits.npy", np.where(LABELS.numpy(), 8, 3))
    scoreline("imbalance", "digits.npy", "scores.npz").fails(2, "3 and 8", "--positive")
    found = scoreline("imbalance", "digits.npy", "scores.npz", "--positive", "8", *QUICK, "--json")
    assert found.json["positives"] == 50


def test_the_example_with_its_study(scoreline: Any) -> None:
    answer = scoreline("imbalance", "binormal", "--resamples", "20")
    assert answer.code == 0, answer.err
    for words in ("492 of 284,807 rows", "chosen by, on annotated labels", "cost lost"):
        assert words in answer.out


def test_refusals(scoreline: Any, table: str, tmp_path: Path) -> None:
    scoreline("imbalance").fails(2, "LABELS")
    scoreline("imbalance", "binornal").fails(2, "did you mean 'binormal'?")
    scoreline("imbalance", "nowhere.csv").fails(1, "nowhere.csv", "no such file")
    scoreline("imbalance", table, "--criterion", "f1-then-gmean").fails(2, "did you mean 'f1-then-g-mean'?")
    scoreline("imbalance", table, "--false-rate", "0.1").fails(2, "below the share of positives")
    scoreline("imbalance", table, "--miss-rate", "2").fails(2, "miss rate")
    scoreline("imbalance", table, "--label-column", "frau").fails(2, "did you mean 'fraud'?")
    scoreline("imbalance", table, "--resamples", "0").fails(2, "resamples")
    scoreline("imbalance", table, "--bootstrap", "stratifed").fails(2, "did you mean 'stratified'?")
    (tmp_path / "broken.csv").write_text("0,0.1\n1,\n")
    scoreline("imbalance", "broken.csv").fails(2, "row 2", "is no number")
    (tmp_path / "one.csv").write_text("0,0.1\n0,0.2\n")
    scoreline("imbalance", "one.csv").fails(2, "both classes")
    (tmp_path / "file").write_text("in the way")
    scoreline("imbalance", table, *QUICK, "--out", "file/made").fails(1, "file")
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "broken.csv", "one.csv", "file"}
