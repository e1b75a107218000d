"""Pictures restyled by the shipped model: the same class comes back, another class differs, bad input is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scoreline.core.artefact import save_artefact
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.data import load_images, to_uint8
from scoreline.fewstep.guidance_students import DistilledGuidance, Noising
from scoreline.fewstep.guided_distillation import GuidanceDistillation
from scoreline.fewstep.restyling import restyle_to


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"), dtype=np.float64) / 127.5 - 1


def test_the_shipped_model_there_and_back(tmp_path: Path) -> None:
    result = restyle_to(tmp_path, "digits", "digits", images=[0, 1], labels="0,8", steps=12)
    assert result["count"] == 4
    assert Path(result["picture"]).is_file()
    original = load_images("digits").batch([0, 1])
    assert original.label is not None
    assert original.label.tolist() == [0, 1]
    shown = to_uint8(original.image)[0, 0].numpy() / 127.5 - 1
    same, other = (picture(tmp_path / "samples" / f"000000-{k}.png") for k in (0, 8))
    assert np.sqrt(np.square(same - shown).mean()) < 0.25 < np.sqrt(np.square(other - shown).mean())


def test_what_is_refused(tmp_path: Path) -> None:
    student: DistilledGuidance = GuidanceDistillation.student_of(load("digits"))
    up, down = str(tmp_path / "up.safetensors"), str(tmp_path / "down.safetensors")
    save_artefact(up, Noising(student))
    save_artefact(down, student)
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        (up, "digits", {}, "is an --encoder"),
        (down, up, {"target_weight": 5.0}, "target_weight 5.0: this student was trained"),
        (down, up, {"source_weight": 5.0}, "source_weight 5.0: this student was trained"),
        ("digits", up, {"target_weight": 1.0}, "takes no strength"),
        (down, up, {"labels": "12"}, "from 0 to 9"),
        (down, up, {"images": [5000]}, "has images 0 to"),
    ]
    for decoder, encoder, settings, said in cases:
        with pytest.raises(InputError, match=said):
            restyle_to(tmp_path / "out", decoder, encoder, **settings)
    assert not (tmp_path / "out").exists()
    torch.manual_seed(0)
    result = restyle_to(tmp_path / "out", down, up, images=[3], labels="5", target_weight=1.0, steps=1)
    assert result["steps"] == 1
