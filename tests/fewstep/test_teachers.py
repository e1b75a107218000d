"""Teachers: steps against the exact path, copies and rebuilt networks."""

from __future__ import annotations

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.teachers import GridSteps, advance, copied, ema_update, guided_teacher, rebuilt
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.dpm_solver_pp import DPMSolverPP2M
from scoreline.samplers.heun import Heun

TEACHER = Gaussian(EDM(), torch.zeros(2, dtype=torch.float64), 0.25)


@pytest.mark.parametrize("solver, order", [(DDIM(), 1), (Heun(), 2)], ids=["ddim", "heun"])
def test_a_teacher_walks_along_the_exact_path_with_times_of_each_images_own(solver, order):
    x = Noise(0).at(range(3), (2,), dtype=torch.float64).normal() * 5
    start, stop = torch.tensor([5.0, 4.0, 3.0]).double(), torch.tensor([1.0, 2.0, 0.5]).double()

    def error(steps):
        times = start + torch.linspace(0, 1, steps + 1).double()[:, None] * (stop - start)
        return (advance(solver, TEACHER, x, times) - TEACHER.flow(x, start, stop)).abs().max()

    assert error(16) < 0.1
    assert error(64) / error(128) == pytest.approx(2**order, rel=0.15)
    with pytest.raises(InputError, match="each image's own"):
        advance(DPMSolverPP2M(), TEACHER, x, torch.stack([start, stop]))


@pytest.mark.parametrize("solver", [DDIM(), Heun()], ids=["ddim", "heun"])
def test_tabulated_steps_are_the_solvers_own(solver):
    grid = torch.tensor([9.0, 4.0, 2.0, 0.7, 0.1], dtype=torch.float64)
    walk, index = GridSteps(solver, TEACHER.schedule, grid), torch.tensor([0, 2, 1])
    x = Noise(0).at(range(3), (2,), dtype=torch.float64).normal() * 5
    expected = advance(solver, TEACHER, x, grid[index + torch.arange(3)[:, None]])
    assert torch.allclose(walk(TEACHER, x, index, 2), expected, rtol=1e-12)
    assert not walk.state_dict()
    with pytest.raises(InputError, match="each image's own"):
        GridSteps(DPMSolverPP2M(), TEACHER.schedule, grid)


def test_copies_and_rebuilt_networks():
    torch.manual_seed(0)
    net = MLP(in_shape=(2,), width=8, depth=1)
    made, fresh = rebuilt(net, {"second_time": True})
    assert fresh
    assert all(torch.equal(made.state_dict()[k], v) for k, v in net.state_dict().items() if k not in fresh)
    assert made.second_time
    # the layers that take both times keep what they knew of the first
    grown = [k for k in fresh if k in net.state_dict()]
    assert grown == ["layers.0.affine.weight"]
    assert torch.equal(made.layers[0].affine.weight[:, :8], net.layers[0].affine.weight)
    assert made.layers[0].affine.weight[:, 8:].abs().min() > 0
    assert rebuilt(net, {})[1] == []
    twin = copied(net)
    assert not any(p.requires_grad for p in twin.parameters())
    assert all(p.requires_grad for p in net.parameters())
    with pytest.raises(InputError, match="copied but not rebuilt"):
        rebuilt(torch.nn.Linear(1, 1), {"bias": False})


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_network_without_its_learned_variance_answers_as_before(name):
    torch.manual_seed(0)
    sizes = {"unet": {"base_channels": 8, "channel_mult": (1,), "num_blocks": 1, "attention": ()},
             "dit": {"width": 16, "depth": 1, "heads": 2, "patch": 4}}  # fmt: skip
    net = lookup("network", name)(in_shape=(2, 8, 8), out_channels=4, **sizes[name])
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    made, fresh = rebuilt(net, {"out_channels": 2})
    assert fresh == []
    x, t = torch.randn(3, 2, 8, 8), torch.ones(3)
    assert torch.allclose(made(x, t), net(x, t)[:, :2], atol=1e-5)


def test_moving_averages():
    target, source = torch.nn.Linear(3, 1, bias=False), torch.nn.Linear(3, 1, bias=False)
    target.weight.data, source.weight.data = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 0.0, 10.0]])
    ema_update(target, source, 0.95)
    assert torch.allclose(target.weight.data, torch.tensor([[0.95, 1.9, 3.35]]))


def test_guidance_of_a_teacher():
    assert guided_teacher(TEACHER, None) is TEACHER
    assert guided_teacher(TEACHER, 1) is TEACHER
    with pytest.raises(InputError, match="no conditions"):
        guided_teacher(TEACHER, 2.0)
