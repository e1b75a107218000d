"""The page of a comparison stands alone, is well-formed, and shows what the results hold."""

from __future__ import annotations

import base64
import copy
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from scoreline.core.errors import InputError
from scoreline.report import csv_text, write_report
from scoreline.report.compare_report import _picture

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting, and gathers attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.seen if name == tag]


def read(paths):
    text = paths[-1].read_text(encoding="utf-8")
    return text, Page(text)


def test_files(written):
    results, folder, paths = written
    assert [str(path.relative_to(folder)) for path in paths] == [
        "results.csv", "plots/ode-rmse.png", "plots/fid-digits.png", "plots/fd-pixel.png", "plots/all-scores.png",
        "report.html",
    ]  # fmt: skip
    assert paths[0].read_text(encoding="utf-8") == csv_text(results)
    for path in paths[1:-1]:
        with Image.open(path) as picture:
            picture.load()
            assert picture.width >= 600


def test_page_loads_nothing(written):
    text, page = read(written[2])
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert not page.all("link")
    for tag, attributes in page.seen:
        for name in ("src", "srcset", "href", "xlink:href", "data", "poster", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"url\((?!#)", text)


def test_ids_are_unique_and_references_resolve(written):
    _, page = read(written[2])
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    used = {a["href"][1:] for _, a in page.seen if (a.get("href") or "").startswith("#")}
    assert used <= set(ids)
    # Curves may share a marker's drawing; everything the page itself names stands once.
    named = [name for name in ids if not re.fullmatch(r"[mp][0-9a-f]{10}|C\w+", name)]
    assert len(named) == len(set(named))
    assert {"curves", "table", "pictures", "method"} <= set(named)


def test_page_is_accessible(written):
    results, _, paths = written
    _, page = read(paths)
    assert page.all("html")[0]["lang"] == "en"
    assert all(picture["alt"] for picture in page.all("img"))
    assert len(page.all("img")) == len(results["arms"]) + 2
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    charts = [a for a in page.all("div") if a.get("role") == "img"]
    assert len(charts) == len(results["scores"])
    assert "heun: 0.358 at 5" in charts[0]["aria-label"]


def test_pictures_are_whole_and_enlarged_by_a_whole_number(written):
    results, folder, paths = written
    _, page = read(paths)
    stored = {(folder / arm["pictures"]).read_bytes() for arm in results["arms"]}
    inline = {base64.b64decode(a["src"].split(",")[1]) for a in page.all("img")}
    assert stored < inline
    assert all(int(a["width"]) % 46 == 0 and a["class"] == "small" for a in page.all("img"))


def test_page_says_what_matters(written):
    results, _, paths = written
    _, page = read(paths)
    words = " ".join("".join(page.words).split())
    for text in (
        results["title"], "comes closest to the converged ODE", "at 8×8 pixels Fréchet distances reward blur",
        results["command"], results["arms"][3]["command"], "500 for each of 3 seeds (0, 1, 2)", "Made-up CPU",
        results["model"]["fingerprint"], "uint8-round", "2026-11-22 20:00 UTC", "Heun with 128 steps in float64",
    ):  # fmt: skip
        assert text in words
    table = [a for a in page.all("td") if "data-value" in a]
    assert len(table) == len(results["arms"]) * 9
    assert {a["data-value"] for a in table} >= {repr(arm["scores"]["ode-rmse"]["mean"]) for arm in results["arms"]}


def test_one_best_for_each_budget_and_score(written):
    results, _, paths = written
    _, page = read(paths)
    marks = [a["class"] for a in page.all("span") if a.get("class", "").startswith("mark")]
    assert marks.count("mark best") == 3 * len(results["scores"])


def test_names_are_escaped(made_up, tmp_path):
    results = made_up(samplers=("<script>alert(1)</script>", 'a&b "c" $d$'), budgets=(5,))
    results["title"] = "<i>title</i> & more"
    results["warnings"] = ["<b>warned</b>"]
    results["arms"][0]["pictures"] = None
    _, page = read(write_report(results, tmp_path))
    assert len(page.all("script")) == 1
    assert not page.all("i")
    assert not page.all("b")
    words = "".join(page.words)
    for shown in ("<script>alert(1)</script>", 'a&b "c" $d$', "<i>title</i> & more", "<b>warned</b>"):
        assert shown in words
    assert "no picture" in words


def test_holes_and_single_seeds_leave_dashes(made_up, tmp_path):
    results = copy.deepcopy(made_up(samplers=("heun",), budgets=(10,), seeds=(0,)))
    results["scores"] = {"ode-rmse": results["scores"]["ode-rmse"]}
    arm = results["arms"][0]
    arm.update(macs=None, seconds=float("nan"), peak_memory=None)
    arm["scores"] = {"ode-rmse": {"values": [None], "mean": None, "low": None, "high": None}}
    results["warnings"], results["pictures"] = ["1 image is not finite"], {}
    _, page = read(write_report(results, tmp_path))
    words = " ".join("".join(page.words).split())
    assert "No sampler reached a finite value of distance to the converged ODE." in words
    assert "nan" not in words.lower().replace("finance", "")
    assert not (tmp_path / "plots" / "all-scores.png").exists()


def test_costs_alone_make_a_page_too(made_up, tmp_path):
    results = made_up(samplers=("heun",), budgets=(10,))
    results["scores"], results["protocol"] = {}, {}
    _, page = read(write_report(results, tmp_path))
    assert "Nothing was scored" in "".join(page.words)


def test_only_pictures_of_the_folder_go_into_the_page(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    Image.new("L", (4, 6)).save(tmp_path / "in" / "own.png")
    (tmp_path / "in" / "text.png").write_text("no picture")
    assert _picture(tmp_path / "in", "../secret.png", "", 3)["data"] == ""
    assert _picture(tmp_path / "in", "text.png", "", 3)["data"] == ""
    own = _picture(tmp_path / "in", "own.png", "", 3)
    assert own["data"]
    assert own["width"] * 6 == own["height"] * 4


def test_what_is_no_comparison_is_refused(made_up, tmp_path):
    for broken in ({**made_up(), "format": "other/1"}, {**made_up(), "arms": []}):
        with pytest.raises(InputError):
            write_report(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []
