"""Errors name the thing, the value and the mend."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoreline.core.errors import ArtefactError, InputError, NonFiniteError, ScorelineError, nearest, unknown_name


def test_the_message_names_thing_value_and_mend() -> None:
    error = InputError("nfe", 3, "use at least 5")
    assert str(error) == "nfe 3: use at least 5"
    assert (error.thing, error.value, error.mend) == ("nfe", 3, "use at least 5")
    assert str(InputError("steps", None, "give steps")) == "steps: give steps"
    assert str(InputError("sampler", "a")) == "sampler 'a'"


def test_exit_codes_and_bases() -> None:
    assert InputError("a").exit_code == 2
    assert ArtefactError("a").exit_code == NonFiniteError("a").exit_code == ScorelineError("a").exit_code == 1
    assert isinstance(InputError("a"), ValueError)
    assert isinstance(NonFiniteError("a"), ArithmeticError)
    assert not isinstance(ArtefactError("a"), ValueError)


@pytest.mark.parametrize("cls", [ScorelineError, InputError, ArtefactError, NonFiniteError])
def test_errors_cross_process_borders(cls: type[ScorelineError]) -> None:
    error = pickle.loads(pickle.dumps(cls("loss", 1.5, "lower the rate")))
    assert type(error) is cls
    assert (error.thing, error.value, error.mend) == ("loss", 1.5, "lower the rate")
    assert str(error) == "loss 1.5: lower the rate"


def test_nearest() -> None:
    known = ["heun", "ddim", "dpm-solver++2m", "Euler"]
    assert nearest("huen", known) == "heun"
    assert nearest("DDIM", known) == "ddim"
    assert nearest("euler", known) == "Euler"
    assert nearest("dpmsolver2m", known) == "dpm-solver++2m"
    assert nearest("xyzzy", known) is None
    assert nearest("", []) is None


@given(st.sampled_from(["heun", "karras", "discrete", "quadratic"]), st.integers(0, 20))
def test_one_letter_lost_is_always_found(name: str, at: int) -> None:
    at %= len(name)
    assert nearest(name[:at] + name[at + 1 :], ["heun", "karras", "discrete", "quadratic"]) == name


@pytest.mark.parametrize("value", [3, None, 2.5, ("heun",)])
def test_a_name_that_is_no_text_is_refused_like_any_other(value: object) -> None:
    error = unknown_name("sampler", value, ["heun"])  # type: ignore[arg-type]
    assert isinstance(error, InputError)
    assert "Known: heun" in str(error)
