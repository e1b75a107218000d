"""The benchmarks of whole runs start, agree with themselves and print what they promise; stand-ins for the peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.encoder import Encoder

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(script):
    """Imports a file of the benchmarks' folder."""
    return script


class Small(Encoder):
    """Eight sums of pixels."""

    dim, tap = 8, "2048"

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    @property
    def protocol(self) -> dict[str, str]:
        return {"features": "inception-2015", "tap": "2048", "weights": "x"}

    def features(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.linspace(-1, 1, x[0].numel() * 8).view(-1, 8)
        return self.factor * (x.flatten(1) @ weights)


def test_folder_to_fid(bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = bench("bench_folder_to_fid")

    def ours(work: Path) -> dict[str, Any]:
        return folder.run_ours("ours", work, 0, Small())

    def peer(work: Path) -> dict[str, Any]:
        result = folder.run_ours("pytorch-fid", work, 0, Small(1.25))
        return result | {"pass": 2 * result["pass"]}

    file = tmp_path / "folder.json"
    found = folder.main(["--quick", "--json", str(file)], sides={"ours": ours, "pytorch-fid": peer})
    shown = capsys.readouterr().out
    assert json.loads(file.read_text()) == found
    assert "10 JPEGs of 48 pixels to FID" in shown
    assert "features of ours to pytorch-fid: within 2.0e-01 (aim 1e-5)" in shown
    assert found["agreement"] == {"ours to pytorch-fid": pytest.approx(0.2)}
    for side in ("ours", "pytorch-fid"):
        figures = found["sides"][side]
        assert figures["images_per_second"] == pytest.approx(10 / figures["pass"])
    assert found["sides"]["pytorch-fid"]["fid"] == pytest.approx(1.25**2 * found["sides"]["ours"]["fid"], rel=1e-5)


def test_pictures_are_jpegs_and_the_same_for_all(bench: Any, tmp_path: Path) -> None:
    folder = bench("bench_folder_to_fid")
    for name in ("a", "b"):
        folder.make_pictures(tmp_path / name, 3, 32, 0)
    files = sorted((tmp_path / "a").iterdir())
    assert [file.suffix for file in files] == [".jpg"] * 3
    assert all(file.read_bytes() == (tmp_path / "b" / file.name).read_bytes() for file in files)


def test_a_side_that_fails_says_why(bench: Any, tmp_path: Path) -> None:
    folder = bench("bench_folder_to_fid")
    with pytest.raises(SystemExit, match=r"(?s)ours failed:.*weights\.pth"):
        folder.apart("ours", tmp_path, 0, 1)


def test_memory(bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    memory, file = bench("bench_memory"), tmp_path / "memory.json"
    found = memory.main(["--quick", "--json", str(file)])
    assert json.loads(file.read_text()) == found
    assert "20,000" in capsys.readouterr().out
    assert list(found["sizes"]) == ["2000", "20000"]
    memory.write_features(tmp_path / "x.npy", 30, 4, 1)
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (30, 4)
    assert x.std() > 0.1
