"""The engine: one outcome for any workers, resumed after a kill, surviving a dead worker."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from scoreline.core.errors import ArtefactError, InputError, ScorelineError
from scoreline.search import engine
from scoreline.search.engine import genotype_key, parse_workers, search

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # also for the workers, who get this path

from toys import Bowl, Climber, refuses, strange  # noqa: E402


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    return folder


def plain(history: list[dict[str, Any]]) -> list[Any]:
    return [(row["generation"], row["genotype"]["x"], row["result"]["value"]) for row in history]


def test_every_evaluation_in_the_order_asked(calls: Path) -> None:
    climber = Climber()
    seen: list[tuple[int, str]] = []
    history = search(climber, Bowl(str(calls)), advance=lambda n, text: seen.append((n, text)))
    assert [row["generation"] for row in history] == [g for g in range(4) for _ in range(6)]
    assert all(row["result"]["value"] == (row["genotype"]["x"] - 17) ** 2 for row in history)
    assert climber.told == [[r["result"]["value"] for r in history[i : i + 6]] for i in range(0, 24, 6)]
    assert sum(n for n, _ in seen) == 24
    assert seen[-1][1] == f"best {climber.best[0]:.4g}"


def test_an_evaluation_in_this_process_has_one_thread_and_gives_the_others_back(calls: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        history = search(Climber(), Bowl(str(calls)))
        assert {row["result"]["threads"] for row in history} == {1.0}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_same_genotype_is_evaluated_once(calls: Path, tmp_path: Path) -> None:
    class Stubborn:
        left = 3

        def ask(self) -> list[dict[str, Any]]:
            self.left -= 1
            return [{"x": 1}, {"x": 2}, {"x": 1}] if self.left >= 0 else []

        def tell(self, genotypes: Any, results: Any) -> None:
            assert [r["value"] for r in results] == [256, 225, 256]

    bowl = Bowl(str(calls))
    history = search(Stubborn(), bowl, ledger=tmp_path / "runs.jsonl")
    assert len(history) == 9
    assert bowl.calls() == 2
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [line["genotype"] for line in lines] == [{"x": 1}, {"x": 2}]


def test_a_known_search_is_not_evaluated_again(calls: Path, tmp_path: Path) -> None:
    ledger, bowl = tmp_path / "runs.jsonl", Bowl(str(calls))
    first = search(Climber(), bowl, ledger=ledger, job={"seed": 0})
    spent = bowl.calls()
    # The last evaluations and half a line are lost.
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-3]) + lines[-1][:9])
    again = search(Climber(), bowl, ledger=ledger, job={"seed": 0})
    assert again == first
    assert bowl.calls() == spent + 3
    with pytest.raises(ArtefactError, match=r"another run.*seed"):
        search(Climber(1), bowl, ledger=ledger, job={"seed": 1})


def test_two_workers_find_what_one_does_though_one_of_them_dies(calls: Path, tmp_path: Path) -> None:
    alone = search(Climber(), Bowl(str(calls)))
    ledger, before = tmp_path / "runs.jsonl", Bowl(str(calls)).calls()
    together = search(Climber(), Bowl(str(calls), pause=0.01, dies_at=before + 7), workers=2, ledger=ledger)
    assert plain(together) == plain(alone)
    assert {row["result"]["threads"] for row in together} == {1.0}
    assert len(ledger.read_text().splitlines()) == len({row["genotype"]["x"] for row in alone})
    workers = {path.name.split("-")[2] for path in calls.iterdir()}
    assert len(workers) >= 3  # this process, and the pool before and after


def test_workers_that_always_die_end_the_search(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PATIENCE", 1)
    with pytest.raises(ScorelineError, match="again and again"):
        search(Climber(), Bowl(str(calls), dies_at=0, always=True), workers=2)
    assert Bowl(str(calls)).calls() >= 1


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from toys import Bowl, Climber
from scoreline.search.engine import search
if __name__ == "__main__":
    search(Climber(), Bowl({calls!r}, pause=0.15), ledger=Path({ledger!r}), workers=int(sys.argv[1]))
"""


def test_a_killed_search_goes_on_to_the_same_end(calls: Path, tmp_path: Path) -> None:
    ledger, script = tmp_path / "runs.jsonl", tmp_path / "killed.py"
    script.write_text(SCRIPT.format(here=str(HERE), calls=str(calls), ledger=str(ledger)))
    running = subprocess.Popen([sys.executable, str(script), "2"])
    until = time.monotonic() + 60
    while (not ledger.exists() or len(ledger.read_bytes().splitlines()) < 3) and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    finished = len(ledger.read_bytes().splitlines())
    assert finished >= 3
    workers_left = {int(path.name.split("-")[2]) for path in calls.iterdir()}
    whole = search(Climber(), Bowl(str(tmp_path)))
    assert plain(search(Climber(), Bowl(str(calls)), ledger=ledger)) == plain(whole)
    # No evaluation that was on disk was made twice, and no worker outlives the search it worked for.
    assert Bowl(str(calls)).calls() <= Bowl(str(tmp_path)).calls() + 3
    until = time.monotonic() + 10
    while any(map(alive, workers_left)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers_left - {os.getpid()}))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return pid != os.getpid()


def test_a_mistake_in_the_evaluation_is_shown_as_it_is() -> None:
    with pytest.raises(ValueError, match="cannot evaluate"):
        search(Climber(), refuses)


def test_what_is_no_number_is_never_chosen_and_stays_so(tmp_path: Path) -> None:
    for _ in range(2):
        climber = Climber()
        history = search(climber, strange, ledger=tmp_path / "runs.jsonl")
        odd = [row["result"]["value"] for row in history if row["genotype"]["x"] % 2]
        assert odd
        assert set(odd) == {math.inf}
        assert math.isfinite(climber.best[0])
    text = (tmp_path / "runs.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_results_need_a_value() -> None:
    with pytest.raises(InputError, match="value"):
        search(Climber(), lambda genotype: {"nfe": 3.0})


def test_what_cannot_be_sent_is_refused_before_any_work(calls: Path) -> None:
    with pytest.raises(InputError, match="cannot be sent"):
        search(Climber(), lambda genotype: {"value": 0.0}, workers=2)


@pytest.mark.parametrize("text", ["0", 0, "-1", "two", "ray:", "rays", "1.5", "", True])
def test_workers_that_do_not_exist(text: Any) -> None:
    with pytest.raises(InputError, match="workers"):
        parse_workers(text)


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'scoreline\[ray\]'"):
        search(Climber(), refuses, workers="ray")


def test_the_key_of_a_genotype_does_not_depend_on_its_order() -> None:
    assert genotype_key({"a": 1, "b": [2]}) == genotype_key({"b": [2], "a": 1}) != genotype_key({"a": 1, "b": [3]})
    with pytest.raises(ValueError):
        genotype_key({"a": math.nan})
