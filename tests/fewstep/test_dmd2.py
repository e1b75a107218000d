"""DMD2: the checks of its plan, on closed forms wherever there is one, and its presets."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP
from scoreline.fewstep.adversarial import discriminator_loss, generator_loss
from scoreline.fewstep.dmd2 import DMD2, critic_lag, guidance_part
from scoreline.fewstep.matching import Matched, index_range, matching_direction, matching_surrogate
from scoreline.fewstep.mean_map import level_table
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.nn.discriminator import head_for
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.nn.unet_presets import unet_preset
from scoreline.train import fit

check = pytest.mark.check


def teacher(num_classes: int | None = None, schedule: Any = None) -> Preconditioned:
    torch.manual_seed(0)
    net = MLP(in_shape=(3,), width=16, depth=1, num_classes=num_classes)
    with torch.no_grad():
        net.output.weight.normal_(std=0.2)
    return Preconditioned(net, schedule or EDM(), kind="edm" if schedule is None else "eps", sigma_data=0.5)


def method(model: Any = None, **settings: Any) -> DMD2:
    model = model or teacher()
    return DMD2(DMD2.student_of(model), model, **{"gan_weight": 0.0, "lr": 1e-3, "critic_lr": 1e-3} | settings)


def batch(count: int) -> Batch:
    draws = Noise(0).at(range(count), (3,))
    return Batch(draws.normal(part=50), None, torch.arange(count), draws=draws)


@check(system=32, number=1)
def test_where_teacher_and_critic_agree_nothing_moves() -> None:
    m = method()
    turn = m.prepare(batch(9), 0)
    told = m.student_loss(batch(9), turn, 0)
    assert float(told["matching"]) == 0
    assert float(told["gap"]) == 0
    slopes = torch.autograd.grad(told["loss"], [*m.student.parameters()], allow_unused=True)
    assert all(slope is None or float(slope.abs().max()) == 0 for slope in slopes)
    x, d = torch.randn(4, 3), torch.randn(4, 3)
    assert not matching_direction(x, d, d).any()
    assert not matching_direction(d, d, d).any()  # 0/0


@check(system=32, number=2)
def test_the_gradient_is_the_direction_over_the_number_of_entries() -> None:
    generator = torch.Generator().manual_seed(1)
    x, real, fake = (torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    x.requires_grad_(True)
    g = matching_direction(x, real, fake)
    (slope,) = torch.autograd.grad(matching_surrogate(x, g), [x])
    assert torch.allclose(slope, g / x.numel(), rtol=1e-12)
    assert torch.allclose(g, (fake - real) / (x - real).abs().mean((1, 2, 3), keepdim=True).detach())
    assert not g.requires_grad
    assert matching_surrogate(x, g).item() == pytest.approx(0.5 * g.square().mean().item())
    scaled = matching_direction(real + 7 * (x - real), real, real + 7 * (fake - real))
    assert torch.allclose(scaled, g, rtol=1e-9)
    assert torch.isfinite(matching_direction(real, real, fake)).all()  # x/0: the floor


@check(system=32, number=3)
@pytest.mark.parametrize("m, of_teacher", [(0.8, -0.3), (-1.0, 2.0)])
def test_gaussians_are_told_apart_by_their_means(m: float, of_teacher: float) -> None:
    s, n = 0.6, 200
    exact, critic = (Gaussian(EDM(), torch.full((2,), v, dtype=torch.float64), s * s) for v in (of_teacher, m))
    t = torch.from_numpy(level_table(EDM()))[torch.linspace(20, 980, n).long()]
    x_t = 3 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = t**2 / (s * s + t**2) * (m - of_teacher)
    found = critic(x_t, t).mean - exact(x_t, t).mean
    assert torch.allclose(found, wanted[:, None].expand(n, 2), rtol=1e-7, atol=1e-12)
    # Descending moves the student's images towards the teacher's mean.
    g = matching_direction(x_t, exact(x_t, t).mean, critic(x_t, t).mean)
    assert torch.equal(g.sign(), torch.full_like(g, math.copysign(1, m - of_teacher)))


@check(system=32, number=4)
def test_levels_of_the_student_and_of_the_critic() -> None:
    class Ends:
        """Draws the least and the largest."""

        def integers(self, high: int, *, part: int) -> torch.Tensor:
            return torch.tensor([0, high // 2, high - 1])

    m, table = method(), level_table(EDM())
    assert m.level(Ends(), 2).tolist() == [table[20], table[500], table[980]]  # type: ignore[arg-type]
    assert m.critic_level(Ends(), 6).tolist() == [table[0], table[500], table[999]]  # type: ignore[arg-type]
    draws = batch(50).draws
    assert index_range() == (20, 980)
    # One draw for the student, one for the critic, one for each side of the adversary.
    assert not torch.equal(m.critic_level(draws, 8), m.critic_level(draws, 10))


@check(system=32, number=6)
def test_size_of_the_published_head() -> None:
    # The network's 295,899,267 are counted with all published U-Nets.
    with torch.device("meta"):
        head = head_for((768, 8, 8), "strided")
        assert sum(p.numel() for p in head.parameters()) == 18_879_745
        wide = head_for((1280, 32, 32), "strided")  # three convolutions of stride 2, one of stride 4
        assert sum(layer.weight.dim() == 4 for layer in wide.modules() if hasattr(layer, "weight")) == 5


@check(system=32, number=8)
def test_losses_of_an_adversary_that_cannot_tell() -> None:
    zero = torch.zeros(7, 1)
    assert discriminator_loss(zero, zero, "softplus").item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert generator_loss(zero, "softplus").item() == pytest.approx(math.log(2), rel=1e-6)
    high = torch.full((7, 1), 9.0)
    assert generator_loss(high, "softplus") < 1e-3 < generator_loss(-high, "softplus")
    assert discriminator_loss(high, -high, "softplus") < 1e-3 < discriminator_loss(-high, high, "softplus")


@check(system=32, number=9)
def test_a_critic_that_is_updated_more_often_swings_less() -> None:
    slow, fast = critic_lag(400), critic_lag(400, ratio=5)
    assert min(slow) == pytest.approx(-0.65, abs=0.005)
    assert min(fast) == pytest.approx(-0.02, abs=0.005)
    assert slow[:3] == pytest.approx([1.0, 0.8, 0.8 - 0.2 * 0.98])
    for ratio, errors in ((1, slow), (3, critic_lag(400, ratio=3))):
        turns = 200 if ratio == 1 else 60
        # Peaks of the swing shrink like (1 - k)^(r/2) a turn.
        peaks = [n for n in range(1, turns) if abs(errors[n - 1]) < abs(errors[n]) > abs(errors[n + 1])]
        rates = [(abs(errors[b]) / abs(errors[a])) ** (1 / (b - a)) for a, b in pairwise(peaks)]
        assert sum(rates) / len(rates) == pytest.approx(0.9 ** (ratio / 2), abs=0.02)


def test_the_factor_that_the_code_leaves_out() -> None:
    kept, left = (method(teacher(schedule=VP()), keep_alpha=keep) for keep in (True, False))
    generator = torch.Generator().manual_seed(2)
    x, real, fake = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    slopes = []
    for m in (kept, left):
        own = x.clone().requires_grad_(True)
        slopes.append(torch.autograd.grad(m.term(Matched(own, x, t, x, real, fake)), [own])[0])
    assert torch.allclose(slopes[0], slopes[1] * VP().alpha(t)[:, None])
    assert float(slopes[0].abs().max()) < float(slopes[1].abs().max())


def test_guidance_is_a_term_of_its_own() -> None:
    model = teacher(num_classes=4)
    m = method(model, guidance=3.0)
    given = batch(6)
    turn = m.prepare(given, 0)
    matched = m.match(turn.x, given.draws, turn.cond, turn.told)
    nobody = Cond(labels=torch.full((6,), 4))
    alone, nothing = (model(matched.x_t, matched.t, c).mean for c in (turn.told, nobody))
    assert torch.allclose(matched.real, alone + guidance_part(alone, nothing, 3.0), atol=1e-5)
    assert isinstance(m.teacher, ClassifierFree)
    assert torch.allclose(matched.fake, m.critic(matched.x_t, matched.t, turn.cond).mean)  # never guided
    assert not guidance_part(alone, nothing, 1.0).any()


def test_the_adversary_leaves_with_its_weight() -> None:
    assert method(gan_weight=0.0).discriminator is None
    alone = method(gan_weight=0.1, matching_weight=0.0)
    turn = alone.prepare(batch(4), 0)
    told = alone.student_loss(batch(4), turn, 0)
    assert set(told) == {"loss", "fooled"}
    assert float(told["loss"].detach()) == pytest.approx(0.1 * float(told["fooled"]), rel=1e-6)


@pytest.mark.parametrize("preset", ["cifar10", "imagenet64"])
def test_full_presets_are_built_and_take_a_step(preset: str) -> None:
    """On thinner networks of the same form; the published ones take minutes here."""
    (stage,) = (recipe := read_recipe("dmd2", preset=preset, teacher="digits")).stages
    assert recipe.requires == "cuda"
    published = {"cifar10": "edm-ddpmpp-cifar10", "imagenet64": "adm-imagenet64"}[preset]
    classes = {"cifar10": 10, "imagenet64": 1000}[preset]
    torch.manual_seed(0)
    arguments = unet_preset(published, num_classes=classes, base_channels=16, num_blocks=1, attention=(8,))
    model = Preconditioned(UNet(**arguments), EDM())
    m = make_method(stage, make_student(stage, model, {}), model)
    student, critic = m.updates
    assert (student.every, critic.every) == (5, 1)
    rates = [update.lr(10_000) for update in m.updates]
    assert rates == [2e-6, 2e-6]
    assert [student.lr(0), critic.lr(0)] == pytest.approx([2e-6 / 500] * 2)
    assert [student.lr(20), critic.lr(100)] == pytest.approx([2e-6 * 101 / 500] * 2)  # both warm up over 500 turns
    assert (m.gan_weight, m.critic_gan_weight, student.clip) == (3e-3, 1e-2, 10.0)
    size = model.shape[-1]
    data = (torch.rand(2, 3, size, size) * 2 - 1, torch.tensor([0, 1]))
    before = m.student.net.output.bias.clone()
    fit(m, data, steps=1, batch_size=2)
    assert not torch.equal(m.student.net.output.bias, before)
