"""Numbers as people read them."""

from __future__ import annotations

import pytest

from scoreline.report import human_bytes, human_count, human_number, human_seconds


@pytest.mark.parametrize("human", [human_number, human_count, human_bytes, human_seconds])
@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf"), True])
def test_what_is_no_number_is_a_dash(human, nothing):
    assert human(nothing) == "–"


@pytest.mark.parametrize(
    "value, text",
    [(9.996, "10.0"), (0.09996, "0.100"), (999.6, "1000"), (0.0, "0"), (-0.0512, "-0.0512"), (0.0001, "0.000100"),
     (0.00001, "1.00e-5"), (9_999_999.0, "1.00e7"), (123456.0, "123456")],
)  # fmt: skip
def test_three_digits(value, text):
    assert human_number(value) == text
    assert float(text) == pytest.approx(value, rel=6e-3)


def test_units_change_where_rounding_does():
    assert [human_count(n) for n in (9_999, 10_000, 999_499, 999_500, 5e13)] == [
        "9999",
        "10.0 k",
        "999 k",
        "1.00 M",
        "50.0 T",
    ]
    assert [human_bytes(n) for n in (999, 1000, 999_499_999, 999_500_001)] == ["999 B", "1.00 kB", "999 MB", "1.00 GB"]
    assert [human_seconds(s) for s in (0, 5e-8, 0.9996, 59.4, 59.6, 3599.6)] == [
        "0 s", "0.0500 µs", "1.00 s", "59.4 s", "1 min 0 s", "1 h 0 min"
    ]  # fmt: skip
