"""Scores compare only with their own protocol."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from scoreline.core.errors import InputError
from scoreline.core.score import Interval, Protocol, Score

PROTOCOL = Protocol(
    metric="fid",
    features="inception-2015",
    tap="2048",
    weights="6726825d",
    resize="tf1",
    quantisation="uint8-round",
    reference="digits",
    reference_split="train",
    reference_count=1297,
    generated_count=10_000,
    method="symmetric",
    ddof=1,
    extra=(("b", 2), ("a", "x")),
)


def score(value: float, protocol: Protocol = PROTOCOL, **changes) -> Score:
    settings = {"name": "fid@digits", "higher_is_better": False} | changes
    return Score(value=value, protocol=protocol, **settings)


# a changed value for every field: a new field without one fails the test below
CHANGES = {
    "metric": "kid",
    "version": "2",
    "variant": "paper",
    "features": "pixels",
    "tap": "768",
    "weights": "abc",
    "resize": "clean",
    "quantisation": "none",
    "precision": "float16",
    "file_format": "jpeg-75",
    "preprocessing": "centre-crop-64",
    "image": "3x32x32",
    "conditions": "labels-uniform",
    "reference": "cifar10",
    "reference_split": "test",
    "reference_fingerprint": "f00",
    "reference_count": 500,
    "generated_count": 5000,
    "method": "sqrtm",
    "ddof": 0,
    "k": 3,
    "strict": False,
    "subsets": 10,
    "subset_size": 100,
    "estimator_seed": 1,
    "scale": 1000.0,
    "extra": (("a", "y"), ("b", 2)),
}


@pytest.mark.parametrize("name", [f.name for f in fields(Protocol)])
def test_every_field_stops_a_comparison(name: str) -> None:
    other = score(2.0, PROTOCOL.replace(**{name: CHANGES[name]}))
    for compared in (
        lambda: score(1.0) - other,
        lambda: score(1.0) < other,
        lambda: score(1.0).better_than(other),
        lambda: other > score(1.0),
    ):
        with pytest.raises(InputError, match=name):
            compared()
    assert PROTOCOL.fingerprint != other.protocol.fingerprint


def test_all_differences_are_listed_at_once() -> None:
    other = score(2.0, PROTOCOL.replace(resize="clean", generated_count=50))
    with pytest.raises(InputError, match="resize: 'tf1' against 'clean'; generated_count: 10000 against 50"):
        score(1.0).compare(other)


def test_like_scores_compare() -> None:
    worse, better = score(2.5, cost={"nfe": 10}), score(1.0)
    assert worse - better == 1.5
    assert better < worse
    assert worse > better
    assert better.better_than(worse)
    assert not worse.better_than(better)
    assert not better.better_than(better)
    high, low = score(2.5, higher_is_better=True), score(1.0, higher_is_better=True)
    assert high.better_than(low)
    assert not low.better_than(high)
    with pytest.raises(InputError, match="higher_is_better"):
        high.compare(worse)
    with pytest.raises(InputError, match="name"):
        score(1.0).compare(score(1.0, name="fid@cifar10"))


def test_the_order_of_extra_does_not_matter() -> None:
    assert PROTOCOL.replace(extra=(("a", "x"), ("b", 2))) == PROTOCOL
    assert PROTOCOL.extra == (("a", "x"), ("b", 2))


@pytest.mark.parametrize("value", [1.25, -0.001, float("inf"), float("-inf")])
def test_json_round_trip(value: float) -> None:
    first = score(value, interval=Interval(1.0, 1.5, 0.95, "jackknife"), cost={"nfe": 18, "seconds": 1.5})
    again = Score.from_json(first.to_json())
    assert again == first
    assert again.protocol.fingerprint == first.protocol.fingerprint
    assert json.loads(first.to_json())["protocol"]["extra"] == {"a": "x", "b": 2}
    assert Score.from_json(score(1.0).to_json()).interval is None


def test_text() -> None:
    assert str(score(1.23412, interval=Interval(1.2, 1.27, 0.95, "t"))) == "fid@digits 1.234 [1.2, 1.27]"
    assert str(score(1.23412)) == "fid@digits 1.234"
    assert "generated_count=10000" in str(PROTOCOL)
    assert "file_format=memory" in str(PROTOCOL)


def test_bad_records_are_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        score(float("nan"))
    with pytest.raises(InputError, match="lower one first"):
        Interval(2.0, 1.0, 0.95, "t")
    with pytest.raises(InputError, match="0 and 1"):
        Interval(1.0, 2.0, 95, "t")
    with pytest.raises(InputError, match="'resize'"):
        PROTOCOL.replace(resise="clean")
    with pytest.raises(InputError, match="released"):
        Protocol(metric="fid", variant="relesed")
    with pytest.raises(InputError, match="plain"):
        Protocol(metric="fid", extra=(("a", [1]),))
    with pytest.raises(InputError, match="once"):
        Protocol(metric="fid", extra=(("a", 1), ("a", 2)))
    with pytest.raises(InputError, match="at least 1"):
        Protocol(metric="fid", generated_count=0)
    good = score(1.0).to_dict()
    with pytest.raises(InputError, match="missing"):
        Score.from_dict({k: v for k, v in good.items() if k != "value"})
    with pytest.raises(InputError, match="'value'"):
        Score.from_dict(good | {"vlaue": 1})
    with pytest.raises(InputError, match="not JSON"):
        Score.from_json("{")
