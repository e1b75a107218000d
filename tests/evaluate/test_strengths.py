"""The guidance weight of students, apart from guidance: each is refused where the other is meant."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import VP, Discrete
from scoreline.evaluate.strengths import strengths_of, told_strength
from scoreline.fewstep.guidance_students import DistilledGuidance
from scoreline.fewstep.guided import GuidedConsistency
from scoreline.nn.mlp import MLP


def net(**more: Any) -> MLP:
    return MLP(in_shape=(2,), width=16, depth=1, num_classes=3, **more)


def student() -> DistilledGuidance:
    made = DistilledGuidance(Preconditioned(net(weight_input=True), VP(), kind="v"))
    torch.nn.init.normal_(made.inner.net.embedding.weight.weight)
    return made


def test_what_is_told() -> None:
    assert strengths_of(student()) == {"default": 0.0, "interval": [0.0, 4.0]}
    assert strengths_of(GuidedConsistency(net(weight_input=True), Discrete())) == {"default": 7.5, "interval": None}
    assert strengths_of(GuidedConsistency(net(), Discrete())) is None
    assert strengths_of(load("digits")) is None
    assert strengths_of(SimpleNamespace()) is None  # type: ignore[arg-type]


def test_a_weight_is_a_view() -> None:
    model, x = student(), torch.ones(3, 2)
    model.header = {"fingerprint": "f"}
    view = told_strength(model, 2.0)
    told = Cond(labels=torch.arange(3))
    assert torch.equal(view(x, 0.5, told).mean, model(x, 0.5, told.replace(weight=torch.full((3,), 2.0))).mean)
    assert model.guidance == 0
    assert view.header is model.header
    assert told_strength(model, None) is model
    assert told_strength(load("digits"), None, 3.0) is not None


def test_the_wrong_one_is_refused() -> None:
    with pytest.raises(InputError, match="--guidance s"):
        told_strength(load("digits"), 2.0)
    with pytest.raises(InputError, match="--guidance-weight w from 0 to 4"):
        told_strength(student(), None, 3.0)
    with pytest.raises(InputError, match="from 0 to 4"):
        told_strength(student(), 4.5)
    with pytest.raises(InputError, match="guidance_weight"):
        told_strength(GuidedConsistency(net(weight_input=True), Discrete()), -1.0)
