"""`scoreline forget` from the command line, in this process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from scoreline.core.artefact import read_header, save_artefact
from scoreline.core.load import load
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.nn.autoencoder import KLAutoencoder
from scoreline.nn.mlp import MLP
from scoreline.nn.text import ByteTransformer, TextConditioned
from scoreline.nn.unet import UNet
from scoreline.train.recipe import read_recipe

KILLED = """
import os, signal, sys
real = os.replace
def replace(source, target):
    if str(target).endswith("checkpoints/000000004.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
from scoreline.cli import main
main(sys.argv[1:])
"""
SHORT = ["--steps", 3, "--batch-size", 4, "--count", 40, "--nfe", 3, "--device", "cpu"]


@pytest.fixture
def forgotten(scoreline: Any, tiny: str) -> Any:
    """A tiny model that forgot classes 0 and 3, after three steps."""
    answer = scoreline("forget", tiny, "--classes", "0,3", "--override", "1,2", "--out", "f", *SHORT, "--json")
    assert answer.code == 0, answer.err
    return answer.json


def test_a_student_its_numbers_and_a_page(scoreline: Any, tiny: str, forgotten: Any, tmp_path: Path) -> None:
    card = read_header("f/model.safetensors")["card"]
    assert card["method"] == "sfd"
    assert card["sampling"] == {"sampler": "jumps", "steps": [1]}
    assert (card["forgotten"]["classes"], card["forgotten"]["override"]) == ([0, 3], [1, 2])
    assert card["data"] == "digits"
    stored = json.loads(Path("f/forgetting.json").read_text())
    assert stored["rows"] == forgotten["rows"]
    assert stored["kept"] == [1, 2, 4, 5, 6, 7, 8, 9]
    before, after = stored["rows"]["before"], stored["rows"]["after"]
    assert (before["nfe"], after["nfe"]) == (3, 1)
    assert (before["count"], before["kept"], before["name"]) == (40, 32, "fd-digits")
    assert len(after["accuracy"]) == 10
    assert stored["columns"][:2] == [0, 3]
    assert Image.open("f/forgetting.png").size[1] == 2 + 6 * 50
    page = Path("f/report.html").read_text()
    for words in ("Forgetting classes 0, 3: ", "0, forgotten", "released script", "data:image/png;base64", "fd-digits"):
        assert words in page
    assert page.count('class="gone"') == 2
    answer = scoreline("sample", "f/model.safetensors", "--seeds", "0:3", "--out", "images", "--json")
    assert answer.json["nfe"] == 1
    # The same command again has nothing left to do, and says the same.
    words = ["forget", tiny, "--classes", "0,3", "--override", "1,2", "--out", "f", *SHORT]
    again = scoreline(*words)
    assert again.code == 0, again.err
    assert "Forgetting classes 0, 3: " in again.out
    assert "report.html" in again.out
    assert json.loads(Path("f/forgetting.json").read_text())["rows"] == stored["rows"]
    scoreline(*words[:3], "0,4", *words[4:]).fails(1, "holds another run")


def test_two_stages_and_a_judge_that_finds_the_override(scoreline: Any, tiny: str) -> None:
    answer = scoreline(
        "forget", tiny, "--classes", 0, "--override", "argmax", "--distil-steps", 2, "--weight", 0.1, "--out", "two",
        *SHORT, "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert [stage["name"] for stage in answer.json["stages"]] == ["distil", "forget"]
    assert [stage["steps"] for stage in answer.json["stages"]] == [2, 3]
    assert answer.json["overrides"] is None
    run = json.loads(Path("two/forget/run.json").read_text())
    settings = run["config"]["given"]["stage"]["settings"]
    assert (settings["forget"], settings["override"], settings["forget_weight"]) == ([0], "argmax", 0.1)
    assert settings["critic_forget_weight"] == 0.1
    first = json.loads(Path("two/distil/run.json").read_text())["config"]["given"]["stage"]["settings"]
    assert "forget" not in first
    assert settings["critic_lr"] == pytest.approx(3 * first["critic_lr"])
    distilled = load_file("two/distil.safetensors")
    assert any((value != distilled[name]).any() for name, value in load("two/model.safetensors").state_dict().items())


def test_a_killed_run_goes_on_to_the_same_weights_and_numbers(scoreline: Any, tiny: str) -> None:
    words = ["forget", tiny, "--classes", "0", "--override", "1", "--steps", "6", "--batch-size", "4", "--count", "20"]
    words += ["--nfe", "3", "--device", "cpu", "--checkpoint-every", "2"]
    assert scoreline(*words, "--out", "whole").code == 0
    killed = subprocess.run([sys.executable, "-c", KILLED, *words, "--out", "cut"], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not Path("cut/model.safetensors").exists()
    assert scoreline(*words, "--out", "cut").code == 0
    names = ("model.safetensors", "forgetting.png")
    a, b = (load_file(f"{folder}/model.safetensors") for folder in ("whole", "cut"))
    assert all((a[name] == b[name]).all() for name in a)
    whole, cut = (json.loads(Path(f"{folder}/forgetting.json").read_text())["rows"] for folder in ("whole", "cut"))
    assert whole == cut
    assert all(Path("cut", name).is_file() for name in names)


@pytest.mark.each("more, words", [
    (["--classes", "11"], ["classes", "0 to 9"]),
    (["--classes", "0,0"], ["each once"]),
    (["--classes", "zero"], ["classes", "numbers"]),
    (["--classes", "0,1,2,3,4,5,6,7,8,9"], ["keep at least one"]),
    (["--classes", "0", "--override", "0"], ["override", "kept"]),
    (["--classes", "0", "--override", "1,2"], ["one for each"]),
    (["--classes", "0", "--override", "randum"], ["random"]),
    (["--classes", "0", "--count", "3"], ["count", "20 or more"]),
    (["--classes", "0", "--judge", "digits"], ["judge", "not a classifier"]),
    (["--classes", "0", "--preset", "cifar10"], ["CUDA"]),
])  # fmt: skip
def test_what_is_wrong_is_said_before_any_work(scoreline: Any, tiny: str, more: list[str], words: list[str]) -> None:
    scoreline("forget", tiny, *more, "--out", "x", "--device", "cpu").fails(2, *words)
    assert not Path("x").exists()


@pytest.fixture
def reads() -> str:
    """A tiny model that reads captions."""
    recipe = read_recipe("digits-text")["model"]["args"]["net"]["args"]
    net = UNet(in_shape=(1, 8, 8), base_channels=8, channel_mult=(1,), num_blocks=1, attention=(8,), context_dim=8)
    model = TextConditioned(net, ByteTransformer(width=8, depth=1, length=32), recipe["prompts"])
    card = {"data": "digits", "caption_settings": {"captions": "digits"}}
    save_artefact("reads.safetensors", Preconditioned(model, EDM()), card=card)
    return "reads.safetensors"


def test_a_concept_of_captions_is_forgotten(scoreline: Any, reads: str) -> None:
    words = ["forget", reads, "--concept", "zero", "--override", "one", "--out", "f", *SHORT[:4], "--count", 100]
    answer = scoreline(*words, "--nfe", 3, "--device", "cpu", "--json")
    assert answer.code == 0, answer.err
    found = answer.json
    assert (found["classes"], found["overrides"], found["concept"]) == ([0], [1], "zero")
    assert found["kept"] == list(range(1, 10))
    assert len(found["rows"]["after"]["accuracy"]) == 10
    assert found["rows"]["after"]["kept"] == 90
    assert ["zero" in text for text in found["columns"]] == [True] + [False] * 9
    settings = json.loads(Path("f/run.json").read_text())["config"]["given"]["stage"]["settings"]
    known = load("f/model.safetensors").net.prompts
    for gone, instead in zip(settings["forget"], settings["override"]):
        assert known[gone].replace("zero", "one") == known[instead]
    assert len(settings["forget"]) == 5
    assert read_header("f/model.safetensors")["card"]["forgotten"]["concept"] == "zero"
    assert "Forgetting “zero”" in Path("f/report.html").read_text()
    made = scoreline("sample", "f/model.safetensors", "--text", "a zero", "--seeds", "0:2", "--out", "i", "--json")
    assert made.json["nfe"] == 1


@pytest.mark.each("more, words", [
    (["--concept", "eleven", "--override", "one"], ["none of the model's captions"]),
    (["--concept", "zero", "--override", "eleven"], ["override", "eleven"]),
    (["--concept", "zero"], ["override", "words"]),
    (["--concept", "small grey", "--override", "handwritten"], ["show the same classes"]),
    (["--concept", "zero", "--override", "zero"], ["override", "kept"]),
    (["--concept", "zero", "--override", "one", "--classes", "0"], ["--concept zero"]),
    ([], ["--classes 0"]),
    (["--classes", "0"], ["name a concept"]),
])  # fmt: skip
def test_concepts_that_do_not_fit_are_refused(scoreline: Any, reads: str, more: list[str], words: list[str]) -> None:
    scoreline("forget", reads, *more, "--out", "x", "--device", "cpu").fails(2, *words)
    assert not Path("x").exists()


def test_classes_are_no_concepts(scoreline: Any, tiny: str) -> None:
    scoreline("forget", tiny, "--concept", "zero", "--override", "one", "--out", "x").fails(2, "reads captions")


def test_models_without_classes_and_of_latents_are_refused(scoreline: Any, unconditional: str) -> None:
    scoreline("forget", unconditional, "--classes", "0", "--out", "x").fails(2, "knows no classes")
    coder = KLAutoencoder(in_shape=(1, 8, 8), latent_channels=2, base_channels=32, channel_mult=(1, 1))
    net = MLP(in_shape=coder.latent_shape, width=8, depth=1, num_classes=10)
    save_artefact("latent.safetensors", Latent(Preconditioned(net, EDM()), coder, scale=1.0))
    scoreline("forget", "latent.safetensors", "--classes", "0", "--out", "x").fails(2, "makes latents")
    assert not Path("x").exists()
