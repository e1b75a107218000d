"""Diff-Instruct and DMD: scores on Gaussians, the regression on pairs, and what each leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.data.pair_store import Pairs
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP
from scoreline.fewstep.diff_instruct import DMD, DiffInstruct, noise_of, score_weight
from scoreline.fewstep.matching import Matched
from scoreline.nn.mlp import MLP
from scoreline.train import fit

RATE: dict[str, Any] = {"lr": 1e-3, "critic_lr": 1e-3}


def teacher(num_classes: int | None = None) -> Preconditioned:
    torch.manual_seed(0)
    net = MLP(in_shape=(3,), width=16, depth=1, num_classes=num_classes)
    with torch.no_grad():
        net.output.weight.normal_(std=0.2)
    return Preconditioned(net, EDM(), sigma_data=0.5)


def matched(x: torch.Tensor, t: torch.Tensor, schedule: Any) -> Matched:
    """What two Gaussians with means 0.5 (the critic's) and -0.2 say of noised images."""
    noise = Noise(1).at(range(len(x)), (3,), dtype=torch.float64).normal()
    x_t = schedule.marginal(x, t, noise)
    real, fake = (Gaussian(schedule, torch.full((3,), m, dtype=torch.float64), 0.3)(x_t, t).mean for m in (-0.2, 0.5))
    return Matched(x, x_t, t, noise, real, fake)


@pytest.mark.parametrize("schedule", [EDM(), VP()], ids=["edm", "vp"])
@pytest.mark.parametrize("weight", ["one", "score"])
def test_the_gradient_is_that_of_the_integral_kl(schedule: Any, weight: str) -> None:
    m = DiffInstruct(DiffInstruct.student_of(teacher()), teacher(), weight=weight, **RATE)
    m.schedule = schedule
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    t = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.9], dtype=torch.float64)
    (slope,) = torch.autograd.grad(m.term(matched(x, t, schedule)), [x])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    total = alpha**2 * 0.3 + sigma**2
    # Scores of N(alpha m, total): the difference is alpha (m_fake - m_real)/total.
    gap = alpha * 0.7 / total if weight == "score" else sigma**2 * 0.7 / total
    assert torch.allclose(slope, (gap / x.numel())[:, None].expand(5, 3), rtol=1e-9)
    assert torch.allclose(score_weight(schedule, t), alpha / sigma**2)


def test_what_the_two_methods_are_unless_told_otherwise() -> None:
    a = DiffInstruct(DiffInstruct.student_of(teacher()), teacher())
    b = DMD(DMD.student_of(teacher()), teacher(), regression=0.0)
    for m in (a, b):
        assert [update.every for update in m.updates] == [1, 1]
        assert m.discriminator is None
        assert m.made_for == (1,)
    fit(a, None, steps=2, batch_size=4)  # no data
    with pytest.raises(InputError, match="did you mean 'score'"):
        DiffInstruct(a.student, teacher(), weight="scores")
    with pytest.raises(InputError, match="regression"):
        DMD(a.student, teacher(), regression=-1.0)
    with pytest.raises(InputError, match="matching or regression"):
        DMD(a.student, teacher(), regression=0.0, matching_weight=0.0)
    with pytest.raises(InputError, match="distance"):
        DMD(a.student, teacher(), distance="lpisp-vgg")


def test_the_direction_of_dmd_is_normalised() -> None:
    m = DMD(DMD.student_of(teacher()), teacher(), regression=0.0, **RATE)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    t = torch.tensor([0.1, 1.0, 3.0, 20.0], dtype=torch.float64)
    pair = matched(x, t, EDM())
    (slope,) = torch.autograd.grad(m.term(pair), [x])
    wanted = (pair.fake - pair.real) / (x - pair.real).abs().mean(1, keepdim=True) / x.numel()
    assert torch.allclose(slope, wanted.detach())
    assert (slope > 0).all()


def test_the_regression_compares_the_student_with_the_teachers_end_at_the_same_noise() -> None:
    source = teacher(num_classes=4)
    m = DMD(DMD.student_of(source), source, regression=0.25, distance="squared", **RATE)
    z = Noise(5).at(range(6), (3,)).normal()
    label = torch.arange(6) % 4
    with torch.no_grad():
        y = m.student.answer(80 * z, 80.0, Cond(labels=label)) + 0.3
    draws = Noise(0).at(range(6), (3,))
    batch = Batch(y, label, torch.arange(6), extras={"noise": z}, draws=draws)
    told = m.student_loss(batch, m.prepare(batch, 0), 0)
    assert told["regression"].item() == pytest.approx(0.09, rel=1e-5)
    assert told["loss"].item() == pytest.approx(told["matching"].item() + 0.25 * 0.09, rel=1e-5)
    # The regression alone: descending adds to every entry.
    alone = DMD(DMD.student_of(source), source, matching_weight=0.0, distance="squared", **RATE)
    before = alone.student.net.output.bias.detach().clone()
    fit(alone, Pairs(z, y, label, num_classes=4), steps=1, batch_size=6)
    assert (alone.student.net.output.bias > before).all()
    with pytest.raises(InputError, match="pairs"):
        noise_of(Batch(y, label, torch.arange(6), draws=draws))
    with pytest.raises(InputError, match="pairs"):
        fit(DMD(DMD.student_of(source), source, distance="squared", **RATE), (y, label), steps=1, batch_size=4)
