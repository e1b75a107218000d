"""Claim 27: the rule on made-up numbers, the candidates, and what regret means."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims import imbalanced_metrics as claim
from scoreline.claims.engine import BUDGET, measure
from scoreline.claims.imbalanced_metrics import ARMS, CLAIM, Candidates, digits_pool, regrets
from scoreline.data import from_arrays
from scoreline.metrics.binary_curves import confusion

SEEDS = 20
EVEN = [0.01 * (-1) ** i for i in range(SEEDS)]


def made_up(**changes: Any) -> dict[str, dict[str, list[float]]]:
    """Numbers with which the claim holds; changes by arm (blanks as _), one value or one a seed for both utilities."""
    numbers = {
        arm: {name: [0.5 + e for e in EVEN] for name in (*claim.UTILITIES, "regret_f1_e0_zero", "predicted_positive")}
        for arm in ARMS
    }
    for arm, values in {claim.PAIR: 0.4, **{k.replace("_", " "): v for k, v in changes.items()}}.items():
        for utility in claim.UTILITIES:
            given = values.get(utility) if isinstance(values, dict) else values
            if given is not None:
                numbers[arm][utility] = given if isinstance(given, list) else [given] * SEEDS
    return numbers


def judged(**changes: Any) -> tuple[str, list[bool | None]]:
    verdict, parts = CLAIM.verdict(made_up(**changes))
    return verdict, [part.holds for part in parts]


def test_it_holds_where_the_pair_is_lowest_in_both() -> None:
    assert judged() == ("holds", [True, True, True])


def test_a_tie_with_f1_alone_is_no_defeat() -> None:
    assert judged(F1=0.4) == ("holds", [True, True, True])


@pytest.mark.parametrize(
    "changes, verdict, parts",
    [
        # One single metric lower beyond two standard errors in one utility is enough.
        ({"MCC": {"regret_f1": 0.39}}, "refuted", [False, True, False]),
        ({"accuracy": {"regret_cost": 0.39}}, "refuted", [True, False, False]),
        # AP then F1 is no single metric: it can take the lowest place, but not refute.
        ({"AP_then_F1": {"regret_f1": 0.3}}, "in part", [False, True, True]),
        ({"AP_then_F1": 0.3}, "not seen", [False, False, True]),
        # A standard error is 0.01/sqrt(19) = 0.0023: lower by 1.5 of them, and by 2.2.
        ({"MCC": {"regret_f1": [0.3965 + e for e in EVEN]}}, "in part", [False, True, True]),
        ({"MCC": {"regret_f1": [0.395 + e for e in EVEN]}}, "refuted", [False, True, False]),
    ],
)
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**changes) == (verdict, parts)


def test_standard_errors_are_of_paired_differences() -> None:
    # Seeds move both by far more than they move the difference.
    wave = [0.4 + 0.3 * (-1) ** i for i in range(SEEDS)]
    numbers = made_up(MCC=[w - 0.001 for w in wave])
    numbers[claim.PAIR] = {**numbers[claim.PAIR], **dict.fromkeys(claim.UTILITIES, wave)}
    assert CLAIM.verdict(numbers)[0] == "refuted"


def test_the_arms_are_those_of_the_plan() -> None:
    assert set(ARMS) == {
        "accuracy", "F1", "g-mean", "balanced accuracy", "MCC", "kappa", "AP then F1", "F1 then g-mean",
    }  # fmt: skip
    assert len(CLAIM.seeds) == 20
    assert (len(claim.MISS_RATES), len(claim.FALSE_RATES)) == (3, 4)


def test_the_pool_has_two_percent_of_eights_and_seeds_differ() -> None:
    x, y = digits_pool(0)
    assert x.shape == (1656, 64)
    assert int(y.sum()) == 33
    assert float(x.min()) == 0.0
    assert float(x.max()) == 1.0
    assert not torch.equal(digits_pool(1)[0], x)


def toy(scores: list[float], labels: list[int]) -> Candidates:
    s, y = torch.tensor([scores], dtype=torch.float64), torch.tensor(labels) == 1
    at = s.sort(dim=1, descending=True).values
    return Candidates(y, s, at, ("toy",), 0)


def test_cells_are_those_of_the_counting() -> None:
    found = toy([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 0])
    counted = confusion(found.scores[0], found.labels, found.thresholds[0])
    for a, b in zip(found.cells(found.labels), counted):
        assert a[0].tolist() == b.tolist()


def test_regret_is_zero_where_noise_cannot_mislead_and_known_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "MISS_RATES", (0.0,))
    monkeypatch.setattr(claim, "FALSE_RATES", (0.0,))
    # Positives at places 1 and 4 of 10: F1 is 2/3 for the first row alone, and 2/3 for four; the first of equals.
    found = toy([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], [1, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    by = regrets(found, 0, draws=3)
    assert by["F1"]["regret_f1"] == 0.0
    assert by["F1"]["predicted_positive"] == 1
    # cost per 1000 rows: first row alone 100 FN = 100 * 1000 / 10, four rows 2 FP
    assert by["F1"]["regret_cost"] == pytest.approx((100 - 2) * 100)
    # The pair sees the tie and takes four rows: g-mean sqrt(6/8) against sqrt(1/2).
    assert by["F1 then g-mean"]["predicted_positive"] == 4
    assert by["F1 then g-mean"]["regret_cost"] == 0.0
    assert by["g-mean"]["regret_cost"] == 0.0


@pytest.fixture(scope="module")
def smoke() -> dict[str, Any]:
    return measure(CLAIM, scale="smoke", quiet=True)


def test_the_smoke_run_measures_every_arm_and_stores_nothing(smoke: dict[str, Any]) -> None:
    assert smoke["stored"] == []
    assert [run["arm"] for run in smoke["runs"]] == list(ARMS)
    assert len({run[BUDGET] for run in smoke["runs"]}) == 1
    by = {run["arm"]: run for run in smoke["runs"]}
    assert all(run["regret_f1"] >= 0 and run["regret_cost"] >= 0 for run in smoke["runs"])
    # g-mean asks for far more positives than there are
    assert by["g-mean"]["predicted_positive"] > 1.5 * by["MCC"]["predicted_positive"]
    assert len(smoke["findings"]) == 5


def test_the_second_pool_has_one_percent_and_sixty_four_components() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 10
    pixels = torch.rand(1000, 3, 8, 8, generator=generator) + (labels == 3)[:, None, None, None]
    x, y = claim.cifar_pool(from_arrays(pixels / 2, labels), 0)
    assert x.shape == (909, 64)
    assert int(y.sum()) == 9
    assert x.std(0).tolist() == pytest.approx([1.0] * 64, rel=1e-3)
    # The class that differs is seen in the components.
    assert float(abs(x[y].mean(0) - x[~y].mean(0)).max()) > 2
