"""`scoreline anomaly`: folders in, a report out, and one clear line for everything that does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scoreline.metrics.aupimo import aupimo

Call = Callable[..., Any]
BOUNDS = ("--fpr-bounds", "2e-3,2e-2", "--route", "exact")


def write(folder: Path, seed: int, strength: float) -> None:
    draws = np.random.default_rng(seed)
    for i in range(12):
        mask = np.zeros((24, 24), dtype=np.uint8)
        kind = "good" if i < 6 else "crack"
        if i >= 6:
            mask[4:12, 3:14] = 255
        scores = draws.normal(size=(24, 24)) + strength * (1 + i % 3) * (mask > 0)
        file = folder / "maps" / kind / f"{i:03d}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, scores.astype(np.float32))
        if i >= 6:
            truth = Path("truth/crack") / f"{i:03d}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(truth)


@pytest.fixture
def folders(scoreline: Call) -> None:
    write(Path("padim"), 0, 0.6)
    write(Path("patchcore"), 1, 1.5)


def test_one_model(scoreline: Call, folders: None) -> None:
    answer = scoreline("anomaly", "patchcore/maps", "truth", "--unmasked", "normal", *BOUNDS, "--out", "made")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    maps, masks = [], []
    import torch

    for file in sorted(Path("patchcore/maps").rglob("*.npy")):
        maps.append(torch.from_numpy(np.load(file)))
        mask = torch.zeros(24, 24, dtype=torch.bool)
        mask[4:12, 3:14] = file.parent.name == "crack"
        masks.append(mask)
    expected = aupimo(maps, masks, fpr_bounds=(2e-3, 2e-2), route="exact").mean
    stored = json.loads(Path("made/results.json").read_text())
    assert stored["models"][0]["scores"]["aupimo"]["value"] == pytest.approx(expected, rel=1e-12)
    assert stored["models"][0]["name"] == "maps"
    assert f"{expected:.3g}" in answer.out
    assert "6 normal and 6 anomalous images, FPR 0.002 to 0.02" in answer.out
    assert "report: made/report.html" in answer.out
    assert "6 of 12 images have no mask" in answer.out


def test_several_models_as_json(scoreline: Call, folders: None) -> None:
    answer = scoreline(
        "anomaly", "padim/maps", "truth", "--compare-to", "patchcore/maps", "--unmasked", "normal", *BOUNDS, "--json"
    )
    assert answer.code == 0, answer.err
    found = answer.json
    # What the paths share at their end tells nobody apart.
    assert [model["name"] for model in found["models"]] == ["padim", "patchcore"]
    assert found["comparison"]["models"] == ["patchcore", "padim"]
    assert found["files"][-1] == "anomaly/report.html"
    named = scoreline(
        "anomaly", "padim/maps", "truth", "--compare-to", "patchcore/maps", "--unmasked", "normal", *BOUNDS,
        "--names", "A, B", "--test", "t", "--out", "second",
    )  # fmt: skip
    assert re.search(r"^A .*\nB ", named.out, re.M)
    assert "B has the best mean AUPIMO of 2 models" in named.out


def test_pictures_stand_under_the_maps(scoreline: Call, folders: None) -> None:
    for file in Path("padim/maps").rglob("*.npy"):
        picture = Path("pictures") / file.relative_to("padim/maps").with_suffix(".jpg")
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 48), (10, 200, 30)).save(picture)
    given = ("anomaly", "padim/maps", "truth", "--unmasked", "normal", *BOUNDS, "--images")
    assert scoreline(*given, "pictures").code == 0
    shown = np.asarray(Image.open(next(Path("anomaly/images").glob("*.png"))))
    assert np.abs(shown[-1, -1].astype(int) - (10, 200, 30)).max() < 8
    Path("pictures/crack/006.jpg").unlink()
    for name in ("007", "008", "009", "010", "011"):
        Path(f"pictures/crack/{name}.jpg").unlink()
    scoreline(*given, "pictures", "--out", "third").fails(2, "holds no picture", "crack/0")
    assert not Path("third").exists()


def test_the_built_in_example(scoreline: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoreline.claims import aupimo as claim

    small = claim.photo_tiles(0, train=20, normal=12, anomalous=5)
    monkeypatch.setattr(claim, "photo_tiles", lambda seed: small)
    answer = scoreline("anomaly", "photos", "--fpr-bounds", "1e-3,1e-2", "--route", "exact", "--out", "made")
    assert answer.code == 0, answer.err
    assert "12 normal and 5 anomalous images" in answer.out
    assert Path("made/report.html").stat().st_size > 50_000
    scoreline("anomaly", "photos", "masks").fails(2, "built-in example", "./photos")


def test_a_level_out_of_reach_names_bounds_that_work(scoreline: Call, folders: None) -> None:
    answer = scoreline("anomaly", "padim/maps", "truth", "--unmasked", "normal", "--out", "made")
    answer.fails(2, "0.000289", "6 normal images of 3456 pixels", "bounds such as (1e-03, 1e-02)")
    assert not Path("made").exists()
    again = scoreline("anomaly", "padim/maps", "truth", "--unmasked", "normal", "--fpr-bounds", "1e-3,1e-2")
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (("padim/maps",), 2, ["masks", "scoreline anomaly MAPS MASKS"]),
        (("padim/maps", "truth"), 2, ["6 images have none", "--unmasked normal"]),
        (("padim/maps", "nowhere"), 1, ["nowhere", "no such folder"]),
        (("nowhere", "truth"), 1, ["nowhere", "no such folder"]),
        (("padim/maps", "truth", "--compare-to", "elsewhere"), 1, ["elsewhere", "no such folder"]),
        (("padim/maps", "truth", "--compare-to", "padim/maps"), 2, ["same maps twice"]),
        (("padim/maps", "truth", "--names", "a,b"), 2, ["names", "give 1 different names"]),
        (("padim/maps", "truth", "--fpr-bounds", "1e-5"), 2, ["fpr-bounds '1e-5'", "1e-5,1e-4"]),
        (("padim/maps", "truth", "--fpr-bounds", "1e-2,1e-3"), 2, ["0 < lower < upper <= 1"]),
        (("padim/maps", "truth", "--route", "fats"), 2, ["did you mean 'fast'"]),
        (("padim/maps", "truth", "--route", "exact", "--thresholds", "9"), 2, ["places no thresholds"]),
        (("padim/maps", "truth", "--aupro-limit", "0"), 2, ["fpr_limit"]),
        (("padim/maps", "truth", "--bounds", "1e-5,1e-4"), 2, ["did you mean '--fpr-bounds'"]),
    ],
)
def test_what_is_refused(
    scoreline: Call, folders: None, arguments: tuple[str, ...], code: int, words: list[str]
) -> None:
    scoreline("anomaly", *arguments, "--out", "made").fails(code, *words)
    assert not Path("made").exists()


def test_a_damaged_map_is_named_and_nothing_is_written(scoreline: Call, folders: None) -> None:
    file = Path("padim/maps/crack/008.npy")
    file.write_bytes(file.read_bytes()[:300])
    scoreline("anomaly", "padim/maps", "truth", "--unmasked", "normal", *BOUNDS, "--out", "made").fails(1, "008.npy")
    assert not Path("made").exists()
