"""Features, images or scores in, numbers out: pure functions, and torchmetrics classes where states stream."""

from __future__ import annotations

from typing import Any

# Imported now, not on first use: several functions bear the name of their file, and importing a file later would put
# the module in the function's place.
from scoreline.metrics.clip_score import clip_score
from scoreline.metrics.cmmd import cmmd
from scoreline.metrics.fid_infinity import fid_infinity
from scoreline.metrics.frechet import frechet_distance, frechet_distance_from_statistics
from scoreline.metrics.frechet_intervals import frechet_influence, frechet_interval, paired_frechet_difference
from scoreline.metrics.image_quality import pairwise_diversity, psnr, ssim
from scoreline.metrics.inception_score import inception_score
from scoreline.metrics.intervals import (
    mean_interval,
    metric_interval,
    metric_intervals,
    paired_difference,
    paired_metric_difference,
)
from scoreline.metrics.kid import kernel_distance, polynomial_mmd
from scoreline.metrics.prdc import prdc

# looked up on first use, because torchmetrics takes seconds to import
_STREAMING = ("CMMD", "FrechetDistance", "InceptionScore", "KernelDistance", "PrecisionRecallDensityCoverage")

__all__ = [
    "clip_score",
    "cmmd",
    "fid_infinity",
    "frechet_distance",
    "frechet_distance_from_statistics",
    "frechet_influence",
    "frechet_interval",
    "inception_score",
    "kernel_distance",
    "mean_interval",
    "metric_interval",
    "metric_intervals",
    "paired_difference",
    "paired_frechet_difference",
    "paired_metric_difference",
    "pairwise_diversity",
    "polynomial_mmd",
    "prdc",
    "psnr",
    "ssim",
    *_STREAMING,
]


def __getattr__(name: str) -> Any:
    if name not in _STREAMING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scoreline.metrics import streaming

    return getattr(streaming, name)


def __dir__() -> list[str]:
    return __all__
