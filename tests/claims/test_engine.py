"""The engine: resumes after a kill, stores nothing of a smoke test, refuses what would be no measurement."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scoreline.claims import engine
from scoreline.claims.engine import Memo, Part, measure, settle, stored_result, summary
from scoreline.core.errors import ArtefactError, InputError, NonFiniteError
from scoreline.core.systems import source_hash, system

Toy = Callable[..., Any]


def test_a_killed_run_goes_on_where_it_was(toy: Toy, tmp_path: Path) -> None:
    whole = measure(toy(), out=tmp_path / "whole", quiet=True)

    killed = toy()
    killed.stop_at = ("b", 1)
    with pytest.raises(KeyboardInterrupt):
        measure(killed, out=tmp_path / "out", quiet=True)
    assert killed.calls == [("a", 0), ("b", 0), ("a", 1)]
    assert not (tmp_path / "out/09.json").exists()
    with open(tmp_path / "out/09-laptop/runs.jsonl", "ab") as file:
        file.write(b'{"key": "1/b", "val')  # the line that the kill cut short

    again = toy()
    result = measure(again, out=tmp_path / "out", quiet=True)
    assert again.calls == [("b", 1), ("a", 2), ("b", 2)]
    assert again.made == [1, 2]  # once a seed, and not for the seed that was done
    assert result["runs"] == whole["runs"]
    assert json.loads((tmp_path / "out/09.json").read_text()) == {k: v for k, v in result.items() if k != "stored"}

    third = toy()
    assert measure(third, out=tmp_path / "out", quiet=True)["started"] == result["started"]
    assert third.calls == []


def test_a_result_says_what_it_rests_on(toy: Toy, tmp_path: Path) -> None:
    claim = toy()
    result = measure(claim, seeds=[3, 4, 5, 6], out=tmp_path, command="typed", quiet=True)
    row = system("09")
    assert result["rule_hash"] == source_hash(["toy_claim"])
    assert result["source_hash"] == source_hash([row.module, *row.parts])
    assert (result["arms"], result["seeds"], result["command"]) == (["a", "b"], [3, 4, 5, 6], "typed")
    assert {(run["arm"], run["seed"]) for run in result["runs"]} == {(a, s) for a in "ab" for s in (3, 4, 5, 6)}
    assert {"cores", "threads", "torch"} <= result["machine"].keys()
    assert {"scoreline", "torch", "numpy"} <= result["versions"].keys()
    assert result["shrunk"] == ["everything"]
    assert result["commit"] is None  # the toy's file is in no repository
    values = result["summary"]["b"]["value"]
    assert values["mean"] == 46.0
    assert values["std"] == pytest.approx(math.sqrt(500 / 3))  # of 31, 41, 51, 61, with ddof 1
    assert (values["min"], values["median"], values["max"]) == (31.0, 46.0, 61.0)
    assert "unknown" not in result["summary"]["b"]


def test_the_smoke_scale_stores_nothing(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    claim = toy()
    before = sorted(tmp_path.rglob("*"))
    result = measure(claim, scale="smoke", out=tmp_path / "claims", quiet=True)
    assert claim.calls == [("a", 0), ("b", 0)]
    assert result["stored"] == []
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="smoke test is no measurement"):
        measure(claim, scale="smoke", store=True, quiet=True)


@pytest.mark.parametrize("seeds", [[], [0], [0, 1], [4, 4, 4]])
def test_fewer_than_three_seeds_are_refused_before_any_work(toy: Toy, tmp_path: Path, seeds: list[int]) -> None:
    claim = toy()
    with pytest.raises(InputError, match="at least 3"):
        measure(claim, seeds=seeds, out=tmp_path / "out", quiet=True)
    assert claim.calls == []
    assert not (tmp_path / "out").exists()


def test_runs_of_another_rule_are_not_mixed_in(toy: Toy, tmp_path: Path) -> None:
    first = measure(toy(), out=tmp_path / "out", quiet=True)
    changed = toy("b > a for", "b >= a for")
    with pytest.raises(ArtefactError, match="rule_hash"):
        measure(changed, out=tmp_path / "out", quiet=True)
    second = measure(changed, out=tmp_path / "new", quiet=True)
    assert second["rule_hash"] != first["rule_hash"]
    assert second["source_hash"] == first["source_hash"]
    # Words are no rule.
    worded = measure(toy("class Toy(Claim):", "class Toy(Claim):  # a remark"), out=tmp_path / "new", quiet=True)
    assert worded["rule_hash"] == second["rule_hash"]


def test_only_a_committed_rule_is_stored(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    monkeypatch.setattr(engine, "RESULTS", results)
    claim = toy()
    with pytest.raises(InputError, match="not committed"):
        measure(claim, out=tmp_path / "out", store=True, quiet=True)
    assert claim.calls == []
    monkeypatch.setattr(engine, "committed", lambda file: "c0ffee")
    result = measure(claim, out=tmp_path / "out", store=True, quiet=True)
    assert result["commit"] == "c0ffee"
    assert stored_result("09", results) == {k: v for k, v in result.items() if k != "stored"}
    assert stored_result("10", results) is None


def test_committed_means_unchanged_since(tmp_path: Path) -> None:
    import subprocess

    def git(*arguments: str) -> str:
        name = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *name, *arguments], check=True, capture_output=True, text=True
        ).stdout

    file = tmp_path / "rule.py"
    file.write_text("1\n")
    assert engine.committed(file) is None
    git("init", "-q")
    assert engine.committed(file) is None
    git("add", "rule.py")
    git("commit", "-q", "-m", "rule")
    assert engine.committed(file) == git("rev-parse", "HEAD").strip()
    file.write_text("2\n")
    assert engine.committed(file) is None


def test_numbers_that_are_none_are_refused(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"0/a.*value"):
        measure(toy('base + (arm == "b")', "float('nan')"), out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out/09-laptop/runs.jsonl").exists()
    with pytest.raises(InputError, match="equal budgets"):
        measure(toy(', "training_evaluations": 7', ""), out=tmp_path / "other", quiet=True)


def test_scales_that_are_none_are_refused(toy: Toy) -> None:
    with pytest.raises(InputError, match="did you mean 'laptop'"):
        measure(toy(), scale="labtop")
    with pytest.raises(InputError, match="known: laptop, smoke"):
        measure(toy(), scale="gpu")


def test_the_estimate_is_said_first_and_counts_what_is_left(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = toy()
    killed.seconds = {"laptop": 40.0}
    killed.stop_at = ("b", 1)
    with pytest.raises(KeyboardInterrupt):
        measure(killed, out=tmp_path)
    assert capsys.readouterr().err.splitlines()[0] == "claim 09, laptop: 2 arms, 3 seeds; about 2 min"
    again = toy()
    again.seconds = {"laptop": 40.0}
    measure(again, out=tmp_path)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "claim 09, laptop: 2 arms, 3 seeds, 3 known already; about 60 s"


@pytest.mark.parametrize(
    "outcomes, verdict",
    [
        ([True, True], "holds"), ([True, False], "in part"), ([True, None], "in part"),
        ([False, False], "refuted"), ([False, None], "refuted"), ([None, None], "not seen"), ([], "not seen"),
    ],
)  # fmt: skip
def test_verdicts(outcomes: list[bool | None], verdict: str) -> None:
    assert settle([Part("", outcome, "") for outcome in outcomes]) == verdict


def test_a_memo_makes_each_thing_once() -> None:
    memo, made = Memo(), []
    for name in ("x", "y", "x"):
        memo(name, lambda name=name: made.append(name))
    assert made == ["x", "y"]


def test_a_summary_leaves_out_what_is_unknown() -> None:
    assert summary({"a": {"v": [1.0, None, 3.0], "w": [None]}}) == {
        "a": {"v": {"mean": 2.0, "std": pytest.approx(math.sqrt(2)), "median": 2.0, "min": 1.0, "max": 3.0}}
    }
