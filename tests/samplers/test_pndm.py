"""PNDM against the paper's formulas written out on a table of abar, and its costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.schedules import VP, Discrete, Flow
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.pndm import PNDM

F8 = torch.float64


def mixture(schedule: object) -> Mixture:
    return Mixture(schedule, torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=F8), 0.1)  # type: ignore[arg-type]


def phi(x: Tensor, e: Tensor, a: float, b: float) -> Tensor:
    """The paper's transfer from abar = a to abar = b, eq. 11."""
    down = a**0.5 * ((1 - b) * a) ** 0.5 + a**0.5 * ((1 - a) * b) ** 0.5
    return (b / a) ** 0.5 * x - (b - a) / down * e


def by_the_paper(model: Mixture, times: list[float], x: Tensor, kind: str) -> Tensor:
    table = np.append(1.0, model.schedule.abar)  # type: ignore[attr-defined]
    known: list[Tensor] = []

    def abar(t: float) -> float:
        return float(table[int(t) + 1])

    for i, (t, s) in enumerate(itertools.pairwise(times)):
        e = model(x, t).eps
        known.append(e)
        if kind == "f" and i < 3:
            half = (t + s) / 2
            e2 = model(phi(x, e, abar(t), abar(half)), half).eps
            e3 = model(phi(x, e2, abar(t), abar(half)), half).eps
            e4 = model(phi(x, e3, abar(t), abar(s)), s).eps
            e = (e + 2 * e2 + 2 * e3 + e4) / 6
        elif kind == "f":
            e = (55 * known[-1] - 59 * known[-2] + 37 * known[-3] - 9 * known[-4]) / 24
        elif i == 0:
            e = (e + model(phi(x, e, abar(t), abar(s)), s).eps) / 2
        else:
            e = (3 * known[-1] - known[-2]) / 2
        x = phi(x, e, abar(t), abar(s))
    return x


@pytest.mark.parametrize("kind", ["f", "s"])
def test_it_is_the_papers_algorithm(kind: str) -> None:
    model, draws = mixture(Discrete()), Noise(0).at(range(3), (2,), dtype=F8)
    times = [float(t) for t in range(900, -1, -100)]
    sample = PNDM(kind=kind)(model, draws, times=[*times, -1.0], x=draws.normal())
    want = by_the_paper(model, [*times, -1.0], draws.normal(), kind)
    assert torch.allclose(sample.x, want, atol=1e-11)
    assert sample.nfe == (10 + 9 if kind == "f" else 10 + 1)


def test_half_way_is_an_entry_of_the_table() -> None:
    rows = PNDM().coefficients(Discrete(), np.array([999.0, 900, 790, 601, 600, 300, -1]))
    assert rows["half"][:3].tolist() == [950.0, 845.0, 696.0] or rows["half"][:3].tolist() == [949.0, 845.0, 695.0]
    rows = PNDM().coefficients(Discrete(), np.array([3.0, 2, 1, 0, -1]))
    assert rows["half"][0] == 2.5  # no entry lies between neighbours


@pytest.mark.parametrize("kind, least, extra", [("f", 4, 9), ("s", 2, 1)])
def test_costs_count_the_start(kind: str, least: int, extra: int) -> None:
    assert PNDM(kind=kind).cost(20) == 20 + extra
    assert PNDM(kind=kind, nfe=20).plan() == 20 - extra
    with pytest.raises(InputError, match=f"at least {least + extra}"):
        PNDM(kind=kind, nfe=least + extra - 1).plan()
    with pytest.raises(InputError, match=f"at least {least}"):
        PNDM(kind=kind, steps=least - 1)


def test_from_a_level_without_signal_the_first_step_is_ddim() -> None:
    model, draws = mixture(Flow()), Noise(0).at(range(3), (2,), dtype=F8)
    path = PNDM(steps=6)(model, draws, trajectory=True)
    ddim = DDIM(steps=6)(model, draws, trajectory=True)
    assert torch.allclose(path.trajectory[1], ddim.trajectory[1])  # type: ignore[index]
    assert not torch.allclose(path.trajectory[2], ddim.trajectory[2])  # type: ignore[index]
    assert path.nfe == 6 + 2 * 3


def test_a_short_run_to_the_clean_end_asks_nothing_there() -> None:
    model, draws = mixture(VP()), Noise(0).at(range(3), (2,), dtype=F8)
    sample = PNDM()(model, draws, times=[1.0, 0.5, 0.0])
    assert sample.nfe == 4 + 1
    assert torch.isfinite(sample.x).all()


def test_settings() -> None:
    with pytest.raises(InputError, match="kind"):
        PNDM(kind="fourth")
