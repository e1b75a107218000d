"""AUROC, precision-recall and AUPRO against their definitions, written out slowly."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.metrics.pixel_curves import aupr, aupro, auroc, image_auroc

G = torch.Generator().manual_seed(0)


def blobs(n: int = 6, size: int = 24, coarse: bool = False) -> tuple[Tensor, Tensor]:
    """Maps that see their masks, with and without ties; two normal images, one with two regions."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(n, size, size, dtype=torch.bool)
    for i in range(2, n):
        masks[i, 3 : 5 + i, 4 : 9 + i] = True
    masks[3, 15:20, 15:18] = True
    maps = torch.randn(n, size, size, generator=generator) + 1.5 * masks
    return (maps * 2).round() / 2 if coarse else maps, masks


def slow_aupro(maps: Tensor, masks: Tensor, limit: float) -> float:
    """Every distinct score as a threshold, every region by itself."""
    from scipy.ndimage import label

    regions, outside = [], maps[~masks].double().numpy()
    for scores, mask in zip(maps.double().numpy(), masks.numpy()):
        labels, count = label(mask, np.ones((3, 3)))
        regions += [scores[labels == k + 1] for k in range(count)]
    x, y = [0.0], [0.0]
    for t in sorted(set(maps.flatten().tolist()), reverse=True):
        x.append(float((outside >= t).mean()))
        y.append(float(np.mean([(region >= t).mean() for region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(zip(x, y)):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


# AUROC


@pytest.mark.check(system=28, number=9)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_rank_sum_with_half_ties(rows: list[tuple[int, bool]]) -> None:
    from scipy.stats import rankdata

    scores, targets = np.array([s for s, _ in rows], float), np.array([t for _, t in rows])
    if targets.all() or not targets.any():
        return
    positive, negative = int(targets.sum()), int((~targets).sum())
    u = rankdata(scores)[targets].sum() - positive * (positive + 1) / 2
    got = auroc(torch.from_numpy(scores), torch.from_numpy(targets))
    assert got == pytest.approx(u / (positive * negative), rel=1e-14)


@pytest.mark.check(system=28, number=9)
def test_auroc_pools_all_pixels_and_takes_no_sigmoid() -> None:
    maps, masks = blobs(coarse=True)
    pairs = [(p > n) + 0.5 * (p == n) for p in maps[masks].tolist() for n in maps[~masks].tolist()[:400]]
    kept = torch.cat([maps[masks], maps[~masks][:400]])
    target = torch.arange(len(kept)) < int(masks.sum())
    assert auroc(kept, target) == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
    # Through a float32 sigmoid all of these would tie at 1.
    assert auroc(torch.tensor([40.0, 41.0]), torch.tensor([0, 1])) == 1.0
    assert auroc(maps, masks) == auroc(maps.flatten(), masks.flatten().long())


def test_image_auroc_takes_the_maximum_of_a_map() -> None:
    maps = torch.tensor([[[0.0, 0.6]], [[0.5, 0.0]], [[0.0, 0.7]]])
    masks = torch.tensor([[[0, 0]], [[1, 0]], [[1, 0]]])
    assert image_auroc(maps, masks) == 0.5


def test_aupr_steps_down_the_ranking() -> None:
    # Ranking + - + -, then a tie of one each: (1/3)(1) + (1/3)(2/3) + (1/3)(3/6)
    scores, target = torch.tensor([5.0, 4, 3, 2, 1, 1]), torch.tensor([1, 0, 1, 0, 1, 0])
    assert aupr(scores, target) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3, rel=1e-14)
    maps, masks = blobs(coarse=True)
    expected, before = 0.0, 0.0
    for t in sorted(set(maps.flatten().tolist()), reverse=True):
        found = masks[maps >= t]
        recall = float(found.sum() / masks.sum())
        expected += (recall - before) * float(found.double().mean())
        before = recall
    assert aupr(maps, masks) == pytest.approx(expected, rel=1e-5)


# AUPRO


@pytest.mark.check(system=28, number=8)
def test_aupro_of_constant_maps_and_of_a_perfect_ranking() -> None:
    _, masks = blobs()
    assert aupro(torch.zeros(6, 24, 24), masks) == pytest.approx(0.15, rel=1e-12)
    assert aupro(torch.zeros(6, 24, 24), masks, fpr_limit=1.0) == pytest.approx(0.5, rel=1e-12)
    for convention in ("distinct", "authors"):
        assert aupro(masks.float(), masks, convention=convention) == pytest.approx(1, rel=1e-12)
        assert aupro(0.1 * masks.float() + torch.rand(6, 24, 24, generator=G) * 0.09, masks) == pytest.approx(1)


@pytest.mark.check(system=28, number=8)
def test_squares_that_touch_at_a_corner_are_one_region() -> None:
    masks = torch.zeros(1, 12, 12, dtype=torch.int64)
    masks[0, 2:4, 2:4] = masks[0, 4:8, 4:8] = 1
    maps = torch.rand(1, 12, 12, generator=G) * 0.5
    maps[0, 4:8, 4:8] = 1.0  # the larger square alone is found
    maps[0, 2:4, 2:4] = -1.0
    assert aupro(maps, masks) == pytest.approx(16 / 20, rel=1e-12)
    masks[0, 4] = 0  # a row between them: two regions that weigh alike
    maps[0, 4, 4:8] = 0.25
    assert aupro(maps, masks) == pytest.approx(1 / 2, rel=1e-12)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_at_every_distinct_score(coarse: bool, limit: float) -> None:
    maps, masks = blobs(coarse=coarse)
    assert aupro(maps, masks, fpr_limit=limit) == pytest.approx(slow_aupro(maps, masks, limit), rel=1e-11)


@pytest.mark.parametrize("limit, positions", [(0.3, 100), (0.3, 7), (1.0, 100), (0.05, 30)])
def test_aupro_as_the_authors_script_places_thresholds(limit: float, positions: int) -> None:
    from scipy.ndimage import label

    maps, masks = blobs(coarse=True)
    outside = np.sort(maps[~masks].numpy())
    labelled = [label(mask, np.ones((3, 3)))[0] for mask in masks.numpy()]
    points = [(1.0, 1.0)]
    for at in np.linspace(0, len(outside) - 1, positions).astype(int):
        shares = [
            float((s.numpy()[names == k] > outside[at]).mean())
            for s, names in zip(maps, labelled)
            for k in range(1, names.max() + 1)
        ]
        points.append((1 - (at + 1) / len(outside), float(np.mean(shares))))
    x, y = zip(*sorted(points))
    fine = np.append(np.array(x)[np.array(x) < limit], limit)
    expected = np.trapezoid(np.interp(fine, x, y), fine) / limit
    got = aupro(maps, masks, fpr_limit=limit, convention="authors", positions=positions)
    assert got == pytest.approx(expected, rel=1e-12)
    assert got != pytest.approx(aupro(maps, masks, fpr_limit=limit), rel=1e-4)


def test_regions_weigh_alike_whatever_their_size() -> None:
    maps, masks = torch.zeros(2, 20, 20), torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[0, :10], masks[1, 5, 5] = True, True
    maps[1, 5, 5] = 1.0  # 1 of 201 masked pixels, 1 of 2 regions
    # (0, 0), (0, 1/2), then everything else at once up to (1, 1)
    assert aupro(maps, masks, fpr_limit=1.0) == pytest.approx(0.75, rel=1e-12)


def test_images_of_different_sizes_are_pooled() -> None:
    maps, masks = blobs()
    cut_maps, cut_masks = [*maps[:5], maps[5, :20, :17]], [*masks[:5], masks[5, :20, :17]]
    flat = torch.cat([m.flatten() for m in cut_maps]), torch.cat([m.flatten() for m in cut_masks])
    assert auroc(cut_maps, cut_masks) == auroc(*flat)
    assert 0.5 < aupro(cut_maps, cut_masks) < 1


@pytest.mark.parametrize("score", [auroc, aupr, aupro, image_auroc])
def test_what_is_refused(score) -> None:
    maps, masks = blobs()
    with pytest.raises(InputError, match=r"map of image 0 'int64': .*\.float\(\)"):
        score(maps.long(), masks)
    with pytest.raises(InputError, match="map of image 3: holds NaN"):
        score(torch.where(torch.arange(6)[:, None, None] == 3, torch.nan, maps), masks)
    with pytest.raises(InputError, match=r"mask of image 2 \[0, 255\]: .*mask > 0"):
        score(maps, masks * 255)
    with pytest.raises(InputError, match="masks are bool, or integers 0 and 1"):
        score(maps, masks.float())
    with pytest.raises(InputError, match=r"image 0.*differ in size"):
        score(maps, masks[:, :12])
    with pytest.raises(InputError, match="as many maps as masks"):
        score(maps, masks[:4])
    with pytest.raises(InputError, match="at least one"):
        score(maps[:2], masks[:2])
    with pytest.raises(InputError, match="at least one"):
        score(maps, torch.ones_like(masks))


def test_options_of_aupro_that_are_refused() -> None:
    maps, masks = blobs()
    for limit in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="fpr_limit"):
            aupro(maps, masks, fpr_limit=limit)
    with pytest.raises(InputError, match="did you mean 'authors'"):
        aupro(maps, masks, convention="author")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="positions"):
        aupro(maps, masks, convention="authors", positions=1)


def test_half_precision_maps_count_as_what_they_hold() -> None:
    maps, masks = blobs()
    assert aupro(maps.bfloat16(), masks) == aupro(maps.bfloat16().double(), masks)


def test_arrays_do_as_well_as_tensors_and_long_rows_are_one_image() -> None:
    maps, masks = blobs()
    assert auroc(maps.numpy(), masks.numpy()) == auroc(maps, masks)  # type: ignore[arg-type]
    assert aupro(maps.numpy(), masks.numpy()) == aupro(maps, masks)  # type: ignore[arg-type]
    scores = torch.rand(2_000_000, generator=G)
    start = time.process_time()
    assert auroc(scores, scores > 0.5) == 1.0
    assert time.process_time() - start < 2  # element by element it would take ten times as long
    with pytest.raises(InputError, match="differ in size"):
        auroc(scores[:5], torch.ones(4).bool())
