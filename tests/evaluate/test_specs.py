"""Samplers, guidance and labels from what a user types."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.names import names
from scoreline.evaluate.specs import (
    check_fit,
    guided,
    labels_for,
    make_sampler,
    parse_labels,
    parse_spec,
    sampler_options,
)


def test_settings_take_the_declared_type() -> None:
    assert parse_spec("heun") == ("heun", {})
    assert parse_spec("heun:s_churn=40:s_max=Infinity:grid=karras") == (
        "heun",
        {"s_churn": 40, "s_max": math.inf, "grid": "karras"},
    )
    assert parse_spec("ddpm:variance=small") == ("ddpm", {"variance": "small"})


@pytest.mark.parametrize(
    "spec, words",
    [
        ("", "sampler ''"),
        ("heum", "did you mean 'heun'"),
        ("heun:", "name:key=value"),
        ("heun:s_chrn=1", "did you mean 's_churn'"),
        ("heun:steps=3", "setting of heun 'steps'"),  # the cost is given by --nfe
        ("heun:nfe=3", "setting of heun 'nfe'"),
        ("heun:s_churn=true", "must be a number"),
        ("heun:s_churn=NaN", "must be a number"),
        ("heun:s_churn=", "must be a number"),
        ("heun:s_churn=[1]", "must be a number"),
        ("ddim:eta=0:eta=1", "twice"),
    ],
)
def test_mistakes_are_named(spec: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        make_sampler(spec, nfe=9)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", names("sampler"))
def test_every_sampler_can_be_typed(name: str) -> None:
    assert not {"self", "steps", "nfe"} & set(sampler_options(name))
    assert "grid" in sampler_options(name)
    assert make_sampler(name, nfe=20).nfe == 20


@pytest.mark.parametrize("spec, budget, spent", [("heun", 10, 9), ("heun", 9, 9), ("ddim", 10, 10)])
def test_check_fit_gives_what_will_be_spent(tiny: str, spec: str, budget: int, spent: int) -> None:
    model = load(tiny)
    assert check_fit(make_sampler(spec, nfe=budget), model) == spent
    doubled = check_fit(make_sampler(spec, nfe=2 * budget), guided(model, 2.0))
    assert doubled == 2 * spent
    with pytest.raises(InputError, match="needs at least"):
        check_fit(make_sampler("heun", nfe=5), guided(model, 2.0))
    with pytest.raises(InputError):
        check_fit(make_sampler("heun:grid=leading", nfe=9), model)


def test_guidance_of_one_or_none_is_the_model_itself(tiny: str) -> None:
    model = load(tiny)
    assert guided(model, None) is model
    assert guided(model, 1.0) is model
    assert guided(model, 0.0).evaluations == 2
    clipped = guided(model, None, clip=True)
    x, cond = 40 * torch.randn(3, 1, 8, 8), labels_for(range(3), 10)
    assert bool((clipped(x, 20.0, cond).mean.abs() <= 1).all())
    assert bool((model(x, 20.0, cond).mean.abs() > 1).any())


def test_labels() -> None:
    assert parse_labels(None, 10) is None
    assert parse_labels("3, 0,3", 10) == [3, 0, 3]
    assert parse_labels("none", 10) == [10]
    for wrong in ("10", "-1", "1.0", "", "1,", "None", "²"):
        with pytest.raises(InputError, match="from 0 to 9"):
            parse_labels(wrong, 10)
    with pytest.raises(InputError, match="no classes"):
        parse_labels("0", None)


def test_the_label_of_an_image_is_that_of_its_number() -> None:
    assert labels_for([0, 9, 10, 23], 10).labels.tolist() == [0, 9, 0, 3]  # type: ignore[union-attr]
    assert labels_for([0, 1, 2, 7], 10, [4, 2, 6]).labels.tolist() == [4, 2, 6, 2]  # type: ignore[union-attr]
    assert labels_for(range(2), None) is None
