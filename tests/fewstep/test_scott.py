"""SCott: targets by their formulas, the closed form of Gaussian data, guidance, the adversary, and what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoreline.core.artefact import save_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.evaluate.strengths import strengths_of, told_strength
from scoreline.fewstep.adversarial import discriminator_loss, generator_loss
from scoreline.fewstep.guided import GuidedConsistency, WeightGuided, sub_steps
from scoreline.fewstep.maps import latent_scalings
from scoreline.fewstep.recipe import make_method, read_recipe
from scoreline.fewstep.scott import SCott, gaussian_chain, sde_steps, variance_ratio
from scoreline.nn.adapters import is_adapted
from scoreline.nn.discriminator import TapDiscriminator
from scoreline.nn.mlp import MLP
from scoreline.nn.text import ByteTransformer, TextConditioned, told_texts
from scoreline.nn.unet import UNet
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.er_sde import ERSDE
from scoreline.samplers.generator import Sampled
from scoreline.samplers.jumps import Jumps
from scoreline.samplers.steps import posterior_step
from scoreline.train import fit

TABLE = Discrete(betas="quadratic")
ETAS = (0.0, 0.2, 0.6, 1.0)
C2 = 0.25


def teacher_of(classes: int | None = 4) -> Preconditioned:
    torch.manual_seed(0)
    net = MLP(in_shape=(3,), width=16, depth=2, num_classes=classes).double()
    return Preconditioned(net, TABLE, kind="eps")


def batch_of(count: int = 32, seed: int = 0) -> Batch:
    draws = Noise(seed).at(range(count), (3,), dtype=torch.float64)
    image = draws.normal(step=9) * 0.5
    return Batch(image, torch.arange(count) % 4, torch.arange(count), draws=draws)


def method_of(classes: int | None = 4, **settings: Any) -> SCott:
    teacher = teacher_of(classes)
    chosen = {"lr": 1e-3, "guidance": None if classes is None else (0.0, 2.0), **settings}
    return SCott(SCott.student_of(teacher), teacher, **chosen)


def reading_teacher(classes: int | None = None) -> Preconditioned:
    """A teacher that takes captions, and labels where it has classes, at 4 pixels."""
    torch.manual_seed(0)
    net = UNet(in_shape=(1, 4, 4), base_channels=8, channel_mult=(1,), num_blocks=1, attention=(4,), context_dim=8,
               num_classes=classes)  # fmt: skip
    teacher = Preconditioned(TextConditioned(net, ByteTransformer(width=8, depth=1, length=16)), EDM())
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return teacher


def captioned_batch(count: int = 8) -> Batch:
    draws = Noise(0).at(range(count), (1, 4, 4))
    extras = {"caption": tuple(("a three", "seven", "")[i % 3] for i in range(count))}
    return Batch(draws.normal(step=9), torch.arange(count) % 4, torch.arange(count), extras=extras, draws=draws)


class Judge(nn.Module):
    """A discriminator of one weight that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.seen: list[tuple[Tensor, Tensor, Cond | None]] = []

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        self.seen.append((x.detach(), t, cond))
        return self.scale * x.sum(1, keepdim=True)


def ddim(x: Tensor, eps: Tensor, t: Tensor, s: Tensor, eta: float, noise: Tensor) -> Tensor:
    """One step as the paper writes it, in abar."""
    at, as_ = (torch.tensor(TABLE.abar)[k.long()].view(-1, 1) for k in (t, s))
    x0 = (x - (1 - at).sqrt() * eps) / at.sqrt()
    sg = eta * ((1 - as_) / (1 - at)).sqrt() * (1 - at / as_).sqrt()
    return as_.sqrt() * x0 + (1 - as_ - sg**2).sqrt() * eps + sg * noise


@pytest.mark.check(system=10, number=1)
@pytest.mark.parametrize("eta, h", [(0.0, 1), (0.0, 3), (0.3, 1), (0.3, 3)])
def test_the_target_takes_h_steps_each_with_its_own_noise(eta: float, h: int) -> None:
    teacher, batch = teacher_of(None), batch_of()
    student = GuidedConsistency(SCott.student_of(teacher).net, TABLE, skip=20)
    method = SCott(student, teacher, h=h, eta=eta, guidance=None, discriminator=None)
    shared = method.prepare(batch, 0)
    want = TABLE.marginal(batch.image, shared.n, batch.draws.normal())
    assert torch.allclose(shared.z_n, want, atol=1e-12)
    assert shared.noises.shape == (h, 32, 3)
    for k in range(h):
        t, s = (torch.round(shared.n - 20 * j / h) for j in (k, k + 1))
        want = ddim(want, teacher.eps(want, t), t, s, eta, batch.draws.normal(step=k + 1))
    assert torch.allclose(shared.z_m, want.detach(), atol=1e-10)
    assert torch.equal(shared.m, shared.n - 20)
    # The same as so many runs of DDIM; without noise it is latent consistency's target.
    runs = DDIM(eta=eta)(teacher, batch.draws, x=shared.z_n, times=torch.round(
        torch.stack([shared.n - 20 * k / h for k in range(h + 1)])))  # fmt: skip
    assert torch.allclose(shared.z_m, runs.x, atol=1e-12)


@pytest.mark.parametrize("phi", ["er-sde-5", "sde"])
def test_the_target_of_er_sde(phi: str) -> None:
    method, batch = method_of(None, solver="er-sde", phi=phi, discriminator=None), batch_of()
    shared = method.prepare(batch, 0)
    times = torch.stack([shared.n - 8 * k for k in range(4)])
    run = ERSDE(phi=phi)(method.teacher, batch.draws, x=shared.z_n, times=times)
    assert torch.allclose(shared.z_m, run.x, atol=1e-12)
    other = sde_steps(method.solver, method.teacher, shared.z_n, times, shared.noises.flip(0))
    assert (other - shared.z_m).abs().max() > 1e-4


@pytest.mark.check(system=10, number=3)
def test_ddims_noise_and_the_mean_of_gaussian_data() -> None:
    t = np.arange(1.0, 1000.0)
    row = DDIM(eta=1.0).coefficients(TABLE, np.arange(999.0, -1.0, -1.0))
    small = posterior_step(TABLE, t, t - 1)[2]
    assert np.allclose(row["std"][::-1] ** 2, small, rtol=1e-9)
    abar = TABLE.abar
    assert np.allclose(small, TABLE.betas[1:] * (1 - abar[:-1]) / (1 - abar[1:]), rtol=1e-9)
    mean = torch.tensor([0.3, -0.7], dtype=torch.float64)
    model = Gaussian(TABLE, mean, C2)
    for eta in ETAS:
        for h in (1, 3, 8):
            times = torch.tensor(sub_steps(TABLE, h=h)[[-1]]).T
            x = float(TABLE.alpha(999.0)) * mean[None]
            end = sde_steps(DDIM(eta=eta), model, x, times, torch.zeros(h, 1, 2, dtype=torch.float64))
            assert torch.allclose(end, float(TABLE.alpha(975.0)) * mean[None], atol=1e-12)


@pytest.mark.check(system=10, number=4)
def test_the_variance_has_weak_order_one() -> None:
    t, s = 504.0, 480.0
    exact = float(TABLE.alpha(s) ** 2 * C2 + TABLE.sigma(s) ** 2)
    errors = np.array([
        [abs(gaussian_chain(TABLE, np.linspace(t, s, h + 1), C2, DDIM(eta=eta))[1] - exact) for h in (2, 4, 8)]
        for eta in ETAS
    ])  # fmt: skip
    slopes = np.log2(errors[:, :-1] / errors[:, 1:])
    assert np.abs(slopes - 1).max() < 0.1
    assert (np.diff(errors, axis=0) > 0).all()
    # The closed form is what samples do.
    draws = Noise(0).at(range(4000), (1,), dtype=torch.float64)
    x = draws.normal() * (TABLE.alpha(t) ** 2 * C2 + TABLE.sigma(t) ** 2) ** 0.5
    times = np.linspace(t, 24.0, 21)
    made = DDIM(eta=1.0)(Gaussian(TABLE, torch.zeros(1), C2), draws, x=x, times=times).x
    assert float(made.var()) == pytest.approx(gaussian_chain(TABLE, times, C2, DDIM(eta=1.0))[1], rel=0.05)


@pytest.mark.check(system=10, number=5)
def test_the_best_student_of_a_full_sde_is_the_posterior_mean() -> None:
    abar = TABLE.abar[-1]
    slope = np.sqrt(abar) * C2 / (abar * C2 + 1 - abar)
    for parts in (10, 42, 1000):
        gain, _ = gaussian_chain(TABLE, np.linspace(999, -1, parts + 1), C2, DDIM(eta=1.0))
        assert gain == pytest.approx(slope, rel=1e-9)
        assert gaussian_chain(TABLE, np.linspace(999, -1, parts + 1), C2, ERSDE(phi="sde"))[0] == pytest.approx(slope)
        blurred = variance_ratio(TABLE, np.linspace(999, -1, parts + 1), C2, DDIM(eta=1.0))
        assert blurred == pytest.approx(abar * C2 / (abar * C2 + 1 - abar), rel=1e-9)
    # Less noise, less blur: 1 in the limit of many steps without any.
    ratios = [variance_ratio(TABLE, np.linspace(999, -1, 1001), C2, DDIM(eta=eta)) for eta in ETAS]
    assert (np.diff(ratios) < 0).all()
    assert ratios[0] == pytest.approx(1, abs=0.02)
    # The slope is the one that squared loss finds: regression of z_m on z_n.
    draws = Noise(1).at(range(4000), (1,), dtype=torch.float64)
    z = draws.normal() * (TABLE.alpha(504.0) ** 2 * C2 + TABLE.sigma(504.0) ** 2) ** 0.5
    times = torch.tensor([[504.0], [400.0], [300.0]], dtype=torch.float64).expand(3, 4000)
    noises = torch.stack([draws.normal(step=k) for k in (1, 2)])
    end = sde_steps(DDIM(eta=0.6), Gaussian(TABLE, torch.zeros(1), C2), z, times, noises)
    fitted = float((z * end).mean() / (z * z).mean())
    assert fitted == pytest.approx(gaussian_chain(TABLE, [504.0, 400.0, 300.0], C2, DDIM(eta=0.6))[0], rel=0.02)


@pytest.mark.check(system=10, number=6)
def test_the_boundary() -> None:
    teacher = teacher_of(None)
    student = SCott.student_of(teacher)
    x = Noise(0).at(range(6), (3,), dtype=torch.float64).normal()
    assert torch.equal(student.jump(x, 0.0, 0.0), x)
    for t in (1.0, 24.0, 999.0):
        mean = teacher(x, t).mean
        apart = (student.jump(x, t, 0.0) - mean).norm(dim=1)
        assert (apart <= 0.0025 * x.norm(dim=1) + 0.00125 * mean.norm(dim=1)).all()
    assert latent_scalings(1.0)[0] == pytest.approx(0.25 / 100.25)


@pytest.mark.check(system=10, number=7)
def test_the_grid() -> None:
    grid = sub_steps(TABLE)
    assert grid[-1].tolist() == [999, 991, 983, 975]
    assert grid[:, 0].tolist() == [*range(24, 985, 24), 999]
    assert (grid[:, 0] - grid[:, -1] == 24).all()
    assert sub_steps(TABLE, skip=20)[0].tolist() == [20, 13, 7, 0]
    for schedule in (EDM(), VP()):
        grid = sub_steps(schedule, points=10)
        assert grid.shape == (10, 4)
        assert grid[-1, 0] == schedule.t_max
        assert grid[0, -1] == schedule.t_min
        assert (np.diff(grid, axis=1) < 0).all()
        assert np.array_equal(grid[1:, -1], grid[:-1, 0])
    for bad in ({"h": 0}, {"skip": 2}, {"skip": 1000}):
        with pytest.raises(InputError):
            sub_steps(TABLE, **bad)


@pytest.mark.check(system=10, number=8)
def test_the_hinge() -> None:
    zero = torch.zeros(5, 2, requires_grad=True)
    assert float(discriminator_loss(zero, zero).detach()) == 2
    assert float(generator_loss(zero).detach()) == 0
    real = torch.tensor([1.1, 3.0, 0.9], requires_grad=True)
    (slope,) = torch.autograd.grad(discriminator_loss(real, torch.zeros(3)), real)
    assert torch.allclose(slope, torch.tensor([0.0, 0.0, -1 / 3]))


@pytest.mark.check(system=10, number=9)
def test_without_noise_and_adversary_it_is_consistency_distillation() -> None:
    method, batch = method_of(None, eta=0.0, h=1, adversarial_weight=0.0), batch_of()
    assert method.discriminator is None
    assert len(method.updates) == 1
    with torch.no_grad():
        for p in method.student.net.parameters():
            p.add_(0.01)  # no longer the target
    shared = method.prepare(batch, 0)
    loss = method.loss(batch, shared, 0)["loss"]
    mine = torch.autograd.grad(loss, list(method.student.net.parameters()))
    teacher, n, m = teacher_of(None), shared.n, shared.m
    z_m = ddim(shared.z_n, teacher.eps(shared.z_n, n), n, m, 0.0, torch.zeros(()))

    def f(net: nn.Module, z: Tensor, t: Tensor) -> Tensor:
        c_skip, c_out = (c.view(-1, 1) for c in latent_scalings(t))
        return c_skip * z + c_out * Preconditioned(net, TABLE, kind="eps")(z, t).mean

    pred, target = f(method.student.net, shared.z_n, n), f(method.target.net, z_m, m).detach()
    plain = (pred - target).square().mean()
    theirs = torch.autograd.grad(plain, list(method.student.net.parameters()))
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-10)
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-12) for a, b in zip(mine, theirs))


@pytest.mark.check(system=10, number=10)
def test_no_gradient_reaches_teacher_average_or_noise() -> None:
    method, batch = method_of().double(), batch_of()
    shared = method.prepare(batch, 0)
    assert not shared.z_m.requires_grad
    assert not shared.noises.requires_grad
    method.loss(batch, shared, 0)["loss"].backward()
    assert all(p.grad is not None for p in method.student.net.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is None for p in method.target.parameters())
    assert shared.fake is not None
    assert not shared.fake.requires_grad
    assert isinstance(method.discriminator, TapDiscriminator)
    method.discriminator.zero_grad(set_to_none=True)
    for p in method.student.net.parameters():
        p.grad = None
    method.critic_loss(batch, shared, 0).backward()
    assert all(p.grad is None for p in [*method.student.net.parameters(), *method.teacher.parameters()])
    assert all(p.grad is not None for p in method.discriminator.heads.parameters())


def test_guidance_of_each_images_own() -> None:
    teacher = teacher_of()
    x, labels = batch_of(4).image, torch.arange(4)
    weight = torch.tensor([0.0, 1.0, 7.5, 3.0], dtype=torch.float64)
    eps = WeightGuided(teacher).eps(x, 500.0, Cond(labels=labels, weight=weight))
    c, u = teacher.eps(x, 500.0, Cond(labels=labels)), teacher.eps(x, 500.0, Cond(labels=torch.full((4,), 4)))
    assert torch.allclose(eps, c + weight[:, None] * (c - u), atol=1e-12)
    method, batch = method_of(guidance=(3.0, 15.0)), batch_of(64)
    shared = method.prepare(batch, 0)
    assert shared.cond is not None
    assert shared.cond.weight is not None
    assert 3 <= shared.cond.weight.min() < 4
    assert 14 < shared.cond.weight.max() <= 15
    times = torch.stack([shared.n - 8 * k for k in range(4)])
    told = Cond(labels=batch.label, weight=shared.cond.weight)
    assert torch.equal(sde_steps(method.solver, method.teacher, shared.z_n, times, shared.noises, told), shared.z_m)
    assert shared.told is not None
    assert shared.told.weight is None


def test_the_student_is_told_w_and_starts_as_the_teacher() -> None:
    teacher = teacher_of()
    student = SCott.student_of(teacher)
    x, labels = batch_of(4).image, torch.arange(4)
    assert student.takes_weight
    for w in (0.0, 9.0):
        cond = Cond(labels=labels, weight=torch.full((4,), w))
        c_skip, c_out = latent_scalings(500.0)
        want = c_skip * x + c_out * teacher(x, 500.0, Cond(labels=labels)).mean
        assert torch.allclose(student.jump(x, 500.0, 0.0, cond), want, atol=1e-10)
    nn.init.normal_(student.net.embedding.weight.weight)
    near = student.jump(x, 500.0, 0.0, Cond(labels=labels, weight=torch.full((4,), 2.0)))
    assert not torch.allclose(near, student.jump(x, 500.0, 0.0, Cond(labels=labels)))
    SCott(student, teacher, guidance=(0.0, 4.0), sampling_guidance=2.0)
    assert torch.equal(near, student.jump(x, 500.0, 0.0, Cond(labels=labels)))
    SCott(student, teacher, guidance=(0.0, 4.0))
    assert float(student.guidance) == 4


def test_the_adversary_sees_both_noised_alike_and_no_strength() -> None:
    judge = Judge()
    method, batch = method_of(discriminator=judge), batch_of()
    shared = method.prepare(batch, 0)
    out = method.loss(batch, shared, 0)
    assert float(out["loss"].detach()) == pytest.approx(float(out["consistency"] + 0.4 * out["adversarial"]))
    assert float(out["adversarial"]) == pytest.approx(-float(judge.seen[0][0].sum(1).mean()))
    method.critic_loss(batch, shared, 0)
    (fake, level, cond), (real, again, _), (fake2, *_) = judge.seen
    assert torch.equal(level, again)
    assert torch.equal(fake, fake2)
    assert set(level.tolist()) <= set(method.times[:, 0].tolist())
    assert not torch.equal(level, shared.n)
    assert cond is not None
    assert cond.weight is None
    assert torch.equal(real, TABLE.marginal(batch.image, level, batch.draws.normal(part=6)))
    assert shared.fake is not None
    pred = method.student.jump(shared.z_n, shared.n, 0.0, shared.cond)
    assert torch.allclose(fake, TABLE.marginal(pred, level, batch.draws.normal(part=5)).detach(), atol=1e-12)
    clean = method_of(discriminator=judge, renoise=False)
    judge.seen.clear()
    clean.loss(batch, clean.prepare(batch, 0), 0)
    assert (judge.seen[0][1] == 0).all()


def test_levels_of_a_run() -> None:
    student = SCott.student_of(teacher_of(None))
    assert [student.levels(k).tolist() for k in (1, 2, 4)] == [[999], [999, 504], [999, 768, 504, 264]]
    assert student.levels(42)[-1] == 24
    with pytest.raises(InputError, match="1 to 42"):
        student.levels(43)
    draws = Noise(0).at(range(3), (3,), dtype=torch.float64)
    run = Jumps(steps=2)(student, draws)
    first = student.jump(draws.normal() * float(TABLE.prior(999.0)), 999.0, 0.0)
    # Noise is put back from the level at which jumps end, the least of the table.
    ratio, std = TABLE.transition(0.0, 504.0)
    assert torch.allclose(run.x, student.jump(first * ratio + std * draws.normal(step=1), 504.0, 0.0), atol=1e-12)
    assert run.nfe == 2


@pytest.mark.parametrize("schedule", [EDM(), VP(), Discrete(T=50)], ids=["edm", "vp", "short table"])
def test_any_schedule(schedule: Any) -> None:
    teacher = Preconditioned(MLP(in_shape=(3,), width=8), schedule, kind="edm")
    for solver in ("ddim", "er-sde"):
        method = SCott(SCott.student_of(teacher), teacher, guidance=None, solver=solver, h=1)
        draws = Noise(0).at(range(8), (3,))
        batch = Batch(draws.normal(step=9), None, torch.arange(8), draws=draws)
        shared = method.prepare(batch, 0)
        loss = method.loss(batch, shared, 0)["loss"]
        assert torch.isfinite(loss)
        assert (shared.m < shared.n).all()


@pytest.mark.parametrize("settings, said", [
    ({"solver": "dddim"}, "did you mean 'ddim'"),
    ({"eta": 1.5}, "eta"),
    ({"h": 25}, "skip"),
    ({"target_rate": 1.0}, "target_rate"),
    ({"adversarial_weight": -1.0}, "adversarial_weight"),
    ({"adversarial": "hing"}, "hinge"),
    ({"discriminator": "tap"}, "taps"),
    ({"discriminator": "lora", "discriminator_rank": 0}, "rank"),
    ({"lora": {"rnak": 4}}, "did you mean 'rank'"),
    ({"lora": 4}, "rank: 64"),
    ({"lora": {"layers": ["decoder.*"]}}, "fits none"),
    ({"guidance": (3.0, 1.0)}, "low, high"),
    ({"guidance": (1.0,)}, "low, high"),
])  # fmt: skip
def test_what_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        method_of(**settings)


def test_what_does_not_fit_is_refused() -> None:
    bare, told = teacher_of(None), teacher_of()
    with pytest.raises(InputError, match="guidance: null"):
        SCott(SCott.student_of(bare), bare, guidance=(1.0, 1.0))
    with pytest.raises(InputError, match="weight_input"):
        SCott(GuidedConsistency(told.net, TABLE), told)
    with pytest.raises(InputError, match="teacher's images"):
        SCott(SCott.student_of(bare), Gaussian(TABLE, torch.zeros(2), 1.0), guidance=None)
    with pytest.raises(InputError, match="network to tap"):
        SCott(SCott.student_of(bare), Gaussian(TABLE, torch.zeros(3), 1.0), guidance=None)
    own = GuidedConsistency(told.net, EDM(), kind="eps")
    with pytest.raises(InputError, match="knows levels of Discrete alone"):
        SCott(own, told, guidance=None)
    with pytest.raises(InputError, match="schedule and kind"):
        SCott.student_of(Gaussian(TABLE, torch.zeros(3), 1.0))
    dark = Preconditioned(MLP(in_shape=(3,), width=8), Discrete(zero_terminal_snr=True), kind="v")
    with pytest.raises(InputError, match="infinite"):
        SCott(SCott.student_of(dark), dark, guidance=None, solver="er-sde")
    with pytest.raises(InputError, match="weight"):
        WeightGuided(told)(torch.zeros(1, 3), 500.0, Cond(labels=torch.zeros(1, dtype=torch.long)))


def test_the_preset_of_cifar10_makes_a_turn() -> None:
    """At 32 pixels in color, with a teacher of few channels."""
    net = UNet(in_shape=(3, 32, 32), base_channels=8, channel_mult=(1, 2), num_blocks=1, attention=(), num_classes=10)
    teacher = Preconditioned(net, EDM())
    (stage,) = read_recipe("scott", preset="cifar10", teacher="digits").stages
    method = make_method(stage, SCott.student_of(teacher), teacher)
    image = Noise(0).at(range(2), (3, 32, 32)).normal().clamp(-1, 1)
    trained = fit(method, (image, torch.arange(2)), steps=1, batch_size=2, seed=0)
    made = trained.result().generate([0], Noise(0), Cond(labels=torch.tensor([3])), steps=2)
    assert made.shape == (1, 3, 32, 32)


def test_the_strength_survives_a_file(tmp_path: Path) -> None:
    teacher = teacher_of()
    method = SCott(SCott.student_of(teacher), teacher, guidance=(0.0, 2.0), sampling_guidance=0.75)
    save_artefact(tmp_path / "student.safetensors", method.result().denoiser)
    student: Any = load(str(tmp_path / "student.safetensors"))
    assert isinstance(student, GuidedConsistency)
    assert float(student.guidance) == 0.75
    # And so does the interval of its training, beyond which a strength is refused.
    assert strengths_of(student) == {"default": 0.75, "interval": [0.0, 2.0]}
    with pytest.raises(InputError, match="from 0 to 2"):
        told_strength(student, 2.5)


def test_the_average_follows_the_student() -> None:
    method = method_of(None, target_rate=0.9)
    weight, averaged = method.student.net.input.weight, method.target.net.input.weight
    first = averaged.clone()
    with torch.no_grad():
        weight.add_(1.0)
    method.after_update(0)
    assert torch.allclose(averaged, first + 0.1)


@pytest.mark.parametrize("classes", [None, 4])
def test_a_turn_with_captions(classes: int | None, tmp_path: Path) -> None:
    teacher, batch = reading_teacher(classes), captioned_batch()
    student = SCott.student_of(teacher)
    assert student.takes_weight
    assert isinstance(student.net, TextConditioned)
    judge = Judge()
    method = SCott(student, teacher, guidance=(0.0, 2.0), lr=1e-3, discriminator=judge.float())
    shared = method.prepare(batch, 0)
    words = ["a three", "seven", None]
    ids = told_texts(teacher, [words[i % 3] for i in range(8)]).tokens
    labels = None if classes is None else batch.label
    assert shared.cond is not None
    assert ids is not None
    w = shared.cond.weight
    assert w is not None
    assert torch.equal(shared.cond.tokens, ids)
    # The teacher is guided away from the null caption (and from no class), image by image.
    given = Cond(labels=labels, tokens=ids)
    eps = WeightGuided(teacher).eps(shared.z_n, shared.n, given.replace(weight=w))
    c, u = teacher.eps(shared.z_n, shared.n, given), teacher.eps(shared.z_n, shared.n, teacher.null(given))
    assert torch.allclose(eps, c + w[:, None, None, None] * (c - u), atol=1e-4)
    if classes is None:
        assert torch.allclose(eps[2::3], c[2::3], atol=1e-5)  # without a caption there is nothing to be guided by
    times = method.times[batch.draws.integers(len(method.times), step=0, part=1)].T
    again = sde_steps(method.solver, method.teacher, shared.z_n, times, shared.noises, given.replace(weight=w))
    assert torch.equal(again, shared.z_m)
    loss = method.loss(batch, shared, 0)
    want = (student.jump(shared.z_n, shared.n, student.end, shared.cond)
            - method.target.jump(shared.z_m, shared.m, student.end, shared.cond)).square().mean()  # fmt: skip
    assert float(loss["consistency"]) == pytest.approx(float(want.detach()), rel=1e-5)
    (_, _, told), *_ = judge.seen
    assert told is not None
    assert (told.weight, told.labels is None) == (None, classes is None)
    assert torch.equal(told.tokens, ids)
    loss["loss"].backward()
    assert student.net.encoder.embedding.weight.grad.abs().max() > 0
    # What is made of a caption is saved with the encoder that reads it.
    method.updates[0].modules.zero_grad()  # type: ignore[union-attr]
    student.guidance.fill_(1.5)
    save_artefact(tmp_path / "student.safetensors", method.result().denoiser)
    read: Any = load(str(tmp_path / "student.safetensors"))
    cond = told_texts(read, ["a three", "seven"]).replace(labels=None if labels is None else labels[:2])
    made, again = (Sampled(m, Jumps(steps=2)).generate(range(2), Noise(0), cond) for m in (student, read))
    assert torch.equal(made, again)
    other = Sampled(read, Jumps(steps=2)).generate([0], Noise(0), Cond(labels=cond.labels[:1] if classes else None,
                                                                     tokens=cond.tokens[1:]))  # fmt: skip
    assert not torch.allclose(other, made[:1], atol=1e-3)


def test_a_batch_without_captions_is_refused() -> None:
    teacher, batch = reading_teacher(), captioned_batch()
    method = SCott(SCott.student_of(teacher), teacher, guidance=(0.0, 2.0))
    with pytest.raises(InputError, match="captions"):
        method.prepare(Batch(batch.image, None, batch.index, draws=batch.draws), 0)


def test_adapters_of_the_student() -> None:
    teacher, batch = reading_teacher(), captioned_batch()
    student = SCott.student_of(teacher)
    lora = {"rank": 2, "layers": ["net.*"]}
    method = SCott(student, teacher, guidance=(0.0, 2.0), lr=0.01, lora=lora, sampling_guidance=0.75)
    plain = SCott(SCott.student_of(teacher), teacher, guidance=(0.0, 2.0), lr=0.01)
    shared = method.prepare(batch, 0)
    losses = [m.loss(batch, m.prepare(batch, 0), 0)["consistency"] for m in (method, plain)]
    assert torch.allclose(*losses)  # adapters start at nothing
    small, whole = (sum(p.numel() for p in m.updates[0].parameters()) for m in (method, plain))
    assert small < whole / 2
    trained = fit(method, _Batches(batch), steps=3, batch_size=8, seed=0, ema=0.5)
    before, after = teacher.net.state_dict(), trained.method.student.net.state_dict()
    assert torch.equal(after["net.input.base"], before["net.input.weight"])
    assert after["net.input.up"].abs().max() > 0
    result = trained.result()
    assert is_adapted(trained.method.student.net)
    assert not is_adapted(result.denoiser)
    assert float(result.denoiser.guidance) == 0.75
    assert result.denoiser.net.state_dict().keys() == before.keys() | {"net.embedding.weight.weight"}
    x, n = shared.z_n, shared.n
    mine, theirs = (m.jump(x, n, 0.0, shared.cond) for m in (trained.method.student.eval(), result.denoiser))
    assert torch.allclose(mine, theirs, atol=1e-5)


class _Batches:
    """The images and captions of one batch as a data set."""

    def __init__(self, batch: Batch) -> None:
        self.whole, self.shape, self.index = batch, (1, 4, 4), batch.index.numpy()
        self.fingerprint = "f"

    def __len__(self) -> int:
        return len(self.whole)

    def batch(self, positions: np.ndarray) -> Batch:
        texts = tuple(self.whole.extras["caption"][int(i)] for i in positions)
        rows = torch.from_numpy(positions)
        return Batch(self.whole.image[rows], None, rows, extras={"caption": texts})


def test_a_discriminator_with_adapters_in_its_decoder() -> None:
    teacher, batch = reading_teacher(), captioned_batch()
    before = {name: p.clone() for name, p in teacher.state_dict().items()}
    method = SCott(
        SCott.student_of(teacher), teacher, guidance=(0.0, 2.0), discriminator="lora", discriminator_rank=2, lr=0.01,
        discriminator_lr=0.01,
    )  # fmt: skip
    names = {name for name, p in method.discriminator.named_parameters() if p.requires_grad}  # type: ignore[union-attr]
    assert {name.rpartition(".")[2] for name in names if ".trunk." in f".{name}"} == {"up", "down"}
    assert all(".decoder." in name for name in names if ".trunk." in f".{name}")
    assert any(name.startswith("heads.") for name in names)
    assert method.frozen() == (method.teacher,)
    judge: Any = fit(method, _Batches(batch), steps=2, batch_size=8, seed=0).method.discriminator
    moved = {name for name, p in judge.named_parameters() if name.endswith(".up") and p.abs().max() > 0}
    assert moved == {name for name in names if name.endswith(".up")}
    assert all(torch.equal(p, before[name]) for name, p in teacher.state_dict().items())
