"""`scoreline edit`: what is made, how it goes on, and what is refused before anything is written."""

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
from scoreline.core.load import load
from scoreline.data import load_images, to_uint8
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.nn.autoencoder import KLAutoencoder
from scoreline.nn.mlp import MLP
from scoreline.samplers.latents import read_latents

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

INPAINT = ("--task", "inpaint", "--mask", "left-half", "--images", "3,7", "--count", 3, "--nfe", 6)


def samples(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("samples/*.png"))}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def digit(position: int) -> np.ndarray:
    return to_uint8(load_images("digits").batch([position]).image)[0, 0].numpy().astype(int)


def test_inpainting_keeps_what_is_known_and_makes_the_rest(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    answer = scoreline("edit", tiny, *INPAINT, "--out", "made")
    assert answer.code == 0, answer.err
    first, second = answer.out.splitlines()
    assert first == ("6 pictures in made/samples (6 network evaluations each); all beside the originals: made/edit.png")
    assert second.startswith("largest change of a known pixel: 0.00")
    names = [f"image-{i}-{k:03d}.png" for i in (3, 7) for k in (1, 2, 3)]
    assert list(samples(tmp_path / "made")) == names
    for name in names:
        made, original = pixels(tmp_path / "made/samples" / name), digit(int(name.split("-")[1]))
        assert np.abs(made[:, :4] - original[:, :4]).max() <= 1
        assert np.abs(made[:, 4:] - original[:, 4:]).max() > 20
    assert len(set(samples(tmp_path / "made").values())) == 6
    sheet = Image.open(tmp_path / "made/edit.png")
    assert sheet.mode == "RGB"
    assert sheet.width > 5 * 48
    assert sheet.height > 2 * 48


def test_the_sheet_shows_original_mask_and_samples_in_their_places(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    scoreline("edit", tiny, *INPAINT, "--out", "made")
    sheet = pixels(tmp_path / "made/edit.png")
    left, step = sheet.shape[1] - 5 * 52, 52
    for row, image in enumerate((3, 7)):
        top = 18 + 4 + row * step
        cells = [sheet[top + 3 : top + 48 : 6, left + c * step + 3 : left + c * step + 48 : 6, 0] for c in range(5)]
        assert (cells[0] == digit(image)).all()
        assert (cells[1][:, :4] == digit(image)[:, :4]).all()
        assert (cells[1][:, 4:] == 153).all()
        for k in range(3):
            assert (cells[2 + k] == pixels(tmp_path / f"made/samples/image-{image}-{k + 1:03d}.png")).all()


def test_a_png_mask_and_a_box_are_the_same(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:6, 1:5] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    common = ("edit", tiny, "--task", "inpaint", "--images", "0", "--count", 2, "--nfe", 4)
    assert scoreline(*common, "--mask", "mask.png", "--out", "a").code == 0
    assert scoreline(*common, "--mask", "box:1,2,5,6", "--out", "b").code == 0
    assert samples(tmp_path / "a") == samples(tmp_path / "b")


def test_a_sample_does_not_depend_on_the_others(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    common = ("edit", tiny, "--task", "inpaint", "--mask", "top-half", "--nfe", 6)
    scoreline(*common, "--images", "3,7", "--count", 3, "--out", "all")
    scoreline(*common, "--images", "7", "--count", 2, "--out", "one")
    scoreline(*common, "--images", "3,7", "--count", 3, "--batch-size", 2, "--out", "small")
    for name in ("image-7-001.png", "image-7-002.png"):
        whole = pixels(tmp_path / "all/samples" / name)
        assert np.abs(whole - pixels(tmp_path / "one/samples" / name)).max() <= 1
        assert np.abs(whole - pixels(tmp_path / "small/samples" / name)).max() <= 1


def test_colours_keep_the_grey_image(scoreline: Any, tmp_path: Path) -> None:
    # A network that answers nothing is the model of white noise, whose colours stay within the range of pixels.
    net = MLP(in_shape=(3, 8, 8), width=8, depth=1, num_classes=10)
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    save_artefact(tmp_path / "colour.safetensors", Preconditioned(net, EDM(), sigma_data=0.3))
    options = ("--task", "colourise", "--images", "0:2", "--count", 2, "--sampler", "ddim", "--labels", "4", "--json")
    answer = scoreline("edit", "./colour.safetensors", *options, "--nfe", 20, "--out", "made")
    assert answer.code == 0, answer.err
    assert answer.json["count"] == 4
    made = pixels(tmp_path / "made/samples/image-1-002.png")
    assert made.shape == (8, 8, 3)
    assert np.ptp(made, axis=2).max() > 10
    inside = ((made > 0) & (made < 255)).all(2)
    assert inside.sum() > 10
    assert np.abs(made.mean(2) - digit(1))[inside].max() <= 1.5


def test_classes_are_asked_for(scoreline: Any, tmp_path: Path) -> None:
    options = ("--task", "classify", "--labels", "0,1", "--count", 4, "--nfe", 40, "--scale", 2, "--json")
    answer = scoreline("edit", "digits", *options, "--out", "made")
    assert answer.code == 0, answer.err
    assert answer.json["nfe"] == 40
    assert answer.json["told"]["share in which the classifier sees its class"] >= 0.75
    assert next(iter(samples(tmp_path / "made"))) == "class-0-001.png"


def test_two_images_are_joined(scoreline: Any, tmp_path: Path) -> None:
    options = ("--task", "interpolate", "--images", "0,1", "--count", 3, "--sampler", "rk45:rtol=1e-3", "--json")
    answer = scoreline("edit", "digits", *options, "--out", "made")
    assert answer.code == 0, answer.err
    assert answer.json["told"]["rmse of an image encoded and decoded"] < 0.05
    ends = [pixels(tmp_path / f"made/samples/images-0-1-{k:03d}.png") for k in (1, 2, 3)]
    assert np.abs(ends[0] - digit(0)).mean() < 4
    assert np.abs(ends[2] - digit(1)).mean() < 4
    assert np.abs(ends[1] - ends[0]).mean() > 4


def test_run_again_it_keeps_what_is_there(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    scoreline("edit", tiny, *INPAINT, "--out", "made")
    before = samples(tmp_path / "made")
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "made/samples").iterdir()}
    (tmp_path / "made/samples/image-7-002.png").unlink()
    answer = scoreline("edit", tiny, *INPAINT, "--out", "made")
    assert "5 were there already" in answer.out
    assert samples(tmp_path / "made") == before
    again = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "made/samples").iterdir()}
    assert [name for name in stamps if stamps[name] != again[name]] == ["image-7-002.png"]
    assert "all were there already" in scoreline("edit", tiny, *INPAINT, "--out", "made").out


def test_killed_it_goes_on_to_the_same_bytes(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    words = ["edit", tiny, *map(str, INPAINT), "--batch-size", "2"]
    scoreline(*words, "--out", "whole")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "4", *words, "--out", "parts"], cwd=tmp_path, env=os.environ, check=False
    )
    assert killed.returncode == -9
    assert not (tmp_path / "parts/edit.png").exists()
    answer = scoreline(*words, "--out", "parts")
    assert answer.code == 0, answer.err
    assert samples(tmp_path / "parts") == samples(tmp_path / "whole")
    assert (tmp_path / "parts/edit.png").read_bytes() == (tmp_path / "whole/edit.png").read_bytes()
    assert not list((tmp_path / "parts").rglob(".*"))


def test_another_run_in_the_folder_is_refused(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    scoreline("edit", tiny, *INPAINT, "--out", "made")
    before = samples(tmp_path / "made")
    scoreline("edit", tiny, *INPAINT, "--noise-seed", 1, "--out", "made").fails(1, "noise_seed")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    scoreline("edit", tiny, *INPAINT, "--out", "mine").fails(1, "not empty")
    assert samples(tmp_path / "made") == before
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--task", "inpant"], ["did you mean 'inpaint'"]),
        (["--task", "inpaint"], ["mask", "left-half"]),
        (["--task", "inpaint", "--mask", "lefthalf"], ["did you mean 'left-half'"]),
        (["--task", "inpaint", "--mask", "box:0,0,9,9"], ["inside 8 x 8"]),
        (["--task", "inpaint", "--mask", "left-half", "--images", "1797"], ["position 1797"]),
        (["--task", "inpaint", "--mask", "left-half", "--images", ""], ["images"]),
        (["--task", "inpaint", "--mask", "left-half", "--count", "0"], ["count 0"]),
        (["--task", "inpaint", "--mask", "left-half", "--labels", "3,4"], ["one class"]),
        (["--task", "inpaint", "--mask", "left-half", "--labels", "12"], ["label '12'"]),
        (["--task", "inpaint", "--mask", "left-half", "--sampler", "rk45:rtol=1e-3"], ["fixed grid"]),
        (["--task", "inpaint", "--mask", "left-half", "--sampler", "hein"], ["did you mean 'heun'"]),
        (["--task", "inpaint", "--mask", "left-half", "--nfe", "1"], ["at least 2"]),
        (["--task", "inpaint", "--mask", "left-half", "--scale", "2", "--classifier", "x"], ["--task classify"]),
        (["--task", "classify", "--mask", "left-half"], ["--task inpaint"]),
        (["--task", "classify", "--labels", "none"], ["classes that are asked for"]),
        (["--task", "classify", "--classifier", "digits-noisy-clasifier"], ["did you mean 'digits-noisy-classifier'"]),
        (["--task", "colourise"], ["RGB"]),
        (["--task", "interpolate", "--images", "0:3"], ["even number"]),
        (["--task", "interpolate", "--count", "1"], ["count of 2"]),
        (["--task", "interpolate", "--sampler", "pc"], ["runs upwards"]),
    ],
)
def test_what_does_not_fit_is_refused(
    scoreline: Any, tiny: str, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    scoreline("edit", tiny, *options, "--out", "made").fails(2, *words)
    assert not (tmp_path / "made").exists()


def test_a_mask_of_the_wrong_size_is_refused(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    Image.new("L", (9, 8), 255).save(tmp_path / "wide.png")
    options = ("--task", "inpaint", "--mask", "wide.png", "--out", "made")
    scoreline("edit", tiny, *options).fails(2, "9 x 8 pixels, the images are 8 x 8")
    scoreline("edit", tiny, "--task", "inpaint", "--mask", "none.png", "--out", "made").fails(1, "no such file")
    assert not (tmp_path / "made").exists()


def test_other_artefacts_are_refused(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    scoreline("edit", "digits-net", *INPAINT, "--out", "made").fails(1, "not a denoiser")
    options = ("--task", "classify", "--classifier", "digits-net", "--out", "made")
    scoreline("edit", tiny, *options).fails(1, "not a classifier")
    scoreline("edit", "digits-noisy-classifier", *INPAINT, "--out", "made").fails(1, "not a denoiser")
    assert not (tmp_path / "made").exists()


def test_models_of_latents_are_refused(scoreline: Any, tmp_path: Path) -> None:
    autoencoder = KLAutoencoder(in_shape=(1, 8, 8), latent_channels=3, base_channels=32, channel_mult=(1, 2))
    inner = Preconditioned(MLP(in_shape=autoencoder.latent_shape, width=8, depth=1), EDM())
    save_artefact(tmp_path / "latent.safetensors", Latent(inner, autoencoder, scale=1.0))
    scoreline("edit", "./latent.safetensors", *INPAINT, "--out", "made").fails(2, "latents")
    assert not (tmp_path / "made").exists()


def test_a_folder_of_ones_own_pictures(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / f"mine/{i}.png")
    options = ("--task", "inpaint", "--mask", "right-half", "--data", "./mine", "--images", "0:3", "--count", 1)
    answer = scoreline("edit", tiny, *options, "--nfe", 4, "--out", "made", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["told"]["largest change of a known pixel"] < 0.005
    assert json.loads((tmp_path / "made/samples.job.json").read_text())["mask"] == "right-half"


ENCODE = ("--task", "encode", "--images", "3,7,11", "--sampler", "rk45:rtol=1e-3")


def test_images_are_encoded_to_a_file_and_sampled_from_it(scoreline: Any, tmp_path: Path) -> None:
    answer = scoreline("edit", "digits", *ENCODE, "--labels", "4", "--out", "made", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["latents"] == "made/latents.safetensors"
    assert answer.json["told"]["rmse of an image encoded and decoded"] < 0.05
    assert list(samples(tmp_path / "made")) == [f"image-{i}-001.png" for i in (11, 3, 7)]
    held, header = read_latents(tmp_path / "made/latents.safetensors", load("digits"))
    assert held.z.shape == (3, 1, 8, 8)
    assert 0.5 < held.z.std() < 2
    assert held.label == 4
    assert (header["card"]["data"], header["card"]["images"]) == ("digits", [3, 7, 11])
    # From the file come the images again, with the class of the file, by any deterministic sampler.
    sample = ("sample", "digits", "--from-latents", answer.json["latents"])
    again = scoreline(*sample, "--sampler", "rk45:rtol=1e-3", "--out", "again", "--json")
    assert (again.code, again.json["count"]) == (0, 3), again.err
    for row, image in enumerate((3, 7, 11)):
        assert np.abs(pixels(tmp_path / f"again/000000/{row:06d}.png") - digit(image)).mean() < 4
    assert scoreline(*sample, "--nfe", 35, "--seeds", "1", "--out", "heun").code == 0
    assert np.abs(pixels(tmp_path / "heun/000000/000001.png") - digit(7)).mean() < 12
    assert scoreline(*sample, "--nfe", 35, "--labels", "0", "--seeds", "1", "--out", "zero").code == 0
    assert np.abs(pixels(tmp_path / "zero/000000/000001.png") - digit(7)).mean() > 12
    # Run again, the file stays; where it is missing it is made anew, the same.
    file = tmp_path / "made/latents.safetensors"
    before, stamp = file.read_bytes(), file.stat().st_mtime_ns
    assert "all were there" in scoreline("edit", "digits", *ENCODE, "--labels", "4", "--out", "made").out
    assert file.stat().st_mtime_ns == stamp
    file.unlink()
    assert "latents: made/latents" in scoreline("edit", "digits", *ENCODE, "--labels", "4", "--out", "made").out
    assert file.read_bytes() == before


def test_latents_of_others_are_refused(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    scoreline("edit", tiny, *ENCODE, "--out", "made")
    file = "made/latents.safetensors"
    for model, options, code, words in (
        ("digits", ["--from-latents", file], 1, "were encoded by another model"),
        (tiny, ["--from-latents", tiny], 1, "no latents"),
        (tiny, ["--from-latents", "none.safetensors"], 1, "no such file"),
        (tiny, ["--from-latents", file, "--seeds", "0:4"], 2, "holds latents 0 to 2"),
        (tiny, ["--from-latents", file, "--sampler", "ddpm"], 2, "adds noise"),
        (tiny, ["--from-latents", file, "--sampler", "ddim:eta=1"], 2, "adds noise"),
    ):
        scoreline("sample", model, *options, "--out", "never").fails(code, words)
        assert not (tmp_path / "never").exists()
    assert scoreline("sample", tiny, "--from-latents", file, "--nfe", 5, "--out", "one").code == 0
    scoreline("sample", tiny, "--nfe", 5, "--out", "one").fails(1, "another run", "latents")
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-40])
    scoreline("sample", tiny, "--from-latents", file, "--out", "never").fails(1, "not a readable safetensors file")
    scoreline("edit", tiny, *ENCODE[:-2], "--sampler", "ddpm", "--out", "never").fails(2, "runs upwards")
    assert not (tmp_path / "never").exists()
