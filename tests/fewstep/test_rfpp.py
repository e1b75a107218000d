"""2-rectified flow++ against closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data.pair_store import Pairs
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.levels import mirrored, u_shaped
from scoreline.diffusion.preconditioned import Preconditioned, edm_scalings
from scoreline.diffusion.schedules import EDM, VP, Flow
from scoreline.fewstep import rfpp
from scoreline.fewstep.distances import huber_constant
from scoreline.fewstep.flows import interpolate, invert, network_of, stage_straightness
from scoreline.fewstep.recipe import make_method, read_recipe
from scoreline.fewstep.rfpp import PREMETRICS, RFPP, edm_velocity, huber, inverted_pairs, rfpp_loss, weights
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.nn.unet_presets import unet_preset
from scoreline.samplers.straight import Straight
from scoreline.train import fit

F8 = torch.float64
SD = 0.6
EDGES = {"t_min": 1e-5, "t_max": 1 - 1e-5}


class Fixed(MLP):
    """A network whose answer is given: F as it is, whatever it is asked."""

    def answer(self, raw: Tensor) -> Fixed:
        self.raw = raw
        return self

    def trace(self, x: Tensor, t: Tensor, *rest: Any) -> Any:
        return self.raw, None


def answering(raw: Tensor, dtype: torch.dtype = torch.float32) -> Preconditioned:
    net = Fixed(in_shape=(3,), width=4, depth=1).to(dtype).answer(raw)
    return Preconditioned(net, Flow(**EDGES), kind="edm", sigma_data=SD)


def points(count: int = 6, seed: int = 3, dtype: torch.dtype = F8) -> tuple[Tensor, Tensor]:
    rows = Noise(seed).at(range(count), (3,), dtype=dtype)
    return rows.normal() * SD, rows.normal(1)


def student(seed: int = 0, **more: Any) -> Preconditioned:
    torch.manual_seed(seed)
    return RFPP.student_of(None, MLP(**{"in_shape": (2,), "width": 32, "depth": 2} | more))  # type: ignore[return-value]


@pytest.mark.check(system=19, number=2)
def test_the_velocity_is_that_of_the_denoiser():
    """v = z - x where F makes D = x, and x_t - t v = D whatever F is."""
    x, z = points()
    for t in (1e-5, 0.03, 0.5, 0.97, 1 - 1e-5):
        state, sigma = interpolate(x, z, t), t / (1 - t)
        c_skip, c_out, _, _ = edm_scalings(sigma, SD)
        raw = (x - c_skip * state / (1 - t)) / c_out
        exact = answering(raw, F8)
        for v in (edm_velocity(state, raw, t, SD), exact.velocity(state, t)):
            assert torch.allclose(v, z - x, atol=1e-7)
        other = points(seed=9)[1]
        D = c_skip * state / (1 - t) + c_out * other
        at = torch.full((6,), t, dtype=F8)
        for v in (edm_velocity(state, other, t, SD), edm_velocity(state, other, at, SD)):
            assert torch.allclose(state - t * v, D, atol=1e-7)
        assert torch.allclose(answering(other, F8).velocity(state, at), edm_velocity(state, other, t, SD), atol=1e-7)


@pytest.mark.check(system=19, number=5)
def test_the_velocity_near_both_ends_and_in_float32():
    x, raw = (p.float() for p in points())
    model = answering(raw)
    for v in (lambda t: edm_velocity(x, raw, t, SD), lambda t: model.velocity(x, t)):
        assert torch.allclose(v(1e-7), -(x + raw), atol=1e-5)
        assert torch.allclose(v(1 - 1e-9), x - SD * raw, atol=1e-6)
        for t in torch.linspace(0.05, 0.95, 19, dtype=F8).tolist():
            c_skip, c_out, _, _ = edm_scalings(t / (1 - t), SD)
            naive = (x - (c_skip * x / (1 - t) + c_out * raw)) / t  # as the released code, in float32
            assert torch.allclose(v(t), naive, atol=1e-5, rtol=1e-5)
        for t in (1e-5, 1e-3, 0.3, 1 - 1e-3, 1 - 1e-5):
            exact = edm_velocity(x.double(), raw.double(), t, SD)
            assert (v(t) - exact).abs().max() < 2e-6  # the naive form is off by 1e-2 at 1e-5
            assert (model.velocity(x, torch.full((6,), t, dtype=F8)) - exact).abs().max() < 2e-6


@pytest.mark.check(system=19, number=6)
def test_the_huber_distance_and_its_limits():
    a, b = points()
    norm = (a - b).norm(dim=1)
    assert torch.allclose(huber(a, b, 1e-9), norm / 3, atol=1e-8)
    assert torch.allclose(huber(a, b, 1e5) * (2e5 * 3), norm**2, rtol=1e-5)
    assert torch.allclose(huber(a, b, 0.7), ((norm**2 + 0.49).sqrt() - 0.7) / 3)
    at = a.clone().requires_grad_(True)
    zero = huber(at, a, 1e-3)
    assert zero.abs().max() == 0
    assert torch.autograd.grad(zero.sum(), at)[0].abs().max() == 0
    assert huber_constant((3, 32, 32), "linear") == pytest.approx(1.659, abs=1e-3)
    assert huber_constant((3, 32, 32), "sqrt") == pytest.approx(0.0299, abs=1e-4)


@pytest.mark.check(system=19, number=7)
def test_the_weights_of_the_loss():
    for name, total in (("huber", 1.0), ("lpips-huber", 1.75), ("lpips-huber/t", 4.75)):
        for t in (0.25, torch.tensor([0.25])):
            w, perceptual = weights(t, name)
            assert float(w + perceptual) == total
    assert weights(0.25, "lpips-huber") == (0.75, 1)
    with pytest.raises(InputError, match="did you mean 'huber'"):
        weights(0.25, "hubr")


def test_the_loss_by_hand():
    x, z = points()
    t = torch.tensor([1e-9, 0.1, 0.25, 0.5, 0.9, 1.0], dtype=F8)
    raw = points(seed=9)[1]
    model = answering(raw, F8)
    told = t.clamp(1e-5, 1 - 1e-5)
    v = edm_velocity(interpolate(x, z, told), raw, told, SD)
    gap = (v - (z - x)).square().sum(1)
    assert rfpp_loss(model, x, z, t, premetric="squared").item() == pytest.approx((gap / 3).mean().item())
    c = 0.00054 * 3
    hub = ((gap + c * c).sqrt() - c) / 3
    assert rfpp_loss(model, x, z, t).item() == pytest.approx(hub.mean().item())
    other = ((gap + 0.25).sqrt() - 0.5) / 3
    assert rfpp_loss(model, x, z, t, c=0.5).item() == pytest.approx(other.mean().item())
    apart = lambda a, b: (a - b).abs().sum(1)  # noqa: E731
    lp = (interpolate(x, z, told) - told[:, None] * v - x).abs().sum(1)
    for name, loss in (("lpips-huber", (1 - told) * hub + lp), ("lpips-huber/t", (1 - told) * hub + lp / told)):
        mine = rfpp_loss(model, x, z, t, premetric=name, apart=apart).item()
        assert mine == pytest.approx(loss.mean().item(), rel=1e-6)
        with pytest.raises(InputError, match="needs LPIPS"):
            rfpp_loss(model, x, z, t, premetric=name)


def test_the_loss_is_nothing_at_the_velocity_of_the_pairs():
    x, z = points()
    t = torch.linspace(0.1, 0.9, 6, dtype=F8)
    exact = SimpleNamespace(schedule=Flow(), velocity=lambda state, at, cond: z - x)
    for name in PREMETRICS:
        loss = rfpp_loss(exact, x, z, t, premetric=name, apart=lambda a, b: (a - b).abs().sum(1))  # type: ignore[arg-type]
        assert loss < 1e-12


def batch_of(count: int = 8, **extras: Tensor) -> SimpleNamespace:
    rows = Noise(4).at(range(count), (1, 8, 8))
    image = rows.normal(5).clamp(-1, 1)
    return SimpleNamespace(image=image, label=torch.arange(count) % 10, extras=extras, draws=rows)


def test_what_a_turn_shares():
    stored = torch.ones(8, 1, 8, 8)
    batch = batch_of(noise=stored)
    own: dict[str, Any] = {"premetric": "huber"}
    method = RFPP(student(in_shape=(1, 8, 8), num_classes=10), a=3.0, **own)
    shared = method.prepare(batch, 0)
    assert torch.equal(shared.z, stored)
    assert torch.equal(shared.x, batch.image)
    assert torch.equal(shared.cond.labels, batch.label)
    u = batch.draws.uniform(step=0, part=1)
    assert torch.equal(shared.t, u_shaped(u, Flow(**EDGES), a=3.0))
    loss = method.loss(batch, shared, 0)
    assert torch.equal(loss, rfpp_loss(method.student, *vars(shared).values(), c=0.00054 * 64))
    exact = RFPP(method.student, mirrored=True, **own).prepare(batch, 0).t
    keys = torch.cat([batch.draws.uniform(step=0, part=k) for k in (3, 4)])
    assert torch.equal(exact, 1e-5 + (1 - 1e-5 - 1e-5) * mirrored(u, keys, 4.0))
    even = RFPP(method.student, levels="uniform", **own).prepare(batch, 0).t
    assert torch.allclose(even, 1e-5 + u * (1 - 2e-5))
    assert RFPP(method.student, c="sqrt", **own).c == 0.00054 * 8
    assert RFPP(method.student, c=0.3, **own).c == 0.3
    with pytest.raises(InputError, match="scoreline pairs"):
        method.prepare(batch_of(), 0)


def test_real_images_with_inverted_noise():
    teacher = load("digits")
    batch, cond = batch_of(4), Cond(labels=torch.arange(4))
    method = RFPP(RFPP.student_of(teacher), teacher, premetric="huber", inversion=3)
    shared = method.prepare(batch, 0)
    assert torch.equal(shared.z, invert(teacher.given(cond), batch.image, batch.draws, steps=3))
    assert method.frozen() == (teacher,)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert RFPP(RFPP.student_of(teacher), teacher, premetric="huber").frozen() == ()
    # once and for all
    pairs = inverted_pairs(teacher, batch.image, torch.arange(4), steps=3, seed=4, batch=3)
    assert torch.allclose(pairs.noise, shared.z, atol=1e-5)
    assert torch.equal(pairs.image, batch.image)
    assert pairs.num_classes == 10
    with pytest.raises(InputError, match="classes of the images"):
        inverted_pairs(teacher, batch.image)
    # what comes back is the noise: a Gaussian's map is known
    s = torch.tensor([0.5, 0.8], dtype=F8)
    z = Noise(7).at(range(5), (2,), dtype=F8).normal()
    back = inverted_pairs(Gaussian(EDM(), torch.ones(2, dtype=F8), s * s), 1 + s * z, steps=300)
    assert (back.noise - z).abs().max() < 0.05


def test_students_are_in_edms_form():
    teacher = load("digits")
    copy = RFPP.student_of(teacher)
    x, cond = torch.ones(2, 1, 8, 8), Cond(labels=torch.tensor([3, 5]))
    edm = teacher(x / 0.6, 0.4 / 0.6, cond).mean
    assert torch.allclose(x - 0.4 * copy.velocity(x, 0.4, cond), edm, atol=1e-5)
    fresh: Any = RFPP.student_of(teacher, MLP(in_shape=(1, 8, 8), num_classes=10))
    assert (fresh.kind, fresh.sigma_data, fresh.time_input) == ("edm", 0.75, "ln-sigma/4")
    alone: Any = student()
    assert (alone.kind, alone.sigma_data, alone.schedule.t_max) == ("edm", 0.5, 1 - 1e-5)
    assert RFPP.student_of(alone, alone) is alone


def test_the_noisiest_time_is_a_choice():
    net = student()
    assert RFPP(net, premetric="huber").student is net
    method = RFPP(net, premetric="huber", start=0.999)
    same, end = method.student, 1 - 1e-5
    assert (same.schedule.t_min, same.schedule.t_max) == (1e-5, 0.999)
    x = torch.randn(3, 2)
    assert torch.equal(same.velocity(x, 0.5), net.velocity(x, 0.5))
    assert network_of(same) is network_of(net)
    times = method._times(Noise(0).at(range(4000), (2,)))
    assert 0.998 < float(times.max()) <= 0.999
    # One step starts there, with noise of that size.
    assert float(Straight(steps=1).times(same.schedule)[0]) == 0.999
    assert float(Straight(steps=1).times(net.schedule)[0]) == end
    with pytest.raises(InputError, match=r"at most 0\.999"):
        RFPP(same, premetric="huber", start=end)


def test_training_on_exact_pairs_makes_one_step_enough():
    mu, s = torch.tensor([0.7, -0.4]), torch.tensor([0.5, 0.8])
    z = Noise(1).at(range(800), (2,)).normal()
    pairs = Pairs(z, mu + s * z)
    draws = Noise(2).at(range(100), (2,))

    def off(model: Any) -> float:
        return (Straight(steps=1)(model, draws).x - mu - s * draws.normal()).square().mean().item()

    method = RFPP(student(), premetric="huber", lr=3e-3)
    before = off(method.student)
    made = fit(method, pairs, steps=60, batch_size=64, ema=0.9)
    result = made.result()
    assert off(result.denoiser) < before / 5
    assert isinstance(result.sampler, Straight)
    assert made.method.measured() == {"straightness": stage_straightness(method.student)}
    assert result.generate(range(3), Noise(0), steps=2).shape == (3, 2)
    assert result.nfe == 2
    assert made.method.averaged() is network_of(method.student)


GAUSSIAN = Gaussian(Flow(), torch.zeros(3), 1.0)


@pytest.mark.parametrize("settings, said", [
    ({"levels": "ushaped"}, "did you mean 'u-shaped'"),
    ({"a": -1.0}, "steepness"),
    ({"a": math.nan}, "steepness"),
    ({"levels": "uniform", "mirrored": True}, "belongs to the U-shaped"),
    ({"premetric": "lpips"}, "premetric"),
    ({"c": "root"}, "rule"),
    ({"c": 0.0}, "positive number"),
    ({"inversion": -1}, "counts Euler steps"),
    ({"inversion": 5}, "needs a teacher"),
    ({"teacher": GAUSSIAN}, "same shape"),
    ({"student": Gaussian(VP(), torch.zeros(2), 1.0)}, "make a flow of it"),
    ({"student": Gaussian(Flow(), torch.zeros(2), 1.0)}, "no network"),
])  # fmt: skip
def test_bad_settings(settings: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        RFPP(**{"student": student(), "premetric": "huber", **settings})


def test_without_lpips_weights_the_papers_default_is_refused():
    with pytest.raises(ArtefactError, match="vgg16"):
        RFPP(student())


@pytest.mark.parametrize("preset, network, premetric", [
    ("cifar10", "edm-ncsnpp-cifar10", "lpips-huber/t"),
    ("imagenet64", "adm-imagenet64", "lpips-huber"),
])  # fmt: skip
def test_the_presets_of_the_paper_make_a_step(preset: str, network: str, premetric: str, monkeypatch: Any):
    """Forward and backward at batch 2, on the published network with fewer channels, and with a stand-in for LPIPS."""
    recipe = read_recipe("rfpp", preset=preset, teacher="digits", changes={"steps": 1, "batch_size": 2})
    assert recipe.requires == "cuda"
    stage = recipe.stages[0]
    assert stage.get("settings")["premetric"] == premetric
    thin = unet_preset(network, base_channels=32, num_blocks=1)
    if preset == "imagenet64":
        thin |= {"num_classes": 5, "channel_mult": (1, 2), "attention": (32,)}
    teacher = Preconditioned(UNet(**thin), EDM())
    seen: list[Any] = []

    def stand_in(name: str, *, size: int | None = None) -> Any:
        seen.append((name, size))
        return lambda a, b: (a - b).square().flatten(1).mean(1)

    monkeypatch.setattr(rfpp, "distance", stand_in)
    method: Any = make_method(stage, RFPP.student_of(teacher), None)
    assert seen == [("lpips-vgg", 224)]
    shape = teacher.shape
    noise = Noise(0).at(range(2), shape).normal()
    labels = None if teacher.num_classes is None else torch.tensor([1, 4])
    made = fit(method, Pairs(noise, noise.clamp(-1, 1), labels, num_classes=teacher.num_classes), steps=1, batch_size=2)
    assert made.losses["loss"] > 0
    assert method.c == 0.00054 * math.prod(shape)
    assert method.updates[0].lr(10**6) == pytest.approx(2e-4 if preset == "cifar10" else 1e-4)  # type: ignore[operator]
