"""`scoreline data`: the verb; what it reads is tested in tests/data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def test_digits(scoreline: Any, tmp_path: Path) -> None:
    answer = scoreline("data", "digits", "--split", "test", "--out", "grid.png", "--json")
    found = answer.json
    assert (found["count"], found["shape"], found["grid"]) == (500, [1, 8, 8], "grid.png")
    assert Image.open(tmp_path / "grid.png").size[0] > 80
    text = scoreline("data", "digits").out
    for words in ("1797", "1 x 8 x 8", "-1 to 1", "0: 178"):
        assert words in text
    assert (tmp_path / "data.png").exists()


def test_a_bad_picture_is_named_or_counted(scoreline: Any, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(folder / f"{i}.png")
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    scoreline("data", folder).fails(1, "1.png")
    assert not (tmp_path / "data.png").exists()
    answer = scoreline("data", folder, "--on-bad-image", "skip", "--json")
    assert (answer.code, answer.json["count"]) == (0, 2)
    assert answer.json["skipped"][0]["name"].endswith("1.png")
    assert "1.png" in scoreline("data", folder, "--on-bad-image", "skip").out


def test_refusals(scoreline: Any, tmp_path: Path) -> None:
    scoreline("data", "digitz").fails(2, "data set 'digitz': did you mean 'digits'?")
    scoreline("data", "./nowhere").fails(1, "nowhere", "no such file or folder")
    scoreline("data", "digits", "--out", "grid.jpg").fails(2, ".png")
    scoreline("data", "digits", "--split", "validation").fails(2, "validation")
    scoreline("data", "digits", "--channels", "2").fails(2, "channels")
    scoreline("data", "digits", "--on-bad-image", "skp").fails(2, "did you mean 'skip'?")
    (tmp_path / "file").write_text("in the way")
    scoreline("data", "digits", "--out", "file/grid.png").fails(1, "file")
