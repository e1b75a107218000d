"""Frechet distance between two sets of feature vectors (FID, sFID, FD-DINOv2, fd-pixel: it depends on the features).

FD = |mu_r - mu_g|^2 + tr S_r + tr S_g - 2 tr (S_r S_g)^{1/2}        (Heusel et al. 2017, 1706.08500; S with ddof 1)

Only the trace of the root is needed, and with any factors S_r = A A^T, S_g = B B^T

    tr (S_r S_g)^{1/2} = sum_i sqrt lambda_i(A^T S_g A) = |A^T B|_*     (the nuclear norm)

which is real whatever the ranks. Other codes take the root of the non-symmetric product instead; their routes are kept
as modes, so that their numbers can be reproduced.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError, NonFiniteError, unknown_name
from scoreline.core.moments import Moments, check_features

__all__ = ["METHODS", "frechet_distance", "frechet_distance_from_statistics", "trace_of_root"]

Method = Literal["symmetric", "sqrtm", "sqrtm-clean", "eigvals"]
METHODS = ("symmetric", "sqrtm", "sqrtm-clean", "eigvals")

_EPS = torch.finfo(torch.float64).eps
# The eigenvalue route is left for the singular-value route when its error bound, relative to tr S_r + tr S_g, is above:
_TOLERANCE = 1e-8


def frechet_distance(
    real: Tensor | Moments, generated: Tensor | Moments, *, method: Method = "symmetric", eps: float = 1e-6
) -> float:
    """Frechet distance of two sets of features.

    FD = |mu_r - mu_g|^2 + tr S_r + tr S_g - 2 tr (S_r S_g)^{1/2}

    Not clipped: identical sets may give a tiny negative number. Fewer rows than dimensions give the exact value too
    (with "symmetric"), but FD of finite sets is biased upwards by about c/n, which a warning then recalls.

    Args:
        real: (N, d) features of the reference, any floating dtype, or their moments; N >= 2.
        generated: (M, d) features of the images that are judged, or their moments; M >= 2.
        method: how tr (S_r S_g)^{1/2} is computed.
            "symmetric": Cholesky or eigh factors, never complex; the default.
            "sqrtm": root of the product by SciPy, `eps` added to both diagonals when it is not finite; raises when
            the root's diagonal has an imaginary part above 1e-3 (TTUR, pytorch-fid).
            "sqrtm-clean": the same, but an imaginary part of any size is dropped (clean-fid).
            "eigvals": complex eigenvalues of the product, real parts of their roots (torch-fidelity, torchmetrics).
        eps: the rescue of both "sqrtm".

    Returns:
        The distance, in squared units of the features.

    Raises:
        InputError: shapes that do not fit, a single row, NaN or infinite features, an unknown method.
        NonFiniteError: "sqrtm" fails even after its rescue, or has an imaginary diagonal above 1e-3.

    Reference: Heusel et al. 2017, 1706.08500.

    >>> x = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [9.0]])
    >>> round(frechet_distance(*x), 9)  # (1 - 7)^2 + (sqrt 2 - sqrt 8)^2
    38.0
    """
    _check_method(method)
    a = _Gaussian.of(real, "real")
    b = _Gaussian.of(generated, "generated")
    if len(a.mean) != len(b.mean):
        raise InputError("generated", f"d = {len(b.mean)}", f"real features have d = {len(a.mean)}")
    for name, side in (("real", a), ("generated", b)):
        if side.rank < len(side.mean):
            warnings.warn(
                f"{name}: {side.rank + 1} rows in {len(side.mean)} dimensions: the covariance is rank "
                "deficient and the Frechet distance strongly biased upwards",
                UserWarning,
                stacklevel=2,
            )
    return _distance(a, b, method, eps)


def frechet_distance_from_statistics(
    mean_real: Tensor,
    cov_real: Tensor,
    mean_generated: Tensor,
    cov_generated: Tensor,
    *,
    method: Method = "symmetric",
    eps: float = 1e-6,
) -> float:
    """Frechet distance of two Gaussians.

    Args:
        mean_real, mean_generated: (d,).
        cov_real, cov_generated: (d, d) symmetric, positive semi-definite.
        method, eps: as for :func:`frechet_distance`.

    Returns:
        The distance; not clipped.

    Raises:
        InputError: shapes that do not fit, NaN, a covariance that is not symmetric.

    Reference: Heusel et al. 2017, 1706.08500.
    """
    _check_method(method)
    sides = []
    for name, mean, cov in (("real", mean_real, cov_real), ("generated", mean_generated, cov_generated)):
        d = mean_real.numel()
        if mean.shape != (d,) or cov.shape != (d, d):
            shapes = tuple(mean.shape), tuple(cov.shape)
            raise InputError(f"{name} statistics", shapes, f"expected ({d},), ({d}, {d})")
        if not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
            raise InputError(f"{name} statistics", "not finite", "mean or covariance hold NaN or infinities")
        mean, cov = mean.to(torch.float64), cov.to(torch.float64)
        if (cov - cov.T).abs().max() > 1e-5 * cov.abs().max():
            raise InputError(f"{name} covariance", "not symmetric", "a covariance equals its transpose")
        sides.append(_Gaussian(mean, (cov + cov.T) / 2, None, d))
    return _distance(sides[0], sides[1], method, eps)


def trace_of_root(cov_real: Tensor, cov_generated: Tensor) -> float:
    """tr (S_r S_g)^{1/2} of two (d, d) covariances by the symmetric route, in float64.

    Raises:
        InputError: shapes that do not fit.
    """
    d = len(cov_real)
    if cov_real.shape != (d, d) or cov_generated.shape != (d, d):
        raise InputError("covariances", (tuple(cov_real.shape), tuple(cov_generated.shape)), "two of (d, d) are needed")
    zero = torch.zeros(d, dtype=torch.float64, device=cov_real.device)
    return _symmetric(
        _Gaussian(zero, cov_real.to(torch.float64), None, d), _Gaussian(zero, cov_generated.to(torch.float64), None, d)
    )


@dataclass
class _Gaussian:
    """Mean with either a covariance or a thin factor F (d, n), S = F F^T; `rank` is the largest that S can have."""

    mean: Tensor
    covariance: Tensor | None
    thin: Tensor | None
    rank: int

    @classmethod
    def of(cls, source: Tensor | Moments, name: str) -> _Gaussian:
        if isinstance(source, Moments):
            if source.count < 2:
                raise InputError(name, f"{source.count} rows", "a covariance needs at least 2")
            return cls(source.mean, source.cov(), None, min(source.dim, source.count - 1))
        check_features(source, name, least=2)
        n, d = source.shape
        if n > d:
            moments = Moments(d, source.device).update(source)
            return cls(moments.mean, moments.cov(), None, min(d, n - 1))
        rows = source.detach().to(torch.float64)
        mean = rows.mean(dim=0)
        return cls(mean, None, (rows - mean).T / (n - 1) ** 0.5, n - 1)

    def cov(self) -> Tensor:
        if self.covariance is None:
            assert self.thin is not None
            self.covariance = self.thin @ self.thin.T
        return self.covariance

    def trace(self) -> Tensor:
        return self.thin.square().sum() if self.thin is not None else self.cov().trace()

    def cholesky(self) -> Tensor | None:
        """L with S = L L^T, or None where S is singular to working precision."""
        if self.rank < len(self.mean):
            return None
        lower, info = torch.linalg.cholesky_ex(self.cov())
        pivots = lower.diagonal().square()
        if info != 0 or pivots.min() <= len(pivots) * _EPS * self.cov().diagonal().max():
            return None
        return lower

    def factor(self, lower: Tensor | None) -> Tensor:
        """Some F (d, r) with S = F F^T and nothing of the null space in it."""
        if self.thin is not None:
            return self.thin
        if lower is not None:
            return lower
        w, q = torch.linalg.eigh(self.cov())
        # round-off of the null space would enter the sum of roots with its square root: 1e-16 becomes 1e-8
        keep = w > len(w) * _EPS * w[-1]
        return q[:, keep] * w[keep].sqrt()


def _distance(a: _Gaussian, b: _Gaussian, method: str, eps: float) -> float:
    device = a.mean.device
    b = _Gaussian(
        b.mean.to(device),
        None if b.covariance is None else b.covariance.to(device),
        None if b.thin is None else b.thin.to(device),
        b.rank,
    )
    shift = (a.mean - b.mean).square().sum()
    if method in ("sqrtm", "sqrtm-clean"):
        root = _sqrtm(a.cov(), b.cov(), eps, refuse_imaginary=method == "sqrtm")
    elif method == "eigvals":
        # a negative round-off eigenvalue has an imaginary root, and so adds nothing to the real part
        root = float(torch.linalg.eigvals(a.cov() @ b.cov()).sqrt().real.sum())
    else:
        root = _symmetric(a, b)
    return float(shift + a.trace() + b.trace()) - 2 * root


def _symmetric(a: _Gaussian, b: _Gaussian) -> float:
    lower_a = a.cholesky()
    if lower_a is not None and b.rank == len(b.mean):
        lam = torch.linalg.eigvalsh(_sandwich(lower_a, b.cov()))
        # eigvalsh errs by about eps max(lam) in each lam, hence by eps max(lam) / (2 sqrt lam) in its root
        bound = (_EPS * lam[-1] / (2 * lam.clamp(min=float(_EPS * lam[-1])).sqrt())).sum()
        if bound <= _TOLERANCE * (a.trace() + b.trace()):
            return float(lam.clamp(min=0).sqrt().sum())
    product = a.factor(lower_a).T @ b.factor(b.cholesky())
    return float(torch.linalg.svdvals(product).sum()) if product.numel() else 0.0


def _sandwich(lower: Tensor, cov: Tensor, *, blocks: int = 4) -> Tensor:
    """The lower triangle of L^T S L, L (d, d) lower triangular and S symmetric; what is above it is left 0.

    In blocks, so that neither the zeros of L nor the upper half of the product are multiplied: half of the work.
    """
    d = len(lower)
    cuts = [d * i // blocks for i in range(blocks + 1)]
    half = torch.empty_like(cov)
    for start, stop in itertools.pairwise(cuts):
        half[:, start:stop] = cov[:, start:] @ lower[start:, start:stop]
    product = torch.zeros_like(cov)
    for start, stop in itertools.pairwise(cuts):
        product[start:stop, :stop] = lower[start:, start:stop].T @ half[start:, :stop]
    return product


def _sqrtm(cov_real: Tensor, cov_generated: Tensor, eps: float, *, refuse_imaginary: bool) -> float:
    from scipy.linalg import sqrtm

    a, b = cov_real.cpu().numpy(), cov_generated.cpu().numpy()
    if len(a) == 1:  # scipy's sqrtm has failed on 1 x 1 products
        return float(np.sqrt(max(a[0, 0] * b[0, 0], 0.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "matrix is singular", which the rescue below is for
        root = sqrtm(a @ b)
        if not np.isfinite(root).all():
            offset = eps * np.eye(len(a))
            root = sqrtm((a + offset) @ (b + offset))
    if not np.isfinite(root).all():
        raise NonFiniteError("sqrtm", None, "the root of the product is not finite; use method='symmetric'")
    imaginary = np.abs(np.diagonal(root).imag).max()
    if refuse_imaginary and imaginary > 1e-3:
        raise NonFiniteError("sqrtm", float(imaginary), "imaginary part in the root; use method='symmetric'")
    return float(np.trace(root).real)


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
