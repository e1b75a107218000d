"""Students that jump anywhere: copies of teachers of every kind, training times, and the run of two jumps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoreline.core.artefact import load_artefact, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Cosine, Discrete, Flow
from scoreline.evaluate.likelihood import likelihood
from scoreline.fewstep.ctm import CTM
from scoreline.fewstep.maps import GaussianMap, Trajectory, inner_scalings, outer_scalings, outer_shift
from scoreline.fewstep.trajectory import keep_likely, training_grid, trajectory_student, two_step
from scoreline.nn.autoencoder import KLAutoencoder
from scoreline.nn.dit import DiT
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.samplers.heun import Heun
from scoreline.samplers.jumps import Jumps
from scoreline.train import fit

LEVELS = torch.tensor([0.01, 0.5, 3.0, 70.0], dtype=torch.float64)


def network(kind="mlp", **settings):
    torch.manual_seed(0)
    if kind == "unet":
        net = UNet(in_shape=(1, 8, 8), base_channels=16, channel_mult=(1, 2), num_blocks=1, attention=(), **settings)
    elif kind == "dit":
        net = DiT(in_shape=(1, 8, 8), width=16, depth=1, heads=2, **settings)
    else:
        net = MLP(in_shape=(1, 8, 8), width=16, depth=1, **settings)
    with torch.no_grad():  # no layer may be silent
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return net


def test_inner_forms():
    t, sd, low = LEVELS, 0.7, 0.01
    root = (t**2 + sd**2).sqrt()
    forms = {name: inner_scalings(t, name, sd, low) for name in ("edm", "cm", "no")}
    assert torch.allclose(forms["edm"][0], sd**2 / root**2)
    assert torch.allclose(forms["edm"][1], t * sd / root)
    assert torch.allclose(forms["cm"][0], sd**2 / ((t - low) ** 2 + sd**2))
    assert torch.allclose(forms["cm"][1], (t - low) * sd / root)
    assert torch.equal(torch.stack(forms["no"]), torch.stack([torch.zeros(4), torch.ones(4)]).double())
    with pytest.raises(InputError, match="edm"):
        inner_scalings(1.0, "edn")


def test_outer_forms():
    t, s, sd, low = LEVELS, 0.4 * LEVELS, 0.7, 0.002
    root = (((s - low) ** 2 + sd**2) / ((t - low) ** 2 + sd**2)).sqrt()
    expected = {"euler": s / t, "variance": root, "mixed": s / (t + 1) + root / (t + 1)}
    for form, keep in expected.items():
        found, add = outer_scalings(t, s, form, sd, low)
        assert torch.allclose(found, keep)
        assert torch.allclose(add, 1 - s / t)
        # a' at s = t, by a difference
        near = 1e-6 * t
        slope = (1 - outer_scalings(t, t - near, form, sd, low)[0]) / near
        assert torch.allclose(outer_shift(t, form, sd, low), 1 - t * slope, atol=1e-4)
    assert float(outer_scalings(2.0, 0.5, "variance")[0]) == pytest.approx(
        math.sqrt((0.498**2 + 0.25) / (1.998**2 + 0.25))
    )
    for wrong in (outer_scalings, lambda t, s, form: outer_shift(t, form)):
        with pytest.raises(InputError, match="euler"):
            wrong(1.0, 0.5, "euller")


KINDS = [("eps", VP()), ("v", Cosine()), ("x0", VP()), ("flow", Flow()), ("edm", VP())]


@pytest.mark.parametrize("kind, schedule", KINDS, ids=["eps", "v", "x0", "flow", "edm-vp"])
def test_on_any_schedule_and_of_any_kind_a_jump_is_the_same_combination(kind, schedule):
    model = Trajectory(network(second_time=True), schedule, kind=kind)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    t = torch.linspace(0.2, 0.8, 4).double()
    s = 0.5 * t
    assert torch.allclose(model.jump(x, t, t), x, atol=1e-6)
    post = model(x, t)
    assert torch.allclose(post.mean, model.inner(x, t, t), atol=1e-5)
    alpha, sigma = (c.view(-1, 1, 1, 1) for c in (schedule.alpha(t), schedule.sigma(t)))
    assert torch.allclose(alpha * post.mean + sigma * post.eps, x, atol=1e-4)
    # in x/alpha it is the paper's G, with sigma/alpha for t
    later, ratio = schedule.alpha(s).view(-1, 1, 1, 1), (model.level(s) / model.level(t)).view(-1, 1, 1, 1)
    paper = ratio * x / alpha + (1 - ratio) * model.inner(x, t, s)
    assert torch.allclose(model.jump(x, t, s) / later, paper, atol=1e-5)
    other = Trajectory(model.net, schedule, kind=kind, outer="variance")
    keep, add = outer_scalings(model.level(t), model.level(s), "variance", 0.5, float(model.level(schedule.t_min)))
    paper = keep.view(-1, 1, 1, 1) * x / alpha + add.view(-1, 1, 1, 1) * model.inner(x, t, s)
    assert torch.allclose(other.jump(x, t, s) / later, paper, atol=1e-5)
    post = other(x, t)
    assert torch.allclose(alpha * post.mean + sigma * post.eps, x, atol=1e-4)


def test_a_student_of_another_kind_starts_near_its_teacher_and_learns_from_it():
    teacher = Preconditioned(network(), Discrete(betas="linear", T=100), kind="eps", time_input="t")
    made = trajectory_student(teacher)
    assert (made.kind, made.schedule) == ("eps", teacher.schedule)
    with torch.no_grad():  # without what is new, it is the teacher
        made.net.layers[0].affine.weight[:, 16:] = 0
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(made(x, 40.0).mean, teacher(x, 40.0).mean, atol=1e-5)
    grid = training_grid(made.schedule, 8)
    assert (grid == np.round(grid)).all()
    assert (grid[0], grid[-1]) == (99.0, 0.0)
    fit(
        CTM(made, teacher, points=8, teacher_steps=2, distance="squared"), torch.rand(8, 1, 8, 8), steps=2, batch_size=4
    )
    assert Jumps(gamma=0.5, steps=3)(made, Noise(0).at([0, 1], (1, 8, 8))).nfe == 3


@pytest.mark.parametrize("kind", ["unet", "dit", "mlp"])
def test_a_copy_keeps_what_the_teacher_knew(kind):
    teacher = Preconditioned(network(kind, num_classes=3), EDM(), sigma_data=0.7)
    made = trajectory_student(teacher.on(VP(), extrapolate=True))
    assert made.net.second_time
    assert (made.sigma_data, made.schedule, made.num_classes) == (0.7, teacher.schedule, 3)
    assert all(parameter.requires_grad for parameter in made.net.parameters())
    with torch.no_grad():
        for name, parameter in made.net.named_parameters():
            if "affine2" in name:
                parameter.zero_()
            elif name.endswith(("modulation.weight", "affine.weight")) and kind != "unet":
                parameter[:, 16:] = 0
    x, cond = torch.randn(2, 1, 8, 8), Cond(labels=torch.tensor([0, 2]))
    assert torch.allclose(made(x, 0.9, cond).mean, teacher(x, 0.9, cond).mean, atol=1e-5)


def test_a_flow_is_followed_as_far_as_some_signal_is_left():
    teacher = Preconditioned(network(), Flow(), kind="flow")
    made = trajectory_student(teacher)
    assert (made.kind, made.time_input) == ("flow", teacher.time_input)
    assert made.schedule.t_max == pytest.approx(80 / 81)
    assert made.schedule.t_min == teacher.schedule.t_min
    fit(
        CTM(made, teacher, points=6, teacher_steps=2, distance="squared"), torch.rand(4, 1, 8, 8), steps=1, batch_size=4
    )
    assert Jumps(steps=2)(made, Noise(0).at([0], (1, 8, 8))).x.isfinite().all()
    with pytest.raises(InputError, match="network of its own"):
        trajectory_student(Preconditioned(network(), Discrete(betas="linear", T=100, zero_terminal_snr=True), kind="v"))


def test_a_network_of_ones_own():
    made = trajectory_student(Preconditioned(network(), VP(), kind="eps"), network("dit"))
    assert made.kind == "edm"
    assert made.net.second_time
    low, high = (VP().sigma(t) / VP().alpha(t) for t in (1e-3, 1.0))
    assert low > 0.002
    assert (made.schedule.t_min, made.schedule.t_max) == (low, 80.0)
    assert high > 80
    assert trajectory_student(None, network(second_time=True)).schedule.t_min == 0.002
    assert trajectory_student(None, made) is made
    with pytest.raises(InputError, match="needs a network"):
        trajectory_student(None)
    with pytest.raises(InputError, match="no network to copy"):
        trajectory_student(Gaussian(EDM(), torch.zeros(2), 1.0))
    latents = Latent(
        Preconditioned(MLP(in_shape=(4, 4, 4), width=8), EDM()),
        KLAutoencoder(in_shape=(1, 8, 8), channel_mult=(1, 2)),
        scale=0.7,
    )
    with pytest.raises(InputError, match="from latents"):
        trajectory_student(latents.on(VP(), extrapolate=True))
    with pytest.raises(InputError, match="copied but not rebuilt"):
        trajectory_student(None, torch.nn.Linear(1, 1))


def test_what_a_trajectory_refuses():
    net = network(second_time=True)
    with pytest.raises(InputError, match="own"):
        Trajectory(net, EDM(), inner="ours")
    with pytest.raises(InputError, match="kind edm"):
        Trajectory(net, VP(), kind="eps", inner="cm")
    with pytest.raises(InputError, match="euler"):
        Trajectory(net, EDM(), outer="eulr")


def test_the_training_grid():
    grid = training_grid(EDM(), 40)
    i = np.arange(40) / 39
    assert np.allclose(grid, (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rtol=1e-12)
    assert (grid[0], grid[-1]) == (80.0, 0.002)
    vp = training_grid(VP(), 18)
    levels = VP().sigma(vp) / VP().alpha(vp)
    assert np.allclose(np.diff(levels ** (1 / 7), 2), 0, atol=1e-9)
    with pytest.raises(InputError, match="keeps no signal"):
        training_grid(Flow(t_max=1.0), 18)
    with pytest.raises(InputError, match="use fewer"):
        training_grid(Discrete(betas="linear", T=50), 40)


def test_the_run_of_two_jumps():
    gamma, times = two_step(40, 36, 20)
    grid = training_grid(EDM(), 40)
    table = Jumps(gamma=gamma).coefficients(EDM(), np.array(times))
    assert np.allclose(table["goal"], [grid[36], 0.002])
    assert np.allclose(table["std"], [math.sqrt(grid[20] ** 2 - grid[36] ** 2), 0.0])
    exact = GaussianMap(EDM(), torch.zeros(1, dtype=torch.float64), 0.25)
    noise = Noise(0).at(range(5), (1,), dtype=torch.float64)
    x = exact.jump(80 * noise.normal(), 80.0, grid[36])
    x = exact.jump(x + math.sqrt(grid[20] ** 2 - grid[36] ** 2) * noise.normal(1), grid[20], 0.002)
    assert torch.allclose(Jumps(gamma=gamma, steps=2)(exact, noise, times=times).x, x, atol=1e-9)
    assert two_step(40, 20, 20)[0] == 0.0
    assert two_step(40, 39, 20)[0] == 1.0
    with pytest.raises(InputError, match="second <= first"):
        two_step(40, 20, 36)


def test_a_stored_student_is_sampled_by_heun_and_has_a_likelihood(tmp_path):
    teacher = load("digits")
    made = trajectory_student(teacher)
    assert made.shape == (1, 8, 8)
    path = tmp_path / "student.safetensors"
    save_artefact(path, made)
    again, header = load_artefact(path)
    assert header["name"] == "trajectory"
    cond = Cond(labels=torch.tensor([3, 4]))
    noise = Noise(0).at([0, 1], (1, 8, 8))
    assert torch.equal(Heun(steps=3)(again.given(cond), noise).x, Heun(steps=3)(made.eval().given(cond), noise).x)
    found = likelihood(str(path), "digits", tmp_path / "out", count=2, repeats=1, rtol=0.1, quiet=True)
    assert math.isfinite(found["bits_per_dim"])


def test_a_classifier_keeps_the_likeliest_of_each_class():
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 2
    labels = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(1))  # none of the last class
    kept = keep_likely(logits, labels, 0.3)
    p = logits.softmax(1)[torch.arange(200), labels]
    expected = []
    for label in range(4):
        rows = (labels == label).nonzero()[:, 0].tolist()
        rows.sort(key=lambda row: -float(p[row]))
        expected += rows[: math.ceil(0.7 * len(rows))]
    assert kept.tolist() == sorted(expected)
    assert keep_likely(logits, labels, 0.0).tolist() == list(range(200))
    assert len(keep_likely(logits[:10], torch.zeros(10).long(), 0.9)) == 1
    with pytest.raises(InputError, match="rate"):
        keep_likely(logits, labels, 1.0)
    with pytest.raises(InputError, match="one for each"):
        keep_likely(logits, labels[:5], 0.5)
