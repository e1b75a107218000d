"""`scoreline attribute`: the shipped example in small, its report, its resume, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from scoreline.explain.attribute import attribute

EXAMPLE = ["attribute", "threes", "--images", "12", "--device", "cpu"]
ONE = ["--utility", "fd", "--features", "pixels"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    from scoreline.cli import main

    folder = tmp_path_factory.mktemp("attribute") / "out"
    assert main([*EXAMPLE, "--seed-sets", "0,1", "--out", str(folder)]) == 0
    return folder, json.loads((folder / "results.json").read_text())


def test_the_example_leaves_a_report_tables_and_pictures(made: tuple[Path, dict[str, Any]]) -> None:
    folder, results = made
    for file in ("report.html", "contributions.csv", "coalitions.csv", "plots/fd-pixel.png", "pictures/artwork.png"):
        assert (folder / file).is_file()
    assert [a["name"] for a in results["attributions"]] == ["fd-pixel", "fd-digits", "kid-pixels", "kid-digits"]
    assert results["coalitions"] == {"asked": 16, "different": 10}
    assert len(results["pictures"]) == 16
    for attribution in results["attributions"]:
        total = sum(row["phi"]["mean"] for row in attribution["contributions"])
        assert total == pytest.approx(attribution["total"], rel=1e-9)
        assert "not a verdict" in attribution["meaning"]
    rows = list(csv.DictReader((folder / "contributions.csv").open()))
    assert len(rows) == 16
    first = results["attributions"][0]["contributions"][0]
    assert float(rows[0]["phi mean"]) == first["phi"]["mean"]
    coalitions = list(csv.DictReader((folder / "coalitions.csv").open()))
    assert [row["coalition"] for row in coalitions[:3]] == ["nothing", "model", "prompt"]


def test_what_is_printed(scoreline: Any) -> None:
    answer = scoreline(*EXAMPLE, *ONE, "--seed-sets", "0", "--bootstrap", "5")
    assert answer.code == 0
    for text in ("Contributions by FD-pixel", "contributes most", "not a verdict", "report: attribute/report.html"):
        assert text in answer.out
    assert "few; 500 or more" in answer.out


def test_run_again_it_makes_nothing_anew_and_gives_the_same(scoreline: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"images": 12, "features": ["pixels"], "bootstrap": 0, "device": "cpu", "quiet": True}
    first = attribute("threes", "out", seed_sets=[0], utilities=["fd"], **settings)
    ledger = (tmp_path / "out/ledger.jsonl").read_bytes()
    again = attribute("threes", "out", seed_sets=[0], utilities=["fd"], **settings)
    assert (tmp_path / "out/ledger.jsonl").read_bytes() == ledger
    assert first["attributions"] == again["attributions"]
    assert first["attributions"][0]["contributions"][0]["material"] is None  # one seed set, no bootstrap
    more = attribute("threes", "two", seed_sets=[0], utilities=["fd"], workers=2, **settings)
    for a, b in zip(first["attributions"][0]["contributions"], more["attributions"][0]["contributions"]):
        assert a["phi"]["mean"] == pytest.approx(b["phi"]["mean"], rel=1e-4, abs=1e-4)
    # Further utilities, networks and seed sets find the images that are there.
    wider = attribute("threes", "out", seed_sets=[0, 1], utilities=["fd"], **settings)["attributions"][0]
    assert [row["by_seed"][0] for row in wider["contributions"]] == [
        row["by_seed"][0] for row in first["attributions"][0]["contributions"]
    ]
    assert wider["contributions"][0]["phi"]["sd"] is not None
    assert (tmp_path / "out/ledger.jsonl").read_bytes().startswith(ledger)
    scoreline("attribute", "threes", "--images", "21", "--device", "cpu", "--out", "out").fails(
        1, "another run", "images"
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["attribute", "three"], ["did you mean 'threes'"]),
        (["attribute"], ["WORKFLOW"]),
        ([*EXAMPLE, "--utility", "fid"], ["did you mean 'fd'"]),
        ([*EXAMPLE, "--utility", ","], ["at least one"]),
        ([*EXAMPLE, "--features", ","], ["at least one"]),
        ([*EXAMPLE, "--features", "digit"], ["did you mean 'digits'"]),
        ([*EXAMPLE, "--seed-sets", "0,0"], ["distinct"]),
        ([*EXAMPLE, "--seed-sets", "a"], ["whole numbers"]),
        ([*EXAMPLE, "--bootstrap", "1"], ["at least 2"]),
        ([*EXAMPLE, "--method", "permutations"], ["did you mean 'permutation'"]),
        ([*EXAMPLE, "--method", "permutation", "--samples", "3"], ["pairs"]),
        ([*EXAMPLE, "--workers", "0"], ["1 or more"]),
        (["attribute", "threes", "--images", "1"], ["2 or more"]),
        (["attribute", "threes", "--image", "5"], ["did you mean '--images'"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    scoreline: Any, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    scoreline(*arguments).fails(2, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_missing(scoreline: Any) -> None:
    scoreline("attribute", "./none.yaml").fails(1, "no such file")


def test_sampled_orders(scoreline: Any) -> None:
    answer = scoreline(
        *EXAMPLE, "--method", "permutation", "--samples", "4", "--seed-sets", "0", "--bootstrap", "0", *ONE, "--json"
    )
    first = answer.json["attributions"][0]
    assert first["method"] == "permutation"
    assert first["interaction"] is None
    assert Path("attribute/report.html").is_file()
