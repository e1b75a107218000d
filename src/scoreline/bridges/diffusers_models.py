"""Pipelines of the diffusers library as denoisers: a folder with `model_index.json` in, a `Denoiser` out.

The network stays diffusers' own, behind our contract (`bridges/diffusers_networks.py`); what the scheduler's config
says about the model (betas, prediction type, learned variance) becomes a schedule and a kind. What it says about
sampling (spacing, clipping, solver order) is the sampler's business and is left to the sampler. Nothing is downloaded,
no pickle is read, and the classes are chosen from the short table below, never by a name in a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import scoreline
from scoreline.core.artefact import fingerprint
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.diffusion.betas import cosine_betas
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import Discrete, Flow

__all__ = ["DiffusersAutoencoder", "as_denoiser", "betas_of", "diffusers_library", "flow_of", "is_flow"]
__all__ += ["load_pipeline", "schedule_of"]

KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")


def diffusers_library() -> Any:
    """The diffusers library.

    Raises:
        InputError: it is not installed; says how to get it.
    """
    try:
        import diffusers
    except ImportError:
        raise InputError("diffusers", None, "is not installed; pip install 'scoreline[diffusers]'") from None
    return diffusers


def betas_of(config: Mapping[str, Any]) -> np.ndarray:
    """The table of betas that a diffusers scheduler's config names, (T,) float64, before any rescaling.

    "linear" is linspace(start, end), "scaled_linear" linspace(sqrt(start), sqrt(end))^2, "squaredcos_cap_v2" the cosine
    table, "sigmoid" start + (end - start) sigmoid(linspace(-6, 6)); `trained_betas` overrides them.

    Args:
        config: the scheduler's config: beta_schedule, beta_start, beta_end, num_train_timesteps, trained_betas.

    Raises:
        InputError: the config has no table of betas, or an unknown one.
    """
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], dtype=np.float64)
    name = config.get("beta_schedule")
    if name is None:
        mend = "only schedulers with a table of betas (DDPM, DDIM, DPM-Solver, ...) say how the model was trained"
        raise InputError("scheduler", config.get("_class_name"), mend)
    T = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    tables = {
        "linear": lambda: np.linspace(start, end, T),
        "scaled_linear": lambda: np.linspace(start**0.5, end**0.5, T) ** 2,
        "squaredcos_cap_v2": lambda: cosine_betas(T),
        "sigmoid": lambda: start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, T))),
    }
    if name not in tables:
        raise unknown_name("beta_schedule", str(name), tables)
    return tables[name]()


def schedule_of(config: Mapping[str, Any]) -> Discrete:
    """The discrete schedule of a diffusers scheduler's config, zero terminal SNR included.

    Raises:
        InputError: see :func:`betas_of`.
    """
    return Discrete(betas=betas_of(config).tolist(), zero_terminal_snr=bool(config.get("rescale_betas_zero_snr")))


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config is of a model of straight paths that answers noise - x_0."""
    return str(config.get("_class_name")).startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"


def flow_of(config: Mapping[str, Any]) -> Flow:
    """The flow schedule of a diffusers scheduler's config: alpha = 1 - t, sigma = t, down to the least of its levels.

    Levels are s = k/T, k = 1 ... T; `shift` moves them to shift s/(1 + (shift - 1) s). How they are spaced is the
    sampler's business, what is taken over is where they end.

    Args:
        config: the scheduler's config: num_train_timesteps, shift (of DPM-Solver flow_shift), invert_sigmas.

    Raises:
        InputError: a number of timesteps, or a direction of time, that the network's time input is not known for.
    """
    T = int(config.get("num_train_timesteps", 1000))
    if T != 1000:
        raise InputError("num_train_timesteps", T, "a flow is asked at 1000 t; other factors are not understood")
    if config.get("invert_sigmas"):
        raise InputError("invert_sigmas", True, "flows that run from data to noise are not understood")
    shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
    if not shift > 0:
        raise InputError("shift", shift, "must be positive")
    return Flow(t_min=shift / T / (1 + (shift - 1) / T))


class DiffusersAutoencoder(nn.Module):
    """diffusers' `AutoencoderKL` with the methods that a model of latents needs.

    Args:
        module: the autoencoder.
        latent_shape: (C, H, W) of the latents of the model beside it.

    Raises:
        InputError: latents that are shifted as well as scaled.
    """

    def __init__(self, module: nn.Module, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        shift = getattr(module.config, "shift_factor", None)
        if shift:
            raise InputError("shift_factor", shift, "shifted latents are not understood")
        self.module, self.latent_shape = module, latent_shape

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents of images (B, C, H, W) in [-1, 1]."""
        posterior = self.module.encode(x).latent_dist  # type: ignore[operator]
        return posterior.mean, posterior.logvar

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents (B, *latent_shape)."""
        return self.module.decode(z, return_dict=False)[0]  # type: ignore[operator]


def as_denoiser(
    network: nn.Module,
    scheduler: Any,
    vae: nn.Module | None = None,
    *,
    in_shape: tuple[int, ...] | None = None,
    null_row: bool = False,
) -> Denoiser:
    """The parts of a diffusers pipeline as a denoiser.

    Args:
        network: a `UNet2DModel`, `UNet2DConditionModel` or `DiTTransformer2DModel`.
        scheduler: a scheduler of diffusers, or its config.
        vae: an `AutoencoderKL` when the network works on latents.
        in_shape: (C, H, W) where the network's config names no image size.
        null_row: the last row of a U-Net's class table means "no class" (a DiT always has such a row).

    Returns:
        A :class:`~scoreline.diffusion.preconditioned.Preconditioned`, inside a :class:`Latent` when there is a `vae`.

    Raises:
        InputError: a network, scheduler or prediction type that is not understood.
    """
    from scoreline.bridges.diffusers_networks import DiffusersDiT, DiffusersUNet

    config = {
        "_class_name": type(scheduler).__name__,
        **(scheduler if isinstance(scheduler, Mapping) else scheduler.config),
    }
    name = type(network).__name__
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    net: Any
    if name == "DiTTransformer2DModel":
        net = DiffusersDiT(network)
    else:
        net = DiffusersUNet(network, in_shape, null_row=null_row)
    prediction = config.get("prediction_type", "epsilon")
    flow = is_flow(config)
    if not flow and prediction not in KINDS:
        raise unknown_name("prediction_type", str(prediction), [*KINDS, "flow_prediction"])
    channels = net.in_shape[0]
    if net.out_channels not in (channels, 2 * channels):
        raise InputError("out_channels", net.out_channels, f"needs {channels}, or {2 * channels} with a variance")
    if config.get("variance_type") == "learned":
        mend = "a log variance as such is not understood, only learned_range, a share between the two bounds"
        raise InputError("variance_type", "learned", mend)
    model: Denoiser = Preconditioned(
        net,
        flow_of(config) if flow else schedule_of(config),
        kind="flow" if flow else KINDS[prediction],
        learned_variance=net.out_channels == 2 * channels,
    )
    if vae is not None:
        autoencoder: Any = DiffusersAutoencoder(vae, net.in_shape)
        said: Any = vae.config
        model = Latent(model, autoencoder, scale=float(said.scaling_factor))
    return model.eval()


def load_pipeline(folder: str | os.PathLike[str], *, null_row: bool = False) -> Denoiser:
    """The denoiser of a diffusers pipeline folder, with the header that `load` gives every model.

    Read are `unet` or `transformer`, `scheduler` and, for latents, `vae`; text encoders and safety checkers are not.

    Args:
        folder: it holds model_index.json; weights as .safetensors.
        null_row: see :func:`as_denoiser`.

    Raises:
        ArtefactError: a part is missing, damaged, or stored as a pickle.
        InputError: a part is not understood.
    """
    path = Path(folder)
    index = _json(path / "model_index.json")
    parts = [name for name in ("unet", "transformer") if _there(index, name)]
    if not parts or not _there(index, "scheduler"):
        mend = "needs a unet or transformer and a scheduler of diffusers; " + f"{index.get('_class_name')} is not read"
        raise ArtefactError("pipeline", str(path), mend)
    network = _read(path / parts[0], str(index[parts[0]][1]), NETWORKS)
    vae = _read(path / "vae", str(index["vae"][1]), ("AutoencoderKL",)) if _there(index, "vae") else None
    config = _json(path / "scheduler" / "scheduler_config.json")
    if parts[0] == "transformer" and vae is None:
        raise ArtefactError("pipeline", str(path), "a transformer of latents needs its vae")
    model = as_denoiser(network, config, vae, null_row=null_row)
    said = {"pipeline": index.get("_class_name"), "network": str(index[parts[0]][1]), "scheduler": config}
    header = {
        "format": "diffusers", "version": scoreline.__version__, "kind": "denoiser",
        "name": "preconditioned" if vae is None else "latent", "args": {}, "belongs_to": None,
        "fingerprint": fingerprint(said, model.state_dict()),
        "card": {"source": f"diffusers folder {path.name}", **said},
    }  # fmt: skip
    object.__setattr__(model, "header", header)
    return model


def _there(index: Mapping[str, Any], part: str) -> bool:
    entry = index.get(part)
    return isinstance(entry, list) and len(entry) == 2 and None not in entry


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError("pipeline file", str(path), error.strerror or "cannot be read") from None
    except ValueError as error:
        raise ArtefactError("pipeline file", str(path), f"is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise ArtefactError("pipeline file", str(path), "is no JSON object")
    return value


def _read(folder: Path, name: str, known: tuple[str, ...]) -> nn.Module:
    """One part of a pipeline, whole: no tensor missing, none left over."""
    from safetensors import SafetensorError

    if name not in known:
        raise unknown_name(f"class of {folder.name}", name, known)
    cls: Any = getattr(diffusers_library(), name)
    _json(folder / "config.json")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        mend = "holds pickled weights only (.bin); save it again with safe_serialization=True" if pickled else ""
        raise ArtefactError("weights", str(folder), mend or "no .safetensors file")
    try:
        module, info = cls.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, torch_dtype=torch.float32,
            low_cpu_mem_usage=False, output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ArtefactError("weights", str(folder), f"cannot be read ({error})") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise ArtefactError("weights", str(folder), f"{what.replace('_', ' ')}: {sorted(map(str, info[what]))[0]}")
    return module.eval()
