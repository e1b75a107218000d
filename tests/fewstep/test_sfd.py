"""Score forgetting distillation: levels, losses against closed forms, conditions, and the turn of the two networks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoreline.core.artefact import describe, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, Cosine, Discrete
from scoreline.fewstep.distill import distill
from scoreline.fewstep.mean_map import MeanMap
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.fewstep.sfd import (
    SFD,
    Concepts,
    forgetting_levels,
    forgetting_loss,
    kept_classes,
    override_labels,
    pseudo_labels,
    score_loss,
)
from scoreline.fewstep.sid import sid_loss
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.nn.unet_presets import unet_preset
from scoreline.samplers.jumps import Jumps
from scoreline.train import fit
from scoreline.train.order import Feed

SHAPE = (1, 4, 4)
A, S = 0.371093, 0.928596  # sqrt(abar), sqrt(1 - abar) at t = 440


def model(seed: int = 0, classes: int | None = 4) -> Preconditioned:
    """A small random eps-network on the table of 1000."""
    torch.manual_seed(seed)
    net = MLP(in_shape=SHAPE, width=16, depth=1, num_classes=classes)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Preconditioned(net, Discrete(), kind="eps")


def method(teacher: Any = None, **settings: Any) -> SFD:
    teacher = model() if teacher is None else teacher
    return SFD(
        SFD.student_of(teacher), teacher, **{"forget": [0], "override": 1, "lr": 1e-2, "critic_lr": 1e-2, **settings}
    )


def piece(step: int = 0, size: int = 32) -> Any:
    return Feed(None, batch_size=size, seed=5, device=torch.device("cpu")).piece(step, 0)


def state(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def points(*means: float, variance: float = 0.09) -> Mixture:
    """A class a mean, points in the plane."""
    centres = torch.tensor(means, dtype=torch.float64)[:, None].expand(-1, 2).contiguous()
    return Mixture(EDM(), centres, variance, labels=torch.arange(len(means)))


def told(c: int, count: int) -> Cond:
    return Cond(labels=torch.full((count,), c))


def noised(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(count, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.3, 3.0, count, dtype=torch.float64)
    return x.requires_grad_(True), x + t[:, None] * noise, t


@pytest.mark.check(system=36, number=1)
def test_the_levels_are_those_of_the_paper() -> None:
    table = Discrete()
    at = 440.0
    assert (table.alpha(at), table.sigma(at)) == pytest.approx((A, S), abs=5e-7)
    assert table.sigma(at) / table.alpha(at) == pytest.approx(2.502326, abs=5e-7)
    assert np.array_equal(forgetting_levels(table), np.arange(38, 712))
    edm = forgetting_levels(EDM())
    assert edm[[0, -1]] == pytest.approx([0.1373, 13.013], abs=5e-4)
    assert edm[440 - 38] == pytest.approx(2.502326, abs=5e-7)
    assert len(edm) == 674
    # The same signal-to-noise ratios in other coordinates; Stable Diffusion's by its own table.
    assert Cosine().lam(forgetting_levels(Cosine())) == pytest.approx(table.lam(np.arange(38.0, 712.0)), abs=1e-6)
    assert np.array_equal(forgetting_levels(Discrete(betas="quadratic"), 20, 980, "quadratic"), np.arange(20, 980))
    assert float(forgetting_levels(EDM(), 625, 626, "quadratic")[0]) == pytest.approx(2.50, abs=5e-3)
    made = method()
    assert made.start_levels == [440.0]
    draws = Noise(0).at(range(4000), (1,))
    drawn = made.level(draws, 2)
    assert set(drawn.tolist()) <= set(range(38, 712))
    assert drawn.mean().item() == pytest.approx(374.5, abs=10)
    assert torch.equal(drawn, made.critic_level(draws, 2))


@pytest.mark.each("levels, word", [((5, 5), "entries"), ((0, 1001), "entries"), ((990, 1000), "schedule knows")])
def test_levels_that_are_not_there_are_refused(levels: tuple[int, int], word: str) -> None:
    with pytest.raises(InputError, match=word):
        forgetting_levels(EDM(t_max=20.0), *levels)


@pytest.mark.check(system=36, number=2)
def test_alpha_of_one_is_the_shorter_form() -> None:
    x, x_t, t = noised()
    teacher, critic = points(-1.0, 1.0), points(0.2, 0.9)
    loss = forgetting_loss(x, x_t, t, teacher, critic, told(1, 6), told(0, 6), alpha=1.0)
    real, fake = teacher(x_t, t, told(1, 6)).mean, critic(x_t, t, told(0, 6)).mean
    omega = (real - x).abs().mean(1)
    assert torch.allclose(loss, ((real - fake) * (fake - x)).sum(1) / omega, rtol=1e-12)
    general = ((real - fake) * ((real - x) - 1.2 * (real - fake))).sum(1) / omega
    assert torch.allclose(forgetting_loss(x, x_t, t, teacher, critic, told(1, 6), told(0, 6)), general, rtol=1e-12)


@pytest.mark.check(system=36, number=3)
def test_the_loss_vanishes_where_both_networks_agree() -> None:
    x, _, t = noised()
    x_t = x + t[:, None]
    for real, fake in ((told(1, 6), told(1, 6)), (told(1, 6), told(0, 6))):
        alike = points(0.5, 0.5)
        loss = forgetting_loss(x, x_t, t, alike, alike, real, fake)
        assert torch.equal(loss, torch.zeros(6, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(loss.sum(), x, retain_graph=True)
        assert torch.equal(gradient, torch.zeros_like(x))
    apart = points(0.5, 0.4)
    assert forgetting_loss(x, x_t, t, apart, apart, told(1, 6), told(0, 6)).abs().min() > 0


@pytest.mark.check(system=36, number=4)
def test_the_expectation_with_an_exact_critic() -> None:
    count = 100_000
    generator = torch.Generator().manual_seed(1)
    first, noise = (torch.randn(count, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    x = 0.2 + 0.3 * first  # the law of the critic's class 0
    t = torch.full((count,), 0.5, dtype=torch.float64)
    x_t = x + 0.5 * noise
    real = points(-1.0, 1.0)(x_t, t, told(1, count)).mean
    fake = points(0.2, 0.9)(x_t, t, told(0, count)).mean
    squared = (real - fake).square().sum(1).mean()
    assert squared > 0.1
    for alpha in (1.0, 1.2):
        value = sid_loss(x, real, fake, alpha, floor=None).mean()
        assert float(value) == pytest.approx(float((1 - alpha) * squared), abs=4e-3)


def test_the_gradient_draws_forgotten_requests_to_the_override() -> None:
    # Classes of one variance v: D_r - D_s = (1 - k)(m_o - m), k = v/(v + t^2), whatever x is; so at alpha = 1
    # dl/dx = (1 - k)(m_o - m) (k - 1)/omega, which descends towards m_o.
    x, _, t = noised()
    k = (0.09 / (0.09 + t**2))[:, None]
    x_t = x + t[:, None] * 0.7
    teacher, critic = points(-1.0, 1.0), points(0.2, 0.9)
    loss = forgetting_loss(x, x_t, t, teacher, critic, told(1, 6), told(0, 6), alpha=1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    omega = (teacher(x_t, t, told(1, 6)).mean - x).detach().abs().mean(1, keepdim=True)
    assert torch.allclose(gradient, -((1 - k) ** 2) * (1.0 - 0.2) / omega.expand(-1, 2), rtol=1e-9)


def hand_made(classes: list[int], steps: int, clip: float) -> tuple[Tensor, Tensor]:
    """SiD written out: weights of generator and critic after some iterations, of the classes given."""
    teacher = model()
    networks = [copy.deepcopy(teacher.net) for _ in range(2)]
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.0, 0.999)) for net in networks]
    (g, s), table = networks, Discrete()

    def x0(net: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        a, b = (v.float()[:, None, None, None] for v in (table.alpha(t), table.sigma(t)))
        return (x - b * net(x, t, cond)) / a

    def moved(k: int, loss: Tensor) -> None:
        optimizers[k].zero_grad()
        loss.backward(inputs=list(networks[k].parameters()))
        nn.utils.clip_grad_value_(networks[k].parameters(), clip)
        optimizers[k].step()

    start = torch.full((32,), 440.0, dtype=torch.float64)
    for step in range(steps):
        draws = piece(step).draws.reshaped(SHAPE)
        cond = Cond(labels=torch.tensor(classes)[draws.integers(len(classes), part=1)])
        with torch.no_grad():
            x = x0(g, S * draws.normal(part=4), start, cond)
        t, noise = 38.0 + draws.integers(674, part=5), draws.normal(part=6)
        moved(1, (s(table.marginal(x, t, noise), t, cond) - noise).square().sum() / 32)
        x = x0(g, S * draws.normal(), start, cond)
        t, noise = 38.0 + draws.integers(674, part=2), draws.normal(part=3)
        x_t = table.marginal(x, t, noise)
        real, fake = x0(teacher.net, x_t, t, cond), x0(s, x_t, t, cond)
        omega = (real - x).detach().abs().mean((1, 2, 3), keepdim=True)
        moved(0, ((real - fake) * ((real - x) - 1.2 * (real - fake)) / omega).sum() / 32)
    return state(g), state(s)


@pytest.mark.check(system=36, number=5)
def test_without_forgetting_it_is_sid_step_for_step() -> None:
    for settings, classes in (
        ({"forget_weight": 0.0, "critic_forget_weight": 0.0}, [1, 2, 3]),
        ({"forget": (), "override": "random"}, [0, 1, 2, 3]),
    ):
        made = method(**settings, clip_value=0.5)
        before = state(made.student.net)
        fit(made, None, steps=2, batch_size=32, seed=5)
        generator, critic = hand_made(classes, 2, 0.5)
        assert torch.allclose(state(made.student.net), generator, atol=1e-5)
        assert torch.allclose(state(made.critic.net), critic, atol=1e-5)  # type: ignore[arg-type]
        assert (before - generator).abs().max() > 1e-2


def test_both_networks_learn_of_kept_and_forgotten_requests() -> None:
    made, batch = method(forget_weight=0.3, critic_forget_weight=0.2, alpha=1.5), piece()
    made.eval()
    turn = made.prepare(batch, 0)
    own = batch.draws.reshaped(SHAPE).derived("forget")
    x = made.generated(own.normal(), turn.forgotten)
    t, noise = 38.0 + own.integers(674, part=2), own.normal(part=3)
    x_t = made.schedule.marginal(x, t, noise)
    wanted = forgetting_loss(x, x_t, t, made.teacher, made.critic, told(1, 32), told(0, 32), 1.5).mean()
    parts = made.student_loss(batch, turn, 0)
    assert torch.allclose(parts["forget"], wanted.detach(), rtol=1e-5)
    assert torch.allclose(parts["loss"], parts["keep"] + 0.3 * parts["forget"])
    parts = made.critic_loss(batch, turn, 0)
    assert torch.allclose(parts["loss"], parts["keep"] + 0.2 * parts["forget"])
    with torch.no_grad():
        x = made.generated(own.normal(part=4), turn.forgotten)
        t, noise = 38.0 + own.integers(674, part=5), own.normal(part=6)
        answer = made.critic.eps(made.schedule.marginal(x, t, noise), t, turn.forgotten)
    assert torch.allclose(parts["forget"], (answer - noise).square().sum((1, 2, 3)).mean(), rtol=1e-5)
    assert score_loss(torch.zeros(2, 3), torch.full((2, 3), 2.0)).tolist() == [12.0, 12.0]


@pytest.mark.check(system=36, number=6)
def test_forgotten_classes_are_never_kept_nor_their_own_override() -> None:
    made = method(model(classes=10), forget=[3], override="random")
    turn = made.prepare(piece(size=9000), 0)
    for labels in (turn.kept.labels, turn.override.labels):
        counts = torch.bincount(labels, minlength=10)
        assert counts[3] == 0
        others = counts[counts > 0]
        assert len(others) == 9
        assert float(others.float().std()) < 3 * 1000**0.5 / 2
    assert not torch.equal(turn.kept.labels, turn.override.labels)
    assert set(turn.forgotten.labels.tolist()) == {3}
    draws = Noise(0).at(range(50), (1,))
    assert set(override_labels(torch.tensor([2, 5]), draws, 1).tolist()) == {2, 5}


def test_several_classes_have_an_override_each() -> None:
    made = method(forget=[0, 2], override=[3, 1])
    turn = made.prepare(piece(size=64), 0)
    pairs = set(zip(turn.forgotten.labels.tolist(), turn.override.labels.tolist()))
    assert pairs == {(0, 3), (2, 1)}
    assert set(turn.kept.labels.tolist()) == {1, 3}
    one = method(forget=[0, 2], override=3).prepare(piece(size=64), 0)
    assert set(one.override.labels.tolist()) == {3}


def test_a_classifier_finds_the_override() -> None:
    logits = torch.tensor([[9.0, 0.0, 2.0, 1.0], [9.0, 3.0, 8.0, 2.0]])
    assert pseudo_labels(logits, [0]).tolist() == [2, 2]
    assert pseudo_labels(logits, [0, 2]).tolist() == [3, 1]
    even = torch.zeros(1000, 4)
    drawn = pseudo_labels(even, [0, 3], torch.arange(1000) / 1000)
    assert torch.bincount(drawn).tolist() == [0, 500, 500]
    seen: list[Tensor] = []

    class Judge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.tensor([5.0, 1.0, 3.0, 2.0]).expand(len(x), -1)

    made, batch = method(override="argmax", classifier=Judge()), piece()
    turn = made.prepare(batch, 0)
    parts = made.student_loss(batch, turn, 0)
    fixed = method(override=2)
    assert torch.allclose(parts["forget"], fixed.student_loss(batch, fixed.prepare(batch, 0), 0)["forget"])
    assert seen[0].abs().max() <= 1
    assert not seen[0].requires_grad
    assert made.frozen() == (made.teacher, made.classifier)
    made = method(override="sampled", classifier=Judge())
    told = made.seen(torch.zeros(4000, *SHAPE), Noise(0).at(range(4000), SHAPE))
    shares = torch.bincount(told.labels, minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([-9e9, 1.0, 3.0, 2.0]).softmax(0), atol=0.03)


def test_conditions_may_be_anything() -> None:
    labels = [torch.tensor(values) for values in ([1, 2, 3], [0], [1])]
    given, batch = Concepts(*(Cond(labels=values) for values in labels)), piece()
    made, same = method(forget=(), override="random", concepts=given), method()
    assert torch.equal(
        made.student_loss(batch, made.prepare(batch, 0), 0)["loss"],
        same.student_loss(batch, same.prepare(batch, 0), 0)["loss"],
    )
    tokens = Concepts(*(Cond(tokens=torch.randn(n, 3, 8), mask=torch.ones(n, 3).bool()) for n in (4, 2, 2)))
    made = method(forget=(), override="random", concepts=tokens)
    turn = made.prepare(batch, 0)
    assert turn.kept.tokens.shape == (32, 3, 8)
    rows = [int((tokens.forgotten.tokens == row).flatten(1).all(1).nonzero()[0]) for row in turn.forgotten.tokens]
    assert torch.equal(turn.override.tokens, tokens.override.tokens[rows])
    assert set(rows) == {0, 1}


@pytest.mark.check(system=36, number=7)
def test_a_generator_step_leaves_the_other_networks_alone() -> None:
    made = method()
    made.updates = made.updates[1:]
    assert made.updates[0].name == "student"
    others = [made.teacher, made.critic]
    before = [state(net) for net in others]
    moved = state(made.student)
    fit(made, None, steps=2, batch_size=8)
    assert all(torch.equal(a, state(net)) for a, net in zip(before, others))
    assert all(p.grad is None for net in others for p in net.parameters())
    assert not torch.equal(moved, state(made.student))
    made = method()
    made.updates = made.updates[:1]
    moved = state(made.student)
    fit(made, None, steps=2, batch_size=8)
    assert torch.equal(moved, state(made.student))
    assert all(p.grad is None for p in made.student.parameters())


@pytest.mark.check(system=36, number=8)
@pytest.mark.each("name, count", [("sfd-cifar10", 38_632_323), ("sfd-stl10", 83_159_683)])
def test_the_networks_have_the_published_sizes(name: str, count: int) -> None:
    with torch.device("meta"):
        net = UNet(**unet_preset(name))
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.check(system=36, number=9)
def test_at_the_start_the_generator_is_the_teacher(tmp_path: Path) -> None:
    made, teacher = method(), model()
    z = torch.randn(3, *SHAPE)
    cond = Cond(labels=torch.tensor([0, 1, 2]))
    x_in = S * z
    wanted = x_in / A - (1 / A**2 - 1) ** 0.5 * teacher.net(x_in, torch.tensor([440.0]), cond)
    assert torch.allclose(made.generated(z, cond), wanted, atol=1e-4)
    # What is sampled later starts from the same noise, also when it is read back.
    save_artefact(tmp_path / "student.safetensors", made.result().denoiser)
    draws = Noise(0).at(range(3), SHAPE)
    for student in (made.result().denoiser, load(tmp_path / "student.safetensors")):
        sample = Jumps(steps=1)(student.given(cond), draws)
        assert torch.allclose(sample.x, made.generated(draws.normal(), cond), atol=1e-5)


def test_weights_come_from_where_they_should() -> None:
    teacher, distilled = model(0), SFD.student_of(model(7))
    made = SFD(distilled, teacher, forget=[0], override=1)
    assert torch.equal(state(made.critic), state(teacher))
    assert torch.equal(state(made.student), state(model(7)))
    assert made.critic.net is not teacher.net  # type: ignore[attr-defined]
    own = SFD(SFD.student_of(teacher), teacher, model(9), forget=[0], override=1)
    assert torch.equal(state(own.critic), state(model(9)))


def test_only_the_network_that_is_updated_drops_units() -> None:
    net = UNet(
        in_shape=(1, 8, 8), base_channels=8, channel_mult=(1,), num_blocks=1, attention=(), num_classes=3, dropout=0.5
    )
    made, batch = method(Preconditioned(net, EDM())), piece(size=2)
    made.train()
    turn = made.prepare(batch, 0)
    for loss, learns, rests in (
        (made.critic_loss, made.critic, made.student),
        (made.student_loss, made.student, made.critic),
    ):
        loss(batch, turn, 0)
        assert all(module.training for module in learns.modules())
        assert not any(module.training for module in rests.modules())
        assert describe(learns)["args"]["net"]["args"]["dropout"] == 0.5


def test_the_optimizers_are_the_papers() -> None:
    critic, student = SFD(SFD.student_of(model()), model()).updates
    assert [critic.name, student.name] == ["critic", "student"]
    for update in (critic, student):
        assert (update.lr, update.clip, update.clip_value, update.every) == (1e-5, None, 1.0, 1)
        assert update.settings == {"betas": (0.0, 0.999)}
        assert update.optimizer is torch.optim.Adam


def test_guidance_holds_for_both_networks() -> None:
    made, batch = method(guidance=3.0), piece()
    made.eval()
    turn = made.prepare(batch, 0)
    with torch.no_grad():
        m = made.match(torch.zeros(32, *SHAPE), batch.draws.reshaped(SHAPE), turn.kept, turn.kept)
        critic = ClassifierFree(made.critic, 3.0)(m.x_t, m.t, turn.kept)
        assert torch.allclose(m.fake, critic.mean, atol=1e-5)
        assert torch.allclose(m.real, m.fake, atol=1e-5)  # still the same weights
        loss = made.denoising(torch.zeros(32, *SHAPE), batch.draws.reshaped(SHAPE), turn.kept, 2)
        assert torch.allclose(loss, score_loss(critic.eps, m.noise).mean(), rtol=1e-4)


def test_without_gradients_through_the_networks_it_is_diff_instruct() -> None:
    made = method(through=False)
    x = torch.randn(8, *SHAPE, requires_grad=True)
    draws = Noise(0).at(range(8), SHAPE)
    m = made.match(x, draws, told(0, 8), told(1, 8))
    (gradient,) = torch.autograd.grad(made.term(m), x)
    omega = (m.real - x).detach().abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(gradient, (m.fake - m.real) / omega / 8, atol=1e-6)


def test_an_edm_teacher_and_its_card(tmp_path: Any) -> None:
    teacher = load("digits")
    made = method(teacher)
    fit(made, None, steps=1, batch_size=2)
    student = made.result().denoiser
    assert isinstance(student, MeanMap)
    assert float(student.start) == pytest.approx(2.502326, abs=1e-5)
    assert (made.sampler, made.made_for) == ("jumps", (1,))
    assert made.pictures(10)["student"].shape == (10, 1, 8, 8)


@pytest.mark.each("classes, forget, override, word", [
    (None, [0], 1, "knows no classes"),
    (3, [3], 1, "0 to 2"),
    (3, [0, 0], 1, "each once"),
    (3, [0, 1, 2], "random", "at least one"),
    (3, [0], 0, "override"),
    (3, [0], 7, "override"),
    (4, [0, 1, 2], [3, 3], "one for each"),
    (3, [0], "randon", "random"),
])  # fmt: skip
def test_what_cannot_be_forgotten_is_refused(classes: Any, forget: Any, override: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        kept_classes(classes, forget, override)


@pytest.mark.each("settings, word", [
    ({"forget_weight": -1.0}, "forget weight"),
    ({"override": "argmax"}, "classifier"),
    ({"classifier": nn.Identity()}, "classifier"),
    ({"keep_weight": 0.0, "forget_weight": 0.0}, "nothing to learn"),
    ({"concepts": Concepts(*[Cond(labels=torch.tensor([0]))] * 3)}, "exclude"),
    ({"levels": [38]}, "levels"),
    ({"start": 1000}, "levels"),
])  # fmt: skip
def test_wrong_settings_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        method(**settings)
    with pytest.raises(InputError, match="knows no classes"):
        method(model(classes=None))


@pytest.mark.each("name", ["cifar10", "stl10"])
def test_the_large_presets_are_built_and_take_a_step(name: str) -> None:
    torch.manual_seed(0)
    net = UNet(**unet_preset(f"sfd-{name}", base_channels=16, num_blocks=1))
    taught = Preconditioned(net, Discrete(), kind="eps")
    (stage,) = read_recipe("sfd", preset=name, teacher="its file").stages
    made: Any = make_method(stage, make_student(stage, taught, {}), taught)
    assert [update.lr for update in made.updates] == [1e-5 if name == "cifar10" else 3e-5, 1e-5]
    before = made.student.net.output.bias.clone()
    fit(made, None, steps=1, batch_size=2)
    assert not torch.equal(made.student.net.output.bias, before)
    assert torch.equal(taught.net.output.bias, before)  # type: ignore[union-attr]


def test_the_digits_preset_is_read() -> None:
    (stage,) = read_recipe("sfd", preset="digits").stages
    taught = load("digits")
    made: Any = make_method(stage, make_student(stage, taught, {}), taught)
    assert (made.forget, made.override, made.student.sigma_data) == ([0], 1, 0.75)


def test_the_card_of_a_student_says_what_it_has_forgotten(tmp_path: Path) -> None:
    distill(read_recipe("sfd", preset="digits", changes={"steps": 1, "batch_size": 4}), tmp_path / "run")
    card = load(tmp_path / "run" / "model.safetensors").header["card"]
    assert card["forgotten"] == {"classes": [0], "override": 1}
