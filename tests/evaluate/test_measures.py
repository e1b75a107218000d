"""Intervals of all metrics against the spread over new draws, and protocols."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.moments import Moments
from scoreline.core.score import Protocol
from scoreline.evaluate.extraction import Taken, sampled_rows
from scoreline.evaluate.measures import Known, Scorer
from scoreline.metrics import inception_score

BASE = Protocol(metric="frechet-distance", features="unknown", reference="r", ddof=1, method="symmetric")


class Rows:
    """Kept rows, in memory."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def tensor(self) -> torch.Tensor:
        return self.x


def known(x: torch.Tensor, sample: int = 4096) -> Known:
    rows: Any = Rows(x)
    return Known(Taken(Moments.of(x), x[sampled_rows(len(x), sample)], rows), None, len(x))


def draws(seed: int, count: int, dim: int = 3, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (count, dim)))


def scores(metrics: list[str], seed: int, sample: int = 4096) -> dict[str, Any]:
    real, generated = known(draws(2 * seed, 100), sample), known(draws(2 * seed + 1, 140, shift=0.4), sample)
    scorer = Scorer({"features": real}, {"features": generated, "logits": generated}, BASE, taps={"logits": "l"})
    return {m.score.name: m.score for m in scorer.measure(metrics)}


METRICS = ["fd", "kid", "cmmd", "is"]


def test_intervals_are_as_wide_as_the_spread_over_new_draws() -> None:
    found = [scores(METRICS, seed) for seed in range(14)]
    for name in METRICS:
        spread = np.std([one[name].value for one in found], ddof=1)
        half = np.mean([(one[name].interval.high - one[name].interval.low) / 2 for one in found])
        assert half / 1.96 == pytest.approx(spread, rel=0.5), name
        # 95 % intervals hold the mean value in nearly all of them
        middle = np.mean([one[name].value for one in found])
        assert sum(middle in one[name].interval for one in found) >= 11, name


def test_a_sample_of_the_rows_gives_about_the_same_intervals() -> None:
    whole, part = scores(["fd", "kid", "prdc"], 0), scores(["fd", "kid", "prdc"], 0, sample=60)
    for name, score in whole.items():
        wide = score.interval.high - score.interval.low
        assert part[name].value == score.value
        assert 0.5 < (part[name].interval.high - part[name].interval.low) / wide < 2, name


def test_shares_stay_inside_0_and_1() -> None:
    same = known(draws(0, 60))
    scorer = Scorer({"features": same}, {"features": same}, BASE)
    found = {m.score.name: m.score for m in scorer.measure(["prdc", "precision-recall"])}
    for name in ("precision", "recall", "coverage", "precision-k3", "recall-k3"):
        assert 0 <= found[name].interval.low <= found[name].interval.high == 1
    assert (found["precision"].protocol.k, found["precision"].protocol.strict) == (5, True)
    assert (found["precision-k3"].protocol.k, found["precision-k3"].protocol.strict) == (3, False)


def test_the_inception_score_knows_no_reference() -> None:
    found = scores(["is"], 0)["is"]
    assert found.value == pytest.approx(inception_score(draws(1, 140, shift=0.4)).mean)
    assert (found.protocol.reference, found.protocol.reference_count, found.protocol.tap) == ("none", None, "l")


def test_too_few_rows_get_no_interval_and_a_note() -> None:
    scorer = Scorer({"features": known(draws(0, 19))}, {"features": known(draws(1, 19))}, BASE)
    found = scorer.measure(["fd", "kid"])
    assert [m.score.interval for m in found] == [None, None]
    assert len([n for n in scorer.notes if "no interval" in n]) == 2


def test_one_side_of_statistics_leaves_an_interval_for_the_other() -> None:
    real = Known(None, (torch.zeros(3).double(), torch.eye(3).double()), 1000)
    scorer = Scorer({"features": real}, {"features": known(draws(0, 200))}, BASE)
    (found,) = scorer.measure(["fd"])
    assert found.score.interval is not None
    assert any("the draw of the generated images alone" in n for n in scorer.notes)
    both = scores(["fd"], 0)["fd"].interval
    assert both.high - both.low > 0


def test_statistics_of_too_few_images_are_warned_of() -> None:
    real = Known(None, (torch.zeros(3).double(), torch.eye(3).double()), 3)
    scorer = Scorer({"features": real}, {"features": known(draws(0, 200))}, BASE)
    scorer.measure(["fd"])
    assert any("3 real images in 3 dimensions: rank deficient" in n for n in scorer.notes)


def test_the_counts_are_told_where_the_bias_is_not_measured() -> None:
    scorer = Scorer({"features": known(draws(0, 2000))}, {"features": known(draws(1, 300))}, BASE)
    scorer.measure(["fd"])
    assert any("N = 300 generated and 2000 real" in n for n in scorer.notes)


def test_the_bias_is_told_beside_the_distance() -> None:
    scorer = Scorer({"features": known(draws(0, 2000, 30))}, {"features": known(draws(1, 300, 30))}, BASE)
    fd, infinity = scorer.measure(["fd", "fd-infinity"])
    (note,) = [n for n in scorer.notes if "bias c/N" in n]
    share = float(note.split("about ")[1].split()[0])
    assert share == pytest.approx(fd.score.value - infinity.score.value, rel=0.3)
    assert "N = 300 generated" in note
    assert "2000 real" in note
