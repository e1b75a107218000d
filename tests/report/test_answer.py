"""The sentences say what the numbers say."""

from __future__ import annotations

import pytest

from scoreline.report import answer, series_names, verdicts
from scoreline.report.answer import blur_warning, marks


def results_of(values: dict[tuple[str, int], tuple[float, ...]], *, score="ode-rmse", converged=0.0, higher=False):
    """Results with one score; values: (sampler, budget) -> value a seed; the interval is their range."""
    arms = []
    for (sampler, budget), seeds in values.items():
        measured = {"values": list(seeds), "mean": sum(seeds) / len(seeds), "low": min(seeds), "high": max(seeds)}
        arms.append({"sampler": sampler, "budget": budget, "nfe": budget, "scores": {score: measured}})
    about = {
        "title": "Distance" if score == "ode-rmse" else "FID@digits",
        "higher_is_better": higher,
        "converged": converged,
    }
    seeds = list(range(len(next(iter(values.values())))))
    return {"arms": arms, "scores": {score: about}, "seeds": seeds, "model": {"shape": [1, 8, 8]}}


def said(results):
    return answer(results, series_names(results["arms"]))


def test_best_of_each_budget_is_named():
    results = results_of({("a", 5): (1, 2), ("b", 5): (3, 4), ("a", 10): (0.9, 1), ("b", 10): (0.1, 0.2)})
    assert said(results)[0] == (
        "With at most 5 network evaluations per image, a comes closest to the converged ODE; with 10, b does."
    )


def test_one_winner_is_said_once():
    results = results_of({("a", 5): (1, 2), ("b", 5): (3, 4), ("a", 10): (0.1, 0.2), ("b", 10): (0.3, 0.4)})
    assert said(results) == [
        "At every budget (5 and 10 network evaluations per image), a comes closest to the converged ODE."
    ]


def test_direction_follows_the_score():
    values = {("a", 5): (1.0, 2.0), ("b", 5): (3.0, 4.0)}
    assert verdicts(results_of(values), "ode-rmse")[0].best == 0
    assert verdicts(results_of(values, higher=True), "ode-rmse")[0].best == 1


@pytest.mark.parametrize("low, tied", [(2.0, (1,)), (2.01, ())])
def test_intervals_that_touch_overlap(low, tied):
    results = results_of({("a", 5): (1.0, 2.0), ("b", 5): (low, 4.0)})
    assert verdicts(results, "ode-rmse")[0].tied == tied
    assert ("its interval overlaps with that of b" in said(results)[0]) == bool(tied)


def test_ties_that_change_name_their_budget():
    results = results_of({("a", 5): (1, 2), ("b", 5): (1.5, 4), ("a", 10): (0.1, 0.2), ("b", 10): (0.3, 0.4)})
    assert said(results)[0].endswith("(its interval overlaps at 5 with that of b).")


def test_many_ties_are_counted():
    results = results_of({(name, 5): (1.0 + i / 10, 2.0) for i, name in enumerate("abcde")})
    assert "(its interval overlaps with those of 4 others)" in said(results)[0]


def test_a_single_seed_has_no_interval_and_says_so():
    results = results_of({("a", 5): (1.0,), ("b", 5): (1.0001,)})
    assert verdicts(results, "ode-rmse")[0].tied == ()
    assert said(results)[-1].startswith("Only one seed")


def test_a_failed_arm_never_wins_and_is_named():
    results = results_of({("a", 5): (1.0, 2.0), ("b", 5): (3.0, 4.0)})
    for value in (float("nan"), None):
        results["arms"][0]["scores"]["ode-rmse"]["mean"] = value
        assert verdicts(results, "ode-rmse")[0].best == 1
        assert said(results)[-1] == "No finite distance came from a with 5."
    results["arms"][1]["scores"] = {}
    assert said(results)[0] == "No sampler reached a finite value of distance."


@pytest.mark.parametrize("value, near", [(1.0, True), (1.09, True), (1.11, False), (0.91, True), (0.89, False)])
def test_near_the_converged_score_means_within_ten_percent_on_both_sides(value, near):
    results = results_of({("a", 5): (2.0, 2.0), ("a", 10): (value, value)}, score="fid@digits", converged=1.0)
    sentence = said(results)[-1]
    assert ("is the cheapest within 10% of the converged ODE's 1.00" in sentence) == near
    assert ("no sampler comes within 10%" in sentence) != near
    assert "a with 10 evaluations" in sentence


def test_the_cheapest_is_the_fewest_evaluations_not_the_best_score():
    values = {("a", 5): (1.08, 1.08), ("b", 10): (1.0, 1.0), ("c", 5): (0.97, 0.97), ("d", 3): (3.0, 3.0)}
    sentence = said(results_of(values, score="fid@digits", converged=1.0))[-1]
    assert sentence.startswith("By FID@digits, c with 5 evaluations")
    assert "and a at the same cost too" in sentence


def test_an_interval_beyond_the_band_is_said():
    wide = said(results_of({("a", 5): (0.8, 1.2)}, score="fid@digits", converged=1.0))[-1]
    assert wide.endswith("the interval of a reaches beyond that band.")
    assert "beyond" not in said(results_of({("a", 5): (0.95, 1.05)}, score="fid@digits", converged=1.0))[-1]


def test_one_sampler_is_not_called_best():
    results = results_of({("a", 5): (1.0, 2.0), ("a", 10): (0.1, 0.3)})
    assert said(results)[0] == (
        "a was measured alone: distance goes from 1.50, 1.00 to 2.00 over seeds with 5 network evaluations per image "
        "to 0.200, 0.100 to 0.300 over seeds with 10."
    )


def test_blur_is_warned_of_where_both_were_measured(made_up):
    results = made_up()
    assert "at 8×8 pixels Fréchet distances reward blur" in blur_warning(results)
    results["model"]["shape"] = [3, 64, 64]
    assert "8×8" not in blur_warning(results)
    assert blur_warning(results_of({("a", 5): (1.0, 2.0)})) is None


def test_marks_need_a_rival():
    rivals = results_of({("a", 5): (1.0, 2.0), ("b", 5): (1.5, 4.0), ("a", 10): (0.1, 0.2)})
    assert marks(rivals) == {("ode-rmse", 0): "best", ("ode-rmse", 1): "tied"}


def test_samplers_that_draw_noise_have_no_distance_to_the_ode():
    results = results_of({("a", 5): (1, 2), ("b", 5): (3, 4), ("c", 5): (5, 6), ("c", 10): (5, 6)})
    for arm in results["arms"][2:]:
        arm["scores"]["ode-rmse"] = {"values": [], "mean": None, "low": None, "high": None}
    assert said(results)[-1] == "c draws noise and has no such distance: the Fréchet distances judge alone."
    results["arms"][1]["scores"]["ode-rmse"] = {"values": [None], "mean": None, "low": None, "high": None}
    assert said(results)[-1] == "No finite distance came from b with 5."
