"""A claim of three lines in a module of its own, so that its rule can be changed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TOY = """
from scoreline.claims.engine import Claim, Part, settle


class Toy(Claim):
    system = "09"
    statement = "b is larger than a."
    arms = ("a", "b")
    seeds = (0, 1, 2)
    seconds = {"laptop": 1.0, "smoke": 1.0}
    shrunk = ("everything",)

    def __init__(self):
        self.calls, self.made, self.stop_at = [], [], None

    def run(self, arm, seed, scale, memo):
        if self.stop_at == (arm, seed):
            raise KeyboardInterrupt
        self.calls.append((arm, seed))
        base = memo("base", lambda: self.made.append(seed) or 10.0 * seed)
        return {"value": base + (arm == "b"), "unknown": None, "training_evaluations": 7}

    def verdict(self, numbers):
        parts = [Part(self.statement, all(b > a for a, b in zip(numbers["a"]["value"], numbers["b"]["value"])), "")]
        return settle(parts), parts


CLAIM = Toy()
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """toy() is a new instance of the claim; toy(old, new) changes its source first."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    text = TOY

    def make(old: str = "", new: str = "") -> Any:
        nonlocal text
        assert old in text
        text = text.replace(old, new) if old else text
        (folder / "toy_claim.py").write_text(text, encoding="utf-8")
        sys.modules.pop("toy_claim", None)
        importlib.invalidate_caches()
        # Two states of a file written within one second look the same to the cache of compiled modules.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return importlib.import_module("toy_claim").Toy()

    yield make
    sys.modules.pop("toy_claim", None)
