"""Our samplers as schedulers in diffusers' own pipelines, against diffusers' schedulers and against ourselves."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest
import torch

from scoreline import load
from scoreline.bridges.diffusers_models import as_denoiser
from scoreline.bridges.diffusers_schedulers import SamplerScheduler, as_scheduler
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.evaluate.specs import make_sampler
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.heun import Heun

# Some signal is left at every level, so that pictures of a random network do not run into the ends of the range.
CONFIG = {"num_train_timesteps": 100, "beta_schedule": "linear", "beta_end": 0.03, "clip_sample": False}
FIXED = [n for n in names("sampler") if n == "rk45" or lookup("sampler", n).__call__ is Sampler.__call__]


def images(pipeline, batch: int = 3, steps: int = 10, seed: int = 3, **more) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.manual_seed(seed)
    return pipeline(
        batch_size=batch, num_inference_steps=steps, generator=generator, output_type="pt", **more
    ).images  # fmt: skip


def ddpm(unet, scheduler) -> diffusers.DDPMPipeline:
    return diffusers.DDPMPipeline(unet(), scheduler)


def test_ddim_in_an_unchanged_pipeline_is_diffusers_ddim(unet):
    theirs = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler(**CONFIG, timestep_spacing="trailing"))
    mine = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler(**CONFIG))
    mine.scheduler = as_scheduler("ddim", theirs.scheduler)
    a, b = images(theirs), images(mine)
    assert mine.scheduler.timesteps.tolist() == theirs.scheduler.timesteps.tolist()
    assert (a - b).abs().max() < 2e-5
    leading = diffusers.DDIMScheduler(**CONFIG)
    mine.scheduler = as_scheduler("ddim:grid=leading", leading)
    theirs.scheduler = leading
    assert (images(theirs) - images(mine)).abs().max() < 2e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_dpm_solver_in_an_unchanged_pipeline_is_diffusers_dpm_solver(unet, prediction):
    config = {**CONFIG, "prediction_type": prediction}
    config.pop("clip_sample")
    scheduler = diffusers.DPMSolverMultistepScheduler(**config, solver_order=2, timestep_spacing="trailing")
    theirs, mine = ddpm(unet, scheduler), ddpm(unet, as_scheduler("dpm-solver++2m", scheduler))
    a, b = images(theirs, steps=10), images(mine, steps=10)
    assert mine.scheduler.timesteps.tolist() == theirs.scheduler.timesteps.tolist()
    assert (a - b).abs().max() < 5e-5
    assert (a - images(ddpm(unet, as_scheduler("ddim", scheduler)), steps=10)).abs().max() > 1e-3


def test_heun_is_diffusers_heun(unet):
    scheduler = diffusers.HeunDiscreteScheduler(
        num_train_timesteps=100, beta_schedule="linear", beta_start=1e-4, beta_end=0.03
    )
    scheduler.set_timesteps(6)
    levels = [*scheduler.timesteps[:1].tolist(), *scheduler.timesteps[1::2].tolist()]
    mine = as_scheduler("heun", scheduler)
    mine.set_timesteps(timesteps=levels)
    assert mine.timesteps.tolist() == scheduler.timesteps.tolist()
    net = unet()
    start = torch.randn(2, 2, 8, 8, generator=torch.manual_seed(0))
    ends = []
    with torch.no_grad():
        # Theirs keeps x/alpha as the state.
        for s, x in ((scheduler, start / float(mine.schedule.alpha(levels[0]))), (mine, start)):
            for t in s.timesteps:
                x = s.step(net(s.scale_model_input(x, t), t).sample, t, x).prev_sample
            ends.append(x)
    assert torch.allclose(ends[0], ends[1], atol=1e-4)


@pytest.mark.parametrize("name", FIXED)
def test_every_sampler_makes_in_a_pipeline_what_it_makes_alone(unet, name):
    """One evaluation a step or several, with noise or without: the pipeline's loop changes nothing."""
    scheduler = diffusers.DDPMScheduler(**CONFIG)
    sampler = make_sampler(name, steps=6)
    try:
        mine = as_scheduler(sampler, scheduler)
        got = images(ddpm(unet, mine), steps=6)
    except InputError as error:
        assert name not in ("ddim", "ddpm", "euler", "heun", "ancestral", "dpm-solver++2m", "dpm-solver++3m")
        said = str(error)
        assert any(words in said for words in ("chooses its levels", "calibrat", "needs a flow map"))
        return
    generator = torch.manual_seed(3)
    x = torch.randn(3, 2, 8, 8, generator=generator)
    model = as_denoiser(unet(), scheduler)
    streams = torch.randint(2**62, (3,), generator=generator).tolist()
    draws = Noise(0).at(streams if sampler.stochastic else range(3), model.shape)
    times = sampler.times(model.schedule)
    sample = sampler(model, draws, times=times, x=x)
    assert len(mine.timesteps) == sample.nfe
    assert ((sample.x / 2 + 0.5).clamp(0, 1) - got).abs().max() < 1e-5
    assert torch.equal(images(ddpm(unet, mine), steps=6), got)  # and again


def test_noise_follows_the_generator(unet):
    pipeline = ddpm(unet, as_scheduler("ddpm", diffusers.DDPMScheduler(**CONFIG)))
    pipeline.set_progress_bar_config(disable=True)
    assert torch.equal(images(pipeline), images(pipeline))
    assert not torch.equal(images(pipeline), images(pipeline, seed=4))
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    both = pipeline(batch_size=2, num_inference_steps=5, generator=generators, output_type="pt").images
    alone = pipeline(
        batch_size=1, num_inference_steps=5, generator=[torch.Generator().manual_seed(6)], output_type="pt"
    ).images
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_learned_variances_pass_through(unet):
    net = unet(out_channels=4)
    scheduler = as_scheduler("ddpm:variance=learned", diffusers.DDPMScheduler(**CONFIG))
    scheduler.set_timesteps(5)
    model = as_denoiser(net, diffusers.DDPMScheduler(**CONFIG, variance_type="learned_range"))
    x = start = torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x, generator=torch.manual_seed(0)).prev_sample
        streams = torch.randint(2**62, (2,), generator=torch.manual_seed(0)).tolist()
        sampler = make_sampler("ddpm:variance=learned", steps=5)
        want = sampler(model, Noise(0).at(streams, (2, 8, 8)), times=sampler.times(model.schedule), x=start).x
    assert torch.allclose(x, want, atol=1e-5)


@pytest.mark.parametrize("spec", ["dpm-solver++2m", "heun"])
def test_an_unchanged_dit_pipeline_with_guidance(dit_folder, spec):
    """The pipeline doubles the batch and copies the first half over the second between steps."""
    pipeline = diffusers.DiTPipeline.from_pretrained(dit_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = as_scheduler(spec, pipeline.scheduler)
    args = {"num_inference_steps": 5, "output_type": "pt", "guidance_scale": 2.0}
    got = pipeline([3, 9], generator=torch.manual_seed(0), **args).images
    from scoreline.guidance.extrapolate import ClassifierFree

    x = torch.randn(2, 4, 4, 4, generator=torch.manual_seed(0))
    model = ClassifierFree(load(dit_folder), 2.0).given(Cond(labels=torch.tensor([3, 9])))
    sampler = make_sampler(spec, steps=5)
    latents = sampler(model, Noise(0).at(range(2), model.shape), times=sampler.times(model.schedule), x=x).x
    assert ((model.decode(latents) / 2 + 0.5).clamp(0, 1) - got).abs().max() < 1e-4
    if spec != "heun":
        scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=2, timestep_spacing="trailing")
        pipeline.scheduler = scheduler
        assert (pipeline([3, 9], generator=torch.manual_seed(0), **args).images - got).abs().max() < 1e-4


def test_clipping_is_ours(unet):
    scheduler = diffusers.DDPMScheduler(**{**CONFIG, "clip_sample": True})
    mine = as_scheduler("ddim", scheduler)
    assert mine.config.clip_sample
    got = images(ddpm(unet, mine), steps=6)
    from scoreline.guidance.thresholding import Thresholded

    model = Thresholded(as_denoiser(unet(), scheduler))
    sampler = DDIM(steps=6)
    x = torch.randn(3, 2, 8, 8, generator=torch.manual_seed(3))
    want = sampler(model, Noise(0).at(range(3), model.shape), times=sampler.times(model.schedule), x=x).x
    assert ((want / 2 + 0.5).clamp(0, 1) - got).abs().max() < 1e-5


def test_an_image_changed_between_steps_counts(unet):
    net, scheduler = unet(), as_scheduler("ddim", diffusers.DDIMScheduler(**CONFIG))
    ends = []
    for shift in (0.0, 0.5):
        scheduler.set_timesteps(4)
        x = torch.randn(1, 2, 8, 8, generator=torch.manual_seed(1))
        with torch.no_grad():
            for i, t in enumerate(scheduler.timesteps):
                if i == 2:
                    x = x + shift
                x = scheduler.step(net(x, t).sample, t, x).prev_sample
        ends.append(x)
    assert (ends[0] - ends[1]).abs().max() > 0.05


def test_a_run_may_start_in_the_middle(unet):
    """As image-to-image pipelines do: they cut `timesteps` and add the noise of that level."""
    net, scheduler = unet(), as_scheduler("dpm-solver++2m", diffusers.DDIMScheduler(**CONFIG))
    scheduler.set_timesteps(8)
    clean, noise = torch.randn(2, 2, 8, 8), torch.randn(2, 2, 8, 8)
    cut = scheduler.timesteps[3:]
    start = scheduler.add_noise(clean, noise, cut[:1].expand(2))
    abar = diffusers.DDIMScheduler(**CONFIG).alphas_cumprod[cut[0]]
    assert torch.allclose(start, abar.sqrt() * clean + (1 - abar).sqrt() * noise, atol=1e-5)
    ends = []
    for begin in (None, 3):
        scheduler.set_timesteps(8)
        if begin is not None:
            scheduler.set_begin_index(begin)
        x = start
        with torch.no_grad():
            for t in cut:
                x = scheduler.step(net(x, t).sample, t, x, return_dict=False)[0]
        ends.append(x)
    model = as_denoiser(net, diffusers.DDIMScheduler(**CONFIG))
    want = make_sampler("dpm-solver++2m")(model, Noise(0).at([0, 1], model.shape), times=[*cut.tolist(), -1], x=start).x
    assert torch.equal(*ends)
    assert torch.allclose(ends[0], want, atol=1e-5)


def test_it_is_saved_and_read_like_a_scheduler(tmp_path):
    mine = as_scheduler(Heun(s_churn=3.0, grid="trailing"), diffusers.DDPMScheduler(**CONFIG))
    mine.save_pretrained(tmp_path)
    again = SamplerScheduler.from_pretrained(tmp_path)
    assert dict(again.config) == dict(mine.config)
    again.set_timesteps(4)
    assert (again.sampler.s_churn, len(again), again.order) == (3.0, 100, 1)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["sampler"]["name"] == "heun"
    other = SamplerScheduler.from_config(diffusers.DDPMScheduler(**CONFIG).config, sampler="ddim")
    other.set_timesteps(4)
    assert isinstance(other.sampler, DDIM)


def test_half_precision_is_kept_by_the_pipeline(unet):
    scheduler = as_scheduler("dpm-solver++2m", diffusers.DDIMScheduler(**CONFIG))
    scheduler.set_timesteps(3)
    x = torch.randn(1, 2, 8, 8).half()
    for t in scheduler.timesteps:
        x = scheduler.step(torch.ones_like(x), t, x).prev_sample
        assert x.dtype == torch.float16
    assert scheduler._state.x.dtype == torch.float32


def test_what_does_not_fit_is_refused(unet):
    with pytest.raises(InputError, match="did you mean 'heun'"):
        as_scheduler("huen")
    with pytest.raises(InputError, match="prediction_type"):
        SamplerScheduler(prediction_type="noise")
    with pytest.raises(InputError, match="FlowMatch"):
        as_scheduler("ddim", diffusers.FlowMatchEulerDiscreteScheduler())
    scheduler = as_scheduler("ddim")
    x = torch.zeros(1, 2, 8, 8)
    with pytest.raises(InputError, match="call set_timesteps first"):
        scheduler.step(x, 3, x)
    with pytest.raises(InputError, match="one of them"):
        scheduler.set_timesteps()
    with pytest.raises(InputError, match="one of them"):
        scheduler.set_timesteps(3, timesteps=[2, 1])
    with pytest.raises(InputError, match="must decrease"):
        scheduler.set_timesteps(timesteps=[1, 2])
    with pytest.raises(InputError, match="time"):
        scheduler.set_timesteps(timesteps=[2000, 10])
    with pytest.raises(InputError, match="at least 3"):
        as_scheduler("dpm-solver++2m").set_timesteps(2)
    scheduler.set_timesteps(4)
    with pytest.raises(InputError, match="setting of the sampler"):
        scheduler.step(x, 999, x, eta=1.0)
    with pytest.raises(InputError, match="no step of the run starts there"):
        scheduler.step(x, 998, x)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x).prev_sample
    with pytest.raises(InputError, match="the run is over"):
        scheduler.step(x, 0, x)


def test_samplers_that_choose_their_levels_are_refused(monkeypatch):
    class Adaptive(DDIM):
        def step(self, denoiser, state, row):
            moved = float(state.x.abs().mean()) * 1e-3
            return state._replace(x=denoiser(state.x, row.t - moved).combine(0.0, 1.0))

    scheduler = as_scheduler("ddim")
    scheduler.set_timesteps(3)
    scheduler.sampler = Adaptive(steps=3)
    x = torch.ones(1, 2, 8, 8)
    with pytest.raises(InputError, match="chooses its levels"):
        scheduler.step(x, scheduler.timesteps[0], x)
    assert np.isfinite(scheduler._levels).all()
