"""The sampler of 2-rectified flow++ on closed forms; order, batches, cost and errors are asked in the harness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule, spread
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.schedules import EDM, VP, Flow
from scoreline.samplers.euler import Euler
from scoreline.samplers.straight import Straight, straight_path, straight_times

F8 = torch.float64
MU, S2 = torch.tensor([0.7, -0.4], dtype=F8), torch.tensor([0.3, 1.6], dtype=F8)
BENT = Gaussian(Flow(), MU, S2)  # a 1-rectified flow


def draws(count: int = 5):
    return Noise(3).at(range(count), (2,), dtype=F8)


class ExactPairs(Denoiser):
    """The model of known pairs: D = x(z) = MU + 0.5 z wherever it is asked; its paths are straight."""

    def __init__(self, schedule: Schedule, z: Tensor) -> None:
        super().__init__()
        self.schedule, self.shape, self.end = schedule, (2,), MU + 0.5 * z

    def posterior(self, x: Tensor, t: Any, cond: Cond | None) -> Posterior:
        alpha, sigma = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        return Posterior.of_mean(x, self.end, alpha, sigma)


@pytest.mark.check(system=19, number=3)
@pytest.mark.parametrize("heun", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_both_rules_coincide_on_straight_fields_and_up_to_two_steps(steps: int, heun: bool):
    model = ExactPairs(Flow(), draws().normal())
    new, default = (Straight(rule=rule, heun=heun, steps=steps)(model, draws()).x for rule in ("new", "default"))
    assert torch.allclose(new, default, atol=1e-12)
    new, default = (Straight(rule=rule, heun=heun, steps=steps)(BENT, draws()).x for rule in ("new", "default"))
    # the first step leaves the noise itself and the last one keeps nothing of it: only a third one can differ
    assert torch.allclose(new, default, atol=1e-12) == (steps <= 2)
    # a constant field, in the released arithmetic
    v = draws().normal(1)
    runs = [
        straight_path(lambda z, t: v, draws().normal(), straight_times(steps), rule=rule, heun=heun)
        for rule in ("new", "default")
    ]
    for one, other in zip(*runs):
        # the grid starts at 1 - 1e-5 while the state counts as z_1: they differ by that times v
        assert torch.allclose(one, other, atol=5e-5)


@pytest.mark.check(system=19, number=4)
@pytest.mark.parametrize("schedule", [Flow(), EDM(), VP()], ids=lambda s: type(s).__name__)
def test_the_model_of_exact_pairs_returns_its_image_in_one_step_and_stays_there(schedule: Schedule):
    model = ExactPairs(schedule, draws().normal())
    for steps in (1, 2, 5):
        run = Straight(steps=steps)(model, draws(), trajectory=True)
        assert torch.allclose(run.x, model.end, atol=1e-12)
        assert run.trajectory is not None
        for state, t in zip(run.trajectory, run.times):
            noise = (run.trajectory[0] - schedule.alpha(run.times[0]) * model.end) / schedule.sigma(run.times[0])
            assert torch.allclose(state, schedule.alpha(t) * model.end + schedule.sigma(t) * noise, atol=1e-9)
    end = MU + 0.5 * draws().normal()
    path = straight_path(lambda z, t: (z - end) / t, draws().normal(), straight_times(3))
    for state, t in zip(path[1:], straight_times(3)[1:]):
        assert torch.allclose(state, (1 - t) * end + t * path[0], atol=1e-12)


def test_the_new_rule_goes_back_to_the_first_noise():
    """Two steps by hand: D(z, 1) = MU; then D at the point of the line from the noise to MU."""
    z = draws().normal()
    middle = 0.5 * MU + 0.5 * z
    assert torch.allclose(Straight(steps=2)(BENT, draws()).x, BENT(middle, 0.5).mean)
    third = 2 / 3 * BENT(MU / 3 + 2 * z / 3, 2 / 3).mean + z / 3
    assert torch.allclose(Straight(steps=3)(BENT, draws()).x, BENT(third, 1 / 3).mean)
    # a run that starts in between goes back to its noisy part
    x = draws().normal(2)
    noise = BENT(x, 0.8).eps
    assert torch.allclose(
        Straight()(BENT, draws(), times=[0.8, 0.4, 0.2], x=x).x,
        0.8 * BENT(0.6 * BENT(x, 0.8).mean + 0.4 * noise, 0.4).mean + 0.2 * noise,
    )


def test_the_default_rule_is_euler_and_the_released_arithmetic_is_the_samplers():
    for steps in (1, 4):
        mine = Straight(steps=steps, rule="default")(BENT, draws()).x
        assert torch.allclose(mine, Euler(steps=steps)(BENT, draws()).x, atol=1e-12)
        for rule in ("new", "default"):
            for heun in (False, True):
                mine = Straight(steps=steps, rule=rule, heun=heun)(BENT, draws()).x
                theirs = straight_path(
                    BENT.velocity, draws().normal(), straight_times(steps).tolist(), rule=rule, heun=heun
                )
                assert len(theirs) == steps + 1
                assert torch.equal(theirs[0], draws().normal() * (1 - 1e-5))
                assert (mine - theirs[-1]).abs().max() < 1e-4
                assert (mine - theirs[-1]).abs().max() > 1e-9


@pytest.mark.check(system=19, number=8)
def test_errors_fall_with_the_order():
    """Halving the steps: Euler's error falls about 2x, Heun's 4x, on a smooth velocity; the last interval is short."""
    t0, t1 = 0.9, 0.2
    x = draws().normal()
    exact = BENT.flow(x, t0, t1)

    def errors(heun: bool) -> list[float]:
        sampler = Straight(rule="default", heun=heun)
        runs = (sampler(BENT, draws(), times=np.linspace(t0, t1, n + 1), x=x).x for n in (16, 32, 64))
        return [(run - exact).abs().max().item() for run in runs]

    for heun, factor in ((False, 2), (True, 4)):
        a, b, c = errors(heun)
        assert a / b == pytest.approx(factor, rel=0.1)
        assert b / c == pytest.approx(factor, rel=0.06)
    assert errors(True)[0] < errors(False)[2]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_evaluations(steps: int):
    """Heun's count is odd: N intervals cost 2N - 1."""
    assert Straight(steps=steps)(BENT, draws()).nfe == steps
    assert Straight(steps=steps, heun=True)(BENT, draws()).nfe == 2 * steps - 1
    asked: list[float] = []
    straight_path(lambda z, t: asked.append(t) or z, draws().normal(), straight_times(steps), heun=True)  # type: ignore[func-returns-value]
    assert len(asked) == 2 * steps - 1


def test_what_is_refused():
    with pytest.raises(InputError, match="did you mean 'default'"):
        Straight(rule="defalt")
    with pytest.raises(InputError, match="rule"):
        straight_path(lambda z, t: z, draws().normal(), [1.0, 0.0], rule="old")
    for times in ([0.5], [0.2, 0.4, 0.0]):
        with pytest.raises(InputError, match="must fall"):
            straight_path(lambda z, t: z, draws().normal(), times)
    with pytest.raises(InputError, match="1 or more"):
        straight_times(0)
