"""The metrics on features as torchmetrics classes: update batch by batch, sync across processes, reset, save.

Each class calls the pure function of its formula when it computes. The Frechet distance streams in bounded memory; the
others need all features at once and keep them (in the dtype they come in), 50,000 x 2048 float32 being 400 MB.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from scoreline.core.errors import InputError
from scoreline.core.moments import Moments, check_features
from scoreline.metrics.cmmd import cmmd
from scoreline.metrics.frechet import Method, frechet_distance
from scoreline.metrics.inception_score import Mode, inception_score
from scoreline.metrics.kid import Estimator, kernel_distance
from scoreline.metrics.prdc import prdc

__all__ = ["CMMD", "FrechetDistance", "InceptionScore", "KernelDistance", "PrecisionRecallDensityCoverage"]


def _pack(moments: Moments) -> Tensor:
    """One (d + 1, d + 1) matrix [[scatter, mean], [mean^T, n]], so that a process syncs one tensor."""
    packed = torch.zeros(moments.dim + 1, moments.dim + 1, dtype=torch.float64, device=moments.mean.device)
    packed[:-1, :-1] = moments.scatter
    packed[:-1, -1] = packed[-1, :-1] = moments.mean
    packed[-1, -1] = moments.count
    return packed


def _unpack(packed: Tensor) -> Moments:
    return Moments.from_tensors({"count": packed[-1, -1], "mean": packed[:-1, -1], "scatter": packed[:-1, :-1]})


def _merge_packed(stacked: Tensor) -> Tensor:
    """The reduction torchmetrics applies to (processes, d + 1, d + 1)."""
    merged = _unpack(stacked[0])
    for other in stacked[1:]:
        merged.merge(_unpack(other))
    return _pack(merged)


class FrechetDistance(Metric):
    """Streaming :func:`scoreline.metrics.frechet_distance`; the state is two float64 moments, whatever the count.

    Args:
        dim: d, length of the feature vectors.
        method: the Frechet route.
        keep_real: whether :meth:`reset` keeps the moments of the real images.

    Raises:
        InputError: features of another dimension, or not finite; fewer than two rows on either side at compute.

    >>> fid = FrechetDistance(1)
    >>> fid.update(real=torch.tensor([[0.0], [2.0]]), generated=torch.tensor([[5.0], [9.0]]))
    >>> round(fid.compute().item(), 6)
    38.0
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    real: Tensor
    generated: Tensor

    def __init__(self, dim: int, *, method: Method = "symmetric", keep_real: bool = False) -> None:
        super().__init__()
        self.dim, self.method, self.keep_real = dim, method, keep_real
        empty = _pack(Moments(dim))
        self.add_state("real", empty.clone(), dist_reduce_fx=_merge_packed)
        self.add_state("generated", empty.clone(), dist_reduce_fx=_merge_packed)

    def update(self, real: Tensor | None = None, generated: Tensor | None = None) -> None:
        """Add (N, d) real features, (M, d) generated features, or both."""
        _check_given(real, generated)
        for name, features in (("real", real), ("generated", generated)):
            if features is not None:  # both are looked at before either is added
                check_features(features, name, dim=self.dim, least=0)
        if real is not None:
            self.real = _pack(_unpack(self.real).update(real))
        if generated is not None:
            self.generated = _pack(_unpack(self.generated).update(generated))

    def compute(self) -> Tensor:
        """The distance of everything seen, as a float64 scalar."""
        distance = frechet_distance(_unpack(self.real), _unpack(self.generated), method=self.method)
        return torch.tensor(distance, dtype=torch.float64, device=self.real.device)

    def moments(self, side: Literal["real", "generated"]) -> Moments:
        """The moments of one side, for saving as reference statistics."""
        return _unpack(self.real if side == "real" else self.generated)

    def reset(self) -> None:
        """Forget what was seen; the real side is kept with `keep_real`."""
        real = self.real
        super().reset()
        if self.keep_real:
            self.real = real


class _KeepsFeatures(Metric):
    """State of the metrics that need every feature vector: two lists, concatenated across processes."""

    is_differentiable = False
    full_state_update = False

    real: list[Tensor]
    generated: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, real: Tensor | None = None, generated: Tensor | None = None) -> None:
        """Keep (N, d) real features, (M, d) generated features, or both."""
        _check_given(real, generated)
        for name, features in (("real", real), ("generated", generated)):
            if features is not None:
                check_features(features, name, least=0)
        if real is not None:
            self.real.append(real.detach())
        if generated is not None:
            self.generated.append(generated.detach())

    def sets(self) -> tuple[Tensor, Tensor]:
        """All real and all generated features."""
        for name, kept in (("real", self.real), ("generated", self.generated)):
            if len(kept) == 0:
                raise InputError(name, "no features", f"call update({name}=...) before compute()")
        return dim_zero_cat(self.real), dim_zero_cat(self.generated)


class KernelDistance(_KeepsFeatures):
    """Streaming :func:`scoreline.metrics.kernel_distance`; keeps all features, since subsets are drawn at the end.

    Args:
        mode, subsets, subset_size, estimator, seed: as for the function.
    """

    higher_is_better = False

    def __init__(
        self,
        *,
        mode: Literal["torch-fidelity", "clean-fid"] = "torch-fidelity",
        subsets: int = 100,
        subset_size: int = 1000,
        estimator: Estimator = "unbiased",
        seed: int = 2020,
    ) -> None:
        super().__init__()
        self.mode, self.estimator = mode, estimator
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    def compute(self) -> dict[str, Tensor]:
        """{"mean", "std"} over the subsets."""
        real, generated = self.sets()
        spread = kernel_distance(
            real,
            generated,
            mode=self.mode,
            subsets=self.subsets,
            subset_size=self.subset_size,
            estimator=self.estimator,
            seed=self.seed,
        )
        return _tensors({"mean": spread.mean, "std": spread.std}, real)


class PrecisionRecallDensityCoverage(_KeepsFeatures):
    """Streaming :func:`scoreline.metrics.prdc`; keeps all features, since every pair of points is compared.

    Args:
        mode, k, strict: as for the function.
    """

    higher_is_better = True

    def __init__(
        self, *, mode: Literal["prdc", "kynkaanniemi"] = "prdc", k: int | None = None, strict: bool | None = None
    ) -> None:
        super().__init__()
        self.mode, self.k, self.strict = mode, k, strict

    def compute(self) -> dict[str, Tensor]:
        """{"precision", "recall", "density", "coverage"}."""
        real, generated = self.sets()
        return _tensors(prdc(real, generated, mode=self.mode, k=self.k, strict=self.strict)._asdict(), real)


class CMMD(_KeepsFeatures):
    """Streaming :func:`scoreline.metrics.cmmd`; keeps all embeddings, since every pair of them is compared.

    Args:
        sigma, scale, normalise: as for the function.
    """

    higher_is_better = False

    def __init__(self, *, sigma: float = 10.0, scale: float = 1000.0, normalise: bool = True) -> None:
        super().__init__()
        self.sigma, self.scale, self.normalise = sigma, scale, normalise

    def compute(self) -> Tensor:
        """CMMD of everything seen, as a float64 scalar."""
        real, generated = self.sets()
        value = cmmd(real, generated, sigma=self.sigma, scale=self.scale, normalise=self.normalise)
        return torch.tensor(value, dtype=torch.float64, device=real.device)


class InceptionScore(Metric):
    """Streaming :func:`scoreline.metrics.inception_score`; keeps all logits, since they are shuffled at the end.

    Args:
        mode, splits, chunk, seed: as for the function.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    logits: list[Tensor]

    def __init__(
        self, *, mode: Mode = "torch-fidelity", splits: int = 10, chunk: int = 5000, seed: int | None = 2020
    ) -> None:
        super().__init__()
        self.mode, self.splits, self.chunk, self.seed = mode, splits, chunk, seed
        self.add_state("logits", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor) -> None:
        """Keep (N, C) logits of generated images."""
        check_features(logits, "logits", least=0)
        self.logits.append(logits.detach())

    def compute(self) -> dict[str, Tensor]:
        """{"mean", "std"} over the splits."""
        if len(self.logits) == 0:
            raise InputError("logits", "none", "call update(logits) before compute()")
        logits = dim_zero_cat(self.logits)
        spread = inception_score(logits, mode=self.mode, splits=self.splits, chunk=self.chunk, seed=self.seed)
        return _tensors({"mean": spread.mean, "std": spread.std}, logits)


def _tensors(values: dict[str, Any], like: Tensor) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64, device=like.device) for name, value in values.items()}


def _check_given(real: Tensor | None, generated: Tensor | None) -> None:
    if real is None and generated is None:
        raise InputError("update", None, "pass real=, generated= or both")
