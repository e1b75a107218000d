"""The facts about the systems: how they are recorded, gathered, compared, and what each state asks for."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import facts
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.systems import SYSTEMS, System, source_hash, system
from scoreline.core.systems import facts as shipped

ROOT = Path(__file__).resolve().parents[1]
ROW = System("07", "Test", "test", "0000.00000", 2, "scoreline.samplers.ddim")

PAGE = """# Test

```console
$ scoreline compare digits --samplers ddim \\
    --nfe 10
```
% ci: --count 8

`scoreline.not.counted` stands outside the section.

## Formulas

| formula | function |
|---|---|
| step | `scoreline.samplers.ddim.DDIM` |
| grid | `scoreline.diffusion.grids.karras` |

## Next

`scoreline.nor.this`
"""


def check(system: int, number: int, outcome: str = "passed") -> dict:
    return {"marks": [["check", system, number]], "outcome": outcome}


# the table


def test_the_table_has_48_rows_in_order_with_names_of_their_own() -> None:
    assert [row.id for row in SYSTEMS] == [f"{n:02d}" for n in range(1, 49)]
    for values in ([r.slug for r in SYSTEMS], [r.name for r in SYSTEMS], [r.arxiv for r in SYSTEMS]):
        assert len(set(values)) == 48
    assert all(8 <= row.checks <= 10 and row.module.startswith("scoreline.") for row in SYSTEMS)


def test_a_system_is_found_by_number_and_slug_and_a_wrong_name_suggests_the_nearest() -> None:
    assert system("9") is system(9) is system("enhanced-ddpm") is SYSTEMS[8]
    with pytest.raises(InputError, match="did you mean 'aupimo'"):
        system("aupinmo")
    with pytest.raises(InputError, match="system '49'"):
        system(49)


def test_the_shipped_facts_belong_to_the_table() -> None:
    records = shipped()["systems"]
    assert [(r["id"], r["name"], r["module"]) for r in records] == [(s.id, s.name, s.module) for s in SYSTEMS]
    for record in records:
        assert bool(record["missing"]) == (record["state"] != "works")


def test_facts_of_another_table_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "facts.json"
    file.write_text(json.dumps({"systems": [{"id": "01"}]}))
    monkeypatch.setattr("scoreline.core.systems.FACTS", file)
    with pytest.raises(ArtefactError, match="make facts"):
        shipped()


# the fingerprint of a source


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.syspath_prepend(str(tmp_path))

    def of(text: str) -> str:
        (tmp_path / "measured_module.py").write_text(text)
        digest = source_hash(["measured_module"])
        assert digest is not None
        return digest

    return of


def test_words_and_layout_do_not_change_the_fingerprint_but_arithmetic_does(hashed: Callable[[str], str]) -> None:
    plain = hashed("def f(x):\n    return x + 1\n")
    assert hashed('"""What."""\n\ndef f( x ):\n    """That."""\n    return (x + 1)  # why\n') == plain
    for other in ("x + 2", "x - 1", "1 + x", "+x + 1", "'x' + 1"):
        assert hashed(f"def f(x):\n    return {other}\n") != plain
    assert hashed("def f(x, y=None):\n    return x + 1\n") != plain
    assert hashed("async def f(x):\n    return x + 1\n") != plain


def test_a_package_is_fingerprinted_whole_and_a_missing_module_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "measured_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("a = 1\n")
    before = source_hash(["measured_package"])
    (package / "part.py").write_text("a = 2\n")
    after = source_hash(["measured_package"])
    assert None not in (before, after)
    assert before != after
    assert source_hash(["measured_package", "scoreline.no_such_room.file"]) is None


# gathering


def test_a_check_counts_only_when_all_its_tests_passed() -> None:
    record = {
        "tests/a.py::one[x]": check(7, 1),
        "tests/a.py::one[y]": check(7, 1),
        "tests/a.py::two[x]": check(7, 2),
        "tests/a.py::two[y]": check(7, 2, "skipped"),
        "tests/a.py::three": check(7, 3, "failed"),
        "tests/a.py::other": check(8, 4),
    }
    found = facts.checked(record, 7, 4)
    assert found == {
        "of": 4,
        "passed": [1],
        "tests": {"1": ["tests/a.py::one"], "2": ["tests/a.py::two"], "3": ["tests/a.py::three"]},
    }
    with pytest.raises(ArtefactError, match="check 3 of system 7, which has 2"):
        facts.checked(record, 7, 2)


def test_a_page_is_read_for_its_formulas_and_command() -> None:
    assert facts.page_facts(PAGE) == {
        "paths": ["scoreline.diffusion.grids.karras", "scoreline.samplers.ddim.DDIM"],
        "command": "scoreline compare digits --samplers ddim --nfe 10",
        "ci": "--count 8",
    }
    assert facts.page_facts("# Nothing\n") == {"paths": [], "command": None, "ci": None}


def test_import_paths_are_followed_into_classes() -> None:
    for path in ("scoreline.core", "scoreline.core.errors.InputError", "scoreline.samplers.ddim.DDIM.coefficients"):
        assert facts.resolves(path)
    for path in ("scoreline.core.nothing", "scoreline.no_such.file", "scoreline.samplers.ddim.DDIM.nothing"):
        assert not facts.resolves(path)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict, dict]:
    """A tree and a record in which the system of `ROW` works, and its stored claim."""
    monkeypatch.setattr(facts, "source_hash", lambda modules: "+".join(modules))
    (tmp_path / ROW.page).parent.mkdir(parents=True)
    (tmp_path / ROW.page).write_text(PAGE)
    claim = {
        "arms": ["a", "b"],
        "runs": [{"arm": arm, "seed": seed} for arm in "ab" for seed in range(3)],
        "seeds": [0, 1, 2],
        "verdict": "refuted",
        "source_hash": ROW.module,
        "rule_hash": ROW.claim,
    }
    record = {"t::1": check(7, 1), "t::2": check(7, 2), "d::7": {"marks": [["page", 7]], "outcome": "passed"}}
    return tmp_path, record, claim


def state(tree: tuple[Path, dict, dict], row: System = ROW) -> tuple[str, list[str]]:
    root, record, claim = tree
    results = root / "src/scoreline/claims/results"
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{row.id}.json").write_text(json.dumps(claim))
    found = facts.facts_of(row, record, root)
    return found["state"], found["missing"]


def test_works_needs_everything(tree: tuple[Path, dict, dict]) -> None:
    assert state(tree) == ("works", [])


@pytest.mark.parametrize("key", ["source_hash", "rule_hash"])
def test_a_claim_on_another_source_or_rule_is_stale(tree: tuple[Path, dict, dict], key: str) -> None:
    tree[2][key] = "before"
    assert state(tree) == ("stale", ["claim: measured on another state of the source"])


def test_each_thing_that_lacks_makes_it_incomplete_and_is_named(tree: tuple[Path, dict, dict]) -> None:
    root, record, claim = tree
    page = root / ROW.page

    del record["t::2"]
    assert state(tree) == ("incomplete", ["checks: no passing test of 2"])
    record["t::2"] = check(7, 2, "skipped")
    assert state(tree) == ("incomplete", ["checks: no passing test of 2"])
    record["t::2"] = check(7, 2)

    lost = claim["runs"].pop()
    assert state(tree) == ("incomplete", ["claim: arm 'b' has 2 of 3 seeds"])
    claim["runs"].append({"arm": "b", "seed": 0})
    assert state(tree) == ("incomplete", ["claim: arm 'b' has 2 of 3 seeds"])
    claim["runs"].append(lost)

    record["d::7"]["outcome"] = "failed"
    assert state(tree) == ("incomplete", ["docs: the command did not run in the tests"])
    record["d::7"]["outcome"] = "passed"

    page.write_text(PAGE.replace("grids.karras", "grids.karas"))
    assert state(tree) == ("incomplete", ["docs: `scoreline.diffusion.grids.karas` does not exist"])
    page.write_text(PAGE.replace("samplers.ddim.DDIM", "samplers.heun.Heun"))
    assert state(tree) == ("incomplete", ["docs: names no function of scoreline.samplers.ddim under Formulas"])
    page.write_text(PAGE.replace("$ scoreline", "scoreline"))
    assert state(tree) == ("incomplete", ["docs: no command"])
    page.unlink()
    assert state(tree) == ("incomplete", ["docs: no page"])
    page.write_text(PAGE)
    assert state(tree) == ("works", [])


def test_a_claim_file_without_its_fields_is_refused(tree: tuple[Path, dict, dict]) -> None:
    del tree[2]["verdict"], tree[2]["runs"]
    with pytest.raises(ArtefactError, match="lacks runs, verdict"):
        state(tree)


def test_nothing_at_all_is_planned(tmp_path: Path) -> None:
    row = System("07", "Test", "test", "0000.00000", 2, "scoreline.no_such_room.test")
    found = facts.facts_of(row, {"t": check(8, 1)}, tmp_path)
    assert found["state"] == "planned"
    assert found["missing"] == [
        "module: no scoreline.no_such_room.test",
        "checks: no passing test of 1, 2",
        "claim: not measured",
        "docs: no page",
    ]


# comparing


def test_the_check_names_what_changed_and_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(facts, "ROOT", tmp_path)
    monkeypatch.setattr(facts, "FACTS", tmp_path / "facts.json")
    (tmp_path / "record.json").write_text(json.dumps({"t::one": check(48, 1)}))
    assert facts.main(["gather", str(tmp_path / "record.json")]) == 0
    assert facts.main(["check", str(tmp_path / "record.json")]) == 0
    capsys.readouterr()
    (tmp_path / "record.json").write_text(json.dumps({}))
    assert facts.main(["check", str(tmp_path / "record.json")]) == 1
    said = capsys.readouterr().err
    assert "48 iFormer: tests, checks, state, missing (incomplete -> planned)" in said
    assert "make facts" in said
    assert "13 InstaFlow" not in said


# recording

MARKED = """
import pytest

@pytest.mark.check(system=9, number=3)
@pytest.mark.check(system=9, number=4)
@pytest.mark.parametrize("x", [1, 2])
def test_both(x):
    assert x == 1

@pytest.mark.check(system=9, number=5)
def test_skipped():
    pytest.skip("never")

@pytest.fixture
def falls():
    yield
    raise RuntimeError("in tear-down")

@pytest.mark.check(system=9, number=6)
def test_tear_down(falls):
    pass

@pytest.mark.page(system=9)
def test_page():
    pass

def test_unmarked():
    pass
"""


def run_pytest(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "tests/conftest.py", folder)
    (folder / "test_marked.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    check\n    page\n    slow\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "--facts", "out.json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("processes", [0, 2])
def test_marks_and_outcomes_are_recorded_with_and_without_processes(tmp_path: Path, processes: int) -> None:
    done = run_pytest(tmp_path, MARKED, "-n", str(processes))
    assert done.returncode == 1, done.stdout + done.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    both = [["check", 9, 4], ["check", 9, 3]]
    assert record == {
        "test_marked.py::test_both[1]": {"marks": both, "outcome": "passed"},
        "test_marked.py::test_both[2]": {"marks": both, "outcome": "failed"},
        "test_marked.py::test_page": {"marks": [["page", 9]], "outcome": "passed"},
        "test_marked.py::test_skipped": {"marks": [["check", 9, 5]], "outcome": "skipped"},
        "test_marked.py::test_tear_down": {"marks": [["check", 9, 6]], "outcome": "failed"},
    }


@pytest.mark.parametrize(
    "mark",
    [
        pytest.mark.check(9, 3),
        pytest.mark.check(system=9),
        pytest.mark.check(system=49, number=1),
        pytest.mark.check(system=9, number=0),
        pytest.mark.page(system=9, number=1),
    ],
)
def test_a_mark_written_wrongly_is_refused(mark: pytest.MarkDecorator) -> None:
    item = SimpleNamespace(nodeid="t", get_closest_marker=lambda name: None)
    with pytest.raises(pytest.UsageError, match=rf"@pytest\.mark\.{mark.name}\(system=\.\.\."):
        conftest().read(item, mark.mark)


def test_a_check_cannot_hide_among_the_slow_tests() -> None:
    item = SimpleNamespace(nodeid="t", get_closest_marker=lambda name: name == "slow")
    with pytest.raises(pytest.UsageError, match="cannot be marked slow"):
        conftest().read(item, pytest.mark.check(system=9, number=3).mark)


def conftest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conftest_read_again", ROOT / "tests/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
