"""What the board shows, and that pages hold the numbers of the stored results and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pages
from scoreline.claims.board import board, find_claim, result_page, written
from scoreline.claims.engine import VERDICTS, measure
from scoreline.core.errors import InputError
from scoreline.core.files import write_json
from scoreline.core.systems import SYSTEMS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_written_claim_is_found_under_its_system() -> None:
    assert "09" in written()
    for row in SYSTEMS:
        if row.id in written():
            claim = find_claim(row.slug)
            assert claim.id == row.id == claim.system
            assert claim.paper == row.paper
            assert len(claim.seeds) >= 3
            assert len(set(claim.arms)) == len(claim.arms) > 1
            assert {"laptop", "smoke"} <= claim.seconds.keys()
            assert claim.seconds["laptop"] * len(claim.seeds) <= 40 * 60
    with pytest.raises(InputError, match="Known"):
        find_claim("99")


def test_a_stored_result_of_another_source_is_stale(toy: Callable[..., Any], tmp_path: Path) -> None:
    result = measure(toy(), out=tmp_path / "out", quiet=True)
    (fresh,) = [record for record in board(tmp_path / "none") if record["id"] == "09"]
    assert fresh["verdict"] is None
    write_json(tmp_path / "results/09.json", {k: v for k, v in result.items() if k != "stored"})
    (record,) = [record for record in board(tmp_path / "results") if record["id"] == "09"]
    assert (record["verdict"], record["arms"], record["seeds"]) == ("holds", 2, 3)
    assert record["stale"]  # its rule was the toy's, not that of claim 09


def test_a_result_as_a_page(toy: Callable[..., Any], tmp_path: Path) -> None:
    text = result_page(measure(toy(), out=tmp_path, command="scoreline claims 09", quiet=True))
    assert text.startswith("**Holds.** b is larger than a.\n")
    assert "`scoreline claims 09`" in text
    assert "| b is larger than a. | yes |" in text
    assert "| b | 11 ± 10 | 7 |" in text
    assert "- everything" in text


def test_pages_show_the_stored_results() -> None:
    for name, text in pages.measured_pages(DOCS).items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"{name} shows other numbers; run `make docs`"


def test_only_the_measured_part_of_a_page_is_rewritten(toy: Callable[..., Any], tmp_path: Path) -> None:
    result = measure(toy(), out=tmp_path, quiet=True)
    text = "# A\n\n## Claim\n\nx\n"
    once = pages.claim_section(text, result)
    assert once.startswith(f"{text}\n## Measured\n\n**Holds.**")
    assert pages.claim_section(once, result) == once
    assert pages.claim_section(once, None) == text


def test_results_in_the_package_are_results() -> None:
    for record in board():
        if record["verdict"] is not None:
            assert record["verdict"] in VERDICTS
            assert record["seeds"] >= 3
