"""Plans as values: normal form, JSON, refusals, and the linear factors of Skip-Tuning."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoreline.core.errors import InputError
from scoreline.nn.plan import Plan, Tracer, check_plan, linear

factor = st.floats(-4, 4)


@given(
    st.frozensets(st.integers(0, 60)),
    st.none() | st.lists(factor, max_size=5),
    st.none() | st.lists(factor, max_size=5),
    st.lists(st.sampled_from(["bottleneck", "layer.3"]), unique=True),
    st.booleans(),
)
def test_json_round_trip(drop, skip_scale, hidden_scale, taps, stop):
    plan = Plan(drop, skip_scale, hidden_scale, taps, stop and bool(taps))
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert hash(again) == hash(plan)


def test_empty_plan_is_empty_json():
    assert Plan().to_dict() == {}


@pytest.mark.parametrize(
    "values, thing",
    [
        ({"skip": [1]}, "plan entry"),
        ({"stop": True}, "stop"),
        ({"taps": "bottleneck"}, "taps"),
        ({"skip_scale": [float("nan")]}, "skip_scale"),
    ],
)
def test_impossible_plans_are_refused(values, thing):
    with pytest.raises(InputError) as error:
        Plan.from_dict(values)
    assert error.value.thing == thing


def test_check_names_the_valid_range():
    taps = ("bottleneck", "layer.0")
    check_plan(Plan(drop={1}, skip_scale=(1, 1, 1), taps=taps), layers=2, joints=3, taps=taps)
    for plan, message in [
        (Plan(drop={2}), "0 to 1"),
        (Plan(drop={-1}), "0 to 1"),
        (Plan(skip_scale=(1, 1)), "3 factors"),
        (Plan(hidden_scale=(1,) * 4), "3 factors"),
        (Plan(taps=("botleneck",)), "did you mean 'bottleneck'"),
    ]:
        with pytest.raises(InputError, match=message):
            check_plan(plan, layers=2, joints=3, taps=taps)
    with pytest.raises(InputError, match="no layers"):
        check_plan(Plan(drop={0}), layers=0, joints=0, taps=())
    with pytest.raises(InputError, match="no skip joints"):
        check_plan(Plan(skip_scale=(1.0,)), layers=2, joints=0, taps=())


def test_tracer_stops_only_after_the_last_tap():
    tracer, x = Tracer(Plan(taps=("a", "b"), stop=True)), torch.zeros(1)
    assert [tracer.keep(name, x) for name in ("c", "b", "c", "a")] == [False, False, False, True]
    assert list(tracer.taps) == ["b", "a"]
    assert not Tracer(Plan(taps=("a",))).keep("a", x)


@pytest.mark.check(system=22, number=4)
def test_linear_ends_and_constant():
    for k in (2, 3, 15, 16, 20):
        factors = linear(0.61, 1.07, k)
        assert len(factors) == k
        assert factors[0] == 0.61
        assert factors[-1] == 1.07
        assert all(abs((b - a) - 0.46 / (k - 1)) < 1e-12 for a, b in itertools.pairwise(factors))
        assert linear(0.7, 0.7, k) == (0.7,) * k


def test_linear_other_end_points():
    assert linear(0.5, 1.0, 4, index="from-zero") == (0.5, 0.625, 0.75, 0.875)
    assert linear(0.5, 1.0, 4, index="from-one") == (0.625, 0.75, 0.875, 1.0)
    with pytest.raises(InputError):
        linear(0.5, 1.0, 0)
    with pytest.raises(InputError, match="from-zero"):
        linear(0.5, 1.0, 4, index="from-zer")
