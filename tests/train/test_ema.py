from __future__ import annotations

import pytest
import torch
from torch import nn

from scoreline.core.errors import InputError
from scoreline.train.ema import Averages, ConstantDecay, HalfLife, PowerFunction, WarmUpDecay, decays


def constant(value: float, dtype: torch.dtype = torch.float64) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(module.weight, value)
    return module


def test_a_constant_decay_is_the_geometric_sum() -> None:
    module = constant(0.0)
    averages = Averages(module, decays([0.9, 0.5]))
    nn.init.constant_(module.weight, 1.0)
    for step in range(7):
        averages.update(4 * (step + 1))
    assert averages.values["0.9"][0].item() == pytest.approx(1 - 0.9**7, abs=1e-12)
    assert averages.values["0.5"][0].item() == pytest.approx(1 - 0.5**7, abs=1e-12)
    assert (averages.n, averages.images) == (7, 28)


@pytest.mark.check(system=13, number=7)
def test_a_recipe_names_a_rule() -> None:
    assert decays({"warm-up": 0.999}) == {"warm-up": WarmUpDecay(0.999)}
    assert decays({"warm-up": 0.999})["warm-up"](1, 0, 0) == 2 / 11
    assert decays({"warm-up": 0.1})["warm-up"](1, 0, 0) == 0.1
    assert decays({"half-life": 500}) == {"half-life": HalfLife(500)}
    assert decays({"warm-up": 0.9, "slow": 0.99}) == {"warm-up": ConstantDecay(0.9), "slow": ConstantDecay(0.99)}


@pytest.mark.check(system=15, number=10)
def test_warm_up_follows_its_formula_from_the_first_update() -> None:
    assert [WarmUpDecay(0.5)(n, 0, 0) for n in (1, 2, 8, 9, 100)] == [2 / 11, 3 / 12, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("schedule", [ConstantDecay(0.9, start=3), WarmUpDecay(0.9, start=3)])
def test_before_its_start_an_average_copies(schedule: object) -> None:
    module = constant(0.0)
    averages = Averages(module, {"a": schedule})  # type: ignore[dict-item]
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(module.weight, value)
        averages.update(1)
        assert averages.values["a"][0].item() == value
    nn.init.constant_(module.weight, 4.0)
    averages.update(1)
    assert 3.0 < averages.values["a"][0].item() < 4.0


def test_half_life_halves_in_that_many_images() -> None:
    module = constant(0.0)
    averages = Averages(module, {"a": HalfLife(320, ramp=None)})
    nn.init.constant_(module.weight, 1.0)
    for step in range(10):
        averages.update(32 * (step + 1))
    assert averages.values["a"][0].item() == pytest.approx(0.5, abs=1e-12)


def test_half_life_ramps_up_with_the_images_seen_before() -> None:
    schedule = HalfLife(1000, ramp=0.05)
    assert schedule(1, 10, 10) == 0.0
    assert schedule(11, 110, 10) == pytest.approx(0.5 ** (10 / 5))
    assert schedule(9, 40_010, 10) == pytest.approx(0.5 ** (10 / 1000))


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_a_power_function_average_has_the_moments_of_its_profile(width: float) -> None:
    # One column a step: the average is then the profile itself.
    steps = 3000
    profile = torch.zeros(steps, dtype=torch.float64)
    schedule = PowerFunction(width)
    for step in range(steps):
        profile *= (beta := schedule(step + 1, 8 * (step + 1), 8))
        profile[step] += 1 - beta
    time = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    mean = (profile * time).sum()
    std = (profile * (time - mean).square()).sum().sqrt()
    assert profile.sum().item() == pytest.approx(1)
    assert std.item() == pytest.approx(width, rel=2e-3)
    assert mean.item() == pytest.approx((schedule.gamma + 1) / (schedule.gamma + 2), rel=1e-3)


def test_parameters_are_averaged_and_buffers_are_the_live_ones() -> None:
    module = nn.BatchNorm1d(2)
    averages = Averages(module, decays(0.5))
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.running_mean.fill_(7.0)
    averages.update(1)
    with averages.applied("0.5"):
        assert module.weight.tolist() == [2.0, 2.0]
        assert module.running_mean.tolist() == [7.0, 7.0]
    assert module.weight.tolist() == [3.0, 3.0]


def test_master_copies_are_float32() -> None:
    module = constant(1.0, torch.bfloat16)
    averages = Averages(module, decays(0.999))
    nn.init.constant_(module.weight, 2.0)
    averages.update(1)
    # bfloat16 has no number between 1 and 1.0078.
    assert averages.values["0.999"][0].item() == pytest.approx(1.001, abs=1e-6)
    assert averages.values["0.999"][0].dtype == torch.float32


def test_averages_can_be_put_in_and_taken_out_in_any_order() -> None:
    module = constant(1.0)
    averages = Averages(module, decays({"slow": 0.9, "fast": 0.1}))
    nn.init.constant_(module.weight, 2.0)
    averages.update(1)
    averages.put("slow")
    averages.put("fast")
    assert module.weight.item() == pytest.approx(1.9)
    averages.put(None)
    assert module.weight.item() == 2.0
    with pytest.raises(InputError, match="did you mean 'slow'"):
        averages.put("slo")


@pytest.mark.parametrize("ema", [1.0, -0.1, "0.9", {"a/b": 0.9}])
def test_impossible_decays_are_refused(ema: object) -> None:
    with pytest.raises(InputError, match="ema"):
        decays(ema)  # type: ignore[arg-type]
