"""scoreline makes image generators fast and proves that they are still good.

The names below are loaded when they are first used, so that `import scoreline` takes no time and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoreline.core.cond import Cond
    from scoreline.core.load import load
    from scoreline.core.noise import Noise
    from scoreline.samplers.ancestral import Ancestral
    from scoreline.samplers.ddim import DDIM
    from scoreline.samplers.ddpm import DDPM
    from scoreline.samplers.dpm_solver_pp import DPMSolverPP2M, DPMSolverPP3M
    from scoreline.samplers.euler import Euler
    from scoreline.samplers.heun import Heun

__version__ = "0.1.0"

_HOMES = {
    "Ancestral": "scoreline.samplers.ancestral",
    "Cond": "scoreline.core.cond",
    "DDIM": "scoreline.samplers.ddim",
    "DDPM": "scoreline.samplers.ddpm",
    "DPMSolverPP2M": "scoreline.samplers.dpm_solver_pp",
    "DPMSolverPP3M": "scoreline.samplers.dpm_solver_pp",
    "Euler": "scoreline.samplers.euler",
    "Heun": "scoreline.samplers.heun",
    "Noise": "scoreline.core.noise",
    "load": "scoreline.core.load",
}

__all__ = [
    "Ancestral",
    "Cond",
    "DDIM",
    "DDPM",
    "DPMSolverPP2M",
    "DPMSolverPP3M",
    "Euler",
    "Heun",
    "Noise",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scoreline' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
