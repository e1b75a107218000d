"""`scoreline claims`: the list, the smoke form, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scoreline.claims import engine
from scoreline.claims.enhanced_ddpm import CLAIM
from scoreline.core.systems import SYSTEMS

Call = Callable[..., Any]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Claim 09 with its training and sampling left out."""
    calls: list[tuple[str, int]] = []

    def run(self: Any, arm: str, seed: int, scale: str, memo: Any) -> dict[str, float | None]:
        calls.append((arm, seed))
        names = ("frechet_distance", "label_accuracy", "seconds_per_image", "nfe", "reconstruction_distance")
        return dict.fromkeys(names, 1.0) | {engine.BUDGET: 3}

    monkeypatch.setattr(type(CLAIM), "run", run)
    return calls


def test_claims_without_a_number_are_listed(scoreline: Call) -> None:
    answer = scoreline("claims", "--json")
    assert answer.code == 0
    assert "09" in [record["id"] for record in answer.json]
    assert "Enhanced DDPM" in scoreline("claims").out


def test_the_smoke_form_stores_nothing(scoreline: Call, quick: list[Any]) -> None:
    answer = scoreline("claims", "9", "--scale", "smoke")
    assert answer.code == 0
    assert "about" in answer.err.splitlines()[0]
    assert "nothing is stored" in answer.out
    assert {seed for _, seed in quick} == {0}
    assert list(Path.cwd().iterdir()) == []


def test_a_result_lands_in_the_working_directory(scoreline: Call, quick: list[Any]) -> None:
    answer = scoreline("claims", "enhanced-ddpm", "--seeds", "0:3", "--json")
    assert answer.code == 0
    assert answer.err == ""
    assert answer.json["command"] == "scoreline claims enhanced-ddpm --seeds 0:3 --json"
    assert answer.json["stored"] == ["claims/09.json"]
    assert Path("claims/09.json").exists()
    assert len(quick) == 3 * len(CLAIM.arms)
    again = scoreline("claims", "09", "--seeds", "0:3")
    assert len(quick) == 3 * len(CLAIM.arms)
    assert "result: claims/09.json" in again.out
    assert "verdict:" in again.out


def test_what_is_refused(scoreline: Call, quick: list[Any]) -> None:
    scoreline("claims", "09", "--seeds", "0,1").fails(2, "at least 3")
    scoreline("claims", "09", "--seeds", "zero").fails(2, "seeds", "zero")
    scoreline("claims", "49").fails(2, "system", "'49'")
    scoreline("claims", "09", "--scale", "huge").fails(2, "huge", "smoke")
    scoreline("claims", "09", "--scale", "smoke", "--store").fails(2, "smoke test is no measurement")
    assert quick == []
    assert list(Path.cwd().iterdir()) == []


def test_a_claim_that_is_not_written_is_named(scoreline: Call) -> None:
    from scoreline.claims.board import written

    missing = next((row for row in SYSTEMS if row.id not in written()), None)
    if missing is not None:
        scoreline("claims", missing.id).fails(2, missing.id, "not written yet", "09")
