"""Claim 22: the rule on made-up numbers, and what its arms measure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from scoreline.claims import skip_tuning as claim
from scoreline.claims.engine import BUDGET, Memo, measure
from scoreline.claims.skip_tuning import ARMS, CLAIM, LEVELS, STEPS, Setting
from scoreline.guidance.skip_tuning import SkipTuning
from scoreline.samplers.heun import Heun


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def judged(**changes: Any) -> tuple[str, list[bool | None]]:
    """Numbers with which every part holds; `distance_N`, `pixel`, `feature` change the arm "skip"."""
    numbers: dict[str, dict[str, list[float]]] = {
        arm: {f"distance_{n}": [10.0] * 3 for n in STEPS} | {f"rho_{n}": [1.0] * 3 for n in STEPS} for arm in ARMS
    }
    for arm in ("plain", "skip"):
        numbers[arm] |= {f"{kind}_{level:g}": [2.0] * 3 for kind in ("pixel", "feature") for level in LEVELS}
    numbers["plain"]["label_accuracy"] = [changes.pop("accuracy", 0.9)] * 3
    skip = {"distance_3": [8.0] * 3, "distance_5": [8.9] * 3, "distance_8": [9.5] * 3, "distance_18": [10.0] * 3}
    skip |= {f"pixel_{level:g}": [2.1] * 3 for level in LEVELS} | {f"feature_{level:g}": [1.9] * 3 for level in LEVELS}
    for name, value in changes.items():
        targets = [name] if "_" in name else [f"{name}_{level:g}" for level in LEVELS]
        for target in targets:
            skip[target] = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    numbers["skip"] |= skip
    verdict, parts = CLAIM.verdict(numbers)
    assert len(CLAIM.findings(numbers)) == 4
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, parts", [
    ({}, "holds", [True, True, True, True]),
    # Ten percent in all seeds, at 3 or at 5; the mean is not enough.
    ({"distance_3": 9.0}, "holds", [True, True, True, True]),
    ({"distance_3": [8.0, 8.0, 9.01], "distance_5": 9.2}, "in part", [False, True, True, True]),
    ({"distance_3": 10.0, "distance_5": 9.0}, "holds", [True, True, True, True]),
    ({"distance_8": 5.0}, "holds", [True, True, True, True]),
    ({"distance_18": 7.9}, "in part", [True, False, True, True]),
    ({"pixel": [2.1, 2.1, 2.0]}, "in part", [True, True, False, True]),
    ({"feature": [1.9, 1.9, 2.0]}, "in part", [True, True, True, False]),
    # A level may go the other way, the mean decides.
    ({"feature_10": 2.3}, "holds", [True, True, True, True]),
    ({"feature_10": 2.5}, "in part", [True, True, True, False]),
    # No gain on latents B at few steps.
    ({"distance_3": 10.0, "distance_5": 10.5}, "refuted", [False, None, True, True]),
    ({"accuracy": 0.49}, "not seen", [None, None, None, None]),
    ({"accuracy": 0.49, "distance_3": 11.0, "distance_5": 11.0}, "not seen", [None, None, None, None]),
])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool | None]) -> None:
    assert judged(**changes) == (verdict, parts)


def test_every_arm_may_leave_the_network_alone_and_has_as_many_trials() -> None:
    assert all(settings[0] == Setting() for settings in ARMS.values())
    assert len(ARMS["skip"]) == len(ARMS["hidden"]) == len(ARMS["sampler"]) == 6
    assert [s.rho for s in ARMS["skip"][1:]] == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert [s.rho for s in ARMS["wrong direction"][1:]] == [1.1, 1.2]
    assert isinstance(Setting().make(5), Heun)
    tuned = Setting(rho=0.6, side="hidden").make(5)
    assert isinstance(tuned, SkipTuning)
    assert (tuned.rho, tuned.side) == (0.6, "hidden")


@pytest.fixture(scope="module")
def smoke() -> dict[str, Any]:
    return measure(CLAIM, scale="smoke", quiet=True)


def test_the_smoke_run_measures_every_arm_and_stores_nothing(smoke: dict[str, Any]) -> None:
    assert smoke["stored"] == []
    assert smoke["verdict"] == "not seen"  # two steps of training draw no digits
    runs = {run["arm"]: run for run in smoke["runs"]}
    assert set(runs) == set(ARMS)
    assert {run[BUDGET] for run in runs.values()} == {3 * 2 * 128}
    for run in runs.values():
        assert {f"distance_{n}" for n in STEPS} <= set(run)
    assert runs["skip"]["rho_of_losses"] < 1


def test_the_choice_is_made_on_a_and_told_on_b(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int, int]] = []

    def distance(model: Any, how: Setting, steps: int, seed: int, latents: int, *rest: Any) -> float:
        seen.append((how.rho, steps, latents))
        return abs(how.rho - 0.7) + 1 if latents == 0 else how.rho * latents

    monkeypatch.setattr(claim, "_distance", distance)
    monkeypatch.setattr(claim, "_trained", lambda *_: None)
    monkeypatch.setattr(claim, "_losses", lambda model, rho, seed: {"seen": rho})
    out = CLAIM.run("skip", 0, "laptop", Memo())
    assert out["rho_3"] == 0.7
    assert out["distance_3"] == pytest.approx(0.7 * (1 + 2) / 2)
    assert out["selected_3"] == pytest.approx(1.0)
    assert out["seen"] == 0.7
    assert {latents for rho, _, latents in seen if rho != 0.7} == {0}
