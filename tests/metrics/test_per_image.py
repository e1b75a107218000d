"""Boxplots tied to images, and paired tests against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.metrics.per_image import boxplot_statistics, compare_models

NAN = math.nan


def by_name(scores, **options):
    return {s.name: s for s in boxplot_statistics(scores, **options)}


def test_statistics_are_those_of_a_boxplot() -> None:
    from matplotlib.cbook import boxplot_stats

    draws = np.random.default_rng(0)
    for scores in (draws.normal(size=37), draws.exponential(size=24), np.array([0.0, 0, 0, 1, 9])):
        found, expected = by_name(scores, outliers=True), boxplot_stats(scores)[0]
        names = {"mean": "mean", "median": "med", "q1": "q1", "q3": "q3"}
        names |= {"whisker-low": "whislo", "whisker-high": "whishi"}
        for ours, theirs in names.items():
            assert found[ours].value == pytest.approx(expected[theirs], rel=1e-12)
        beyond = [s.value for s in boxplot_statistics(scores, outliers=True) if s.name == "outlier"]
        assert beyond == sorted(expected["fliers"])
        assert "outlier" not in by_name(scores)


def test_images_are_the_nearest_and_numbered_among_all() -> None:
    scores = torch.tensor([NAN, 0.9, NAN, 0.1, 0.52, 0.3, 0.7])
    found = by_name(scores)
    assert (found["whisker-low"].image, found["median"].image, found["whisker-high"].image) == (3, 4, 1)
    assert (found["q1"].image, found["q3"].image) == (5, 6)
    assert found["q1"].score == pytest.approx(0.3)
    # The mean, 0.504, is nearest to the median's image; no free one is within 0.01 of it, so that one stands for both.
    assert found["mean"].value == pytest.approx(0.504)
    assert found["mean"].image == 4
    values = [s.value for s in boxplot_statistics(scores)]
    assert values == sorted(values)


def test_a_taken_image_is_replaced_within_the_tolerance() -> None:
    scores = [0.0, 0.1, 0.25, 0.494, 0.5, 0.5085, 0.75, 0.9, 1.0]
    # mean 0.50028: image 4, the nearest, stands for the median; of 3 and 5, both within 0.01, 3 is nearer
    found = by_name(scores)
    assert (found["q1"].image, found["median"].image, found["mean"].image) == (2, 4, 3)
    scores = [0.0, 0.2, 0.3, 0.494, 0.5, 0.6, 0.7, 0.8, 1.05]
    found = by_name(scores)
    assert found["mean"].value == pytest.approx(0.516)
    assert (found["median"].image, found["mean"].image) == (4, 4)  # 0.494 is 0.022 away
    assert by_name(scores, tolerance=0.025)["mean"].image == 3


def test_equal_scores_stand_for_several_statistics_with_images_of_their_own() -> None:
    found = boxplot_statistics([1.0] * 6)
    assert sorted(s.image for s in found) == [0, 1, 2, 3, 4, 5]
    assert [s.image for s in boxplot_statistics([0.25])] == [0] * 6


@pytest.mark.parametrize("scores", [[], [NAN, NAN], [0.1, math.inf], [[0.1, 0.2]]])
def test_scores_without_statistics_are_refused(scores) -> None:
    with pytest.raises(InputError, match="scores"):
        boxplot_statistics(scores)


# models


def three(n: int = 25) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(n, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(3, n, generator=generator, dtype=torch.float64)
    scores = {"worst": base + noise[0], "best": base + 0.2 + noise[1], "middle": base + 0.03 + noise[2]}
    for values in scores.values():
        values[[2, 7]] = NAN
    return scores


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_pairwise_tests_are_scipys(alternative) -> None:
    from scipy.stats import ttest_rel, wilcoxon

    scores = three()
    for test in ("wilcoxon", "t"):
        found = compare_models(scores, test=test, alternative=alternative)
        assert found.models == ("best", "middle", "worst")
        assert found.images == 23
        for i, a in enumerate(found.models):
            assert found.confidence[i, i].isnan()
            for j, b in enumerate(found.models):
                if i != j:
                    x, y = (scores[name][~scores[name].isnan()].numpy() for name in (a, b))
                    d = np.where(np.abs(x - y) <= 1e-3, 0.0, x - y)
                    p = wilcoxon(d, alternative=alternative).pvalue if test == "wilcoxon" else None
                    p = ttest_rel(x, y, alternative=alternative).pvalue if p is None else p
                    assert found.confidence[i, j].item() == pytest.approx(1 - p, rel=1e-9)
    if alternative == "greater":
        assert found.confidence[0, 2] > 0.99
        assert found.confidence[2, 0] < 0.01


def test_small_differences_are_none() -> None:
    a = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64)
    found = compare_models({"a": a, "b": a + 0.9e-3})
    assert found.confidence[1, 0] == found.confidence[0, 1] == 0  # p = 1
    assert found.models == ("b", "a")  # the order knows no tolerance
    found = compare_models({"a": a, "b": a + 1.1e-3})
    assert found.confidence[0, 1] == pytest.approx(1 - 1 / 64)  # six signs alike
    assert compare_models({"a": a, "b": a + 0.9e-3}, tolerance=0.0).confidence[0, 1] == pytest.approx(1 - 1 / 64)


def test_order_by_mean_rank_and_by_mean_score() -> None:
    # a wins two images of three by little, and loses one by much.
    scores = {"a": [0.51, 0.51, 0.0], "b": [0.5, 0.5, 1.0]}
    ranked, averaged = compare_models(scores), compare_models(scores, test="t")
    assert (ranked.models, averaged.models) == (("a", "b"), ("b", "a"))
    assert ranked.merit == pytest.approx((4 / 3, 5 / 3))
    assert averaged.merit == pytest.approx((2 / 3, 1.02 / 3))
    tied = compare_models({"a": [0.5, 0.2, 0.1], "b": [0.5, 0.3, 0.0]})
    assert tied.merit == pytest.approx((1.5, 1.5))
    fixed = compare_models(scores, order=["b", "a"])
    assert fixed.models == ("b", "a")
    assert torch.equal(fixed.confidence[0, 1], ranked.confidence[1, 0])


def test_a_difference_that_is_always_the_same() -> None:
    a = torch.tensor([0.25, 0.5, 0.75])
    found = compare_models({"a": a, "b": a + 0.5}, test="t")
    assert (found.confidence[0, 1], found.confidence[1, 0]) == (1, 0)
    assert compare_models({"a": a, "b": a}, test="t", alternative="two-sided").confidence[0, 1] == 0


@pytest.mark.parametrize(
    "scores, options, words",
    [
        ({"a": [0.1, 0.2]}, {}, "at least two"),
        ({"a": [0.1, 0.2], "b": [0.1, 0.2, 0.3]}, {}, "'b'.*shape"),
        ({"a": [0.1, NAN, 0.3], "b": [NAN, 0.2, 0.3]}, {}, "'b': are NaN at other images than those of a"),
        ({"a": [0.1, NAN], "b": [0.1, NAN]}, {}, "at least two images"),
        ({"a": [0.1, 0.2], "b": [0.1, math.inf]}, {}, "infinite"),
        ({"a": [0.1, 0.2], "b": [0.1, 0.3]}, {"order": ["a"]}, "name every model once"),
        ({"a": [0.1, 0.2], "b": [0.1, 0.3]}, {"test": "wilcoxen"}, "did you mean 'wilcoxon'"),
        ({"a": [0.1, 0.2], "b": [0.1, 0.3]}, {"alternative": "larger"}, "alternative 'larger'"),
    ],
)
def test_comparisons_that_are_refused(scores, options, words) -> None:
    with pytest.raises(InputError, match=words):
        compare_models(scores, **options)


def test_between_two_images_the_lower_one_stands_for_the_median() -> None:
    draws = np.random.default_rng(0)
    for _ in range(20):
        scores = draws.random(8)
        median = by_name(scores)["median"]
        assert median.image == np.argsort(scores)[3]
