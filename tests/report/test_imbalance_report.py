"""What `scoreline imbalance` writes: CSV, JSON and a picture that show the numbers they were given."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from scoreline.core.errors import ArtefactError
from scoreline.evaluate.imbalance import examine
from scoreline.metrics.binormal import Binormal
from scoreline.metrics.label_noise import annotate
from scoreline.report.imbalance_report import choices_csv, imbalance_figure, metrics_csv, write_imbalance


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    s, y = Binormal().sample(60, 4000, seed=0)
    noisy = annotate(y, 0.1, 0.005, seed=1)
    return {
        "clean": examine(s, y, resamples=60),
        "noisy": examine(s, noisy, e1=0.1, e0=0.005, at_prevalence=0.1, resamples=60),
        "none": examine(s.new_tensor([0.9, 0.8, 0.1]), s.new_tensor([0, 0, 1]), criterion="accuracy", resamples=60),
    }


def test_tables_hold_every_metric_and_criterion(results: dict[str, Any]) -> None:
    for result in results.values():
        rows = list(csv.DictReader(io.StringIO(metrics_csv(result))))
        assert [row["metric"] for row in rows] == [m["name"] for m in result["metrics"]]
        for row, m in zip(rows, result["metrics"]):
            assert float(row["value"]) == m["value"]
            assert (row["corrected"] == "") == (m["corrected"] is None)
            if m["interval"]:
                assert [float(row["low"]), float(row["high"])] == m["interval"]
        rows = list(csv.DictReader(io.StringIO(choices_csv(result))))
        assert [float(row["threshold"]) for row in rows] == [c["threshold"] for c in result["choices"]]


def test_the_picture_shows_the_numbers(results: dict[str, Any]) -> None:
    for name, result in results.items():
        left, middle, right = imbalance_figure(result).axes
        drawn = {line.get_label(): line for line in left.lines}
        assert list(drawn["mcc"].get_ydata()) == result["curve"]["mcc"]
        assert list(middle.lines[0].get_xdata()) == result["curve"]["recall"]
        assert [bool(ax.get_xlabel() and ax.get_ylabel() and ax.get_title(loc="left")) for ax in (left, middle, right)]
        assert any("given" in text.get_text() for text in right.texts) == (name == "noisy")
        assert ("corrected" in left.get_ylabel()) == (name == "noisy")
        shown = [text.get_text() for ax in (left, right) for text in ax.get_xticklabels()]
        assert not any("$" in text for text in shown)


def test_files_are_written_whole(results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("noisy", "none"):
        result = results[name]
        files = write_imbalance(result, tmp_path / name)
        assert [file.name for file in files] == ["imbalance.json", "metrics.csv", "thresholds.csv", "imbalance.png"]
        assert all(file.stat().st_size > 100 for file in files)
        stored = json.loads(files[0].read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
        assert stored["cells"] == result["cells"]
    assert json.loads((tmp_path / "none/imbalance.json").read_text())["threshold"] == "inf"

    def broken(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(ArtefactError, match="disk is full"):
        write_imbalance(results["clean"], tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []
