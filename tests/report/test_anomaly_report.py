"""The report of anomaly maps: every file, a page that stands alone, figures and pictures that show the numbers."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scoreline.core.errors import InputError
from scoreline.data.anomaly_maps import AnomalySet
from scoreline.evaluate.anomaly import Exhibit, score_anomaly_maps
from scoreline.report.anomaly_report import (
    anomaly_csv,
    anomaly_table,
    boxplot_figure,
    exhibit_picture,
    headline,
    pimo_figure,
    write_anomaly_report,
)

BOUNDS = (2e-3, 2e-2)


def a_set(strength: float, seed: int, anomalous: int = 8) -> AnomalySet:
    generator = torch.Generator().manual_seed(seed)
    count = 6 + anomalous
    masks = torch.zeros(count, 24, 24, dtype=torch.bool)
    masks[6:, 4:12, 3:14] = True
    shift = strength * (1 + torch.arange(count) % 5)[:, None, None]
    maps = torch.randn(count, 24, 24, generator=generator, dtype=torch.float64) + shift * masks
    return AnomalySet([f"<b>{i:02d}" for i in range(count)], list(maps), list(masks), 0, 0)


def scored(models: dict[str, Any]) -> Any:
    return score_anomaly_maps(models, "masks", fpr_bounds=BOUNDS, route="exact", quiet=True)


@pytest.fixture(scope="module")
def two() -> Any:
    return scored({"weak & small": a_set(0.4, 0), "strong": a_set(1.2, 1)})


@pytest.fixture(scope="module")
def written(two: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("anomaly")
    return folder, write_anomaly_report(*two, folder)


def test_every_file_is_there(written: tuple[Path, list[Path]], two: Any) -> None:
    folder, files = written
    assert all(file.stat().st_size > 100 for file in files)
    names = [str(file.relative_to(folder)) for file in files]
    assert names[:2] == ["results.json", "per_image.csv"]
    assert names[-1] == "report.html"
    assert {"plots/pimo-curves.png", "plots/boxplots.png"} < set(names)
    assert sum(name.startswith("images/") for name in names) == len(two[2])
    assert json.loads((folder / "results.json").read_text()) == two[0]
    assert not list(folder.rglob(".*"))


def test_the_page_stands_alone_and_escapes_names(written: tuple[Path, list[Path]], two: Any) -> None:
    page = written[1][-1].read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)[^"#]', page)
    assert "http" not in page.replace("http-equiv", "")
    assert "weak &amp; small" in page
    assert "<b>06" not in page
    assert page.count("data:image/png;base64,") == len(two[2])
    assert page.count("<svg") == 2
    for model in two[0]["models"]:
        for score in model["scores"].values():
            assert f"{score['value']:.3f}"[:4] in page


def test_the_csv_has_a_row_an_image(two: Any) -> None:
    rows = list(csv.reader(io.StringIO(anomaly_csv(two[0]))))
    assert rows[0] == ["image", "anomalous", "aupimo weak & small", "aupimo strong"]
    assert len(rows) == 15
    assert rows[1] == ["<b>00", "0", "", ""]
    assert [float(v) for v in rows[8][2:]] == [m["per_image"][7] for m in two[0]["models"]]


def test_the_table_marks_the_best(two: Any) -> None:
    table = anomaly_table(two[0])
    assert [str(cell) for cell in table.columns[0].cells] == ["weak & small", "strong"]
    styles = [cell.style for cell in table.columns[1].cells]  # type: ignore[union-attr]
    assert styles == ["", "bold"]
    assert "[" in str(next(iter(table.columns[1].cells)))


def test_the_headline_says_no_more_than_the_tests() -> None:
    sure = scored({"weak": a_set(0.4, 0), "strong": a_set(1.2, 1)})[0]
    assert headline(sure).startswith("strong has the best mean AUPIMO of 2 models")
    assert "it is better than weak (Wilcoxon's signed-rank test, 95 %)" in headline(sure)
    open_one = scored({"one": a_set(0.8, 0), "other": a_set(0.8, 0)})[0]
    assert "does not place it above" in headline(open_one)
    alone = scored({"one": a_set(0.8, 0)})[0]
    assert re.match(r"one finds 0\.\d+ of a defect on average over 8 anomalous images", headline(alone))
    few = scored({"one": a_set(0.8, 0, anomalous=1), "other": a_set(0.9, 1, anomalous=1)})[0]
    assert "too few images to test the difference" in headline(few)


def test_curves_have_a_log_axis_and_the_band_of_the_bounds(two: Any) -> None:
    figure = pimo_figure(two[1], BOUNDS)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["weak & small", "strong"]
    for ax, curve in zip(figure.axes, two[1].values()):
        assert ax.get_xscale() == "log"
        assert ax.get_xlim()[1] == 1
        band = ax.patches[0]
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx(BOUNDS)
        lines = [line.get_ydata() for line in ax.lines]
        assert len(lines) == 8 + 2  # images, their mean, chance
        assert any(np.array_equal(line, curve.tpr.mean(axis=0)) for line in lines)


def test_boxes_stand_where_the_statistics_are(two: Any) -> None:
    figure = boxplot_figure(two[0])
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["strong", "weak & small"]
    for box, model in zip(ax.patches, two[0]["models"]):
        s = {entry["name"]: entry["value"] for entry in model["statistics"]}
        assert (box.get_x(), box.get_width()) == pytest.approx((s["q1"], s["q3"] - s["q1"]))  # type: ignore[attr-defined]


def test_zones_and_outline_of_a_picture() -> None:
    scores = torch.zeros(60, 60, dtype=torch.float64)
    scores[10:20, 10:20], scores[30:40, 10:20] = 5.0, 9.0
    mask = torch.zeros(60, 60, dtype=torch.bool)
    mask[8:22, 8:22] = True
    black = np.zeros((60, 60, 3), dtype=np.uint8)
    exhibit = Exhibit("m", "i", "median 0.5", 0.5, scores, mask, (5.0, 9.0))
    pixels = np.asarray(exhibit_picture(exhibit, black))
    assert pixels.shape == (240, 240, 3)
    at = {name: tuple(int(v) for v in pixels[4 * y + 1, 4 * x + 1]) for name, (y, x) in {
        "orange": (15, 15), "red": (35, 15), "ground": (50, 50), "inside": (9, 15), "outside": (6, 15),
    }.items()}  # fmt: skip
    assert at["ground"] == at["outside"] == at["inside"] == (0, 0, 0)
    assert at["orange"][0] > at["orange"][1] > at["orange"][2]
    assert at["red"][1] < 40 < at["red"][0]
    assert tuple(pixels[32, 60]) == (0, 150, 255)  # upper edge of the mask
    assert tuple(pixels[31, 60]) == (0, 0, 0)
    alone = np.asarray(exhibit_picture(exhibit))
    assert alone.shape == (240, 240, 3)
    large = np.asarray(exhibit_picture(exhibit, np.full((120, 90, 3), 200, dtype=np.uint8)))
    assert tuple(large[4 * 50, 4 * 50]) == (200, 200, 200)


def test_a_constant_map_can_be_drawn() -> None:
    exhibit = Exhibit("m", "i", "", 0.0, torch.full((5, 300), 2.0), torch.zeros(5, 300, dtype=torch.bool), (3.0, 4.0))
    assert isinstance(exhibit_picture(exhibit), Image.Image)


def test_other_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scoreline/anomaly/1"):
        write_anomaly_report({"format": "scoreline/compare/1"}, {}, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
