"""The sweep of skip-tuning's coefficient: chosen on one noise, told on another, resumed, refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.schedules import EDM
from scoreline.evaluate.specs import make_sampler
from scoreline.guidance.skip_tuning import SkipTuning
from scoreline.samplers.heun import Heun
from scoreline.search.objective import Objective
from scoreline.search.skip_sweep import RHOS, SkipSampler, _genotypes, skip_sweep

SMALL: dict[str, Any] = {"nfe": 3, "count": 16, "rho": (0.8, 1.2), "metric": "rmse", "report_seeds": (1,)}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """(rho, seed) of every measurement; the score is |rho - 0.8| on noise 0 and rho elsewhere."""
    seen: list[tuple[float, int]] = []

    def measured(self: Objective, genotype: dict[str, float], seed: int, count: int) -> dict[str, float]:
        seen.append((genotype["rho"], seed))
        value = abs(genotype["rho"] - 0.8) + 0.1 if seed == 0 else genotype["rho"]
        return {"value": value, "nfe": 3.0, "macs": 1.0, "seconds": 0.0}

    monkeypatch.setattr(Objective, "measured", measured)
    return seen


def test_chosen_on_noise_a_told_on_noise_b(watched: list[tuple[float, int]], tmp_path: Path) -> None:
    result = skip_sweep("digits", out=tmp_path, **{**SMALL, "report_seeds": (1, 2)})
    assert watched == [(1.0, 0), (0.8, 0), (1.2, 0), (1.0, 1), (1.0, 2), (0.8, 1), (0.8, 2)]
    assert result["chosen"] == {"rho": 0.8, "top": 1.0}
    assert result["gain"] == pytest.approx(0.2)
    assert [row["value"] for row in result["candidates"]] == pytest.approx([0.3, 0.1, 0.5])
    assert result["report"]["plain"]["values"] == [1.0, 1.0]
    assert result["search_evaluations"] == 3 * 16 * 3
    assert json.loads((tmp_path / "skips.json").read_text()) == result
    sampler = make_sampler(result["sampler"], nfe=3)
    assert isinstance(sampler, SkipTuning)
    assert (sampler.of, sampler.rho) == ("heun", 0.8)


def test_a_stopped_sweep_goes_on(watched: list[tuple[float, int]], tmp_path: Path) -> None:
    whole = skip_sweep("digits", out=tmp_path, **SMALL)
    lines = (tmp_path / "skips.jsonl").read_text().splitlines()
    (tmp_path / "skips.jsonl").write_text(lines[0] + "\n")
    watched.clear()
    assert skip_sweep("digits", out=tmp_path, **SMALL) == whole
    assert watched == [(0.8, 0), (1.2, 0), (1.0, 1), (0.8, 1)]


def test_untuned_wins_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"value": 1.0, "nfe": 3.0, "macs": 1.0, "seconds": 0.0}
    monkeypatch.setattr(Objective, "measured", lambda *_: same)
    result = skip_sweep("digits", **SMALL)
    assert result["chosen"] == {"rho": 1.0, "top": 1.0}
    assert result["gain"] == 0.0


def test_a_real_sweep_measures_the_tuned_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same run of the untuned network: the further from 1, the further away."""
    monkeypatch.setattr(Objective, "_converged", lambda self, *at: self._images(Heun(steps=5), *at)[0])
    result = skip_sweep("digits", **{**SMALL, "nfe": 9, "rho": (0.5, 0.95), "count": 4})
    values = {row["rho"]: row["value"] for row in result["candidates"]}
    assert values[1.0] == 0 < values[0.95] < values[0.5]


def test_settings_are_crossed_and_said_once() -> None:
    plain, every = _genotypes((0.7, 1.0), (1.0, 0.9), ((0.0, math.inf), (0.5, 10.0)))
    assert every[0] == plain == {"rho": 1.0, "top": 1.0}
    assert {"rho": 0.7, "top": 0.9, "low": 0.5, "high": 10.0} in every
    assert {"rho": 1.0, "top": 0.9} in every
    assert len(every) == 1 + 3 + 3
    assert 1.0 in RHOS
    assert min(RHOS) == 0.5
    assert len(RHOS) == 13


def test_a_spec_says_everything() -> None:
    text = SkipSampler("ddim", nfe=5, side="hidden", grid="karras").spec({"rho": 0.7, "top": 1.0, "low": 0.5})
    assert text == "skip-tuning:of=ddim:rho=0.7:top=1.0:low=0.5:side=hidden:grid=karras"
    assert make_sampler(text, nfe=5).grid == "karras"


def test_bad_input_before_any_image(watched: list[tuple[float, int]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="skip joints"):
        skip_sweep(Gaussian(EDM(), torch.zeros(2), 1.0), **SMALL)
    with pytest.raises(InputError, match="other than 0"):
        skip_sweep("digits", **{**SMALL, "report_seeds": (0, 1)})
    with pytest.raises(InputError, match="one of them"):
        skip_sweep("digits", **{**SMALL, "steps": 4})
    with pytest.raises(InputError, match="at least one of each"):
        skip_sweep("digits", **{**SMALL, "rho": ()})
    with pytest.raises(InputError, match="rho"):
        skip_sweep("digits", **{**SMALL, "rho": (0.0,)})
    with pytest.raises(InputError, match="at least 3"):
        skip_sweep("digits", **{**SMALL, "nfe": 2})
    with pytest.raises(InputError, match="did you mean"):
        skip_sweep("digits", **{**SMALL, "of": "huen"})
    assert not watched
