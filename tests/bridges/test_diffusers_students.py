"""A pipeline of diffusers as a teacher: its student is a copy of its network, and is saved, read and sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scoreline.bridges.diffusers_models import as_denoiser
from scoreline.bridges.diffusers_networks import DiffusersDiT, DiffusersUNet
from scoreline.core.artefact import load_artefact, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.noise import Noise
from scoreline.evaluate.specs import labels_for
from scoreline.fewstep.recipe import check_students
from scoreline.fewstep.teachers import rebuilt
from scoreline.train import fit

CONFIG = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_networks_of_diffusers_are_described_by_their_config(request: Any, kind: str, tmp_path: Path) -> None:
    conftest = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    net = conftest.make_unet(num_class_embeds=5) if kind == "unet" else conftest.make_dit()
    teacher = as_denoiser(net, CONFIG)
    path = tmp_path / "model.safetensors"
    save_artefact(path, teacher)
    again: Denoiser = load_artefact(path, kind="denoiser")[0]
    x = Noise(0).at(range(2), teacher.shape).normal()
    cond = Cond(labels=torch.tensor([1, 3]))
    assert torch.equal(again(x, 500.0, cond).mean, teacher(x, 500.0, cond).mean)
    assert isinstance(again.net, DiffusersUNet if kind == "unet" else DiffusersDiT)
    with pytest.raises(InputError, match="not rebuilt"):
        rebuilt(again.net, {"second_time": True})
    with pytest.raises(InputError, match="class of diffusers"):
        lookup("bridge", f"diffusers-{kind}")({"_class_name": "AutoencoderKL"})


def test_a_student_of_a_pipeline_is_trained_and_saved(request: Any, tmp_path: Path) -> None:
    conftest = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    teacher = as_denoiser(conftest.make_unet(num_class_embeds=5), CONFIG)
    cls: Any = lookup("method", "rectified-flow")
    student = cls.student_of(teacher)
    check_students(student, teacher, None)
    data = (Noise(1).at(range(4), teacher.shape).normal().clamp(-1, 1), torch.arange(4))
    made = fit(cls(student), data, steps=1, batch_size=4).result()
    path = tmp_path / "student.safetensors"
    save_artefact(path, made.denoiser)
    again: Any = type(made)(load_artefact(path)[0], made.sampler)
    cond = labels_for(range(2), 5)
    assert torch.equal(again.generate(range(2), Noise(0), cond), made.generate(range(2), Noise(0), cond))
