"""How methods are trained: `fit()` without files, `run()` with folders, checkpoints and processes."""

from scoreline.train.fit import Trained, fit
from scoreline.train.resolve import resolve
from scoreline.train.run import run
from scoreline.train.stages import stage

__all__ = ["Trained", "fit", "resolve", "run", "stage"]
