"""The S^3 search: budgets, stages, the same outcome whoever evaluates, and better schedules than it starts from."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.artefact import describe
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.schedules import EDM
from scoreline.samplers.dpm_solver_pp import DPMSolverPP3M
from scoreline.samplers.solver_schedule import SolverSchedule
from scoreline.search.engine import search
from scoreline.search.solver_space import SolverSpace
from scoreline.search.usf import METHODS, SamplerOf, SolverSearch

F8 = torch.float64
SMALL: dict[str, Any] = {"evaluations": 70, "first_stage": 55, "generation": 6, "later": 8, "candidates": 30}


class Score:
    """RMSE to a fine solution on a mixture; picklable."""

    def __init__(self, seed: int = 0, count: int = 8) -> None:
        self.model = Mixture(EDM(), torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=F8), 0.1)
        self.draws = Noise(seed).at(range(count), (2,), dtype=F8)
        self.exact = DPMSolverPP3M(steps=100, grid="logsnr")(self.model, self.draws).x
        self.sampler_of = SamplerOf(describe(self.model.schedule))

    def __call__(self, genotype: dict[str, Any]) -> dict[str, float]:
        sample = self.sampler_of(genotype)(self.model, self.draws)
        return {"value": float((sample.x - self.exact).square().mean(1).sqrt().median()), "nfe": sample.nfe}


def space(*nfe: int) -> SolverSpace:
    return SolverSpace(EDM(), nfe)


@pytest.mark.parametrize("method", METHODS)
def test_spends_its_evaluations_and_improves(method: str) -> None:
    count = 130 if method == "evolution" else 70
    searcher = SolverSearch(space(5), method=method, **SMALL | {"evaluations": count})
    history = search(searcher, Score())
    assert len(history) == len(searcher.told) == count
    assert searcher.ask() == []
    keys = [SolverSchedule.from_dict(row["genotype"]) for row in history]
    assert len(set(keys)) == count
    best = searcher.best(5, 3)
    assert [score for _, score in best] == sorted(row["result"]["value"] for row in history)[:3]
    if method != "random":
        start = [row["result"]["value"] for row in history if row["generation"] == 0]
        assert len(start) == len(space(5).known(5))
        assert best[0][1] < min(start) or method == "s3"
    assert len(searcher.taus) == (2 if method == "s3" else 0)


def test_a_stopped_search_goes_on_to_the_same_end(tmp_path: Path) -> None:
    def run(seed: int = 0, **settings: Any) -> list[dict[str, Any]]:
        return search(SolverSearch(space(4), seed=seed, **SMALL | {"evaluations": 64}), Score(), **settings)

    here = run(ledger=tmp_path / "search.jsonl", job={"seed": 0})
    lines = (tmp_path / "search.jsonl").read_bytes().splitlines(keepends=True)
    # Killed in the middle of the line after the fiftieth.
    (tmp_path / "search.jsonl").write_bytes(b"".join(lines[:50]) + lines[50][:20])
    assert run(ledger=tmp_path / "search.jsonl", job={"seed": 0}) == here
    other = SolverSearch(space(4), seed=1, method="evolution", **SMALL | {"evaluations": 50})
    assert [row["genotype"] for row in search(other, Score())][44:] != [row["genotype"] for row in here[44:50]]


def test_what_makes_samplers_can_be_sent_to_workers() -> None:
    genotype = space(4).known(4)[0].to_dict()
    made = pickle.loads(pickle.dumps(SamplerOf(describe(EDM()))))(genotype)
    assert made.cost(4) == 4
    assert describe(made) == describe(SamplerOf(describe(EDM()))(genotype))


def test_several_budgets_share_one_search_and_one_predictor() -> None:
    settings = SMALL | {"evaluations": 104, "first_stage": 95, "candidates": 40}
    searcher = SolverSearch(space(4, 6), **settings)
    search(searcher, Score())
    counts = {nfe: sum(p.nfe() == nfe for p, _ in searcher.told) for nfe in (4, 6)}
    assert sum(counts.values()) == 104
    assert min(counts.values()) > 30
    assert searcher.best(6)[0][1] < searcher.best(4)[0][1]
    assert searcher.best(5) == []


def test_the_predictor_chooses_among_many_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later stages evaluate what the predictor ranks best, not the first that come."""
    import scoreline.search.usf as module

    offered = []

    class Latest(torch.nn.Module):
        """Prefers schedules whose second time is late."""

        def forward(self, numbers: torch.Tensor, decisions: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            offered.append(len(numbers))
            return -numbers[:, 0, 1]

    monkeypatch.setattr(module, "fit_predictor", lambda *args, **kwargs: Latest())
    searcher = SolverSearch(space(5), **SMALL | {"evaluations": 63})
    history = search(searcher, Score())
    last = [SolverSchedule.from_dict(row["genotype"]).times[1] for row in history[-7:]]
    before = [SolverSchedule.from_dict(row["genotype"]).times[1] for row in history[-19:-7]]
    assert max(offered) == 30
    assert np.median(last) < np.median(before)
    assert last == sorted(last)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'evolution'"):
        SolverSearch(space(4), method="evolve")
    with pytest.raises(InputError, match="evaluations"):
        SolverSearch(space(4), evaluations=0)
    with pytest.raises(InputError, match="candidates"):
        SolverSearch(space(4), candidates=3)


def test_skip_coefficients_are_searched_from_those_of_the_network() -> None:
    """With a score that asks for small coefficients, known solvers start at 1 and their children go down."""

    def score(genotype: dict[str, Any]) -> dict[str, float]:
        return {"value": sum(genotype["skips"]), "nfe": 4.0}

    joints = SolverSpace(EDM(), (4,), joints=3, skip_noise=(-0.1, 0.05))
    searcher = SolverSearch(joints, method="evolution", **SMALL)
    history = search(searcher, score)
    first = [row["genotype"]["skips"] for row in history if row["generation"] == 0]
    assert set(map(tuple, first)) == {(1.0, 1.0, 1.0)}
    assert searcher.best(4)[0][1] < 2.8
    assert min(min(row["genotype"]["skips"]) for row in history) >= 0
