"""`scoreline systems`."""

from __future__ import annotations

from typing import Any

import pytest

from scoreline.core.systems import SYSTEMS

COLUMNS = {"id", "name", "paper", "module", "tests", "claim", "page", "state"}


def test_all_48_with_every_column(scoreline: Any) -> None:
    rows = scoreline("systems", "--json").json
    assert [row["id"] for row in rows] == [f"{n:02d}" for n in range(1, 49)]
    assert all(row.keys() >= COLUMNS for row in rows)
    lines = scoreline("systems").out.splitlines()
    assert set(lines[0].split()) == COLUMNS
    assert len(lines) == 1 + 48 + 1
    for system, line in zip(SYSTEMS, lines[1:]):
        assert line.startswith(system.id)
        for words in (system.name, system.paper, system.module.removeprefix("scoreline.")):
            assert words in line  # nothing is cut short
    assert "planned" in lines[-1] or "works" in lines[-1]


@pytest.mark.parametrize("typed", ["09", "9", "enhanced-ddpm"])
def test_one_system(scoreline: Any, typed: str) -> None:
    (row,) = scoreline("systems", typed, "--json").json
    assert (row["id"], row["name"]) == ("09", "Enhanced DDPM")
    text = scoreline("systems", typed).out
    for words in ("09  Enhanced DDPM", "arXiv:2412.14422", "scoreline.samplers.ddpm", row["state"]):
        assert words in text
    assert all(f"missing {reason}" in text for reason in row["missing"])


def test_a_system_that_is_not_there(scoreline: Any) -> None:
    scoreline("systems", "49").fails(2, "system '49'")
    scoreline("systems", "enhanced-dpm").fails(2, "did you mean 'enhanced-ddpm'?")
