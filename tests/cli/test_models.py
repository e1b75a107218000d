"""`scoreline models`."""

from __future__ import annotations

from typing import Any

import pytest

from scoreline.core.artefact import read_header


def test_card_of_a_file(scoreline: Any, tiny: str) -> None:
    (card,) = scoreline("models", tiny, "--json").json
    assert card["kind"] == "denoiser"
    assert card["class"] == "preconditioned"
    assert card["data"] == "digits"
    assert card["fingerprint"] == read_header(tiny)["fingerprint"]
    text = scoreline("models", tiny).out
    assert card["fingerprint"] in text  # whole, so that it can be copied
    assert tiny in text


def test_the_models_that_come_with_scoreline(scoreline: Any) -> None:
    rows = {row["name"]: row for row in scoreline("models", "--json").json}
    trained = ["digits", "digits-eps", "digits-net", "digits-noisy-classifier", "digits-text"]
    students = {"digits-f-distill": 1, "digits-progressive-1": 1, "digits-progressive-2": 2}
    assert sorted(rows) == sorted([*trained, *students])
    for name, row in rows.items():
        if name in trained:
            assert row["command"].startswith(f"scoreline train {name}")
        assert row["data"] == "digits"
    lines = {line.split()[0]: line for line in scoreline("models").out.splitlines() if line}
    for name in rows:
        assert name in lines
    for name, steps in students.items():
        row = rows[name]
        assert row["sampling"]["steps"] == [steps]
        method = row["method"]
        assert row["command"].startswith(f"scoreline distill {method} --steps ")
        assert row["command"].endswith(f" --out runs/{method}")
        assert row["minutes on one core"] <= 30
        assert "/tmp/" not in str(row)
        assert f"{steps}-step student" in lines[name]


def test_none_is_said(scoreline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoreline.core.load.model_cards", dict)
    assert scoreline("models").out == "no models came with this installation\n"
    assert scoreline("models", "--json").json == []


def test_misspelt_and_missing(scoreline: Any) -> None:
    scoreline("models", "digit").fails(2, "model 'digit': did you mean 'digits'?")
    scoreline("models", "./none.safetensors").fails(1, "none.safetensors", "no such file")
