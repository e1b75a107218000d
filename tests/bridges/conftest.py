"""Small random networks and pipelines of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 16), "norm_num_groups": 4,
    "layers_per_block": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8,
}  # fmt: skip


def make_unet(**changes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.UNet2DModel(**UNET | changes).eval()


def make_dit(**changes: Any) -> Any:
    settings = {
        "sample_size": 4, "in_channels": 4, "out_channels": 8, "num_layers": 2, "num_attention_heads": 2,
        "attention_head_dim": 8, "num_embeds_ada_norm": 1000, "patch_size": 2, "norm_num_groups": 1,
        "norm_elementwise_affine": False, "attention_bias": True,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = diffusers.DiTTransformer2DModel(**settings | changes).eval()
        for parameter in net.parameters():
            # Zeros at the start would make every block the identity.
            torch.nn.init.normal_(parameter, std=0.15)
    return net


def make_vae() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return diffusers.AutoencoderKL(
            in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=8,
        ).eval()  # fmt: skip


@pytest.fixture(scope="session")
def unet() -> Callable[..., Any]:
    """Makes a small `UNet2DModel`; settings may be changed."""
    return make_unet


@pytest.fixture(scope="session")
def dit() -> Callable[..., Any]:
    """Makes a small `DiTTransformer2DModel`."""
    return make_dit


@pytest.fixture(scope="session")
def vae() -> Callable[..., Any]:
    """Makes a small `AutoencoderKL`."""
    return make_vae


@pytest.fixture(scope="session")
def ddpm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddpm")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, beta_end=0.03, clip_sample=False)
    diffusers.DDPMPipeline(make_unet(), scheduler).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dit")
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    diffusers.DiTPipeline(make_dit(), make_vae(), scheduler).save_pretrained(folder, safe_serialization=True)
    return folder
