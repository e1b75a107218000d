"""Pipeline folders on the command line: described like a model, and asked only for what they know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest

from scoreline import load
from scoreline.cli import main


@pytest.fixture(scope="module")
def classes_folder(unet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional U-Net; nothing tells whether a row of its table means "no class"."""
    folder = tmp_path_factory.mktemp("classes")
    net = unet(num_class_embeds=4, in_channels=1, out_channels=1)
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder, safe_serialization=True)
    return folder


def test_a_folder_is_described_like_a_model(ddpm_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(ddpm_folder), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    model = load(ddpm_folder)
    assert (row["name"], row["kind"], row["class"]) == (str(ddpm_folder), "denoiser", "preconditioned")
    assert row["fingerprint"] == model.header["fingerprint"]
    assert row["schedule"] == {"name": "discrete", "levels": 100}
    assert (row["shape"], row["classes"]) == ([2, 8, 8], None)
    assert row["parameters"] == sum(p.numel() for p in model.parameters())
    assert (row["pipeline"], row["network"]) == ("DDPMPipeline", "UNet2DModel")
    assert main(["models", str(ddpm_folder)]) == 0
    assert "levels: 100" in capsys.readouterr().out


def test_latents_and_what_is_no_pipeline(dit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(dit_folder), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["class"], row["shape"], row["classes"]) == ("latent", [4, 4, 4], 1000)
    assert main(["models", str(tmp_path)]) == 1
    assert "holds no model_index.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words",
    [
        (["sample", "--labels", "none"], ["labels 'none'", "nothing in the folder says", "ask for classes"]),
        (["sample", "--guidance", "2"], ["guidance 2", "nothing in the folder says", "leave it out"]),
        (["compare", "--labels", "none", "--data", "digits"], ["labels 'none'"]),
        (["search", "--labels", "none", "--data", "digits", "--features", "pixels"], ["labels 'none'"]),
        (["edit", "--task", "inpaint", "--mask", "left-half"], ["labels 'none'"]),
        (["likelihood", "digits", "--labels", "none"], ["labels 'none'"]),
    ],
)
def test_no_class_is_refused_before_any_work(
    classes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    command, *rest = options
    assert main([command, str(classes_folder), *rest, "--out", str(tmp_path / "made")]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "made").exists()


def test_classes_are_sampled(classes_folder: Path, tmp_path: Path) -> None:
    made = ["--sampler", "ddim", "--steps", "2", "--seeds", "0:2", "--labels", "3", "--out", str(tmp_path / "made")]
    assert main(["sample", str(classes_folder), *made]) == 0
