"""Rectified flow, reflow and distillation against closed forms."""

from __future__ import annotations

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
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Flow
from scoreline.fewstep.flows import as_flow, interpolate, starting_from, straightness
from scoreline.fewstep.instaflow import (
    FlowDistillation,
    RectifiedFlow,
    distillation_loss,
    distillation_times,
    guided_flow,
    guided_velocity,
    online_pairs,
    reflow_loss,
    stage_straightness,
    training_times,
)
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.nn.mlp import MLP
from scoreline.nn.unet_presets import unet_preset
from scoreline.samplers.euler import Euler
from scoreline.samplers.rk45 import RK45
from scoreline.train import fit
from scoreline.train.recipe import recipe_file

F8 = torch.float64
MU, S = torch.tensor([0.7, -0.4], dtype=F8), torch.tensor([0.5, 0.8], dtype=F8)
FIRST = Gaussian(Flow(), MU, S * S)  # the 1-rectified flow of N(MU, diag S^2)


class Reflowed(Denoiser):
    """The optimal flow of the pairs z -> MU + S z, written from check 3 in the papers' time."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule, self.shape = Flow(), (2,)

    def posterior(self, x: Tensor, t: Any, cond: Cond | None) -> Posterior:
        at = 1 - (t.to(x).unsqueeze(-1) if isinstance(t, Tensor) else t)
        z = (x - at * MU.to(x)) / (1 - at + at * S.to(x))
        v = MU.to(x) + (S.to(x) - 1) * z
        mean = x + (1 - at) * v
        zero = 1.0 - at if isinstance(at, Tensor) else 1 - at
        return Posterior.of_mean(x, mean, at, zero)


def draws(count: int = 6, seed: int = 3):
    return Noise(seed).at(range(count), (2,), dtype=F8)


def student(seed: int = 0, shape: tuple[int, ...] = (2,), **more: Any) -> Preconditioned:
    torch.manual_seed(seed)
    net = MLP(in_shape=shape, width=32, depth=2, **more)
    return Preconditioned(net, Flow(), kind="flow")


@pytest.mark.check(system=13, number=1)
@pytest.mark.parametrize("form", ["flow", "vp", "edm"])
def test_the_velocity_of_gaussian_data(form: str):
    model = as_flow(Gaussian({"flow": Flow(), "vp": VP(), "edm": EDM()}[form], MU, S * S))
    x = draws().normal() * 2
    for t in (0.05, 0.3, 0.8):
        expected = MU + (t * S**2 - (1 - t)) / (t**2 * S**2 + (1 - t) ** 2) * (x - t * MU)
        assert torch.allclose(-model.velocity(x, 1 - t), expected, atol=1e-9)
    z = draws().normal()
    assert torch.allclose(FIRST.flow(z, 1.0, 0.0), MU + S * z)


@pytest.mark.check(system=13, number=2)
def test_one_step_of_an_independent_coupling_gives_the_mean():
    assert torch.allclose(Euler(steps=1)(FIRST, draws()).x, MU.expand(6, 2), atol=1e-12)
    modes = Mixture(Flow(), torch.tensor([[-1.0, 0.0], [3.0, 1.0]], dtype=F8), 0.1)
    assert torch.allclose(Euler(steps=1)(modes, draws()).x, torch.tensor([1.0, 0.5], dtype=F8).expand(6, 2))


@pytest.mark.check(system=13, number=3)
def test_after_exact_reflow_one_step_is_exact():
    model, z = Reflowed(), draws().normal()
    for t in (0.2, 0.9):
        x = interpolate(MU + S * z, z, t)
        assert torch.allclose(-model.velocity(x, t), MU + (S - 1) * z, atol=1e-12)
    for steps in (1, 5):
        assert torch.allclose(Euler(steps=steps)(model, draws()).x, MU + S * z, atol=1e-12)
    assert straightness(model, draws(), steps=20).abs().max() < 1e-20
    assert straightness(FIRST, draws(), steps=20).mean() > 0.05
    # both losses see it: zero for it, not for the flow before
    t = torch.linspace(0.05, 0.95, 6, dtype=F8)
    assert reflow_loss(model, MU + S * z, z, t) < 1e-20
    assert reflow_loss(FIRST, MU + S * z, z, t) > 0.05
    assert distillation_loss(model, MU + S * z, z, torch.ones(6, dtype=F8)) < 1e-20
    assert distillation_loss(FIRST, MU + S * z, z, torch.ones(6, dtype=F8)) == pytest.approx(
        (S * z).square().mean().item()
    )


@pytest.mark.check(system=13, number=4)
def test_euler_is_of_first_order_and_rk45_agrees_with_the_closed_form():
    z = draws()
    exact = MU + S * z.normal()
    coarse, fine = ((Euler(steps=n)(FIRST, z).x - exact).abs().max().item() for n in (10, 100))
    assert 8 < coarse / fine < 12.5
    assert (RK45(rtol=1e-5)(FIRST, z).x - exact).abs().max() < 1e-4


@pytest.mark.check(system=13, number=6)
def test_the_flow_has_the_marginals_of_the_interpolation():
    """The map from noise to Z_t is affine for Gaussian data: its offset is the mean, its slopes the deviations."""
    ends = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F8)
    for t in (0.25, 0.5, 0.75):  # the papers' time
        z = RK45(rtol=1e-8)(FIRST, draws(2), times=[1.0, 1 - t], x=ends).x
        assert torch.allclose(z[0], t * MU, atol=1e-6)
        assert torch.allclose((z[1] - z[0]) ** 2, t**2 * S**2 + (1 - t) ** 2, atol=1e-6)
    modes = torch.tensor([[-1.0, 0.0], [1.0, 1.0]], dtype=F8)
    many = draws(2000)
    path = Euler(steps=40)(Mixture(Flow(), modes, 0.05), many, trajectory=True)
    assert path.trajectory is not None
    for t in (0.25, 0.5, 0.75):
        z = path.trajectory[round(40 * t)]
        centred = modes - modes.mean(0)
        cov = t**2 * (centred.T @ centred / 2 + 0.05 * torch.eye(2)) + (1 - t) ** 2 * torch.eye(2)
        assert torch.allclose(z.mean(0), t * modes.mean(0), atol=0.06)
        assert torch.allclose(z.T.cov(), cov, atol=0.1)


@pytest.mark.check(system=13, number=8)
def test_guidance():
    text, nothing = torch.tensor([1.0]), torch.tensor([3.0])
    assert guided_velocity(text, nothing, 1.5).item() == 0.0
    assert guided_velocity(text, nothing, 0.0).item() == 3.0
    assert torch.equal(guided_velocity(text, torch.tensor([float("inf")]), 1.0), text)
    model = load("digits")
    x, cond = torch.ones(2, 1, 8, 8), Cond(labels=torch.tensor([3, 5]))
    assert guided_flow(model, 1.0) is model
    flow = as_flow(model)
    strong = as_flow(guided_flow(model, 1.5)).velocity(x, 0.6, cond)
    expected = guided_velocity(flow.velocity(x, 0.6, cond), flow.velocity(x, 0.6, model.null(cond)), 1.5)
    assert torch.allclose(strong, expected, atol=1e-4)
    for weak in (0.0, 0.9):
        with pytest.raises(InputError, match="bind no label"):
            guided_flow(model, weak)


@pytest.mark.check(system=13, number=9)
def test_the_network_of_cifar10():
    """The preset's network is the published one, whose parameters are counted where networks are tested."""
    stages = recipe_file("instaflow-cifar10")["stages"]
    net = stages["rectify"]["student"]["net"]
    published = unet_preset("ddpmpp-continuous-cifar10", dropout=0.15)
    assert net["name"] == "unet"
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in net["args"].items()} == published


def test_times():
    u = torch.tensor([0.0, 0.5, 0.999999])
    assert training_times(u).tolist() == pytest.approx([0.001, 0.5005, 0.999999], abs=1e-6)
    assert distillation_times(u, 1).tolist() == [0.0, 0.0, 0.0]
    assert distillation_times(u, 4).tolist() == [0.0, 0.5, 0.75]
    assert distillation_times(u, 4, eps=0.01).tolist() == pytest.approx([0.01, 0.505, 0.7525])


def test_the_reflow_loss_is_smallest_at_the_optimal_velocity():
    """For independent couplings the excess over the optimum is the squared deviation from it, whatever the sign."""
    x = MU + S * draws(4000, 8).normal()
    z, t = draws(4000, 9).normal(), draws(4000, 10).uniform()
    best = reflow_loss(FIRST, x, z, t)
    for shift in (-0.3, 0.3):
        # A shift of E[x|x_t] by -t d moves the velocity by d.
        off = SimpleNamespace(schedule=Flow(), velocity=lambda y, at, c, d=shift: FIRST.velocity(y, at) + d)
        assert (reflow_loss(off, x, z, t) - best).item() == pytest.approx(0.09, abs=0.03)


def test_the_one_step_distance_starts_from_noise_and_from_eps_if_asked():
    model, z = student(), draws().normal().float()
    x = z * 0.5
    told: list[float] = []
    trace = model.net.trace
    model.net.trace = lambda y, at, *rest: told.extend(at.tolist()) or trace(y, at, *rest)  # type: ignore[union-attr]
    one = distillation_loss(model, x, z, torch.ones(6, dtype=F8))
    assert one.item() == pytest.approx((z - model.velocity(z, 1.0) - x).square().mean().item(), rel=1e-5)
    distillation_loss(model, x, z, torch.full((6,), 0.999, dtype=F8))
    assert told == pytest.approx([1000.0] * 7 + [999.0] * 6)
    apart = distillation_loss(model, x, z, torch.ones(6, dtype=F8), apart=lambda a, b: (a - b).abs().amax(1))
    assert apart.item() == pytest.approx((z - model.velocity(z, 1.0) - x).abs().amax(1).mean().item(), rel=1e-5)
    # a student in EDM's form answers from its noisiest level, short of 1
    edm = Preconditioned(MLP(in_shape=(2,)), Flow(t_max=1 - 1e-5), kind="edm")
    loss = distillation_loss(edm, x, z, torch.ones(6, dtype=F8))
    rows = SimpleNamespace(normal=lambda *a: z, shape=(2,), device=z.device, __len__=lambda: 6)
    reached = Euler(steps=1)(edm, Noise(3).at(range(6), (2,))).x
    assert rows.shape == (2,)
    assert loss.item() == pytest.approx((reached - x).square().mean().item(), rel=1e-3)


def test_online_pairs_are_eulers():
    z = draws()
    assert torch.allclose(online_pairs(FIRST, z.normal(), 20), Euler(steps=20)(FIRST, z).x, atol=1e-10)
    fine = online_pairs(Gaussian(VP(), MU, S * S), z.normal(), 400)
    assert torch.allclose(fine, MU + S * z.normal(), atol=0.02)
    short = Gaussian(VP(t_max=0.4), MU, S * S)  # its flow ends at 0.65
    assert torch.allclose(online_pairs(short, z.normal(), 20), Euler(steps=20)(as_flow(short), z).x, atol=1e-10)


def test_reflow_then_distillation_on_gaussian_pairs():
    """The whole chain: 2-rectified flow from exact pairs, then one step; each stage does what it promises."""
    z = draws(1000, 20).normal().float()
    pairs = Pairs(z, (MU + S * z).float())
    made = fit(RectifiedFlow(student(), lr=3e-3), pairs, steps=100, batch_size=128, ema=0.9)
    flow = made.method.student  # type: ignore[union-attr]
    assert made.losses["loss"] < 0.05
    result = made.result()
    assert result.nfe is None
    images = result.generate(range(4), Noise(1), steps=3)
    assert images.shape == (4, 2)
    assert result.nfe == 3
    told = made.method.measured()  # type: ignore[operator]
    assert told["straightness"] < 0.1 < stage_straightness(Gaussian(Flow(), MU.float(), (S * S).float()))
    distilled = FlowDistillation(RectifiedFlow.student_of(flow), lr=1e-3)
    before = (Euler(steps=1)(distilled.student, Noise(1).at(range(64), (2,))).x).clone()
    end = fit(distilled, pairs, steps=30, batch_size=128)
    assert end.method.made_for == (1,)
    exact = (MU + S * Noise(1).at(range(64), (2,)).normal()).float()
    after = Euler(steps=1)(distilled.student, Noise(1).at(range(64), (2,))).x
    assert (after - exact).square().mean() < (before - exact).square().mean()
    # distilling did not touch the flow it came from
    assert not torch.equal(next(distilled.student.parameters()), next(flow.parameters()))


def batch_of(count: int = 64, **extras: Tensor) -> SimpleNamespace:
    image = torch.zeros(count, 1, 8, 8)
    rows = Noise(4).at(range(count), (1, 8, 8))
    return SimpleNamespace(image=image, label=torch.arange(count) % 10, extras=extras, draws=rows)


def test_what_a_turn_shares():
    flow = RectifiedFlow(student(shape=(1, 8, 8)))
    batch = batch_of()
    shared = flow.prepare(batch, 0)
    assert torch.equal(shared.z, batch.draws.normal())
    assert torch.equal(shared.t, 1 - training_times(batch.draws.uniform(step=0, part=1)))
    assert shared.cond is None
    assert flow.frozen() == ()
    stored = torch.ones(64, 1, 8, 8)
    assert torch.equal(flow.prepare(batch_of(noise=stored), 0).z, stored)
    classes = RectifiedFlow(student(shape=(1, 8, 8), num_classes=10), p_uncond=0.5)
    labels = classes.prepare(batch, 0).cond.labels
    assert 0.3 < (labels == 10).double().mean() < 0.7
    slope = SimpleNamespace(**{**vars(batch), "image": torch.arange(8.0).expand(64, 1, 8, 8)})
    seen = RectifiedFlow(student(shape=(1, 8, 8)), flips=True).prepare(slope, 0).x
    left, right = (seen == slope.image).all((1, 2, 3)), (seen == slope.image.flip(-1)).all((1, 2, 3))
    assert (left ^ right).all()
    assert 20 < left.sum() < 44
    paired = SimpleNamespace(**{**vars(slope), "extras": {"noise": stored}})
    assert torch.equal(RectifiedFlow(student(shape=(1, 8, 8)), flips=True).prepare(paired, 0).x, slope.image)
    k = FlowDistillation(student(shape=(1, 8, 8)), k=4)
    assert set(k.prepare(batch_of(noise=stored), 0).t.tolist()) == {1.0, 0.75, 0.5, 0.25}
    assert k.made_for == (4,)
    shared = k.prepare(batch_of(noise=stored), 0)
    assert torch.equal(k.loss(None, shared, 0), reflow_loss(k.student, shared.x, shared.z, shared.t))
    one = FlowDistillation(student(shape=(1, 8, 8)), eps=1e-3)
    assert set(one.prepare(batch_of(noise=stored), 0).t.tolist()) == {0.999}
    with pytest.raises(InputError, match="scoreline pairs"):
        one.prepare(batch, 0)


def test_a_teacher_makes_the_pairs_of_a_batch():
    teacher = load("digits")
    method = RectifiedFlow(RectifiedFlow.student_of(teacher), teacher, online=2)
    shared = method.prepare(batch_of(4), 0)
    cond = Cond(labels=torch.arange(4))
    assert torch.equal(shared.x, online_pairs(teacher, shared.z, 2, cond))
    assert method.frozen() == (teacher,)
    assert not any(p.requires_grad for p in teacher.parameters())
    guided = FlowDistillation(RectifiedFlow.student_of(teacher), teacher, online=2, guidance=1.5)
    assert not torch.equal(guided.prepare(batch_of(4), 0).x, shared.x)
    # with stored pairs it is not asked
    assert RectifiedFlow(RectifiedFlow.student_of(teacher), teacher).frozen() == ()


@pytest.mark.parametrize("settings, said", [
    ({"eps": 1.0}, "least time"),
    ({"p_uncond": 1.0}, "p_uncond"),
    ({"flips": True}, "belong to pictures"),
    ({"online": 3}, "which must be given"),
    ({"online": -1}, "counts Euler steps"),
    ({"teacher": Gaussian(Flow(), torch.zeros(3), 1.0)}, "same shape"),
    ({"teacher": Gaussian(Flow(), torch.zeros(2), 1.0), "online": 1, "guidance": 0.5}, "guided with 1"),
    ({"teacher": Gaussian(Flow(), torch.zeros(2), 1.0), "online": 1, "guidance": 2.0}, "no conditions"),
    ({"student": Gaussian(VP(), torch.zeros(2), 1.0)}, "make a flow of it"),
    ({"student": Gaussian(Flow(), torch.zeros(2), 1.0)}, "no network"),
])  # fmt: skip
def test_bad_settings_of_a_rectified_flow(settings: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        RectifiedFlow(**{"student": student(), **settings})


@pytest.mark.parametrize("settings, said", [
    ({"k": 0}, "1 or more"),
    ({"eps": -0.1}, "least time"),
    ({"k": 2, "distance": "pseudo-huber"}, "belongs to one step"),
    ({"distance": "squarred"}, "did you mean 'squared'"),
])  # fmt: skip
def test_bad_settings_of_a_distillation(settings: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        FlowDistillation(student(), **settings)


def test_students_start_where_they_were_trained():
    """The networks are told nothing of t' below 1e-3 in training, so that sampling must not ask there."""
    plain, edm = RectifiedFlow.student_of(None, student().net), FlowDistillation.student_of(load("digits"))
    velocity = RectifiedFlow.student_of(Preconditioned(MLP(in_shape=(2,)), VP(), kind="v"))
    for made in (plain, edm, velocity):
        assert made.schedule.t_max == 0.999
    assert edm.sigma_data == 0.75
    told: list[float] = []
    trace = plain.net.trace
    plain.net.trace = lambda y, at, *rest: told.extend(at.tolist()) or trace(y, at, *rest)  # type: ignore[union-attr]
    Euler(steps=1)(plain, Noise(0).at([0], (2,)))
    assert told == pytest.approx([0.999])  # 999 t' at t' = 1e-3
    earlier = starting_from(plain, 0.5)
    assert earlier.net is plain.net
    assert earlier.schedule.t_max == 0.5
    assert starting_from(earlier, 0.7) is earlier


def test_labels_must_fit():
    teacher = load("digits")
    with pytest.raises(InputError, match="classes"):
        RectifiedFlow(student(shape=(1, 8, 8), num_classes=3), teacher, online=1)
    assert np.isfinite(stage_straightness(teacher, count=10, steps=4))


def test_the_preset_of_cifar10_makes_a_step():
    """Forward and backward at batch 2 with the paper's settings; LPIPS' weights are not there, which is said."""
    recipe = read_recipe("instaflow", preset="cifar10", changes={"steps": 1, "batch_size": 2})
    assert recipe.requires == "cuda"
    assert [stage.name for stage in recipe.stages] == ["rectify", "reflow", "distil"]
    assert recipe.stages[0].get("ema") == {"warm-up": 0.999999}
    first = recipe.stages[0]
    first["student"]["net"]["args"].update(base_channels=32)  # a 16th of the cost
    method = make_method(first, make_student(first, None, {}), None)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    made = fit(method, images, steps=1, batch_size=2, ema=first["ema"])
    assert made.losses["loss"] > 0
    assert method.flips
    with pytest.raises(ArtefactError, match="vgg16"):
        make_method(recipe.stages[2], method.student, None)
