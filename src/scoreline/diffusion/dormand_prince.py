"""Dormand and Prince's method of order 5(4), with a step size of its own for every image of a batch.

    k_i = f(t + c_i h, y + h sum_j a_ij k_j);   y' = y + h sum_i b_i k_i;   error = h sum_i e_i k_i
The step is taken if the root mean square of error/(atol + rtol max(|y|, |y'|)) is below 1, and the next one is
0.9 norm^(-1/5) times as long, within [0.2, 10]. No image depends on its neighbours; one that has arrived is not
evaluated again. Step control and first step are those of SciPy's RK45, so that one image alone takes its steps.

Reference: Dormand & Prince 1980; Shampine 1986; Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I,
section II.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.core.errors import InputError, NonFiniteError

__all__ = ["A", "B", "C", "E", "ORDER", "Solution", "check_tolerances", "integrate"]

ORDER = 5
# The nodes and rows of the tableau. The last row is the solution itself, so that its slope begins the next step.
C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
E = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)

SAFETY, LEAST, MOST = 0.9, 0.2, 10.0
MAX_STEPS = 10_000

Slope = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Solution(NamedTuple):
    """Where every image arrived, and what it cost.

    Attributes:
        y: (B, ...) state at the end.
        evaluations: (B,) int64, how often the slope of each image was evaluated.
    """

    y: Tensor
    evaluations: Tensor


def check_tolerances(rtol: float, atol: float) -> None:
    """Refuse tolerances that mean nothing.

    Raises:
        InputError: rtol is not positive, or atol is negative.
    """
    if not 0 < rtol < 1:
        raise InputError("rtol", rtol, "must lie between 0 and 1; the paper's is 1e-5")
    if not 0 <= atol < float("inf"):
        raise InputError("atol", atol, "must be 0 or more")


def integrate(
    slope: Slope, y: Tensor, start: float, end: float, *, rtol: float, atol: float, compact: bool = True
) -> Solution:
    """Solve dy/dt = f(y, t) from `start` to `end`, upwards or downwards.

    Args:
        slope: f(y (n, ...), t (n,) float64, rows (n,) or None) -> (n, ...): `rows` are the places in the batch of the
            images asked for, None for all of them.
        y: (B, ...) state at `start`, float32 or float64.
        start, end: times of all images.
        rtol, atol: tolerances of one step, relative and absolute, in units of y.
        compact: ask only for images that have not arrived; False asks for the whole batch every time, for slopes that
            know only whole batches. Arrived images are not moved and not counted either way.

    Raises:
        InputError: rtol is below what the state's type can resolve, or the device has no float64.
        NonFiniteError: an image's step shrinks to nothing.
    """
    if y.device.type == "mps":
        raise InputError("device", "mps", "has no float64, which the times of every image need; use cpu or cuda")
    least = 10 * torch.finfo(y.dtype).eps
    if rtol < least:
        mend = f"a {str(y.dtype).removeprefix('torch.')} state resolves {least:.1g} at best; use float64"
        raise InputError("rtol", rtol, mend)
    direction = 1.0 if end >= start else -1.0
    batch = len(y)
    t = torch.full((batch,), float(start), dtype=torch.float64, device=y.device)
    # Arrived images end on `end` itself, so that this is an exact comparison.
    evaluations = torch.zeros(batch, dtype=torch.int64, device=y.device)
    k = slope(y, t, None)
    h = _first_step(slope, y, k, t, end, direction, rtol, atol)
    evaluations += 2
    rejected = torch.zeros(batch, dtype=torch.bool, device=y.device)
    for _ in range(MAX_STEPS):
        alive = t != end
        stuck = alive & ~(h >= 10 * _ulp(t))
        on_host = torch.stack([alive, stuck]).tolist()  # the one wait of a step
        if any(on_host[1]):
            mend = "the step shrinks to nothing: the model is not finite or not smooth there; try a larger rtol"
            raise NonFiniteError("time", float(t[stuck][0]), mend)
        if not any(on_host[0]):
            return Solution(y, evaluations)
        rows = None
        if compact and not all(on_host[0]):
            rows = torch.tensor([i for i, moves in enumerate(on_host[0]) if moves], device=y.device)

        def of(whole: Tensor, rows: Tensor | None = rows) -> Tensor:
            return whole if rows is None else whole[rows]

        y0, t0, k0, was_rejected, moves = of(y), of(t), of(k), of(rejected), of(alive)
        left = (end - t0).abs()
        last = of(h) >= left
        size = torch.where(moves, torch.minimum(of(h), left), 0.0)
        step = _wide(direction * size, y)
        ks = [k0]
        for i in range(1, 6):
            ks.append(slope(_moved(y0, step, A[i], ks), t0 + direction * C[i] * size, rows))
        y1 = _moved(y0, step, B, ks)
        t1 = torch.where(last, torch.full_like(t0, end), t0 + direction * size)
        ks.append(slope(y1, torch.where(moves, t1, t0), rows))
        error = _moved(torch.zeros_like(y0), step, E, ks)
        norm = _rms(error / (atol + rtol * torch.maximum(y0.abs(), y1.abs())))
        good = (norm < 1) & moves
        factor = SAFETY * norm ** (-1 / ORDER)
        grown = torch.where(was_rejected, factor.clamp(max=1.0), factor.clamp(max=MOST))
        size = torch.where(good, size * grown, size * factor.clamp(min=LEAST))
        taken = _wide(good, y)
        new = (
            torch.where(taken, y1, y0),
            torch.where(good, t1, t0),
            torch.where(taken, ks[-1], k0),
            torch.where(moves, size, of(h)),
            moves & ~good,
            of(evaluations) + 6 * moves,
        )
        if rows is None:
            y, t, k, h, rejected, evaluations = new
        else:
            y, t, k, h, rejected, evaluations = (
                whole.index_copy(0, rows, part) for whole, part in zip((y, t, k, h, rejected, evaluations), new)
            )
    raise NonFiniteError("steps", MAX_STEPS, f"were not enough for rtol {rtol:g}; try a larger one")


def _first_step(
    slope: Slope, y: Tensor, k: Tensor, t: Tensor, end: float, direction: float, rtol: float, atol: float
) -> Tensor:
    """Length of the first step of every image, (B,) float64: Hairer's rule, at one further evaluation."""
    scale = atol + y.abs() * rtol
    span = (end - t).abs()
    d0, d1 = _rms(y / scale), _rms(k / scale)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
    h0 = torch.minimum(h0, span)
    ahead = slope(y + _wide(direction * h0, y) * k, t + direction * h0, None)
    d2 = _rms((ahead - k) / scale) / h0
    flat = (d1 <= 1e-15) & (d2 <= 1e-15)
    h1 = torch.where(flat, (h0 * 1e-3).clamp(min=1e-6), (0.01 / torch.maximum(d1, d2)) ** (1 / ORDER))
    return torch.minimum(torch.minimum(100 * h0, h1), span)


def _moved(y: Tensor, step: Tensor, weights: tuple[float, ...], ks: list[Tensor]) -> Tensor:
    """y + h sum_i w_i k_i."""
    total = ks[0] * weights[0]
    for weight, k in zip(weights[1:], ks[1:]):
        if weight:
            total = total.add(k, alpha=weight)
    return torch.addcmul(y, total, step)


def _wide(value: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ...), in the type of the state unless it is a mask."""
    value = value if value.dtype == torch.bool else value.to(like.dtype)
    return value.view(-1, *[1] * (like.dim() - 1))


def _rms(x: Tensor) -> Tensor:
    return x.double().flatten(1).square().mean(1).sqrt()


def _ulp(t: Tensor) -> Tensor:
    return (torch.nextafter(t, torch.full_like(t, float("inf"))) - t).abs()
