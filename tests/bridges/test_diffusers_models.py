"""Pipelines of diffusers as denoisers: schedules, kinds, labels, latents, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from scoreline import load
from scoreline.bridges.diffusers_models import as_denoiser, betas_of, load_pipeline, schedule_of
from scoreline.core.cond import Cond
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.noise import Noise
from scoreline.samplers.ddim import DDIM


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.05, "num_train_timesteps": 200},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
        {"trained_betas": [0.1, 0.2, 0.3]},
        {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    ],
)
def test_the_schedule_is_that_of_diffusers(settings):
    theirs = diffusers.DDIMScheduler(**settings)
    mine = schedule_of(theirs.config)
    t = np.arange(len(theirs.betas), dtype=np.float64)
    assert np.allclose(mine.alpha(t) ** 2, theirs.alphas_cumprod.double().numpy(), rtol=2e-5, atol=1e-9)


def test_sigmoid_betas():
    theirs = diffusers.DDPMScheduler(beta_schedule="sigmoid", beta_start=1e-3, beta_end=0.1)
    assert np.allclose(betas_of(theirs.config), theirs.betas.double().numpy(), rtol=1e-5)


@pytest.mark.parametrize("prediction, kind", [("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")])
def test_the_prediction_type_decides_what_the_output_means(unet, prediction, kind):
    net, scheduler = unet(), diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False)
    model = as_denoiser(net, scheduler)
    assert model.kind == kind
    assert model.shape == (2, 8, 8)
    x, t = torch.randn(3, 2, 8, 8), 400
    with torch.no_grad():
        out = net(x, t).sample
        step = scheduler.step
        scheduler.set_timesteps(10)
        theirs = step(out, t, x).pred_original_sample
        assert (model(x, float(t)).mean - theirs).abs().max() < 1e-4
    # The network is asked as the pipeline asks it, to the last bit.
    with torch.no_grad():
        assert torch.equal(model(x, float(t)).raw, out)
        assert torch.allclose(model(x, torch.full((3,), float(t))).raw, out, atol=1e-6)


def test_a_pipeline_folder_is_loaded_by_its_path(ddpm_folder):
    model = load(ddpm_folder)
    assert model.schedule.T == 100
    assert not model.training
    assert model.header["kind"] == "denoiser"
    assert model.header["card"]["pipeline"] == "DDPMPipeline"
    assert len(model.header["fingerprint"]) == 64
    assert load(ddpm_folder).header == model.header
    pipeline = diffusers.DDPMPipeline.from_pretrained(ddpm_folder)
    x = torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x, 77.0).eps, pipeline.unet(x, 77).sample)


def test_another_scheduler_or_weight_is_another_fingerprint(ddpm_folder, tmp_path):
    before = load(ddpm_folder).header["fingerprint"]
    copy = tmp_path / "copy"
    shutil.copytree(ddpm_folder, copy)
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    assert load(copy).header["fingerprint"] != before
    assert load(copy).kind == "v"


def test_the_same_images_as_the_pipeline_of_diffusers(ddpm_folder):
    """Spacing quirks are reproduced by giving the times: DDIMPipeline's own list, then the clean end."""
    scheduler = diffusers.DDIMScheduler.from_pretrained(ddpm_folder / "scheduler")
    pipeline = diffusers.DDIMPipeline(diffusers.UNet2DModel.from_pretrained(ddpm_folder / "unet"), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=3, num_inference_steps=7, generator=torch.manual_seed(3), output_type="pt").images
    x = torch.randn(3, 2, 8, 8, generator=torch.manual_seed(3))
    model = load(ddpm_folder)
    times = [*pipeline.scheduler.timesteps.tolist(), -1]
    mine = DDIM()(model, Noise(0).at(range(3), model.shape), times=times, x=x).x
    # DDIM of diffusers ends at abar of the last level unless set_alpha_to_one; here it is set.
    assert ((mine / 2 + 0.5).clamp(0, 1) - theirs).abs().max() < 1e-5


def test_class_labels_and_the_class_of_none(unet):
    net = unet(num_class_embeds=4)
    scheduler = diffusers.DDPMScheduler()
    x, labels = torch.randn(3, 2, 8, 8), torch.tensor([0, 3, 1])
    model = as_denoiser(net, scheduler)
    assert model.num_classes == 4
    with torch.no_grad():
        assert torch.equal(model(x, 5.0, Cond(labels=labels)).eps, net(x, 5, labels).sample)
    with pytest.raises(InputError, match="null condition"):
        model.null(Cond(labels=labels))
    with pytest.raises(InputError, match="labels"):
        model(x, 5.0)
    spare = as_denoiser(net, scheduler, null_row=True)
    assert spare.num_classes == 3
    assert spare.null(Cond(labels=labels)).labels.tolist() == [3, 3, 3]


def test_text_conditions_are_tokens():
    net = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6, attention_head_dim=4,
    ).eval()  # fmt: skip
    model = as_denoiser(net, diffusers.DDIMScheduler())
    x, tokens = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 6)
    with torch.no_grad():
        assert torch.equal(model(x, 9.0, Cond(tokens=tokens)).eps, net(x, 9, tokens).sample)
        dropped = model.under(_plan(drop=range(model.net.num_layers)))(x, 9.0, Cond(tokens=tokens)).eps
    assert dropped.isfinite().all()


def test_a_dit_pipeline_works_on_latents(dit_folder):
    model = load(dit_folder)
    assert (model.shape, model.num_classes, model.header["name"]) == ((4, 4, 4), 1000, "latent")
    pipeline = diffusers.DiTPipeline.from_pretrained(dit_folder)
    assert model.scale == pipeline.vae.config.scaling_factor
    x, labels = torch.randn(2, 4, 4, 4), torch.tensor([7, 1000])
    with torch.no_grad():
        out = pipeline.transformer(x, timestep=torch.tensor([50, 50]), class_labels=labels).sample
        post = model(x, 50.0, Cond(labels=labels))
        assert torch.equal(post.eps, out[:, :4])
        assert torch.equal(post.mix, out[:, 4:])
        image = pipeline.vae.decode(x / model.scale).sample
        assert torch.equal(model.decode(x), image)
        latents = pipeline.vae.encode(image).latent_dist.mean * model.scale
        assert torch.allclose(model.encode(image), latents, atol=1e-6)
    assert model.null(Cond(labels=labels)).labels.tolist() == [1000, 1000]


def test_the_images_of_a_dit_pipeline(dit_folder):
    pipeline = diffusers.DiTPipeline.from_pretrained(dit_folder)
    pipeline.set_progress_bar_config(disable=True)
    args = {"num_inference_steps": 5, "output_type": "pt"}
    theirs = pipeline([3, 9], guidance_scale=1.0, generator=torch.manual_seed(0), **args).images
    x = torch.randn(2, 4, 4, 4, generator=torch.manual_seed(0))
    model = load(dit_folder).given(Cond(labels=torch.tensor([3, 9])))
    times = [*pipeline.scheduler.timesteps.tolist(), -1]
    latents = DDIM()(model, Noise(0).at(range(2), model.shape), times=times, x=x).x
    assert ((model.decode(latents) / 2 + 0.5).clamp(0, 1) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows_are_sampled_as_diffusers_does(unet, tmp_path, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    diffusers.DDPMPipeline(unet(), scheduler).save_pretrained(tmp_path, safe_serialization=True)
    model = load(tmp_path)
    assert (model.kind, model.schedule.t_max) == ("flow", 1.0)
    # The least level of its training table.
    assert model.schedule.t_min == pytest.approx(scheduler.sigmas.min().item(), rel=1e-5)
    net, x = unet(), torch.randn(3, 2, 8, 8)
    scheduler.set_timesteps(6)
    sigmas = scheduler.sigmas.double().tolist()
    assert sigmas[-1] == 0
    theirs = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(net(theirs, t).sample, t, theirs).prev_sample
        assert torch.allclose(model(x, 0.25).raw, net(x, 250.0).sample, atol=1e-6)
    mine = DDIM()(model, Noise(0).at(range(3), model.shape), times=sigmas, x=x).x
    assert (mine - theirs).abs().max() < 1e-4
    as_config = as_denoiser(unet(), {"prediction_type": "flow_prediction", "flow_shift": shift})
    assert (as_config.kind, as_config.schedule.t_min) == ("flow", model.schedule.t_min)


def test_a_dit_of_flows(dit, vae, tmp_path):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    net = dit(out_channels=4)
    pipeline = diffusers.DiTPipeline(net, vae(), scheduler)
    pipeline.save_pretrained(tmp_path, safe_serialization=True)
    model = load(tmp_path)
    x, labels = torch.randn(2, 4, 4, 4), torch.tensor([7, 9])
    with torch.no_grad():
        out = net(x, timestep=torch.tensor([300.0, 300.0]), class_labels=labels).sample
        assert torch.allclose(model(x, 0.3, Cond(labels=labels)).mean, x - 0.3 * out, atol=1e-5)


def _plan(**settings):
    from scoreline.nn.plan import Plan

    return Plan(**settings)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f: (f / "model_index.json").unlink(), "holds no model_index.json"),
        (lambda f: (f / "model_index.json").write_text("{"), "is no JSON"),
        (lambda f: (f / "model_index.json").write_text("{}"), "needs a unet or transformer"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "No such file"),
        (lambda f: next((f / "unet").glob("*.safetensors")).unlink(), "no .safetensors file"),
        (lambda f: next((f / "unet").glob("*.safetensors")).rename(f / "unet" / "x.bin"), "pickled weights only"),
        (lambda f: _cut(next((f / "unet").glob("*.safetensors"))), "cannot be read"),
        (lambda f: _drop_a_tensor(next((f / "unet").glob("*.safetensors"))), "missing keys"),
    ],
)
def test_broken_folders(ddpm_folder, tmp_path, change, words):
    folder = tmp_path / "pipeline"
    shutil.copytree(ddpm_folder, folder)
    change(folder)
    with pytest.raises(ArtefactError, match=words):
        load(folder)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:2000])


def _drop_a_tensor(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    tensors.pop("conv_in.weight")
    save_file(tensors, file, {"format": "pt"})


def test_what_is_not_understood_is_refused(ddpm_folder, tmp_path, unet, dit, vae):
    with pytest.raises(ArtefactError, match="not a network"):
        load(ddpm_folder, kind="network")
    with pytest.raises(InputError, match="EDMEuler"):
        as_denoiser(unet(), diffusers.EDMEulerScheduler())
    with pytest.raises(InputError, match="1000 t"):
        as_denoiser(unet(), diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500))
    with pytest.raises(InputError, match="invert_sigmas"):
        as_denoiser(unet(), diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(InputError, match="epsilon"):
        as_denoiser(unet(), dict(diffusers.DDIMScheduler().config) | {"prediction_type": "epsilo"})
    with pytest.raises(InputError, match="beta_schedule"):
        as_denoiser(unet(), {"beta_schedule": "liner"})
    with pytest.raises(InputError, match=r"Known: .*UNet2DModel"):
        as_denoiser(vae(), diffusers.DDIMScheduler())
    with pytest.raises(InputError, match="out_channels"):
        as_denoiser(unet(out_channels=3), diffusers.DDIMScheduler())
    with pytest.raises(InputError, match="learned_range"):
        as_denoiser(dit(), diffusers.DDPMScheduler(variance_type="learned"))
    with pytest.raises(InputError, match="in_shape"):
        as_denoiser(unet(sample_size=None), diffusers.DDIMScheduler())
    assert as_denoiser(unet(sample_size=None), diffusers.DDIMScheduler(), in_shape=(2, 8, 8)).shape == (2, 8, 8)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"unet": ["os", "system"], "scheduler": ["diffusers", "DDIMScheduler"]}))
    with pytest.raises(InputError, match="class of unet 'system'"):
        load_pipeline(tmp_path)
