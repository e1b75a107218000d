"""The benchmark of searches runs, and all its sides find the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_quick(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = script("bench_search").main(["--quick", "--json", str(tmp_path / "r.json")])
    assert result["same_values"] is True
    assert set(result["evaluations_per_second"]) == {"1", "2"}
    assert all(rate > 0 for rates in result["evaluations_per_second"].values() for rate in rates)
    assert result["speedup"]["1"] == 1.0
    assert json.loads((tmp_path / "r.json").read_text())["benchmark"] == "search"
    assert "evaluations/s" in capsys.readouterr().out
