"""The benchmark of AUPIMO runs, and its literal side is AUPIMO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scoreline.metrics.aupimo import aupimo

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(script):
    """The script."""
    return script("bench_aupimo")


@pytest.mark.filterwarnings("ignore:AUPIMO")
def test_the_literal_side_counts_what_the_definition_says(bench) -> None:
    maps, masks = bench.defects(3, 2, 32)
    bounds = (5e-3, 5e-2)
    t = torch.linspace(float(maps[:3].min()), float(maps[:3].max()), 200, dtype=torch.float64).float()
    above = maps[:, None] >= t[:, None, None]
    shared = above[:3].double().mean((2, 3)).mean(0).numpy()
    recall = ((above & masks[:, None]).sum((2, 3)) / masks.sum((1, 2))[:, None]).numpy()[3:]
    ends = [int(np.abs(shared - level).argmin()) for level in (bounds[1], bounds[0])]
    z, y = np.log(shared[ends[0] : ends[1] + 1]), recall[:, ends[0] : ends[1] + 1]
    expected = -np.trapezoid(y, z, axis=1) / np.log(10)
    found = bench.literal(maps.numpy(), masks.numpy(), 200, bounds)
    np.testing.assert_allclose(found[3:], expected, rtol=1e-6)
    ours = aupimo(maps, masks, 200, fpr_bounds=bounds, force=True).scores
    np.testing.assert_allclose(found[3:], ours[3:], rtol=1e-9)
    assert np.isnan(found[:3]).all()


def test_the_benchmark_runs(bench, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "aupimo.json"

    def stand_in(maps, masks, count, bounds):
        return aupimo(maps, masks, count, fpr_bounds=bounds, force=True).scores

    result = bench.main(["--quick", "--rounds", "1", "--json", str(file)], peer=stand_in)
    shown = capsys.readouterr().out
    assert "AUPIMO of 12 maps of 64 x 64, K = 3,000" in shown
    assert "first call, with any compilation: plain" in shown
    assert json.loads(file.read_text()) == result
    assert set(result["seconds"]) == {"plain", "fast", "exact", "whole curves", "literal", "original"}
    assert result["seconds"]["plain"]["ratio"] == 1.0
    assert result["difference"]["original"] == 0
    assert result["difference"]["literal"] < 1e-12
    assert result["difference"]["fast"] < 1e-2
