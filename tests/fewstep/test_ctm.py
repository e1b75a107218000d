"""CTM: each part of its loss by hand and on exact maps, and the method in the loop.

Of its nine checks the last, parameters of the published network, is in `tests/nn/test_unet.py`.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from scoreline.core.artefact import save_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.likelihood import log_likelihood
from scoreline.diffusion.preconditioned import Preconditioned, edm_scalings, edm_weight
from scoreline.diffusion.schedules import EDM, VP, Flow
from scoreline.fewstep import ctm
from scoreline.fewstep.ctm import (
    CTM,
    ctm_loss,
    draw_indices,
    draw_number_of_steps,
    dsm_levels,
    dsm_loss,
    number_of_steps_weights,
)
from scoreline.fewstep.discriminators import frozen_part, named_discriminator
from scoreline.fewstep.distances import squared
from scoreline.fewstep.maps import OUTER, GaussianMap, Trajectory, outer_scalings, outer_shift
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.fewstep.teachers import advance
from scoreline.fewstep.trajectory import training_grid
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.nn.discriminator import FeatureDiscriminator, TapDiscriminator
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.nn.unet_presets import unet_preset
from scoreline.samplers.heun import Heun
from scoreline.samplers.jumps import Jumps
from scoreline.train import fit

MEAN, VARIANCE = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64), 0.16
EXACT = GaussianMap(EDM(), MEAN, VARIANCE)
TEACHER = Gaussian(EDM(), MEAN, VARIANCE)
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.tensor([0.01, 0.1, 0.7, 2.0, 9.0, 80.0], dtype=torch.float64)


class ExactNet(nn.Module):
    """F(c_in x, ln t/4, ln s/4) of the exact map of Gaussian data, and a bias with which it is wrong."""

    in_shape, num_classes, second_time = (3,), None, True

    def __init__(self, wrong=0.0):
        super().__init__()
        self.bias = nn.Parameter(torch.full((1, 3), wrong, dtype=torch.float64))

    def trace(self, x, times, cond=None, plan=None):
        t, s = (4 * times.double()).exp().unbind(1)
        c_skip, c_out, c_in, _ = (c[:, None] for c in edm_scalings(t))
        x = x / c_in
        ratio = (s / t)[:, None]
        moved = EXACT.flow(x, t.expand(len(x)), s.expand(len(x)))
        g = torch.where(ratio < 1, (moved - ratio * x) / (1 - ratio).clamp_min(1e-12), TEACHER(x, t, None).mean)
        return (g - c_skip * x) / c_out + self.bias, {}


def student(**settings):
    torch.manual_seed(1)
    return Trajectory(MLP(in_shape=(3,), width=16, depth=1, second_time=True, **settings), EDM())


def batch(count=6, shape=(3,), label=None, seed=7):
    index = torch.arange(count)
    image = torch.linspace(-1, 1, count * math.prod(shape)).view(count, *shape)
    return Batch(image, label, index, draws=Noise(seed).at(index, shape))


def method(model=None, teacher=TEACHER, **settings):
    return CTM(student() if model is None else model, teacher, distance="squared", **{"teacher_steps": 3} | settings)


def parted(made, change=0.3):
    """The method with an averaged student that differs from the student."""
    with torch.no_grad():
        for parameter in made.target.parameters():
            parameter.mul_(1 + change)
    return made


def place(grid, times):
    """Index on the grid of each time, which must lie there."""
    same = torch.isclose(grid, times[:, None], rtol=1e-12)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


@pytest.mark.check(system=34, number=1)
@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", ["own", "cm", "no"])
def test_a_jump_to_where_one_stands_is_the_identity_for_any_network(inner, outer):
    net = student().net
    with torch.no_grad():
        net.output.bias.add_(100.0)
    model = Trajectory(net, EDM(), inner=inner, outer=outer)
    assert torch.allclose(model.jump(X.float(), T, T), X.float(), atol=1e-5)
    assert torch.equal(Trajectory(net, EDM()).jump(X.float(), T, T), X.float())
    keep, add = outer_scalings(T, 0.3 * T)
    assert torch.equal(keep + add, torch.ones(6, dtype=torch.float64))


@pytest.mark.check(system=34, number=2)
def test_the_inner_part_at_s_equal_t_is_the_exact_denoiser():
    model = Trajectory(ExactNet(), EDM())
    t = T[:, None]
    expected = (VARIANCE * X + t**2 * MEAN) / (VARIANCE + t**2)
    assert torch.allclose(model.inner(X, T, T), expected, atol=1e-10)
    assert torch.allclose(model(X, T).mean, expected, atol=1e-10)
    assert torch.allclose(model(X, T).eps, (X - expected) / t, atol=1e-8)


@pytest.mark.parametrize("outer", OUTER)
def test_the_denoiser_of_every_outer_form(outer):
    # g as it must be for the exact map, just below s = t: what is added to it is the form's shift
    near = T * (1 - 1e-5)
    keep, add = (c[:, None] for c in outer_scalings(T, near, outer, 0.5, 0.002))
    g = (EXACT.flow(X, T, near) - keep * X) / add
    exact = (VARIANCE * X + T[:, None] ** 2 * MEAN) / (VARIANCE + T[:, None] ** 2)
    assert torch.allclose(g + outer_shift(T, outer)[:, None] * X, exact, atol=2e-4, rtol=1e-3)
    model = Trajectory(student().net, EDM(), outer=outer)
    post = model(X, T)
    assert torch.allclose(post.mean, model.inner(X, T, T) + outer_shift(T, outer)[:, None] * X, atol=1e-6)
    assert torch.allclose(post.eps, (X - post.mean) / T[:, None], atol=1e-6)


@pytest.mark.check(system=34, number=3)
def test_exact_maps_compose_and_leave_the_loss_the_error_of_heun_alone():
    between, last = 0.3 * T, 0.1 * T
    assert torch.allclose(EXACT.jump(EXACT.jump(X, T, between), between, last), EXACT.jump(X, T, last), atol=1e-12)
    t, u, s = torch.full((6,), 2.0).double(), torch.full((6,), 0.5).double(), torch.full((6,), 0.2).double()
    exact = Trajectory(ExactNet(), EDM())

    def error(steps):
        times = 2.0 + torch.linspace(0, 1, steps + 1).double()[:, None].expand(-1, 6) * (0.5 - 2.0)
        return ctm_loss(exact, exact, X, advance(Heun(), TEACHER, X, times), t, u, s).sqrt().mean().detach()

    assert ctm_loss(exact, exact, X, EXACT.flow(X, t, u), t, u, s).max() < 1e-20
    assert error(16) < 1e-3
    assert error(32) / error(64) == pytest.approx(4.0, rel=0.05)


@pytest.mark.check(system=34, number=4)
def test_gamma_one_is_multistep_sampling_gamma_zero_does_not_mind_the_steps_and_one_step_has_no_gamma():
    model, draws = student().double(), Noise(0).at(range(4), (3,), dtype=torch.float64)
    times = np.append(model.levels(4), 0.0)
    x = 80 * draws.normal()
    with torch.no_grad():
        for k, (t, after) in enumerate(itertools.pairwise(times)):
            x = model.jump(x, float(t), 0.002)
            if k < 3:
                x = x + math.sqrt(after**2 - 0.002**2) * draws.normal(k + 1)
    assert torch.allclose(Jumps(gamma=1.0, steps=4)(model, draws).x, x, atol=1e-9)
    once = [Jumps(gamma=g, steps=1)(model, draws).x for g in (0.0, 0.4, 1.0)]
    assert torch.equal(once[0], once[1])
    assert torch.equal(once[0], once[2])
    several = [Jumps(gamma=0.0, steps=n)(EXACT, draws).x for n in (1, 2, 5, 18)]
    assert max((x - several[0]).abs().max() for x in several) < 1e-10


@pytest.mark.check(system=34, number=5)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
def test_every_gamma_keeps_the_law_of_the_data(gamma):
    mu, c = 0.4, 0.3
    exact = GaussianMap(EDM(), torch.full((1000,), mu, dtype=torch.float64), c**2)
    draws = Noise(3).at(range(100), (1000,), dtype=torch.float64)
    x = Jumps(gamma=gamma, steps=4)(exact, draws, x=80 * draws.normal() + mu).x
    assert abs(float(x.mean()) - mu) < 4 * c / math.sqrt(1e5)
    assert abs(float(x.var()) - c**2) < 4 * c**2 * math.sqrt(2 / 1e5) + 0.002**2


@pytest.mark.check(system=34, number=6)
def test_weights_of_the_number_of_teacher_steps():
    weights = number_of_steps_weights(17)
    assert weights[0] == pytest.approx(1 / 153, rel=1e-14)
    assert weights[16] == pytest.approx(17 / 153, rel=1e-14)
    assert weights.sum() == pytest.approx(1.0, rel=1e-14)
    assert number_of_steps_weights(4, 0.0).tolist() == [0.25] * 4
    drawn = np.bincount([draw_number_of_steps(number_of_steps_weights(3), seed) for seed in range(3000)], minlength=4)
    assert np.abs(drawn[1:] / 3000 - np.array([1, 2, 3]) / 6).max() < 4 * 0.5 / math.sqrt(3000)
    with pytest.raises(InputError, match="1 or more"):
        number_of_steps_weights(0)


@pytest.mark.check(system=34, number=7)
@pytest.mark.parametrize("steps", [1, 5, 17])
def test_indices_of_the_three_times(steps):
    line = torch.arange(400, dtype=torch.float64) / 400 + 1e-9
    u, v = (c.flatten() for c in torch.meshgrid(line, line, indexing="ij"))
    i, j = draw_indices(18, steps, u, v)
    assert (i.min(), i.max()) == (0, 17 - steps)
    assert torch.bincount(i).max() <= 1.1 * torch.bincount(i).min()
    assert bool((i + steps <= j).all())
    assert j.max() == 17
    for first in range(18 - steps):  # the last level can be reached from every start, and all between are as likely
        ends = torch.bincount(j[i == first], minlength=18)
        assert set(ends.nonzero().flatten().tolist()) == set(range(first + steps, 18))
        assert ends[first + steps :].max() < 1.1 * ends[first + steps :].min()
    with pytest.raises(InputError, match="1 to 17"):
        draw_indices(18, 18, u, v)


@pytest.mark.check(system=34, number=8)
def test_the_weight_of_denoising():
    assert edm_weight(0.5, 0.5) == 8.0
    c_out = edm_scalings(T, 0.5)[1]
    assert torch.allclose(edm_weight(T, 0.5), c_out**-2)
    model, noise = student().double(), X.flip(0)
    x_t = X + T[:, None] * noise
    expected = (T**2 + 0.25) / (T * 0.5) ** 2 * (model.inner(x_t, T, T) - X).square().mean(1)
    assert torch.allclose(dsm_loss(model, X, T, noise), expected)


def test_levels_of_denoising_are_half_lognormal_and_half_of_the_noisy_part_of_the_grid():
    schedule = EDM()
    u = torch.tensor([0.25, 0.5 * 0.8413447460685429, 0.5, 0.75, 1.0], dtype=torch.float64)
    grid = [(80 ** (1 / 7) + p * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for p in (0.0, 0.35, 0.7)]
    expected = torch.tensor([math.exp(-1.2), 1.0, *grid], dtype=torch.float64)
    assert torch.allclose(dsm_levels(u, schedule), expected, rtol=1e-9)
    assert float(dsm_levels(torch.zeros(1).double(), schedule)) >= 0.002


def test_a_turn_has_one_number_of_steps_and_walks_the_teachers_path():
    made = method(points=18)
    shared = made.prepare(batch(), 0)
    grid = torch.from_numpy(training_grid(EDM(), 18))
    i, k, j = (place(grid, time) for time in (shared.t, shared.u, shared.s))
    m = draw_number_of_steps(number_of_steps_weights(3), 7)
    assert ((k - i) == m).all()
    assert (j >= k).all()
    assert len(i.unique()) > 1
    noise = batch().draws.normal()
    assert torch.allclose(shared.x_t, batch().image + shared.t.float()[:, None] * noise)
    times = grid[i + torch.arange(m + 1)[:, None]]
    assert torch.allclose(shared.x_u, advance(Heun(), TEACHER, shared.x_t, times), rtol=1e-6)


def test_the_loss_by_hand_with_averaged_outer_and_present_inner_jumps():
    made = parted(method(dsm_weight=2.5))
    data = batch()
    p = made.prepare(data, 0)
    with torch.no_grad():
        end = 0.002
        target = made.target.jump(made.student.jump(p.x_u, p.u, p.s), p.s, end)
        estimate = made.target.jump(made.student.jump(p.x_t, p.t, p.s), p.s, end)
        t = dsm_levels(data.draws.uniform(part=5), EDM())
        noisy = data.image + t.float()[:, None] * data.draws.normal(part=6)
        each = edm_weight(t).float() * (made.student.inner(noisy, t, t) - data.image).square().mean(1)
    seen = made.loss(data, p, 0)
    assert float(seen["consistency"]) == pytest.approx(float((estimate - target).square().mean()), rel=1e-5)
    assert float(seen["dsm"]) == pytest.approx(float(each.mean()), rel=1e-5)
    assert seen["loss"].item() == pytest.approx(float(seen["consistency"]) + 2.5 * float(seen["dsm"]), rel=1e-5)
    # the shorter way back gives the gradient of the plain loss
    plain = ctm_loss(made.student, made.target, p.x_t, p.x_u, p.t, p.u, p.s).mean()
    plain = plain + 2.5 * dsm_loss(made.student, data.image, t, data.draws.normal(part=6)).mean()
    weights = list(made.student.net.parameters())
    for a, b in zip(torch.autograd.grad(seen["loss"], weights), torch.autograd.grad(plain, weights)):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in made.target.parameters())


def test_the_adaptive_weight_of_denoising_is_a_ratio_of_gradients_at_the_last_layer():
    made = parted(method())
    data = batch()
    p = made.prepare(data, 0)
    last = made.student.net.output.weight
    main = ctm_loss(made.student, made.target, p.x_t, p.x_u, p.t, p.u, p.s).mean()
    other = dsm_loss(made.student, data.image, dsm_levels(data.draws.uniform(part=5), EDM()), data.draws.normal(part=6))
    norms = [torch.autograd.grad(loss, last)[0].norm() for loss in (main, other.mean())]
    assert float(made.loss(data, p, 0)["dsm_weight"]) == pytest.approx(float(norms[0] / (norms[1] + 1e-4)), rel=1e-4)
    assert float(parted(method(dsm_start=5)).loss(data, p, 4)["dsm_weight"]) == 1.0
    assert "dsm" not in method(dsm_weight=0.0).loss(data, p, 0)


@pytest.mark.parametrize("bootstrap, bound", [("heun", 0.05), ("jump", 1e-16), ("jumps", 1e-16)])
def test_without_a_teacher_the_exact_student_bears_itself_out(bootstrap, bound):
    made = method(Trajectory(ExactNet(), EDM()), None, bootstrap=bootstrap, dsm_weight=0.0)
    data = batch()
    data = Batch(data.image.double(), None, data.index, draws=Noise(7).at(data.index, (3,), dtype=torch.float64))
    p = made.prepare(data, 0)
    assert made.loss(data, p, 0)["consistency"] < bound
    assert torch.allclose(p.x_u, EXACT.flow(p.x_t, p.t, p.u), atol=0.3 if bootstrap == "heun" else 1e-9)
    # the averaged student walks, not the present one
    wrong = method(Trajectory(ExactNet(), EDM()), None, bootstrap=bootstrap, dsm_weight=0.0)
    with torch.no_grad():
        wrong.student.net.bias.add_(1.0)
    assert torch.equal(wrong.prepare(data, 0).x_u, p.x_u)


class Judge(nn.Module):
    """Logits of two heads, which see the image and the time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.linear = nn.Linear(4, 2)

    def forward(self, x, t, cond):
        return self.linear(torch.cat([x, t.to(x)[:, None]], 1))


@pytest.mark.parametrize("fake", ["estimate", "own"])
def test_the_adversarial_term_comes_late_and_is_weighed(fake):
    made = parted(method(discriminator=Judge(), gan_start=3, fake=fake))
    data = batch()
    early = made.prepare(data, 2)
    assert "gan" not in made.loss(data, early, 2)
    assert [update.name for update in made.updates] == ["ctm", "discriminator"]
    assert made.updates[1].settings == {"betas": (0.5, 0.9)}
    p = made.prepare(data, 3)
    seen = made.loss(data, p, 3)
    end = torch.full((6,), 0.002).double()
    judged, real = made.discriminator(p.fake[0], end, None), made.discriminator(data.image, end, None)
    assert float(seen["gan"]) == pytest.approx(-judged.mean().item(), rel=1e-5)
    hinge = (1 - real).relu().mean() + (1 + judged).relu().mean()
    assert made.critic_loss(data, p, 3).item() == pytest.approx(hinge.item(), rel=1e-6)
    main = ctm_loss(made.student, made.target, p.x_t, p.x_u, p.t, p.u, p.s).mean()
    last = made.student.net.output.weight
    if fake == "estimate":
        images = made.target.jump(made.student.jump(p.x_t, p.t, p.s), p.s, 0.002)
        assert torch.allclose(p.fake[0], images.detach(), atol=1e-5)
        gan = -made.discriminator(images, end, None).mean()
        ratio = torch.autograd.grad(main, last)[0].norm() / (torch.autograd.grad(gan, last)[0].norm() + 1e-4)
        assert float(seen["gan_weight"]) == pytest.approx(min(max(float(ratio), 0.01), 10.0), rel=1e-4)
        # asked alone, the discriminator's loss makes its image itself
        again = made.prepare(data, 3)
        assert made.critic_loss(data, again, 3).item() == pytest.approx(hinge.item(), rel=1e-5)
    assert not torch.equal(made.prepare(data, 3).x_t, p.fake[0])
    total = seen["consistency"] + seen["dsm_weight"] * seen["dsm"] + seen["gan_weight"] * seen["gan"]
    assert seen["loss"].item() == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize("scale, weight", [(1e-4, 10.0), (1e6, 0.01)])
def test_the_adversarial_weight_stays_between_its_bounds(scale, weight):
    judge = Judge()
    with torch.no_grad():
        judge.linear.weight.mul_(scale)
    made = parted(method(discriminator=judge))
    assert float(made.loss(batch(), made.prepare(batch(), 0), 0)["gan_weight"]) == pytest.approx(weight)
    fixed = parted(method(discriminator=judge, gan_weight=0.3))
    assert float(fixed.loss(batch(), fixed.prepare(batch(), 0), 0)["gan_weight"]) == pytest.approx(0.3)


def test_estimate_and_target_drop_the_same_units():
    torch.manual_seed(3)
    net = UNet(in_shape=(1, 8, 8), base_channels=8, channel_mult=(1,), num_blocks=1, attention=(), dropout=0.4,
               second_time=True)  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    made = method(Trajectory(net, EDM()), None, dsm_weight=0.0).train()
    p = made.prepare(batch(shape=(1, 8, 8)), 0)
    assert torch.equal(p.x_u, made.prepare(batch(shape=(1, 8, 8)), 0).x_u)  # no units are dropped on the way
    assert made.target.training
    p.x_u, p.u = p.x_t, p.t
    assert made.loss(batch(shape=(1, 8, 8)), p, 0)["consistency"] == 0
    jump = made.student.jump(p.x_t, p.t, p.s)
    assert not torch.equal(jump, made.student.jump(p.x_t, p.t, p.s))


def test_in_the_loop_each_update_moves_its_own_and_the_average_follows():
    made = method(discriminator=Judge(), target_rate=0.5)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    data = torch.linspace(-1, 1, 48).view(16, 3)
    trained = fit(made, data, steps=1, batch_size=8)
    after = made.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"student", "target", "discriminator"}
    for name, value in made.student.net.state_dict().items():
        assert torch.allclose(after[f"target.net.{name}"], 0.5 * (before[f"target.net.{name}"] + value), atol=1e-7)
    generator = trained.result()
    images = generator.generate([0, 1], Noise(0), steps=2)
    assert images.shape == (2, 3)
    assert generator.nfe == 2
    assert generator.denoiser.anywhere


@pytest.mark.parametrize("name, kind", [("taps", TapDiscriminator), ("features", FeatureDiscriminator)])
def test_discriminators_that_have_a_name(name, kind):
    torch.manual_seed(0)
    net = UNet(in_shape=(1, 8, 8), base_channels=8, channel_mult=(1,), num_blocks=1, attention=(), num_classes=10)
    taught = Preconditioned(net, EDM(), sigma_data=0.75)
    made = CTM(CTM.student_of(taught), taught, distance="squared", teacher_steps=2, discriminator=name)
    assert isinstance(made.discriminator, kind)
    kept = frozen_part(made.discriminator)
    assert kept
    assert made.frozen() == (taught, *kept)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    image = Noise(1).at(range(8), (1, 8, 8)).normal().clamp(-1, 1)
    trained = fit(made, (image, torch.arange(8)), steps=2, batch_size=4)
    assert {"ctm", "discriminator"} <= set(trained.losses)
    moved = {key for key, value in made.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.startswith("discriminator.heads") for key in moved)
    assert any(key.startswith("student") for key in moved)
    assert not any(key.startswith(("teacher", "discriminator.trunk", "discriminator.encoder")) for key in moved)
    # an unconditional student's images are judged without a label
    free = UNet(in_shape=(1, 8, 8), base_channels=8, channel_mult=(1,), num_blocks=1, attention=(), second_time=True)
    other = CTM(CTM.student_of(taught, free), taught, distance="squared", teacher_steps=2, discriminator=name)
    p = other.prepare(Batch(image, torch.arange(8), torch.arange(8), draws=Noise(7).at(range(8), (1, 8, 8))), 0)
    assert p.cond is None
    assert p.told.labels.tolist() == [10] * 8
    assert float(other.loss(Batch(image, None, None, draws=Noise(7).at(range(8), (1, 8, 8))), p, 0)["gan"]) != 0


def test_heads_of_a_named_discriminator_follow_the_seed_of_the_recipe():
    def heads(seed, before):
        (stage,) = read_recipe("ctm", preset="digits", changes={"seed": seed}).stages
        given = {"kind": "discriminator", "name": "features", "args": {"encoder": {"from": "digits-net"}}}
        stage.given["settings"] = {**stage["settings"], "discriminator": given if before is None else "features"}
        torch.manual_seed(before or 0)
        return make_method(stage, CTM.student_of(load("digits")), load("digits")).discriminator.heads[0].last.weight

    assert heads(0, None).shape == (1, 64)  # the feature vector's, of a discriminator that is described in full
    assert torch.equal(heads(0, 1), heads(0, 2))
    assert not torch.equal(heads(0, 1), heads(1, 1))


def test_taps_judge_an_image_at_its_level_as_the_teachers_network_sees_it():
    torch.manual_seed(0)
    net = UNet(in_shape=(1, 8, 8), base_channels=8, channel_mult=(1,), num_blocks=1, attention=())
    taught = Preconditioned(net, EDM(t_max=40.0), sigma_data=0.75)
    judge = named_discriminator("taps", taught.on(EDM(t_max=20.0)), EDM(t_max=20.0), (1, 8, 8))
    x, t = Noise(1).at(range(3), (1, 8, 8)).normal(), torch.tensor([0.002, 0.5, 3.0], dtype=torch.float64)
    own = TapDiscriminator(taught)
    own.load_state_dict(judge.state_dict())
    assert torch.equal(judge(x, t, None), own(x, t, None))
    flow = Flow(t_max=0.9)
    seen = named_discriminator("taps", taught, flow, (1, 8, 8))
    seen.load_state_dict(judge.state_dict())
    at = t / (1 + t)
    assert torch.allclose(seen(x * (1 - at).float().view(-1, 1, 1, 1), at, None), judge(x, t, None), atol=1e-5)


def test_it_learns_the_map_of_a_gaussian():
    torch.manual_seed(0)
    model = Trajectory(MLP(in_shape=(3,), width=32, depth=2, second_time=True), EDM())
    data = (MEAN + VARIANCE**0.5 * Noise(1).at(range(256), (3,), dtype=torch.float64).normal()).float()
    noise = Noise(2).at(range(200), (3,))

    def far():
        made = Jumps(gamma=0.0, steps=1)(model, noise).x
        return (made - Jumps(gamma=0.0, steps=1)(EXACT, noise).x).square().mean().sqrt()

    start = far()
    fit(method(model, points=6, teacher_steps=2, lr=1e-2, target_rate=0.8), data, steps=70, batch_size=32)
    assert far() < 0.25 * start
    assert far() < 0.2


def test_guidance_and_likelihood_work_on_a_student():
    model = student(num_classes=4)
    labels = Cond(labels=torch.arange(6) % 4)
    x = X.float()
    post = ClassifierFree(model, 3.0)(x, T, labels)
    a, b = model(x, T, labels), model(x, T, Cond(labels=torch.full((6,), 4)))
    assert torch.allclose(post.mean, b.mean + 3.0 * (a.mean - b.mean), atol=1e-4)
    guided = Heun(steps=3)(ClassifierFree(model, 3.0).given(labels), Noise(0).at(range(6), (3,)))
    assert guided.nfe == 10
    exact = Trajectory(ExactNet(), EDM())
    points = MEAN + 0.4 * X[:2]
    found = log_likelihood(exact, points, divergence="exact")

    def log_normal(x, mean, variance):
        return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance)).sum(1)

    # Of what noise is left at sigma_max the likelihood takes N(0, sigma_max^2), not the exact law.
    last, top = 80 * found.latents, 80.0**2
    prior = log_normal(last, 0.0, top) - log_normal(last, MEAN, VARIANCE + top)
    assert torch.allclose(found.log_p - prior, log_normal(points, MEAN, VARIANCE + 0.002**2), atol=1e-3)


def test_labels_are_dropped_on_request_and_an_unconditional_student_asks_for_no_class():
    label = torch.arange(6) % 4
    torch.manual_seed(0)
    teacher = Preconditioned(MLP(in_shape=(3,), width=8, depth=1, num_classes=4), EDM())
    conditional = student(num_classes=4)
    assert method(conditional, teacher).prepare(batch(label=label), 0).cond.labels.tolist() == label.tolist()
    dropped = method(conditional, teacher, p_uncond=0.5).prepare(batch(label=label), 0).cond.labels
    assert 0 < int((dropped == 4).sum()) < 6
    p = method(student(), teacher).prepare(batch(label=label), 0)
    assert p.cond is None
    none = Cond(labels=torch.full((6,), 4))
    grid = torch.from_numpy(training_grid(EDM(), 18))
    i = place(grid, p.t)
    m = draw_number_of_steps(number_of_steps_weights(3), 7)
    walked = advance(Heun(), teacher, p.x_t, grid[i + torch.arange(m + 1)[:, None]], none)
    assert torch.allclose(p.x_u, walked, rtol=1e-5)


OTHER_LEVELS = {
    "discriminator": "taps",
    "teacher": Preconditioned(MLP(in_shape=(3,), width=8, depth=1), VP(), kind="eps"),
    "model": Trajectory(student().net, EDM(t_min=0.02, t_max=50.0)),
}


@pytest.mark.parametrize("change, text", [
    ({"bootstrap": "huen"}, "heun"),
    ({"fake": "none"}, "estimate"),
    ({"target_rate": 1.0}, "target_rate"),
    ({"p_uncond": -0.1}, "p_uncond"),
    ({"teacher_steps": 18}, "1 to 17"),
    ({"teacher": Gaussian(EDM(), torch.zeros(2), 0.1)}, "same shape"),
    ({"teacher": Gaussian(EDM(t_max=10.0), MEAN, 0.1)}, "noise level"),
    ({"model": GaussianMap(EDM(), MEAN, 0.1)}, "trains a Trajectory"),
    ({"discriminator": "tap"}, "taps"),
    ({"discriminator": "taps"}, "no network to tap"),
    ({"discriminator": "taps", "teacher": None}, "no network to tap"),
    ({"discriminator": "features"}, "name: features, args"),
    (OTHER_LEVELS, "of VP alone"),
], ids=["bootstrap", "fake", "rate", "dropped", "steps", "shape", "levels", "student", "name", "no network",
        "no teacher", "no features", "other levels"])  # fmt: skip
def test_refusals(change, text):
    with pytest.raises(InputError, match=text):
        method(**change)


def test_other_classes_than_the_teachers_are_refused():
    teacher = Preconditioned(MLP(in_shape=(3,), width=8, depth=1, num_classes=4), EDM())
    with pytest.raises(InputError, match="knows 4 classes"):
        method(student(num_classes=5), teacher)


def test_the_cifar10_preset_is_built_and_takes_a_step(monkeypatch):
    torch.manual_seed(0)
    net = UNet(in_shape=(3, 32, 32), base_channels=16, channel_mult=(2, 2, 2), num_blocks=1, dropout=0.1)
    taught = Preconditioned(net, EDM())
    (stage,) = read_recipe("ctm", preset="cifar10", teacher="its file").stages
    assert stage["settings"]["distance"] == "lpips-vgg"  # whose weights do not ship
    monkeypatch.setattr(ctm, "named_distance", lambda name, size: {("lpips-vgg", 224): squared}[name, size])
    made = make_method(stage, make_student(stage, taught, {}), taught)
    assert (len(made.weights), made.points) == (17, 18)
    before = [part.output.bias.clone() for part in (made.student.net, net)]
    made.weights = number_of_steps_weights(1)
    fit(made, torch.rand(2, 3, 32, 32), steps=1, batch_size=2)
    assert not torch.equal(made.student.net.output.bias, before[0])
    assert torch.equal(net.output.bias, before[1])


def test_both_stages_of_the_imagenet_preset_are_built_and_take_a_step(monkeypatch, tmp_path):
    torch.manual_seed(0)
    small = {"base_channels": 32, "head_channels": 32, "num_blocks": 1, "channel_mult": (1, 1, 1), "attention": ()}
    taught = Preconditioned(UNet(**unet_preset("adm-imagenet64", num_classes=5, **small)), EDM())
    recipe = read_recipe("ctm", preset="imagenet64", teacher="its file")
    assert recipe.requires == "cuda"
    monkeypatch.setattr(ctm, "named_distance", lambda name, size: {("lpips-vgg", 224): squared}[name, size])
    made, seen = {}, []
    for stage in recipe.stages:
        model = make_student(stage, taught, made)
        step = make_method(stage, model, taught)
        seen.append((step.points, len(step.weights), step.updates[0].lr, stage["batch_size"]))
        step.weights = number_of_steps_weights(1)
        before = step.student.net.output.bias.clone()
        fit(step, (torch.rand(2, 3, 64, 64), torch.tensor([1, 4])), steps=1, batch_size=2)
        assert not torch.equal(step.student.net.output.bias, before)
        made[stage.name] = str(tmp_path / f"{stage.name}.safetensors")
        save_artefact(made[stage.name], model)
    assert seen == [(40, 39, 4e-4, 1440), (40, 20, 8e-6, 4224)]
    assert isinstance(step.discriminator, TapDiscriminator)
    assert [update.lr for update in step.updates[1:]] == [2e-3]


def test_the_digits_preset_is_read():
    recipe = read_recipe("ctm", preset="digits")
    (stage,) = recipe.stages
    taught = load(recipe.teacher)
    made = make_method(stage, make_student(stage, taught, {}), taught)
    assert (made.student.num_classes, made.student.sigma_data) == (10, 0.75)
    assert made.teacher is taught
