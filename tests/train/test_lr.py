from __future__ import annotations

import math

import pytest

from scoreline.core.errors import InputError
from scoreline.train.lr import Constant, Cosine, InverseSqrt, Linear, Step


def test_warm_up_is_linear_and_then_over() -> None:
    for schedule in (Constant(2.0, warmup=4), Step(2.0, (99,), warmup=4), InverseSqrt(2.0, 99, warmup=4)):
        assert [schedule(n) for n in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_cosine_falls_from_lr_over_the_middle_to_the_floor() -> None:
    schedule = Cosine(1.0, steps=110, warmup=10, floor=0.2)
    assert schedule(9) == schedule(10) == 1.0
    assert schedule(60) == pytest.approx(0.6)
    assert schedule(35) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    assert schedule(110) == schedule(500) == pytest.approx(0.2)


def test_linear_is_a_straight_line_to_the_floor() -> None:
    schedule = Linear(1.0, steps=10, floor=0.5)
    assert [schedule(n) for n in (0, 5, 10, 11)] == pytest.approx([1.0, 0.75, 0.5, 0.5])


def test_inverse_sqrt_is_flat_and_then_falls() -> None:
    schedule = InverseSqrt(3.0, reference=100)
    assert schedule(100) == 3.0
    assert schedule(400) == pytest.approx(1.5)
    assert schedule(900) == pytest.approx(1.0)


def test_step_falls_at_each_milestone() -> None:
    schedule = Step(1.0, (3, 5), 0.1)
    assert [schedule(n) for n in (2, 3, 4, 5, 6)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_schedules_are_values() -> None:
    assert Cosine(1.0, 10) == Cosine(1.0, 10) != Cosine(1.0, 11)
    assert repr(Constant(0.1, warmup=3)) == "Constant(lr=0.1, warmup=3)"


@pytest.mark.parametrize(
    "make", [lambda: Constant(-1.0), lambda: Cosine(1.0, 5, warmup=5), lambda: InverseSqrt(1.0, 0)]
)
def test_impossible_schedules_are_refused(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
