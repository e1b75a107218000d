"""The ledger keeps what was finished, whatever happens while it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from scoreline.core.errors import ArtefactError
from scoreline.evaluate.ledger import Ledger


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/ledger.jsonl"
    ledger = Ledger(path, {"a": 1})
    ledger.add("one", value=1.5, nested={"x": [1, None]})
    ledger.add("two", value=2)
    again = Ledger(path, {"a": 1})
    assert "one" in again
    assert "three" not in again
    assert again["one"] == {"key": "one", "value": 1.5, "nested": {"x": [1, None]}}
    assert ledger.rows == again.rows


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_dropped_and_the_next_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, {})
    ledger.add("one", value=1)
    ledger.add("two", value=2)
    path.write_bytes(path.read_bytes()[:-cut])
    again = Ledger(path, {})
    assert list(again.rows) == ["one"]
    again.add("two", value=3)
    assert [Ledger(path, {})[key]["value"] for key in ("one", "two")] == [1, 3]


def test_damage_before_the_last_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path, {}).add("one", value=1)
    for damage in (b"{}\n", b"[1]\n", b"what\n", b"\xff\n"):
        path.write_bytes(b'{"key": "zero"}\n' + damage + b'{"key": "two"}\n')
        with pytest.raises(ArtefactError, match="line 2 is damaged"):
            Ledger(path, {})


def test_another_job_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path, {"count": 3, "labels": (1, 2), "old": 1})
    Ledger(path, {"count": 3, "labels": [1, 2], "old": 1})  # JSON knows no tuples
    with pytest.raises(ArtefactError, match="they differ in count, new, old"):
        Ledger(path, {"count": 4, "labels": [1, 2], "new": 1})
