"""The one lazy table of everything that has a short name.

The same table serves `--samplers`, `load` and `scoreline systems`; it holds import paths as text, so that reading it
imports nothing. A new sampler, network, schedule or metric adds one line here.
"""

from __future__ import annotations

import importlib
from typing import Any

from scoreline.core.errors import InputError, unknown_name

__all__ = ["TABLE", "lookup", "names", "kind_and_name"]

TABLE: dict[str, dict[str, str]] = {
    "schedule": {
        "vp": "scoreline.diffusion.schedules:VP",
        "cosine": "scoreline.diffusion.schedules:Cosine",
        "subvp": "scoreline.diffusion.schedules:SubVP",
        "ve": "scoreline.diffusion.schedules:VE",
        "edm": "scoreline.diffusion.schedules:EDM",
        "flow": "scoreline.diffusion.schedules:Flow",
        "discrete": "scoreline.diffusion.schedules:Discrete",
    },
    "grid": {
        "karras": "scoreline.diffusion.grids:karras",
        "logsnr": "scoreline.diffusion.grids:logsnr",
        "time": "scoreline.diffusion.grids:time",
        "time-to-clean": "scoreline.diffusion.grids:time_to_clean",
        "leading": "scoreline.diffusion.grids:leading",
        "trailing": "scoreline.diffusion.grids:trailing",
        "linspace": "scoreline.diffusion.grids:linspace",
        "fractional": "scoreline.diffusion.grids:fractional",
        "quadratic": "scoreline.diffusion.grids:quadratic",
        "power-t": "scoreline.diffusion.grids:power_t",
    },
    "network": {
        "unet": "scoreline.nn.unet:UNet",
        "dit": "scoreline.nn.dit:DiT",
        "mlp": "scoreline.nn.mlp:MLP",
        "kl-autoencoder": "scoreline.nn.autoencoder:KLAutoencoder",
    },
    "text": {
        # What makes conditions of texts, and networks that hold such an encoder.
        "bytes": "scoreline.nn.text:ByteTransformer",
        "clip": "scoreline.nn.clip:CLIPTextEncoder",
        "conditioned": "scoreline.nn.text:TextConditioned",
    },
    "router": {
        # Which of several models a condition is sent to.
        "classes": "scoreline.fewstep.class_shares:ClassRouter",
        "quadrants": "scoreline.fewstep.text_shares:QuadrantRouter",
        "texts": "scoreline.fewstep.text_shares:TextRouter",
    },
    "adapter": {
        "lora": "scoreline.nn.adapters:LoRA",
    },
    "denoiser": {
        "preconditioned": "scoreline.diffusion.preconditioned:Preconditioned",
        "gaussian": "scoreline.diffusion.closed_form:Gaussian",
        "mixture": "scoreline.diffusion.closed_form:Mixture",
        "empirical": "scoreline.diffusion.closed_form:Empirical",
        "latent": "scoreline.diffusion.latent:Latent",
        "on-schedule": "scoreline.core.denoiser:OnSchedule",
        "consistency": "scoreline.fewstep.maps:ConsistencyFunction",
        "latent-consistency": "scoreline.fewstep.maps:LatentConsistency",
        "guided-consistency": "scoreline.fewstep.guided:GuidedConsistency",
        "trajectory": "scoreline.fewstep.maps:Trajectory",
        "mean-map": "scoreline.fewstep.mean_map:MeanMap",
        "distilled-guidance": "scoreline.fewstep.guidance_students:DistilledGuidance",
        "noising": "scoreline.fewstep.guidance_students:Noising",
        "two-heads": "scoreline.fewstep.guidance_students:TwoHeads",
        "routed": "scoreline.fewstep.msd:Routed",
    },
    "sampler": {
        "ddpm": "scoreline.samplers.ddpm:DDPM",
        "ddim": "scoreline.samplers.ddim:DDIM",
        "euler": "scoreline.samplers.euler:Euler",
        "heun": "scoreline.samplers.heun:Heun",
        "ancestral": "scoreline.samplers.ancestral:Ancestral",
        "dpm-solver++2m": "scoreline.samplers.dpm_solver_pp:DPMSolverPP2M",
        "dpm-solver++3m": "scoreline.samplers.dpm_solver_pp:DPMSolverPP3M",
        "dpm-solver-v3": "scoreline.samplers.dpm_solver_v3:DPMSolverV3",
        "deis": "scoreline.samplers.deis:DEIS",
        "unipc": "scoreline.samplers.unipc:UniPC",
        "pndm": "scoreline.samplers.pndm:PNDM",
        "skip-tuning": "scoreline.guidance.skip_tuning:SkipTuning",
        "planned": "scoreline.guidance.planned:Planned",
        "time-shift": "scoreline.guidance.time_shift:TimeShift",
        "epsilon-scaling": "scoreline.guidance.epsilon_scaling:EpsilonScaling",
        "rk45": "scoreline.samplers.rk45:RK45",
        "usf": "scoreline.samplers.usf:USF",
        "euler-maruyama": "scoreline.samplers.score_sde:EulerMaruyama",
        "reverse-diffusion": "scoreline.samplers.score_sde:ReverseDiffusion",
        "pc": "scoreline.samplers.score_sde:PC",
        "denoising-mcmc": "scoreline.samplers.denoising_mcmc:DenoisingMCMC",
        "jumps": "scoreline.samplers.jumps:Jumps",
        "straight": "scoreline.samplers.straight:Straight",
        "er-sde": "scoreline.samplers.er_sde:ERSDE",
        "double-step": "scoreline.samplers.double_step:DoubleStep",
    },
    "method": {
        "denoising": "scoreline.diffusion.denoising:Denoising",
        "classification": "scoreline.classify.plain:Classification",
        "noisy-classification": "scoreline.guidance.classifier:NoisyClassification",
        "kl-autoencoding": "scoreline.generators.autoencoding:KLAutoencoding",
        "ict": "scoreline.fewstep.ict:ICT",
        "ct": "scoreline.fewstep.consistency_models:CT",
        "cd": "scoreline.fewstep.consistency_models:CD",
        "scott": "scoreline.fewstep.scott:SCott",
        "diff-instruct": "scoreline.fewstep.diff_instruct:DiffInstruct",
        "dmd": "scoreline.fewstep.diff_instruct:DMD",
        "dmd2": "scoreline.fewstep.dmd2:DMD2",
        "teacher-matching": "scoreline.fewstep.teacher_matching:TeacherMatching",
        "sfd": "scoreline.fewstep.sfd:SFD",
        "f-distill": "scoreline.fewstep.f_distill:FDistill",
        "sim": "scoreline.fewstep.sim:SIM",
        "sid": "scoreline.fewstep.sid:SiD",
        "ctm": "scoreline.fewstep.ctm:CTM",
        "adversarial-consistency": "scoreline.fewstep.sar_to_optical:AdversarialConsistency",
        "rectified-flow": "scoreline.fewstep.instaflow:RectifiedFlow",
        "flow-distillation": "scoreline.fewstep.instaflow:FlowDistillation",
        "annealed-reflow": "scoreline.fewstep.slimflow:AnnealedReflow",
        "flow-guided-distillation": "scoreline.fewstep.slimflow:FlowGuidedDistillation",
        "progressive": "scoreline.fewstep.progressive:Progressive",
        "guidance-distillation": "scoreline.fewstep.guided_distillation:GuidanceDistillation",
        "rfpp": "scoreline.fewstep.rfpp:RFPP",
    },
    "bridge": {
        # Readers of the formats of others: functions from a path to a model; and their networks.
        "diffusers-pipeline": "scoreline.bridges.diffusers_models:load_pipeline",
        "diffusers-unet": "scoreline.bridges.diffusers_networks:DiffusersUNet",
        "diffusers-dit": "scoreline.bridges.diffusers_networks:DiffusersDiT",
    },
    "classifier": {
        "noisy-classifier": "scoreline.guidance.classifier:NoisyClassifier",
    },
    "model": {
        # Files in scoreline/models, not import paths.
        "digits": "digits.safetensors",
        "digits-eps": "digits-eps.safetensors",
        "digits-f-distill": "digits-f-distill.safetensors",
        "digits-net": "digits-net.safetensors",
        "digits-noisy-classifier": "digits-noisy-classifier.safetensors",
        "digits-progressive-1": "digits-progressive-1.safetensors",
        "digits-progressive-2": "digits-progressive-2.safetensors",
        "digits-text": "digits-text.safetensors",
    },
    "discriminator": {
        "taps": "scoreline.nn.discriminator:TapDiscriminator",
        "features": "scoreline.nn.discriminator:FeatureDiscriminator",
        "pairs": "scoreline.nn.discriminator:PairDiscriminator",
    },
    "latents": {
        "ode-latents": "scoreline.samplers.latents:Latents",
    },
    "calibration": {
        "dpm-solver-v3": "scoreline.samplers.model_statistics:ModelStatistics",
        "denoising-mcmc": "scoreline.samplers.level_prediction:LevelPredictor",
    },
    "encoder": {
        "inception-2015": "scoreline.nn.inception:Inception2015",
        "dinov2-vit-l-14": "scoreline.nn.dinov2:DINOv2",
        "clip-vit-l-14-336": "scoreline.nn.clip:CLIPImageEncoder",
        "pixels": "scoreline.nn.features:Pixels",
        "digits": "scoreline.nn.digits_net:DigitsNet",
    },
}


def names(kind: str) -> list[str]:
    """The short names known for a kind of thing, sorted.

    >>> "heun" in names("sampler")
    True
    """
    if kind not in TABLE:
        raise unknown_name("kind", kind, TABLE)
    return sorted(TABLE[kind])


def lookup(kind: str, name: str) -> Any:
    """The class behind a short name, imported now.

    Raises:
        InputError: the name is unknown; the nearest valid one is named.
    """
    if name not in TABLE.get(kind, {}):
        raise unknown_name(kind, name, names(kind))
    module, colon, attribute = TABLE[kind][name].partition(":")
    if not colon:
        raise InputError(kind, name, "is a file, not a class; open it with scoreline.load")
    return getattr(importlib.import_module(module), attribute)


def kind_and_name(cls: type) -> tuple[str, str]:
    """The (kind, short name) under which a class stands in the table.

    Raises:
        InputError: the class has no line in the table.
    """
    path = f"{cls.__module__}:{cls.__qualname__}"
    for kind, entries in TABLE.items():
        for name, target in entries.items():
            if target == path:
                return kind, name
    raise unknown_name("class", path, [target for entries in TABLE.values() for target in entries.values()])
