"""What is said about labels and scores: values against their functions, corrections against the truth, warnings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.evaluate.imbalance import CHOSEN_BY, examine, example, study
from scoreline.metrics.binary_curves import auroc, average_precision, confusion, log_loss
from scoreline.metrics.binormal import Binormal
from scoreline.metrics.cell_intervals import cell_intervals
from scoreline.metrics.imbalance import METRICS, cell_metrics
from scoreline.metrics.label_noise import annotate, corrected_cells
from scoreline.metrics.threshold_choice import best_threshold

SCORES, TRUTH = Binormal().sample(400, 39_600, seed=0)


def by_name(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {m["name"]: m for m in result["metrics"]}


@pytest.fixture(scope="module")
def clean() -> dict[str, Any]:
    return examine(SCORES, TRUTH, resamples=300)


def test_values_are_those_of_the_functions(clean: dict[str, Any]) -> None:
    best = best_threshold(SCORES, TRUTH)
    cells = confusion(SCORES, TRUTH, best.threshold)
    assert clean["threshold"] == best.threshold
    assert clean["cells"] == {name: int(count) for name, count in cells._asdict().items()}
    found = by_name(clean)
    for name, value in cell_metrics(cells).items():
        assert found[name]["value"] == float(value)
    assert found["auroc"]["value"] == auroc(SCORES, TRUTH)
    assert found["average-precision"]["value"] == average_precision(SCORES, TRUTH)
    assert "log-loss" not in found
    assert (clean["positives"], clean["rows"], clean["prevalence"]) == (400, 40_000, 0.01)
    for m in clean["metrics"]:
        low, high = m["interval"]
        assert low <= m["value"] <= high, m["name"]
        assert m["corrected"] is m["at_prevalence"] is None


def test_a_given_threshold_is_used_as_it_is() -> None:
    result = examine(SCORES, TRUTH, threshold=2.5, resamples=50)
    assert (result["threshold"], result["threshold_by"]) == (2.5, "given")
    assert result["cells"]["tp"] == int(((SCORES >= 2.5) & TRUTH).sum())
    assert not any("optimistic" in warning for warning in result["warnings"])


def test_thresholds_of_all_criteria(clean: dict[str, Any]) -> None:
    assert [c["criterion"] for c in clean["choices"]] == list(CHOSEN_BY)
    for c in clean["choices"]:
        low, high = c["threshold_interval"]
        assert low <= c["threshold"] <= high
        at = int((c["threshold"] <= SCORES).sum())
        assert c["predicted_positive"] == at
    by = {c["criterion"]: c for c in clean["choices"]}
    assert by["g-mean"]["threshold"] < by["f1"]["threshold"] - 1
    assert by["f1"]["f1"] == max(c["f1"] for c in clean["choices"])


def test_known_errors_are_taken_out() -> None:
    e1, e0 = 0.1, 0.004
    labels = annotate(TRUTH, e1, e0, seed=3)
    tau = 3.0
    truth = cell_metrics(confusion(SCORES, TRUTH, tau))
    result = examine(SCORES, labels, threshold=tau, e1=e1, e0=e0, resamples=400)
    found = by_name(result)
    for name in METRICS:
        low, high = found[name]["corrected_interval"]
        assert low <= found[name]["corrected"] <= high
    for name in ("recall", "f1", "g-mean", "mcc"):
        assert (
            abs(found[name]["corrected"] - float(truth[name])) < 0.05 < abs(found[name]["value"] - float(truth[name]))
        )
    assert found["auroc"]["corrected"] == pytest.approx(auroc(SCORES, TRUTH), abs=0.04)
    assert found["average-precision"]["corrected"] is None
    assert result["noise"]["true_prevalence"] == pytest.approx(0.01, abs=0.001)
    assert result["noise"]["alpha"] == pytest.approx(0.69, abs=0.03)
    assert all(c["threshold_interval"] is None for c in result["choices"])


def test_corrected_losses_come_near_those_of_the_truth() -> None:
    p = torch.sigmoid(2.5 * (SCORES - 3.0))
    labels = annotate(TRUTH, 0.2, 0.02, seed=5)
    found = by_name(examine(p, labels, e1=0.2, e0=0.02, resamples=50))
    for name in ("log-loss", "brier"):
        assert found[name]["higher_is_better"] is False
    assert found["log-loss"]["corrected"] == pytest.approx(float(log_loss(p, TRUTH).mean()), abs=0.02)
    assert found["log-loss"]["value"] > 2 * found["log-loss"]["corrected"]
    low, high = found["brier"]["corrected_interval"]
    truth, half = float((p - TRUTH.double()).square().mean()), (high - low) / 2
    assert abs(found["brier"]["corrected"] - truth) < 1.5 * half  # three standard errors
    assert found["brier"]["value"] - truth > 10 * half
    # Annotated noise, seen alone, is 0.02 a row: its standard error over 40,000 rows is known.
    assert half == pytest.approx(1.96 * math.sqrt(0.02 * 0.98 / 40_000) / 0.78, rel=0.25)


def test_the_spread_of_the_correction_includes_how_many_were_annotated() -> None:
    labels = annotate(TRUTH, 0.1, 0.004, seed=3)
    result = examine(SCORES, labels, threshold=3.0, e1=0.1, e0=0.004, resamples=400, seed=7)
    cells = confusion(SCORES, labels, 3.0)
    widths = []
    for stratified in (False, True):
        interval = cell_intervals(
            cells, ["recall"], resamples=400, stratified=stratified, seed=7,
            correct=lambda drawn: corrected_cells(drawn, 0.1, 0.004),
        )["recall"]  # fmt: skip
        widths.append([interval.low, interval.high])
    assert by_name(result)["recall"]["corrected_interval"] == widths[0] != widths[1]


def test_values_at_another_prevalence() -> None:
    half = torch.cat([torch.arange(400), 400 + torch.arange(400)])  # rebalanced rows
    result = examine(SCORES[half], TRUTH[half], threshold=2.0, at_prevalence=0.01, resamples=50)
    found, expected = by_name(result), cell_metrics(Binormal().cells(2.0, 0.01))
    assert found["precision"]["value"] > 0.9
    assert found["precision"]["at_prevalence"] == pytest.approx(float(expected["precision"]), abs=0.1)
    assert found["recall"]["at_prevalence"] == pytest.approx(found["recall"]["value"])
    assert any("rebalanced" in warning for warning in result["warnings"])


def test_who_is_trusted_depends_on_the_prevalence(clean: dict[str, Any]) -> None:
    assert clean["trusted"] == ["mcc"]
    found = by_name(clean)
    assert found["precision"]["sees_false_alarms"] is True
    assert found["precision"]["sees_misses"] is False  # half as many flagged, as precise as before
    assert found["auroc"]["sees_false_alarms"] is False
    half = torch.arange(800)
    even = examine(SCORES[half], TRUTH[half], resamples=50)
    assert {"mcc", "balanced-accuracy", "auroc"} <= set(even["trusted"])


def test_fewer_flagged_rows_of_the_same_quality_are_what_misses_mean() -> None:
    # An answer that ignores the truth: halved, it keeps precision and NPV, and loses recall.
    labels = torch.tensor([1, 0] * 100)
    scores = torch.tensor([1.0, 1.0, 0.0, 0.0] * 50)
    found = by_name(examine(scores, labels, threshold=0.5, resamples=20))
    assert [found[name]["sees_misses"] for name in ("precision", "npv", "accuracy", "recall")] == [False] * 3 + [True]


def test_the_curve_is_short_and_true(clean: dict[str, Any]) -> None:
    curve = clean["curve"]
    assert len(curve["threshold"]) <= 200
    assert curve["recall"][-1] == 1.0
    for i in (0, 50, -1):
        cells = confusion(SCORES, TRUTH, curve["threshold"][i])
        assert curve["predicted_positive"][i] == int(cells.tp + cells.fp)
        assert curve["mcc"][i] == pytest.approx(float(cell_metrics(cells, ["mcc"])["mcc"]))


def warned(scores: list[float] | torch.Tensor, labels: list[int] | torch.Tensor, **more: Any) -> str:
    return "\n".join(examine(torch.as_tensor(scores), torch.as_tensor(labels), resamples=40, **more)["warnings"])


def test_warnings_name_what_makes_numbers_meaningless(clean: dict[str, Any]) -> None:
    said = "\n".join(clean["warnings"])
    recall = by_name(clean)["recall"]["value"]
    assert f"standard error of {math.sqrt(recall * (1 - recall) / 400):.2g}" in said
    assert "optimistic" in said
    assert '"always negative" has 0.99' in said
    assert "no probabilities" in said
    perfect = [0.1] * 30 + [0.9] * 10
    assert "no error among 10" in warned(perfect, [0] * 30 + [1] * 10)
    assert "as low as 0.7" in warned(perfect, [0] * 30 + [1] * 10)
    assert "below one half" in warned(perfect, [1] * 30 + [0] * 10)
    assert "log loss is infinite" in warned([0.0, 1.0, 0.5], [1, 1, 0])
    assert "predicts no positive at all" in warned([0.9, 0.8, 0.1], [0, 0, 1], criterion="accuracy")
    s, y = Binormal(2.5, 1.5).sample(200, 100_000, seed=0)
    assert "no evidence of use" in warned(s, y)
    assert "single class" in warned([0.3, 0.2, 0.1, 0.4], [1, 0, 0, 0], stratified=False)
    assert "different scores" in warned([0.0, 1.0] * 100, [0, 1] * 100)


def test_error_rates_larger_than_the_labels_show_are_noticed() -> None:
    said = warned(SCORES, TRUTH, e0=0.009)
    assert "clipped" in said
    assert "rest on little" in said
    assert "clipped" not in warned(SCORES, annotate(TRUTH, 0.0, 0.009, seed=0), e0=0.009, threshold=2.0)


def test_the_example_and_the_study() -> None:
    s, y = example(e0=0.001, seed=2)
    assert len(y) == 284_807
    assert 680 < int(y.sum()) < 870  # 492 true ones and about 284 false alarms
    assert torch.equal(s, example(seed=2)[0])
    rows = study()
    assert rows[0]["criterion"] == "mcc"
    assert {row["criterion"] for row in rows} == set(CHOSEN_BY)


@pytest.mark.parametrize(
    "more, words",
    [
        ({"e0": 0.02}, "must be below the share of positives"),
        ({"e1": 1.0}, "miss rate"),
        ({"e1": 0.6, "e0": 0.5}, "sum to less than 1"),
        ({"e0": -0.1}, "false rate"),
        ({"at_prevalence": 1.5}, "at prevalence"),
        ({"criterion": "f11"}, "did you mean 'f1'"),
        ({"level": 95.0}, "level"),
        ({"threshold": math.nan}, "threshold"),
    ],
)
def test_refusals(more: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        examine(SCORES, TRUTH, resamples=20, **more)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(InputError, match="both classes"):
        examine(torch.rand(5), torch.zeros(5))


def test_corrected_intervals_cover_the_truth() -> None:
    # The number of annotated positives is part of the chance: a stratified bootstrap would miss most of the spread.
    model, e1, e0, tau = Binormal(), 0.1, 0.01, 2.0
    expected = {name: float(value) for name, value in cell_metrics(model.cells(tau, 0.02)).items()}
    hits = dict.fromkeys(("recall", "f1", "mcc", "auroc"), 0)
    for i in range(20):
        s, y = model.sample(160, 7840, seed=i)
        result = examine(s, annotate(y, e1, e0, seed=i), threshold=tau, e1=e1, e0=e0, resamples=100, seed=i)
        for name in hits:
            low, high = by_name(result)[name]["corrected_interval"]
            hits[name] += low <= expected.get(name, model.auroc) <= high
    assert min(hits.values()) >= 16, hits
