"""Model statistics of DPM-Solver-v3 and the exponential integrals made from them, Zheng et al. 2023 (arXiv 2310.13268).

With lambda = log(alpha/sigma), y = x/alpha and element-wise l, s, b, all functions of lambda,
    f = (sigma eps - l x)/alpha = (1 - l) y - E[x_0|x]            what the network says, freed of its linear part
    g = e^{-S} f - B,   S = int_s s,   B = int_s e^{-S} b         which hardly changes along the ODE
    y_t = e^{-L} (y_s - int_s^t e^{L + S} (g + B) dlambda),   L = int_s l
where every integral starts at the step's own start s. Taylor's g = sum_n g^(n) (lambda - lambda_s)^n/n! leaves
    y_t = e^{-L} (y_s - sum_n I_n g^(n) - C),   I_n = int e^{L + S} (lambda - lambda_s)^n/n!,   C = int e^{L + S} B.
Since y and lambda are the same in every schedule's coordinates, so are the statistics.

Between its nodes l, s and b are straight lines. The rule "gauss" integrates those to rounding; "trapezoid" is the
paper's and the released code's, whose error falls with the square of the distance between nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name

__all__ = [
    "Interval", "ModelStatistics", "Visited", "Weights", "data_prediction", "derivative_weights", "noise_prediction",
    "step_weights", "weights_of",
]  # fmt: skip

# Wider cells than this are divided for Gauss' rule, whose error is then below rounding (half-widths to the 8th power).
CELL = 0.125
RULES = ("gauss", "trapezoid")


class Interval(NamedTuple):
    """Integrals from lambda_s to lambda_t, each of the statistics' shape, float64.

    Attributes:
        h: lambda_t - lambda_s, negative where t is noisier.
        L, S: int l, int s.
        B: int e^{-S} b.
        C: int e^{L + S} B.
        I: I_0, I_1, ... : int e^{L + S} (lambda - lambda_s)^n/n!.
    """

    h: float
    L: Tensor
    S: Tensor
    B: Tensor
    C: Tensor
    I: tuple[Tensor, ...]  # noqa: E741 (the paper's letter)


class Weights(NamedTuple):
    """A step as a sum: x_t = a x_s + sum_k on[k] f_k + constant; k = 0 is the start, the others as they were given."""

    a: Tensor
    on: tuple[Tensor, ...]
    constant: Tensor


@recorded
class ModelStatistics(nn.Module):
    """The coefficients l, s, b of a model on nodes uniform in lambda.

    Args:
        shape: shape of one image; () for statistics that are the same for every entry.
        nodes: N; there are N + 1 nodes.
        low, high: lambda at node 0, the noisiest, and at node N.

    Attributes:
        l, s, b: (N + 1, *shape).
        stored_as: type of the numbers in files.

    Reference: Zheng et al. 2023, eq. 4-11.
    """

    l: Tensor  # noqa: E741 (the paper's letter)
    s: Tensor
    b: Tensor
    stored_as = torch.float32

    def __init__(self, *, shape: Sequence[int], nodes: int, low: float, high: float) -> None:
        super().__init__()
        if not isinstance(nodes, int) or nodes < 2:
            raise InputError("nodes", nodes, "needs a whole number of at least 2")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError("low, high", (low, high), "need two finite values of lambda, the noisier first")
        self.shape, self.nodes, self.low, self.high = tuple(shape), nodes, float(low), float(high)
        for name in ("l", "s", "b"):
            self.register_buffer(name, torch.zeros(nodes + 1, *self.shape))

    @classmethod
    def constant(cls, l: float, s: float, b: float, *, low: float = -60.0, high: float = 60.0, nodes: int = 2) -> Self:  # noqa: E741
        """The same numbers everywhere; see :func:`data_prediction` and :func:`noise_prediction`."""
        made = cls(shape=(), nodes=nodes, low=low, high=high).double()
        for name, value in (("l", l), ("s", s), ("b", b)):
            getattr(made, name).fill_(value)
        return made

    @classmethod
    def calibrate(
        cls,
        denoiser: Denoiser,
        images: Any,
        *,
        samples: int = 1024,
        batch_size: int = 256,
        seed: int = 0,
        folder: str | Path | None = None,
        advance: Callable[[int, str], None] | None = None,
        nodes: int = 120,
        diagonal: str = "probe",
    ) -> ModelStatistics:
        """Estimate the statistics of a model; see :func:`scoreline.samplers.statistics_estimation.estimate`."""
        from scoreline.samplers.statistics_estimation import estimate

        return estimate(
            denoiser, images, samples=samples, batch_size=batch_size, seed=seed, folder=folder, advance=advance,
            nodes=nodes, diagonal=diagonal,
        )  # fmt: skip

    def summary(self) -> str:
        """What was estimated, in a line."""
        sizes = ", ".join(
            f"{name} {v.mean():.2f} ({v.min():.2f} to {v.max():.2f})"
            for name, v in (("l", self.l), ("s", self.s), ("b", self.b))
        )
        shape = "x".join(map(str, self.shape))
        return f"{self.nodes + 1} levels of {shape}, lambda {self.low:.2f} to {self.high:.2f}; {sizes}"

    @property
    def lam(self) -> np.ndarray:
        """The nodes, (N + 1,) float64, ascending."""
        return np.linspace(self.low, self.high, self.nodes + 1)

    def nearest(self, lam: Any) -> np.ndarray:
        """Numbers of the nodes nearest to `lam`, (S,) int64: round(N (lambda - low)/(high - low)).

        >>> data_prediction(nodes=10, low=-5, high=5).nearest([-5.0, 0.2, 5.0]).tolist()
        [0, 5, 10]
        """
        share = (np.asarray(lam, dtype=np.float64) - self.low) / (self.high - self.low)
        return np.clip(np.rint(self.nodes * share), 0, self.nodes).astype(np.int64)

    def check(self, lam: Any, *, thing: str = "lambda") -> None:
        """Refuse levels outside the range in which the model was asked.

        Raises:
            InputError: a value leaves [low, high] by more than rounding.
        """
        values = np.asarray(lam, dtype=np.float64)
        slack = 1e-6 * (self.high - self.low)
        bad = values[~((values >= self.low - slack) & (values <= self.high + slack))]
        if bad.size:
            mend = f"the statistics were estimated for lambda from {self.low:.4g} to {self.high:.4g} only"
            raise InputError(thing, float(bad.flat[0]), mend)

    def at(self, lam: Any) -> tuple[Tensor, Tensor, Tensor]:
        """(l, s, b) at some lambda (S,), each (S, *shape) float64, on straight lines between the nodes."""
        place = (np.asarray(lam, dtype=np.float64) - self.low) / (self.high - self.low) * self.nodes
        place = np.clip(place, 0.0, self.nodes)
        left = np.minimum(place.astype(np.int64), self.nodes - 1)
        i, share = torch.as_tensor(left), torch.as_tensor(place - left).view(-1, *[1] * len(self.shape))
        l, s, b = (torch.lerp(v[i].double(), v[i + 1].double(), share) for v in (self.l, self.s, self.b))  # noqa: E741
        return l, s, b

    def between(self, start: float, end: float, *, top: int = 0, rule: str = "gauss") -> Interval:
        """The integrals of a step from lambda `start` to `end`, either way.

        Args:
            start, end: values of lambda in the range of the nodes.
            top: the highest n of I_n.
            rule: "gauss", or "trapezoid" as in the paper.

        Raises:
            InputError: an unknown rule, or a value outside the range.
        """
        if rule not in RULES:
            raise unknown_name("rule", rule, RULES)
        self.check([start, end])
        h = float(end - start)
        low, high = min(start, end), max(start, end)
        inner = self.lam
        inner = inner[(inner > low + 1e-9) & (inner < high - 1e-9)]
        cuts = np.concatenate([[low], inner, [high]])
        if rule == "gauss":
            cuts = _divided(cuts)
        cuts = cuts if h >= 0 else cuts[::-1]
        u, w, inside = _rule(rule)
        # l, s, b at the cuts; they are straight in between.
        l, s, b = self.at(cuts)  # noqa: E741
        width = torch.as_tensor(np.diff(cuts)).view(-1, *[1] * len(self.shape))
        L, S = (torch.cat([v.new_zeros(1, *v.shape[1:]), (0.5 * width * (v[:-1] + v[1:])).cumsum(0)]) for v in (l, s))

        def points(v: Tensor) -> Tensor:
            """(cells, points, *shape) of a straight line."""
            return v[:-1, None] + _axis(u, v) * (v[1:] - v[:-1])[:, None]

        def risen(total: Tensor, v: Tensor) -> Tensor:
            """Its integral from the start to each point."""
            at = _axis(u, v)
            part = at * v[:-1, None] + 0.5 * at**2 * (v[1:] - v[:-1])[:, None]
            return total[:-1, None] + width[:, None] * part

        Lp, Sp = risen(L, l), risen(S, s)
        rate = (-Sp).exp() * points(b)
        whole = width * torch.einsum("p,cp...->c...", w, rate)
        B = torch.cat([whole.new_zeros(1, *whole.shape[1:]), whole.cumsum(0)])
        Bp = B[:-1, None] + width[:, None] * torch.einsum("qp,cp...->cq...", inside, rate)
        growth = (Lp + Sp).exp()
        from_start = _axis(torch.as_tensor(cuts[:-1] - start), l[:-1], 0)[:, None] + width[:, None] * _axis(u, l)
        sums = [growth * from_start**n / math.factorial(n) for n in range(top + 1)]

        def total(v: Tensor) -> Tensor:
            return (width * torch.einsum("p,cp...->c...", w, v)).sum(0)

        return Interval(h, L[-1], S[-1], B[-1], total(growth * Bp), tuple(total(v) for v in sums))

    def only_l(self) -> ModelStatistics:
        """s = b = 0: what is left is the paper's "Rosenbrock" part."""
        return self._with(self.l, torch.zeros_like(self.s), torch.zeros_like(self.b))

    def _with(self, l: Tensor, s: Tensor, b: Tensor) -> ModelStatistics:  # noqa: E741
        made = ModelStatistics(shape=self.shape, nodes=self.nodes, low=self.low, high=self.high).to(l.dtype)
        for name, value in (("l", l), ("s", s), ("b", b)):
            getattr(made, name).copy_(value)
        return made


def data_prediction(*, low: float = -60.0, high: float = 60.0, nodes: int = 2) -> ModelStatistics:
    """l = 1, s = b = 0: f = -E[x_0|x], the multistep solver in the data prediction (DPM-Solver++ in Taylor form)."""
    return ModelStatistics.constant(1.0, 0.0, 0.0, low=low, high=high, nodes=nodes)


def noise_prediction(*, low: float = -60.0, high: float = 60.0, nodes: int = 2) -> ModelStatistics:
    """l = 0, s = -1, b = 0: g is proportional to eps, the multistep solver in the noise prediction (DPM-Solver)."""
    return ModelStatistics.constant(0.0, -1.0, 0.0, low=low, high=high, nodes=nodes)


def derivative_weights(delta: Sequence[float], *, pseudo: bool = False) -> np.ndarray:
    """How g^(1) ... g^(n) at a point follow from g there and at n other points.

    With the full order the polynomial of degree n through all points is differentiated: the Vandermonde system
    sum_j delta_k^j g^(j)/j! = g_k - g_0. The pseudo order takes for the k-th derivative k! times the divided
    difference of the first k + 1 points alone: of lower order for n >= 2, and calmer.

    Args:
        delta: (n,) lambda_k - lambda_0 of the other points.
        pseudo: take the pseudo order.

    Returns:
        (n, n + 1): row k - 1 holds the weights of g^(k) on g_0, g_1, ..., g_n.

    >>> derivative_weights([-0.5]).tolist() == derivative_weights([-0.5], pseudo=True).tolist() == [[2.0, -2.0]]
    True
    """
    n = len(delta)
    factorials = np.array([math.factorial(k) for k in range(1, n + 1)], dtype=np.float64)
    if not pseudo:
        powers = np.asarray(delta, dtype=np.float64)[:, None] ** np.arange(1, n + 1)
        on_others = factorials[:, None] * np.linalg.inv(powers)
        return np.concatenate([-on_others.sum(1, keepdims=True), on_others], axis=1)
    at = np.concatenate([[0.0], np.asarray(delta, dtype=np.float64)])
    table, rows = np.eye(n + 1), []
    for k in range(1, n + 1):
        table = (table[1:] - table[:-1]) / (at[k:] - at[:-k])[:, None]
        rows.append(factorials[k - 1] * table[0])
    return np.array(rows).reshape(n, n + 1)


def step_weights(
    statistics: ModelStatistics,
    start: float,
    end: float,
    others: Sequence[float] = (),
    *,
    alphas: tuple[float, float] = (1.0, 1.0),
    derivatives: np.ndarray | None = None,
    pseudo: bool = False,
    rule: str = "gauss",
) -> Weights:
    """One step of order 1 + n from lambda `start` to `end`, from f there and at n other points.

    x_t = alpha_t e^{-L} (x_s/alpha_s - sum_j I_j g^(j) - C), where the g of another point relative to this start is
    g_k = e^{-S_k} f_k - B_k with the integrals from the start to that point.

    Args:
        statistics: of the model.
        start, end: lambda.
        others: lambda of further points with known f, nearest first; visited ones, or `end` itself for a corrector.
        alphas: (alpha_s, alpha_t); ones give the step in y = x/alpha.
        derivatives: (m, n + 1) weights of g^(1) ... g^(m); None takes :func:`derivative_weights`.
        pseudo: see :func:`derivative_weights`.
        rule: see :meth:`ModelStatistics.between`.

    Returns:
        Weights of the statistics' shape, float64.
    """
    if derivatives is None:
        derivatives = derivative_weights([p - start for p in others], pseudo=pseudo)
    step = statistics.between(start, end, top=len(derivatives), rule=rule)
    seen = [statistics.between(start, point, rule=rule) for point in others]
    a, on, constant = weights_of(step, [(point.S, point.B) for point in seen], derivatives)
    out = alphas[1]
    return Weights(a * (out / alphas[0]), tuple(out * w for w in on), out * constant)


def weights_of(step: Interval, seen: Sequence[tuple[Tensor, Tensor]], derivatives: np.ndarray) -> Weights:
    """The step in y = x/alpha from its integrals; see :func:`step_weights`.

    Args:
        step: from the start to the end, with I_n up to the highest derivative.
        seen: (S, B) from the start to each further point.
        derivatives: (m, n + 1) weights of g^(1) ... g^(m) on g at the start and at the n further points.
    """
    shrink = (-step.L).exp()
    shares = [sum((I * float(row[k]) for I, row in zip(step.I[1:], derivatives)), torch.zeros_like(step.C))  # noqa: E741
              for k in range(len(seen) + 1)]  # fmt: skip
    on, constant = [-shrink * (shares[0] + step.I[0])], -shrink * step.C
    for share, (S, B) in zip(shares[1:], seen):
        on.append(-shrink * share * (-S).exp())
        constant = constant + shrink * share * B
    return Weights(shrink, tuple(on), constant)


class Visited:
    """The integrals between the points of a run: each step's own once, all others from those.

    From t back to s:  S -> -S, B -> -e^S B;  from s over t to r:  S = S_1 + S_2, B = B_1 + e^{-S_1} B_2.

    Args:
        statistics: of the model.
        lam: (M + 1,) finite values of lambda.
        top, rule: see :meth:`ModelStatistics.between`.
    """

    def __init__(self, statistics: ModelStatistics, lam: Sequence[float], *, top: int, rule: str = "gauss") -> None:
        self.steps = [statistics.between(a, b, top=top, rule=rule) for a, b in pairwise(lam)]
        self._zero = torch.zeros(statistics.shape, dtype=torch.float64)

    def seen(self, start: int, point: int) -> tuple[Tensor, Tensor]:
        """(S, B) from point `start` to point `point` of the run."""
        S, B = self._zero, self._zero
        for i in range(start, point):
            B, S = B + (-S).exp() * self.steps[i].B, S + self.steps[i].S
        for i in range(start - 1, point - 1, -1):
            step = self.steps[i]
            B, S = B - (-S).exp() * step.S.exp() * step.B, S - step.S
        return S, B


def _divided(cuts: np.ndarray) -> np.ndarray:
    """Cut cells that are wider than `CELL`."""
    parts = [np.linspace(a, b, max(math.ceil((b - a) / CELL), 1) + 1)[:-1] for a, b in pairwise(cuts)]
    return np.append(np.concatenate(parts), cuts[-1])


def _rule(rule: str) -> tuple[Tensor, Tensor, Tensor]:
    """(points in [0, 1], weights, weights of the integrals from 0 to each point)."""
    if rule == "trapezoid":
        u, w, inside = np.array([0.0, 1.0]), np.array([0.5, 0.5]), np.array([[0.0, 0.0], [0.5, 0.5]])
    else:
        u, w = np.polynomial.legendre.leggauss(4)
        u, w = 0.5 * (u + 1), 0.5 * w
        degree = np.arange(4)
        # Collocation: the polynomial through the values at the points is integrated up to each of them.
        inside = (u[:, None] ** (degree + 1) / (degree + 1)) @ np.linalg.inv(u[:, None] ** degree)
    return torch.as_tensor(u), torch.as_tensor(w), torch.as_tensor(inside)


def _axis(u: Tensor, like: Tensor, place: int = 1) -> Tensor:
    """`u` along axis `place` of something with one axis for cells or points in front of each entry's own."""
    return u.view(*[1] * place, -1, *[1] * (like.dim() - 1))
