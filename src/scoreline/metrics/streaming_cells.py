"""The confusion counts at fixed thresholds as a torchmetrics class: four whole numbers a threshold, for any count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from scoreline.core.errors import InputError
from scoreline.metrics.binary_curves import Cells, confusion
from scoreline.metrics.imbalance import cell_metrics, metric_named

__all__ = ["ConfusionCells"]


class ConfusionCells(Metric):
    """Streaming :func:`scoreline.metrics.binary_curves.confusion`, and the metrics of the summed cells.

    F1 of pooled cells is not the mean of F1 over batches or folds; here it is the former.

    Args:
        thresholds: (K,), predict 1 when score >= threshold.
        names: metrics of the cells; nothing takes all.
        zero_division: what 0/0 counts as.

    Raises:
        InputError: no threshold or NaN among them, an unknown metric; labels or scores that do not fit.

    >>> metric = ConfusionCells([0.5], ["f1"])
    >>> metric.update(torch.tensor([0.9, 0.6]), torch.tensor([1, 0]))
    >>> metric.update(torch.tensor([0.4]), torch.tensor([1]))
    >>> metric.compute()["f1"].item()
    0.5
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: Tensor

    def __init__(
        self, thresholds: Sequence[float] | Tensor, names: Sequence[str] | None = None, *, zero_division: float = 0.0
    ) -> None:
        super().__init__()
        at = torch.as_tensor(thresholds, dtype=torch.float64).flatten()
        if at.numel() == 0 or torch.isnan(at).any():
            raise InputError("thresholds", at.tolist()[:5], "give at least one number; inf predicts no positive")
        for name in names or ():
            metric_named(name)
        self.thresholds = at
        self.names = None if names is None else list(names)
        self.zero_division = zero_division
        self.add_state("counts", torch.zeros(4, len(at), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add rows: scores and labels (bool, or 0 and 1) of one shape; no row at all is allowed."""
        if torch.as_tensor(scores).numel() == 0 and torch.as_tensor(labels).numel() == 0:
            return
        self.counts = self.counts + torch.stack(confusion(scores, labels, self.thresholds)).to(self.counts.device)

    @property
    def cells(self) -> Cells:
        """The counts so far, (K,) int64 each."""
        return Cells(*self.counts)

    def compute(self) -> dict[str, Tensor]:
        """metric -> (K,) float64 of all rows seen; a single number where there is one threshold."""
        return cell_metrics(self.cells, self.names, zero_division=self.zero_division)
