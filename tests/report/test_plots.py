"""Curves: labelled axes, the points that were given, and SVG that a page may hold."""

from __future__ import annotations

import math
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from scoreline.report import Level, Panel, Series, curve_figure, themed_svg
from scoreline.report.plots import COLOURS, MARKERS, swatch_svg


def panel(**changes):
    a = Series("a $b$ <c>", [5, 9, 20], [0.3, 0.1, 0.02], [0.2, 0.09, 0.01], [0.4, 0.12, 0.03], 0)
    b = Series("b", [5, 10, 20], [0.5, math.nan, 0.2], style=9)
    values = {"title": "Score", "x_label": "NFE", "y_label": "RMSE", "series": [a, b], "log_y": True, **changes}
    return Panel(**values)


def test_axes_are_labelled_and_points_are_where_they_were_measured():
    figure = curve_figure([panel(levels=[Level("floor", 0.005), Level("zero", 0.0)])])
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(loc="left")) == ("NFE", "RMSE", "Score")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[5, 0.3], [9, 0.1], [20, 0.02]])
    assert set(ax.get_xticks()) <= {5, 9, 10, 20}
    assert {5, 20} <= set(ax.get_xticks())
    stems = next(c for c in ax.collections if hasattr(c, "get_segments"))
    np.testing.assert_allclose([s[:, 1] for s in stems.get_segments()], [[0.2, 0.4], [0.09, 0.12], [0.01, 0.03]])
    shown = [text.get_text() for text in ax.texts]
    assert shown == ["floor\n0.00500"]  # a level at 0 has no place on a logarithmic axis
    low, high = ax.get_ylim()
    assert low < 0.005 < 0.5 < high
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a $b$ <c>", "b"]


def test_values_at_or_below_zero_make_the_axis_linear():
    (ax,) = curve_figure([panel(series=[Series("a", [1, 2], [0.0, 0.1])])]).axes
    assert ax.get_yscale() == "linear"


def test_an_interval_that_reaches_zero_ends_at_the_axis():
    (ax,) = curve_figure([panel(series=[Series("a", [4, 8], [0.1, 0.2], [-0.1, 0.1], [0.3, 0.3])])]).axes
    stems = next(c for c in ax.collections if hasattr(c, "get_segments"))
    assert stems.get_segments()[0][0, 1] == ax.get_ylim()[0] > 0


@pytest.mark.parametrize("y", [[math.nan], [0.5], []])
def test_no_value_or_one_value_still_draws(y, tmp_path):
    figure = curve_figure([panel(series=[Series("a", [5] * len(y), y)])] * 2)
    figure.savefig(tmp_path / "x.png")
    assert ("no finite values" in [t.get_text() for t in figure.axes[0].texts]) == (y != [0.5])


def test_twelve_curves_look_different():
    looks = {(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i in range(12)}
    assert len(looks) == len(set(MARKERS)) == 12
    for colour in COLOURS:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 3, colour  # WCAG contrast of graphics on white


def test_svg_follows_the_theme_of_its_page():
    text = themed_svg(curve_figure([panel()], legend=False))
    ElementTree.fromstring(text)
    assert "http" not in text
    assert "font-family" not in text
    assert "var(--s0)" in text
    assert "var(--s1)" in text
    assert not any(colour in text for colour in COLOURS)
    assert 'data-series="0"' in text
    assert 'data-series="9"' in text
    assert themed_svg(curve_figure([panel()], legend=False)) == text
    ElementTree.fromstring(swatch_svg(3))


def test_settings_of_the_caller_stay_as_they_were():
    import matplotlib

    before = dict(matplotlib.rcParams)
    themed_svg(curve_figure([panel()]))
    assert dict(matplotlib.rcParams) == before
    source = sys.modules[curve_figure.__module__].__dict__
    assert "plt" not in source
