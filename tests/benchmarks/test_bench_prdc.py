"""The benchmark of precision and recall runs, and its stand-in computes what the definition says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(script):
    """The script."""
    return script("bench_prdc")


def test_prdc(bench, capsys, tmp_path):
    file = tmp_path / "prdc.json"
    result = bench.main(["--quick", "--rounds", "1", "--json", str(file)], peer=bench.literal)
    shown = capsys.readouterr().out
    assert "N = M = 1500, k = 5, strict, float64; the peer is stand-in" in shown
    assert "d = 16: the same counts; ours is under 1 GiB" in shown
    assert json.loads(file.read_text()) == result
    (figures,) = result["dims"]
    assert figures["same_counts"]
    assert 0 < figures["counts"]["ours"]["recall"] < 1500
    assert figures["seconds"]["ours"]["ratio"] == 1.0


def test_other_counts_are_said(bench, capsys):
    def wrong(real, generated, k):
        values = bench.literal(real, generated, k)
        return {**values, "recall": values["recall"] - 1 / len(real)}

    result = bench.main(["--quick", "--rounds", "1"], peer=wrong)
    assert "COUNTS DIFFER" in capsys.readouterr().out
    assert not result["dims"][0]["same_counts"]


def test_memory_is_what_the_run_adds():
    """In a process of its own: here other tests' memory may be given back in the middle."""
    code = "import time, numpy as np, bench_prdc as b; "
    code += "print(b.extra_memory(lambda: (np.ones(10_000_000), time.sleep(0.3))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert 60e6 < int(done.stdout) < 200e6
