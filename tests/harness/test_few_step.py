"""Every few-step method, found by itself, with the settings of the first digits preset that uses it: its student starts
from the shipped model, a turn leaves the teacher alone, the result makes images in as many evaluations as it is asked
for, and is the same when it is read back. (`test_methods.py` asks all methods for the same bits after a resume.)
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from scoreline.core.artefact import fingerprint, load_artefact, save_artefact
from scoreline.core.cost import evaluations
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.names import lookup
from scoreline.core.noise import Noise
from scoreline.data.pair_store import Pairs
from scoreline.evaluate.specs import labels_for, make_sampler
from scoreline.fewstep.distill import distill, networks
from scoreline.fewstep.recipe import Stage, check_students, few_step_methods, make_method, read_recipe
from scoreline.samplers.generator import Sampled
from scoreline.train import fit
from scoreline.train.recipe import is_student_recipe, presets, recipe_file

PRESETS = [name for name in presets() if is_student_recipe(recipe_file(name))]
DIGITS = [name for name in PRESETS if "-digits" in name]
STEPS, BATCH = 4, 4


@cache
def stages() -> dict[str, Stage]:
    """Method -> the stage of a digits preset that uses it; the preset of its own name first."""
    found: dict[str, Stage] = {}
    for name in sorted(DIGITS, key=lambda name: ("stages" in recipe_file(name), name)):
        for stage in read_recipe(name, changes={"steps": STEPS}).stages:
            found.setdefault(stage["method"], stage)
    return found


def made(name: str) -> tuple[Any, Denoiser, Denoiser, Any]:
    """(method, student, teacher, data), the student copied from the shipped model."""
    stage, teacher = stages()[name], load("digits")
    cls: Any = lookup("method", name)
    torch.manual_seed(0)
    student = cls.student_of(teacher)
    noise = Noise(1).at(range(8), teacher.shape).normal()
    image, label = (noise * 0.5).clamp(-1, 1), torch.arange(8)
    data: Any = Pairs(noise, image, label, num_classes=10) if stage.get("pairs") else (image, label)
    return make_method(stage, student, teacher), student, teacher, data


def test_every_few_step_method_has_a_digits_preset() -> None:
    assert set(few_step_methods()) <= set(stages())


@pytest.mark.parametrize("name", few_step_methods())
def test_a_student_of_the_shipped_model(name: str, tmp_path: Path) -> None:
    method, student, teacher, data = made(name)
    check_students(student, teacher, data if isinstance(data, Pairs) else None)
    averaged = method.averaged()
    assert averaged is not None
    assert {id(p) for p in averaged.parameters()} <= {id(p) for p in student.parameters()}
    before = fingerprint({}, student.state_dict())
    untouched = fingerprint({}, teacher.state_dict())
    with evaluations(networks(method)) as counted:
        trained = fit(method, data, steps=1, batch_size=BATCH, seed=0, ema=0.5)
    assert fingerprint({}, teacher.state_dict()) == untouched
    assert fingerprint({}, student.state_dict()) != before
    assert counted.forward >= counted.backward >= BATCH
    result = trained.result()
    assert isinstance(result, Sampled)
    path = tmp_path / "student.safetensors"
    save_artefact(path, result.denoiser)
    again = load_artefact(path)[0]
    cond = labels_for(range(3), 10)
    for steps in method.made_for or (1, 2):
        images = result.generate(range(3), Noise(0), cond, steps=steps)
        assert images.shape == (3, 1, 8, 8)
        assert images.dtype == torch.float32
        assert -1 <= images.min() < images.max() <= 1
        assert result.nfe == steps
        other = Sampled(again, make_sampler(method.sampler, steps=steps))
        assert torch.equal(other.generate(range(3), Noise(0), cond), images)
        assert other.nfe == steps


@pytest.mark.parametrize("name", DIGITS)
def test_every_digits_preset_resolves(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    answer = distill(recipe, tmp_path / "out", device="cpu", dry_run=True)
    assert answer["resolved"][recipe.stages[0].name]["plan"]["trainable"] > 1000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in DIGITS])
def test_every_other_preset_is_well_formed_and_says_what_it_requires(name: str) -> None:
    try:
        recipe = read_recipe(name, teacher=None if "teacher" in recipe_file(name) else "digits")
    except InputError:
        recipe = read_recipe(name)  # of a method without a teacher, which refuses to be given one
    assert recipe.requires == "cuda"
