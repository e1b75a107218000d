"""Features, images or scores in, numbers out: pure functions, and torchmetrics classes where states stream."""

from __future__ import annotations

import importlib
from typing import Any

# name -> module; the classes import torchmetrics, which is slow, so that everything here is looked up on first use
_HOMES = {
    "frechet_distance": "frechet",
    "frechet_distance_from_statistics": "frechet",
    "fid_infinity": "fid_infinity",
    "kernel_distance": "kid",
    "polynomial_mmd": "kid",
    "inception_score": "inception_score",
    "prdc": "prdc",
    "mean_interval": "intervals",
    "paired_difference": "intervals",
    "frechet_interval": "intervals",
    "FrechetDistance": "streaming",
    "KernelDistance": "streaming",
    "InceptionScore": "streaming",
    "PrecisionRecallDensityCoverage": "streaming",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
