"""Recipes with stages: each stage leaves one artefact, and a killed recipe goes on in the first unfinished one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from scoreline.core.artefact import load_artefact, save_artefact

__all__ = ["stage"]


def stage(path: str | os.PathLike[str], make: Callable[[], nn.Module]) -> Any:
    """What a finished stage left in `path`, or what `make` makes now, stored there.

    The result is read back from the file in both cases, so that what follows never sees which case it was. A `make`
    that calls :func:`scoreline.train.run.run` goes on where it was killed; one that calls `fit` starts that stage anew.

    Args:
        path: the artefact, ending in .safetensors.
        make: makes the module; its class stands in the table of names.

    Returns:
        The module, in evaluation mode, on the CPU.
    """
    if not Path(path).exists():
        save_artefact(path, make())
    return load_artefact(path)[0]
