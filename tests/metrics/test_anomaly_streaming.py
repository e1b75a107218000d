"""The scores of anomaly maps as torchmetrics: batches and order do not matter, state is saved, merged and reset."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torchmetrics import Metric

from scoreline.core.errors import InputError
from scoreline.metrics.anomaly_streaming import AUPIMO, AUPRO, PIMO, PixelAUROC
from scoreline.metrics.aupimo import aupimo, pimo_curves
from scoreline.metrics.pixel_curves import aupro, auroc

G = torch.Generator().manual_seed(0)
MASKS = torch.zeros(12, 32, 32, dtype=torch.bool)
MASKS[7:, 4:12, 6:20] = True
MAPS = torch.randn(12, 32, 32, generator=G) + 2.5 * MASKS
BOUNDS = (2e-3, 2e-2)

KINDS: dict[str, tuple[Callable[[], Metric], Callable[[], float]]] = {
    "auroc": (PixelAUROC, lambda: auroc(MAPS, MASKS)),
    "aupro": (lambda: AUPRO(fpr_limit=0.2), lambda: aupro(MAPS, MASKS, fpr_limit=0.2)),
    "aupro, authors": (
        lambda: AUPRO(convention="authors", positions=50),
        lambda: aupro(MAPS, MASKS, convention="authors", positions=50),
    ),
    "aupimo": (
        lambda: AUPIMO(num_thresholds=4000, fpr_bounds=BOUNDS),
        lambda: aupimo(MAPS, MASKS, 4000, fpr_bounds=BOUNDS).mean,
    ),
    "aupimo, exact": (
        lambda: AUPIMO(fpr_bounds=BOUNDS, route="exact"),
        lambda: aupimo(MAPS, MASKS, fpr_bounds=BOUNDS, route="exact").mean,
    ),
}


def fed(metric: Metric, order: torch.Tensor, batch: int) -> Metric:
    for maps, masks in zip(MAPS[order].split(batch), MASKS[order].split(batch)):
        metric.update(maps, masks)
    return metric


@pytest.mark.filterwarnings("ignore:AUPIMO")
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_its_function_whatever_the_batches(kind: str) -> None:
    make, expected = KINDS[kind]
    for order, batch in ((torch.arange(12), 12), (torch.arange(12).flip(0), 5)):
        value = fed(make(), order, batch).compute()
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(expected(), rel=1e-12)
    assert make().higher_is_better is True


@pytest.mark.filterwarnings("ignore:AUPIMO", "ignore:The ``compute`` method")
@pytest.mark.parametrize("kind", KINDS)
def test_state_is_saved_and_reset_empties_it(kind: str) -> None:
    make, expected = KINDS[kind]
    metric = fed(make(), torch.arange(12), 4)
    metric.persistent(True)
    fresh = make()
    fresh.persistent(True)
    fresh.load_state_dict(metric.state_dict())
    assert fresh.compute().item() == pytest.approx(expected(), rel=1e-12)
    metric.reset()
    with pytest.raises(InputError, match=r"call update"):
        metric.compute()
    assert fed(metric, torch.arange(12), 3).compute().item() == pytest.approx(expected(), rel=1e-12)


def test_scores_by_image_on_request() -> None:
    metric = fed(AUPIMO(fpr_bounds=BOUNDS, route="exact", return_average=False), torch.arange(12), 5)
    result = metric.compute()
    assert result.classes.tolist() == [False] * 7 + [True] * 5  # not inverted
    assert torch.equal(result.scores.isnan(), ~result.classes)


@pytest.mark.parametrize("spacing", ["linear", "log-fpr"])
def test_curves_are_those_of_the_function(spacing) -> None:
    found = fed(PIMO(40, spacing=spacing), torch.arange(12), 5).compute()
    for a, b in zip(found, pimo_curves(MAPS, MASKS, 40, spacing=spacing)):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


def test_two_halves_merge_into_the_whole() -> None:
    first, second = PixelAUROC(), PixelAUROC()
    first.update(MAPS[:5], MASKS[:5])
    second.update(MAPS[5:], MASKS[5:])
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(auroc(MAPS, MASKS), rel=1e-12)


def test_bad_batches_are_refused_and_leave_no_trace() -> None:
    metric = fed(PixelAUROC(), torch.arange(12), 6)
    before = metric.compute()
    for maps, masks in [
        (MAPS[:2] * torch.nan, MASKS[:2]),
        (MAPS[:2].long(), MASKS[:2]),
        (MAPS[:2, :16], MASKS[:2, :16]),
        (MAPS[:2], MASKS[:2].float()),
    ]:
        with pytest.raises(InputError):
            metric.update(maps, masks)
    metric.update(MAPS[:0], MASKS[:0])
    assert len(metric.maps) == 2
    metric._computed = None
    assert metric.compute() == before
