"""SIM: its theorem on exact Gaussians, its loss by hand and against SiD's, and the text model's table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP
from scoreline.fewstep.matching import Matched
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.fewstep.sid import sid_loss
from scoreline.fewstep.sim import (
    DISTANCES,
    SIM,
    conditional_score,
    distance_gradient,
    distance_value,
    mean_score,
    sim_loss,
    sim_score_loss,
    text_levels,
    text_scalings,
    text_time,
)
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.samplers.jumps import Jumps
from scoreline.train import fit

G = torch.Generator().manual_seed(0)
X, REAL, FAKE = (torch.randn(5, 2, 3, 3, generator=G, dtype=torch.float64) for _ in range(3))
NODE, WEIGHT = np.polynomial.hermite_e.hermegauss(40)
Z, EPS = (torch.from_numpy(v.ravel()) for v in np.meshgrid(NODE, NODE))
SHARE = torch.from_numpy(np.outer(WEIGHT, WEIGHT).ravel() / WEIGHT.sum() ** 2)


def gaussians(m, s, m_t, s_t, a, b, distance, c=0.3, p=4.0):
    """(divergence, its gradient in m and s at a frozen law of x_t, the surrogate's value, its gradient in m and s)."""
    m, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (m, s))

    def student(x, m, s):
        return (a * m - x) / (a * a * s * s + b * b)

    def teacher(x):
        return (a * m_t - x) / (a * a * s_t**2 + b * b)

    def mean(value):
        return (SHARE * value).sum()

    x_0 = m + s * Z
    x_t = a * x_0 + b * EPS
    online = student(x_t, m.detach(), s.detach())
    loss = sim_score_loss(
        teacher(x_t)[:, None],
        online[:, None],
        conditional_score(x_0[:, None], x_t[:, None], a, b),
        distance,
        c=c,
        p=p,
    )
    surrogate = torch.autograd.grad(mean(loss), (m, s))
    at = x_t.detach()
    divergence = mean(distance_value((student(at, m, s) - teacher(at))[:, None], distance, c=c, p=p))
    frozen = torch.autograd.grad(divergence, (m, s))
    return divergence.item(), [float(g) for g in frozen], mean(loss).item(), [float(g) for g in surrogate]


@pytest.mark.check(system=20, number=1)
def test_equal_variances_leave_the_difference_of_means():
    m, m_t, s, a, b = 0.5, -0.2, 0.7, 0.8, 0.6
    V = a * a * s * s + b * b
    divergence, _, _, surrogate = gaussians(m, s, m_t, s, a, b, "squared")
    assert divergence == pytest.approx(a**2 * (m - m_t) ** 2 / V**2, rel=1e-9)
    assert surrogate[0] == pytest.approx(2 * a**2 * (m - m_t) / V**2, rel=1e-9)


@pytest.mark.check(system=20, number=2)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_surrogates_gradient_is_that_of_the_divergence_at_a_frozen_law_and_its_value_is_nothing(distance):
    # c so large that forty nodes integrate the root
    _, frozen, value, surrogate = gaussians(0.5, 0.7, -0.2, 1.0, 0.9, 0.5, distance, c=2.0)
    assert surrogate == pytest.approx(frozen, rel=1e-6)
    assert min(abs(g) for g in surrogate) > 0.01
    assert value == pytest.approx(0.0, abs=1e-7)


@pytest.mark.check(system=20, number=3)
def test_numbers_of_one_case():
    divergence, frozen, _, surrogate = gaussians(0.5, 0.7, -0.2, 1.0, 1.0, 0.5, "squared")
    assert divergence == pytest.approx(0.5385513514, abs=1e-9)
    assert frozen[0] == pytest.approx(1.513513514, abs=1e-8)
    assert surrogate[0] == pytest.approx(1.513513514, abs=1e-8)


@pytest.mark.check(system=20, number=4)
@pytest.mark.parametrize("distance", ["squared", "pseudo-huber", "lp"])
def test_a_student_like_the_teacher_has_no_loss_and_no_gradient(distance):
    x = X.clone().requires_grad_()
    model = Gaussian(EDM(), torch.zeros(2, 3, 3, dtype=torch.float64), 0.4)
    x_t = x + 0.5 * REAL
    answer = model(x_t, 0.5).mean
    loss = sim_loss(x, answer, answer.clone(), distance)
    assert torch.equal(loss, torch.zeros(5, dtype=torch.float64))
    assert torch.autograd.grad(loss.sum(), x)[0].abs().max() < 1e-12


@pytest.mark.check(system=20, number=5)
def test_pseudo_huber_between_half_the_square_and_the_norm():
    square = distance_gradient(X, "squared")
    assert torch.allclose(1e6 * distance_gradient(X, c=1e6), square / 2, rtol=1e-8)
    x = [X.clone().requires_grad_() for _ in range(2)]
    far = 1e6 * sim_loss(x[0], REAL + x[0].sin(), FAKE, c=1e6)
    near = sim_loss(x[1], REAL + x[1].sin(), FAKE, "squared") / 2
    gradients = [torch.autograd.grad(loss.sum(), v)[0] for loss, v in ((far, x[0]), (near, x[1]))]
    assert torch.allclose(*gradients, rtol=1e-6)
    small = distance_gradient(X, c=1e-9)
    assert small.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 5, rel=1e-12)
    assert torch.allclose(distance_value(X, c=1e-9), X.flatten(1).norm(dim=1))


@pytest.mark.check(system=20, number=6)
def test_half_the_squared_loss_is_sids_without_its_normaliser():
    assert torch.allclose(sim_loss(X, REAL, FAKE, "squared") / 2, sid_loss(X, REAL, FAKE, 1.0, None), atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_d_prime_is_the_derivative_of_d(distance):
    y = X.clone().requires_grad_()
    value = distance_value(y, distance, c=0.7, p=3.0)
    assert value.shape == (5,)
    expected = torch.autograd.grad(value.sum(), y)[0]
    assert torch.allclose(distance_gradient(X, distance, c=0.7, p=3.0), expected, atol=1e-12)


def test_values_of_the_distances():
    y = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    assert float(distance_value(y, "squared")) == 25
    assert float(distance_value(y, c=12.0)) == pytest.approx(1.0)
    assert float(distance_value(y, "lp", p=3.0)) == pytest.approx(27 + 64)


@pytest.mark.parametrize("distance", ["squared", "pseudo-huber"])
def test_scores_and_images_differ_by_a_weight_and_a_constant(distance):
    schedule = VP()
    t = torch.linspace(0.2, 0.8, 5, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = schedule.marginal(X, t, REAL)
    scores = [mean_score(d, x_t, alpha, sigma) for d in (REAL, FAKE, X)]
    assert torch.allclose(scores[2], -(REAL / sigma.view(-1, 1, 1, 1)), atol=1e-12)
    assert torch.equal(scores[2], conditional_score(X, x_t, alpha, sigma))
    for i in range(5):
        size = float(sigma[i] ** 2 / alpha[i])
        weight = torch.tensor([size if distance == "pseudo-huber" else size**2], dtype=torch.float64)
        row = slice(i, i + 1)
        in_scores = sim_score_loss(*(s[row] for s in scores), distance, c=0.5 / size, weight=weight)
        assert torch.allclose(in_scores, sim_loss(X[row], REAL[row], FAKE[row], distance, c=0.5))


def test_the_loss_by_hand_and_its_weight():
    x, real, fake = (torch.tensor([[v]], dtype=torch.float64) for v in (1.0, 3.0, 6.0))
    # y = 3, b = 5, d' = 3/sqrt(9 + 16)
    assert float(sim_loss(x, real, fake, c=4.0)) == pytest.approx(-3 / 5 * 5)
    weight = torch.tensor([2.0])
    assert float(sim_loss(x, real, fake, c=4.0, weight=weight)) == pytest.approx(-6)
    assert float(sim_loss(x, real, fake, "squared")) == pytest.approx(-30)


@pytest.mark.parametrize(("space", "power"), [("image", 0.0), ("image", 1.0), ("score", 0.0), ("score", 2.0)])
def test_the_methods_term(space, power):
    torch.manual_seed(0)
    teacher = Preconditioned(MLP(in_shape=(2, 3, 3), width=8, depth=1), EDM())
    made = SIM(SIM.student_of(teacher), teacher, space=space, power=power, c=0.2)
    t = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)
    noise = torch.randn(5, 2, 3, 3, generator=G, dtype=torch.float64)
    x_t = EDM().marginal(X, t, noise)
    size = t.view(-1, 1, 1, 1) ** 2 if space == "score" else torch.ones(5, 1, 1, 1, dtype=torch.float64)
    y, b = (FAKE - REAL) / size, (FAKE - X) / size
    each = -(y / (y.square().sum((1, 2, 3), keepdim=True) + 0.04).sqrt() * b).sum((1, 2, 3)) * t ** (2 * power)
    assert float(made.term(Matched(X, x_t, t, noise, REAL, FAKE))) == pytest.approx(float(each.mean()))
    assert made.start_levels == [2.5]
    assert made.through


@pytest.mark.check(system=20, number=8)
def test_the_text_models_table():
    u = text_levels()
    assert len(u) == 1001
    assert u[0] == pytest.approx(156.6, abs=0.05)
    assert u[-1] == 0
    assert (np.diff(u) < 0).all()
    assert u[999] == pytest.approx(math.sqrt(1 / (1 - (0.02 + (1e-4 - 0.02))) - 1))
    assert int(text_time(2.5)) == 440
    assert text_time(torch.tensor([2.5, u[0], 0.0])).tolist() == [440, 999, 0]
    assert text_time(np.array([2.5, 1e9])).tolist() == [440, 999]
    c_skip, c_out, c_in = text_scalings(2.5)
    assert (c_skip, c_out) == (1.0, -2.5)
    assert c_in == pytest.approx(1 / math.sqrt(7.25))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"distance": "huber"}, "pseudo-huber"),
        ({"c": 0.0}, "positive"),
        ({"distance": "lp", "p": 1.0}, "above 1"),
        ({"space": "latent"}, "score"),
    ],
    ids=["distance", "c", "p", "space"],
)
def test_what_is_refused(settings, said):
    teacher = Preconditioned(MLP(in_shape=(3,), width=8, depth=1), EDM())
    with pytest.raises(InputError, match=said):
        SIM(SIM.student_of(teacher), teacher, **settings)


def test_it_draws_the_generator_to_the_teachers_data():
    data = torch.tensor([0.6, -0.3])
    torch.manual_seed(0)
    student = Preconditioned(MLP(in_shape=(2,), width=16, depth=1), EDM())
    made = SIM(SIM.student_of(None, student), Gaussian(EDM(), data, 0.04), student, lr=1e-2, critic_lr=1e-2)
    result = fit(made, None, steps=100, batch_size=16, seed=0, ema=0.8).result()
    x = Jumps(steps=1)(result.denoiser, Noise(5).at(range(200), (2,))).x
    assert torch.allclose(x.mean(0), data, atol=0.12)
    assert torch.allclose(x.std(0), torch.full((2,), 0.2), atol=0.1)


@pytest.mark.parametrize("name", ["sim", "sid"])
def test_the_cifar10_preset_is_built_and_takes_a_step(name):
    torch.manual_seed(0)
    teacher = Preconditioned(
        UNet(in_shape=(3, 32, 32), base_channels=16, channel_mult=(2, 2, 2), num_blocks=1, dropout=0.1), EDM()
    )
    recipe = read_recipe(name, preset="cifar10", teacher="its file")
    (stage,) = recipe.stages
    assert recipe.requires == "cuda"
    assert not stage.get("data")
    made = make_method(stage, make_student(stage, teacher, {}), teacher)
    assert (made.updates[0].lr, made.updates[1].lr, stage["batch_size"]) == (1e-5, 1e-5, 256)
    before = [p.clone() for p in made.student.parameters()]
    fit(made, None, steps=1, batch_size=2)
    assert not all(torch.equal(a, b) for a, b in zip(before, made.student.parameters()))


@pytest.mark.parametrize("name", ["sim", "sid"])
def test_both_rates_of_the_digits_preset_warm_up_for_a_shorter_time_where_steps_are_few(name):
    assert read_recipe(f"{name}-digits").stages[0]["settings"]["critic_lr"]["cosine"]["warmup"] == 20
    settings = read_recipe(f"{name}-digits", changes={"steps": 10}).stages[0]["settings"]
    assert [settings[key]["cosine"]["warmup"] for key in ("lr", "critic_lr")] == [1, 1]
