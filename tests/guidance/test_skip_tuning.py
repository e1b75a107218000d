"""Skip-tuning on the shipped U-Net: factors, range of levels, counts, other views, churn."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.artefact import build, describe
from scoreline.core.cond import Cond
from scoreline.core.cost import Counted
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.names import lookup
from scoreline.core.noise import Draws, Noise
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.schedules import EDM
from scoreline.evaluate.specs import check_fit, guided, make_sampler
from scoreline.guidance.skip_tuning import (
    SkipTuned,
    SkipTuning,
    denoising_losses,
    inversion_moments,
    joint_count,
    skip_plan,
    skip_ratios,
)
from scoreline.nn.plan import Plan
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.heun import Heun


@pytest.fixture(scope="module")
def digits() -> Denoiser:
    return load("digits").given(Cond(labels=torch.tensor([3, 7])))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return Noise(0).at(range(2), (1, 8, 8)).normal()


@pytest.fixture
def draws() -> Draws:
    return Noise(1).at(range(2), (1, 8, 8))


@pytest.mark.check(system=22, number=1)
def test_factors_of_one_change_no_bit(digits: Denoiser, x: Tensor, draws: Draws) -> None:
    plan = skip_plan(4, 1.0)
    assert torch.equal(SkipTuned(digits, plan)(x, 1.0).mean, digits(x, 1.0).mean)
    assert torch.equal(SkipTuning(of="heun", steps=4)(digits, draws).x, Heun(steps=4)(digits, draws).x)


def test_each_joint_has_its_factor(digits: Denoiser, x: Tensor) -> None:
    """Deepest first, on the encoder's side; seen in the taps."""
    names = tuple(f"joint.{i}.{side}" for i in range(4) for side in ("skip", "hidden"))
    plain = digits.under(Plan(taps=names))(x, 1.0).taps
    only_first = skip_plan(4, 0.5, 1.0)
    seen = SkipTuned(digits, only_first).under(Plan(taps=names))(x, 1.0).taps
    assert torch.equal(seen["joint.0.skip"], 0.5 * plain["joint.0.skip"])
    assert torch.equal(seen["joint.0.hidden"], plain["joint.0.hidden"])
    assert torch.equal(seen["joint.3.skip"], plain["joint.3.skip"])
    hidden = SkipTuned(digits, skip_plan(4, 0.5, side="hidden")).under(Plan(taps=names))(x, 1.0).taps
    assert torch.equal(hidden["joint.0.hidden"], 2 * plain["joint.0.hidden"])
    assert torch.equal(hidden["joint.0.skip"], plain["joint.0.skip"])


@pytest.mark.check(system=22, number=4)
def test_the_plan_is_linear_from_the_deepest_to_the_top() -> None:
    assert skip_plan(5, 0.6, 1.0).skip_scale == pytest.approx((0.6, 0.7, 0.8, 0.9, 1.0))
    assert skip_plan(4, 0.8, 0.8).skip_scale == pytest.approx((0.8,) * 4)
    assert skip_plan(2, 0.5, 1.0, index="from-zero").skip_scale == pytest.approx((0.5, 0.75))
    assert skip_plan(3, 0.5, side="hidden").hidden_scale == pytest.approx((2.0, 1 / 0.75, 1.0))


@pytest.mark.check(system=22, number=10)
def test_outside_the_range_of_levels_factors_are_one(digits: Denoiser, x: Tensor) -> None:
    view = SkipTuned(digits, skip_plan(4, 0.5), low=0.5, high=10.0)
    tuned = digits.under(skip_plan(4, 0.5))
    for level in (0.1, 0.499, 10.01, 60.0):
        assert torch.equal(view(x, level).mean, digits(x, level).mean)
    for level in (0.5, 3.0, 10.0):
        assert torch.equal(view(x, level).mean, tuned(x, level).mean)
        assert not torch.equal(view(x, level).mean, digits(x, level).mean)


@pytest.mark.check(system=22, number=10)
def test_nothing_persists_in_the_model(x: Tensor) -> None:
    model = load("digits").given(Cond(labels=torch.tensor([3, 7])))
    before, state = model(x, 1.0).mean, copy.deepcopy(model.state_dict())
    view = SkipTuned(model, skip_plan(4, 0.5))
    view(x, 1.0)
    assert torch.equal(model(x, 1.0).mean, before)  # also while the view is in use
    del view
    assert torch.equal(model(x, 1.0).mean, before)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values()))


def test_the_range_is_in_sigma_over_alpha(x: Tensor) -> None:
    """On a table of VP the level of a time is sigma/alpha, not the time."""
    model = load("digits-eps").given(Cond(labels=torch.tensor([3, 7])))
    t = 500.0
    level = float(model.schedule.sigma(t) / model.schedule.alpha(t))
    inside = SkipTuned(model, skip_plan(4, 0.5), low=0.9 * level, high=1.1 * level)
    outside = SkipTuned(model, skip_plan(4, 0.5), low=1.1 * level, high=1.3 * level)
    assert not torch.equal(inside(x, t).mean, model(x, t).mean)
    assert torch.equal(outside(x, t).mean, model(x, t).mean)


def test_the_sampler_is_the_inner_one_on_the_view(digits: Denoiser, draws: Draws) -> None:
    view = SkipTuned(digits, skip_plan(4, 0.7), low=0.3)
    for name in ("ddim", "heun", "dpm-solver++2m", "deis"):
        sampler = SkipTuning(of=name, rho=0.7, low=0.3, steps=5)
        got, want = sampler(digits, draws), lookup("sampler", name)(steps=5)(view, draws)
        assert torch.equal(got.x, want.x)
        assert got.nfe == want.nfe == sampler.cost(5)
        assert not torch.equal(got.x, lookup("sampler", name)(steps=5)(digits, draws).x)


def test_steps_by_hand_count_the_same(digits: Denoiser, draws: Draws) -> None:
    """Also when a sampler around this one counts, with levels in and out of the range."""
    sampler = SkipTuning(of="heun", rho=0.7, low=0.3, high=20.0, steps=5)
    counted = Counted(digits)
    rows = sampler.coefficients(digits.schedule, sampler.times(digits.schedule))
    state = sampler.init(counted, draws, rows)
    with torch.no_grad():
        for row in rows:
            state = sampler.step(counted, state, row)
    assert counted.nfe == 9
    assert torch.equal(state.x, sampler(digits, draws).x)


def test_guidance_is_tuned_too(draws: Draws) -> None:
    model = guided(load("digits"), 2.0).given(Cond(labels=torch.tensor([3, 7])))
    sample = SkipTuning(rho=0.7, steps=3)(model, draws)
    assert sample.nfe == 6
    assert not torch.equal(sample.x, DDIM(steps=3)(model, draws).x)


def test_a_network_of_diffusers_is_tuned_too(draws: Draws) -> None:
    import diffusers

    from scoreline.bridges.diffusers_models import as_denoiser

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
            norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        ).eval()  # fmt: skip
    model = as_denoiser(net, diffusers.DDPMScheduler())
    assert joint_count(model) == 4
    plain = DDIM(steps=3)(model, draws).x
    sample = SkipTuning(rho=0.6, steps=3)(model, draws)
    assert (sample.x - plain).abs().max() > 1e-3
    assert sample.nfe == 3
    # Nothing is left behind.
    assert torch.equal(DDIM(steps=3)(model, draws).x, plain)


def test_plans_add_up(digits: Denoiser, x: Tensor) -> None:
    twice = SkipTuned(digits, Plan(skip_scale=(0.5, 1, 1, 1))).under(Plan(skip_scale=(0.5, 1, 0.8, 1), drop={2}))
    once = digits.under(Plan(skip_scale=(0.25, 1, 0.8, 1), drop={2}))
    assert torch.equal(twice(x, 1.0).mean, once(x, 1.0).mean)
    outside = SkipTuned(digits, Plan(skip_scale=(0.5, 1, 1, 1)), low=2.0).under(Plan(drop={2}))
    assert torch.equal(outside(x, 1.0).mean, digits.under(Plan(drop={2}))(x, 1.0).mean)


@pytest.mark.check(system=22, number=9)
def test_churn_draws_once_a_step_and_none_without() -> None:
    model = Gaussian(EDM(), torch.zeros(2), 1.0)
    calls: list[tuple[int, int]] = []

    class Watched(Draws):
        def normal(self, step: int = 0, part: int = 0) -> Tensor:
            calls.append((step, part))
            return super().normal(step, part)

    draws = Watched(0, [0, 1], (2,), torch.device("cpu"), torch.float32)
    Heun(steps=6)(model, draws)
    assert len(calls) == 1  # the start alone
    calls.clear()
    # Only levels between 0.05 and 5 are churned; a draw is consumed every step.
    Heun(steps=6, s_churn=10.0, s_min=0.05, s_max=5.0)(model, draws)
    assert len(calls) == 6 + 1
    assert len(set(calls)) == 7
    first, again = (Heun(steps=6)(model, Noise(0).at([0], (2,))).x for _ in range(2))
    assert torch.equal(first, again)


def test_ratios_scale_with_the_factors(digits: Denoiser, x: Tensor) -> None:
    plain, tuned = skip_ratios(digits, x, 1.0), skip_ratios(SkipTuned(digits, skip_plan(4, 0.5, 0.5)), x, 1.0)
    names = ("joint.0.skip", "joint.0.hidden")
    taps = digits.under(Plan(taps=names))(x, 1.0).taps
    each = [float((taps[names[0]][i].norm() / taps[names[1]][i].norm()).detach()) for i in range(2)]
    assert plain[0] == pytest.approx(sum(each) / 2, rel=1e-5)
    assert len(plain) == joint_count(digits) == 4
    assert tuned[0] == pytest.approx(0.5 * plain[0], rel=1e-5)  # nothing comes before the deepest joint


def test_losses_are_mean_squares(digits: Denoiser) -> None:
    class Twice:
        def features(self, images: Tensor) -> Tensor:
            return 2 * images.flatten(1)

    images, noise = torch.zeros(2, 1, 8, 8), Noise(3).at(range(2), (1, 8, 8)).normal()
    pixel, feature = denoising_losses(digits, images, 0.5, noise, Twice())  # type: ignore[arg-type]
    mean = digits(0.5 * noise, 0.5).mean
    assert pixel == pytest.approx(mean.square().mean().item(), rel=1e-5)
    assert feature == pytest.approx(4 * mean.clamp(-1, 1).square().mean().item(), rel=1e-5)
    assert denoising_losses(digits, images, 0.5, noise)[1] is None


def test_inversion_of_what_the_model_fits_gives_standard_noise() -> None:
    """Gaussian images with the right and with a wrong model: the exact map scales deviations."""
    images = 0.5 * Noise(5).at(range(400), (3,), dtype=torch.float64).normal()
    right = inversion_moments(Gaussian(EDM(), torch.zeros(3, dtype=torch.float64), 0.25), images, steps=400)
    assert right == pytest.approx((0.0, 1.0, 0.0), abs=0.12)
    assert right[1] == pytest.approx(float(images.std()) / 0.5, abs=0.03)
    wrong = inversion_moments(Gaussian(EDM(), torch.zeros(3, dtype=torch.float64), 1.0), images, steps=400)
    assert wrong[1] == pytest.approx(0.5, abs=0.05)


def test_bad_input(digits: Denoiser, draws: Draws, x: Tensor) -> None:
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="rho"):
            SkipTuning(rho=bad)
    with pytest.raises(InputError, match="top"):
        SkipTuning(top=0.0)
    with pytest.raises(InputError, match="did you mean 'hidden'"):
        SkipTuning(side="hiden")
    with pytest.raises(InputError, match="index"):
        SkipTuning(index="zero")
    with pytest.raises(InputError, match="low < high"):
        SkipTuning(low=3.0, high=1.0)
    with pytest.raises(InputError, match="did you mean"):
        SkipTuning(of="dimm")
    with pytest.raises(InputError, match="tuned already"):
        SkipTuning(of="skip-tuning")
    with pytest.raises(InputError, match="skip joints"):
        check_fit(SkipTuning(rho=0.8, steps=4), Gaussian(EDM(), torch.zeros(2), 1.0))
    with pytest.raises(InputError, match="give 4 factors"):
        SkipTuned(digits, Plan(skip_scale=(0.5,)))
    with pytest.raises(InputError, match="one time"):
        SkipTuned(digits, skip_plan(4, 0.5), low=1.0)(x, torch.tensor([1.0, 2.0]))
    with pytest.raises(InputError, match="one list of times"):
        SkipTuning(of="dpm-solver++2m", rho=0.5)(
            digits, draws, times=torch.ones(3, 2) * torch.tensor([[3.0], [2], [1]])
        )


def test_a_spec_and_a_description_make_it() -> None:
    sampler = make_sampler("skip-tuning:of=heun:rho=0.7:top=0.95:low=0.5:side=hidden", nfe=9)
    assert (sampler.rho, sampler.top, sampler.low, sampler.side) == (0.7, 0.95, 0.5, "hidden")  # type: ignore[attr-defined]
    assert sampler.plan() == 5
    again: Any = build(describe(sampler))
    assert repr(again) == repr(sampler)
    assert "rho=0.7" in repr(sampler)
    times = np.asarray(sampler.times(EDM()))
    assert np.array_equal(times, Heun(steps=5).times(EDM()))
