"""The slider's page: every strength is there, the student's own is shown first, and what has none is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from scoreline.core.artefact import save_artefact
from scoreline.core.errors import InputError
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, Cosine
from scoreline.fewstep.guidance_students import DistilledGuidance
from scoreline.nn.mlp import MLP
from scoreline.nn.text import ByteTransformer, TextConditioned
from scoreline.nn.unet import UNet
from scoreline.report.guidance_report import write_guidance_report


def test_a_page_stands_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MLP(in_shape=(1, 8, 8), width=16, depth=1, num_classes=10, weight_input=True)
    torch.nn.init.normal_(net.embedding.weight.weight)  # type: ignore[union-attr, arg-type]
    torch.nn.init.normal_(net.output.weight, std=0.2)
    student = DistilledGuidance(Preconditioned(net, Cosine(), kind="v"))
    student.guidance.fill_(2.0)
    path = tmp_path / "student.safetensors"
    card = {"sampling": {"sampler": "ddim:grid=time-to-clean", "steps": [2]}, "command": "scoreline distill <x>"}
    save_artefact(path, student, card=card)
    page = write_guidance_report(path, tmp_path, stops=3, count=4)
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r'class="at-(\d)" src="(data:image/png;base64,[^"]+)"[^>]*?( hidden)?>', text)
    assert [number for number, _, _ in pictures] == ["0", "1", "2"]
    assert [bool(hidden) for _, _, hidden in pictures] == [True, False, True]
    assert len({picture for _, picture, _ in pictures}) == 3
    assert 'max="2"' in text
    assert "student, 2 evaluations" in text
    assert "scoreline distill &lt;x&gt;" in text
    assert "http" not in re.sub(r"base64,[^\"]+", "", text)
    with pytest.raises(InputError, match="takes a guidance weight"):
        write_guidance_report("digits", tmp_path)
    net = UNet(in_shape=(1, 4, 4), base_channels=8, channel_mult=(1,), num_blocks=1, attention=(4,), context_dim=8,
               weight_input=True)  # fmt: skip
    reader = DistilledGuidance(Preconditioned(TextConditioned(net, ByteTransformer(width=8, depth=1, length=8)), EDM()))
    save_artefact(tmp_path / "reader.safetensors", reader, card=card)
    with pytest.raises(InputError, match="neither classes nor prompts"):
        write_guidance_report(tmp_path / "reader.safetensors", tmp_path)
    with pytest.raises(InputError, match="2 or more"):
        write_guidance_report(path, tmp_path, stops=1)
