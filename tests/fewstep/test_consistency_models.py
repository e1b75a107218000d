"""CT and CD: losses under exact maps and by hand, curricula in the method, targets, teachers of any schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.fewstep import consistency_models
from scoreline.fewstep.consistency_models import CD, CT, distillation_loss, on_edm, training_loss, uniform_pair
from scoreline.fewstep.curricula import ascending_levels, growing_points
from scoreline.fewstep.distances import squared
from scoreline.fewstep.maps import ConsistencyFunction, GaussianMap
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.samplers.euler import Euler
from scoreline.train import fit

MEAN = torch.tensor([0.3, -0.8, 0.1], dtype=torch.float64)
Z = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
X0 = MEAN + 0.4 * torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def student(**settings):
    torch.manual_seed(2)
    return ConsistencyFunction(MLP(in_shape=(3,), width=16, depth=1, **settings), EDM())


def teacher(**settings):
    torch.manual_seed(3)
    return Preconditioned(MLP(in_shape=(3,), width=16, depth=1, **settings), EDM())


def batch(count=6, label=None):
    index = torch.arange(count)
    return Batch(torch.linspace(-1, 1, count * 3).view(count, 3), label, index, draws=Noise(7).at(index, (3,)))


def gaps(points, which=slice(None)):
    levels = torch.from_numpy(ascending_levels(points))
    i = torch.linspace(0, points - 2, 7).round().long()[which]
    return levels[i], levels[i + 1]


def test_gaps_are_drawn_evenly():
    u = (torch.arange(9000, dtype=torch.float64) + 0.5) / 9000
    assert torch.bincount(uniform_pair(u, 10)).tolist() == [1000] * 9
    assert uniform_pair(torch.tensor([1 - 1e-17], dtype=torch.float64), 10).item() == 8


def test_the_training_loss_of_two_known_maps_by_hand():
    # Maps of Gaussians of no width: f(x, s) = theta + (s_min/s)(x - theta).
    low, high = gaps(11)
    a, b = (GaussianMap(EDM(), MEAN + shift, 0.0) for shift in (0.0, 0.5))
    found = training_loss(a, b, X0, Z, low, high)
    left = MEAN + 0.002 / high[:, None] * (X0 + high[:, None] * Z - MEAN)
    right = MEAN + 0.5 + 0.002 / low[:, None] * (X0 + low[:, None] * Z - MEAN - 0.5)
    assert float(found) == pytest.approx(float((left - right).square().mean()), rel=1e-9)
    summed = training_loss(a, b, X0, Z, low, high, apart=lambda x, y: (x - y).abs().flatten(1).sum(1))
    assert float(summed) == pytest.approx(float((left - right).abs().sum(1).mean()), rel=1e-9)


def test_the_exact_map_has_no_distillation_loss_where_the_teachers_paths_are_straight():
    point = Gaussian(EDM(), MEAN, 0.0)
    low, high = gaps(18)
    exact = GaussianMap(EDM(), MEAN, 0.0)
    for solver in (None, Euler()):
        assert float(distillation_loss(exact, exact, point, X0, Z, low, high, solver=solver)) < 1e-20


def test_the_exact_maps_distillation_loss_falls_with_the_solvers_order():
    # Local errors go like gap^3 (Heun) and gap^2 (Euler), their squares like gap^6 and gap^4.
    model, exact = Gaussian(EDM(), MEAN, 0.16), GaussianMap(EDM(), MEAN, 0.16)

    def loss(points, solver=None):
        # The pair around ln s = ln 0.4, where paths bend most.
        levels = ascending_levels(points)
        i = int((levels < 0.4).sum()) - 1
        low, high = (torch.full((7,), float(levels[k]), dtype=torch.float64) for k in (i, i + 1))
        return float(distillation_loss(exact, exact, model, X0, Z, low, high, solver=solver)), math.log(
            high[0] - low[0]
        )

    for solver, order in ((None, 6), (Euler(), 4)):
        (coarse, wide), (fine, narrow) = (loss(points, solver) for points in (161, 641))
        assert (math.log(coarse) - math.log(fine)) / (wide - narrow) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("schedule", [VP(), Discrete(betas="linear", T=1000)], ids=["vp", "table"])
def test_a_teacher_of_another_schedule_teaches_the_same(schedule):
    low, high = gaps(40, slice(2, None))
    student_map = GaussianMap(EDM(), MEAN + 0.2, 0.16)
    own = distillation_loss(student_map, student_map, Gaussian(EDM(), MEAN, 0.16), X0[2:], Z[2:], low, high)
    other = on_edm(Gaussian(schedule, MEAN, 0.16), EDM())
    assert float(distillation_loss(student_map, student_map, other, X0[2:], Z[2:], low, high)) == pytest.approx(
        float(own), rel=1e-6
    )
    assert on_edm(teacher(), EDM()).schedule.t_max == 80.0


def test_only_the_student_takes_gradients():
    for method in (CT(student(), steps=10), CD(student(), teacher(), steps=10, target_ema=0.5)):
        turn = method.prepare(batch(), 3)
        method.loss(batch(), turn, 3).backward()
        assert all(p.grad is not None for p in method.student.net.parameters())
        assert all(p.grad is None for p in method.target.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())


def test_consistency_training_grows_its_grid_and_slows_its_target():
    method = CT(student(), steps=100, s0=2, s1=20, mu0=0.9)
    assert method.points(0) == 2
    assert [method.points(k) for k in (0, 10, 99)] == [growing_points(k, 100, s0=2, s1=20) for k in (0, 10, 99)]
    turn = method.prepare(batch(), 50)
    levels = torch.from_numpy(ascending_levels(method.points(50)))
    place = torch.searchsorted(levels, turn.low)
    assert torch.equal(levels[place + 1], turn.high)
    for step in (0, 50):
        before = method.target.net.output.weight.clone()
        with torch.no_grad():
            method.student.net.output.weight.copy_(before + 1.0)
        method.after_update(step)
        rate = math.exp(2 * math.log(0.9) / method.points(step))
        assert torch.allclose(method.target.net.output.weight, before + 1 - rate, atol=1e-6)
    assert any(name.startswith("target.") for name in method.state_dict())


def test_distillation_takes_one_step_of_the_teacher_between_neighbouring_levels():
    class Watched(nn.Module):
        calls = 0

        def __init__(self, net):
            super().__init__()
            self.net, self.in_shape, self.num_classes = net, net.in_shape, net.num_classes

        def trace(self, x, t, cond, plan):
            Watched.calls += 1
            return self.net.trace(x, t, cond, plan)

    model = teacher()
    watched = Preconditioned(Watched(model.net), EDM())
    method = CD(student(), watched, steps=10, points=18)
    turn = method.prepare(batch(), 0)
    levels = torch.from_numpy(ascending_levels(18))
    assert torch.equal(levels[torch.searchsorted(levels, turn.low) + 1], turn.high)
    found = method.loss(batch(), turn, 0)
    assert Watched.calls == 2  # Heun
    s = method.student
    x = batch().image + turn.high.float()[:, None] * turn.noise
    with torch.no_grad():
        h = (turn.low - turn.high).float()[:, None]
        slope = model.eps(x, turn.high)
        ahead = x + h * slope
        ahead = x + h * (slope + model.eps(ahead, turn.low)) / 2
        wanted = squared(s.answer(x, turn.high), s.answer(ahead, turn.low)).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert method.frozen()[0] is watched
    CD(student(), watched, steps=10, solver="euler").loss(batch(), turn, 0)
    assert Watched.calls == 3


def test_distillation_with_an_average_asks_the_average():
    method = CD(student(), teacher(), steps=10, target_ema=0.75)
    turn = method.prepare(batch(), 0)
    before, weight = method.loss(batch(), turn, 0).item(), method.target.net.output.weight
    own = CD(method.student, method.teacher, steps=10)
    assert own.target is None
    assert own.loss(batch(), turn, 0).item() == pytest.approx(before, rel=1e-6)
    with torch.no_grad():
        weight.add_(1.0)
    assert method.loss(batch(), turn, 0).item() != pytest.approx(before, rel=1e-2)
    assert own.loss(batch(), turn, 0).item() == pytest.approx(before, rel=1e-6)
    method.after_update(0)
    assert torch.allclose(weight, method.student.net.output.weight + 0.75)


def test_labels_reach_a_teacher_with_classes_and_a_student_without():
    label = torch.arange(6) % 4
    method = CD(student(), teacher(num_classes=4), steps=10, guidance=2.0)
    turn = method.prepare(batch(label=label), 0)
    assert turn.cond is None
    assert torch.equal(turn.teacher_cond.labels, label)
    assert method.loss(batch(label=label), turn, 0).isfinite()
    with pytest.raises(InputError, match="labels"):
        method.prepare(batch(), 0)
    told = CD.student_of(teacher(num_classes=4))
    assert told.num_classes == 4
    assert CT.student_of(None, MLP(in_shape=(3,), width=8)).sigma_data == 0.5


def test_a_student_distilled_from_a_point_answers_with_it():
    point = Gaussian(EDM(), MEAN.float(), 0.0)
    data = MEAN.float().expand(16, 3).contiguous()
    method = CD(student(), point, steps=100, lr=1e-2)
    before = (method.result().generate(range(40), Noise(0)) - data[0]).abs().mean()
    made = fit(method, data, steps=100, batch_size=16, seed=0).result()
    assert (made.generate(range(40), Noise(0)) - data[0]).abs().mean() < before / 2
    assert made.nfe == 1


@pytest.mark.parametrize(
    "make, thing",
    [
        (lambda: CT(student(), steps=0), "steps"),
        (lambda: CT(student(), steps=5, s0=1), "s0"),
        (lambda: CT(student(), steps=5, mu0=1.0), "mu0"),
        (lambda: CD(student(), teacher(), steps=0), "steps"),
        (lambda: CD(student(), teacher(), steps=5, points=1), "points"),
        (lambda: CD(student(), teacher(), steps=5, target_ema=-0.1), "target_ema"),
        (lambda: CD(student(), teacher(), steps=5, solver="hein"), "heun"),
        (lambda: CD(student(), teacher(), steps=5, guidance=2.0), "guidance"),
        (lambda: CD(student(), Gaussian(EDM(), torch.zeros(4), 0.1), steps=5), "student"),
    ],
    ids=["ct-steps", "s0", "mu0", "cd-steps", "points", "target", "solver", "guidance", "shape"],
)
def test_wrong_settings_are_refused(make, thing):
    with pytest.raises(InputError, match=thing):
        make()


def test_the_cifar10_preset_is_built_and_takes_a_step():
    torch.manual_seed(0)
    net = UNet(in_shape=(3, 32, 32), base_channels=16, channel_mult=(1, 2, 2, 2), num_blocks=1)
    taught = Preconditioned(net, EDM())
    (stage,) = read_recipe("cd", preset="cifar10", teacher="its file").stages
    assert stage["settings"].pop("distance") == "lpips-vgg"  # whose weights do not ship
    method = make_method(stage, make_student(stage, taught, {}), taught)
    before = method.student.net.output.bias.clone()
    fit(method, torch.rand(2, 3, 32, 32), steps=1, batch_size=2)
    assert not torch.equal(method.student.net.output.bias, before)
    assert torch.equal(taught.net.output.bias, before)


@pytest.mark.parametrize("name", ["ct", "cd"])
def test_the_digits_presets_are_read(name):
    recipe = read_recipe(name, preset="digits")
    (stage,) = recipe.stages
    taught = load(recipe.teacher) if recipe.teacher else None
    method = make_method(stage, make_student(stage, taught, {}), taught)
    assert method.student.num_classes == 10
    assert method.student.sigma_data == 0.75


def test_a_small_image_is_shown_to_lpips_at_224_pixels(monkeypatch):
    asked = []
    monkeypatch.setattr(consistency_models, "named_distance", lambda name, size: asked.append((name, size)))
    CT(student(), steps=10, distance="lpips-vgg")
    CD(student(), teacher(), steps=10, distance="lpips-vgg")
    assert asked == [("lpips-vgg", 224)] * 2
