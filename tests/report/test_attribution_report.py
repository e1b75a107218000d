"""The report of an attribution: what its sentences say, and that the page holds all of it."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.explain.attribution import Component
from scoreline.explain.copyscope import CopyScope
from scoreline.nn.features import Pixels
from scoreline.report.attribution_report import contribution_figure, said, sentences, write_attribution

SHAPE = (1, 2, 2)
STEPS = {"lora": 0.4, "prompt <3": 0.1, "noise": -0.1}


def record(steps: dict[str, float] = STEPS, **settings: Any) -> dict[str, Any]:
    def make(active: frozenset[str], noise: Noise) -> Any:
        return 0.1 * noise.at(range(60), SHAPE).normal() + sum(steps[name] for name in active)

    artwork = 0.5 + 0.1 * Noise(7).at(range(50), SHAPE).normal()
    components = [Component(name, f"moves by {step}", "stays") for name, step in steps.items()]
    scope = CopyScope(components, make, artwork, {"pixels": Pixels(SHAPE)}, **{"utilities": ("fd", "kid"), **settings})
    return {
        "format": "scoreline/attribute/1", "version": "0", "command": "scoreline attribute x", "title": "Whose?",
        "about": "A test.", "artwork": {"source": "made up", "count": 50, "shape": list(SHAPE), "picture": "none.png"},
        "images": 60, "seed_sets": list(scope.seeds), "coalitions": {"asked": 8, "different": 8}, "seconds": 1.0,
        "machine": {"cpu": "one"}, "pictures": {}, "attributions": [a.to_dict() for a in scope.run().values()],
    }  # fmt: skip


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return record()


class Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.links += [value for key, value in attrs if key in ("src", "href") and value]
        if tag not in ("meta", "img", "br", "wbr", "link", "use", "path", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "img", "br", "wbr", "link", "use", "path", "line", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page(results: dict[str, Any], folder: Path) -> Text:
    files = write_attribution(results, folder)
    assert files[-1] == folder / "report.html"
    assert all(file.is_file() for file in files)
    text = Text()
    text.feed(files[-1].read_text())
    assert text.open == []
    return text


def test_the_headline_names_the_first_with_its_part_of_the_whole(results: dict[str, Any]) -> None:
    first, *further = sentences(results)
    assert first == said(results["attributions"][0])
    row = results["attributions"][0]["contributions"][0]
    assert first.startswith(f"Lora contributes most, {row['phi']['mean']:.3f} ± ")
    assert any("noise moves the images away" in line for line in further)
    assert any(line.startswith("Material") and "lora" in line for line in further)


def test_sentences_tell_where_rules_and_utilities_disagree(results: dict[str, Any]) -> None:
    changed = copy.deepcopy(results)
    main, other = changed["attributions"]
    assert not any("ranks them otherwise" in line for line in sentences(changed))
    assert "The same order by KID-pixels." in sentences(changed)
    main["contributions"][1]["leave_one_out"]["mean"] = 99.0
    other["contributions"][1]["phi"]["mean"] = 99.0
    told = sentences(changed)
    assert any("ranks them otherwise (prompt <3 99.0, lora" in line for line in told)
    assert any("Another order by KID-pixels (prompt <3, lora, noise)" in line for line in told)


def test_a_workflow_that_is_no_closer_says_so() -> None:
    away = record({"a": -0.2}, seeds=(0,))
    assert "no closer to the artwork than its stand-ins" in sentences(away)[0]


def test_the_page_holds_everything_and_loads_nothing(results: dict[str, Any], tmp_path: Path) -> None:
    text = page(results, tmp_path)
    words = " ".join(text.words)
    told = ["Whose?", "not a verdict", "moves by 0.4", "stays", "prompt <3", "FD-pixel", "KID-pixels", "Banzhaf"]
    told += ["exact; 8 coalitions", "scoreline attribute x", "the same noise", "sd over 3 seed sets"]
    for wanted in told:
        assert wanted in words, wanted
    assert all(link.startswith(("#", "data:")) for link in text.links)
    assert "http" not in re.sub(r"data:[^\"]*", "", (tmp_path / "report.html").read_text())
    assert "nan" not in words.lower().split()


def test_shares_are_dashes_when_something_is_negative(results: dict[str, Any], tmp_path: Path) -> None:
    assert results["attributions"][0]["contributions"][0]["share"] is None
    positive = record({"a": 0.3, "b": 0.1}, utilities=("fd",))
    shares = [row["share"] for row in positive["attributions"][0]["contributions"]]
    assert f"{shares[0]:.0%}" in " ".join(page(positive, tmp_path).words)


def test_owners_and_missing_parts_are_shown(tmp_path: Path) -> None:
    text = page(record({"a": 0.3, "b": 0.1}, owners={"studio": ["a", "b"]}, utilities=("fd",)), tmp_path)
    assert "By owner" in " ".join(text.words)
    alone = page(record({"a": 0.3}, seeds=(0,), utilities=("fd",)), tmp_path / "alone")
    assert "Not measured: interactions" in " ".join(alone.words)


def test_the_figure_shows_a_bar_a_component_in_order(results: dict[str, Any]) -> None:
    axes = contribution_figure(results["attributions"][0]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["noise", "prompt <3", "lora"]
    widths = [bar.get_width() for bar in axes.patches]
    means = sorted(row["phi"]["mean"] for row in results["attributions"][0]["contributions"])
    assert widths == pytest.approx(means)
    assert axes.patches[0].get_facecolor() != axes.patches[2].get_facecolor()  # away is another colour


def test_pictures_outside_the_folder_are_not_taken_in(results: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"\x89PNG secret")
    changed = {**results, "pictures": {"0": "../secret.png"}}
    text = page(changed, tmp_path / "out")
    assert not [link for link in text.links if link.startswith("data:image")]


def test_other_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scoreline/attribute/1"):
        write_attribution({"format": "scoreline/compare/1"}, tmp_path)
    assert list(tmp_path.iterdir()) == []
