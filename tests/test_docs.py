"""What the documentation shows is run: its Python as doctests, its commands in a folder of their own."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

import facts
import pages
from scoreline.cli import main
from scoreline.core.systems import SYSTEMS, System
from scoreline.core.systems import facts as shipped

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = [row for row in SYSTEMS if (ROOT / row.page).exists()]
TAUGHT = [ROOT / "README.md", *sorted((ROOT / "docs/tutorials").glob("*.md"))]


@pytest.mark.parametrize("file", TAUGHT, ids=lambda p: p.name)
def test_the_python_of_a_page_does_what_it_shows(file: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", file.read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    # All blocks of a page are one session; blank lines keep an expected output from running into the next block.
    test = doctest.DocTestParser().get_doctest("\n\n".join(blocks), {}, file.name, str(file), 0)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=pytest.mark.page(system=int(row.id)), id=row.slug) for row in WRITTEN]
)
def test_the_command_of_a_page_runs(
    row: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = facts.page_facts((ROOT / row.page).read_text(encoding="utf-8"))
    assert page["command"] is not None, f"{row.page} shows no command"
    program, *arguments = shlex.split(f"{page['command']} {page['ci'] or ''}")
    assert program == "scoreline"
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize("row", WRITTEN, ids=lambda row: row.slug)
def test_the_import_paths_of_a_page_exist(row: System) -> None:
    paths = facts.page_facts((ROOT / row.page).read_text(encoding="utf-8"))["paths"]
    assert paths
    assert [path for path in paths if not facts.resolves(path)] == []


def test_every_page_in_the_folder_belongs_to_a_system() -> None:
    there = {str(p.relative_to(ROOT)) for p in (ROOT / "docs/systems").glob("*.md") if p.name != "index.md"}
    assert there <= {row.page for row in SYSTEMS}


def test_relative_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    # What is commented out is not shown.
    shown = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)", shown):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_generated_pages_list_every_system_and_no_claim_that_was_not_measured() -> None:
    records = shipped()["systems"]
    text = pages.systems_page(records)
    for record in records:
        assert f"| {record['id']} | " in text
        assert f"/{record['paper'].removeprefix('arXiv:')})" in text
    board = pages.claims_page([{**record, "claim": None} for record in records])
    assert "No claim is measured yet." in board
    measured = {**records[8], "claim": {"verdict": "in part", "arms": ["a", "b"], "seeds": [0, 1, 2]}, "missing": []}
    assert "| 09 |" in pages.claims_page([measured])
    assert "| in part | 2 | 3 | present |" in pages.claims_page([measured])
