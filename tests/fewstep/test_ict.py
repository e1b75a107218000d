"""iCT: its nine checks, each part of its loss by hand, and the method in the loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.curricula import ascending_levels, doubling_points, lognormal_pairs
from scoreline.fewstep.distances import huber_constant, pseudo_huber, squared
from scoreline.fewstep.ict import ICT, PointMass, draw_pair, ict_loss, ict_weight, pair_probabilities, point_mass
from scoreline.fewstep.maps import ConsistencyFunction, GaussianMap
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.nn.unet_presets import unet_preset
from scoreline.samplers.jumps import Jumps
from scoreline.train import fit

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Z = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LOW = torch.tensor([0.002, 0.1, 0.5, 2.0, 30.0], dtype=torch.float64)
HIGH = LOW * 1.5


def student(**settings):
    torch.manual_seed(2)
    return ConsistencyFunction(MLP(in_shape=(3,), width=16, depth=1, **settings), EDM())


def dropping():
    torch.manual_seed(3)
    net = UNet(in_shape=(1, 8, 8), base_channels=16, channel_mult=(1, 2), num_blocks=1, attention=(4,), dropout=0.4)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return ConsistencyFunction(net, EDM()).train()


def batch(count=6, shape=(3,), label=None):
    index = torch.arange(count)
    image = torch.linspace(-1, 1, count * math.prod(shape)).view(count, *shape)
    return Batch(image, label, index, draws=Noise(7).at(index, shape))


@pytest.mark.check(system=14, number=1)
def test_at_the_least_level_the_answer_is_the_input_to_the_bit():
    model = student()
    with torch.no_grad():
        model.net.output.bias.add_(1e6)
    x = X.float()
    assert torch.equal(model.answer(x, 0.002), x)
    assert torch.equal(model.answer(x, torch.full((5,), 0.002, dtype=torch.float64)), x)


@pytest.mark.check(system=14, number=2)
def test_the_grid_of_levels():
    levels = ascending_levels(11)
    assert (levels[0], levels[-1]) == (0.002, 80.0)
    assert levels[1] == pytest.approx(0.016721, abs=5e-7)
    assert (np.diff(levels) > 0).all()
    assert (np.diff(ascending_levels(1281)) > 0).all()


@pytest.mark.check(system=14, number=3)
def test_the_number_of_levels_doubles_at_multiples_of_an_eighth():
    method = ICT(student(), steps=400_000)
    stages = [method.points(k) for k in range(0, 400_000, 50_000)]
    assert stages == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert [method.points(k - 1) for k in range(50_000, 400_001, 50_000)] == stages
    assert doubling_points(399_999, 400_000) == 1281


@pytest.mark.check(system=14, number=4)
@pytest.mark.parametrize("points", [11, 1281])
def test_weights_of_pairs_telescope(points):
    total = lognormal_pairs(ascending_levels(points)).sum()
    ends = [math.erf((math.log(s) + 1.1) / (2 * math.sqrt(2))) for s in (80, 0.002)]
    assert total == pytest.approx(ends[0] - ends[1], rel=1e-12)


@pytest.mark.check(system=14, number=5)
def test_the_pseudo_huber_distance():
    a, b = X.clone().requires_grad_(), Z
    norm = (a - b).norm(dim=1)
    assert torch.allclose(pseudo_huber(a, b, 1e-9), norm)
    near = b + 1e-5 * (X - Z)
    assert torch.allclose(pseudo_huber(near, b, 1.0), (near - b).square().sum(1) / 2, rtol=1e-6)
    (slope,) = torch.autograd.grad(pseudo_huber(a, b, 0.01).sum(), a)
    assert (slope.norm(dim=1) < 1).all()
    assert torch.equal(pseudo_huber(a, b), pseudo_huber(b, a))
    assert torch.equal(pseudo_huber(b, b), torch.zeros(5, dtype=torch.float64))
    assert (pseudo_huber(a, b) > 0).all()
    same = b.clone().requires_grad_()
    (slope,) = torch.autograd.grad(pseudo_huber(same, b).sum(), same)
    assert torch.equal(slope, torch.zeros_like(b))


@pytest.mark.check(system=14, number=6)
def test_the_exact_function_of_a_point_has_no_loss():
    xi = torch.tensor([0.3, -0.8, 0.1], dtype=torch.float64)
    exact = PointMass(xi)
    x0 = xi.expand(5, 3)
    assert torch.allclose(exact.jump(x0 + HIGH[:, None] * Z, HIGH, 0.0), x0 + 0.002 * Z, atol=1e-12)
    assert ict_loss(exact, x0, Z, LOW, HIGH).item() < 1e-20
    assert ict_loss(PointMass(xi + 0.1), x0, Z, LOW, HIGH).item() > 1e-5


def test_the_loss_of_another_point_by_hand():
    # f(xi + s z, s) = theta + s_min z + (s_min/s)(xi - theta): sides differ by (xi - theta)(s_min/high - s_min/low).
    xi, theta = torch.tensor([0.3, -0.8, 0.1], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    apart = xi.norm() * (0.002 / LOW - 0.002 / HIGH)
    c = 0.00054 * math.sqrt(3)
    wanted = (((apart**2 + c**2).sqrt() - c) / (HIGH - LOW)).mean()
    assert ict_loss(PointMass(theta), xi.expand(5, 3), Z, LOW, HIGH).item() == pytest.approx(float(wanted), rel=1e-9)
    wanted = (apart**2 / 3 / (HIGH - LOW)).mean()
    loss = ict_loss(PointMass(theta), xi.expand(5, 3), Z, LOW, HIGH, apart=squared)
    assert loss.item() == pytest.approx(float(wanted), rel=1e-9)


def test_without_a_target_of_its_own_the_gradient_leads_to_the_data_and_with_one_to_the_target():
    xi, other = torch.full((3,), 1.0, dtype=torch.float64), PointMass(torch.full((3,), -1.0, dtype=torch.float64))
    levels = torch.from_numpy(ascending_levels(1281))
    i = torch.arange(0, 1280, 8)
    low, high = levels[i], levels[i + 1]
    z = torch.randn(len(i), 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    slopes = []
    for target in (None, other):
        model = PointMass(torch.zeros(3, dtype=torch.float64))
        ict_loss(model, xi.expand(len(i), 3), z, low, high, apart=squared, target=target).backward()
        slopes.append(model.theta.grad)
    share = (0.002 / low - 0.002 / high) * (1 - 0.002 / high)  # of the gradient 2 (a - b) da/dtheta / (3 gap)
    assert torch.allclose(slopes[0], (-2 / 3 * share / (high - low)).mean().expand(3), rtol=1e-9)
    assert (slopes[0] < 0).all()  # theta rises towards xi = 1
    assert (slopes[1] > 0).all()  # theta falls towards the target's -1


def test_point_mass_between_its_ends():
    x = torch.ones(2, 3)
    assert torch.equal(point_mass(x, 0.002, 5.0), x)
    assert torch.allclose(point_mass(x, torch.tensor([0.004, 0.008]), 5.0), torch.tensor([[3.0], [4.0]]).expand(2, 3))


@pytest.mark.check(system=14, number=7)
def test_the_gradient_is_that_with_the_target_detached():
    x0, z = X.float(), Z.float()
    model = student()
    parameters = list(model.net.parameters())
    found = torch.autograd.grad(ict_loss(model, x0, z, LOW, HIGH), parameters)
    with torch.no_grad():
        b = model.answer(x0 + LOW.float()[:, None] * z, LOW)
    a = model.answer(x0 + HIGH.float()[:, None] * z, HIGH)
    c = huber_constant((3,))
    d = ((a - b).square().sum(1) + c * c).sqrt() - c
    wanted = torch.autograd.grad((d / (HIGH - LOW).float()).mean(), parameters)
    assert all(torch.allclose(f, w, rtol=1e-3, atol=1e-4 * float(w.abs().max())) for f, w in zip(found, wanted))
    assert ICT(model, steps=10).target is None  # the target is the student, so that they are equal at all times
    twin = ICT(student(), steps=10, target_ema=0.5)
    ict_loss(twin.student, x0, z, LOW, HIGH, target=twin.target).backward()
    assert all(p.grad is None for p in twin.target.parameters())
    assert all(p.grad is not None for p in twin.student.net.parameters())


@pytest.mark.check(system=14, number=8)
def test_student_and_target_drop_the_same_units():
    model = dropping()
    x, level = torch.randn(3, 1, 8, 8), torch.full((3,), 0.7, dtype=torch.float64)
    seen = []

    def apart(a, b):
        seen.append((a, b))
        return (a - b).flatten(1).sum(1)

    ict_loss(model, x, torch.zeros_like(x), level, level.clone(), apart=apart)
    ict_loss(model, x, torch.zeros_like(x), level, level.clone(), apart=apart)
    (a, b), (later, _) = seen
    assert torch.equal(a, b)
    assert a.requires_grad
    assert not b.requires_grad
    assert not torch.equal(a, later)  # dropout is on, and every turn has a mask of its own


@pytest.mark.check(system=14, number=9)
def test_one_jump_from_noise_under_gaussian_data():
    mean, std, count = 0.4, 0.5, 40_000
    exact = GaussianMap(EDM(), torch.full((1,), mean, dtype=torch.float64), std**2, end=0.002)
    x = Jumps(steps=1)(exact, Noise(3).at(range(count), (1,), dtype=torch.float64)).x
    r = math.sqrt((std**2 + 0.002**2) / (std**2 + 6400))
    assert float(x.mean()) == pytest.approx(mean * (1 - r), abs=4 * 80 * r / math.sqrt(count))
    assert float(x.std()) == pytest.approx(80 * r, rel=4 / math.sqrt(2 * count))
    at = torch.tensor([[80.0]], dtype=torch.float64)
    assert float(exact.jump(at, 80.0, 0.0)) == pytest.approx(mean + (80 - mean) * r, rel=1e-12)


def test_weights_are_inverse_gaps_in_float64():
    levels = ascending_levels(1281)
    assert ict_weight(levels) == pytest.approx(1 / (levels[1:] - levels[:-1]), rel=1e-12)
    assert 2.3e4 < ict_weight(levels)[0] < 2.7e4
    assert (np.diff(ict_weight(levels)) < 0).all()


def test_pairs_are_drawn_as_often_as_they_weigh():
    p = pair_probabilities(ascending_levels(11))
    assert p.sum() == pytest.approx(1, abs=1e-14)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = torch.bincount(draw_pair(u, torch.from_numpy(p)), minlength=10) / 100_000
    assert drawn.tolist() == pytest.approx(p.tolist(), abs=2e-5)
    assert draw_pair(torch.tensor([1 - 1e-16], dtype=torch.float64), torch.from_numpy(p)).item() <= 9
    edges = torch.tensor([0.0, 0.25, 0.75])
    assert draw_pair(edges, torch.tensor([0.25, 0.5, 0.25])).tolist() == [0, 1, 2]  # a gap begins where the last ends
    inside = (math.erf((math.log(80) + 1.1) / 8**0.5) - math.erf((math.log(0.002) + 1.1) / 8**0.5)) / 2
    normal = [0.5 * (1 + math.erf((math.log(s) + 1.1) / 8**0.5)) for s in ascending_levels(11)]
    assert p.tolist() == pytest.approx(np.diff(normal) / inside, rel=1e-9)


def test_a_turn_shares_noise_and_neighbouring_levels():
    method = ICT(student(), steps=80)
    turn = method.prepare(batch(), 0)
    levels = torch.from_numpy(ascending_levels(11))
    place = torch.searchsorted(levels, turn.low)
    assert torch.equal(levels[place], turn.low)
    assert torch.equal(levels[place + 1], turn.high)
    assert turn.low.dtype == torch.float64
    assert torch.equal(turn.noise, batch().draws.normal())
    late = method.prepare(batch(), 79)
    assert (late.high - late.low).max() < 1.0
    assert late.cond is None
    loss = method.loss(batch(), turn, 0)
    wanted = ict_loss(method.student, batch().image, turn.noise, turn.low, turn.high)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_settings_of_levels_reach_the_table():
    method = ICT(student(), steps=80, s0=4, s1=8, rho=3.0, p_mean=0.5, p_std=1.5)
    levels, p = method.table(5, torch.device("cpu"))
    grid = ascending_levels(5, rho=3.0)
    assert levels.tolist() == grid.tolist()
    assert p.tolist() == pair_probabilities(grid, mean=0.5, std=1.5).tolist()
    assert p.tolist() != pair_probabilities(grid).tolist()
    assert [method.points(k) for k in (0, 79)] == [5, 9]


def test_a_student_with_classes_is_told_the_labels():
    method = ICT(student(num_classes=4), steps=80)
    label = torch.tensor([0, 1, 2, 3, -1, 0])
    turn = method.prepare(batch(label=label), 0)
    assert turn.cond.labels.tolist() == [0, 1, 2, 3, 4, 0]
    told = method.loss(batch(label=label), turn, 0)
    other = ict_loss(
        method.student, batch().image, turn.noise, turn.low, turn.high, Cond(labels=torch.zeros(6, dtype=torch.long))
    )
    assert float(told) != float(other)
    with pytest.raises(InputError, match="labels"):
        method.prepare(batch(), 0)


def test_a_target_average_follows_the_student_and_is_saved():
    method = ICT(student(), steps=10, target_ema=0.75)
    before = method.target.net.output.weight.clone()
    with torch.no_grad():
        method.student.net.output.weight.add_(1.0)
    method.after_update(0)
    assert torch.allclose(method.target.net.output.weight, before + 0.25)
    assert any(name.startswith("target.") for name in method.state_dict())
    assert method.frozen() == ()


def test_a_training_answers_with_the_data():
    data = torch.tensor([[0.6, -0.4, 0.2]]).expand(16, 3).contiguous()
    made = fit(ICT(student(), steps=60, s1=20, lr=2e-2), data, steps=60, batch_size=16, seed=0).result()
    for steps in (1, 2):
        assert (made.generate(range(40), Noise(0), steps=steps) - data[0]).abs().mean() < 0.2
        assert made.nfe == steps


@pytest.mark.parametrize(
    "settings, thing",
    [({"steps": 0}, "steps"), ({"steps": 8, "s0": 0}, "s0"), ({"steps": 8, "s0": 9, "s1": 8}, "s0"),
     ({"steps": 8, "target_ema": 1.0}, "target_ema"), ({"steps": 8, "distance": "huber"}, "distance")],
    ids=["steps", "s0", "s1", "ema", "distance"],
)  # fmt: skip
def test_wrong_settings_are_refused(settings, thing):
    with pytest.raises(InputError, match=thing):
        ICT(student(), **settings)


def test_the_cifar10_preset_is_built_and_takes_a_step():
    (stage,) = read_recipe("ict", preset="cifar10").stages
    net = stage["student"]["args"]["net"]["args"]
    assert {**unet_preset("ncsnpp-continuous-cifar10"), "fourier_scale": 0.02, "dropout": 0.3} == {
        key: tuple(value) if isinstance(value, list) else value for key, value in net.items()
    }
    net["base_channels"] = 16  # of 128: a full step takes half a minute here
    method = make_method(stage, make_student(stage, None, {}), None)
    assert [method.points(k) for k in (0, 399_999)] == [11, 1281]
    before = method.student.net.output.bias.clone()
    fit(method, torch.rand(2, 3, 32, 32), steps=1, batch_size=2)
    assert not torch.equal(method.student.net.output.bias, before)


@pytest.mark.parametrize("preset, points", [("digits", 161), ("digits-long", 321)])
def test_the_digits_presets_are_read(preset, points):
    (stage,) = read_recipe("ict", preset=preset).stages
    method = make_method(stage, make_student(stage, None, {}), None)
    assert method.student.levels(2).tolist() == [80.0, 0.3]
    assert method.points(stage["steps"] - 1) == points
    assert method.student.num_classes == 10
