"""Progressive distillation: what a turn shares, whom it takes as student and teacher, and that a halving is learned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.artefact import build, describe
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, Cosine, Discrete
from scoreline.fewstep.halving import halving_loss, halving_target, halving_times, on_cosine
from scoreline.fewstep.progressive import Progressive
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM
from scoreline.train import fit
from scoreline.train.recipe import presets

F8 = torch.float64
MU, S = torch.tensor([0.7, -0.4], dtype=F8), torch.tensor([0.5, 0.8], dtype=F8)
COSINE = Cosine(s=0.0, t_min=1e-4, t_max=1 - 1e-4)


def draws(count: int = 6, seed: int = 3):
    return Noise(seed).at(range(count), (2,), dtype=F8)


def mixture(schedule: Any) -> Mixture:
    return Mixture(schedule, torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F8), 0.1)


def student(kind: str = "v", seed: int = 0, schedule: Any = COSINE) -> Preconditioned:
    torch.manual_seed(seed)
    return Preconditioned(MLP(in_shape=(2,), width=32, depth=2), schedule, kind=kind)


@pytest.mark.parametrize("kind", ["x0", "v", "eps", "edm"])
def test_a_halving_is_learned(kind: str):
    """The student of one step gets near what two of the teacher's give, whatever its network answers with."""
    schedule = Cosine(s=0.0, t_min=1e-3, t_max=0.8)  # eps answers for x where some signal is left
    teacher = Gaussian(schedule, MU.float(), (S * S).float())
    images = (MU + S * draws(600, 8).normal()).float()
    model = student(kind, schedule=schedule)
    rows = Noise(5).at(range(64), (2,))
    end = DDIM(steps=2, grid="time-to-clean")(teacher, rows).x
    before = (DDIM(steps=1, grid="time-to-clean")(model, rows).x - end).square().mean()
    method = Progressive(model, teacher, n=1, lr=5e-3)
    fit(method, images, steps=40, batch_size=64)
    after = (DDIM(steps=1, grid="time-to-clean")(model, rows).x - end).square().mean()
    assert after < 0.05
    assert after < 0.3 * before
    assert method.made_for == (1,)


def test_what_a_turn_shares():
    teacher = mixture(COSINE)
    method = Progressive(student(), teacher, n=4)
    rows = Noise(4).at(range(64), (2,))
    batch = SimpleNamespace(image=rows.normal(9), label=None, extras={}, draws=rows)
    shared = method.prepare(batch, 0)
    assert set((shared.t / COSINE.t_max * 4).round(decimals=9).tolist()) == {1.0, 2.0, 3.0, 4.0}
    assert torch.equal(shared.z, COSINE.marginal(batch.image, shared.t, rows.normal()))
    i = (shared.t / COSINE.t_max * 4).round() - 1
    want, _ = halving_target(teacher, shared.z, *halving_times(i, 4, COSINE.t_max))
    assert torch.allclose(shared.target, want, atol=1e-5)
    assert not shared.target.requires_grad
    loss = method.loss(batch, shared, 0)
    assert loss.item() == pytest.approx(halving_loss(method.student, shared.z, shared.t, want).mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["digits", "digits-eps"])
def test_students_of_the_shipped_models(name: str):
    teacher = load(name)
    model = Progressive.student_of(teacher)
    assert isinstance(model.schedule, Cosine)
    assert all(p.requires_grad for p in model.parameters())
    x, cond = torch.ones(2, 1, 8, 8), Cond(labels=torch.tensor([3, 5]))
    for t in (model.schedule.t_max, 0.4):
        s = teacher.schedule.time(model.schedule.lam(t))
        scale = teacher.schedule.alpha(s) / model.schedule.alpha(t)
        assert torch.allclose(model(x, t, cond).mean, teacher(x * scale, s, cond).mean, atol=1e-4)
    method = Progressive(model, teacher, n=2)
    assert len(method.frozen()) == 1
    assert torch.allclose(method.teacher(x, 0.4, cond).mean, model(x, 0.4, cond).mean, atol=1e-5)
    assert describe(build(describe(model))) == describe(model)
    # the next halving takes a student as it is
    again = Progressive(Progressive.student_of(model), model, n=1)
    assert again.teacher is model
    assert on_cosine(model) is model


def test_a_network_of_ones_own_answers_with_v_on_the_papers_schedule():
    model = Progressive.student_of(None, MLP(in_shape=(2,)))
    assert isinstance(model, Preconditioned)
    assert (model.kind, model.time_input) == ("v", "t")
    assert 2 * model.schedule.lam(model.schedule.t_min) == pytest.approx(20, abs=1e-3)
    assert 2 * model.schedule.lam(model.schedule.t_max) == pytest.approx(-20, abs=1e-3)
    t = 0.3
    level = model.schedule.sigma(t) / model.schedule.alpha(t)
    assert np.arctan(level) * 2 / np.pi == pytest.approx(t)


@pytest.mark.parametrize("settings, said", [
    ({"n": 0}, "1 or more"),
    ({"weight": "snr2"}, "weight"),
    ({"student": Gaussian(EDM(), torch.zeros(2), 1.0)}, "student_of"),
    ({"student": Gaussian(Discrete(), torch.zeros(2), 1.0)}, "student_of"),
    ({"teacher": Gaussian(COSINE, torch.zeros(3), 1.0)}, "same shape"),
    ({"teacher": load("digits"), "student": student()}, "same shape"),
])  # fmt: skip
def test_bad_settings(settings: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        Progressive(**{"student": student(), "teacher": mixture(COSINE), **settings})


def test_nothing_to_make_a_student_of():
    with pytest.raises(InputError, match="needs a network"):
        Progressive.student_of(None)
    other = Preconditioned(MLP(in_shape=(1, 8, 8), num_classes=3), COSINE, kind="v")
    with pytest.raises(InputError, match="classes"):
        Progressive(other, load("digits"))


def test_the_preset_of_cifar10_makes_a_step():
    assert "progressive-cifar10" in presets()
    recipe = read_recipe("progressive", preset="cifar10", teacher="digits", changes={"steps": 1, "batch_size": 2})
    assert recipe.requires == "cuda"
    assert [stage["settings"]["n"] for stage in recipe.stages] == [2**k for k in range(12, -1, -1)]
    from scoreline.nn.unet import UNet
    from scoreline.nn.unet_presets import unet_preset

    net = UNet(**unet_preset("progressive-cifar10", base_channels=32))
    teacher = Progressive.student_of(None, net)
    method: Any = make_method(recipe.stages[0], make_student(recipe.stages[0], teacher, {}), teacher)
    assert (method.n, method.weight) == (4096, "snr-trunc")
    made = fit(method, torch.rand(2, 3, 32, 32) * 2 - 1, steps=1, batch_size=2)
    assert np.isfinite(made.losses["loss"])
