"""`scoreline distill`, `scoreline pairs` and what is done with a student: from the command line, in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from scoreline.core.artefact import read_header, save_artefact
from scoreline.core.load import load
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.nn.mlp import MLP
from scoreline.train.recipe import recipe_file

ONE: dict[str, Any] = {
    "teacher": "none-yet",
    "data": {"source": "digits", "split": "train"},
    "method": "cd",
    "settings": {"points": 4, "distance": "squared", "lr": {"cosine": {"lr": 0.001, "warmup": 2}}},
    "steps": 4,
    "batch_size": 8,
    "ema": 0.5,
}
TWO: dict[str, Any] = {
    "batch_size": 4,
    "stages": {
        "reflow": {
            "method": "rectified-flow", "pairs": {"count": 8, "sampler": "heun", "nfe": 3},
            "student": {"init": "teacher"}, "steps": 3,
        },
        "distil": {
            "method": "flow-distillation", "pairs": {"from": "reflow", "count": 6, "sampler": "euler", "nfe": 2},
            "student": {"from": "reflow"}, "steps": 3, "ema": 0.9,
        },
    },
}  # fmt: skip


def written(name: str, recipe: dict[str, Any]) -> str:
    Path(name).write_text(yaml.safe_dump(recipe, sort_keys=False))
    return name


@pytest.fixture
def student(scoreline: Any, tiny: str) -> str:
    """A consistency student of the tiny model, trained for four steps."""
    answer = scoreline("distill", written("cd.yaml", ONE), "--teacher", tiny, "--out", "made", "--device", "cpu")
    assert answer.code == 0, answer.err
    return "made/model.safetensors"


def test_a_student_with_its_card_and_pictures(scoreline: Any, tiny: str, student: str, tmp_path: Path) -> None:
    card = read_header(student)["card"]
    assert card["command"] == f"scoreline distill cd.yaml --teacher {tiny} --out made --device cpu"
    assert card["teacher"] == {"name": tiny, "fingerprint": read_header(tiny)["fingerprint"]}
    wanted = {"method": "cd", "steps": 4, "batch_size": 8, "seed": 0, "data": "digits", "split": "train"}
    assert {key: card[key] for key in wanted} == wanted
    assert card["sampling"] == {"sampler": "jumps", "steps": None}
    # A turn of cd at one step of Heun: the teacher twice, the target once, the student forward and back.
    assert card["training_evaluations"] == 4 * 8 * (2 + 1 + 1 + 2)
    assert card["training_seconds"] > 0
    # Five rows of ten digits: 1, 2, 4, 8 steps and the teacher.
    width, height = Image.open("made/steps.png").size
    assert height == 2 + 5 * 50
    assert width > 10 * 50
    # Averaged weights are what is left, and the same command again leaves the same.
    before = Path(student).read_bytes()
    again = scoreline("distill", "cd.yaml", "--teacher", tiny, "--out", "made", "--device", "cpu")
    assert "nothing left to do" in again.out
    assert load_file(student).keys() == load(student).state_dict().keys()
    assert read_header(student)["fingerprint"].encode() in before
    scoreline("distill", "cd.yaml", "--teacher", tiny, "--out", "made", "--seed", 1).fails(
        1, "holds another run", "seed"
    )
    scoreline("distill", "cd.yaml", "--teacher", "digits", "--out", "made").fails(1, "holds another run")


def test_a_student_is_sampled_as_its_card_says(scoreline: Any, student: str, tmp_path: Path) -> None:
    answer = scoreline("sample", student, "--seeds", "0:3", "--out", "images", "--json")
    assert (answer.json["nfe"], answer.json["sampler"][:5]) == (1, "Jumps")
    assert scoreline("sample", student, "--seeds", "0:3", "--steps", 2, "--out", "two", "--json").json["nfe"] == 2
    scoreline("sample", student, "--sampler", "heun", "--out", "x").fails(2, "needs a score", "jumps")
    scoreline("sample", student, "--guidance", 2, "--out", "x").fails(2, "guidance", "leave it out")
    scoreline("sample", student, "--clip", "--out", "x").fails(2, "clip", "leave it out")
    scoreline("sample", "digits", "--sampler", "jumps", "--out", "x").fails(2, "jumps needs a flow map")
    scoreline("compare", student, "--out", "x").fails(2, "compare its teacher, with --students")
    model = load(student)
    card = model.header["card"] | {"sampling": {"sampler": "jumps", "steps": [2, 4]}}
    save_artefact("few.safetensors", model, card=card)
    assert scoreline("sample", "few.safetensors", "--seeds", "0:3", "--out", "few", "--json").json["nfe"] == 2
    scoreline("sample", "few.safetensors", "--steps", 3, "--out", "x").fails(2, "steps 3", "made for 2, 4")
    assert not Path("x").exists()


def test_compare_puts_students_beside_their_teacher(
    scoreline: Any, tiny: str, student: str, colour: str, tmp_path: Path
) -> None:
    common = [
        "--samplers",
        "heun",
        "--nfe",
        "1,2,3",
        "--seeds",
        "0",
        "--count",
        12,
        "--pairs",
        4,
        "--features",
        "pixels",
    ]
    Path("fast.safetensors").write_bytes(Path(student).read_bytes())
    answer = scoreline("compare", tiny, *common, "--students", "fast.safetensors", "--out", "c", "--json")
    assert answer.code == 0, answer.err
    arms = {arm["name"]: arm for arm in answer.json["arms"]}
    assert list(arms) == ["heun-3", "fast-1", "fast-2", "fast-3"]
    assert [arm["nfe"] for arm in arms.values()] == [3, 1, 2, 3]
    assert all(arm["scores"]["ode-rmse"]["mean"] > 0 for arm in arms.values())
    assert arms["fast-2"]["macs"] == 2 * arms["fast-1"]["macs"] > 0
    sizes = {name: arm["parameters"] for name, arm in arms.items()}
    assert sizes["heun-3"] == sum(p.numel() for p in load(tiny).parameters())
    assert sizes["fast-1"] == sum(p.numel() for p in load("fast.safetensors").parameters())
    assert arms["fast-1"]["student"]["fingerprint"] == read_header("fast.safetensors")["fingerprint"]
    assert "--steps" not in arms["fast-1"]["command"]
    assert "fast.safetensors --sampler jumps --nfe 1" in arms["fast-1"]["command"]
    rows = (tmp_path / "c" / "results.csv").read_text().splitlines()
    assert rows[0].endswith(",parameters")
    assert rows[2].endswith(f",{sizes['fast-1']}")
    page = (tmp_path / "c" / "report.html").read_text()
    assert "Parameters" in page
    assert "fast (" in page
    assert any("puts noise back at 2, 3 steps" in warning for warning in answer.json["warnings"])
    # One picture of each, at the same noise: the student's prior has its own size, not the sampler's.
    assert (tmp_path / "c" / "pictures" / "fast-1-seed-0.png").is_file()
    refused = [("fast.safetensors,fast.safetensors", "already"), (tiny, "names no sampler"), (colour, "(3, 8, 8)")]
    for paths, word in refused:
        scoreline("compare", tiny, *common, "--students", paths, "--out", "x").fails(2, word)


def test_stages_leave_an_artefact_each_and_survive_a_kill(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    command = ["distill", written("two.yaml", TWO), "--teacher", tiny, "--device", "cpu", "--checkpoint-every", "2"]
    whole = scoreline(*command, "--out", "whole", "--json")
    assert whole.code == 0, whole.err
    assert [stage["name"] for stage in whole.json["stages"]] == ["reflow", "distil"]
    reflow, last = read_header("whole/reflow.safetensors"), read_header("whole/distil.safetensors")
    assert reflow["card"]["pairs"]["teacher"]["fingerprint"] == read_header(tiny)["fingerprint"]
    assert last["card"]["pairs"]["teacher"]["fingerprint"] == reflow["fingerprint"]
    assert last["card"]["data"] == "digits"
    assert last["card"]["pair_evaluations"] == 12
    assert read_header("whole/model.safetensors")["fingerprint"] == last["fingerprint"] != reflow["fingerprint"]
    killed = """
import os, signal, sys
real = os.replace
def replace(source, target):
    if str(target).endswith("distil/checkpoints/000000002.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)  # in the second stage, before its checkpoint is there
    real(source, target)
os.replace = replace
from scoreline.cli import main
main(sys.argv[1:])
"""
    words = [sys.executable, "-c", killed, *command, "--out", "killed"]
    assert subprocess.run(words, check=False, capture_output=True).returncode == -9
    assert Path("killed/reflow.safetensors").is_file()
    assert not Path("killed/model.safetensors").exists()
    assert scoreline(*command, "--out", "killed").code == 0
    for name in ("reflow", "model"):
        assert (
            read_header(f"killed/{name}.safetensors")["fingerprint"]
            == (read_header(f"whole/{name}.safetensors")["fingerprint"])
        )


def test_a_preset_with_captions(scoreline: Any, tmp_path: Path) -> None:
    typed = ("distill", "scott", "--preset", "digits-text", "--steps", 1, "--batch-size", 4, "--out", "run")
    assert scoreline(*typed).code == 0
    card = read_header(tmp_path / "run/model.safetensors")["card"]
    assert (card["captions"], card["caption_settings"]) == ("made from labels", {"captions": "digits"})
    assert Image.open("run/steps.png").size[1] > 40
    made = ("sample", "run/model.safetensors", "--text", "a handwritten three", "--seeds", "0:2", "--steps", 2)
    assert scoreline(*made, "--out", "made").code == 0
    assert len(list((tmp_path / "made").rglob("*.png"))) == 2
    recipe = recipe_file("scott-digits-text")
    recipe["data"].pop("captions")
    scoreline("distill", written("bare.yaml", recipe), "--out", "no").fails(2, "no captions", "captions: digits")
    recipe["data"]["captions"] = "digit"
    scoreline("distill", written("bad.yaml", recipe), "--out", "no").fails(2, "did you mean 'digits'")
    assert not (tmp_path / "no").exists()


def test_a_dry_run_says_what_would_be_done(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    answer = scoreline(
        "distill", written("two.yaml", TWO), "--teacher", tiny, "--dry-run", "--pair-count", 20, "--json"
    )
    resolved = answer.json["resolved"]["reflow"]
    assert resolved["pairs"]["count"] == 20
    assert resolved["plan"]["steps"] == 3
    assert answer.json["later"] == ["distil"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.yaml"]


def test_pairs_made_before_must_be_of_this_teacher_and_shape(
    scoreline: Any, tiny: str, unconditional: str, tmp_path: Path
) -> None:
    one = dict(TWO["stages"]["reflow"]) | {"batch_size": 4}
    config = written("reflow.yaml", one)
    made = scoreline("pairs", tiny, "--count", 6, "--nfe", 3, "--out", "store")
    assert made.out == "6 pairs in store (3 network evaluations each)\n"
    assert "all were there already" in scoreline("pairs", tiny, "--count", 6, "--nfe", 3, "--out", "store").out
    answer = scoreline("distill", config, "--teacher", tiny, "--pairs", "store", "--out", "a", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert read_header("a/model.safetensors")["card"]["pairs"]["count"] == 6
    scoreline("distill", config, "--teacher", unconditional, "--pairs", "store", "--out", "b").fails(
        1, "pairs of another teacher", "scoreline pairs"
    )
    cd = written("cd.yaml", ONE)
    scoreline("distill", cd, "--teacher", tiny, "--pairs", "store").fails(2, "learns from images, not from pairs")
    assert not Path("b").exists()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("icd", ["method 'icd'", "did you mean 'cd'"]),
        ("cd --preset digit", ["preset of cd 'digit'", "did you mean 'digits'"]),
        ("cd --teacher digtis", ["did you mean 'digits'"]),
        ("ict --teacher digits", ["learns without one", "scoreline train ict-digits"]),
        ("cd --preset cifar10 --teacher digits --device cpu", ["CUDA", "--steps 10"]),
        ("instaflow --data digits", ["learns from pairs"]),
        ("nothing.yaml", ["no such file"]),
    ],
    ids=["method", "preset", "teacher", "teacher-free", "cuda", "pairs", "file"],
)
def test_what_is_misspelt_is_refused_before_work(scoreline: Any, tmp_path: Path, typed: str, words: list[str]) -> None:
    answer = scoreline("distill", *typed.split())
    answer.fails(1 if typed.endswith("yaml") else 2, *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": {"pionts": 4}}, ["did you mean 'points'"]),
        ({"student": {"init": "techer"}}, ["init: teacher"]),
        ({"student": {"init": "fresh"}}, ["needs net"]),
        ({"student": {"from": "reflow"}}, ["from 'reflow'"]),
        ({"method": "denoising"}, ["method of stage", "Known"]),
        ({"pairs": {"count": 3}}, ["data and pairs"]),
        ({"step": 3}, ["did you mean 'steps'"]),
        ({"data": {"source": "digits"}, "student": {"init": "fresh", "net": {
            "kind": "network", "name": "mlp", "args": {"in_shape": [1, 4, 4], "num_classes": 10}}}}, ["shape"]),
        ({"student": {"init": "fresh", "net": {
            "kind": "network", "name": "mlp", "args": {"in_shape": [1, 8, 8], "num_classes": 5}}}}, ["classes"]),
        ({"settings": {"lr": {"cosin": {"lr": 1.0}}}}, ["did you mean 'cosine'"]),
    ],
    ids=["setting", "init", "net", "from", "method", "both", "key", "shape", "classes", "lr"],
)  # fmt: skip
def test_a_recipe_that_does_not_fit_is_refused_before_work(
    scoreline: Any, tiny: str, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    config = written("bad.yaml", ONE | changes)
    scoreline("distill", config, "--teacher", tiny, "--out", "made", "--device", "cpu").fails(2, *words)
    assert not (tmp_path / "made").exists()


def test_train_takes_recipes_without_a_teacher(scoreline: Any, tmp_path: Path) -> None:
    net = {"kind": "network", "name": "mlp", "args": {"in_shape": [1, 8, 8], "width": 16, "depth": 1}}
    recipe = {
        "data": ONE["data"], "student": {"init": "fresh", "net": net}, "method": "ict", "steps": 2, "batch_size": 4,
    }  # fmt: skip
    answer = scoreline("train", written("ict.yaml", recipe), "--out", "made", "--device", "cpu", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(json.dumps(answer.json))["model"] == "made/model.safetensors"
    assert read_header("made/model.safetensors")["card"]["teacher"] is None
    assert scoreline("sample", "made/model.safetensors", "--seeds", "0:2", "--out", "images").code == 0
    scoreline("train", written("cd.yaml", ONE), "--out", "x").fails(2, "use scoreline distill")
    scoreline("train", "cd-digits", "--out", "x").fails(2, "use scoreline distill")
    scoreline("distill", written("cd2.yaml", {k: v for k, v in ONE.items() if k != "teacher"})).fails(
        2, "--teacher MODEL"
    )


def test_a_student_without_a_score_is_no_teacher(scoreline: Any, student: str) -> None:
    answer = scoreline("distill", "cd.yaml", "--teacher", student, "--out", "again", "--device", "cpu")
    answer.fails(2, "teacher 'ConsistencyFunction'", "knows no score")
    assert not Path("again").exists()
    # A method that only starts from its network takes it, and has no teacher's row among the pictures.
    recipe = {key: value for key, value in ONE.items() if key != "settings"} | {"method": "ct"}
    more = scoreline("distill", written("ct.yaml", recipe), "--teacher", student, "--out", "more", "--device", "cpu")
    assert more.code == 0, more.err
    assert Image.open("more/steps.png").size[1] == 2 + 4 * 50


def test_help_lists_the_methods(scoreline: Any) -> None:
    text = " ".join(scoreline("distill", "--help").out.split())
    for name in ("cd", "ct", "ict", "instaflow", "rectified-flow"):
        assert name in text


def test_other_verbs_take_students_that_are_denoisers(scoreline: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MLP(in_shape=(1, 8, 8), width=16, depth=1)
    model = Preconditioned(net, EDM(), sigma_data=0.75)
    card = {"data": "digits", "sampling": {"sampler": "euler", "steps": [1, 2]}}
    save_artefact("flow.safetensors", model, card=card)
    assert scoreline("sample", "flow.safetensors", "--seeds", "0:2", "--out", "one", "--json").json["nfe"] == 1
    scoreline("sample", "flow.safetensors", "--steps", 3, "--seeds", "0:2", "--out", "x").fails(2, "made for 1, 2")
    # By another sampler it is a model like any other.
    other = scoreline("sample", "flow.safetensors", "--sampler", "ddim", "--steps", 3, "--seeds", "0:2", "--out", "y")
    assert other.code == 0, other.err
    answer = scoreline(
        "edit", "flow.safetensors", "--task", "interpolate", "--sampler", "heun", "--nfe", 5, "--out", "e"
    )
    assert answer.code == 0, answer.err


def test_pictures_in_the_middle_are_not_counted_as_training(scoreline: Any, tiny: str) -> None:
    command = ["distill", written("cd.yaml", ONE), "--teacher", tiny, "--out", "drawn", "--device", "cpu"]
    assert scoreline(*command, "--sample-every", 2).code == 0
    assert sorted(path.name for path in Path("drawn/samples").iterdir()) == ["000000002.png", "000000004.png"]
    assert read_header("drawn/model.safetensors")["card"]["training_evaluations"] == 4 * 8 * 6
