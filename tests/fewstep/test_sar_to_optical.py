"""Adversarial consistency distillation: grid, exact maps of a source, losses, what each step moves, what is called."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.data.paired import load_paired
from scoreline.diffusion.denoising import Denoising
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, Discrete
from scoreline.fewstep.adversarial import discriminator_loss, generator_loss
from scoreline.fewstep.distances import elementwise_huber
from scoreline.fewstep.maps import LatentConsistency, latent_scalings
from scoreline.fewstep.sar_to_optical import AdversarialConsistency, ddim_pairs
from scoreline.fewstep.teachers import ema_update
from scoreline.nn.mlp import MLP
from scoreline.samplers.jumps import Jumps
from scoreline.train import fit

SHAPE = (1, 8, 8)
TABLE = Discrete(betas="quadratic")


class Known(nn.Module):
    """The exact noise estimate where y is a function of the source, y = source/2; it remembers what it was told."""

    in_shape, out_channels, num_classes, accepts = SHAPE, 1, None, frozenset({"image"})

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.seen: list[torch.Tensor] = []

    def trace(self, x, t, cond=None, plan=None):
        self.seen.append(cond.image.detach().clone())
        t = t.double()
        alpha, sigma = TABLE.alpha(t).view(-1, 1, 1, 1), TABLE.sigma(t).view(-1, 1, 1, 1)
        return ((x - alpha * self.factor * cond.image) / sigma).to(x.dtype), {}

    def null(self, cond):
        return cond


def exact(dtype: torch.dtype = torch.float64) -> tuple[LatentConsistency, Preconditioned]:
    net = Known().to(dtype)
    return LatentConsistency(net, TABLE, points=50), Preconditioned(net, TABLE, kind="eps")


def batch_of(count: int = 64, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    source = torch.rand(count, *SHAPE, generator=g, dtype=torch.float64) * 2 - 1
    draws = Noise(seed).at(range(count), SHAPE, dtype=torch.float64)
    return Batch(source / 2, None, torch.arange(count), extras={"source": source}, draws=draws)


def learned(**settings):
    torch.manual_seed(0)
    net = MLP(in_shape=SHAPE, width=24, depth=2, image_channels=1)
    teacher = Preconditioned(net, TABLE, kind="eps")
    return AdversarialConsistency(AdversarialConsistency.student_of(teacher), teacher, lr=1e-3, **settings)


@pytest.mark.check(system=11, number=1)
def test_the_grid_of_the_teacher():
    n, m = ddim_pairs(TABLE)
    assert len(n) == 50
    assert n[0] == 19
    assert n[-1] == 999
    assert (np.diff(n) == 20).all()
    assert m[0] == 0
    assert (m[1:] == n[:-1]).all()
    n, m = ddim_pairs(EDM(), 5)
    assert (n > m).all()
    assert n[-1] == 80
    assert m[0] == 0.002


@pytest.mark.check(system=11, number=2)
def test_the_boundary():
    student, _ = exact()
    assert latent_scalings(0.0) == (1.0, 0.0)
    c_skip, c_out = latent_scalings(19.0)
    assert c_skip == pytest.approx(0.25 / (190**2 + 0.25), rel=1e-12)
    assert c_out == pytest.approx(190 / math.sqrt(190**2 + 0.25), rel=1e-12)
    x, s = torch.randn(2, *SHAPE, dtype=torch.float64), torch.zeros(2, *SHAPE, dtype=torch.float64)
    assert torch.equal(student.jump(x, 0.0, 0.0, Cond(image=s)), x)
    # With y = 0 the answer at 19 is c_skip x alone.
    assert torch.allclose(student.jump(x, 19.0, 0.0, Cond(image=s)), c_skip * x, rtol=1e-6, atol=1e-12)


@pytest.mark.check(system=11, number=3)
def test_an_exact_map_has_no_loss():
    student, teacher = exact()
    method = AdversarialConsistency(student, teacher, discriminator=None)
    batch = batch_of()
    shared = method.prepare(batch, 0)
    assert set(shared.n.tolist()) <= set(range(19, 1000, 20))
    assert len(set(shared.n.tolist())) > 20
    pred = student.jump(shared.x_n, shared.n, 0.0, shared.cond)
    target = student.jump(shared.x_m, shared.m, 0.0, shared.cond)
    inside = shared.m > 0
    assert (pred - batch.image).abs().max() < 1e-4
    assert (target - batch.image)[inside].abs().max() < 1e-4
    assert elementwise_huber(pred, target)[inside].max() < 1e-6
    # The teacher's step keeps the noise: y_m = alpha_m y + sigma_m eps with the eps of y_n.
    noise = batch.draws.normal()
    assert torch.allclose(shared.x_m, TABLE.marginal(batch.image, shared.m, noise), atol=1e-8)
    assert torch.allclose(shared.x_n, TABLE.marginal(batch.image, shared.n, noise), atol=1e-8)
    loss = method.loss(batch, shared, 0)["loss"].detach()
    assert float(loss) == pytest.approx(float(elementwise_huber(pred, target).detach().mean()), abs=1e-12)


@pytest.mark.check(system=11, number=4)
def test_the_distance():
    a = torch.linspace(-3, 3, 61, dtype=torch.float64).view(61, 1).requires_grad_()
    d = elementwise_huber(a, torch.zeros_like(a))
    assert float(elementwise_huber(a.detach()[:1], a.detach()[:1])) == 0
    (slope,) = torch.autograd.grad(d.sum(), a)
    assert slope.abs().max() <= 1
    assert torch.allclose(d, (a.squeeze() ** 2 + 1e-6).sqrt() - 1e-3, atol=1e-12)


@pytest.mark.check(system=11, number=5)
def test_the_average():
    target, source = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        target.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        source.weight.copy_(torch.tensor([[0.0, 0.0, 10.0]]))
    ema_update(target, source, 0.95)
    assert torch.allclose(target.weight, torch.tensor([[0.95, 1.9, 3.35]]))
    method = learned()
    first = next(method.target.parameters()).clone()
    with torch.no_grad():
        next(method.student.parameters()).add_(1.0)
    method.after_update(0)
    assert torch.allclose(next(method.target.parameters()), first + 0.05, atol=1e-6)


class Constant(nn.Module):
    """A discriminator that says `value`, and remembers what it was shown."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.shown: list[tuple] = []

    def forward(self, x, t, y, s, cond=None):
        self.shown.append((x, t, y, s, cond))
        return self.value.expand(len(x), 1) + 0 * y.flatten(1).sum(1, keepdim=True)


@pytest.mark.check(system=11, number=6)
def test_adversarial_losses_at_logit_zero():
    zero = torch.zeros(4, 1, dtype=torch.float64)
    assert float(generator_loss(zero, "softplus")) == pytest.approx(math.log(2), rel=1e-12)
    assert float(discriminator_loss(zero, zero, "softplus")) == pytest.approx(2 * math.log(2), rel=1e-12)
    student, teacher = exact()
    critic, batch = Constant(), batch_of()
    method = AdversarialConsistency(student, teacher, discriminator=critic, adversarial_weight=3.0)
    shared = method.prepare(batch, 0)
    parts = method.loss(batch, shared, 0)
    assert float(parts["adversarial"]) == pytest.approx(math.log(2), rel=1e-12)
    assert float(parts["loss"].detach() - parts["consistency"]) == pytest.approx(3 * math.log(2), rel=1e-9)
    assert float(method.critic_loss(batch, shared, 0).detach()) == pytest.approx(2 * math.log(2), rel=1e-12)


def test_which_states_are_judged_as_what():
    student, teacher = exact()
    batch = batch_of()
    for real in ("target", "image"):
        critic = Constant(0.7)
        method = AdversarialConsistency(student, teacher, discriminator=critic, real=real)
        shared = method.prepare(batch, 0)
        # The average has another answer than the student, so that the two can be told apart.
        with torch.no_grad():
            method.target.net.factor.fill_(0.25)
        assert float(method.loss(batch, shared, 0)["adversarial"]) == pytest.approx(math.log1p(math.exp(-0.7)))
        expected = math.log1p(math.exp(-0.7)) + math.log1p(math.exp(0.7))
        assert float(method.critic_loss(batch, shared, 0).detach()) == pytest.approx(expected)
        (x, n, pred, m, cond), (_, _, second, m2, _), (_, _, fake, _, _) = critic.shown
        assert torch.equal(x, shared.x_n)
        assert torch.equal(n, shared.n)
        assert torch.equal(m, shared.m)
        assert torch.equal(m2, shared.m)
        assert torch.equal(cond.image, batch.extras["source"])
        assert torch.equal(fake, pred.detach())
        wanted = batch.image if real == "image" else method.target.jump(shared.x_m, shared.m, 0.0, cond).detach()
        assert torch.equal(second, wanted)
        assert pred.requires_grad
        assert not second.requires_grad


@pytest.mark.check(system=11, number=7)
def test_what_each_step_moves():
    method = learned()
    data = load_paired("digits", split="test", paired="sar-like")
    parts = {"student": method.student, "critic": method.discriminator, "teacher": method.teacher}
    copies = {name: [p.clone() for p in part.parameters()] for name, part in parts.items()}
    # Gradients of each update reach its own parameters only; they were not cleared in between.
    batch = data.batch(range(8))
    batch = Batch(batch.image, None, batch.index, batch.extras, Noise(0).at(range(8), SHAPE))
    shared = method.prepare(batch, 0)
    for update, own, other in zip(method.updates, ("student", "critic"), ("critic", "student")):
        method.zero_grad(set_to_none=True)
        made = update.loss(batch, shared, 0)
        parameters = update.parameters()
        (made["loss"] if isinstance(made, dict) else made).backward(inputs=parameters)
        assert all(p.grad is None for p in parts[other].parameters())
        assert all(p.grad is None for p in method.teacher.parameters())
        assert any((p.grad is not None and (p.grad != 0).any()) for p in parts[own].parameters())
    method.zero_grad(set_to_none=True)
    fit(method, data, steps=2, batch_size=8)
    same = {
        name: all(torch.equal(a, b) for a, b in zip(copies[name], part.parameters())) for name, part in parts.items()
    }
    assert same == {"student": False, "critic": False, "teacher": True}


@pytest.mark.check(system=11, number=8)
@pytest.mark.parametrize(
    ("steps", "times"),
    [(1, [999]), (2, [999, 499]), (4, [999, 759, 499, 259]), (8, [999, 879, 759, 639, 499, 379, 259, 139])],
)
def test_levels_calls_and_draws_of_a_run(steps: int, times: list[int]):
    student, _ = exact()
    assert student.levels(steps).tolist() == times
    drawn = []

    class Counting(type(Noise(0).at([0], SHAPE))):  # type: ignore[misc]
        def normal(self, step=0, part=0, **more):
            drawn.append(step)
            return super().normal(step, part, **more)

    at = Noise(3).at([0, 1], SHAPE, dtype=torch.float64)
    noise = Counting(at.seed, at.indices, at.shape, at.device, at.dtype)
    source = torch.linspace(-1, 1, 128, dtype=torch.float64).view(2, *SHAPE)
    sample = Jumps(steps=steps)(student.given(Cond(image=source)), noise)
    assert len(student.net.seen) == steps == sample.nfe
    assert len([step for step in drawn if step > 0]) == steps - 1
    assert torch.allclose(sample.x, source / 2, atol=1e-4)


@pytest.mark.check(system=11, number=10)
def test_the_source_is_never_noised():
    student, teacher = exact()
    batch = batch_of(8)
    method = AdversarialConsistency(student, teacher, discriminator=None)
    method.loss(batch, method.prepare(batch, 0), 0)
    Jumps(steps=4)(student.given(Cond(image=batch.extras["source"])), batch.draws)
    seen = [*student.net.seen, *method.target.net.seen]
    assert len(seen) == 1 + 2 + 4
    assert all(torch.equal(s, batch.extras["source"]) for s in seen)
    denoising = Denoising(teacher, perturbation=0.1)
    teacher.net.seen.clear()
    shared = denoising.prepare(batch, 0)
    denoising.loss(batch, shared, 0)
    assert torch.equal(teacher.net.seen[0], batch.extras["source"])
    # Perturbed is what is shown, not what is aimed at.
    extra = (shared.x - TABLE.marginal(batch.image, shared.t, shared.noise)) / TABLE.sigma(shared.t).view(-1, 1, 1, 1)
    assert torch.allclose(extra, 0.1 * batch.draws.normal(0, 3), atol=1e-9)
    assert torch.equal(shared.noise, batch.draws.normal())


def test_without_an_adversary_and_with_other_forms():
    batch = load_paired("digits", split="test", paired="sar-like").batch(range(4))
    batch = Batch(batch.image, None, batch.index, batch.extras, Noise(0).at(range(4), SHAPE))
    for settings in ({"discriminator": None, "distance": "squared"}, {"adversarial": "hinge"}, {"real": "image"}):
        method = learned(**settings)
        shared = method.prepare(batch, 0)
        assert torch.isfinite(method.loss(batch, shared, 0)["loss"])
        assert len(method.updates) == (1 if settings.get("discriminator", 1) is None else 2)
    for bad in ({"adversarial": "hinges"}, {"real": "truth"}, {"discriminator": "pair"}, {"target_rate": 1.0}):
        with pytest.raises(InputError):
            learned(**bad)
    with pytest.raises(InputError, match="paired"):
        learned().prepare(Batch(batch.image, None, batch.index, {}, batch.draws), 0)
