"""The students that come with scoreline are what their cards say."""

from __future__ import annotations

import pytest

from scoreline.core.load import load, model_cards
from scoreline.core.noise import Noise
from scoreline.evaluate.protocols import digits_protocols, features_of
from scoreline.evaluate.specs import labels_for, make_sampler
from scoreline.samplers.generator import Sampled

STUDENTS = [name for name, header in model_cards().items() if "sampling" in header["card"]]


def test_there_are_some() -> None:
    assert "digits-f-distill" in STUDENTS


@pytest.mark.each("name", STUDENTS)
def test_a_shipped_student(name: str) -> None:
    """1,000 images are nearer than 0.4, where the teacher in one or two steps of DDIM is at 5; the card has 10,000."""
    model = load(name)
    card = model.header["card"]
    said = card["sampling"]
    for steps in said["steps"]:
        generator = Sampled(model, make_sampler(said["sampler"], steps=steps))
        images = generator.generate(range(1000), Noise(0), labels_for(range(1000), 10))
        protocol = digits_protocols()["digits"]
        assert protocol.distance(features_of(protocol.encoder, images)) < 0.4
        (recorded,) = (v for k, v in card["scores"].items() if k.startswith(f"{steps} steps"))
        assert len(recorded["fid@digits"]) == 3
        assert max(recorded["fid@digits"]) < 1.5 * 0.1376  # the teacher's converged ODE
