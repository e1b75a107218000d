"""The benchmark of DPM-Solver-v3's estimation runs, and its sides compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def test_it_runs_and_both_orders_of_work_agree(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = script("bench_statistics").main(["--quick", "--rounds", "1", "--json", str(tmp_path / "r.json")])
    assert record["difference"] < 1e-3
    assert set(record["points_per_second"]) == {"ours", "two passes", "forward"}
    assert "points/s" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["benchmark"] == "statistics"
