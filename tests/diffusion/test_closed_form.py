"""Closed-form denoisers against quadrature, autograd and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.schedule import Schedule
from scoreline.diffusion.closed_form import Empirical, Gaussian, Mixture
from scoreline.diffusion.schedules import EDM, VP, Flow

F8 = torch.float64
SCHEDULES = [lookup("schedule", name)() for name in names("schedule")]
every = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def levels(schedule: Schedule) -> list[float]:
    return [float(t) for t in schedule.time(np.array([-1.5, 0.2, 1.7]))]


def quadrature(
    x: float, alpha: float, sigma: float, weights: list, means: list, variances: list
) -> tuple[float, float]:
    """E[x_0 | x_t = x] and log p_t(x) of a one-dimensional mixture by a fine sum."""
    grid = np.linspace(-8, 8, 400001)
    prior = sum(
        w * np.exp(-((grid - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
        for w, m, v in zip(weights, means, variances)
    )
    joint = prior * np.exp(-((x - alpha * grid) ** 2) / (2 * sigma**2)) / math.sqrt(2 * math.pi * sigma**2)
    h = grid[1] - grid[0]
    return (joint * grid).sum() / joint.sum(), math.log(joint.sum() * h)


@every
def test_mixture_is_the_posterior_mean(schedule: Schedule) -> None:
    weights, means, variances = [0.25, 0.5, 0.25], [-1.0, 0.3, 1.5], [0.04, 0.2, 0.1]
    model = Mixture(schedule, torch.tensor(means, dtype=F8)[:, None], torch.tensor(variances, dtype=F8), weights)
    for t in levels(schedule):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        for x in (-1.3, 0.1, 0.9):
            mean, log_density = quadrature(x, alpha, sigma, weights, means, variances)
            at = torch.tensor([[x]], dtype=F8)
            assert model(at, t).mean.item() == pytest.approx(mean, abs=1e-8)
            assert model.log_density(at, t).item() == pytest.approx(log_density, abs=1e-8)
            assert model(at, t).eps.item() == pytest.approx((x - alpha * mean) / sigma, abs=1e-8)


@every
def test_score_is_the_gradient_of_the_log_density(schedule: Schedule) -> None:
    torch.manual_seed(0)
    model = Mixture(schedule, torch.randn(4, 2, 2, dtype=F8), torch.rand(4, dtype=F8) + 0.05, torch.rand(4, dtype=F8))
    t = torch.tensor(levels(schedule), dtype=F8)
    x = torch.randn(3, 2, 2, dtype=F8, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.log_density(x, t).sum(), x)
    assert torch.allclose(model.score(x, t), gradient, atol=1e-10)
    assert torch.allclose(model.responsibilities(x, t).sum(1), torch.ones(3, dtype=F8))


@every
def test_one_component_is_a_gaussian_and_smoothed_points_are_a_mixture(schedule: Schedule) -> None:
    torch.manual_seed(1)
    x, points = torch.randn(3, 4, dtype=F8), torch.randn(5, 4, dtype=F8)
    for t in levels(schedule):
        one, gauss = Mixture(schedule, points[:1], 0.3), Gaussian(schedule, points[0], 0.3)
        for name in ("mean", "eps", "score"):
            assert torch.allclose(getattr(one(x, t), name), getattr(gauss(x, t), name), atol=1e-11)
        smooth, mix = Empirical(schedule, points, smoothing=0.4), Mixture(schedule, points, 0.16)
        assert torch.allclose(smooth(x, t).mean, mix(x, t).mean, atol=1e-12)


def test_empirical_gives_back_its_points() -> None:
    data = torch.randn(20, 1, 4, 4)
    model = Empirical(EDM(), data)
    noisy = data + 0.01 * torch.randn_like(data)
    assert (model(noisy, 0.01).mean - data).abs().max() < 1e-5
    assert torch.allclose(model(noisy, 1e4).mean, data.mean(0, keepdim=True).expand_as(data), atol=1e-3)


@pytest.mark.check(system=9, number=4)
@every
def test_exact_eps_of_gaussian_data(schedule: Schedule) -> None:
    """eps = sigma (x - alpha mu)/(alpha^2 s^2 + sigma^2); abar = alpha^2 gives the variance-preserving case."""
    torch.manual_seed(2)
    mu, s2 = torch.randn(3, dtype=F8), torch.rand(3, dtype=F8)
    model, x = Gaussian(schedule, mu, s2), torch.randn(5, 3, dtype=F8)
    for t in levels(schedule):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        expected = sigma * (x - alpha * mu) / (alpha**2 * s2 + sigma**2)
        assert torch.allclose(model.eps(x, t), expected, atol=1e-13)
        assert torch.allclose(model(x, t).mean, mu + alpha * s2 / (alpha**2 * s2 + sigma**2) * (x - alpha * mu))
        assert torch.allclose(model.score(x, t), -(x - alpha * mu) / (alpha**2 * s2 + sigma**2))


@pytest.mark.check(system=22, number=8)
def test_exact_flow_of_a_gaussian() -> None:
    mu, s, S = torch.tensor([0.7, -0.2], dtype=F8), torch.tensor([0.5, 1.3], dtype=F8), 80.0
    model, x = Gaussian(EDM(), mu, s**2), torch.randn(4, 2, dtype=F8) * S
    assert torch.allclose(model.flow(x, S, 0.0), mu + (x - mu) * s / (s**2 + S**2).sqrt(), atol=1e-12)


@every
def test_the_flow_solves_the_ode(schedule: Schedule) -> None:
    model = Gaussian(schedule, torch.tensor([0.7, -0.2], dtype=F8), torch.tensor([0.5, 0.1], dtype=F8))
    t, mid, s = schedule.time(np.array([-1.0, 0.3, 1.5])).tolist()
    if schedule.known is not None:
        t, mid, s = (float(v) for v in schedule.snap(np.array([t, mid, s])))
    x = torch.tensor([[1.1, -0.4]], dtype=F8)
    if schedule.known is None:
        run = solve_ivp(
            lambda u, y: model.velocity(torch.tensor(y[None]), float(u))[0].numpy(),
            (t, s),
            x[0].numpy(),
            rtol=1e-9,
            atol=1e-11,
        )
        assert model.flow(x, t, s)[0].numpy() == pytest.approx(run.y[:, -1], abs=1e-6)
    assert torch.allclose(model.flow(model.flow(x, t, mid), mid, s), model.flow(x, t, s), atol=1e-13)
    assert torch.allclose(model.flow(model.flow(x, t, s), s, t), x, atol=1e-12)
    times = torch.tensor([t, mid], dtype=F8)
    both = model.flow(x.expand(2, 2), times, torch.tensor([s, s], dtype=F8))
    assert torch.allclose(both[1:], model.flow(x, mid, s))


def test_labels_restrict_the_mixture() -> None:
    means = torch.tensor([[-2.0], [2.0], [5.0]], dtype=F8)
    model = Mixture(EDM(), means, 0.1, labels=torch.tensor([0, 1, 1]))
    x = torch.tensor([[0.0], [0.0], [0.0]], dtype=F8)
    mean = model(x, 1.0, Cond(labels=torch.tensor([0, 1, 2]))).mean
    assert mean[0].item() == pytest.approx(Mixture(EDM(), means[:1], 0.1)(x[:1], 1.0).mean.item())
    assert mean[1].item() == pytest.approx(Mixture(EDM(), means[1:], 0.1)(x[:1], 1.0).mean.item())
    assert mean[2].item() == pytest.approx(model(x[:1], 1.0).mean.item())
    assert model.num_classes == 2
    null = model.null(Cond(labels=torch.tensor([0, 1])))
    assert null.labels is not None
    assert null.labels.tolist() == [2, 2]
    with pytest.raises(InputError, match="labels"):
        Mixture(EDM(), means, 0.1)(x, 1.0, Cond(labels=torch.tensor([0, 0, 0])))


@pytest.mark.parametrize("label", [-1, 3, 7])
def test_labels_that_no_component_has_are_refused(label: int) -> None:
    """Where conditions are bound, on the host: a step does not look at the values of labels."""
    model = Mixture(EDM(), torch.tensor([[-2.0], [2.0]]), 0.1, labels=torch.tensor([0, 1]))
    with pytest.raises(InputError, match="no component"):
        model.given(Cond(labels=torch.tensor([label])))


def test_conditions_that_a_model_does_not_take_are_refused() -> None:
    x, cond = torch.zeros(1, 2), Cond(vector=torch.ones(1, 3))
    for model in (Gaussian(EDM(), torch.zeros(2), 1.0), Mixture(EDM(), torch.zeros(1, 2), 1.0)):
        with pytest.raises(InputError, match="vector"):
            model(x, 1.0, cond)


def test_the_null_of_a_model_without_classes_is_refused() -> None:
    with pytest.raises(InputError, match="null"):
        Gaussian(EDM(), torch.zeros(2), 1.0).null(Cond(labels=torch.tensor([0])))


def test_perturbation_scales_the_correction() -> None:
    torch.manual_seed(3)
    means, x, t = torch.randn(3, 2, dtype=F8), torch.randn(4, 2, dtype=F8), 0.4
    exact, wrong = Mixture(VP(), means, 0.1), Mixture(VP(), means, 0.1, perturbation=0.8)
    scaled = x / VP().alpha(t)
    assert torch.allclose(wrong(x, t).mean - scaled, 0.8 * (exact(x, t).mean - scaled))
    assert torch.allclose(wrong.eps(x, t), 0.8 * exact.eps(x, t))


def test_weights_keep_double_precision() -> None:
    model = Mixture(EDM(), torch.zeros(2, 1, dtype=F8), 0.1, weights=[0.1, 0.9])
    assert model.log_weights.exp().tolist() == pytest.approx([0.1, 0.9], rel=1e-14)
    assert Mixture(EDM(), torch.zeros(3, 1, dtype=F8), 0.1).log_weights.exp().sum().item() == pytest.approx(
        1, rel=1e-14
    )


def test_bad_parameters_are_refused() -> None:
    means = torch.zeros(2, 1)
    for bad in (
        lambda: Mixture(EDM(), means, -0.1),
        lambda: Mixture(EDM(), means, 0.1, weights=[1.0, 0.0]),
        lambda: Mixture(EDM(), means, 0.1, weights=[1.0]),
        lambda: Mixture(EDM(), means, 0.1, labels=torch.tensor([0])),
        lambda: Gaussian(EDM(), torch.zeros(2), -1.0),
        lambda: Gaussian(EDM(), torch.zeros(2), torch.tensor([1.0, -1.0])),
    ):
        with pytest.raises(InputError):
            bad()


def test_pure_noise_says_the_mean_of_the_data() -> None:
    """At the end of a flow no signal is left: alpha = 0."""
    means = torch.tensor([[-1.0, 0.0], [2.0, 1.0]], dtype=F8)
    for model in (Mixture(Flow(), means, 0.1), Gaussian(Flow(), means.mean(0), 0.3)):
        post = model(torch.randn(3, 2, dtype=F8), 1.0)
        assert torch.allclose(post.mean, means.mean(0).expand(3, 2))
        assert torch.allclose(post.eps, post.x)


def test_buffers_are_saved_and_moved() -> None:
    model = Mixture(EDM(), torch.randn(2, 3), 0.1, labels=torch.tensor([0, 1]))
    assert set(model.state_dict()) == {"means", "variances", "log_weights", "labels"}
    assert model.double()(torch.ones(1, 3, dtype=F8), 1.0).mean.dtype == F8
