"""Guided distillation: the guided target in closed form, strengths drawn for each image, heads, and both stages."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.cost import evaluations
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.core.schedule import spread
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, Cosine
from scoreline.fewstep.guidance_students import DistilledGuidance, Noising, TwoHeads, interval_of
from scoreline.fewstep.guided import WeightGuided
from scoreline.fewstep.guided_distillation import (
    HEADS,
    GuidanceDistillation,
    guidance_error,
    guidance_loss,
    guided_mean,
    head_mean,
    log_snr,
    noise_of,
    restyle,
)
from scoreline.fewstep.halving import LOW, halving_target, halving_times
from scoreline.fewstep.progressive import Progressive
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.double_step import DoubleStep
from scoreline.train import fit

F8 = torch.float64
COSINE = Cosine(s=0.0, t_min=LOW, t_max=1 - LOW)
MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.2, -0.8]])
LABELS = torch.tensor([0, 1, 2])
check = pytest.mark.check


def draws(count: int = 6, seed: int = 3, dtype: torch.dtype = torch.float32):
    return Noise(seed).at(range(count), (2,), dtype=dtype)


def teacher(schedule: Any = COSINE) -> Mixture:
    return Mixture(schedule, MEANS, 0.1, labels=LABELS, num_classes=3)


def net(seed: int = 0, **more: Any) -> MLP:
    torch.manual_seed(seed)
    return MLP(in_shape=(2,), width=32, depth=2, num_classes=3, **more)


def conditional(kind: str = "v", seed: int = 0, schedule: Any = COSINE) -> Preconditioned:
    return Preconditioned(net(seed), schedule, kind=kind)


def cond(count: int = 6, w: float | None = None) -> Cond:
    return Cond(labels=torch.arange(count) % 3, weight=None if w is None else torch.full((count,), w))


def batch(count: int = 64, seed: int = 4) -> SimpleNamespace:
    rows = Noise(seed).at(range(count), (2,))
    return SimpleNamespace(image=rows.normal(9), label=torch.arange(count) % 3, extras={}, draws=rows)


@check(system=17, number=1)
def test_the_schedule() -> None:
    assert [round(log_snr(u), 9) + 0.0 for u in (0.0, 0.5, 1.0)] == [20.0, 0.0, -20.0]
    u = torch.linspace(0, 1, 11, dtype=F8)
    ours = 2 * COSINE.lam(LOW + (1 - 2 * LOW) * u)
    assert torch.allclose(log_snr(u), ours, atol=1e-6)
    assert np.allclose(log_snr(u.numpy()), ours.numpy(), atol=1e-6)
    # the variant of the time that networks are told
    assert math.atan(math.exp(-log_snr(0.3) / 2)) * 2 / math.pi == pytest.approx(LOW + (1 - 2 * LOW) * 0.3)


def test_the_guided_mean() -> None:
    a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [4.0]])
    assert guided_mean(a, b, 0.0).tolist() == a.tolist()
    assert guided_mean(a, b, 3.0).flatten().tolist() == [2.5, -4.0]
    assert guided_mean(a, b, torch.tensor([0.0, 3.0])).flatten().tolist() == [1.0, -4.0]
    model, z, t = teacher(), draws().normal(), torch.linspace(0.1, 0.9, 6, dtype=F8)
    w = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 4.0])
    told, nothing = cond(), model.null(cond())
    got = WeightGuided(model)(z, t, told.replace(weight=w)).mean
    assert torch.allclose(got, guided_mean(model(z, t, told).mean, model(z, t, nothing).mean, w), atol=1e-5)


@check(system=17, number=4)
def test_without_guidance_the_target_is_the_conditional_model() -> None:
    model, z, t = teacher(), draws().normal(), torch.linspace(0.1, 0.9, 6, dtype=F8)
    assert torch.allclose(WeightGuided(model)(z, t, cond(w=0.0)).mean, model(z, t, cond()).mean, atol=1e-6)
    assert not torch.allclose(WeightGuided(model)(z, t, cond(w=1.0)).mean, model(z, t, cond()).mean, atol=1e-2)


@check(system=17, number=4)
@pytest.mark.parametrize("kind", ["v", "x0", "edm"])
def test_at_the_start_the_student_does_not_see_the_strength(kind: str) -> None:
    model = conditional(kind)
    student = GuidanceDistillation.student_of(model)
    z, t = draws().normal(), torch.linspace(0.1, 0.9, 6, dtype=F8)
    wanted = model(z, t, cond()).mean
    for w in (0.0, 1.5, 4.0):
        assert torch.allclose(student(z, t, cond(w=w)).mean, wanted, atol=1e-6)
    assert torch.allclose(student(z, t, cond()).mean, wanted, atol=1e-6)
    # a step makes it see
    method = GuidanceDistillation(student, model, lr=1e-2)
    fit(method, (draws(64).normal(5), torch.arange(64) % 3), steps=3, batch_size=16)
    assert (student(z, t, cond(w=4.0)).mean - student(z, t, cond(w=0.0)).mean).abs().max() > 1e-3


def test_what_a_turn_of_stage_one_shares() -> None:
    method = GuidanceDistillation(GuidanceDistillation.student_of(conditional()), teacher(), guidance=(1.0, 3.0))
    rows = batch()
    shared = method.prepare(rows, 0)
    w = shared.cond.weight
    assert w is not None
    assert 1 <= w.min() < 1.2
    assert 2.8 < w.max() <= 3
    assert len(set(w.tolist())) == len(w)
    assert shared.t.min() >= LOW
    assert shared.t.max() > 0.9
    assert torch.allclose(shared.z, COSINE.marginal(rows.image, shared.t, rows.draws.normal()))
    told = cond(64)
    model = teacher()
    exact = guided_mean(model(shared.z, shared.t, told).mean, model(shared.z, shared.t, model.null(told)).mean, w)
    assert torch.allclose(shared.target, exact, atol=1e-4)
    loss = method.loss(rows, shared, 0)
    x_error = (method.student(shared.z, shared.t, shared.cond).mean - exact).square().mean(1)
    snr = (COSINE.alpha(shared.t) / COSINE.sigma(shared.t)) ** 2
    assert loss.item() == pytest.approx((x_error * snr.clamp_min(1.0)).mean().item(), rel=1e-3)
    plain = guidance_loss(method.student, shared.z, shared.t, exact, shared.cond, weight="one")
    assert torch.allclose(plain, x_error, rtol=1e-4)
    assert method.student.range == (1.0, 3.0)
    assert method.student.guidance == 1.0


def test_stage_one_learns_every_strength() -> None:
    """Gaussian classes of one variance: x_w is (1 + w) x_c - w x_u, exactly known; one network for all w."""
    model = teacher()
    student = GuidanceDistillation.student_of(None, net(weight_input=True))
    images = MEANS[torch.arange(600) % 3] + 0.1**0.5 * draws(600, 8).normal()
    labels = torch.arange(600) % 3

    def errors() -> list[float]:
        noise = draws(600, 9).normal()
        return [guidance_error(student, model, images, 0.5, w, noise, labels) for w in (0.0, 2.0, 4.0)]

    before = errors()
    fit(GuidanceDistillation(student, model, lr=1e-2), (images, labels), steps=80, batch_size=32)
    assert all(after < 0.6 * was for after, was in zip(errors(), before, strict=True))


@check(system=17, number=6)
def test_the_target_is_the_same_for_every_head() -> None:
    """One posterior mean said in four ways gives one answer, and one target of halving."""
    source, z = conditional("v", 3), draws().normal()
    t = torch.full((6,), 0.6, dtype=F8)
    alpha, sigma = COSINE.alpha(t), COSINE.sigma(t)
    a, s = spread(alpha, z), spread(sigma, z)
    post = source(z, t, cond())
    mixed = torch.cat([post.mean + 0.3, post.eps - 0.2], 1)
    answers = {"x": post.mean, "eps": post.eps, "v": a * post.eps - s * post.mean}
    for head in ("x", "eps", "v"):
        assert torch.allclose(head_mean(head, z, answers[head], alpha, sigma), post.mean, atol=1e-5)
    both = torch.cat([post.mean, post.eps], 1)
    assert torch.allclose(head_mean("both", z, both, alpha, sigma), post.mean, atol=1e-5)
    # heads that differ are weighed by sigma^2 and alpha^2
    image, noise = mixed.chunk(2, 1)
    weighed = s**2 * image + a**2 * head_mean("eps", z, noise, alpha, sigma)
    assert torch.allclose(head_mean("both", z, mixed, alpha, sigma), weighed, atol=1e-5)

    class Said(torch.nn.Module):
        """The network that answers as `source` in another way."""

        in_shape, num_classes, accepts = (2,), 3, frozenset({"labels"})

        def __init__(self, head: str) -> None:
            super().__init__()
            self.source, self.head, self.out_channels = source, head, 4 if head == "both" else 2

        def trace(self, x: Any, t: Any, told: Any, plan: Any = None) -> Any:
            level = t.double().expand(len(x))
            here = self.source(x, level, told)
            a, s = spread(COSINE.alpha(level), x), spread(COSINE.sigma(level), x)
            said = {"x": here.mean, "eps": here.eps, "v": a * here.eps - s * here.mean}
            return torch.cat([here.mean, here.eps], 1) if self.head == "both" else said[self.head], {}

    times = halving_times(torch.arange(6) % 4, 4, 0.95)
    targets = []
    for head in HEADS:
        network: Any = Said(head)
        kind = "x0" if head == "x" else head
        model = TwoHeads(network, COSINE) if head == "both" else Preconditioned(
            network, COSINE, kind=kind, time_input="t"
        )  # fmt: skip
        targets.append(halving_target(model, z, *times, cond())[0])
    assert all(torch.allclose(targets[0], other, atol=1e-3) for other in targets[1:])
    with pytest.raises(InputError, match="head"):
        head_mean("w", z, both, alpha, sigma)


@check(system=17, number=8)
def test_one_step_is_one_call_at_pure_noise() -> None:
    student = GuidanceDistillation.student_of(None, net(weight_input=True))
    asked: list[Any] = []
    forward = student.inner.forward
    student.inner.forward = lambda x, t, c: asked.append((x, t)) or forward(x, t, c)  # type: ignore[method-assign]
    rows = draws()
    one = DDIM(steps=1, grid="time-to-clean")(student.given(cond(w=2.0)), rows)
    (x, t), = asked  # fmt: skip
    assert t == COSINE.t_max
    assert torch.allclose(x, rows.normal(), atol=1e-6)
    assert torch.allclose(one.x, student(rows.normal(), COSINE.t_max, cond(w=2.0)).mean, atol=1e-5)
    other = DoubleStep(steps=1, grid="time-to-clean")(student.given(cond(w=2.0)), rows)
    assert torch.equal(one.x, other.x)
    assert one.nfe == other.nfe == 1


@check(system=17, number=9)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_network_calls(n: int) -> None:
    student = GuidanceDistillation.student_of(None, net(weight_input=True))
    guided = WeightGuided(conditional())
    for model, factor in ((student, 1), (guided, 2)):
        for sampler in (DDIM(steps=n), DoubleStep(steps=n)):
            network = model.inner.inner.net if model is guided and hasattr(model.inner, "inner") else model.inner.net
            with evaluations({"net": network}) as counted:
                made = sampler(model.given(cond(w=1.0)), draws())
            assert counted.forward == 6 * factor * n
            assert made.nfe == factor * n


def test_a_halving_of_a_student_that_is_told() -> None:
    first = GuidanceDistillation.student_of(None, net(weight_input=True))
    GuidanceDistillation(first, teacher(), guidance=(1.0, 3.0))
    twin = GuidanceDistillation.student_of(None, net(weight_input=True))
    twin.load_state_dict(first.state_dict())
    method = Progressive(first, twin, n=4)
    assert method.range == (1.0, 3.0)
    rows = batch()
    shared = method.prepare(rows, 0)
    assert shared.cond is not None
    assert shared.cond.weight is not None
    w = shared.cond.weight
    assert 1 <= w.min() < 1.2
    assert 2.8 < w.max() <= 3
    i = (shared.t / COSINE.t_max * 4).round() - 1
    want, _ = halving_target(twin, shared.z, *halving_times(i, 4, COSINE.t_max), Cond(labels=rows.label, weight=w))
    assert torch.allclose(shared.target, want, atol=1e-4)
    assert Progressive(first, twin, n=4, guidance=(2.0, 2.5)).range == (2.0, 2.5)
    with pytest.raises(InputError, match="from 1 to 3"):
        Progressive(first, twin, n=4, guidance=(0.0, 2.0))
    with pytest.raises(InputError, match="told no strength"):
        Progressive(conditional(), conditional(), n=4, guidance=(0.0, 2.0))
    with pytest.raises(InputError, match="or neither"):
        Progressive(first, conditional(), n=4)
    # a network of one's own takes the interval over
    fresh = Progressive.student_of(twin, net(5, weight_input=True))
    assert interval_of(fresh) == (1.0, 3.0)


def test_the_variant_for_double_steps() -> None:
    student = GuidanceDistillation.student_of(None, net(weight_input=True))
    method = Progressive(student, copy.deepcopy(student), n=4, stochastic=True)
    assert method.sampler == "double-step:grid=time-to-clean"
    assert isinstance(method.result().sampler, DoubleStep)
    rows = batch()
    shared = method.prepare(rows, 0)
    i = (shared.t / COSINE.t_max * 4).round()
    length = torch.where(i > 1, 2.0, 1.0) / 4 * COSINE.t_max
    s = (shared.t - length).clamp_min(0.0)
    want, _ = halving_target(student, shared.z, shared.t, shared.t - length / 2, s, shared.cond)
    assert torch.allclose(shared.target, want, atol=1e-4)
    with pytest.raises(InputError, match="way down"):
        Progressive(copy.deepcopy(student), student, n=4, stochastic=True, direction="up")
    with pytest.raises(InputError, match="did you mean"):
        Progressive(copy.deepcopy(student), student, n=4, direction="upp")


def test_the_way_up_is_learned_and_restyles() -> None:
    """A teacher of Gaussian classes: its noise of an image, decoded as another class, is the image moved there."""
    top = Cosine(s=0.0, t_min=1e-3, t_max=0.98)
    model = Mixture(top, MEANS, 0.01, labels=LABELS, num_classes=3)
    labels = torch.arange(600) % 3
    images = MEANS[labels] + 0.1 * draws(600, 8).normal()
    moved = restyle(model, model, images, Cond(labels=labels), Cond(labels=(labels + 1) % 3), steps=200)
    assert torch.allclose(moved, images - MEANS[labels] + MEANS[(labels + 1) % 3], atol=0.04)
    # two steps up as one of a student
    student = Preconditioned(net(), top, kind="v")
    method = Progressive(student, model, n=1, direction="up", lr=1e-2)
    fit(method, (images, labels), steps=60, batch_size=32)
    encoder = method.result()
    assert isinstance(encoder, Noising)
    walked = noise_of(model.given(Cond(labels=labels)), images, steps=2)
    found = noise_of(encoder.given(Cond(labels=labels)), images, steps=1)
    assert (found - walked).square().mean() < 0.5 * walked.square().mean()
    with pytest.raises(InputError, match="from images to noise"):
        DDIM(steps=4)(encoder.given(Cond(labels=labels)), draws(600))


def test_students_of_models() -> None:
    for name in ("digits", "digits-eps"):
        model = load(name)
        student = GuidanceDistillation.student_of(model)
        assert isinstance(student.schedule, Cosine)
        assert all(p.requires_grad for p in student.inner.parameters())
        x, told = torch.ones(2, 1, 8, 8), Cond(labels=torch.tensor([3, 5]))
        s = model.schedule.time(student.schedule.lam(0.4))
        scale = model.schedule.alpha(s) / student.schedule.alpha(0.4)
        assert torch.allclose(student(x, 0.4, told).mean, model(x * scale, s, told).mean, atol=1e-4)
    assert GuidanceDistillation.student_of(None, student) is student
    two = GuidanceDistillation.student_of(None, net(weight_input=True, out_channels=4))
    assert isinstance(two.inner, TwoHeads)
    again = GuidanceDistillation.student_of(TwoHeads(net(out_channels=4), COSINE))
    assert isinstance(again.inner, TwoHeads)
    assert again.inner.net.out_channels == 4
    assert not any(isinstance(part, Latent) for part in again.modules())


@pytest.mark.parametrize("settings, said", [
    ({"guidance": (3.0, 1.0)}, "least and the largest"),
    ({"guidance": (-1.0, 1.0)}, "0 is unguided"),
    ({"sampling_guidance": 5.0}, "interval of training"),
    ({"weight": "snr2"}, "weight"),
    ({"teacher": Gaussian(EDM(), torch.zeros(2), 1.0)}, "no conditions"),
])  # fmt: skip
def test_bad_settings(settings: dict[str, Any], said: str) -> None:
    student = GuidanceDistillation.student_of(None, net(weight_input=True))
    with pytest.raises(InputError, match=said):
        GuidanceDistillation(**{"student": student, "teacher": teacher(), **settings})


def test_teachers_that_are_refused() -> None:
    plain = Preconditioned(MLP(in_shape=(2,), width=8, depth=1), EDM())
    with pytest.raises(InputError, match="no conditions"):
        GuidanceDistillation.student_of(plain)
    with pytest.raises(InputError, match="no network to copy"):
        GuidanceDistillation.student_of(teacher())
    with pytest.raises(InputError, match="no guidance strength"):
        GuidanceDistillation.student_of(None, net())
    with pytest.raises(InputError, match="two heads need 4"):
        TwoHeads(net(), COSINE)


@pytest.mark.parametrize("name, channels", [("cifar10", 3), ("imagenet64", 6)])
def test_the_large_presets_make_a_step(name: str, channels: int) -> None:
    from scoreline.nn.unet import UNet
    from scoreline.nn.unet_presets import unet_preset

    recipe = read_recipe("guided-distillation", preset=name, teacher="digits", changes={"steps": 1, "batch_size": 2})
    assert recipe.requires == "cuda"
    assert [stage["settings"].get("n") for stage in recipe.stages] == [None, *(2**k for k in range(9, -1, -1))]
    preset = "progressive-cifar10" if name == "cifar10" else "progressive-imagenet64-both"
    side = 32 if name == "cifar10" else 64
    changes: dict[str, Any] = {"base_channels": 32, "num_blocks": 1, "num_classes": 10, "head_channels": None}
    changes |= {"attention": (side // 4,), "channel_mult": (1, 1, 1)}
    network = UNet(**unet_preset(preset, **changes, out_channels=channels))
    model = TwoHeads(network, COSINE) if channels == 6 else Preconditioned(network, COSINE, kind="x0", time_input="t")
    method = make_method(recipe.stages[0], make_student(recipe.stages[0], model, {}), model)
    data = (torch.rand(2, 3, side, side) * 2 - 1, torch.arange(2))
    made = fit(method, data, steps=1, batch_size=2)
    assert np.isfinite(made.losses["loss"])
    first = made.result().denoiser
    assert isinstance(first, DistilledGuidance)
    halving: Any = make_method(recipe.stages[1], copy.deepcopy(first), first)
    assert halving.n == 512
    assert halving.range == (0.0, 4.0)
