"""The measured effects: the page shows what was measured, the changes are what they say, the script runs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
PAGE, RECORD = ROOT / "docs/what-your-fid-means.md", FOLDER / "results/effects.json"


@pytest.fixture
def effects(monkeypatch: pytest.MonkeyPatch):
    """The script, imported as running it would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("effects")
    del sys.modules["effects"]


def test_the_page_shows_the_record_and_nothing_else(effects):
    page, record = PAGE.read_text(encoding="utf-8"), json.loads(RECORD.read_text(encoding="utf-8"))
    assert not record["quick"]
    assert effects.written(page, record) == page


def test_tables_replace_what_stood_in_their_place(effects):
    record = {
        "network": "some network",
        "tables": {"a": effects.table(["x", "y"], [["one", 0.123456], ["two", 12345.6]])},
    }
    page = "before\n\n% effects: a\n| old |\n| --- |\n\nafter\n\n% effects: end\n"
    written = effects.written(page, record)
    assert written == (
        "before\n\n% effects: a\n| x | y |\n| --- | --- |\n| one | 0.123 |\n| two | 12346 |\n\nafter\n\n"
        "% effects: end\nThe Inception here: some network.\n"
    )
    assert effects.written(written, record) == written
    for wrong in ("% effects: end\n", page + "\n% effects: b\n"):
        with pytest.raises(ValueError, match="places for"):
            effects.written(wrong, record)


def test_jpeg_loses_more_at_lower_quality_and_shrinking_differs_by_rule(effects):
    levels = effects.tiles(3, 1)
    assert levels.shape == (3, 3, 160, 160)
    assert levels.dtype == torch.uint8
    assert np.array_equal(levels, effects.tiles(3, 1))
    assert not np.array_equal(levels, effects.tiles(3, 2))
    base = effects.shrunk(levels, "bicubic, antialiased")
    assert base.shape == (3, 3, 64, 64)
    losses = [float((effects.jpeg(base, quality) - base).square().mean()) for quality in (95, 75, 50)]
    assert 0 < losses[0] < losses[1] < losses[2]
    off = {
        rule: float((effects.shrunk(levels, rule) - base).square().mean())
        for rule in ("bilinear, antialiased", "bilinear, not antialiased", "nearest")
    }
    assert 0 < off["bilinear, antialiased"] < off["bilinear, not antialiased"] < off["nearest"]


def test_it_runs(effects, capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    record = effects.main(["--quick", "--json", str(tmp_path / "effects.json"), "--page", str(page)])
    assert "randomly initialised Inception-2015 (seed 0), tap 192, 2 tiles a set" in capsys.readouterr().out
    assert json.loads((tmp_path / "effects.json").read_text()) == record
    assert effects.written(PAGE.read_text(encoding="utf-8"), record) == page.read_text(encoding="utf-8")
    first = record["tables"]["resize"]["rows"][0]
    assert first[0] == "tf1"
    assert first[1] == pytest.approx(0, abs=1e-6)
    assert first[2] == pytest.approx(1)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("wrong", [["--tiles", "1"], ["--weights", "no-such-file.pth"]])
def test_what_cannot_be_is_refused_before_any_work(effects, capsys, wrong):
    with pytest.raises(SystemExit) as stopped:
        effects.main(wrong)
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err
