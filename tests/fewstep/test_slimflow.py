"""SlimFlow's annealing, its two-step target and its losses against closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data.pair_store import Pairs
from scoreline.diffusion.closed_form import Empirical, Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import VP, Flow
from scoreline.fewstep.flows import interpolate, network_of, training_times, velocity_loss
from scoreline.fewstep.instaflow import RectifiedFlow, reflow_loss
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.fewstep.slimflow import (
    EPS,
    AnnealedReflow,
    FlowGuidedDistillation,
    annealed_noise,
    annealing,
    guided_losses,
    split_times,
    two_step_target,
)
from scoreline.nn.mlp import MLP
from scoreline.nn.unet_presets import unet_preset
from scoreline.samplers.euler import Euler
from scoreline.samplers.rk45 import RK45
from scoreline.train import fit
from scoreline.train.recipe import recipe_file

F8 = torch.float64
MU, S = torch.tensor([0.7, -0.4], dtype=F8), torch.tensor([0.5, 0.8], dtype=F8)
FIRST = Gaussian(Flow(), MU, S * S)


class Straight(Denoiser):
    """The flow of the pairs z -> MU + S z: all its paths are straight lines."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule, self.shape = Flow(), (2,)

    def posterior(self, x: Tensor, t: Any, cond: Cond | None) -> Posterior:
        at = t.to(x).reshape(-1, 1) if isinstance(t, Tensor) else torch.full_like(x[:, :1], t)
        z = (x - (1 - at) * MU.to(x)) / (at + (1 - at) * S.to(x))
        return Posterior(x, z - (MU.to(x) + S.to(x) * z), mean=(1.0, -at), eps=(1.0, 1 - at), sigma=at)


def draws(count: int = 6, seed: int = 3, shape: tuple[int, ...] = (2,)):
    return Noise(seed).at(range(count), shape, dtype=F8)


def student(seed: int = 0, shape: tuple[int, ...] = (2,), **more: Any) -> Denoiser:
    torch.manual_seed(seed)
    return AnnealedReflow.student_of(None, MLP(in_shape=shape, width=32, depth=2, **more))


def batch_of(count: int = 16, shape: tuple[int, ...] = (2,), **extras: Tensor) -> SimpleNamespace:
    rows = Noise(4).at(range(count), shape)
    return SimpleNamespace(image=rows.normal(9), label=torch.arange(count) % 10, extras=extras, draws=rows)


@pytest.mark.check(system=31, number=1)
def test_the_annealing_schedules():
    assert [annealing(k) for k in (0, 75_000, 150_000, 300_000, 800_000)] == [1.0, 0.75, 0.5, 0.0, 0.0]
    assert [annealing(k, rule="exponential", over=10) for k in (0, 10, 100)] == [1.0, math.exp(-1), math.exp(-10)]
    told = [annealing(k, rule="cosine", over=12) for k in (0, 4, 6, 12, 99)]
    assert told == pytest.approx([1.0, 0.75, 0.5, 0.0, 0.0])
    assert {annealing(k, rule="constant", constant=0.3) for k in (0, 7, 10**6)} == {0.3}
    assert AnnealedReflow(student()).over == 300_000
    assert AnnealedReflow(student(), steps=4000, over=1500).over == 1500
    for settings in ({"rule": "lineal"}, {"over": 0}, {"constant": 1.1}):
        with pytest.raises(InputError):
            annealing(0, **settings)  # type: ignore[arg-type]


@pytest.mark.check(system=31, number=2)
@pytest.mark.parametrize("b", [0.0, 0.3, 0.8, 1.0])
def test_annealed_noise_preserves_the_variance(b: float):
    z, fresh = (Noise(3).at(range(4), (20_000,), dtype=F8).normal(part) for part in (0, 1))
    mixed = annealed_noise(z, fresh, b)
    assert mixed.mean().abs() < 0.02
    assert mixed.var().item() == pytest.approx(1.0, abs=0.02)
    found = np.corrcoef(mixed.flatten(), z.flatten())[0, 1]
    assert found == pytest.approx(math.sqrt(1 - b * b), abs=0.02)
    assert np.corrcoef(mixed.flatten(), fresh.flatten())[0, 1] == pytest.approx(b, abs=0.02)
    # rounding above 1 is no reason for NaN
    assert torch.isfinite(annealed_noise(z, fresh, 1 + 1e-12)).all()


@pytest.mark.check(system=31, number=3)
def test_without_annealing_it_is_reflow_and_with_all_of_it_independent_of_the_pairs():
    stored = draws(16, 7).normal().float()
    model, other = student(), student()
    plain = AnnealedReflow(model, rule="constant", constant=0.0)
    reflow = RectifiedFlow(other)
    batch = batch_of(noise=stored)
    shared, theirs = plain.prepare(batch, 5), reflow.prepare(batch, 5)
    assert torch.equal(shared.z, stored)
    assert torch.equal(shared.x, theirs.x)
    assert torch.allclose(shared.t, theirs.t, atol=1e-15)
    ours, its = plain.loss(batch, shared, 5), reflow.loss(batch, theirs, 5)
    assert ours.item() == pytest.approx(its.item(), rel=1e-6)
    ours.backward(), its.backward()
    pairs = zip(network_of(model).parameters(), network_of(other).parameters())
    assert all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in pairs)  # type: ignore[arg-type]
    # b = 1: whatever noise the pairs hold, the same
    free = AnnealedReflow(model, rule="constant", constant=1.0)
    one, two = (free.prepare(batch_of(noise=z), 0) for z in (stored, -3 * stored))
    assert torch.equal(one.z, two.z)
    assert one.z.flatten().double().var().item() == pytest.approx(1.0, abs=0.5)
    assert free.loss(None, one, 0) == free.loss(None, two, 0)
    # between them, by the number of the step alone, so that a resumed run goes on where it was
    mixed = AnnealedReflow(model, steps=80).prepare(batch, 15)
    assert torch.allclose(mixed.z, annealed_noise(stored, one.z, 0.5))
    assert torch.equal(AnnealedReflow(model, steps=80).prepare(batch, 30).z, stored)
    # the data are never annealed
    assert torch.equal(mixed.x, batch.image)


@pytest.mark.check(system=31, number=4)
@pytest.mark.parametrize("first", ["student", "guide"])
def test_a_straight_flow_costs_nothing(first: str):
    model, z, fresh = Straight(), draws().normal(), draws().normal(1)
    r = split_times(draws().uniform())
    distil, two = guided_losses(model, model, MU + S * z, z, fresh, r, first=first)
    assert distil < 1e-20
    assert two < 1e-20
    assert torch.allclose(two_step_target(model, fresh, model.velocity(fresh, 1.0), r), MU + S * fresh, atol=1e-12)
    # a guide that is not straight disagrees with it, and a student too
    assert guided_losses(model, FIRST, MU + S * z, z, fresh, r, first=first)[1] > 1e-3
    assert guided_losses(FIRST, model, MU + S * z, z, fresh, r, first=first)[0] > 0.05


@pytest.mark.check(system=31, number=5)
def test_the_ends_of_the_split():
    z = draws().normal()
    v = Straight().velocity(z, 1.0)
    late = two_step_target(FIRST, z, v, torch.full((6,), 1 - 1e-6, dtype=F8))
    assert torch.allclose(late, z - v, atol=1e-4)
    early = two_step_target(FIRST, z, v, torch.full((6,), 1e-6, dtype=F8))
    assert torch.allclose(early, z - FIRST.velocity(z, 1.0), atol=1e-4)
    assert not torch.allclose(early, late, atol=0.1)
    # between them, written from the formula in the code's time: v' = -v, t' = 1 - t
    r = torch.tensor([0.2, 0.35, 0.5, 0.6, 0.7, 0.8], dtype=F8)
    a = z + r[:, None] * -v
    expected = a + (1 - r)[:, None] * -FIRST.velocity(a, 1 - r)
    assert torch.allclose(two_step_target(FIRST, z, v, r), expected, atol=1e-12)


def test_times():
    u = torch.tensor([0.0, 0.5, 0.999999])
    assert split_times(u).tolist() == pytest.approx([0.2, 0.5, 0.8], abs=1e-6)
    assert split_times(u, low=0.4, high=0.5).tolist() == pytest.approx([0.4, 0.45, 0.5], abs=1e-6)
    assert training_times(u).tolist() == pytest.approx([0.001, 0.5005, 1.0], abs=1e-5)
    r = FlowGuidedDistillation(student(), student(1)).prepare(batch_of(400, noise=torch.zeros(400, 2)), 0).r
    assert 0.2 <= r.min() < 0.25
    assert 0.75 < r.max() < 0.8
    t = AnnealedReflow(student()).prepare(batch_of(400, noise=torch.zeros(400, 2)), 0).t
    assert 0 <= t.min() < 0.05
    assert 0.95 < t.max() <= 1 - EPS


@pytest.mark.check(system=31, number=6)
@pytest.mark.parametrize("first", ["student", "guide"])
def test_gradients_reach_the_student_through_its_prediction_alone(first: str):
    model, guide = student(), student(1)
    z, fresh = draws().normal().float(), draws().normal(1).float()
    r = split_times(draws().uniform())
    _, two = guided_losses(model, guide, z, z, fresh, r, first=first)
    two.backward()
    # the same with the target as a number
    got = [p.grad.clone() for p in network_of(model).parameters() if p.grad is not None]
    model.zero_grad()
    v = model.velocity(fresh, 1 - EPS)
    own = v.detach() if first == "student" else guide.velocity(fresh, 1 - EPS).detach()
    target = two_step_target(guide, fresh, own, r)
    assert not target.requires_grad
    (fresh - v - target).square().flatten(1).mean().backward()
    want = [p.grad for p in network_of(model).parameters() if p.grad is not None]
    assert len(got) == len(want) > 4
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, want))
    assert all(p.grad is None for p in network_of(guide).parameters())
    method = FlowGuidedDistillation(model, guide)
    assert method.frozen() == (method.guide,)
    assert not any(p.requires_grad for p in guide.parameters())


@pytest.mark.check(system=31, number=7)
def test_flips_turn_noise_and_image_together():
    rows = Noise(2).at(range(5), (1, 4, 4))
    points = rows.normal(8)
    both = torch.cat([points, points.flip(-1)])
    model = Empirical(Flow(), both, smoothing=0.3)  # symmetric data have a flip-equivariant velocity
    z, r = rows.normal(), split_times(rows.uniform())
    x = rows.normal(1)
    t = torch.linspace(0.1, 0.9, 5, dtype=F8)

    def losses(flip: bool) -> list[Tensor]:
        a, b, c = (v.flip(-1) if flip else v for v in (x, z, rows.normal(2)))
        return [*guided_losses(model, model, a, b, c, r), reflow_loss(model, a, b, t)]

    assert torch.allclose(torch.stack(losses(True)), torch.stack(losses(False)), rtol=1e-5)
    path = [Euler(steps=4)(model, rows, x=v, times=np.linspace(1, 0, 5), trajectory=True) for v in (z, z.flip(-1))]
    assert all(
        torch.allclose(a.flip(-1), b, atol=1e-5) for a, b in zip(path[0].trajectory or [], path[1].trajectory or [])
    )
    # one coin a batch, for both; a flip of one alone would show
    slope = torch.arange(4.0).expand(64, 1, 4, 4)
    pairs = Pairs(slope.clone(), slope.clone(), flips=True)
    seen = [pairs.batch(np.arange(i, i + 4)) for i in range(32)]
    turned = [bool(torch.equal(batch.image, slope[:4].flip(-1))) for batch in seen]
    assert all(torch.equal(batch.extras["noise"], batch.image) for batch in seen)
    assert 6 < sum(turned) < 26


@pytest.mark.check(system=31, number=8)
def test_the_network_of_the_preset_is_the_published_one():
    """Whose parameters are counted where networks are tested."""
    net = recipe_file("slimflow-cifar10")["stages"]["reflow"]["student"]["net"]["args"]
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in net.items()} == unet_preset("slimflow-16m")


@pytest.mark.check(system=31, number=9)
def test_the_closed_form_velocity_of_points():
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]], dtype=F8)
    model, x = Empirical(Flow(), points), draws().normal()
    for t in (0.0, 0.3, 0.9):  # the code's time
        square = (x[:, None] - t * points).square().sum(2)
        w = torch.softmax(-square / (2 * (1 - t) ** 2), 1)
        expected = (w @ points - x) / (1 - t)
        assert torch.allclose(-model.velocity(x, 1 - t), expected, atol=1e-10)
    assert torch.allclose(-model.velocity(x, 1.0), points.mean(0) - x, atol=1e-12)


@pytest.mark.check(system=31, number=10)
def test_rk45_there_and_back():
    rows = draws(4)
    model = Empirical(Flow(), torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F8), smoothing=0.2)
    there = RK45(rtol=1e-6)(model, rows, times=[1.0, 1e-3]).x
    back = RK45(rtol=1e-6)(model, rows, times=[1e-3, 1.0], x=there).x
    assert torch.allclose(back, rows.normal(), atol=1e-3)


def test_students_start_where_they_are_trained():
    made = student()
    assert made.schedule.t_max == 1 - EPS
    told: list[float] = []
    trace = made.net.trace  # type: ignore[union-attr]
    made.net.trace = lambda y, at, *rest: told.extend(at.tolist()) or trace(y, at, *rest)  # type: ignore[union-attr]
    z = draws().normal().float()
    guided_losses(made, FIRST, z, z, z, split_times(draws().uniform()))
    Euler(steps=1)(made, Noise(3).at(range(6), (2,)))
    assert told == pytest.approx([999 * EPS] * 2)  # the code's label, 999 t'
    # a copy of a network in EDM's form keeps it, and other forms are asked by equal lambda
    copy = AnnealedReflow.student_of(load("digits"))
    assert isinstance(copy, Preconditioned)
    assert (copy.kind, copy.sigma_data, copy.schedule.t_max) == ("edm", 0.75, 1 - EPS)
    v = Preconditioned(MLP(in_shape=(2,)), VP(), kind="v")
    assert AnnealedReflow.student_of(v).schedule.t_max == 1 - EPS
    assert AnnealedReflow.student_of(None, made) is made  # type: ignore[arg-type]


def test_the_chain_on_gaussian_pairs():
    """Annealed reflow from scratch, then distillation: both learn, and the guide stays what it was."""
    z = draws(1000, 20).normal().float()
    pairs = Pairs(z, (MU + S * z).float())
    flow = AnnealedReflow(student(), steps=120, lr=5e-3)
    fit(flow, pairs, steps=120, batch_size=64)
    assert flow.measured()["straightness"] < 0.15
    assert flow.result().generate(range(4), Noise(1), steps=3).shape == (4, 2)
    method = FlowGuidedDistillation(FlowGuidedDistillation.student_of(flow.student), flow.student, lr=1e-3)
    before = [p.clone() for p in flow.student.parameters()]
    ended = fit(method, pairs, steps=20, batch_size=64)
    assert ended.losses.keys() >= {"loss/distil", "loss/two_step"}
    assert all(torch.equal(a, b) for a, b in zip(before, flow.student.parameters()))
    exact = (MU + S * Noise(1).at(range(64), (2,)).normal()).float()
    got = Euler(steps=1)(method.student, Noise(1).at(range(64), (2,))).x
    assert (got - exact).square().mean() < 0.05


def test_the_weight_of_the_two_step_term_and_pairs_made_on_the_way():
    model, guide = student(), student(1)
    batch = batch_of(noise=draws(16, 7).normal().float())

    def loss(**settings: Any) -> dict[str, Tensor]:
        method = FlowGuidedDistillation(model, guide, **settings)
        return method.loss(batch, method.prepare(batch, 0), 0)

    alone, one, two = loss(two_step=0.0), loss(), loss(two_step=2.0)
    assert one["loss"].item() == pytest.approx((one["distil"] + one["two_step"]).item(), rel=1e-6)
    assert two["loss"].item() == pytest.approx((one["distil"] + 2 * one["two_step"]).item(), rel=1e-6)
    assert alone["loss"].item() == pytest.approx(one["distil"].item(), rel=1e-5)
    assert loss(first="guide")["two_step"] != one["two_step"]
    images = batch_of()
    for cls in (AnnealedReflow(model), FlowGuidedDistillation(model, guide)):
        with pytest.raises(InputError, match="scoreline pairs"):
            cls.prepare(images, 0)
    online = FlowGuidedDistillation(model, Gaussian(Flow(), MU.float(), (S * S).float()), online=400).prepare(images, 0)
    assert torch.allclose(online.x, (MU + S * images.draws.normal()).float(), atol=0.01)
    assert AnnealedReflow(model, guide, online=1).frozen() == (guide,)
    assert AnnealedReflow(model, guide).frozen() == ()


def test_classes_are_those_of_the_pairs():
    model = student(shape=(1, 8, 8), num_classes=10)
    batch = batch_of(6, (1, 8, 8), noise=torch.zeros(6, 1, 8, 8))
    method = FlowGuidedDistillation(model, load("digits"))
    shared = method.prepare(batch, 0)
    assert shared.cond is not None
    assert torch.equal(shared.cond.labels, batch.label)
    both = method.loss(batch, shared, 0)
    # pair by pair, each noise under its own label
    rows = [slice(i, i + 1) for i in range(6)]
    alone = [
        guided_losses(
            model, method.guide, shared.x[i], shared.z[i], shared.fresh[i], shared.r[i], Cond(labels=batch.label[i])
        )
        for i in rows
    ]
    assert both["distil"].item() == pytest.approx(sum(a.item() for a, _ in alone) / 6, rel=1e-4)
    assert both["two_step"].item() == pytest.approx(sum(b.item() for _, b in alone) / 6, rel=1e-4)
    with pytest.raises(InputError, match="classes"):
        FlowGuidedDistillation(student(shape=(1, 8, 8)), load("digits"))


@pytest.mark.parametrize("settings, said", [
    ({"rule": "quick"}, "rule"),
    ({"over": -1.0}, "over"),
    ({"online": 2}, "must be given"),
    ({"teacher": Gaussian(Flow(), torch.zeros(3), 1.0)}, "same shape"),
    ({"student": Gaussian(VP(), torch.zeros(2), 1.0)}, "make a flow of it"),
])  # fmt: skip
def test_bad_settings_of_annealed_reflow(settings: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        AnnealedReflow(**{"student": student(), **settings})


@pytest.mark.parametrize("settings, said", [
    ({"two_step": -1.0}, "weight of a loss"),
    ({"split": (0.8, 0.2)}, "least and the largest"),
    ({"split": (0.0, 1.0)}, "least and the largest"),
    ({"first": "teacher"}, "first"),
    ({"distance": "squarred"}, "did you mean 'squared'"),
])  # fmt: skip
def test_bad_settings_of_the_distillation(settings: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        FlowGuidedDistillation(student(), student(1), **settings)


def test_the_preset_of_cifar10_makes_a_step():
    """Forward and backward at batch 2 with the paper's settings; LPIPS' weights are not there, which is said."""
    recipe = read_recipe("slimflow", preset="cifar10", teacher="digits", changes={"steps": 1, "batch_size": 2})
    assert recipe.requires == "cuda"
    first, second = recipe.stages
    assert first["pairs"]["flips"]
    assert second.get("teacher") == {"from": "reflow"}
    first["student"]["net"]["args"].update(base_channels=32)  # a ninth of the cost
    method: Any = make_method(first, make_student(first, None, {}), None)
    assert method.over == 300_000
    z = torch.rand(2, 3, 32, 32) * 2 - 1
    made = fit(method, Pairs(z, z.flip(0)), steps=1, batch_size=2, ema=first["ema"])
    assert made.losses["loss"] > 0
    with pytest.raises(ArtefactError, match="vgg16"):
        make_method(second, method.student, method.student)


def test_the_loss_is_the_velocity_loss_at_the_annealed_noise():
    method, stored = AnnealedReflow(student(), steps=80), draws(16, 7).normal().float()
    s = method.prepare(batch_of(noise=stored), 3)
    at = interpolate(s.x, s.z, s.t.clamp_min(method.student.schedule.t_min))
    want = velocity_loss(method.student.velocity(at, s.t), s.x, s.z).mean()
    assert method.loss(None, s, 3).item() == pytest.approx(want.item(), rel=1e-5)
