"""A tiny random model, by path, for the evaluations."""

from __future__ import annotations

import pytest
import torch

from scoreline.core.artefact import save_artefact
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.nn.mlp import MLP


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a small random class-conditional model of 8x8 pictures."""
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(in_shape=(1, 8, 8), width=16, depth=1, num_classes=10)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    save_artefact(path, Preconditioned(net, EDM(), sigma_data=0.75), card={"data": "digits"})
    return str(path)
