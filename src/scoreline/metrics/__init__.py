"""Features, images or scores in, numbers out: pure functions, and torchmetrics classes where states stream."""

from __future__ import annotations

import importlib
from typing import Any

# Imported now, not on first use: several functions bear the name of their file, and importing a file later would put
# the module in the function's place.
from scoreline.metrics.aupimo import aupimo, pimo_curves
from scoreline.metrics.binary_curves import auroc, average_precision
from scoreline.metrics.clip_score import clip_score
from scoreline.metrics.cmmd import cmmd
from scoreline.metrics.fid_infinity import fid_infinity
from scoreline.metrics.frechet import frechet_distance, frechet_distance_from_statistics
from scoreline.metrics.frechet_intervals import frechet_influence, frechet_interval, paired_frechet_difference
from scoreline.metrics.image_quality import pairwise_diversity, psnr, ssim
from scoreline.metrics.imbalance import cell_metrics
from scoreline.metrics.inception_score import inception_score
from scoreline.metrics.intervals import (
    mean_interval,
    metric_interval,
    metric_intervals,
    paired_difference,
    paired_metric_difference,
)
from scoreline.metrics.kid import kernel_distance, polynomial_mmd
from scoreline.metrics.pixel_curves import aupro
from scoreline.metrics.prdc import prdc

# looked up on first use, because torchmetrics takes seconds to import
_STREAMING = {
    "streaming": ("CMMD", "FrechetDistance", "InceptionScore", "KernelDistance", "PrecisionRecallDensityCoverage"),
    "anomaly_streaming": ("AUPIMO", "AUPRO", "PIMO", "PixelAUROC"),
    "streaming_cells": ("ConfusionCells",),
}
_FILE_OF = {name: file for file, names in _STREAMING.items() for name in names}

__all__ = [
    "aupimo",
    "aupro",
    "auroc",
    "average_precision",
    "cell_metrics",
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
    "pimo_curves",
    "polynomial_mmd",
    "prdc",
    "psnr",
    "ssim",
    *_FILE_OF,
]


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"scoreline.metrics.{_FILE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
