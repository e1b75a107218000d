"""`scoreline --help` answers at once: it does not import torch."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "accelerate", "torchmetrics", "datasets", "diffusers")


def answer(*arguments: str) -> tuple[float, str]:
    """Seconds and output of one call in a process of its own, interpreter start included."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "scoreline", *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    return seconds, done.stdout


def test_help_answers_in_under_half_a_second() -> None:
    # The best of several: other work on the machine can only make it slower.
    seconds, text = min(answer("--help") for _ in range(5))
    assert seconds < 0.5
    assert "scoreline compare digits" in text


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["--version"]])
def test_nothing_heavy_is_imported_for_an_answer_in_words(arguments: list[str]) -> None:
    code = f"""
import sys
from scoreline.cli import main
try:
    code = main({arguments!r})
except SystemExit as end:
    code = end.code
heavy = sorted(set(sys.modules) & set({HEAVY!r}))
print("heavy:", heavy, "code:", code or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: [] code: 0"
