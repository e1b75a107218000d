"""What consistency methods share: the student's form, and dropout masks that both branches share."""

from __future__ import annotations

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.fewstep.consistency import as_target, consistency_student
from scoreline.fewstep.maps import GaussianMap
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet


def net(**settings):
    torch.manual_seed(1)
    return MLP(in_shape=(3,), width=16, depth=1, **settings)


def test_a_consistency_student_is_a_copy_of_the_teachers_network_or_the_one_given():
    own = net()
    teacher = Preconditioned(own, EDM(), sigma_data=0.75)
    student = consistency_student(teacher.on(VP(), extrapolate=True))
    assert student.sigma_data == 0.75
    assert student.net is not own
    assert all(torch.equal(a, b) for a, b in zip(student.net.parameters(), own.parameters()))
    assert all(p.requires_grad for p in student.net.parameters())
    assert (student.schedule.t_min, student.schedule.t_max) == (0.002, 80.0)
    given = consistency_student(None, own)
    assert given.net is own
    assert given.sigma_data == 0.5
    assert consistency_student(teacher, own).sigma_data == 0.75
    assert consistency_student(None, given) is given


def test_a_consistency_student_of_a_table_keeps_the_tables_weights_and_drops_its_variance():
    torch.manual_seed(2)
    small = MLP(in_shape=(1, 2, 2), out_channels=2, width=8, depth=1)
    teacher = Preconditioned(small, Discrete(betas="linear", T=1000), kind="eps", learned_variance=True)
    student = consistency_student(teacher)
    assert student.net.out_channels == 1
    assert torch.equal(student.net.input.weight, small.input.weight)


def test_a_consistency_student_needs_a_network_of_the_teachers_shape_and_classes():
    with pytest.raises(InputError, match="student"):
        consistency_student(None)
    with pytest.raises(InputError, match="no network"):
        consistency_student(GaussianMap(EDM(), torch.zeros(3), 0.1))
    teacher = Preconditioned(net(), EDM())
    with pytest.raises(InputError, match="same shape"):
        consistency_student(teacher, MLP(in_shape=(4,), width=8, depth=1))
    with pytest.raises(InputError, match="classes"):
        consistency_student(teacher, net(num_classes=3))


def unet(**settings):
    torch.manual_seed(3)
    return UNet(in_shape=(1, 8, 8), base_channels=16, channel_mult=(1, 2), num_blocks=1, attention=(4,), **settings)


def test_a_target_drops_the_units_that_the_student_drops_after_it():
    model = unet(dropout=0.5).train()
    x, t = torch.randn(3, 1, 8, 8), torch.zeros(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    torch.manual_seed(4)
    with as_target(model):
        target = model(x, t)
        assert not target.requires_grad
        between = torch.get_rng_state()
    student = model(x, t)
    assert torch.equal(student, target)
    assert student.requires_grad
    assert torch.equal(torch.get_rng_state(), between)  # as if one mask had been drawn
    assert not torch.equal(model(x, t), target)


def test_a_target_network_of_its_own_stays_frozen_and_the_student_moves():
    model = net()
    model.input.weight.requires_grad_(False)
    with as_target(model):
        assert not any(p.requires_grad for p in model.parameters())
    assert not model.input.weight.requires_grad
    assert model.output.weight.requires_grad


def test_a_block_that_fails_leaves_everything_as_it_was():
    model = net()
    state = torch.get_rng_state()
    with pytest.raises(InputError), as_target(model):
        model(torch.rand(2, 4), torch.zeros(2))
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
