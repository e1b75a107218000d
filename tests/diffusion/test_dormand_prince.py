"""The adaptive solver: SciPy's steps for one image, and no image depends on its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import RK45, solve_ivp
from torch import Tensor

from scoreline.core.errors import InputError, NonFiniteError
from scoreline.diffusion.dormand_prince import A, B, C, E, integrate

# Forced oscillators, each with a frequency of its own: some need many steps, some few.
RATES = torch.tensor([0.3, 8.0, 1.0, 15.0], dtype=torch.float64)
START = torch.tensor([[1.0, 0.2], [0.0, -1.0], [2.0, 0.1], [0.5, 0.5]], dtype=torch.float64)


def slope(y: Tensor, t: Tensor, rows: Tensor | None) -> Tensor:
    w = RATES if rows is None else RATES[rows]
    return torch.stack([w * y[:, 1], -w * y[:, 0] + torch.sin(t)], 1)


def on_arrays(t: float, y: np.ndarray, i: int) -> np.ndarray:
    at = torch.tensor([t], dtype=torch.float64)
    return slope(torch.tensor(y)[None], at, torch.tensor([i]))[0].numpy()


def test_the_tableau_is_scipys_and_of_order_five() -> None:
    assert np.allclose(RK45.B, B, rtol=0, atol=1e-16)
    assert np.allclose(RK45.C, C, rtol=0, atol=1e-16)
    assert np.allclose(RK45.E, E, rtol=0, atol=1e-16)
    for i in range(1, 6):
        assert np.allclose(RK45.A[i, :i], A[i], rtol=0, atol=1e-15)
        assert sum(A[i]) == pytest.approx(C[i], abs=1e-14)
    for power in range(5):
        assert sum(b * c**power for b, c in zip(B, C)) == pytest.approx(1 / (power + 1), abs=1e-14)


@pytest.mark.parametrize("ends", [(0.0, 3.0), (3.0, 0.5)])
@pytest.mark.parametrize("rtol", [1e-3, 1e-7])
def test_one_image_takes_scipys_steps(ends: tuple[float, float], rtol: float) -> None:
    for i in range(4):
        mine = integrate(
            lambda y, t, rows, i=i: slope(y, t, torch.tensor([i])), START[i : i + 1], *ends, rtol=rtol, atol=1e-6
        )
        theirs = solve_ivp(
            lambda t, y, i=i: on_arrays(t, y, i),
            ends,
            START[i].numpy(),
            method="RK45",
            rtol=rtol,
            atol=1e-6,
        )
        assert mine.evaluations.tolist() == [theirs.nfev]
        assert np.abs(mine.y[0].numpy() - theirs.y[:, -1]).max() < 1e-12


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)])
def test_after_a_rejected_step_the_next_one_does_not_grow(ends: tuple[float, float]) -> None:
    """Kicks in the middle of a quiet stretch: SciPy's own steps through them, refusals and all."""

    def kicked(t: Any, y: Any, exp: Any) -> Any:
        return -y + 40 * exp(-(((t - 0.7) / 0.02) ** 2)) + 5 * exp(-(((t - 1.5) / 0.1) ** 2))

    theirs = solve_ivp(lambda t, y: kicked(t, y, np.exp), ends, [0.3], method="RK45", rtol=1e-4, atol=1e-4)
    y = torch.tensor([[0.3]], dtype=torch.float64)
    mine = integrate(lambda y, t, rows: kicked(t[:, None], y, torch.exp), y, *ends, rtol=1e-4, atol=1e-4)
    attempts = (theirs.nfev - 2) // 6
    assert attempts > len(theirs.t) - 1 + 3, "the case must hold refused steps"
    assert mine.evaluations.tolist() == [theirs.nfev]
    assert abs(float(mine.y) - theirs.y[0, -1]) < 1e-10


@pytest.mark.parametrize("compact", [True, False])
def test_an_image_does_not_depend_on_its_neighbours(compact: bool) -> None:
    together = integrate(slope, START, 0.0, 3.0, rtol=1e-6, atol=1e-6, compact=compact)
    for i in range(4):
        alone = integrate(
            lambda y, t, rows, i=i: slope(y, t, torch.tensor([i])), START[i : i + 1], 0.0, 3.0, rtol=1e-6, atol=1e-6
        )
        assert torch.equal(alone.y[0], together.y[i])
        assert alone.evaluations[0] == together.evaluations[i]
    assert len(set(together.evaluations.tolist())) == 4


def test_arrived_images_are_not_asked_again() -> None:
    asked = torch.zeros(4, dtype=torch.int64)

    def counted(y: Tensor, t: Tensor, rows: Tensor | None) -> Tensor:
        asked[slice(None) if rows is None else rows] += 1
        assert len(y) == len(t) == (4 if rows is None else len(rows))
        return slope(y, t, rows)

    solved = integrate(counted, START, 0.0, 3.0, rtol=1e-6, atol=1e-6)
    assert torch.equal(asked, solved.evaluations)


def test_a_step_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = dict.fromkeys(("tolist", "item", "__bool__", "__float__", "cpu", "numpy", "nonzero"), 0)
    for name in waits:
        genuine = getattr(Tensor, name)

        def counted(self: Tensor, *rest: Any, name: str = name, genuine: Any = genuine) -> Any:
            waits[name] += 1
            return genuine(self, *rest)

        monkeypatch.setattr(Tensor, name, counted)
    # Images that arrive one after the other, and slopes that do not wait themselves.
    rates = torch.tensor([[1.0], [5.0], [20.0]])
    solved = integrate(
        lambda y, t, rows: -(rates if rows is None else rates[rows]) * y,
        torch.ones(3, 1),
        0.0,
        2.0,
        rtol=1e-5,
        atol=1e-5,
    )
    monkeypatch.undo()
    attempts = (int(solved.evaluations.max()) - 2) // 6
    assert waits.pop("tolist") == attempts + 1
    assert set(waits.values()) == {0}


def test_whole_batches_are_asked_for_when_told_so() -> None:
    sizes = set()

    def watched(y: Tensor, t: Tensor, rows: Tensor | None) -> Tensor:
        assert rows is None
        sizes.add(len(y))
        return slope(y, t, rows)

    integrate(watched, START, 0.0, 3.0, rtol=1e-5, atol=1e-5, compact=False)
    assert sizes == {4}


def test_a_smaller_tolerance_is_kept() -> None:
    exact = integrate(slope, START, 0.0, 1.0, rtol=1e-10, atol=1e-10).y
    errors = [(integrate(slope, START, 0.0, 1.0, rtol=r, atol=r).y - exact).abs().max().item() for r in (1e-4, 1e-7)]
    assert errors[1] < 1e-5 < errors[0] < 1e-2


def test_the_state_keeps_its_shape_and_type() -> None:
    y = torch.ones(2, 3, 4, 4)
    solved = integrate(lambda y, t, rows: -y, y, 0.0, 1.0, rtol=1e-5, atol=1e-5)
    assert solved.y.shape == y.shape
    assert solved.y.dtype == torch.float32
    assert (solved.y - np.exp(-1)).abs().max() < 1e-5


def bad(value: float) -> Any:
    return lambda y, t, rows: torch.where((t > 0.5)[:, None], torch.full_like(y, value), -y)


def test_a_slope_that_is_not_finite_is_reported() -> None:
    with pytest.raises(NonFiniteError, match="shrinks"):
        integrate(bad(float("nan")), START, 0.0, 1.0, rtol=1e-5, atol=1e-5)


def test_a_tolerance_below_the_resolution_is_refused() -> None:
    with pytest.raises(InputError, match="float64"):
        integrate(lambda y, t, rows: -y, torch.ones(1, 2), 0.0, 1.0, rtol=1e-7, atol=1e-7)
