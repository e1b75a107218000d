"""What rectified flows share, against closed forms."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, OnSchedule
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Cosine, Discrete, Flow
from scoreline.fewstep.flows import (
    as_flow,
    conditions,
    flow_student,
    interpolate,
    invert,
    mean_straightness,
    network_of,
    pair_of,
    path_straightness,
    straightness,
    velocity_loss,
    velocity_target,
)
from scoreline.nn.autoencoder import KLAutoencoder
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.samplers.rk45 import RK45

F8 = torch.float64
MU, S2 = torch.tensor([0.7, -0.4, 0.1], dtype=F8), torch.tensor([0.3, 1.6, 0.0], dtype=F8)
MEANS = torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=F8)


def draws(count: int = 5, shape: tuple[int, ...] = (3,)):
    return Noise(3).at(range(count), shape, dtype=F8)


def net(**more) -> MLP:
    torch.manual_seed(0)
    return MLP(**{"in_shape": (1, 8, 8), "width": 16, "depth": 1} | more)


def test_paths_are_straight_from_data_to_noise():
    x, z = draws().normal(), draws().normal(1)
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=F8)
    path = interpolate(x, z, t)
    assert torch.equal(path[0], x[0])
    assert torch.equal(path[-1], z[-1])
    assert torch.allclose(path[1], 0.75 * x[1] + 0.25 * z[1])
    assert torch.allclose(interpolate(x, z, 0.3 + 1e-4) - interpolate(x, z, 0.3), 1e-4 * velocity_target(x, z))
    assert torch.equal(velocity_loss(z - x, x, z), torch.zeros(5, dtype=F8))
    assert torch.allclose(velocity_loss(z - x + 2, x, z), torch.full((5,), 4.0, dtype=F8))


@pytest.mark.parametrize("schedule", [EDM(), VP(), Cosine(), Discrete(), Flow()], ids=lambda s: type(s).__name__)
def test_any_model_as_a_flow_has_the_velocity_of_straight_paths(schedule: Schedule):
    """v = E[z - x | x_t] is the same whatever coordinates the model is kept in, and the range is the model's."""
    flow = as_flow(Mixture(schedule, MEANS, 0.1))
    exact = Mixture(Flow(), MEANS, 0.1)
    x = draws(5, (2,)).normal()
    for t in (0.05, 0.4, 0.9):
        assert torch.allclose(flow.velocity(x, t), exact.velocity(x, t), atol=1e-8)
    top = flow.schedule.t_max
    expected = float(schedule.sigma(schedule.t_max) / (schedule.sigma(schedule.t_max) + schedule.alpha(schedule.t_max)))
    assert top == pytest.approx(min(expected, 1 - 1e-5) if not isinstance(schedule, Flow) else 1.0)


def test_edms_form_needs_no_conversion():
    model = Preconditioned(net(), EDM(), sigma_data=0.75)
    flow, converted = as_flow(model), model.on(Flow(t_min=1e-5, t_max=1 - 1e-5), extrapolate=True)
    assert isinstance(flow, Preconditioned)
    assert flow.net is model.net
    x = Noise(0).at(range(3), (1, 8, 8)).normal()
    for t in (0.01, 0.5, 0.98):
        assert torch.allclose(flow.velocity(x, t), converted.velocity(x, t), atol=1e-4)
    cond = Cond(labels=torch.arange(3))
    bound = as_flow(Preconditioned(net(num_classes=10), EDM()).given(cond))
    assert bound._given is cond


def asked(model: Denoiser, t: float) -> list[float]:
    """The time that the network is told."""
    told: list[float] = []
    inner = network_of(model)
    trace = inner.trace

    def spy(x: Tensor, at: Tensor, *rest):
        told.extend(at.flatten().tolist())
        return trace(x, at, *rest)

    inner.trace = spy  # type: ignore[method-assign]
    model.velocity(torch.zeros(1, *model.shape), t)
    inner.trace = trace  # type: ignore[method-assign]
    return told


@pytest.mark.parametrize("kind, schedule, input, told", [
    ("edm", EDM(), None, np.log(0.25 / 0.75) / 4),
    ("flow", Flow(), None, 250.0),
    ("flow", Flow(), "999t", 249.75),
    ("eps", Discrete(), None, 250.0),
    ("eps", VP(), "999t", 249.75),
    ("x0", Cosine(), None, 250.0),
])  # fmt: skip
def test_a_student_keeps_weights_and_time_of_the_teachers_network(kind: str, schedule: Schedule, input, told: float):
    teacher = Preconditioned(net(), schedule, kind=kind, time_input=input)
    student = flow_student(teacher)
    assert isinstance(student.schedule, Flow)
    assert network_of(student) is not teacher.net
    for mine, its in zip(network_of(student).parameters(), teacher.net.parameters()):
        assert torch.equal(mine, its)
    assert asked(student, 0.25) == pytest.approx([told])
    x = torch.ones(1, 1, 8, 8)
    if kind in ("edm", "flow"):  # those start as the teacher's own flow
        assert torch.allclose(student.velocity(x, 0.4), as_flow(teacher).velocity(x, 0.4), atol=1e-5)
    else:  # those answer with the velocity itself
        raw = teacher.net(x, torch.tensor([400.0 if input is None else 399.6]), None)
        assert torch.allclose(student.velocity(x, 0.4), raw, atol=1e-5)


def test_a_student_of_a_velocity_network_starts_as_its_teacher():
    teacher = Preconditioned(net(), Discrete(), kind="v")
    student = flow_student(teacher)
    assert isinstance(student, OnSchedule)
    x = torch.ones(2, 1, 8, 8)
    assert torch.allclose(student.velocity(x, 0.4), as_flow(teacher).velocity(x, 0.4), atol=1e-5)
    assert all(p.requires_grad for p in student.parameters())


def test_fresh_networks_are_told_the_papers_time():
    student = flow_student(None, net())
    assert asked(student, 0.25) == [999 * 0.75]
    assert student.schedule.t_max == 1.0
    assert flow_student(None, student) is student


def test_students_of_other_forms():
    edm = Preconditioned(net(in_shape=(4, 4, 4)), EDM())
    latent = Latent(edm, KLAutoencoder(in_shape=(1, 8, 8), channel_mult=(1, 2)), scale=0.7)
    student = flow_student(latent)
    assert isinstance(student, Latent)
    assert student.scale == 0.7
    assert network_of(student) is not edm.net
    assert not any(p.requires_grad for p in student.autoencoder.parameters())
    wide = UNet(in_shape=(1, 8, 8), out_channels=2, base_channels=32, channel_mult=(1,), num_blocks=1, attention=())
    variance = Preconditioned(wide, Discrete(), kind="eps", learned_variance=True)
    assert network_of(flow_student(variance)).out_channels == 1  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("teacher, own, said", [
    (None, None, "needs a network"),
    ("gaussian", None, "has no network to copy"),
    ("digits", {"in_shape": (1, 4, 4)}, "the same shape"),
    ("digits", {"num_classes": 3}, "the same ones"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(teacher, own, said: str):
    model = {
        None: lambda: None,
        "gaussian": lambda: Gaussian(VP(), torch.zeros(2), 1.0),
        "digits": lambda: load(teacher),
    }
    with pytest.raises(InputError, match=said):
        flow_student(model[teacher](), None if own is None else net(**own))


def test_a_batch_is_a_pair_or_an_image_with_its_own_noise():
    image, stored, rows = torch.ones(3, 2), torch.full((3, 2), 5.0), Noise(1).at([4, 5, 6], (2,))
    x, z = pair_of(SimpleNamespace(image=image, extras={"noise": stored}, draws=rows))
    assert torch.equal(x, image)
    assert torch.equal(z, stored)
    assert torch.equal(pair_of(SimpleNamespace(image=image, extras={}, draws=rows))[1], rows.normal())


def test_labels_are_dropped_as_often_as_asked():
    model = Preconditioned(net(num_classes=10), EDM())
    batch = SimpleNamespace(label=torch.tensor([3, -1] * 500), draws=Noise(1).at(range(1000), (1,)))
    kept = conditions(model, batch)
    assert kept is not None
    assert kept.labels.tolist() == [3, 10] * 500
    some = conditions(model, batch, 0.25)
    assert some is not None
    assert 0.2 < (some.labels[::2] == 10).double().mean() < 0.3
    assert conditions(Preconditioned(net(), EDM()), batch) is None
    with pytest.raises(InputError, match="class-conditional"):
        conditions(model, SimpleNamespace(label=None, draws=None))


def test_straightness_of_a_bent_path():
    """Two steps of velocity 1 and 3 in each of 4 entries deviate by 1 from their mean all the time: S = 4, mean 1."""
    path = [torch.zeros(2, 4), torch.full((2, 4), 0.5), torch.full((2, 4), 2.0)]
    assert path_straightness(path, [0.0, 0.5, 1.0]).tolist() == [4.0, 4.0]
    assert mean_straightness(path).tolist() == [1.0, 1.0]
    # the same path run backwards, and with steps of different length
    assert path_straightness(path[::-1], [1.0, 0.5, 0.0]).tolist() == [4.0, 4.0]
    uneven = [torch.zeros(1, 1), torch.full((1, 1), 0.25), torch.full((1, 1), 1.75)]
    assert path_straightness(uneven, [0.0, 0.25, 1.0]).item() == pytest.approx(0.25 * 0.75**2 + 0.75 * 0.25**2)
    with pytest.raises(InputError, match="one for each"):
        path_straightness(path, [0.0, 1.0])


@pytest.mark.check(system=13, number=5)
@pytest.mark.check(system=19, number=9)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_constant_velocity_is_straight(steps: int):
    """Data in a point: every path is a line with constant speed."""
    assert straightness(Gaussian(Flow(), MU, 0.0), draws(), steps=steps).abs().max() < 1e-20
    assert straightness(Gaussian(Flow(), MU, S2), draws(), steps=1).abs().max() < 1e-20
    assert straightness(Gaussian(Flow(), MU, S2), draws(), steps=7).mean() > 1e-3


def test_straightness_is_the_integral():
    """Gaussian data: Z_t = mu_t + r(t) z with r^2 = (1-t)^2 s^2 + t^2, so that S = z^2 (int r'^2 dt - (1 - s)^2)."""
    s = 0.4
    model = Gaussian(Flow(), torch.zeros(1, dtype=F8), s * s)
    t = np.linspace(0, 1, 20_001)
    r = np.sqrt((1 - t) ** 2 * s * s + t**2)
    exact = np.sum(np.diff(r) ** 2 / np.diff(t)) - (1 - s) ** 2
    z = draws(4, (1,))
    assert torch.allclose(straightness(model, z, steps=400), z.normal()[:, 0] ** 2 * exact, rtol=1e-2)


@pytest.mark.parametrize("schedule", [Flow(t_max=1 - 1e-5), VP(), EDM()], ids=lambda s: type(s).__name__)
def test_inversion_undoes_sampling(schedule: Schedule):
    """x at 1e-3 is mixed, so that what comes back is z up to the Euler error and what the mixing changes."""
    model = Gaussian(schedule, MU, torch.tensor([0.3, 1.6, 0.5], dtype=F8))
    z = draws(6)
    x = RK45(rtol=1e-8)(as_flow(model), z).x
    back = invert(model, x, Noise(9).at(range(6), (3,), dtype=F8), steps=400)
    assert (back - z.normal()).abs().max() < 0.05
    short = Gaussian(VP(t_max=0.4), MU, torch.tensor([0.3, 1.6, 0.5], dtype=F8))  # its flow ends at 0.65
    x = RK45(rtol=1e-8)(as_flow(short), z).x
    assert (invert(short, x, Noise(9).at(range(6), (3,), dtype=F8), steps=400) - z.normal()).abs().max() < 0.06
    with pytest.raises(InputError, match="between 0"):
        invert(model, x, z, start=1.0)
