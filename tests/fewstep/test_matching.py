"""The turn of student, teacher and critic: who sees what, whom gradients reach, and that a stopped training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.cost import evaluations
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, Discrete
from scoreline.fewstep.distill import networks
from scoreline.fewstep.dmd2 import DMD2
from scoreline.fewstep.matching import Matching, critic_of, index_range, matching_direction
from scoreline.fewstep.mean_map import MeanMap, mean_map
from scoreline.nn.mlp import MLP
from scoreline.train import fit, run
from scoreline.train.checkpoint import state
from scoreline.train.loop import Loop

SHAPE = (1, 8, 8)
RATE: dict[str, Any] = {"lr": 1e-3, "critic_lr": 1e-3}


class Point(nn.Module):
    """The network that knows N(m, s^2) exactly: F = m sigma/(s sqrt(sigma^2 + s^2)), so that D = E[x_0|x_t]."""

    num_classes = None
    taps = ()

    def __init__(self, m: float, s: float, size: int = 3) -> None:
        super().__init__()
        self.m, self.s, self.in_shape = nn.Parameter(torch.full((size,), m, dtype=torch.float64)), s, (size,)

    def trace(self, x: Tensor, t: Tensor, cond: Any, plan: Any) -> tuple[Tensor, dict[str, Tensor]]:
        sigma = (4 * t.double()).exp().unsqueeze(-1)
        return (self.m * sigma / (self.s * (sigma**2 + self.s**2).sqrt())).expand_as(x), {}


def point(m: float, s: float = 0.5) -> Preconditioned:
    return Preconditioned(Point(m, s), EDM(), sigma_data=s)


def network(name: str = "mlp", num_classes: int | None = 4, **more: Any) -> nn.Module:
    sizes: dict[str, dict[str, Any]] = {
        "mlp": {"width": 16, "depth": 2},
        "unet": {"base_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attention": ()},
        "dit": {"width": 16, "depth": 2, "heads": 2, "patch": 4},
    }
    torch.manual_seed(1)
    net: nn.Module = lookup("network", name)(in_shape=SHAPE, num_classes=num_classes, **sizes[name], **more)
    with torch.no_grad():  # layers that start at zero pass no gradient on
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net


def teacher(name: str = "mlp", num_classes: int | None = 4, **more: Any) -> Preconditioned:
    return Preconditioned(network(name, num_classes, **more), EDM(), sigma_data=0.75)


def method(model: Denoiser | None = None, **settings: Any) -> DMD2:
    model = teacher() if model is None else model
    return DMD2(DMD2.student_of(model), model, **RATE | settings)


def batch(count: int = 6, step: int = 0, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Batch:
    draws = Noise(seed + step).at(range(count), shape)
    image = (0.5 * draws.normal(part=99)).clamp(-1, 1)
    return Batch(image, torch.arange(count) % 4, torch.arange(count), draws=draws)


DATA = ((0.5 * Noise(3).at(range(12), SHAPE).normal()).clamp(-1, 1), torch.arange(12) % 4)


def loop_of(m: Matching, data: Any = DATA, batch_size: int = 4) -> Loop:
    loop = Loop(m, data, batch_size=batch_size, seed=0)
    loop.train_mode()
    return loop


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def moved(module: nn.Module, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(p, q) for p, q in zip(module.parameters(), before)]


def test_the_range_of_levels_and_its_refusals() -> None:
    assert index_range(1000, 0.02, 0.98) == (20, 980)
    assert index_range(500, 0.0, 0.5) == (0, 250)
    for low, high in ((0.5, 0.5), (-0.1, 0.5), (0.2, 1.1)):
        with pytest.raises(InputError, match="levels"):
            index_range(1000, low, high)


def test_each_update_moves_its_own_networks_only() -> None:
    m = method(ratio=2, gan_weight=0.1)
    loop = loop_of(m)
    before = {
        name: values(part)
        for name, part in (
            ("student", m.student),
            ("critic", m.critic),
            ("heads", m.discriminator.heads),
            ("teacher", m.teacher),
        )
    }
    loop.turn(1)  # not a multiple of the ratio: the critic learns alone
    assert not any(moved(m.student, before["student"]))
    assert any(moved(m.critic, before["critic"]))
    assert any(moved(m.discriminator.heads, before["heads"]))
    rested = method(ratio=2, gan_weight=0.1, critic_rests=True)
    other = values(rested.critic), values(rested.discriminator.heads), values(rested.student)
    loop_of(rested).turn(0)
    assert not any([*moved(rested.critic, other[0]), *moved(rested.discriminator.heads, other[1])])
    assert all(moved(rested.student.net.output, other[2][-2:]))
    loop.turn(2)
    assert any(moved(m.student, before["student"]))
    assert not any(moved(m.teacher, before["teacher"]))
    with pytest.raises(InputError, match="ratio"):
        method(ratio=1, critic_rests=True)


@pytest.mark.check(system=32, number=7)
def test_no_gradient_is_left_behind() -> None:
    m = method(ratio=1, gan_weight=0.1)
    loop = loop_of(m)
    turn = m.prepare(batch(), 0)
    loss = m.student_loss(batch(), turn, 0)["loss"]
    (_, _, student), (_, _, critic) = loop.updates
    with student.alone():
        assert not any(p.requires_grad for p in [*m.critic.parameters(), *m.discriminator.parameters()])
        told = m.student_loss(batch(), m.prepare(batch(), 0), 0)["loss"]
        told.backward()
    assert float(told.detach()) == float(loss.detach())
    assert all(p.grad is None for p in [*m.critic.parameters(), *m.discriminator.parameters()])
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in m.student.parameters())
    student.clear()
    with critic.alone():
        m.critic_loss(batch(), turn, 0)["loss"].backward()
    assert all(p.grad is None for p in m.student.parameters())
    before = values(m.student)
    loop_of(method(ratio=1, gan_weight=0.1))
    loop._move(1, 0, {"critic": torch.zeros(())})
    assert not any(moved(m.student, before))


def test_the_graph_of_the_adversary_goes_through_the_critic_to_the_student() -> None:
    m = method(ratio=1, gan_weight=0.1, matching_weight=0.0)
    m.student_loss(batch(), m.prepare(batch(), 0), 0)["loss"].backward()
    assert max(float(p.grad.abs().max()) for p in m.student.parameters() if p.grad is not None) > 0


def test_the_gradient_of_a_gaussian_student_is_the_one_on_paper() -> None:
    s, m, of_critic, of_teacher = 0.5, 0.7, 0.4, -0.2
    exact = Gaussian(EDM(), torch.full((3,), of_teacher, dtype=torch.float64), s * s)
    student = MeanMap(Point(m, s), EDM(), sigma_data=s)
    dmd = DMD2(student, exact, point(of_critic, s), gan_weight=0.0, **RATE)
    given = batch(40, shape=(3,))
    turn = dmd.prepare(given, 0)
    loss = dmd.student_loss(given, turn, 0)
    (found,) = torch.autograd.grad(loss["loss"], [student.net.m])
    share = 6400 / (6400 + s * s)  # dx/dm of the student at sigma = 80
    x, draws = turn.made, given.draws.reshaped((3,))
    assert torch.allclose(x, s * s / (s * s + 6400) * 80 * draws.normal() + share * m)
    t, noise = dmd.level(draws, 2), draws.normal(part=3)
    sigma = t[:, None]
    x_t = x + sigma * noise
    real = (s * s * x_t + sigma**2 * of_teacher) / (s * s + sigma**2)
    gap = sigma**2 / (s * s + sigma**2) * (of_critic - of_teacher)
    g = gap / (x - real).abs().mean(1, keepdim=True)
    assert torch.allclose(found, (share * g / x.numel()).sum(0).expand(3), rtol=1e-5)
    assert (found > 0).all()  # descending lowers m, towards the teacher's
    assert float(loss["gap"]) == pytest.approx(float((gap.expand(-1, 3)).square().mean().sqrt()), rel=1e-5)


def test_the_critic_learns_the_mean_of_the_student_and_is_right_there() -> None:
    student, critic = MeanMap(Point(0.7, 0.5), EDM(), sigma_data=0.5), point(0.7, 0.5)
    exact = Gaussian(EDM(), torch.zeros(3, dtype=torch.float64), 0.25)
    dmd = DMD2(student, exact, critic, gan_weight=0.0, **RATE)
    slopes = []
    for m in (0.6, 0.7, 0.8):
        critic.net.m.data.fill_(m)
        given = batch(4000, shape=(3,))
        turn = dmd.prepare(given, 0)
        loss = dmd.critic_loss(given, turn, 0)["loss"]
        slopes.append(float(torch.autograd.grad(loss, [critic.net.m])[0].mean()))
    assert slopes[0] < 0 < slopes[2]
    assert abs(slopes[1]) < 0.06 * slopes[2]


def test_the_critic_weighs_as_edm_does() -> None:
    m = method(gan_weight=0.0)
    given = batch()
    turn = m.prepare(given, 0)
    told = m.critic_loss(given, turn, 0)["loss"]
    draws = given.draws.reshaped(SHAPE)
    t, noise = m.critic_level(draws, 6), draws.normal(part=7)
    x_t = m.schedule.marginal(turn.made, t, noise)
    weight = (t**-2 + 0.75**-2)[:, None, None, None]
    wanted = (weight * (m.critic(x_t, t, turn.cond).mean - turn.made).square()).mean()
    assert told.item() == pytest.approx(wanted.item(), rel=1e-4)
    eps = Preconditioned(network(), Discrete(), kind="eps")
    m = method(eps, gan_weight=0.0)
    turn = m.prepare(given, 0)
    told = m.critic_loss(given, turn, 0)["loss"]
    t, noise = m.critic_level(draws, 6), draws.normal(part=7)
    x_t = m.schedule.marginal(turn.made, t, noise)
    assert told.item() == pytest.approx((m.critic(x_t, t, turn.cond).eps - noise).square().mean().item(), rel=1e-5)


@pytest.mark.check(system=32, number=10)
@pytest.mark.parametrize("kind", ["edm", "discrete"])
def test_without_simulated_steps_the_input_is_pure_noise(kind: str) -> None:
    model = teacher() if kind == "edm" else Preconditioned(network(), Discrete(), kind="eps")
    m = method(model, student_steps=4, gan_weight=0.0)
    inputs = {}
    for seed in range(12):
        given = batch(seed=seed)
        turn = m.prepare(given, 0)
        inputs[m.start_levels.index(turn.level)] = turn
        if turn.level == m.start_levels[0]:
            z = given.draws.normal()
            assert torch.equal(turn.x, z * 80.0 if kind == "edm" else z)
            # What is trained is what is sampled.
            sampled = m.result().generate(range(6), Noise(seed), turn.cond, steps=1)
            once = m.student.answer(turn.x, turn.level, turn.cond).detach().clamp(-1, 1)
            assert torch.allclose(sampled, once, atol=1e-6)
            m.train()
    assert set(inputs) == {0, 1, 2, 3}


def test_the_network_is_told_less_noise_than_it_gets_where_the_start_is_lower() -> None:
    m = method(Preconditioned(network(), Discrete(), kind="eps"), start=399, gan_weight=0.0)
    given = batch()
    turn = m.prepare(given, 0)
    assert turn.level == 399.0
    assert torch.equal(turn.x, given.draws.normal())
    assert m.student.levels(1).tolist() == [399.0]


def test_several_steps_are_trained_on_what_the_student_made() -> None:
    m = method(student_steps=2, gan_weight=0.0)
    given = next(b for b in (batch(seed=s) for s in range(9)) if m.prepare(b, 0).level != m.start_levels[0])
    turn = m.prepare(given, 0)
    assert m.start_levels == [80.0, float(m.table[499])]
    clean = m.student.answer(given.draws.normal() * 80, 80.0, turn.cond)
    assert torch.allclose(turn.x, clean + float(m.table[499]) * given.draws.normal(step=1))
    assert not turn.x.requires_grad
    assert m.made_for == (2,)
    real = method(student_steps=2, simulate=False, gan_weight=0.0)
    turn = real.prepare(given, 0)
    assert torch.allclose(turn.x, given.image + float(m.table[499]) * given.draws.normal(step=1))
    assert turn.cond.labels.tolist() == given.label.tolist()
    # One number of steps for the whole batch, whatever part of it a process has.
    alone = Batch(given.image[4:], given.label[4:], given.index[4:], draws=given.draws[slice(4, 6)])
    assert torch.equal(real.prepare(alone, 0).x, turn.x[4:])


def test_classes_are_drawn_from_those_wanted() -> None:
    m = method(classes=[1, 3], gan_weight=0.0)
    labels = m.labels(batch(400))
    assert sorted(set(labels.tolist())) == [1, 3]
    assert 160 < int((labels == 1).sum()) < 240
    turn = m.prepare(batch(400), 0)
    assert torch.equal(turn.cond.labels, turn.told.labels)
    for wrong in ([], [4], [1, 1], [-1]):
        with pytest.raises(InputError, match="classes"):
            method(classes=wrong)
    with pytest.raises(InputError, match="classes"):
        method(teacher(num_classes=None), classes=[0])


def test_a_student_without_classes_is_matched_to_all_of_them() -> None:
    means = torch.tensor([[-0.5] * 3, [0.5] * 3], dtype=torch.float64)
    exact = Mixture(EDM(), means, 0.01, labels=torch.tensor([0, 1]))
    student = mean_map(None, Preconditioned(MLP(in_shape=(3,), width=8, depth=1), EDM()))
    m = DMD2(student, exact, critic_of(student), gan_weight=0.0, **RATE)
    turn = m.prepare(batch(shape=(3,)), 0)
    assert turn.cond is None
    assert turn.told.labels.tolist() == [2] * 6
    matched = m.match(turn.x, batch(shape=(3,)).draws, None, turn.told)
    assert torch.allclose(matched.real, exact(matched.x_t, matched.t).mean)
    net = teacher()
    m = DMD2(mean_map(net, network(num_classes=None)), net, critic_of(mean_map(net, network(num_classes=None))), **RATE)
    fit(m, DATA, steps=1, batch_size=4)


@pytest.mark.parametrize("gan, ratio_turn, forward, backward", [
    (0.0, True, 4, 2), (0.0, False, 2, 1), (0.1, True, 7, 5), (0.1, False, 4, 3)
])  # fmt: skip
def test_a_turn_makes_no_needless_evaluation(gan: float, ratio_turn: bool, forward: int, backward: int) -> None:
    m = method(ratio=2, gan_weight=gan)
    loop = loop_of(m)
    with evaluations(networks(m)) as counted:
        loop.turn(0 if ratio_turn else 1)
    # student, (teacher and critic on x_t), (its judgement), critic on x, (judgements of fake and real)
    assert (counted.forward, counted.backward) == (4 * forward, 4 * backward)


def discriminator_part(m: DMD2) -> Tensor:
    """The adversary's loss of the critic's update on the first batch, by its formula."""
    draws, turn = batch().draws.reshaped(SHAPE), m.prepare(batch(), 0)
    with torch.no_grad():
        x = m.student.answer(turn.x, turn.level, turn.cond)
    logits = []
    for image, labels, part in ((x, turn.labels, 8), (batch().image, batch().label, 10)):
        t = m.table[draws.integers(1000, part=part)]
        noised = image + t[:, None, None, None].float() * draws.normal(part=part + 1)
        logits.append(m.discriminator(noised, t, Cond(labels=labels)))
    return (torch.log1p(logits[0].exp()) + torch.log1p((-logits[1]).exp())).mean()


@pytest.mark.parametrize("where", ["critic", "teacher"])
@pytest.mark.parametrize("name", ["mlp", "unet", "dit"])
def test_heads_stand_on_any_network(name: str, where: str) -> None:
    model = teacher(name)
    m = method(model, ratio=1, gan_weight=0.1, critic_gan_weight=0.5, heads_on=where)
    trunk = m.discriminator.trunk.model
    assert trunk is (m.critic if where == "critic" else model)
    loop = loop_of(m)
    kept = [value for key, value in state(loop, 0)[1].items() if key.startswith("method/")]
    # The critic's weights once, the teacher's never.
    parts = (m.student, m.critic, m.discriminator.heads)
    wanted = sum(value.numel() for part in parts for value in part.state_dict().values())
    assert sum(value.numel() for value in kept) == wanted
    with loop.updates[1][2].alone():
        loss = m.critic_loss(batch(), m.prepare(batch(), 0), 0)
        judged = discriminator_part(m)
    # What the adversary's loss trains: the features too where they are the critic's.
    slopes = torch.autograd.grad(judged, [*m.critic.parameters()], allow_unused=True)
    assert any(slope is not None for slope in slopes) == (where == "critic")
    assert loss["discriminator"].item() == pytest.approx(judged.item(), rel=1e-5)
    assert loss["loss"].item() == pytest.approx(loss["denoising"].item() + 0.5 * judged.item(), rel=1e-5)
    before = values(model)
    fit(m, DATA, steps=2, batch_size=4, seed=0)
    assert not any(moved(model, before))


def test_a_stopped_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    given: dict[str, Any] = {"batch_size": 4, "seed": 2, "ema": 0.9, "quiet": True}

    def made() -> DMD2:
        torch.manual_seed(0)
        return method(ratio=2, gan_weight=0.1, student_steps=2)

    whole = run(made(), DATA, tmp_path / "whole", steps=5, **given)
    run(made(), DATA, tmp_path / "parts", steps=5, stop_at=3, **given)
    parts = run(made(), DATA, tmp_path / "parts", steps=5, **given)
    a, b = whole.method.state_dict(), parts.method.state_dict()
    assert any(name.startswith("discriminator.heads") for name in a)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.losses == parts.losses


def test_a_training_without_data_draws_its_own_labels() -> None:
    m = method(gan_weight=0.0)
    before = values(m.student)
    fit(m, None, steps=2, batch_size=4, seed=0)
    assert any(moved(m.student, before))
    with pytest.raises(InputError, match="real images"):
        fit(method(gan_weight=0.1), None, steps=1, batch_size=4)
    with pytest.raises(InputError, match="labels"):
        fit(method(gan_weight=0.1), DATA[0], steps=1, batch_size=4)
    with pytest.raises(InputError, match="not simulated"):
        fit(method(gan_weight=0.0, student_steps=8, simulate=False), None, steps=3, batch_size=4)


def test_pictures_of_all_three_networks() -> None:
    m = method(student_steps=2, gan_weight=0.0)
    rows = m.pictures(6)
    assert list(rows) == ["student", "noised", "teacher sees", "critic sees"]
    assert all(row.shape == (6, *SHAPE) for row in rows.values())
    assert torch.equal(rows["teacher sees"], rows["critic sees"])  # they start with the same weights
    assert not torch.equal(rows["student"], rows["teacher sees"])
    again = m.pictures(6)
    assert all(torch.equal(rows[name], again[name]) for name in rows)


@pytest.mark.parametrize("settings, thing", [
    ({"heads_on": "student"}, "heads_on"), ({"matching_weight": 0.0, "gan_weight": 0.0}, "weights"),
    ({"gan_weight": -1.0}, "weights"), ({"levels": (0.9, 0.1)}, "levels"), ({"student_steps": 0}, "steps"),
    ({"start": 81.0}, "start"), ({"taps": ["nowhere"], "gan_weight": 0.1}, "nowhere"), ({"ratio": 0}, "ratio"),
], ids=["heads", "nothing", "negative", "levels", "steps", "start", "taps", "ratio"])  # fmt: skip
def test_wrong_settings_are_refused(settings: dict[str, Any], thing: str) -> None:
    with pytest.raises(InputError, match=thing):
        method(**settings)


def test_what_does_not_fit_is_refused() -> None:
    exact = Gaussian(EDM(), torch.zeros(SHAPE), 0.25)
    with pytest.raises(InputError, match="student"):
        DMD2(teacher(), teacher())
    with pytest.raises(InputError, match="critic"):
        DMD2(mean_map(None, teacher(num_classes=None)), exact)
    other = Preconditioned(network(), Discrete(), kind="eps")
    with pytest.raises(InputError, match="schedule"):
        DMD2(DMD2.student_of(teacher()), teacher(), other)
    with pytest.raises(InputError, match="4 classes"):
        DMD2(mean_map(teacher(), network(num_classes=None)), teacher())
    student = mean_map(None, teacher(num_classes=None))
    with pytest.raises(InputError, match="tap"):
        DMD2(student, exact, critic_of(student), gan_weight=0.1, heads_on="teacher")


def test_an_unnormalised_direction_and_its_weight() -> None:
    x, real, fake = torch.randn(3, 2, 5, dtype=torch.float64).unbind(1)[0], torch.zeros(3, 5), torch.ones(3, 5)
    assert torch.equal(matching_direction(x, real, fake, floor=None), torch.ones(3, 5))
    weight = torch.tensor([1.0, 2.0, 3.0])
    assert matching_direction(x, real, fake, weight, floor=None)[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert torch.allclose(matching_direction(x, real, fake)[:, 0], 1 / x.abs().mean(1))
    assert matching_direction(real, real, fake).max() == pytest.approx(1e6)
