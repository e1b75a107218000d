"""First and second moments of a stream of feature vectors, in float64, mergeable across batches and processes.

The state is (n, mean, scatter) with scatter = sum_i (x_i - mean)(x_i - mean)^T, merged by the pairwise formula of
Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979). Unlike the
raw sums (sum x, sum x x^T) it does not cancel when the mean is large against the spread.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scoreline.core.errors import InputError

__all__ = ["Moments", "check_features"]

# rows converted to float64 at once: 4096 x 2048 x 8 bytes = 64 MiB
_ROWS = 4096


_BLOCK = 65536


def check_features(features: Tensor, name: str = "features", *, dim: int | None = None, least: int = 1) -> None:
    """Refuse what is not a finite (N, D) matrix of feature vectors.

    Args:
        features: (N, D), any floating dtype.
        name: what the caller calls them ("real", "generated").
        dim: the D that is expected, or None for any.
        least: the smallest N that makes sense.

    Raises:
        InputError: wrong rank, no columns, wrong D, too few rows, not floating, or not finite.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise InputError(name, tuple(features.shape), "features are a matrix (N, D), one row an image")
    if not features.is_floating_point():
        raise InputError(name, str(features.dtype), "features are floating point numbers")
    if dim is not None and features.shape[1] != dim:
        raise InputError(name, tuple(features.shape), f"features of dimension {dim} are expected")
    if features.shape[0] < least:
        raise InputError(name, tuple(features.shape), f"at least {least} rows are needed")
    # In blocks: features may lie in a file that is larger than the memory.
    if not all(bool(torch.isfinite(block).all()) for block in features.split(_BLOCK)):
        raise InputError(name, "not finite", "some features are NaN or infinite; look at the images and the network")


class Moments:
    """Mean and covariance of a stream of feature vectors.

    n = n_a + n_b,  delta = mean_b - mean_a,
    mean = mean_a + delta n_b / n,  scatter = scatter_a + scatter_b + delta delta^T n_a n_b / n

    Args:
        dim: D, the length of a feature vector.
        device: where the sums are kept; it must know float64.

    Reference: Chan, Golub & LeVeque (1979).

    >>> moments = Moments(1).update(torch.tensor([[1.0], [3.0]])).update(torch.tensor([[5.0]]))
    >>> moments.count, moments.mean.item(), moments.cov().item()
    (3, 3.0, 4.0)
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        if dim < 1:
            raise InputError("dim", dim, "features have at least one dimension")
        self.dim = dim
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of a whole (N, D) matrix."""
        check_features(features)
        return cls(features.shape[1]).update(features)

    def update(self, features: Tensor) -> Moments:
        """Add the rows of a (N, D) matrix; returns self.

        Raises:
            InputError: the matrix is not finite, not floating or not of this dimension. Nothing has been added then.
        """
        check_features(features, dim=self.dim, least=0)
        for chunk in features.detach().split(_ROWS) if len(features) else ():
            rows = chunk.to(self.mean.device, torch.float64)
            mean = rows.mean(dim=0)
            centred = rows - mean
            self._absorb(len(rows), mean, centred.T @ centred)
        return self

    def merge(self, other: Moments) -> Moments:
        """Add what another stream has seen; returns self.

        Raises:
            InputError: the dimensions differ.
        """
        if other.dim != self.dim:
            raise InputError("dim", other.dim, f"moments of dimension {self.dim} merge only with their like")
        if other.count:
            self._absorb(other.count, other.mean.to(self.mean.device), other.scatter.to(self.mean.device))
        return self

    def _absorb(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.scatter = self.scatter + scatter + torch.outer(delta, delta) * (self.count * count / total)
        self.count = total

    def cov(self, ddof: int = 1) -> Tensor:
        """The (D, D) covariance scatter / (n - ddof), exactly symmetric.

        Raises:
            InputError: n <= ddof.
        """
        if self.count <= ddof:
            raise InputError("count", self.count, f"a covariance with ddof={ddof} needs at least {ddof + 1} rows")
        return (self.scatter + self.scatter.T) / (2 * (self.count - ddof))

    def to_tensors(self) -> dict[str, Tensor]:
        """The state as plain tensors: count () int64, mean (D,), scatter (D, D)."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Moments:
        """The inverse of :meth:`to_tensors`.

        Raises:
            InputError: a tensor is missing or of the wrong shape.
        """
        missing = sorted({"count", "mean", "scatter"} - tensors.keys())
        if missing:
            raise InputError("moments", missing, "these tensors are missing")
        mean, scatter, count = tensors["mean"], tensors["scatter"], int(tensors["count"])
        if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)) or count < 0:
            raise InputError("moments", (count, tuple(mean.shape), tuple(scatter.shape)), "expected n, (D,) and (D, D)")
        moments = cls(len(mean), mean.device)
        moments.count, moments.mean, moments.scatter = count, mean.to(torch.float64), scatter.to(torch.float64)
        return moments
