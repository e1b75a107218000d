"""Pictures and distances in the middle of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from scoreline.core.artefact import save_artefact
from scoreline.core.noise import Noise
from scoreline.data import load_images
from scoreline.data.pair_store import Pairs
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.distill import distill
from scoreline.fewstep.mean_map import MeanMap
from scoreline.fewstep.monitor import Quality, draw
from scoreline.fewstep.recipe import read_recipe
from scoreline.nn.mlp import MLP
from scoreline.samplers.generator import Sampled
from scoreline.samplers.heun import Heun
from scoreline.samplers.jumps import Jumps


class Made(torch.nn.Module):
    """A method that makes Gaussian images, or those of a network."""

    def __init__(self, mean: float, shape: tuple[int, ...] = (1, 4, 4)) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.made = Sampled(Gaussian(EDM(), torch.full(shape, mean), 0.04), Heun(steps=24))
        self.made.anchor = self.anchor

    def result(self) -> Any:
        return self.made


def test_the_distance_of_a_shift_is_measured_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    true = (0.2 * Noise(9).at(range(300), (1, 4, 4)).normal()).clamp(-1, 1)
    quality = Quality(tmp_path / "quality.csv", 0, Pairs(true, true), None)
    near, far = quality.measure(Made(0.0), 10), quality.measure(Made(0.4), 20)
    assert near is not None
    assert far is not None
    # A shift of 0.4 in 16 entries: 0.4 E|sum of a direction| = 0.4 sqrt(2/pi) about.
    assert near < 0.04
    assert far == pytest.approx(0.4 * (2 / torch.pi) ** 0.5, rel=0.15)
    rows = (tmp_path / "quality.csv").read_text().splitlines()
    assert rows == ["step,sliced_wasserstein", f"10,{round(near, 6)}", f"20,{round(far, 6)}"]
    again = Quality(tmp_path / "quality.csv", 10, Pairs(true, true), None)
    assert again.measure(Made(0.4), 20) == far
    assert (tmp_path / "quality.csv").read_text().splitlines() == rows
    assert "sliced Wasserstein" in capsys.readouterr().err
    # Without data the teacher's own images; of other shapes nothing is said.
    of_teacher = Quality(tmp_path / "other.csv", 0, None, Made(0.0).made.denoiser, count=200, quiet=True)
    value = of_teacher.measure(Made(0.4), 1)
    assert value is not None
    assert value == pytest.approx(far, rel=0.2)
    assert Quality(tmp_path / "x.csv", 0, Pairs(true, true), None).measure(Made(0.0, (1, 2, 2)), 1) is None
    assert Quality(tmp_path / "x.csv", 0, None, None).measure(Made(0.0), 1) is None
    assert not (tmp_path / "x.csv").exists()


def test_true_images_have_the_classes_that_are_made(tmp_path: Path) -> None:
    images = load_images("digits", split="train")
    quality = Quality(tmp_path / "q.csv", 0, images, None, count=60)
    rows = quality._reference([0, 3], torch.device("cpu"))
    labels = {int(label) for label, image in zip(images.labels, images.batch(range(len(images))).image)
              if (image == rows).flatten(1).all(1).any()}  # fmt: skip
    assert len(rows) == 60
    assert labels == {0, 3}


def test_a_training_of_three_networks_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = Preconditioned(MLP(in_shape=(1, 8, 8), width=16, depth=1, num_classes=10), EDM(), sigma_data=0.75)
    save_artefact(tmp_path / "tiny.safetensors", model, card={"data": "digits", "split": "train"})
    recipe = {
        "teacher": str(tmp_path / "tiny.safetensors"), "method": "dmd2", "steps": 2, "batch_size": 4, "ema": 0.5,
        "settings": {"gan_weight": 0.0, "lr": 0.001, "critic_lr": 0.001},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    distill(read_recipe(str(tmp_path / "r.yaml")), out, device="cpu", sample_every=1)
    names = sorted(path.name for path in (out / "samples").iterdir())
    assert names == [f"00000000{n}{kind}.png" for n in (1, 2) for kind in ("-networks", "")]
    with Image.open(out / "samples" / "000000002-networks.png") as picture:
        assert picture.size[1] == 2 + 4 * 50
    rows = (out / "quality.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "1", "2"]
    said = capsys.readouterr().err
    assert "between samples and teacher's images" in said
    assert "no measure of progress" in said


def test_a_method_without_pictures_draws_its_samples_only(tmp_path: Path) -> None:
    student = MeanMap(MLP(in_shape=(3, 4, 4), width=8, depth=1), EDM())

    class Plain(torch.nn.Module):
        def result(self) -> Any:
            return Sampled(student, Jumps(steps=1))

    draw(Plain(), 5, tmp_path / "5.png")
    assert [path.name for path in tmp_path.iterdir()] == ["5.png"]
