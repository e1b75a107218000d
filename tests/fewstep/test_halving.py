"""Two DDIM steps as one: the target inverts them exactly, for any schedule and any model, down and up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.core.schedule import spread
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Cosine, Flow
from scoreline.fewstep.halving import (
    WEIGHTS,
    double_times,
    encoding_times,
    halving_loss,
    halving_target,
    halving_times,
    halving_weights,
    implied_mean,
    on_students,
    rising_loss,
    rising_target,
    rising_times,
    rising_weights,
    same_schedule,
    snr_weight,
)
from scoreline.fewstep.teachers import advance
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.steps import eta_step

F8 = torch.float64
MU, S = torch.tensor([0.7, -0.4], dtype=F8), torch.tensor([0.5, 0.8], dtype=F8)
COSINE = Cosine(s=0.0, t_min=1e-4, t_max=1 - 1e-4)
SCHEDULES = {"cosine": COSINE, "vp": VP(), "flow": Flow(t_max=0.999)}


def draws(count: int = 6, seed: int = 3):
    return Noise(seed).at(range(count), (2,), dtype=F8)


def mixture(schedule: Any) -> Mixture:
    return Mixture(schedule, torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F8), 0.1)


def student(kind: str = "v", seed: int = 0, schedule: Any = COSINE) -> Preconditioned:
    torch.manual_seed(seed)
    return Preconditioned(MLP(in_shape=(2,), width=32, depth=2), schedule, kind=kind)


@pytest.mark.check(system=17, number=2)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [1, 4, 512])
def test_one_step_with_the_target_ends_where_two_steps_end(name: str, n: int):
    schedule = SCHEDULES[name]
    model, z = mixture(schedule), draws().normal()
    index = torch.tensor([0, 1, n // 2, n - 1, 0, n - 1]).clamp(max=n - 1)
    t, m, s = halving_times(index, n, schedule.t_max)
    target, end = halving_target(model, z, t, m, s)
    # the two steps themselves, by the sampler
    walked = advance(DDIM(), model, z, torch.stack([t, m, s]))
    assert torch.allclose(end, walked, atol=1e-10)
    a, b, _ = eta_step(schedule, t, s, 0.0)
    assert torch.allclose(spread(a, z) * z + spread(b, z) * target, walked, atol=1e-10)
    assert torch.allclose(implied_mean(schedule, z, walked, t, s), target, atol=1e-6)


def test_the_target_of_gaussian_data_in_closed_form():
    """Two DDIM steps of N(MU, S^2) written out, and the x0 that one step needs: the paper's printed formula."""
    model, z = Gaussian(COSINE, MU, S * S), draws().normal()
    t, m, s = halving_times(torch.full((6,), 1), 4, COSINE.t_max)
    (at, st), (am, sm), (as_, ss) = ((COSINE.alpha(v)[0], COSINE.sigma(v)[0]) for v in (t, m, s))
    x1 = MU + at * S**2 / (at**2 * S**2 + st**2) * (z - at * MU)
    zm = am * x1 + sm * (z - at * x1) / st
    x2 = MU + am * S**2 / (am**2 * S**2 + sm**2) * (zm - am * MU)
    zs = as_ * x2 + ss * (zm - am * x2) / sm
    printed = (zs - ss / st * z) / (as_ - ss / st * at)
    target, end = halving_target(model, z, t, m, s)
    assert torch.allclose(end, zs, atol=1e-12)
    assert torch.allclose(target, printed, atol=1e-10)
    assert not torch.allclose(target, x2, atol=1e-3)  # x2 itself is another, worse objective
    # at the clean end it is x2
    t, m, s = halving_times(torch.zeros(6), 4, COSINE.t_max)
    target, end = halving_target(model, z, t, m, s)
    assert torch.allclose(target, end, atol=1e-12)


def test_the_weights_of_the_two_estimates():
    times = halving_times(torch.arange(8), 8, COSINE.t_max)
    w, rest = halving_weights(COSINE, *times)
    assert w[0] == 0
    assert torch.allclose(w + rest, torch.ones(8, dtype=F8))
    assert ((w >= 0) & (w < 1)).all()
    # in float32 the target stays good where the printed difference has lost its digits
    many = halving_times(torch.full((6,), 3000), 8192, COSINE.t_max)
    model, z = mixture(COSINE), draws().normal()
    exact, end = halving_target(model, z, *many)
    single, _ = halving_target(model, z.float(), *many)
    lossy = implied_mean(COSINE, z.float(), end.float(), many[0], many[2])
    assert (single - exact).abs().max() < 1e-5 < (lossy - exact).abs().max()


def test_times_are_those_of_the_sampler():
    t, m, s = halving_times(torch.arange(4), 4, 0.9)
    grid = DDIM(steps=4, grid="time-to-clean").times(Cosine(t_max=0.9))
    fine = DDIM(steps=8, grid="time-to-clean").times(Cosine(t_max=0.9))
    assert t.flip(0).tolist() == pytest.approx(grid[:-1])
    assert s.flip(0).tolist() == pytest.approx(grid[1:])
    assert m.flip(0).tolist() == pytest.approx(fine[1::2])
    assert s[0] == 0


@pytest.mark.check(system=17, number=5)
def test_loss_weights():
    snr = torch.tensor([0.1, 1.0, 9.0], dtype=F8)
    assert snr_weight(snr).tolist() == [1.0, 1.0, 9.0]
    assert snr_weight(np.array([0.1, 9.0])).tolist() == [1.0, 9.0]
    assert snr_weight(snr, "snr+1").tolist() == [1.1, 2.0, 10.0]
    assert snr_weight(snr, "snr").tolist() == snr.tolist()
    assert snr_weight(snr, "one").tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(InputError, match="did you mean"):
        snr_weight(snr, "snr-trunk")
    # in x, v and eps the same deviation, by what the networks answer with
    model, z = student("v"), draws().normal().float()
    t = torch.tensor([0.1, 0.3, 0.5, 0.6, 0.8, 0.95], dtype=F8)
    target = draws().normal(1).float()
    alpha, sigma = (spread(f(t), z) for f in (COSINE.alpha, COSINE.sigma))
    eps = (z - alpha * target) / sigma
    post = model(z, t)
    x_error = (post.mean - target).square().mean(1)
    eps_error = (post.eps - eps).square().mean(1)
    v_error = (post.raw - (alpha * eps - sigma * target)).square().mean(1)
    expected = {"snr-trunc": torch.maximum(x_error, eps_error), "snr+1": v_error, "snr": eps_error, "one": x_error}
    for name in WEIGHTS:
        assert torch.allclose(halving_loss(model, z, t, target, weight=name), expected[name], rtol=1e-4)
    snr = (COSINE.alpha(t) / COSINE.sigma(t)) ** 2
    assert torch.allclose(v_error.double(), x_error.double() * (1 + snr), rtol=1e-4)
    assert torch.allclose(v_error, x_error + eps_error, rtol=1e-4)
    assert torch.allclose(eps_error.double(), snr * x_error.double(), rtol=1e-4)


@pytest.mark.check(system=17, number=3)
@pytest.mark.parametrize("n", [1, 2, 64])
def test_a_teacher_that_says_always_the_same_is_the_target(n: int):
    constant = Gaussian(COSINE, MU, torch.full((2,), 1e-14, dtype=F8))  # data in one point
    z = draws(4).normal()
    for times in (halving_times, double_times):
        target, _ = halving_target(constant, z, *times(torch.tensor([0, n // 2, n - 1, 0]), n, COSINE.t_max))
        assert torch.allclose(target, MU.expand(4, 2), atol=1e-8)


@pytest.mark.check(system=17, number=3)
def test_with_tiny_steps_the_target_is_that_of_the_exact_flow():
    """N(MU, S^2): the flow keeps (z - alpha MU)/sqrt(alpha^2 S^2 + sigma^2); the target's error falls as 1/N^2."""
    model, errors = Gaussian(COSINE, MU, S * S), []
    for n in (100, 200, 400):
        t, m, s = halving_times(torch.tensor([n // 2] * 3 + [3 * n // 4] * 3), n, 1.0)
        z = draws().normal()
        (at, st), (as_, ss) = ((spread(COSINE.alpha(v), z), spread(COSINE.sigma(v), z)) for v in (t, s))
        exact = as_ * MU + (z - at * MU) * ((as_**2 * S**2 + ss**2) / (at**2 * S**2 + st**2)).sqrt()
        _, end = halving_target(model, z, t, m, s)
        errors.append((end - exact).abs().max().item())
        wanted = implied_mean(COSINE, z, exact, t, s)
        assert (halving_target(model, z, t, m, s)[0] - wanted).abs().max() < 2 / n
    assert errors[1] / errors[0] == pytest.approx(0.25, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(0.25, rel=0.1)


def test_times_of_double_length():
    t, m, s = double_times(torch.arange(4), 4, 0.8)
    assert t.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert s.tolist() == pytest.approx([0.0, 0.0, 0.2, 0.4])
    assert m.tolist() == pytest.approx([0.1, 0.2, 0.4, 0.6])
    one = [times(torch.tensor(0), 1) for times in (halving_times, double_times)]
    assert one[0] == one[1]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [1, 4, 64])
def test_one_step_up_with_the_target_ends_where_two_steps_end(name: str, n: int):
    schedule = SCHEDULES[name]
    model, z = mixture(schedule), draws().normal()
    index = torch.tensor([0, 1, n // 2, n - 1, 0, n - 1]).clamp(max=n - 1)
    s, m, t = rising_times(index, n, schedule)
    assert (s < m).all()
    assert (m < t).all()
    assert set(s.tolist()) | {schedule.t_max} <= set(encoding_times(schedule, n).tolist())
    target, end = rising_target(model, z, s, m, t)
    walked = advance(DDIM(), model, z, torch.stack([s, m, t]))
    assert torch.allclose(end, walked, rtol=1e-7, atol=1e-7)
    ratio, spare = schedule.alpha(t) / schedule.alpha(s), schedule.sigma(t)
    step = spread(ratio, z) * z + spread(spare - schedule.sigma(s) * ratio, z) * target
    assert torch.allclose(step, end, rtol=1e-7, atol=1e-7)
    w, rest = rising_weights(schedule, s, m, t)
    assert torch.allclose(w + rest, torch.ones(6, dtype=F8))
    assert ((w > 0) & (w < 1)).all()


def test_the_loss_on_the_way_up_is_that_of_x_again():
    model, z = student(), draws().normal().float()
    s = torch.tensor([0.1, 0.3, 0.5, 0.6, 0.8, 0.9], dtype=F8)
    alpha, sigma = (spread(f(s), z) for f in (COSINE.alpha, COSINE.sigma))
    noise = draws().normal(1).float()
    image = (z - sigma * noise) / alpha
    for name in WEIGHTS:
        wanted = halving_loss(model, z, s, image, weight=name)
        assert torch.allclose(rising_loss(model, z, s, noise, weight=name), wanted, rtol=1e-4)


def test_a_teacher_on_its_students_schedule():
    assert same_schedule(Cosine(s=0.0), Cosine(s=0.0))
    assert not same_schedule(Cosine(s=0.0), Cosine())
    assert not same_schedule(Cosine(), VP())
    assert on_students(mixture(COSINE), Cosine(s=0.0, t_min=1e-4, t_max=1 - 1e-4)).schedule.t_min == 1e-4
    edm = Gaussian(EDM(), MU, S * S)
    there = on_students(edm, COSINE)
    assert there.schedule is COSINE
    level = COSINE.sigma(0.5) / COSINE.alpha(0.5)
    z = draws().normal()
    assert torch.allclose(there(z, 0.5).mean, edm(z / COSINE.alpha(0.5), level).mean)
