"""Students that are told a strength, that run upwards, or answer with two heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scoreline.core.artefact import load_artefact, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import Cosine
from scoreline.evaluate.specs import guided
from scoreline.fewstep.guidance_students import DistilledGuidance, Noising, check_interval, drawn_weights, interval_of
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM

TOP = Cosine(s=0.0, t_min=1e-3, t_max=0.98)


def told(seed: int = 0) -> DistilledGuidance:
    torch.manual_seed(seed)
    net = MLP(in_shape=(2,), width=16, depth=1, num_classes=3, weight_input=True)
    torch.nn.init.normal_(net.embedding.weight.weight)  # type: ignore[union-attr, arg-type]
    return DistilledGuidance(Preconditioned(net, TOP, kind="v"))


def cond(count: int = 4, w: float | None = None) -> Cond:
    return Cond(labels=torch.arange(count) % 3, weight=None if w is None else torch.full((count,), w))


def test_where_no_strength_is_given_the_student_has_its_own(tmp_path: Path) -> None:
    model, x = told(), Noise(0).at(range(4), (2,)).normal()
    model.guidance.fill_(2.5)
    model.interval.copy_(torch.tensor([1.0, 3.0]))
    own = model(x, 0.5, cond()).mean
    assert torch.equal(own, model(x, 0.5, cond(w=2.5)).mean)
    assert (own - model(x, 0.5, cond(w=1.0)).mean).abs().max() > 1e-3
    path = tmp_path / "student.safetensors"
    save_artefact(path, model)
    again = load_artefact(path)[0]
    assert again.range == (1.0, 3.0)
    assert torch.equal(again(x, 0.5, cond()).mean, own)
    other = told(1)
    other.load_strengths(Noising(again))
    assert (other.guidance, other.range) == (2.5, (1.0, 3.0))


def test_strengths_beyond_the_training_are_told() -> None:
    model = told()
    with pytest.warns(UserWarning, match=r"strength 4.5 lies outside \[0, 4\]"):
        model.given(cond(w=4.5))
    model.given(cond(w=4.0))
    model.given(cond())
    model.given(None)


def test_it_is_not_guided_once_more() -> None:
    with pytest.raises(InputError, match="--guidance-weight"):
        told().null(cond())
    with pytest.raises(InputError, match="--guidance-weight"):
        guided(told(), 3.0)


def test_intervals() -> None:
    assert check_interval([0, 4]) == (0.0, 4.0)
    for bad in ([1.0], [2.0, 1.0], [-1.0, 2.0]):
        with pytest.raises(InputError, match="unguided"):
            check_interval(bad)
    rows = Noise(0).at(range(2000), (2,))
    w = drawn_weights(rows, (2.0, 14.0))
    assert w.dtype == torch.float32
    assert 2 <= w.min() < 2.1
    assert 13.9 < w.max() <= 14
    assert w.mean().item() == pytest.approx(8, abs=0.3)
    assert torch.equal(w[5:9], drawn_weights(rows[slice(5, 9)], (2.0, 14.0)))
    assert interval_of(Noising(told())) == (0.0, 4.0)
    assert interval_of(told().inner) is None


def test_a_student_of_the_way_up() -> None:
    model, draws = Noising(told()), Noise(0).at(range(4), (2,))
    x = draws.normal()
    assert torch.equal(model(x, 0.4, cond(w=1.0)).mean, model.inner(x, 0.4, cond(w=1.0)).mean)
    up = DDIM()(model.given(cond()), draws, times=[TOP.t_min, 0.5, TOP.t_max], x=x)
    assert up.nfe == 2
    with pytest.raises(InputError, match="from images to noise"):
        DDIM(steps=2)(model.given(cond()), draws)
