"""The benchmark of a training turn runs every few-step method, and counts the evaluations of one that is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scoreline.fewstep.recipe import few_step_methods


def test_every_method_is_measured(script: Any, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    script("bench_distill_step").main(["--quick", "--rounds", "1", "--json", str(file)])
    record = json.loads(file.read_text())
    rows = {row["method"]: row for row in record["rows"]}
    assert list(rows) == few_step_methods()
    for row in rows.values():
        assert row["alone"] > 0
        assert row["turn"] > 0
        assert row["forward"] >= row["backward"] >= 1
        assert row["calls"]
    # One step of Heun asks the teacher twice, then target and student once each; the student's goes back.
    assert (rows["cd"]["forward"], rows["cd"]["backward"]) == (4, 1)
