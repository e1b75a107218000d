"""`scoreline search`: every space from the command line, resumed, refused, and its plan sampled with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scoreline.core.artefact import save_artefact
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import Discrete
from scoreline.nn.mlp import MLP

QUICK = [
    "--evaluations",
    "12",
    "--count",
    "40",
    "--report-count",
    "40",
    "--report-seeds",
    "0,1",
    "--features",
    "pixels",
]
KILLED = """
import os, signal, sys
real, left = os.fsync, int(sys.argv[1])
def fsync(number):
    global left
    left -= 1
    if left < 0:
        os.ftruncate(number, os.fstat(number).st_size - 9)  # as if the line had not got to the disk whole
        os.kill(os.getpid(), signal.SIGKILL)
    real(number)
os.fsync = fsync
from scoreline.cli import main
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of 8x8 pictures on a table of steps, with layers to leave out."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(in_shape=(1, 8, 8), width=16, depth=4, num_classes=10)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    save_artefact(path, Preconditioned(net, Discrete(), kind="eps"), card={"data": "digits"})
    return str(path)


def told(results: dict[str, Any]) -> list[Any]:
    """What does not depend on when and how fast it ran."""
    return [
        results["settings"], results["progress"],
        [[row[key] for key in ("name", "genotype", "values", "nfe", "macs")] for row in results["rows"]],
    ]  # fmt: skip


def test_steps_from_search_to_sampled_images(scoreline: Any, small: str, tmp_path: Path) -> None:
    answer = scoreline("search", small, "--nfe", "4", *QUICK, "--out", "found", "--clip")
    assert answer.code == 0, answer.err
    for word in ("leading", "trailing", "linspace", "quadratic", "random search", "evolution", "749", "unseen noise"):
        assert word in answer.out
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["leading", "trailing", "linspace", "quadratic", "random search", "evolution"]
    assert rows["leading"]["genotype"]["steps"] == [0, 250, 500, 750]
    assert all(row["nfe"] == 4 and len(row["values"]) == 2 and row["low"] <= row["mean"] for row in rows.values())
    assert {name: len(best) for name, best in results["progress"].items()} == {"random search": 12, "evolution": 12}
    assert all(best == sorted(best, reverse=True) for best in results["progress"].values())
    assert results["settings"]["split"] == "train"  # chosen there, reported on the test split
    Image.open(tmp_path / "found" / "search.png").verify()
    # The printed command makes images; compare takes the plan too.
    use = results["use"].split()
    assert use[:2] == ["scoreline", "sample"]
    assert scoreline(*use[1:], "--seeds", "0:4").code == 0
    assert len(list((tmp_path / "images").rglob("*.png"))) == 4
    spec = use[use.index("--sampler") + 1]
    answer = scoreline("compare", small, "--samplers", f"{spec},ddim", "--nfe", "4", "--count", "12", "--pairs", "4",
                       "--seeds", "0", "--features", "pixels", "--out", "cmp")  # fmt: skip
    assert answer.code == 0, answer.err


def test_layers_under_a_budget_of_true_cost(scoreline: Any, small: str, tmp_path: Path) -> None:
    quick = [*QUICK, "--evaluations", "60"]
    for cost in ("macs", "seconds"):
        options = ["--nfe", "3", "--layers", "--max-prune", "0.8", "--cost", cost, *quick, "--out", cost, "--json"]
        answer = scoreline("search", small, *options)
        assert answer.code == 0, answer.err
        results = answer.json
        whole = results["rows"][0]["cost"]
        assert all(one["cost"] <= whole * (1 + 1e-6) for one in results["seen"])
        assert any(one["macs"] != results["seen"][0]["macs"] for one in results["seen"])
        plan = json.loads((tmp_path / cost / "plan.json").read_text())
        assert plan["kind"] == "plan"
        assert len(plan["args"]["times"]) >= 3
        values = [one["value"] for one in sorted(results["front"], key=lambda one: one["cost"])]
        assert values == sorted(values, reverse=True)
    # The seconds that were measured at the beginning are those that it goes on with.
    assert (tmp_path / "seconds" / "seconds.json").is_file()


def test_killed_and_gone_on_with(scoreline: Any, small: str, tmp_path: Path) -> None:
    command = ["search", small, "--nfe", "4", *QUICK]
    whole = scoreline(*command, "--out", "whole", "--json").json
    run = [sys.executable, "-c", KILLED, "15", *command, "--out", "killed"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "killed" / "plan.json").exists()
    again = scoreline(*command, "--out", "killed", "--json")
    assert again.code == 0, again.err
    assert told(again.json) == told(whole)
    plans = [json.loads((tmp_path / name / "plan.json").read_text()) for name in ("whole", "killed")]
    assert plans[0]["args"] == plans[1]["args"]
    scoreline("search", small, "--nfe", "5", *QUICK, "--out", "whole").fails(1, "another run", "nfe")


def test_skips_have_their_report_too(scoreline: Any, tmp_path: Path) -> None:
    quick = ["--count", "20", "--report-count", "20", "--report-seeds", "0,1", "--features", "pixels"]
    answer = scoreline("search", "digits-eps", "--space", "skips", "--nfe", "2", *quick, "--out", "s", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["rows"][0]["name"] == "untuned"
    assert (tmp_path / "s" / "skips.json").is_file()
    assert "--sampler" in answer.json["use"]


def test_a_solver_is_found_and_sampled_with(scoreline: Any, small: str, tmp_path: Path) -> None:
    answer = scoreline("search", small, "--space", "solver", "--nfe", "4", *QUICK, "--clip", "--out", "s", "--json")
    assert answer.code == 0, answer.err
    names = [row["name"] for row in answer.json["rows"]]
    assert names[-2:] == ["random search", "s3"]
    assert scoreline(*answer.json["use"].split()[1:], "--seeds", "0:2").code == 0
    assert len(list((tmp_path / "images").rglob("*.png"))) == 2


FEW = ["--evaluations", "4", "--count", "4", "--report-count", "4", "--report-seeds", "0,1", "--features", "pixels"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few finalists, baselines and published solvers, and no picture drawn."""
    monkeypatch.setattr("scoreline.search.workflow.FINALISTS", 1)
    monkeypatch.setattr("scoreline.search.solvers.BASELINES", ("unipc-2",))
    monkeypatch.setattr("scoreline.search.solvers.PUBLISHED", ("ddim",))
    monkeypatch.setattr("scoreline.report.search_plots.write_search_plot", lambda results, path: _touched(path))


def _touched(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("space", ["steps", "solver"])
def test_several_budgets_have_each_a_front_and_a_plan(scoreline: Any, small: str, tmp_path: Path, space: str) -> None:
    command = ["search", small, "--space", space, *FEW, "--clip", "--out", space]
    both = scoreline(*command, "--nfe", "3,4", "--json")
    assert both.code == 0, both.err
    assert list(both.json["budgets"]) == ["3", "4"]
    for nfe, found in both.json["budgets"].items():
        assert (found["settings"]["nfe"], len(found["front"]) > 0) == (int(nfe), True)
        assert f"{space}/nfe-{nfe}/plan.json" in found["files"]
        assert all(Path(file).is_file() for file in found["files"])
        assert {row["nfe"] for row in found["rows"]} == {int(nfe)}
    if space == "solver":  # each is what a search of that budget alone finds
        alone = scoreline(*command[:-1], "alone", "--nfe", "3", "--json")
        assert told(alone.json) == told(both.json["budgets"]["3"])
    else:  # the same command finds everything there
        before = {file: file.read_bytes() for file in (tmp_path / space).rglob("*.jsonl")}
        text = scoreline(*command, "--nfe", "3,4")
        assert text.out.count("use it:") == 2, text.err
        assert {file: file.read_bytes() for file in (tmp_path / space).rglob("*.jsonl")} == before


@pytest.mark.usefixtures("short")
def test_evolution_and_skip_coefficients_of_a_solver(scoreline: Any, tmp_path: Path) -> None:
    options = ["--space", "solver", "--nfe", "3", *FEW, "--method", "evolution", "--joints"]
    answer = scoreline("search", "digits", *options, "--out", "s", "--json")
    assert answer.code == 0, answer.err
    assert [row["name"] for row in answer.json["rows"]][-2:] == ["random search", "evolution"]
    assert (answer.json["settings"]["variant"], answer.json["settings"]["joints"]) == ("paper", 4)
    assert len(answer.json["rows"][-1]["genotype"]["skips"]) == 4
    assert scoreline(*answer.json["use"].split()[1:], "--seeds", "0:2").code == 0


@pytest.mark.parametrize("options, words", [
    (["--nfe", "4,4"], ["nfe", "distinct"]),
    (["--nfe", "4,1200"], ["steps", "1000"]),
    (["--nfe", "four"], ["nfe", "whole numbers"]),
    (["--space", "solver", "--nfe", "4,1"], ["nfe", "at least 2"]),
    (["--space", "solver", "--joints"], ["joints"]),
    (["--space", "solver", "--method", "s3", "--variant", "released"], ["evolution alone"]),
    (["--method", "evolution"], ["--method", "--space solver"]),
    (["--joints"], ["--joints", "--space solver"]),
    (["--space", "step"], ["did you mean 'steps'"]),
    (["--metric", "fid"], ["fid", "fd"]),
    (["--workers", "0"], ["workers", "1 or more"]),
    (["--workers", "many"], ["workers", "ray:ADDRESS"]),
    (["--nfe", "1200"], ["steps"]),
    (["--nfe", "0"], ["nfe", "positive"]),
    (["--evaluations", "0"], ["evaluations"]),
    (["--sampler", "ddimm"], ["did you mean 'ddim'"]),
    (["--sampler", "ddim:eta=1"], ["without settings"]),
    (["--layers", "--max-prune", "0.1"], ["not one whole layer of 4"]),
    (["--layers", "--max-prune", "1.5"], ["max_prune"]),
    (["--cost", "macs"], ["--cost", "--layers"]),
    (["--space", "skips", "--layers"], ["--layers", "--space steps"]),
    (["--space", "skips"], ["joints"]),
    (["--report-seeds", "0,0"], ["distinct"]),
    (["--report-count", "1"], ["report_count"]),
    (["--count", "1"], ["count"]),
    (["--labels", "12"], ["label", "0 to 9"]),
    (["--metric", "rmse", "--noise", "fresh"], ["same noise"]),
])  # fmt: skip
def test_what_is_refused_before_any_work(
    scoreline: Any, small: str, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    scoreline("search", small, *options, "--out", "never").fails(2, *words)
    assert not (tmp_path / "never" / "evolution.jsonl").exists()
