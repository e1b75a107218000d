"""f-distill: the divergences, the ratio and its two normalisations, the method against closed forms and DMD2."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, Flow
from scoreline.fewstep.dmd2 import DMD2
from scoreline.fewstep.f_distill import (
    DIVERGENCES,
    FDistill,
    bin_index,
    density_ratio,
    divergence_direction,
    f_of,
    h_of,
    normalised_ratio,
    normalised_weight,
    updated_bins,
)
from scoreline.fewstep.matching import Turn
from scoreline.fewstep.mean_map import mean_map
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.nn.discriminator import TapDiscriminator
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.nn.unet_presets import unet_preset
from scoreline.train import fit

RATIOS = torch.logspace(-3, 3, 61, dtype=torch.float64)


def batch(count: int, shape: tuple[int, ...] = (1, 4, 4), classes: int | None = None, seed: int = 0) -> Batch:
    """Real images of noise, with draws of their own."""
    draws = Noise(seed).at(range(count), shape)
    label = None if classes is None else torch.arange(count) % classes
    return Batch(draws.normal(step=9).clamp(-1, 1), label, torch.arange(count), draws=draws)


def small(classes: int | None = None, seed: int = 0) -> Preconditioned:
    """A U-Net of 4x4 images with random weights, its last layer too."""
    torch.manual_seed(seed)
    net = UNet(
        in_shape=(1, 4, 4), base_channels=8, channel_mult=(1, 2), num_blocks=1, attention=(), num_classes=classes
    )
    nn.init.normal_(net.output.weight, std=0.1)
    return Preconditioned(net, EDM(), sigma_data=0.75)


class Says(nn.Module):
    """A discriminator of fixed logits: those of `of(x, t)`."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.of(x, t)


class Known(Gaussian):
    """A closed form that counts as a critic, which has something to train."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__(EDM(), torch.full((2,), mean), std**2)
        self.unused = nn.Parameter(torch.zeros(1))


# Formulas


@pytest.mark.check(system=21, number=1)
@pytest.mark.parametrize(
    "divergence, bare, exact",
    [("rkl", 1, 1), ("sf", 0.5, 0.5), ("js", 0.5, 0.5), ("kl", 1, 1), ("jf", 2, 2), ("neyman", 1, 2), ("sh", 1, 0.25)],
)
def test_h_at_one(divergence: str, bare: float, exact: float) -> None:
    one = torch.ones(1)
    assert float(h_of(one, divergence)) == bare
    assert float(h_of(one, divergence, constant=True)) == exact


@pytest.mark.check(system=21, number=2)
def test_softened_pairs_add_up() -> None:
    torch.testing.assert_close(h_of(RATIOS, "js") + h_of(RATIOS, "sf"), torch.ones_like(RATIOS))
    torch.testing.assert_close(h_of(RATIOS, "kl") + h_of(RATIOS, "rkl"), h_of(RATIOS, "jf"))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_h_is_r_squared_times_the_second_derivative_of_f(divergence: str) -> None:
    r = RATIOS.clone().requires_grad_(True)
    (first,) = torch.autograd.grad(f_of(r, divergence).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(h_of(RATIOS, divergence, constant=True), RATIOS**2 * second)
    assert float(f_of(torch.ones(1), divergence)) == 0
    # Without its constant h keeps its shape.
    factor = h_of(RATIOS, divergence) / h_of(RATIOS, divergence, constant=True)
    torch.testing.assert_close(factor, factor[:1].expand_as(factor))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_direction_is_the_gradient_of_the_divergence(divergence: str) -> None:
    """Of D_f(N(0.5, 1.2) || N(m, s)), by quadrature, in m and in s, where dx/dm = 1 and dx/ds = z."""
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    m, s = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (-0.2, 1.0))
    p, q = torch.distributions.Normal(0.5, 1.2), torch.distributions.Normal(m, s)
    r = (p.log_prob(x) - q.log_prob(x)).exp()
    whole = torch.trapezoid(q.log_prob(x).exp() * f_of(r, divergence), x)
    expected = torch.autograd.grad(whole, [m, s])
    scores = -(x - 0.5) / 1.2**2, -(x + 0.2)
    weight = (q.log_prob(x).exp() * divergence_direction(r, *scores, divergence)).detach()
    for found, wanted in zip((weight, weight * (x + 0.2)), expected):
        torch.testing.assert_close(torch.trapezoid(found, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.check(system=21, number=4)
def test_the_weight_has_mean_one_and_no_scale() -> None:
    h = torch.rand(64, generator=torch.Generator().manual_seed(0)) * 20
    weight = normalised_weight(h)
    assert float(weight.mean()) == pytest.approx(1, abs=2e-6)
    torch.testing.assert_close(normalised_weight(7 * h), weight, rtol=2e-6, atol=0)
    torch.testing.assert_close(weight, h / (h.mean() + 1e-6))


@pytest.mark.check(system=21, number=5)
def test_bounds_of_h_and_of_the_ratio() -> None:
    for divergence in ("js", "sf"):
        assert float(h_of(RATIOS, divergence).max()) <= 1
    logits = torch.linspace(-2000, 2000, 101)
    found = h_of(density_ratio(logits), "kl")
    assert float(found.min()) == pytest.approx(0.1)
    assert float(found.max()) == 20


@pytest.mark.check(system=21, number=6)
def test_gaussians_of_equal_variance() -> None:
    """The score difference is (a-b)/s^2 everywhere, and E_q[r] = 1, so forward and reverse KL have one gradient."""
    a, b, s = 0.7, -0.4, 0.9
    x = b + s * torch.linspace(-8, 8, 4001, dtype=torch.float64)
    p, q = (Gaussian(EDM(), torch.tensor([m], dtype=torch.float64), s**2 - 0.25) for m in (a, b))
    real, fake = (model.score(x[:, None], 0.5)[:, 0] for model in (p, q))
    torch.testing.assert_close(real - fake, torch.full_like(x, (a - b) / s**2))
    r = (((a - b) * x - (a**2 - b**2) / 2) / s**2).exp()
    log = [torch.distributions.Normal(torch.tensor(m, dtype=torch.float64), s).log_prob(x) for m in (a, b)]
    torch.testing.assert_close(r, (log[0] - log[1]).exp())
    for divergence in ("kl", "rkl"):
        mean = torch.trapezoid(log[1].exp() * divergence_direction(r, real, fake, divergence), x)
        assert float(mean) == pytest.approx(-(a - b) / s**2, rel=1e-6)


@pytest.mark.check(system=21, number=7)
def test_with_the_exact_ratio_the_means_of_the_bins_come_to_one() -> None:
    """Teacher N(0.5, 1), student N(0, 1), noised to sigma = 0 to 5 in ten bins."""
    draw, means = torch.Generator().manual_seed(0), torch.full((10,), 3.0)
    for _ in range(40):
        t = 5 * torch.rand(4000, generator=draw)
        v = 1 + t**2
        x = v.sqrt() * torch.randn(4000, generator=draw)
        r = ((0.5 * x - 0.125) / v).exp()
        means = updated_bins(means, r, bin_index(t, 0, 5), 0.8)
    torch.testing.assert_close(means, torch.ones(10), atol=0.03, rtol=0)


def test_the_ratio_is_of_mean_logits_in_full_precision() -> None:
    logits = torch.tensor([[1.0, 3.0], [-40.0, 40.0], [math.log(9), 0]], requires_grad=True)
    found = density_ratio(logits)
    torch.testing.assert_close(found, torch.tensor([math.exp(2), 1.0, 3.0]))
    assert not found.requires_grad
    half = density_ratio(torch.full((2, 3), 60.0, dtype=torch.float16), clip=(0.1, 1e6))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, torch.full((2,), math.exp(10)))


def test_bins() -> None:
    t = torch.tensor([0.0, 0.1999, 0.2, 0.95, 1.0])
    index = bin_index(t, 0, 1, 5)
    assert index.tolist() == [0, 0, 1, 4, 4]
    assert bin_index(torch.tensor([1.9, 2.0, 2.55, 3.1]), 2, 3, 5).tolist() == [0, 0, 2, 4]
    r = torch.tensor([2.0, 4.0, 8.0, 1.0, 3.0])
    means = updated_bins(torch.full((5,), 2.0), r, index, 0.25)
    assert means.tolist() == [0.5 + 0.75 * 3, 0.5 + 0.75 * 8, 2, 2, 0.5 + 0.75 * 2]
    assert updated_bins(torch.ones(5), r, index).tolist() == [3, 8, 1, 1, 2]
    torch.testing.assert_close(normalised_ratio(r, means, index), r / (means[[0, 0, 1, 4, 4]] + 1e-6))


def test_means_are_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    r = torch.tensor([1.0, 2.0, 6.0, 3.0, 5.0])
    index = torch.tensor([0, 1, 1, 0, 2])
    whole = updated_bins(torch.ones(3), r, index), normalised_weight(r)
    mine, other = slice(0, 2), slice(2, 5)

    def summed(tensor: Tensor) -> None:
        tensor += theirs

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", summed)
    theirs = torch.tensor([[3.0, 6.0, 5.0], [1.0, 1.0, 1.0]])  # sums and counts of the other's bins
    torch.testing.assert_close(updated_bins(torch.ones(3), r[mine], index[mine]), whole[0])
    theirs = torch.tensor([float(r[other].sum()), 3.0])
    torch.testing.assert_close(normalised_weight(r[mine]), whole[1][mine])


@pytest.mark.parametrize("function", [f_of, h_of])
def test_unknown_divergences_are_refused(function: Any) -> None:
    with pytest.raises(InputError, match="did you mean 'neyman'"):
        function(torch.ones(1), "neymann")


# The method


@pytest.mark.check(system=21, number=3)
def test_without_an_informed_discriminator_every_divergence_is_dmd2() -> None:
    data, teacher = batch(6), small()
    critic = small(seed=1)

    def gradient(cls: Any, **settings: Any) -> Tensor:
        student = mean_map(teacher)
        method = cls(student, teacher, critic, **settings)
        method.student_loss(data, method.prepare(data, 0), 0)["loss"].backward()
        return torch.cat([p.grad.flatten() for p in student.net.parameters()])  # type: ignore[union-attr]

    expected = gradient(DMD2, gan_weight=0.0)
    assert float(expected.norm()) > 1e-3
    for divergence in DIVERGENCES:
        found = gradient(FDistill, divergence=divergence, discriminator=Says(lambda x, t: 0 * x.flatten(1)[:, :2]))
        assert float((found - expected).norm() / expected.norm()) < 3e-6


@pytest.mark.parametrize("divergence", ["js", "kl", "rkl", "neyman"])
def test_the_gradient_between_gaussians_with_an_exact_discriminator(divergence: str) -> None:
    """Its scale and sign, entry by entry: h (D_f - D_r)/mean|x - D_r|, h of p/q in its bin over h's mean."""
    p, q = Gaussian(EDM(), torch.full((2,), 0.6), 0.25), Known(-0.3, 0.8)
    student = mean_map(None, Preconditioned(MLP(in_shape=(2,), width=8, depth=1), EDM()))

    def log_ratio(x: Tensor, t: Tensor) -> Tensor:
        total = torch.zeros(len(x), 1)
        for sign, m, v in ((1, 0.6, 0.25), (-1, -0.3, 0.64)):
            w = (v + t.float() ** 2)[:, None]
            total = total + sign * (-((x - m) ** 2) / (2 * w) - w.log() / 2).sum(1, keepdim=True)
        return total

    method = FDistill(student, p, q, divergence=divergence, discriminator=Says(log_ratio), bins=3, bin_rate=0.5)
    draws = Noise(3).at(range(50), (2,))
    x = (-0.3 + 0.8 * draws.normal(step=5)).requires_grad_(True)
    m = method.match(x, draws, None, None)
    method.term(m).backward()

    r = log_ratio(m.x_t, m.t).detach()[:, 0].clamp(-10, 10).exp().clamp(0.1, 20)
    width = (80 - 0.002) / 3
    for b in range(3):
        inside = (m.t >= 0.002 + b * width) & (m.t < 0.002 + (b + 1) * width)
        if inside.any():
            r[inside] = r[inside] / (0.5 + 0.5 * r[inside].mean() + 1e-6)
    h = {"js": r / (1 + r), "kl": r, "rkl": torch.ones(50), "neyman": 1 / r}[divergence]
    real, fake = p(m.x_t, m.t).mean, q(m.x_t, m.t).mean
    spread = (m.x - real).abs().mean(1)
    expected = (h / h.mean() / spread)[:, None] * (fake - real)
    torch.testing.assert_close(x.grad * x.numel(), expected.detach(), rtol=2e-4, atol=1e-5)  # type: ignore[operator]
    # Descending goes towards the teacher's mean.
    assert float(x.grad.sum()) < 0  # type: ignore[union-attr]


@pytest.mark.check(system=21, number=8)
def test_the_weight_carries_no_gradient() -> None:
    data, teacher = batch(6), small()
    method = FDistill(mean_map(teacher), teacher, small(seed=1), taps=["bottleneck", "decoder"])
    assert isinstance(method.discriminator, TapDiscriminator)
    heads = list(method.discriminator.heads.parameters())
    m = method.match(data.image.requires_grad_(True), data.draws, None, None)  # type: ignore[arg-type]
    assert m.logits.shape == (6, 2)
    assert not m.weight.requires_grad
    assert not m.real.requires_grad
    assert all(g is None for g in torch.autograd.grad(method.term(m), heads, allow_unused=True, retain_graph=True))
    (reached,) = torch.autograd.grad(m.logits.sum(), m.x)
    assert float(reached.abs().sum()) > 0


@pytest.mark.check(system=21, number=9)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_that_is_the_teacher_stays(divergence: str) -> None:
    """Exact critic, and a discriminator that is wrong in any way."""
    p, q = Gaussian(EDM(), torch.full((2,), 0.6), 0.25), Known(0.6, 0.5)
    student = mean_map(None, Preconditioned(MLP(in_shape=(2,), width=8, depth=1), EDM()))
    method = FDistill(student, p, q, divergence=divergence, discriminator=Says(lambda x, t: x[:, :1] - t[:, None]))
    draws = Noise(3).at(range(20), (2,))
    m = method.match(draws.normal(step=5).requires_grad_(True), draws, None, None)
    assert float(m.weight.std()) > 0 or divergence == "rkl"
    (gradient,) = torch.autograd.grad(method.term(m), m.x)
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("heads_on", ["teacher", "critic"])
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_one_evaluation_gives_denoised_images_and_logits(heads_on: str, guidance: float | None) -> None:
    data, teacher = batch(4, classes=3), small(classes=3)
    method = FDistill(
        mean_map(teacher), teacher, small(classes=3, seed=1), heads_on=heads_on, guidance=guidance, taps=["middle"]
    )
    asked: list[str] = []
    nets: list[tuple[str, Any]] = [("teacher", teacher.net), ("critic", method.critic.net)]
    for name, net in nets:
        net.input.register_forward_pre_hook(lambda *_, name=name: asked.append(name))
    x = data.image.requires_grad_(True)
    cond = Cond(labels=data.label)
    m = method.match(x, data.draws, cond, cond)  # type: ignore[arg-type]
    assert sorted(asked) == ["critic", "teacher"]
    torch.testing.assert_close(m.logits, method.discriminator(m.x_t, m.t, cond))  # type: ignore[misc]
    torch.testing.assert_close(m.real, method.teacher(m.x_t, m.t, cond).mean.detach())
    torch.testing.assert_close(m.fake, method.critic(m.x_t, m.t, cond).mean.detach())
    if guidance:
        plain, none = (teacher(m.x_t, m.t, c).mean for c in (cond, Cond(labels=torch.full((4,), 3))))
        torch.testing.assert_close(m.real, (plain + 2 * (plain - none)).detach(), rtol=1e-3, atol=1e-4)


def test_a_tapped_discriminator_of_ones_own_has_its_own_features() -> None:
    data, teacher = batch(4), small()
    judge = TapDiscriminator(small(seed=2), trained="all")
    m = FDistill(mean_map(teacher), teacher, discriminator=judge).match(data.image, data.draws, None, None)  # type: ignore[arg-type]
    torch.testing.assert_close(m.logits, judge(m.x_t, m.t))


def test_the_loss_of_the_student_adds_the_adversary_at_the_same_noise() -> None:
    data, teacher = batch(6), small()
    method = FDistill(mean_map(teacher), teacher, small(seed=1), gan_weight=0.3, matching_weight=2.0)
    told = method.student_loss(data, method.prepare(data, 0), 0)
    turn = method.prepare(data, 0)
    m = method.match(method.student.answer(turn.x, turn.level, None), data.draws, None, None)  # type: ignore[arg-type]
    fooled = nn.functional.softplus(-m.logits).mean()
    torch.testing.assert_close(told["loss"], 2 * method.term(m) + 0.3 * fooled)
    torch.testing.assert_close(told["fooled"], fooled.detach())
    seen = [float(value) for value in (m.h.min(), m.h.mean(), m.h.max())]
    assert [float(told[f"h_{name}"]) for name in ("min", "mean", "max")] == pytest.approx(seen)
    assert float(told["ratio_max"]) == pytest.approx(float(density_ratio(m.logits).max()))
    torch.testing.assert_close(m.h, m.ratio / (1 + m.ratio))


def test_turns_levels_and_clips() -> None:
    teacher = small()
    method = FDistill(mean_map(teacher), teacher, ratio=3)
    assert [[u.name for u in method.updates if u.due(step)] for step in range(4)] == [
        ["student"], ["critic"], ["critic"], ["student"],
    ]  # fmt: skip
    assert [u.clip for u in method.updates] == [10.0, None]
    draws = Noise(0).at(range(4000), (1,))
    for levels in (method.level(draws, 2), method.critic_level(draws, 6)):
        assert method.table[20] <= levels.min() < method.table[40]
        assert method.table[960] < levels.max() <= method.table[980]
    paper = FDistill(mean_map(teacher), teacher, uniform=(1.0, 3.0), critic_rests=False)
    levels = paper.level(draws, 2)
    assert 1 <= float(levels.min()) < 1.01
    assert 2.99 < float(levels.max()) < 3
    assert float(levels.mean()) == pytest.approx(2, abs=0.05)
    assert paper.updates[1].due(0)


def test_the_means_of_the_bins_are_kept_and_saved() -> None:
    data, teacher = batch(6), small()
    # At first every ratio is clipped to 20, of whose mean half is taken.
    method = FDistill(
        mean_map(teacher), teacher, discriminator=Says(lambda x, t: 5 + 0 * x.flatten(1)[:, :1]), bin_rate=0.5, bins=1
    )
    method.student_loss(data, method.prepare(data, 0), 0)
    assert method.bin_means.tolist() == [10.5]
    assert method.state_dict()["bin_means"].tolist() == [10.5]
    method.student_loss(data, method.prepare(data, 0), 0)
    assert method.bin_means.tolist() == [15.25]


@pytest.mark.parametrize(
    "settings, thing",
    [
        ({"divergence": "jsd"}, "divergence"), ({"gan_weight": 0.0}, "gan_weight"), ({"bins": 0}, "bins"),
        ({"bin_rate": 1.0}, "bins"), ({"clip_ratio": (0, 20)}, "clip_ratio"), ({"clip_ratio": (2, 20)}, "clip_ratio"),
        ({"uniform": (0.5, 90)}, "uniform"), ({"ratio": 1}, "ratio"),
    ],
    ids=["name", "gan", "bins", "rate", "zero", "above-one", "levels", "ratio"],
)  # fmt: skip
def test_wrong_settings_are_refused(settings: dict[str, Any], thing: str) -> None:
    teacher = small()
    with pytest.raises(InputError, match=thing):
        FDistill(mean_map(teacher), teacher, **settings)


def test_a_short_training_on_a_flow_changes_student_critic_and_heads() -> None:
    torch.manual_seed(0)
    net = UNet(in_shape=(1, 4, 4), base_channels=8, channel_mult=(1, 2), num_blocks=1, attention=())
    teacher = Preconditioned(net, Flow(), kind="flow")
    method = FDistill(mean_map(teacher), teacher, ratio=2, uniform=(0.001, 0.999))
    assert isinstance(method.discriminator, TapDiscriminator)
    student, critic = cast(Any, method.student.net), cast(Any, method.critic.net)
    watched = [student.output.weight, critic.output.weight, *method.discriminator.heads.parameters()]
    before, own = [p.clone() for p in watched], [p.clone() for p in net.parameters()]
    trained = fit(method, batch(8).image, steps=3, batch_size=4)
    assert trained.counts == {"student": 2, "critic": 1}
    assert not any(torch.equal(a, b) for a, b in zip(before, watched))
    assert all(torch.equal(a, b) for a, b in zip(own, net.parameters()))
    assert trained.result().generate(range(2), Noise(0)).shape == (2, 1, 4, 4)


def test_the_cifar10_preset_is_built_and_takes_a_step() -> None:
    torch.manual_seed(0)
    net = UNet(**unet_preset("edm-ddpmpp-cifar10", base_channels=16, num_classes=10))  # of 128 channels
    taught = Preconditioned(net, EDM())
    (stage,) = read_recipe("f-distill", preset="cifar10", teacher="its file").stages
    method = make_method(stage, make_student(stage, taught, {}), taught)
    assert isinstance(method, FDistill)
    assert isinstance(method.discriminator, TapDiscriminator)
    assert [shape[-1] for shape in method.discriminator.trunk.shapes] == [32, 16, 8]
    assert (method.divergence, method.bin_rate, method.updates[0].every) == ("kl", 0.0, 5)
    draws = Noise(0).at(range(2), (3, 32, 32))
    data = Batch(draws.normal(), torch.tensor([1, 7]), torch.arange(2), draws=draws)
    turn: Turn = method.prepare(data, 0)
    method.student_loss(data, turn, 0)["loss"].backward()
    method.critic_loss(data, turn, 0)["loss"].backward()
    for part in (method.student.net, method.critic.net, *method.discriminator.heads):
        assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in part.parameters())
