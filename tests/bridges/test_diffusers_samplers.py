"""diffusers' schedulers as samplers: as in their pipelines, and right on other schedules."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from scoreline.bridges.diffusers_models import as_denoiser
from scoreline.bridges.diffusers_samplers import SCHEDULERS, DiffusersSampler
from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.dpm_solver_pp import DPMSolverPP2M, DPMSolverPP3M
from scoreline.samplers.heun import Heun

TABLE = {"num_train_timesteps": 100, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.03}
NAMED = {
    "DDIMScheduler": {"clip_sample": False, "timestep_spacing": "trailing"},
    "DPMSolverMultistepScheduler": {"solver_order": 3, "timestep_spacing": "trailing"},
    "UniPCMultistepScheduler": {"solver_order": 3, "timestep_spacing": "trailing"},
    "DEISMultistepScheduler": {"solver_order": 2, "timestep_spacing": "linspace"},
    "EulerDiscreteScheduler": {"timestep_spacing": "trailing"},
    "HeunDiscreteScheduler": {"timestep_spacing": "trailing"},
}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_the_images_of_their_own_loop(unet, name):
    """Noise, start and timesteps: the same images as a pipeline's loop makes."""
    net = unet()
    scheduler = getattr(diffusers, name)(**TABLE, **NAMED[name])
    scheduler.set_timesteps(5)  # divides 100: DDIM of diffusers steps by 100 // n, whatever its list of timesteps says
    levels = list(dict.fromkeys(scheduler.timesteps.tolist()))
    model = as_denoiser(net, scheduler)
    end = 0.0 if name == "DEISMultistepScheduler" else -1.0
    start = torch.randn(3, 2, 8, 8, generator=torch.manual_seed(0))
    got = DiffusersSampler(scheduler)(model, Noise(0).at(range(3), model.shape), times=[*levels, end], x=start)
    exploding = SCHEDULERS[name] == "exploding"
    x = start / float(model.schedule.alpha(levels[0])) if exploding else start
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    assert torch.allclose(got.x, x, atol=2e-4), (got.x - x).abs().max()
    assert got.nfe == len(scheduler.timesteps) == DiffusersSampler(scheduler).cost(5)


@pytest.mark.parametrize("schedule_name", ["edm", "vp", "flow", "ve", "discrete"])
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_they_reach_the_exact_flow_of_a_gaussian_on_any_schedule(name, schedule_name):
    schedule = lookup("schedule", schedule_name)()
    model = Gaussian(schedule, torch.tensor([0.4, -0.3, 0.1]), torch.tensor([0.5, 0.1, 1.0]))
    draws = Noise(1).at(range(4), (3,))
    lam = np.linspace(-2.5, 4.0, 41)
    times = np.append(schedule.snap(schedule.time(lam)), schedule.clean)
    x = draws.normal() * float(schedule.prior(float(times[0])))
    exact = model.flow(x, float(times[0]), schedule.clean)
    errors = (DiffusersSampler(name)(model, draws, times=times, x=x).x - exact).abs().max()
    assert errors < (0.15 if name in ("DDIMScheduler", "EulerDiscreteScheduler") else 0.03)


def test_what_is_the_same_method_is_the_same_number():
    """Ours against theirs on EDM's schedule, where diffusers itself cannot go."""
    schedule = lookup("schedule", "edm")()
    model = lookup("denoiser", "mixture")(schedule, torch.tensor([[-1.0, 0.4], [0.8, 1.0]]), 0.1)
    draws = Noise(0).at(range(5), (2,))
    pairs = [
        (DDIM, "DDIMScheduler", {}),
        (DDIM, "EulerDiscreteScheduler", {}),
        (Heun, "HeunDiscreteScheduler", {}),
        (DPMSolverPP2M, "DPMSolverMultistepScheduler", {"solver_order": 2, "lower_order_final": False}),
    ]
    for ours, theirs, settings in pairs:
        mine = ours(steps=8)(model, draws)
        other = DiffusersSampler(theirs, settings, steps=8)(model, draws)
        assert mine.nfe == other.nfe
        assert torch.allclose(mine.x, other.x, atol=2e-4), theirs
    third = DPMSolverPP3M(variant="released", steps=20)(model, draws).x
    other = DiffusersSampler("DPMSolverMultistepScheduler", {"solver_order": 3}, steps=20)(model, draws).x
    assert torch.allclose(third, other, atol=5e-4)


def test_budgets_and_trajectories():
    model = Gaussian(lookup("schedule", "edm")(), torch.zeros(2), 1.0)
    draws = Noise(0).at([0, 1], (2,))
    assert DiffusersSampler("HeunDiscreteScheduler", nfe=10)(model, draws).nfe == 9
    sample = DiffusersSampler("UniPCMultistepScheduler", nfe=5)(model, draws, trajectory=True)
    assert sample.nfe == 5
    assert len(sample.trajectory) == 6
    assert torch.equal(sample.trajectory[-1], sample.x)
    assert torch.equal(sample.trajectory[0], draws.normal() * 80)


def test_what_is_refused():
    with pytest.raises(InputError, match="did you mean 'DDIMScheduler'"):
        DiffusersSampler("DDIMSchedular")
    with pytest.raises(InputError, match="did you mean 'solver_order'"):
        DiffusersSampler("DEISMultistepScheduler", {"solver_orders": 2})
    with pytest.raises(InputError, match="DDPMScheduler"):
        DiffusersSampler(diffusers.DDPMScheduler())
    with pytest.raises(InputError, match="adds noise"):
        DiffusersSampler("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"})
    with pytest.raises(InputError, match="has its own"):
        DiffusersSampler(diffusers.DDIMScheduler(), {"clip_sample": False})
    model = Gaussian(lookup("schedule", "flow")(), torch.zeros(2), 1.0)
    with pytest.raises(InputError, match="infinite"):
        DiffusersSampler("UniPCMultistepScheduler", steps=4)(model, Noise(0).at([0], (2,)))
    with pytest.raises(InputError, match="decreasing"):
        DiffusersSampler("UniPCMultistepScheduler")(model, Noise(0).at([0], (2,)), times=[0.2, 0.5])
