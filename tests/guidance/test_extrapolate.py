"""Classifier-free guidance: the laws of s, and that every kind of network gives the same pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.core.schedule import spread
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.guidance.extrapolate import ClassifierFree, extrapolate, rescale
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.ddpm import DDPM
from scoreline.samplers.heun import Heun

F8 = torch.float64
MEANS = torch.tensor([[1.0, 0.0], [0.8, 0.3], [-1.0, 0.2], [0.0, -1.1]], dtype=F8)
LABELS = torch.tensor([0, 0, 1, 2])


def exact(schedule: Any) -> Mixture:
    return Mixture(schedule, MEANS, 0.05, labels=LABELS)


class ExactNet(nn.Module):
    """A perfect network of the mixture in the given kind, with null labels; mix depends on the condition."""

    def __init__(self, kind: str, schedule: Any, *, learned: bool = False) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1, dtype=F8))
        self.kind, self.schedule, self.learned = kind, schedule, learned
        self.model = exact(schedule)
        self.in_shape, self.num_classes = (2,), 3
        self.batches: list[int] = []

    def null(self, cond: Cond) -> Cond:
        return self.model.null(cond)

    def trace(self, x: Tensor, t: Tensor, cond: Cond, plan: Any) -> tuple[Tensor, dict]:
        self.batches.append(len(x))
        post = self.model(x, t.expand(len(x)), cond)
        alpha, sigma = (spread(v.expand(len(x)), x) for v in (self.schedule.alpha(t), self.schedule.sigma(t)))
        raw = {"eps": post.eps, "x0": post.mean, "v": alpha * post.eps - sigma * post.mean}[self.kind]
        mix = cond.labels[:, None].double().expand_as(raw) / 10
        return torch.cat([raw, mix], 1) if self.learned else raw, {}


def network(kind: str, schedule: Any, **more: Any) -> Preconditioned:
    return Preconditioned(ExactNet(kind, schedule, **more), schedule, kind=kind, learned_variance=bool(more))


def points(count: int = 6) -> tuple[Tensor, Cond]:
    x = torch.randn(count, 2, dtype=F8, generator=torch.Generator().manual_seed(0))
    return x, Cond(labels=torch.arange(count) % 3)


SCHEDULES = [EDM(), VP(), Discrete(T=50)]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def times(schedule: Any, count: int) -> list[Any]:
    known = schedule.known
    some = torch.linspace(0.2, 0.8, count, dtype=F8) * (1 if known is None else 40)
    return [0.4 if known is None else 20.0, some if known is None else some.round()]


@schedules
@pytest.mark.check(system=9, number=7)
def test_s_1_is_conditional_s_0_unconditional_and_between_it_is_linear(schedule):
    x, cond = points()
    model = exact(schedule)
    null = model.null(cond)
    for t in times(schedule, len(x)):
        c, u = model(x, t, cond), model(x, t, null)
        assert float((c.mean - u.mean).abs().max()) > 0.05
        for s in (0.0, 0.3, 1.0, 2.5, -1.0):
            post = ClassifierFree(model, s)(x, t, cond)
            for name in ("mean", "eps", "score"):
                want = getattr(u, name) + s * (getattr(c, name) - getattr(u, name))
                torch.testing.assert_close(getattr(post, name), want, rtol=1e-9, atol=1e-9)


@pytest.mark.check(system=9, number=7)
def test_eps_v_and_x0_networks_give_the_same_guided_pictures():
    schedule = VP()
    x, cond = points()
    for t in times(schedule, len(x)):
        posts = [ClassifierFree(network(kind, schedule), 3.0)(x, t, cond) for kind in ("eps", "v", "x0")]
        want = ClassifierFree(exact(schedule), 3.0)(x, t, cond)
        for post in posts:
            torch.testing.assert_close(post.mean, want.mean, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(post.eps, want.eps, rtol=1e-9, atol=1e-9)
    draws = Noise(0).at(range(6), (2,), dtype=F8)
    pictures = [
        Heun(steps=6)(ClassifierFree(model, 3.0).given(cond), draws).x
        for model in (exact(schedule), *(network(kind, schedule) for kind in ("eps", "v", "x0")))
    ]
    for other in pictures[1:]:
        torch.testing.assert_close(other, pictures[0], rtol=1e-8, atol=1e-8)


@pytest.mark.check(system=9, number=7)
def test_learned_variance_is_never_guided():
    schedule = Discrete(T=50)
    x, cond = points()
    model = network("eps", schedule, learned=True)
    for s in (0.0, 1.0, 4.0):
        post = ClassifierFree(model, s)(x, 20.0, cond)
        torch.testing.assert_close(post.mix, cond.labels[:, None].double().expand(6, 2) / 10)
        assert torch.equal(post.mix, model(x, 20.0, cond).mix)
        assert post.mean.shape == x.shape
    sample = DDPM(steps=5, variance="learned")(ClassifierFree(model, 2.0).given(cond), Noise(0).at(range(6), (2,)))
    assert torch.isfinite(sample.x).all()


def test_one_doubled_batch_that_counts_twice():
    schedule = Discrete(T=50)
    x, cond = points()
    model = network("eps", schedule)
    guided = ClassifierFree(model, 2.0)
    assert guided.evaluations == 2
    sample = DDIM(steps=5)(guided.given(cond), Noise(0).at(range(6), (2,), dtype=F8))
    assert model.net.batches == [12] * 5
    assert sample.nfe == 10
    assert guided.num_classes == 3
    one = guided(x[:1], torch.tensor([20.0], dtype=F8), cond[:1])
    torch.testing.assert_close(one.mean, guided(x, 20.0, cond).mean[:1])


def test_already_null_conditions_are_not_moved():
    x, _ = points()
    cond = Cond(labels=torch.full((6,), 3))
    model = exact(EDM())
    torch.testing.assert_close(ClassifierFree(model, 7.0)(x, 0.5, cond).mean, model(x, 0.5, cond).mean)


def test_two_guidances_are_the_product():
    x, cond = points()
    model = exact(EDM())
    twice = ClassifierFree(ClassifierFree(model, 2.0), 1.5)
    torch.testing.assert_close(twice(x, 0.5, cond).mean, ClassifierFree(model, 3.0)(x, 0.5, cond).mean)
    assert twice.evaluations == 4


def test_in_another_schedule():
    x, cond = points()
    schedule = VP()
    guided = ClassifierFree(exact(EDM()), 2.0)
    there = guided.on(schedule)(x, 0.3, cond)
    torch.testing.assert_close(there.mean, ClassifierFree(exact(schedule), 2.0)(x, 0.3, cond).mean)


def test_extrapolate():
    u, c = torch.randn(2, 5, dtype=F8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(extrapolate(u, c, 0.0), u)
    assert torch.equal(extrapolate(u, c, 1.0), c)
    # Ho and Salimans: (1 + w) eps_c - w eps_u with w = s - 1.
    torch.testing.assert_close(extrapolate(u, c, 3.5), 3.5 * c - 2.5 * u)


def test_rescale_gives_back_the_conditional_deviation():
    guided, c = torch.randn(2, 3, 4, 5, dtype=F8, generator=torch.Generator().manual_seed(0))
    guided = guided * torch.tensor([1.0, 4.0, 9.0], dtype=F8)[:, None, None] + 0.3
    assert torch.equal(rescale(guided, c, 0.0), guided)
    full = rescale(guided, c, 1.0)
    torch.testing.assert_close(full.std((1, 2)), c.std((1, 2)))
    torch.testing.assert_close(full / guided, (c.std((1, 2)) / guided.std((1, 2)))[:, None, None].expand_as(c))
    torch.testing.assert_close(rescale(guided, c, 0.7), 0.7 * full + 0.3 * guided)
    zero = torch.zeros(2, 3)
    assert torch.equal(rescale(zero, zero, 0.7), zero)


def test_rescaled_guidance_is_in_the_networks_own_kind():
    schedule = Discrete(T=50)
    x, cond = points()
    model = network("v", schedule)
    raw = ClassifierFree(model, 4.0)(x, 20.0, cond).raw
    got = ClassifierFree(model, 4.0, rescaling=0.7)(x, 20.0, cond)
    want = rescale(raw, model(x, 20.0, cond).raw, 0.7)
    torch.testing.assert_close(got.raw, want)
    torch.testing.assert_close(got.eps, schedule.sigma(20.0) * x + schedule.alpha(20.0) * want)


def test_refusals():
    model: Denoiser = exact(EDM())
    x, _ = points()
    for share in (-0.1, 1.1):
        with pytest.raises(InputError, match="rescaling"):
            ClassifierFree(model, 2.0, rescaling=share)
    with pytest.raises(InputError, match="takes no conditions"):
        ClassifierFree(Gaussian(EDM(), torch.zeros(2), 1.0), 2.0)
    with pytest.raises(InputError, match="guidance needs conditions"):
        ClassifierFree(model, 2.0)(x, 0.5)
