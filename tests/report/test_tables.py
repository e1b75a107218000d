"""CSV for spreadsheets and the table for the terminal."""

from __future__ import annotations

import csv
import io
import json

import pytest

from scoreline.report import csv_text, series_names, text_table


def test_csv_comes_back_exactly(made_up):
    results = made_up(samplers=("heun", 'a, "quoted" <name>'))
    rows = list(csv.DictReader(io.StringIO(csv_text(results))))
    assert len(rows) == len(results["arms"])
    for row, arm in zip(rows, results["arms"]):
        assert (row["name"], row["sampler"], row["grid"]) == (arm["name"], arm["sampler"], arm["grid"])
        assert json.loads(row["settings"]) == arm["settings"]
        for column in ("budget", "nfe", "nfe_max", "macs", "seconds", "images_per_second", "peak_memory"):
            assert float(row[column]) == arm[column]
        for score, measured in arm["scores"].items():
            for part in ("mean", "low", "high"):
                assert float(row[f"{score} {part}"]) == measured[part]


def test_csv_leaves_missing_numbers_empty(made_up):
    results = made_up()
    results["arms"][0]["scores"]["ode-rmse"] = {"values": [], "mean": float("nan"), "low": None, "high": None}
    del results["arms"][1]["scores"]["fd-pixel"]
    first, second, *_ = csv.DictReader(io.StringIO(csv_text(results)))
    assert first["ode-rmse mean"] == first["ode-rmse low"] == second["fd-pixel mean"] == ""


def test_variants_of_a_sampler_are_told_apart():
    def arm(sampler, budget, **settings):
        return {"sampler": sampler, "budget": budget, "settings": settings, "grid": "karras"}

    arms = [arm("heun", 5, churn=0), arm("heun", 5, churn=4), arm("ddim", 5, eta=0), arm("ddim", 10, eta=1)]
    assert series_names(arms) == ["heun (churn=0)", "heun (churn=4)", "ddim", "ddim"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_terminal_table(made_up, seeds):
    from rich.console import Console

    results = made_up(samplers=("heun", "[bold]odd[/bold]"), budgets=(5, 10), seeds=seeds)
    results["arms"][0]["scores"]["fid@digits"]["mean"] = float("nan")
    results["arms"][1]["nfe_max"] = 31
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(text_table(results))
    text = console.export_text()
    assert "[bold]odd[/bold]" in text
    assert "9 (max 31)" in text
    assert "–" in text
    assert text.count("[0.") == (0 if len(seeds) == 1 else 8)
    assert text_table(results).row_count == 4
