"""The scores of anomaly maps as torchmetrics classes: update batch by batch, sync across processes, reset, save.

All of them need every pixel at once, so maps and masks are kept, on the host: a thousand maps of 256 x 256 are 260 MB.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from scoreline.core.errors import InputError
from scoreline.metrics.aupimo import FPR_BOUNDS, NUM_THRESHOLDS, AupimoResult, PimoCurves, Route, aupimo, pimo_curves
from scoreline.metrics.pixel_curves import Convention, aupro, auroc, maps_and_masks

__all__ = ["AUPIMO", "AUPRO", "PIMO", "PixelAUROC"]


class _KeepsMaps(Metric):
    """State: the maps and masks seen, two lists on the host, concatenated across processes."""

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False

    maps: list[Tensor]
    masks: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("maps", [], dist_reduce_fx="cat")
        self.add_state("masks", [], dist_reduce_fx="cat")

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Keep (B, H, W) maps, floating point, and their masks, bool or integers 0 and 1."""
        if len(maps) == 0 and len(masks) == 0:
            return
        maps_and_masks(maps, masks)
        if len(self.maps) and maps.shape[1:] != self.maps[0].shape[1:]:
            sizes = (tuple(maps.shape[1:]), tuple(self.maps[0].shape[1:]))
            raise InputError("maps", sizes, "all batches need one size; the functions take lists of different sizes")
        self.maps.append(maps.detach().cpu())
        self.masks.append(masks.detach().cpu().bool())

    def sets(self) -> tuple[Tensor, Tensor]:
        """All maps and all masks."""
        if len(self.maps) == 0:
            raise InputError("maps", "none", "call update(maps, masks) before compute()")
        return dim_zero_cat(self.maps), dim_zero_cat(self.masks)


class PixelAUROC(_KeepsMaps):
    """Streaming :func:`scoreline.metrics.pixel_curves.auroc` of all pixels, on raw scores."""

    def compute(self) -> Tensor:
        """The area under the ROC curve, as a float64 scalar."""
        return torch.tensor(auroc(*self.sets()), dtype=torch.float64)


class AUPRO(_KeepsMaps):
    """Streaming :func:`scoreline.metrics.pixel_curves.aupro`.

    Args:
        fpr_limit, convention, positions: as for the function.
    """

    def __init__(self, *, fpr_limit: float = 0.3, convention: Convention = "distinct", positions: int = 100) -> None:
        super().__init__()
        self.fpr_limit, self.convention, self.positions = fpr_limit, convention, positions

    def compute(self) -> Tensor:
        """The area under the per-region overlap curve, as a float64 scalar."""
        value = aupro(*self.sets(), fpr_limit=self.fpr_limit, convention=self.convention, positions=self.positions)
        return torch.tensor(value, dtype=torch.float64)


class PIMO(_KeepsMaps):
    """Streaming :func:`scoreline.metrics.aupimo.pimo_curves`.

    Args:
        num_thresholds, spacing: as for the function.
    """

    higher_is_better = None

    def __init__(
        self, num_thresholds: int = NUM_THRESHOLDS["plain"], *, spacing: Literal["linear", "log-fpr"] = "linear"
    ) -> None:
        super().__init__()
        self.num_thresholds, self.spacing = num_thresholds, spacing

    def compute(self) -> PimoCurves:
        """Thresholds, shared false-positive rates, recall by image, classes."""
        return pimo_curves(*self.sets(), self.num_thresholds, spacing=self.spacing)


class AUPIMO(_KeepsMaps):
    """Streaming :func:`scoreline.metrics.aupimo.aupimo`.

    Args:
        num_thresholds, fpr_bounds, route, force: as for the function.
        return_average: whether compute() gives the mean over anomalous images, or everything by image.

    >>> metric = AUPIMO(fpr_bounds=(0.01, 0.1), route="exact")
    >>> metric.update(torch.arange(100.0).view(1, 10, 10), torch.zeros(1, 10, 10, dtype=torch.bool))
    >>> metric.update(torch.full((1, 10, 10), 95.5), torch.ones(1, 10, 10, dtype=torch.bool))
    >>> round(metric.compute().item(), 3)
    0.398
    """

    def __init__(
        self,
        *,
        num_thresholds: int | None = None,
        fpr_bounds: tuple[float, float] = FPR_BOUNDS,
        route: Route = "plain",
        force: bool = False,
        return_average: bool = True,
    ) -> None:
        super().__init__()
        self.num_thresholds, self.fpr_bounds, self.route = num_thresholds, fpr_bounds, route
        self.force, self.return_average = force, return_average

    def compute(self) -> Tensor | AupimoResult:
        """The mean over anomalous images as a float64 scalar, or with return_average=False the whole result."""
        result = aupimo(
            *self.sets(), self.num_thresholds, fpr_bounds=self.fpr_bounds, route=self.route, force=self.force
        )
        return result.scores[result.classes].mean() if self.return_average else result
