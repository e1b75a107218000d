"""Guidance by a classifier: with the exact one an unconditional model becomes the conditional one, everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.core.schedule import spread
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VE, VP, Discrete, Flow
from scoreline.guidance.classifier import ClassifierGuided, NoisyClassification, NoisyClassifier, class_gradient
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.heun import Heun
from scoreline.samplers.score_sde import PC
from scoreline.train import fit

F8 = torch.float64
MEANS = torch.tensor([[1.0, 0.0], [0.8, 0.3], [-1.0, 0.2], [0.0, -1.1]], dtype=F8)
LABELS = torch.tensor([0, 0, 1, 2])
SCHEDULES = [VP(), VE(), EDM(), Discrete(), Flow()]


def mixture(schedule: Any, *, labels: bool = True) -> Mixture:
    return Mixture(schedule, MEANS, 0.05, labels=LABELS if labels else None)


class Bayes(nn.Module):
    """p(y | x_t) of the mixture, exactly: the shares of a class's components together."""

    def __init__(self, schedule: Any) -> None:
        super().__init__()
        self.schedule, self.num_classes, self.model = schedule, 3, mixture(schedule)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        share = self.model.responsibilities(x, t)
        return torch.stack([share[:, y == LABELS].sum(1) for y in range(3)], 1).log()


def points(schedule: Any, t: Any, count: int = 9) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 3
    x0 = MEANS[torch.arange(count) % 4]
    noise = Noise(0).at(range(count), (2,), dtype=F8).normal()
    return schedule.marginal(x0, t, noise), labels


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_exact_classifier_makes_the_conditional_model(schedule: Any, labels: bool) -> None:
    for lam in (-1.5, -0.3, 0.5):
        t = float(schedule.snap(schedule.time(lam)))
        x, y = points(schedule, t)
        guided = ClassifierGuided(mixture(schedule, labels=labels), Bayes(schedule))
        for time in (t, torch.full((9,), t, dtype=F8)):
            exact, post = mixture(schedule)(x, t, Cond(labels=y)), guided(x, time, Cond(labels=y))
            for name in ("mean", "eps", "score"):
                assert (getattr(post, name) - getattr(exact, name)).abs().max() < 1e-6, (lam, name)


def test_a_classifier_in_other_coordinates_says_the_same() -> None:
    """Levels match by lambda, states by x/alpha, and the gradient is one in the model's own x."""
    for schedule in SCHEDULES:
        t = float(schedule.time(0.2)) if schedule.known is None else 300.0
        x, y = points(schedule, t)
        own = ClassifierGuided(mixture(schedule), Bayes(schedule))
        for other in (EDM(), VP(t_min=1e-4)):
            guided = ClassifierGuided(mixture(schedule), Bayes(other))
            assert (guided.score(x, t, Cond(labels=y)) - own.score(x, t, Cond(labels=y))).abs().max() < 1e-5


def test_the_scale_multiplies_the_gradient_alone() -> None:
    schedule, t = VP(), 0.4
    x, y = points(schedule, t)
    plain = mixture(schedule).score(x, t)
    gradient = class_gradient(Bayes(schedule), x, torch.full((9,), t, dtype=F8), y)
    for scale in (0.0, 1.0, 3.5):
        guided = ClassifierGuided(mixture(schedule), Bayes(schedule), scale)
        assert (guided.score(x, t, Cond(labels=y)) - (plain + scale * gradient)).abs().max() < 1e-9


def test_the_gradient_is_that_of_the_log_probability() -> None:
    schedule, t = VP(), torch.full((9,), 0.4, dtype=F8)
    x, y = points(schedule, 0.4)
    bayes, h = Bayes(schedule), 1e-5
    gradient = class_gradient(bayes, x, t, y)
    for axis in range(2):
        step = torch.zeros(2, dtype=F8)
        step[axis] = h
        up, down = (bayes(x + d, t).log_softmax(1).gather(1, y[:, None])[:, 0] for d in (step, -step))
        assert (gradient[:, axis] - (up - down) / (2 * h)).abs().max() < 1e-6
    nobody = class_gradient(bayes, x, t, torch.full((9,), 3))
    assert bool((nobody == 0).all())
    assert gradient.requires_grad is False


@pytest.mark.parametrize("sampler", [DDIM(steps=30), Heun(steps=20), PC(steps=30)])
def test_samplers_draw_the_class_that_is_asked_for(sampler: Any) -> None:
    schedule = VP()
    y = torch.arange(30) % 3
    guided = ClassifierGuided(mixture(schedule, labels=False), Bayes(schedule)).given(Cond(labels=y))
    sample = sampler(guided, Noise(0).at(range(30), (2,), dtype=F8))
    assert sample.nfe == sampler.cost(sampler.steps)
    nearest = LABELS[torch.cdist(sample.x, MEANS).argmin(1)]
    assert (nearest == y).double().mean() > 0.9
    free = sampler(guided.given(guided.null(Cond(labels=y))), Noise(0).at(range(30), (2,), dtype=F8)).x
    plain = sampler(mixture(schedule, labels=False), Noise(0).at(range(30), (2,), dtype=F8)).x
    assert (free - plain).abs().max() < 1e-6


def test_guidance_enters_the_norm_of_a_langevin_step() -> None:
    schedule, sampler = VP(), PC(steps=3, snr=0.3)
    y = torch.zeros(6, dtype=torch.int64)
    draws = Noise(0).at(range(6), (2,), dtype=F8)
    guided = ClassifierGuided(mixture(schedule), Bayes(schedule)).given(Cond(labels=y))
    exact = mixture(schedule).given(Cond(labels=y))
    assert (sampler(guided, draws).x - sampler(exact, draws).x).abs().max() < 1e-5


def test_levels_beyond_the_classifiers_are_left_unguided() -> None:
    bayes = Bayes(EDM(t_max=5.0))
    model = mixture(EDM())
    x, y = points(EDM(), 1.0)
    guided = ClassifierGuided(model, bayes)
    assert torch.equal(guided.eps(x, 5.1, Cond(labels=y)), model.eps(x, 5.1))
    assert (guided.eps(x, 4.9, Cond(labels=y)) - model.eps(x, 4.9)).abs().max() > 1e-4
    levels = torch.tensor([4.0, 6.0, 1.0] * 3, dtype=F8)
    changed = (guided.eps(x, levels, Cond(labels=y)) - model.eps(x, levels)).abs().sum(1) > 0
    assert changed.tolist() == [True, False, True] * 3


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: ClassifierGuided(mixture(VP()), nn.Linear(2, 3)), "num_classes and schedule"),
        (lambda: ClassifierGuided(Mixture(VP(), MEANS, 0.1, labels=torch.arange(4)), Bayes(VP())), "the model 4"),
        (lambda: ClassifierGuided(mixture(VP()), NoisyClassifier(num_classes=3)), "images of that shape"),
        (lambda: NoisyClassifier(num_classes=0), "at least one class"),
        (lambda: NoisyClassifier(sigma_data=0.0), "positive"),
        (lambda: NoisyClassification(NoisyClassifier(), std=0.0), "positive"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        make()


def test_guidance_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="needs classes"):
        ClassifierGuided(mixture(VP()), Bayes(VP()))(torch.zeros(2, 2, dtype=F8), 0.5)


def test_the_network_is_told_the_level() -> None:
    torch.manual_seed(0)
    net = NoisyClassifier(width=16, depth=2)
    x = Noise(0).at(range(4), (1, 8, 8)).normal().clamp(-1, 1)
    logits = {t: net(x, torch.full((4,), t)) for t in (0.02, 0.3, 3.0, 20.0, 50.0)}
    assert (logits[0.3] - logits[3.0]).abs().max() > 1e-3
    assert torch.equal(logits[20.0], net(x, torch.full((4,), 20.0, dtype=F8)))
    assert torch.equal(net(x), logits[0.02])
    assert torch.equal(net.head(net.features(x)), net(x))
    scaled = 20.0 / 50.0  # beyond its range a level counts as the last one
    assert not torch.equal(logits[50.0], logits[20.0] * scaled)
    assert torch.equal(logits[50.0], logits[20.0])


def test_training_learns_digits_through_noise() -> None:
    torch.manual_seed(0)
    net = NoisyClassifier(width=48, depth=2)
    trained = fit(NoisyClassification(net, lr=3e-3), load_images("digits", split="train"), steps=150, batch_size=64)
    batch = load_images("digits", split="test").batch(range(500))
    assert batch.label is not None
    right = {}
    for t in (0.05, 0.5, 10.0):
        noise = Noise(1).at(range(500), (1, 8, 8)).normal()
        logits = trained.result()(batch.image + t * noise, torch.full((500,), t))
        right[t] = float((logits.argmax(1) == batch.label).double().mean())
    assert right[0.05] > 0.85
    assert right[0.5] > 0.7
    assert right[10.0] < 0.35


def test_a_network_with_classes_is_asked_without_them() -> None:
    torch.manual_seed(0)
    inner = Preconditioned(MLP(in_shape=(1, 8, 8), width=16, num_classes=10), EDM(), kind="edm").eval()
    for p in inner.parameters():
        nn.init.normal_(p, std=0.2)
    x, y = Noise(0).at(range(3), (1, 8, 8)).normal(), torch.tensor([1, 5, 7])
    guided = ClassifierGuided(inner, NoisyClassifier(), scale=0.0)
    assert torch.allclose(guided.eps(x, 1.0, Cond(labels=y)), inner.eps(x, 1.0, inner.null(Cond(labels=y))), atol=1e-5)
    assert (guided.eps(x, 1.0, Cond(labels=y)) - inner.eps(x, 1.0, Cond(labels=y))).abs().max() > 1e-3
    assert Gaussian(VP(), torch.zeros(2), 1.0).num_classes is None


def test_per_image_scales_are_spread_over_images() -> None:
    inner = Gaussian(VP(), torch.zeros(1, 8, 8), 1.0)
    torch.manual_seed(0)
    guided = ClassifierGuided(inner, NoisyClassifier(width=16), scale=2.0)
    x, y = Noise(0).at(range(3), (1, 8, 8)).normal(), torch.tensor([1, 5, 7])
    t = torch.tensor([0.2, 0.5, 0.8], dtype=F8)
    together = guided.score(x, t, Cond(labels=y))
    for i in range(3):
        alone = guided.score(x[i : i + 1], float(t[i]), Cond(labels=y[i : i + 1]))
        assert (together[i] - alone[0]).abs().max() < 1e-4
    assert spread(t, x).shape == (3, 1, 1, 1)
