"""`scoreline compare`: one model, several samplers and budgets, a report; stopped and gone on with."""

from __future__ import annotations

import csv
import json
import math
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

QUICK = ["--count", "12", "--pairs", "4", "--seeds", "0,1", "--features", "pixels"]
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


def figures(results: dict[str, Any]) -> list[Any]:
    """What does not depend on when and how fast it ran."""
    return [
        [arm["name"], arm["nfe"], arm["macs"], arm["scores"], arm["settings"], arm["command"]]
        for arm in results["arms"]
    ]


def test_everything_is_there(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a warning in mid-run would break the progress line
        answer = scoreline(
            "compare", tiny, "--samplers", "heun,ddim,ddim:eta=1", "--nfe", "10,5", *QUICK, "--out", "demo"
        )
    assert answer.code == 0, answer.err
    folder = tmp_path / "demo"
    results = json.loads((folder / "results.json").read_text())
    arms = {(arm["sampler"], arm["budget"]): arm for arm in results["arms"]}
    # Budgets are spent as far as they go: Heun at 10 spends 9, at 5 spends 5.
    spent = {key: arm["nfe"] for key, arm in arms.items()}
    assert spent == {("heun", 10): 9, ("heun", 5): 5, ("ddim", 10): 10, ("ddim", 5): 5,
                     ("ddim:eta=1", 10): 10, ("ddim:eta=1", 5): 5}  # fmt: skip
    for arm in results["arms"]:
        assert arm["macs"] == arm["nfe"] * results["model"]["macs"]
        assert arm["seconds"] > 0
        assert arm["images_per_second"] == pytest.approx(1 / arm["seconds"])
        assert arm["peak_memory"] > 1e6
        distance = arm["scores"]["fd-pixel"]
        assert len(distance["values"]) == 2
        assert distance["low"] < distance["mean"] < distance["high"]
        assert distance["mean"] == pytest.approx(np.mean(distance["values"]))
        grid = Image.open(folder / arm["pictures"])
        assert grid.size[0] > 10 * 8
    # The distance to the ODE is for what follows it.
    assert arms["ddim:eta=1", 10]["scores"]["ode-rmse"]["mean"] is None
    assert arms["ddim:eta=1", 10]["settings"] == {"eta": 1}
    near, far = (arms["ddim", budget]["scores"]["ode-rmse"]["mean"] for budget in (10, 5))
    assert 0 < near < far
    for name in ("real", "reference"):
        Image.open(folder / results["pictures"][name]).verify()
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["name"] for row in rows] == [arm["name"] for arm in results["arms"]]
    page = (folder / "report.html").read_text()
    assert "heun" in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # nothing loads from the web
    assert "https://" not in page
    for name in ("ode-rmse", "fd-pixel", "all-scores"):
        Image.open(folder / "plots" / f"{name}.png").verify()
    assert results["command"] == shlex.join(
        ["scoreline", "compare", tiny, "--samplers", "heun,ddim,ddim:eta=1", "--nfe", "10,5", *QUICK, "--out", "demo"]
    )
    assert results["protocol"]["fd-pixel"]["reference_count"] == 500
    assert results["protocol"]["fd-pixel"]["generated_count"] == 12
    # And what a person sees.
    for words in ("budget", "evaluations", "heun", "ddim:eta=1", "report: demo/report.html"):
        assert words in answer.out
    assert [note for note in answer.out.splitlines() if note.startswith("note: fd-pixel: 12 images")]


@pytest.mark.usefixtures("no_report")
def test_the_printed_command_makes_the_pictures_of_the_grid(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    options = ["--guidance", "2", "--labels", "3,4", "--clip"]
    answer = scoreline("compare", tiny, "--samplers", "ddim", "--nfe", "4", *QUICK, *options, "--out", "demo", "--json")
    (arm,) = answer.json["arms"]
    program, *command = shlex.split(arm["command"])
    assert program == "scoreline"
    assert scoreline(*command).code == 0
    job = json.loads((tmp_path / "images/sample.json").read_text())
    assert (job["guidance"], job["labels"], job["clip"], job["noise_seed"]) == (2.0, "3,4", True, 0)
    assert len(list((tmp_path / "images").rglob("*.png"))) == 12
    grid = np.asarray(Image.open(tmp_path / "demo" / arm["pictures"]).convert("L"))
    first = np.asarray(Image.open(tmp_path / "images/000000/000000.png"))
    scale = next(s for s in range(1, 30) if _holds(grid, np.kron(first, np.ones((s, s), np.uint8))))
    assert scale >= 1


def _holds(grid: np.ndarray, picture: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(grid, picture.shape)[:12, :12] if _fits(grid, picture) else []
    return any((window == picture).all() for row in windows for window in row)


def _fits(grid: np.ndarray, picture: np.ndarray) -> bool:
    return picture.shape[0] <= grid.shape[0] and picture.shape[1] <= grid.shape[1]


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots, which take most of the time of a small comparison."""
    monkeypatch.setattr("scoreline.report.write_report", lambda results, folder: [Path(folder) / "report.html"])


def test_json_is_the_stored_results(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    answer = scoreline("compare", tiny, "--samplers", "heun", "--nfe", "5", *QUICK, "--out", "demo", "--json")
    stored = json.loads((tmp_path / "demo/results.json").read_text())
    assert {key: value for key, value in answer.json.items() if key != "files"} == stored
    assert answer.err == ""
    assert all((tmp_path / file).is_file() for file in answer.json["files"])


@pytest.mark.usefixtures("no_report")
def test_guidance_doubles_the_evaluations(scoreline: Any, tiny: str) -> None:
    options = ["--samplers", "ddim,heun", "--nfe", "10", *QUICK, "--json"]
    plain = scoreline("compare", tiny, *options, "--out", "plain").json
    guided = scoreline("compare", tiny, *options, "--guidance", "2", "--out", "guided").json
    assert [arm["nfe"] for arm in plain["arms"]] == [10, 9]
    assert [arm["nfe"] for arm in guided["arms"]] == [10, 10]  # 5 steps of 2, and 2 x 3 - 1 evaluations of 2
    assert [arm["macs"] for arm in guided["arms"]] == [arm["nfe"] * plain["model"]["macs"] for arm in guided["arms"]]
    assert guided["arms"][0]["scores"]["fd-pixel"] != plain["arms"][0]["scores"]["fd-pixel"]


@pytest.mark.usefixtures("no_report")
def test_arms_that_do_not_fit_are_warned_of(scoreline: Any, tiny: str) -> None:
    answer = scoreline("compare", tiny, "--samplers", "heun,ddim", "--nfe", "2,5,6", *QUICK, "--out", "demo")
    assert answer.code == 0
    notes = [line for line in answer.out.splitlines() if line.startswith("note: heun")]
    assert notes == [
        "note: heun at 2 evaluations is left out: Heun needs at least 3 on this model",
        "note: heun at 6 evaluations is the same run as at a smaller budget (5 spent)",
    ]


@pytest.mark.usefixtures("no_report")
def test_a_run_goes_on_and_takes_more_arms_and_seeds(
    scoreline: Any, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [tiny, *QUICK, "--out", "demo", "--json"]
    first = scoreline("compare", *options, "--samplers", "ddim", "--nfe", "5").json
    ledger = (tmp_path / "demo/ledger.jsonl").read_bytes()
    more = scoreline("compare", *options, "--samplers", "ddim,heun", "--nfe", "5,10").json
    assert (tmp_path / "demo/ledger.jsonl").read_bytes().startswith(ledger)
    assert figures(more)[0] == figures(first)[0]
    assert len(more["arms"]) == 4
    seeds = scoreline("compare", *options, "--samplers", "ddim", "--nfe", "5", "--seeds", "2,0").json
    values = [run["arms"][0]["scores"]["fd-pixel"]["values"] for run in (first, seeds)]
    assert values[1][1] == values[0][0]
    assert seeds["arms"][0]["pictures"].endswith("seed-2.png")

    def nothing_left(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("scoreline.evaluate.compare._run", nothing_left)
    monkeypatch.setattr("scoreline.evaluate.compare.converged", nothing_left)
    assert figures(scoreline("compare", *options, "--samplers", "ddim", "--nfe", "5").json) == figures(first)


@pytest.mark.usefixtures("no_report")
def test_killed_while_storing_and_started_again_ends_with_the_same_results(
    scoreline: Any, tiny: str, tmp_path: Path
) -> None:
    command = ["compare", tiny, "--samplers", "heun,ddim:eta=1", "--nfe", "5,9", *QUICK, "--batch-size", "5"]
    whole = scoreline(*command, "--out", "whole", "--json").json
    killed = subprocess.run([sys.executable, "-c", KILLED, "3", *command, "--out", "killed"], check=False)
    assert killed.returncode == -signal.SIGKILL
    ledger = (tmp_path / "killed/ledger.jsonl").read_bytes()
    assert ledger.count(b"\n") == 3
    assert not ledger.endswith(b"\n")
    assert not (tmp_path / "killed/results.json").exists()
    again = scoreline(*command, "--out", "killed", "--json").json
    ran = [json.loads(line)["key"] for line in (tmp_path / "killed/ledger.jsonl").read_bytes().splitlines()]
    assert len(ran) == len(set(ran)) == 8
    assert figures(again) == figures(whole)
    for arm in whole["arms"]:
        assert (tmp_path / "killed" / arm["pictures"]).read_bytes() == (
            tmp_path / "whole" / arm["pictures"]
        ).read_bytes()


def test_ctrl_c_leaves_one_line_and_a_run_that_goes_on(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    command = ["compare", tiny, "--samplers", "ddim", "--nfe", "40,41,42,43,44,45", "--count", "4000", "--pairs", "4"]
    command += ["--seeds", "0:400", "--features", "pixels", "--json", "--out", "demo"]
    # In the background of a script interrupts are ignored, and what is started there inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = subprocess.Popen(
        [sys.executable, "-m", "scoreline", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    try:
        ledger, late = tmp_path / "demo/ledger.jsonl", time.monotonic() + 60
        while not ledger.exists() and time.monotonic() < late:
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert (run.returncode, out) == (1, "")
    assert err == "scoreline: error: stopped; the same command goes on from here\n"
    assert not list((tmp_path / "demo").rglob(".*"))  # nothing half-written
    assert all(json.loads(line) for line in ledger.read_bytes().splitlines())
    assert not (tmp_path / "demo/results.json").exists()


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    "options, named",
    [
        (["--count", "13"], "count"),
        (["--guidance", "2"], "guidance"),
        (["--labels", "1"], "labels"),
        (["--clip"], "clip"),
        (["--pairs", "5"], "pairs"),
    ],
)
def test_the_folder_of_another_comparison_is_refused(
    scoreline: Any, tiny: str, tmp_path: Path, options: list[str], named: str
) -> None:
    command = ["compare", tiny, "--samplers", "ddim", "--nfe", "4", *QUICK, "--out", "demo"]
    scoreline(*command)
    before = (tmp_path / "demo/results.json").read_bytes()
    scoreline(*command, *options).fails(1, "demo", "another run", named)
    assert (tmp_path / "demo/results.json").read_bytes() == before


@pytest.mark.parametrize(
    "options, words",
    [
        (["--samplers", "huen"], "sampler 'huen': did you mean 'heun'?"),
        (["--samplers", "heun,dddim"], "sampler 'dddim': did you mean 'ddim'?"),
        (["--samplers", ","], "give at least one"),
        (["--samplers", "ddim:eta=3"], "eta 3"),
        (["--samplers", "heun", "--nfe", "1,2"], "Heun needs at least 3"),
        (["--nfe", "0"], "nfe 0"),
        (["--nfe", "ten"], "whole numbers"),
        (["--guidance", "2", "--samplers", "heun", "--nfe", "5"], "needs at least 6"),
        (["--labels", "10"], "labels are numbers from 0 to 9"),
        (["--count", "1"], "count 1"),
        (["--count", "0"], "count 0"),
        (["--pairs", "0"], "pairs 0"),
        (["--batch-size", "-2"], "batch_size -2"),
        (["--seeds", "0,0"], "distinct"),
        (["--data", "digitz"], "did you mean 'digits'?"),
        (["--features", "pixel"], "did you mean 'pixels'?"),
    ],
)
def test_refused_before_anything_is_written(
    scoreline: Any, tiny: str, tmp_path: Path, options: list[str], words: str
) -> None:
    # The last of an option typed twice holds.
    scoreline("compare", tiny, "--nfe", "4", "--samplers", "ddim", *QUICK, "--out", "demo", *options).fails(2, words)
    assert not (tmp_path / "demo").exists()


@pytest.mark.usefixtures("no_report")
def test_a_model_of_other_images_than_its_reference(scoreline: Any, colour: str, tiny: str, tmp_path: Path) -> None:
    command = ["--samplers", "ddim", "--nfe", "4", *QUICK, "--out", "demo"]
    scoreline("compare", colour, *command).fails(2, "(1, 8, 8)", "(3, 8, 8)")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "colour.npz", arr_0=rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8))
    scoreline("compare", tiny, *command, "--data", "./colour.npz").fails(2, "(3, 8, 8)", "(1, 8, 8)")
    assert not (tmp_path / "demo").exists()
    answer = scoreline("compare", colour, *command, "--data", "./colour.npz", "--json")
    assert answer.json["data"]["count"] == 30
    assert math.isfinite(answer.json["arms"][0]["scores"]["fd-pixel"]["mean"])
    assert answer.json["scores"]["fd-pixel"]["floor"] is None


@pytest.mark.usefixtures("no_report")
def test_the_shipped_digits(scoreline: Any) -> None:
    options = ["--samplers", "dpm-solver++2m", "--nfe", "10", "--count", "100", "--pairs", "10", "--seeds", "0"]
    found = scoreline("compare", "digits", *options, "--out", "demo", "--json").json
    (arm,) = found["arms"]
    assert arm["scores"]["ode-rmse"]["mean"] < 0.2
    assert set(arm["scores"]) == {"ode-rmse", "fd-digits", "fd-pixel"}
    assert 0 < arm["scores"]["fd-digits"]["mean"] < 3 * found["scores"]["fd-digits"]["floor"]


def test_an_adaptive_sampler_is_one_arm_at_what_it_spends(scoreline: Any, tiny: str) -> None:
    few = ("--count", 8, "--pairs", 4, "--seeds", 0)
    answer = scoreline("compare", tiny, "--samplers", "heun,rk45:rtol=1e-2", "--nfe", "5,9", *few, "--json")
    assert answer.code == 0, answer.err
    arms = {arm["name"]: arm for arm in answer.json["arms"]}
    assert len(arms) == 3
    adaptive = arms["rk45-rtol1e-2-adaptive"]
    assert adaptive["budget"] == adaptive["nfe_max"] >= adaptive["nfe"] > 9
    assert "--nfe" not in adaptive["command"]
    again = scoreline(*adaptive["command"].split()[1:])
    assert again.code == 0, again.err
    scoreline("compare", tiny, "--samplers", "rk45:rtol=0", "--nfe", 5).fails(2, "rtol 0")
    scoreline("sample", tiny, "--sampler", "rk45:rtol=1e-2", "--nfe", 9).fails(2, "nfe 9", "adaptive")
