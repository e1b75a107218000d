"""Which level an image is at: exact posteriors, the training, its artefact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scoreline.core.artefact import load_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data import load_images
from scoreline.data.images import Batch
from scoreline.diffusion.closed_form import Empirical, Gaussian, Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP
from scoreline.guidance.thresholding import Thresholded
from scoreline.nn.level_classifier import LevelClassifier, level_table
from scoreline.nn.mlp import MLP
from scoreline.samplers import calibrations
from scoreline.samplers.denoising_mcmc import DenoisingMCMC
from scoreline.samplers.level_prediction import ExactLevels, LevelPredictor, LevelTraining, exact_levels, noised

MEANS = torch.tensor([[-1.0, 0.4, 0.3], [0.8, 1.0, -0.5], [0.2, -1.2, 0.9]], dtype=torch.float64)


def log_density(y: torch.Tensor, s: float, variances: list[float], weights: list[float]) -> torch.Tensor:
    """log p(y | s) with SciPy's multivariate normal, which shares no code with the library."""
    from scipy.stats import multivariate_normal

    total = sum(
        w * multivariate_normal(m.numpy(), (v + s * s) * np.eye(3)).pdf(y.numpy())
        for m, v, w in zip(MEANS, variances, weights)
    )
    return torch.log(torch.as_tensor(total))


@pytest.mark.parametrize("variances", [[0.05, 0.1, 0.2], [0.1, 0.1, 0.1]])
@pytest.mark.parametrize("schedule", [EDM(), VP()])
def test_the_exact_posterior_is_the_density_at_every_level(schedule: EDM | VP, variances: list[float]) -> None:
    weights = [0.2, 0.3, 0.5]
    exact = ExactLevels(Mixture(schedule, MEANS, torch.tensor(variances), weights), levels=7)
    y = torch.tensor([[0.3, -0.2, 1.0], [4.0, 1.0, -2.0], [-1.0, 0.4, 0.31]], dtype=torch.float64)
    wanted = torch.stack([log_density(y, float(s), variances, weights) for s in exact.table], 1)
    assert torch.allclose(exact(y).log_softmax(1), wanted.log_softmax(1), atol=1e-5)
    assert np.allclose(
        exact.table, 2 * level_table(0.01, min(50.0, 0.5 * float(np.exp(-schedule.lam(schedule.t_max)))), 7)
    )


def test_the_exact_posterior_of_a_gaussian_with_a_variance_for_each_pixel() -> None:
    m, v = torch.tensor([0.5, -0.2], dtype=torch.float64), torch.tensor([0.1, 0.7])
    exact = ExactLevels(Gaussian(EDM(), m, v), levels=5)
    y = torch.tensor([[0.3, 2.0], [10.0, -7.0]], dtype=torch.float64)
    wanted = torch.stack(
        [torch.distributions.Normal(m, (v.double() + s**2).sqrt()).log_prob(y).sum(1) for s in exact.table], 1
    )
    assert torch.allclose(exact(y).log_softmax(1), wanted.log_softmax(1))


def test_labels_restrict_the_posterior_to_their_components() -> None:
    labels = torch.tensor([0, 0, 1])
    both = ExactLevels(Mixture(EDM(), MEANS, 0.1, labels=labels, num_classes=2), levels=6)
    second = ExactLevels(Mixture(EDM(), MEANS[2:], 0.1), levels=6)
    y = torch.tensor([[0.1, 0.2, 0.3]] * 2, dtype=torch.float64)
    answer = both(y, Cond(labels=torch.tensor([1, 2]))).log_softmax(1)
    assert torch.allclose(answer[:1], second(y[:1]).log_softmax(1))
    assert torch.allclose(answer[1:], both(y[1:]).log_softmax(1))


def test_a_data_set_goes_in_parts_and_its_level_is_found_to_one_over_root_two_d() -> None:
    images = load_images("digits", split="train")
    data = images.batch(range(len(images))).image
    exact = ExactLevels(Empirical(EDM(), data, smoothing=0.1), levels=200)
    noise = Noise(0).at(range(100), (1, 8, 8)).normal()
    for k in (40, 90):
        found = exact(data[:100] + float(exact.table[k]) * noise).argmax(1)
        off = torch.as_tensor(exact.table)[found].log() - np.log(exact.table[k])
        assert off.mean().abs() < 0.05
        assert float(off.std()) == pytest.approx(1 / np.sqrt(2 * 64), rel=0.3)


def test_closed_forms_are_found_inside_views() -> None:
    model = Mixture(EDM(t_max=20.0), MEANS, 0.1)
    found = exact_levels(Thresholded(model).on(VP()))
    assert found is not None
    assert found.table[0] == pytest.approx(20.0)
    assert exact_levels(Preconditioned(MLP(in_shape=(3,), width=8), EDM())) is None


# --- training ---


def test_the_loss_is_the_cross_entropy_of_a_level_drawn_uniformly() -> None:
    torch.manual_seed(0)
    net, table = LevelClassifier(in_shape=(1, 4, 4), channels=(3,), levels=5), np.array([8.0, 4.0, 2.0, 1.0, 0.5])
    draws = Noise(1).at(range(400), (1, 4, 4))
    image = torch.zeros(400, 1, 4, 4)
    batch = Batch(image, None, torch.arange(400), draws=draws)
    level = draws.integers(5, part=1)
    assert torch.bincount(level).tolist() == pytest.approx([80] * 5, abs=25)
    x = image + torch.tensor(table).float()[level].view(-1, 1, 1, 1) * draws.normal()
    assert torch.equal(noised(image, torch.tensor(table)[level], draws.normal()), x)
    out = LevelTraining(net, table).loss(batch, None, 0)
    assert torch.allclose(out["loss"], F.cross_entropy(net(x), level))
    assert float(out["levels off"]) == pytest.approx(float((net(x).argmax(1) - level).abs().float().mean()))


@pytest.fixture(scope="module")
def digits() -> tuple:
    return load("digits"), load_images("digits", split="train")


def test_a_trained_predictor_finds_levels(digits: tuple) -> None:
    model, images = digits
    seen = []
    made = LevelPredictor.calibrate(
        model, images, samples=15_000, batch_size=100, levels=6, channels=(8, 8), sigma_min=0.1, sigma_max=3.0, lr=1e-2,
        advance=lambda n, text: seen.append(n),
    )  # fmt: skip
    assert sum(seen) == 15_000
    assert len(seen) > 10
    x = load_images("digits", split="test").batch(range(200)).image
    noise = Noise(3).at(range(200), (1, 8, 8)).normal()
    for k in range(6):
        with torch.no_grad():
            off = made(x + float(made.table[k]) * noise).argmax(1) - k
        assert off.abs().float().mean() < 0.6, k


def test_a_stopped_training_goes_on_to_the_same_bits(digits: tuple, tmp_path: Path) -> None:
    model, images = digits
    settings = {"samples": 600, "batch_size": 20, "levels": 10, "channels": (4, 4), "seed": 7}
    whole = LevelPredictor.calibrate(model, images, **settings)

    class Stop(Exception):
        pass

    def stop(n: int, text: str) -> None:
        if "step 17" in text:
            raise Stop

    with pytest.raises(Stop):
        LevelPredictor.calibrate(model, images, folder=tmp_path, advance=stop, **settings)
    left = []
    again = LevelPredictor.calibrate(model, images, folder=tmp_path, advance=lambda n, _: left.append(n), **settings)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert len(left) < 20, "it began anew"
    with pytest.raises(ArtefactError, match="another run"):
        LevelPredictor.calibrate(model, images, folder=tmp_path, **{**settings, "sigma_max": 3.0})


def test_a_predictor_is_an_artefact_of_its_model(digits: tuple, tmp_path: Path) -> None:
    model, _ = digits
    made = LevelPredictor(in_shape=[1, 8, 8], channels=[4, 4], levels=12, sigma_max=40.0).eval()
    path = calibrations.save("denoising-mcmc", model, made, out=tmp_path / "levels.safetensors")
    again, header = load_artefact(path, kind="calibration")
    assert header["name"] == "denoising-mcmc"
    assert np.array_equal(again.table, made.table)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(x), made(x))
    sampler = DenoisingMCMC(steps=2, classifier=str(path), start_steps=3, burn_in=1, settle=1)
    assert sampler(model.given(Cond(labels=torch.tensor([3]))), Noise(0).at([0], (1, 8, 8))).x.shape == (1, 1, 8, 8)
    with pytest.raises(InputError, match="another model"):
        sampler.calibrated(load("digits-eps"))


def test_the_shipped_model_has_its_predictor(digits: tuple) -> None:
    model, _ = digits
    held = DenoisingMCMC(nfe=10).calibrated(model)._predictor
    assert isinstance(held, LevelPredictor)
    assert sum(p.numel() for p in held.parameters()) < 40_000
    x = load_images("digits", split="test").batch(range(300)).image
    noise = Noise(4).at(range(300), (1, 8, 8)).normal()
    for s in (20.0, 5.0, 1.5, 0.6):
        with torch.no_grad():
            found = torch.as_tensor(held.table)[held(x + s * noise).argmax(1)].log() - np.log(s)
        # The spread of |z|/sqrt(D) is 0.09; a little more is the network's.
        assert found.mean().abs() < 0.08
        assert found.std() < 0.25


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"samples": 10}, "samples"), ({"levels": 1}, "levels"), ({"sigma_min": 60.0}, "sigma_min")],
)
def test_bad_calibrations_are_refused(digits: tuple, arguments: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        LevelPredictor.calibrate(*digits, **arguments)


def test_images_of_another_shape_are_refused(digits: tuple) -> None:
    with pytest.raises(InputError, match="the model makes"):
        LevelPredictor.calibrate(Preconditioned(MLP(in_shape=(1, 4, 4), width=8), EDM()), digits[1])
