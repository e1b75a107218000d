"""The generator of distribution matching: where it starts and stops, what it is copied from, how it is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scoreline.core.artefact import load_artefact, save_artefact
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VE, VP, Discrete, Flow
from scoreline.fewstep.maps import ConsistencyFunction
from scoreline.fewstep.mean_map import MeanMap, level_table, mean_map, step_indices
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.samplers.jumps import Jumps


def net(num_classes: int | None = None, size: int = 3) -> MLP:
    torch.manual_seed(0)
    made = MLP(in_shape=(size,), width=16, depth=1, num_classes=num_classes)
    with torch.no_grad():
        made.output.weight.add_(0.1 * torch.randn(made.output.weight.shape))
    return made


@pytest.mark.check(system=32, number=4)
def test_the_table_of_edm() -> None:
    table = level_table(EDM())
    i = np.arange(1000)
    wanted = (0.002 ** (1 / 7) + i / 999 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    assert table == pytest.approx(wanted, rel=1e-10)
    assert (table[0], table[999]) == (0.002, 80.0)
    assert (np.diff(table) > 0).all()
    assert level_table(Discrete()).tolist() == list(range(1000))
    assert len(level_table(VP(), 50)) == 50


@pytest.mark.check(system=32, number=5)
def test_steps_of_a_run() -> None:
    assert step_indices(1) == [999]
    assert step_indices(2) == [999, 499]
    assert step_indices(4) == [999, 749, 499, 249]
    assert step_indices(3) == [999, 666, 333]
    assert step_indices(2, top=399) == [399, 199]
    for wrong in (0, 1001):
        with pytest.raises(InputError, match="steps"):
            step_indices(wrong)
    eps = MeanMap(net(), Discrete(), kind="eps")
    assert eps.levels(4).tolist() == [999, 749, 499, 249]
    table = level_table(EDM())
    assert MeanMap(net(), EDM()).levels(2).tolist() == [80.0, table[499]]
    assert Jumps(steps=4).calibrated(eps).times(eps.schedule).tolist() == [999, 749, 499, 249, -1]


def test_a_start_between_two_entries_is_kept_and_an_entry_is_met_exactly() -> None:
    model = MeanMap(net(), EDM())
    model.begin(2.5)
    assert model.levels(1).tolist() == [2.5]
    assert model.levels(2)[1] < 2.5
    entry = float(level_table(EDM())[700])
    model.begin(entry)
    assert model.levels(1)[0] == entry
    short = MeanMap(net(), VP(t_max=0.9))  # 0.9 has no float32
    assert short.levels(1)[0] == 0.9
    for wrong in (0.001, 81.0):
        with pytest.raises(InputError, match="start"):
            model.begin(wrong)


@pytest.mark.parametrize("schedule, start, std", [
    (EDM(), 80.0, 80.0), (EDM(), 2.5, 2.5), (VE(), 1.0, 50.0), (Discrete(), 999.0, 1.0), (Discrete(), 399.0, 1.0),
    (VP(), 1.0, 1.0), (Flow(), 0.5, 0.5),
], ids=["edm", "edm-low", "ve", "discrete", "discrete-low", "vp", "flow"])  # fmt: skip
def test_the_noise_of_the_start(schedule, start: float, std: float) -> None:
    model = MeanMap(net(), schedule, kind="eps")
    model.begin(start)
    assert model.prior(start) == pytest.approx(std, rel=1e-14)
    draws = Noise(0).at(range(2), (3,))
    x = Jumps(steps=1)(model, draws)
    assert torch.allclose(x.x, model.answer(draws.normal() * model.prior(start), start).detach(), rtol=1e-4)
    other = ConsistencyFunction(net(), EDM())
    assert other.prior(80.0) == 80.0


def test_a_copy_makes_the_teachers_posterior_mean_and_refuses_other_ends() -> None:
    teacher = Preconditioned(net(), EDM(), sigma_data=0.6, time_input="ln-half-sigma")
    student = mean_map(teacher)
    x = 80 * torch.randn(4, 3)
    assert torch.equal(student.answer(x, 80.0), teacher(x, 80.0).mean)
    assert torch.equal(student.jump(x, 80.0, 0.0), teacher(x, 80.0).mean)
    assert (student.kind, student.sigma_data, student.time_input) == ("edm", 0.6, "ln-half-sigma")
    assert student.net is not teacher.net
    with pytest.raises(InputError, match="clean end"):
        student.jump(x, 80.0, 1.0)
    with pytest.raises(InputError, match="says where paths end"):
        student(x, 80.0)
    assert mean_map(teacher, student) is student
    assert mean_map(teacher.on(VP())).schedule is teacher.schedule


def test_a_copy_has_no_dropout_and_no_learned_variance() -> None:
    unet = UNet(in_shape=(1, 8, 8), out_channels=2, base_channels=16, channel_mult=(1,), num_blocks=1, attention=(),
                dropout=0.3)  # fmt: skip
    with torch.no_grad():
        unet.output.weight.normal_()
    teacher = Preconditioned(unet, Discrete(), kind="eps", learned_variance=True).eval()
    student = mean_map(teacher).train()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(student.answer(x, 900.0), student.answer(x, 900.0))
    assert torch.allclose(student.answer(x, 900.0), teacher(x, 900.0).mean, atol=1e-5)
    assert student.net._arguments["dropout"] == 0.0


def test_networks_of_ones_own_must_fit() -> None:
    teacher = Preconditioned(net(num_classes=4), EDM(), sigma_data=0.6)
    assert mean_map(teacher, net(num_classes=4)).sigma_data == 0.6
    assert mean_map(teacher, net()).num_classes is None
    with pytest.raises(InputError, match="shape"):
        mean_map(teacher, net(size=4))
    with pytest.raises(InputError, match="classes"):
        mean_map(teacher, net(num_classes=5))
    exact = Gaussian(EDM(), torch.zeros(3), 1.0)
    assert mean_map(exact, net()).sigma_data == 0.5
    with pytest.raises(InputError, match="no network"):
        mean_map(exact)
    with pytest.raises(InputError, match="no network"):
        mean_map(None)


def test_a_student_is_saved_with_its_start(tmp_path: Path) -> None:
    model = MeanMap(net(), Discrete(), kind="eps")
    model.begin(399)
    save_artefact(tmp_path / "m.safetensors", model)
    again = load_artefact(tmp_path / "m.safetensors", kind="denoiser")[0]
    assert again.levels(2).tolist() == [399, 199]
    draws = Noise(1).at(range(2), (3,))
    assert torch.equal(Jumps(steps=2)(again, draws).x, Jumps(steps=2)(model, draws).x)
