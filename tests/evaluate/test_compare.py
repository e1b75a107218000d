"""The comparison's parts; the whole is in tests/cli/test_compare.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.schedules import EDM, Discrete
from scoreline.evaluate.arms import arms_of
from scoreline.evaluate.compare import compare, converged, converged_sampler, model_macs, rmse_per_image
from scoreline.evaluate.specs import guided, make_sampler


def test_rmse_is_per_image_and_pixel() -> None:
    a = torch.zeros(3, 1, 2, 2)
    b = a.clone()
    b[1] = 0.5
    b[2, 0, 0, 0] = 1.0
    torch.testing.assert_close(rmse_per_image(a, b), torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64))


def test_the_converged_ode_of_a_gaussian_is_its_closed_form() -> None:
    # For data N(m, v) the ODE keeps (x - m)/sqrt(v + sigma^2): every image is known.
    mean, variance = torch.tensor([0.1, -0.3], dtype=torch.float64), 0.2
    model = Gaussian(EDM(), mean, variance)
    draws = Noise(5).at(range(7), model.shape, dtype=torch.float64)
    sample = converged_sampler(model)(model, draws)
    start = draws.normal() * model.schedule.prior(sample.times[0])
    wanted = mean + (start - mean) * (variance / (variance + sample.times[0] ** 2)) ** 0.5
    assert float(rmse_per_image(sample.x, wanted).max()) < 1e-3
    # Its error is far below that of what is judged by it.
    judged = make_sampler("heun", nfe=19)(model, draws)
    assert float(rmse_per_image(judged.x, wanted).median()) > 10 * float(rmse_per_image(sample.x, wanted).median())


def test_the_converged_ode_reaches_the_cleanest_levels_of_a_table() -> None:
    mean, variance = torch.tensor([0.1, -0.3], dtype=torch.float64), 0.2
    model = Gaussian(Discrete(betas="linear", T=1000), mean, variance)
    draws = Noise(5).at(range(7), model.shape, dtype=torch.float64)
    sampler = converged_sampler(model)
    start = draws.normal() * model.schedule.prior(model.schedule.t_max)
    wanted = model.flow(start, model.schedule.t_max, 0.0)
    assert sampler.times(model.schedule)[-2] == 0.0
    assert float(rmse_per_image(sampler(model, draws).x, wanted).max()) < 1e-3
    # A table too short for that grid is walked through whole.
    short = Gaussian(Discrete(betas="linear", T=50), mean, variance)
    assert len(converged_sampler(short).times(short.schedule)) == 51


def test_converged_images_do_not_depend_on_the_batch(tiny: str) -> None:
    model = load(tiny)
    whole = converged(model, 1, 5, None, 5)
    assert whole.shape == (5, 1, 8, 8)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(converged(model, 1, 5, None, 2), whole, atol=1e-4, rtol=0)
    assert not torch.allclose(converged(model, 2, 5, None, 5), whole)
    assert not torch.allclose(converged(model, 1, 5, [3], 5), whole)


def test_macs_are_those_of_one_evaluation(tiny: str) -> None:
    model = load(tiny)
    # Layers of the MLP: 64-16 in, 16-64 out, one 16-16 with its 16-wide embedding, and the embeddings of t and class.
    assert 64 * 16 * 2 < model_macs(model) < 10_000
    # The two halves of a guided batch share the embedding of t.
    assert 0.8 * model_macs(model) < model_macs(guided(model, 2.0)) <= model_macs(model)


def test_arms(tiny: str) -> None:
    model = load(tiny)
    arms, warnings = arms_of(model, ["heun", "ddim:eta=1", "heun"], [10, 2, 9])
    assert [(arm.spec, arm.budget, arm.nfe) for arm in arms] == [
        ("heun", 9, 9), ("ddim:eta=1", 2, 2), ("ddim:eta=1", 9, 9), ("ddim:eta=1", 10, 10),
    ]  # fmt: skip
    assert len(warnings) == 2
    assert [arm.name for arm in arms][:2] == ["heun-9", "ddim-eta1-2"]
    with pytest.raises(InputError, match="Heun needs at least 3"):
        arms_of(model, ["heun"], [1, 2])
    with pytest.raises(InputError, match="at least one"):
        arms_of(model, [], [10])


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device 'cuda"):
        compare(tiny, ["ddim"], [5], tmp_path / "out", count=4, features="pixels", device="cuda:99")
    assert not (tmp_path / "out").exists()


def test_the_device_is_named_in_the_results(tiny: str, tmp_path: Path) -> None:
    found = compare(
        tiny, ["ddim"], [2], tmp_path, seeds=[0], count=4, pairs=2, features="pixels", device="cpu", quiet=True
    )
    assert found["machine"]["device"] == "cpu"
