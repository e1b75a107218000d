"""`scoreline sample`: pictures by number, the same in any batch, in one run or several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scoreline.core.artefact import save_artefact
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.nn.text import ByteTransformer, TextConditioned
from scoreline.nn.unet import UNet

KILLED = """
import os, signal, sys
real, left = os.replace, int(sys.argv[1])
def replace(source, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)  # with the unfinished file still there
    real(source, target)
os.replace = replace
from scoreline.cli import main
main(sys.argv[2:])
"""


def pixels(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def images(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]).astype(int)


def test_pngs_by_number_in_folders_of_a_thousand(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    answer = scoreline("sample", tiny, "--nfe", 10, "--seeds", "3,999,1000,12345", "--out", "made")
    assert answer.code == 0
    assert answer.out == "4 images in made (9 network evaluations each)\n"
    names = ["000000/000003.png", "000000/000999.png", "001000/001000.png", "012000/012345.png"]
    assert sorted(pixels(tmp_path / "made")) == names
    picture = Image.open(tmp_path / "made" / names[0])
    assert (picture.mode, picture.size) == ("L", (8, 8))
    assert len({*pixels(tmp_path / "made").values()}) == 4


def test_npz_holds_the_same_pictures(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    scoreline("sample", tiny, "--steps", 3, "--seeds", "0:5", "--out", "made")
    answer = scoreline("sample", tiny, "--steps", 3, "--seeds", "0:5", "--out", "made.npz", "--json")
    assert answer.json["nfe"] == 5
    assert answer.json["count"] == 5
    with np.load(tmp_path / "made.npz") as arrays:
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_0"].shape == (5, 8, 8, 1)
        np.testing.assert_array_equal(arrays["arr_0"][..., 0], images(tmp_path / "made"))
        np.testing.assert_array_equal(arrays["arr_1"], range(5))
    assert not (tmp_path / "made.parts").exists()
    scoreline("sample", tiny, "--steps", 3, "--seeds", "0:5", "--out", "made.npz").fails(
        1, "made.npz", "exists already"
    )


def test_colour(scoreline: Any, colour: str, tmp_path: Path) -> None:
    scoreline("sample", colour, "--nfe", 3, "--seeds", "0", "--out", "made")
    assert Image.open(tmp_path / "made/000000/000000.png").mode == "RGB"
    scoreline("sample", colour, "--nfe", 3, "--seeds", "0", "--out", "made.npz")
    with np.load(tmp_path / "made.npz") as arrays:
        assert arrays["arr_0"].shape == (1, 8, 8, 3)


def test_a_picture_does_not_depend_on_its_batch(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    for size, seeds in ((1, "0:7"), (7, "0:7"), (3, "6,5,4,3,2,1,0")):
        code = scoreline("sample", tiny, "--nfe", 9, "--seeds", seeds, "--batch-size", size, "--out", f"by{size}").code
        assert code == 0
    one = images(tmp_path / "by1")
    for other in ("by7", "by3"):
        # The design's tolerance, seen through rounding to bytes.
        assert np.abs(images(tmp_path / other) - one).max() <= 1
    assert len(np.unique(one, axis=0)) == 7


def test_labels_noise_guidance_and_clip_reach_the_model(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    def made(*options: object) -> np.ndarray:
        name = "-".join(map(str, options)).lstrip("-") or "plain"
        answer = scoreline("sample", tiny, "--nfe", 10, "--seeds", "0:4", "--out", name, *options, "--json")
        spent[name] = answer.json["nfe"]
        return images(tmp_path / name)

    spent: dict[str, float] = {}
    plain = made()
    np.testing.assert_array_equal(made("--labels", "0,1,2,3"), plain)  # the classes in turn
    np.testing.assert_array_equal(made("--guidance", 1), plain)
    for options in (["--labels", "7"], ["--labels", "none"], ["--noise-seed", 1], ["--guidance", 2], ["--clip"]):
        assert (made(*options) != plain).any(), options
    assert spent["plain"] == 9
    assert spent["guidance-2"] == 10  # three levels, five evaluations, each on a doubled batch


def test_going_on_makes_what_is_missing(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    command = ["sample", tiny, "--nfe", 9, "--seeds", "0:6", "--batch-size", 4, "--out", "made"]
    scoreline(*command)
    first = pixels(tmp_path / "made")
    again = scoreline(*command)
    assert again.out == "6 images in made (all were there already)\n"
    (tmp_path / "made/000000/000001.png").unlink()
    (tmp_path / "made/000000/.abc.partial.png").write_bytes(b"half")
    assert "5 were there already" in scoreline(*command).out
    assert pixels(tmp_path / "made") == first
    more = scoreline("sample", tiny, "--nfe", 9, "--seeds", "0:8", "--batch-size", 4, "--out", "made", "--json").json
    assert (more["made"], more["count"]) == (2, 8)


def test_killed_at_a_picture_and_started_again_ends_with_the_same_bytes(
    scoreline: Any, tiny: str, tmp_path: Path
) -> None:
    command = ["sample", tiny, "--nfe", "9", "--seeds", "0:10", "--batch-size", "4", "--sampler", "heun"]
    scoreline(*command, "--out", "whole")
    killed = subprocess.run([sys.executable, "-c", KILLED, "7", *command, "--out", "killed"], check=False)
    assert killed.returncode == -9
    assert 0 < len(list((tmp_path / "killed/000000").glob("0*.png"))) < 10
    assert len(list((tmp_path / "killed").rglob(".*"))) == 1
    assert scoreline(*command, "--out", "killed").code == 0
    assert pixels(tmp_path / "killed") == pixels(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob(".*"))


@pytest.mark.parametrize(
    "options, named",
    [
        (["--nfe", 7], "sampler"),
        (["--sampler", "ddim"], "sampler"),
        (["--labels", "1"], "labels"),
        (["--guidance", 2], "guidance"),
        (["--noise-seed", 1], "noise_seed"),
        (["--clip"], "clip"),
        (["--dtype", "float64"], "dtype"),
    ],
)
def test_the_folder_of_another_run_is_refused(
    scoreline: Any, tiny: str, tmp_path: Path, options: list[object], named: str
) -> None:
    scoreline("sample", tiny, "--nfe", 9, "--seeds", "0:2", "--out", "made")
    before = pixels(tmp_path / "made")
    options = options if "--nfe" in options else [*options, "--nfe", 9]
    scoreline("sample", tiny, "--seeds", "0:4", "--out", "made", *options).fails(1, "made", "another run", named)
    assert pixels(tmp_path / "made") == before


def test_the_folder_of_another_model_or_of_a_person_is_refused(
    scoreline: Any, tiny: str, unconditional: str, tmp_path: Path
) -> None:
    scoreline("sample", tiny, "--nfe", 9, "--seeds", "0:2", "--out", "made")
    scoreline("sample", unconditional, "--nfe", 9, "--seeds", "0:2", "--out", "made").fails(1, "made", "model differ")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/holiday.png").write_bytes(b"")
    scoreline("sample", tiny, "--nfe", 9, "--out", "mine").fails(1, "mine", "choose another folder")
    assert os.listdir(tmp_path / "mine") == ["holiday.png"]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--sampler", "huen"], "sampler 'huen': did you mean 'heun'?"),
        (["--sampler", "ddim:etta=1"], "did you mean 'eta'?"),
        (["--sampler", "ddim:eta=much"], "must be a number"),
        (["--sampler", "ddim:eta=2"], "eta 2"),
        (["--sampler", "ddim:eta"], "name:key=value"),
        (["--sampler", "heun:grid=karas"], "did you mean 'karras'?"),
        (["--sampler", "heun:grid=5"], "grid '5'"),
        (["--sampler", "heun:grid=leading"], "grid"),
        (["--nfe", 2], "needs at least 3"),
        (["--nfe", 0], "nfe 0"),
        (["--nfe", 9, "--steps", 5], "give one of them"),
        (["--nfe", 4, "--guidance", 2], "needs at least 6"),
        (["--labels", "10"], "labels are numbers from 0 to 9"),
        (["--labels", "a"], "labels are numbers from 0 to 9"),
        (["--labels", ""], "labels are numbers"),
        (["--seeds", "a"], "whole numbers"),
        (["--seeds", "5:5"], "is empty"),
        (["--seeds", "1,1"], "distinct"),
        (["--seeds", "-3"], "start at 0"),
        (["--batch-size", 0], "batch_size 0"),
        (["--noise-seed", -1], "seed -1"),
        (["--dtype", "float16"], "float16"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_refused_before_anything_is_written(
    scoreline: Any, tiny: str, tmp_path: Path, options: list[object], words: str
) -> None:
    scoreline("sample", tiny, "--out", "made", *options).fails(2, words)
    assert not (tmp_path / "made").exists()


def test_a_model_without_classes(scoreline: Any, unconditional: str, tmp_path: Path) -> None:
    assert scoreline("sample", unconditional, "--nfe", 5, "--seeds", "0:2", "--out", "made").code == 0
    scoreline("sample", unconditional, "--labels", "3", "--out", "no").fails(2, "no classes")
    scoreline("sample", unconditional, "--guidance", 2, "--out", "no").fails(2, "no classes")
    assert not (tmp_path / "no").exists()


def test_a_model_that_takes_text(scoreline: Any, tiny: str, reading: str, tmp_path: Path) -> None:
    def made(*options: object) -> np.ndarray:
        folder = f"made{len(list(tmp_path.iterdir()))}"
        typed = ("sample", reading, "--sampler", "euler", "--nfe", 4, "--seeds", "0:2", "--out", folder)
        assert scoreline(*typed, *options).code == 0
        return images(tmp_path / folder)

    three, seven, both = made("--text", "a three"), made("--text", "seven"), made("--text", "a three | seven")
    assert (three != seven).any()
    np.testing.assert_array_equal(both, np.stack([three[0], seven[1]]))
    strong, none = made("--text", "seven", "--guidance", 3, "--nfe", 8), made("--text", "none")
    assert (strong != seven).any()
    np.testing.assert_array_equal(made("--text", "seven", "--guidance", 0, "--nfe", 8), none)
    for model, options, said in (
        (reading, [], "--text"),
        (reading, ["--text", "x" * 20], "20 bytes"),
        (reading, ["--text", "a||b"], "is empty"),
        (tiny, ["--text", "a three"], "no captions"),
    ):
        scoreline("sample", model, "--nfe", 3, "--out", "no", *options).fails(2, said)
    assert not (tmp_path / "no").exists()


@pytest.fixture
def reading(tmp_path: Path) -> str:
    """A tiny model that takes text."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(in_shape=(1, 8, 8), base_channels=8, channel_mult=(1,), num_blocks=1, attention=(8,), context_dim=8)
        model = Preconditioned(TextConditioned(net, ByteTransformer(width=8, depth=1, length=12)), EDM())
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
    save_artefact(tmp_path / "reading.safetensors", model)
    return str(tmp_path / "reading.safetensors")


def test_images_that_are_not_finite_are_not_written(
    scoreline: Any, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scoreline.diffusion.preconditioned import Preconditioned

    monkeypatch.setattr(Preconditioned, "decode", lambda self, x: x / 0 * 0)
    answer = scoreline("sample", tiny, "--nfe", 5, "--seeds", "0:2", "--out", "made")
    answer.fails(answer.code, "not finite")
    assert answer.code in (1, 2)
    assert not pixels(tmp_path / "made")


def test_the_record_in_the_folder(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    scoreline("sample", tiny, "--nfe", 5, "--seeds", "0:2", "--out", "made")
    job = json.loads((tmp_path / "made/sample.json").read_text())
    assert job["sampler"].startswith("Heun(")
    assert len(job["model"]) == 64


@pytest.mark.parametrize("model", ["digits", "digits-eps"])
def test_the_shipped_models(scoreline: Any, model: str, tmp_path: Path) -> None:
    answer = scoreline("sample", model, "--sampler", "ddim", "--nfe", 4, "--seeds", "0:4", "--out", "made", "--json")
    assert (answer.code, answer.json["nfe"]) == (0, 4)
    made = images(tmp_path / "made")
    assert made.std() > 40  # pictures, not grey
