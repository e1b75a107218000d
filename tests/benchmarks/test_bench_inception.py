"""The benchmark of the Inception network runs, and says when features differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(script):
    """The script."""
    return script("bench_inception")


def test_inception(bench, capsys, tmp_path):
    file = tmp_path / "inception.json"
    result = bench.main(["--quick", "--rounds", "1", "--json", str(file)], peer=bench.stand_in)
    shown = capsys.readouterr().out
    assert "batches of 2 x 3 x 75 x 75; the peer is stand-in" in shown
    assert "float32 features equal the peer's" in shown
    assert json.loads(file.read_text()) == result
    assert set(result["seconds"]) == {"stand-in", "float32", "bfloat16"}
    assert result["faster"]["stand-in"] == 1.0
    assert 0 < result["relative_difference"]["float32"] < 1e-5 < result["relative_difference"]["bfloat16"] < 0.1
    assert result["compile_seconds"] == {}


def test_other_features_are_said(bench, capsys, monkeypatch):
    sides = {"stand-in": 0.0, "float32": 2e-5}
    ones = dict.fromkeys(sides, 1.0)
    measured = {"seconds": ones, "faster": ones, "images_per_second": ones, "relative_difference": sides}
    monkeypatch.setattr(bench, "measure", lambda *_: measured | {"compile_seconds": {"float32": 70.0}})
    assert not bench.main(["--quick"], peer=bench.stand_in)["equal"]
    shown = capsys.readouterr().out
    assert "DIFFER FROM" in shown
    assert "compiling float32 took 70 s, in no ratio" in shown


def test_a_peer_that_cannot_be_imported_is_replaced(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_fid", None)
    assert bench.find_peer() == ("stand-in", bench.stand_in)
