"""Arithmetic that exponential integrators share: phi functions, Lagrange weights, differences; all in float64.

A linear ODE with a slow right-hand side is solved by integrating its linear part exactly and the rest as a polynomial
through known values. DEIS integrates Lagrange polynomials, UniPC and the unified sampling framework Taylor sums:
    x_t = (alpha_t/alpha_s) x_s - sigma_t sum_k h^{k+1} phi_{k+1}(h)  eps^(k)      (noise prediction)
    x_t = (sigma_t/sigma_s) x_s + alpha_t sum_k h^{k+1} phi_{k+1}(-h) x0^(k)       (data prediction)
with h = lambda_t - lambda_s and derivatives with respect to lambda at s.

Reference: Hochbruck & Ostermann 2010 (phi functions); Zhang & Chen 2023 (arXiv 2204.13902); Liu et al. 2024
(arXiv 2312.07243).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from scoreline.core.errors import InputError

__all__ = ["ADAMS_BASHFORTH", "LeastSteps", "difference_weights", "lagrange", "lagrange_integrals", "phi"]
__all__ += ["taylor_weights"]

# Weights of the newest value and of those before it, for even steps; degree 0 to 3.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)

_SERIES = 2.0  # |z| below which the Taylor series is used; the recursion loses digits there
_TERMS = 26
_LARGEST = 709.0  # e^z overflows above


class LeastSteps:
    """`min_steps` of a sampler whose order is a setting: 1 on the class, `_least()` on an instance."""

    def __get__(self, sampler: Any, owner: type) -> int:
        return 1 if sampler is None else sampler._least()


def phi(k: int, z: Any) -> Any:
    """phi_0 = e^z, phi_1(z) = (e^z - 1)/z, phi_{k+1}(z) = (phi_k(z) - 1/k!)/z; phi_k(0) = 1/k!.

    Args:
        k: 0, 1, 2, ...
        z: float or array; -inf gives 0, +inf gives inf.

    Returns:
        A float for a float, float64 array of the same shape for an array.

    Raises:
        InputError: k is negative.

    >>> phi(1, 0.0), phi(3, 0.0) == 1 / 6, phi(2, -math.inf)
    (1.0, True, 0.0)
    """
    if k < 0:
        raise InputError("k", k, "phi functions are numbered from 0")
    if isinstance(z, np.ndarray):
        return np.array([_phi(k, float(v)) for v in z.ravel()]).reshape(z.shape)
    return _phi(k, float(z))


def _phi(k: int, z: float) -> float:
    if math.isnan(z) or z == math.inf:
        return z
    if z == -math.inf:
        return 0.0
    if abs(z) < _SERIES:
        value = 0.0
        for n in range(_TERMS, -1, -1):
            value = value * z + 1.0 / math.factorial(n + k)
        return value
    if z > _LARGEST:
        return math.inf
    value = math.exp(z) if k == 0 else math.expm1(z) / z
    for j in range(1, k):
        value = (value - 1.0 / math.factorial(j)) / z
    return value


def lagrange(nodes: Sequence[float] | np.ndarray, at: Any) -> np.ndarray:
    """Lagrange basis: L_j(u) = prod_{m != j} (u - u_m)/(u_j - u_m).

    Args:
        nodes: (n,) distinct u_j.
        at: (...) points u.

    Returns:
        (n, ...) values L_j(u).

    >>> lagrange([0.0, 1.0], 0.25).tolist()
    [0.75, 0.25]
    """
    nodes, at = np.asarray(nodes, dtype=np.float64), np.asarray(at, dtype=np.float64)
    out = np.ones((len(nodes), *at.shape))
    for j, own in enumerate(nodes):
        for m, other in enumerate(nodes):
            if m != j:
                out[j] *= (at - other) / (own - other)
    return out


@lru_cache(maxsize=8)
def _gauss(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    u, w = np.polynomial.legendre.leggauss(points)
    return 0.5 * (u + 1), 0.5 * w


def lagrange_integrals(
    nodes: Sequence[float] | np.ndarray,
    low: float,
    high: float,
    *,
    of: Callable[[np.ndarray], np.ndarray] | None = None,
    weight: Callable[[np.ndarray], np.ndarray] | None = None,
    points: int = 32,
) -> np.ndarray:
    """I_j = int_low^high L_j(of(u)) weight(u) du by Gauss-Legendre quadrature; exact for polynomials.

    Args:
        nodes: (n,) distinct values of the interpolation variable of(u).
        low, high: ends of the integration variable u; high may be below low.
        of: smooth map from u to the interpolation variable; None is u itself.
        weight: smooth factor; None is 1.
        points: quadrature nodes.

    Returns:
        (n,) integrals; their sum is the integral of the weight.

    >>> lagrange_integrals([0.0, -1.0], 0.0, 1.0).round(12).tolist()
    [1.5, -0.5]
    """
    at, weights = _gauss(points)
    u = low + (high - low) * at
    weights = weights if weight is None else weights * weight(u)
    return (high - low) * (lagrange(nodes, u if of is None else of(u)) @ weights)


def taylor_weights(h: float, order: int, *, prediction: str = "data") -> np.ndarray:
    """h^{k+1} phi_{k+1}(-h) (data) or h^{k+1} phi_{k+1}(h) (noise) for k = 0 ... order - 1.

    They are the integrals int_0^h e^{-(h-u)} u^k/k! du (data) and int_0^h e^{h-u} u^k/k! du (noise).

    Args:
        h: step in lambda.
        order: number of weights.
        prediction: "data" or "noise".
    """
    z = h if prediction == "noise" else -h
    return np.array([h ** (k + 1) * phi(k + 1, z) for k in range(order)])


def difference_weights(offsets: Sequence[float] | np.ndarray, derivative: int) -> np.ndarray:
    """a_p with F^(k)(s) ~ sum_p a_p (F_p - F_s):  sum_p a_p delta_p^i / i! = [i = k] for i = 1 ... m.

    Args:
        offsets: (m,) delta_p = lambda_p - lambda_s, distinct and not zero.
        derivative: k, 1 ... m.

    Returns:
        (m,) weights.

    Raises:
        InputError: k needs more points than there are.

    >>> difference_weights([-0.5], 1).tolist()
    [-2.0]
    """
    delta = np.asarray(offsets, dtype=np.float64)
    m = len(delta)
    if not 1 <= derivative <= m:
        raise InputError("derivative", derivative, f"{m} differences give derivatives 1 to {m}")
    # In units of the largest offset, so that the system is well scaled whatever the step.
    scale = np.abs(delta).max()
    powers = np.arange(1, m + 1)
    matrix = (delta / scale) ** powers[:, None]
    right = np.where(powers == derivative, math.factorial(derivative) / scale**derivative, 0.0)
    return np.linalg.solve(matrix, right)
