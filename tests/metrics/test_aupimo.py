"""AUPIMO: closed forms, invariances, the three routes against each other and against counting pixel by pixel."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.metrics.aupimo import (
    FPR_BOUNDS,
    ROUTES,
    PimoCurves,
    aupimo,
    aupimo_from_curves,
    pimo_curves,
    random_model_aupimo,
)
from scoreline.metrics.pixel_curves import aupro, auroc

BOUNDS = (1e-3, 1e-2)


def seven_levels() -> tuple[Tensor, Tensor]:
    """A normal image with Fsh = 1, 1e-1, ..., 1e-6 at 1 ... 7; copies with all, and with the top 100,000 masked."""
    counts = [900_000, 90_000, 9_000, 900, 90, 9, 1]
    image = torch.cat([torch.full((n,), float(level)) for level, n in enumerate(counts, 1)]).view(1000, 1000)
    masks = torch.zeros(3, 1000, 1000, dtype=torch.bool)
    masks[1] = True
    masks[2, 900:] = True
    return image.expand(3, 1000, 1000), masks


def defects(seed: int = 0, *, normal: int = 6, anomalous: int = 4, size: int = 64) -> tuple[Tensor, Tensor]:
    """Noise, with defects of different strength, sizes that differ, and a constant offset in one of them."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(normal + anomalous, size, size, generator=generator, dtype=torch.float64)
    masks = torch.zeros(normal + anomalous, size, size, dtype=torch.bool)
    for i in range(anomalous):
        masks[normal + i, 5 : 12 + 3 * i, 8 : 30 + i] = True
        maps[normal + i] += (1.0 + 0.9 * i) * masks[normal + i]
    return maps, masks


def slow(maps: Tensor, masks: Tensor, count: int, bounds: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Fsh, T and the scores, every pixel compared with every threshold."""
    empty = ~masks.flatten(1).any(1)
    t = torch.linspace(float(maps[empty].min()), float(maps[empty].max()), count, dtype=torch.float64)
    above = maps[None].double() >= t[:, None, None, None]
    fsh = above[:, empty].double().mean((2, 3)).mean(1).numpy()
    recall = ((above & masks).sum((2, 3)) / masks.sum((1, 2))).double().numpy()
    k_lo, k_hi = int(np.abs(fsh - bounds[1]).argmin()), int(np.abs(fsh - bounds[0]).argmin())
    z, y = np.log(fsh[k_lo : k_hi + 1])[::-1], recall[k_lo : k_hi + 1][::-1]
    area = ((z[1:] - z[:-1])[:, None] * (y[1:] + y[:-1]) / 2).sum(0) / math.log(bounds[1] / bounds[0])
    return fsh, recall.T, torch.from_numpy(area.clip(0, 1))


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AUPIMO")
        yield


# closed forms


@pytest.mark.check(system=28, number=1)
@pytest.mark.parametrize("route", ROUTES)
def test_seven_levels(route: str) -> None:
    maps, masks = seven_levels()
    count = 7 if route == "plain" else None
    for bounds, all_masked, top_masked in [
        ((1e-1, 1.0), 0.55, 1.0),
        ((1e-3, 1e-1), 0.03025, 0.3025),
        ((1e-5, 1e-4), 5.5e-5, 5.5e-4),
    ]:
        result = aupimo(maps, masks, count, fpr_bounds=bounds, route=route, force=True)  # type: ignore[arg-type]
        assert result.scores[1:].tolist() == pytest.approx([all_masked, top_masked], rel=1e-9)
        assert result.scores[0].isnan()
        assert result.classes.tolist() == [False, True, True]
        assert result.mean == pytest.approx((all_masked + top_masked) / 2, rel=1e-9)


@pytest.mark.check(system=28, number=1)
def test_curves_of_the_seven_levels() -> None:
    maps, masks = seven_levels()
    curves = pimo_curves(maps, masks, 7)
    levels = [10.0**-k for k in range(7)]
    assert curves.thresholds.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert curves.shared_fpr.tolist() == pytest.approx(levels, rel=1e-12)
    assert curves.per_image_tpr[1].tolist() == pytest.approx(levels, rel=1e-12)
    assert curves.per_image_tpr[2].tolist() == pytest.approx([min(1, 10 * v) for v in levels], rel=1e-12)
    assert curves.per_image_tpr[0].isnan().all()
    assert curves.per_image_tpr.dtype == curves.shared_fpr.dtype == torch.float64
    assert curves.thresholds.dtype == torch.float32


@pytest.mark.check(system=28, number=5)
def test_divisor_and_random_model() -> None:
    assert math.log(FPR_BOUNDS[1] / FPR_BOUNDS[0]) == pytest.approx(2.302585, abs=5e-7)
    assert random_model_aupimo() == pytest.approx(9e-5 / 2.302585, rel=1e-6)
    assert f"{random_model_aupimo():.4e}" == "3.9087e-05"
    # A defect that is scored as normal pixels are: T = F.
    image = torch.arange(10_000.0, dtype=torch.float64).view(100, 100)
    masks = torch.stack([torch.zeros(100, 100), torch.ones(100, 100)]).bool()
    for bounds in [(1e-2, 1e-1), (2e-3, 0.5)]:
        result = aupimo(torch.stack([image, image]), masks, fpr_bounds=bounds, route="exact")
        # The steps are joined over ln Fsh, not over Fsh: a little above, by less than a step.
        assert result.mean == pytest.approx(random_model_aupimo(bounds), rel=1e-3)


@pytest.mark.check(system=28, number=6)
def test_a_defect_above_every_normal_score() -> None:
    maps, masks = defects()
    maps[7][masks[7]] += 100
    for count in (500, 3000):
        result = aupimo(maps, masks, count, fpr_bounds=BOUNDS, force=True)
        assert (result.curves.per_image_tpr[7] == 1).all()
        low, high = result.reached
        expected = min(1.0, math.log(high / low) / math.log(10))
        assert result.scores[7].item() == pytest.approx(expected, rel=1e-12)
    # 24,576 normal pixels: the levels reached differ from those asked for, by less than the exact route's 1
    assert result.reached != BOUNDS
    assert aupimo(maps, masks, fpr_bounds=BOUNDS, route="exact").scores[7].item() == pytest.approx(1, rel=1e-12)


@pytest.mark.check(system=28, number=7)
def test_a_score_equal_to_a_threshold_is_positive() -> None:
    normal = torch.zeros(2, 4, 5)
    normal[0, 0, :3] = normal[1, 2, 2] = 1.0
    maps = torch.cat([normal, torch.ones(1, 4, 5)])
    masks = torch.zeros(3, 4, 5, dtype=torch.uint8)
    masks[2, 0, 0] = 1
    curves = pimo_curves(maps, masks, 2)
    assert curves.thresholds.tolist() == [0, 1]
    assert curves.shared_fpr.tolist() == [1.0, 4 / 40]
    assert curves.per_image_tpr[2].tolist() == [1.0, 1.0]


# laws


@pytest.mark.check(system=28, number=2)
@pytest.mark.parametrize("route", ROUTES)
def test_affine_maps_of_the_scores_change_nothing(route: str) -> None:
    maps, masks = defects()
    count = None if route == "exact" else 5000
    # A power of two and a sum that is exact: the very same thresholds.
    maps = (maps * 2**20).round() / 2**20
    before, after = (
        aupimo(m, masks, count, fpr_bounds=BOUNDS, route=route)  # type: ignore[arg-type]
        for m in (maps, 4 * maps + 8)
    )
    assert torch.equal(before.curves.shared_fpr, after.curves.shared_fpr)
    assert torch.equal(before.curves.per_image_tpr[6:], after.curves.per_image_tpr[6:])
    assert torch.equal(before.scores[6:], after.scores[6:])


@pytest.mark.check(system=28, number=2)
def test_other_monotone_maps_move_thresholds_only() -> None:
    maps, masks = defects()
    bent = maps.sinh()
    exact = aupimo(maps, masks, fpr_bounds=BOUNDS, route="exact").scores[6:]
    assert torch.equal(aupimo(bent, masks, fpr_bounds=BOUNDS, route="exact").scores[6:], exact)
    gaps = []
    for count in (300, 3000, 300_000):
        one, other = (aupimo(m, masks, count, fpr_bounds=BOUNDS, force=True).scores[6:] for m in (maps, bent))
        gaps.append(float((one - other).abs().max()))
    assert gaps[0] > 1e-4
    assert gaps[2] < 1e-5 < gaps[0]


@pytest.mark.check(system=28, number=3)
@pytest.mark.parametrize("route", ROUTES)
def test_pixels_outside_the_mask_of_an_anomalous_image_do_not_count(route: str) -> None:
    maps, masks = defects()
    count = 20_000 if route == "plain" else None
    noisy = maps.clone()
    noisy[6:][~masks[6:]] += 50.0
    for m in (noisy, maps.where(masks | (torch.arange(10) < 6)[:, None, None], -99.0)):
        a, b = (aupimo(x, masks, count, fpr_bounds=BOUNDS, route=route) for x in (maps, m))  # type: ignore[arg-type]
        assert torch.equal(a.scores[6:], b.scores[6:])
        assert torch.equal(a.curves.shared_fpr, b.curves.shared_fpr)
        assert auroc(maps, masks) != pytest.approx(auroc(m, masks), abs=1e-2)
        assert aupro(maps, masks) != pytest.approx(aupro(m, masks), abs=1e-2)


@pytest.mark.check(system=28, number=4)
@pytest.mark.parametrize("route", ROUTES)
def test_duplicated_normal_images_and_order(route: str) -> None:
    maps, masks = defects()
    count = 20_000 if route == "plain" else None
    plain = aupimo(maps, masks, count, fpr_bounds=BOUNDS, route=route)  # type: ignore[arg-type]
    twice = torch.cat([torch.arange(10), torch.arange(6)])
    again = aupimo(maps[twice], masks[twice], count, fpr_bounds=BOUNDS, route=route)  # type: ignore[arg-type]
    assert again.scores[6:10].tolist() == pytest.approx(plain.scores[6:].tolist(), rel=1e-12)
    assert again.classes.tolist() == [False] * 6 + [True] * 4 + [False] * 6
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    turned = aupimo(maps[order], masks[order], count, fpr_bounds=BOUNDS, route=route)  # type: ignore[arg-type]
    torch.testing.assert_close(turned.scores, plain.scores[order], equal_nan=True, rtol=1e-12, atol=0)
    assert torch.equal(turned.classes, plain.classes[order])


# the routes


@pytest.mark.parametrize("count, bounds", [(200, (1e-2, 0.3)), (800, (5e-3, 5e-2))])
def test_plain_is_counting_every_pixel_at_every_threshold(count: int, bounds: tuple[float, float]) -> None:
    maps, masks = defects(size=40)
    fsh, recall, scores = slow(maps, masks, count, bounds)
    curves = pimo_curves(maps, masks, count)
    np.testing.assert_allclose(curves.shared_fpr.numpy(), fsh, rtol=1e-12)
    np.testing.assert_allclose(curves.per_image_tpr.numpy()[6:], recall[6:], rtol=1e-7)
    result = aupimo(maps, masks, count, fpr_bounds=bounds, force=True)
    np.testing.assert_allclose(result.scores[6:], scores[6:], rtol=1e-6)
    again = aupimo_from_curves(curves, fpr_bounds=bounds, force=True)
    assert torch.equal(again.scores[6:], result.scores[6:])
    assert again.reached == result.reached
    assert all(torch.equal(a, b) for a, b in zip(again.curves[:2], result.curves[:2]))


@pytest.mark.parametrize("seed", range(3))
def test_the_three_routes_agree(seed: int) -> None:
    maps, masks = defects(seed, normal=20, size=128)
    bounds = (1e-4, 1e-3)  # 33 to 328 of 327,680 pixels
    plain, fast, exact = (aupimo(maps, masks, fpr_bounds=bounds, route=route) for route in ROUTES)
    assert 0.1 < exact.mean < 0.9
    assert float((fast.scores - plain.scores)[20:].abs().max()) < 1e-3
    # Plain integrates between the levels it reaches, at most half a pixel off at either end.
    ends = sum(abs(math.log(a / b)) for a, b in zip(plain.reached, bounds)) / math.log(10)
    assert float((exact.scores - plain.scores)[20:].abs().max()) < ends + 1e-4
    assert exact.reached == bounds
    assert 250 <= len(fast.curves.thresholds) <= 300


def test_plain_tends_to_exact_where_the_bounds_are_levels() -> None:
    # 40,000 normal pixels with scores of their own: 4e-3 and 4e-2 are reached.
    image = torch.randperm(40_000, generator=torch.Generator().manual_seed(0)).double().view(1, 200, 200)
    maps = torch.cat([image, 40_000 - 0.0503 * image])
    masks = torch.tensor([False, True])[:, None, None].expand(2, 200, 200)
    bounds = (4e-3, 4e-2)
    exact = aupimo(maps, masks, fpr_bounds=bounds, route="exact").mean
    errors = [abs(aupimo(maps, masks, k, fpr_bounds=bounds, force=True).mean - exact) for k in (2_001, 40_000, 300_000)]
    assert 0.2 < exact < 0.9
    assert errors[2] < 2e-5
    assert errors[1] < 1e-3


def test_ties_between_masked_and_normal_pixels_go_half_and_half() -> None:
    normal = torch.arange(100.0, dtype=torch.float64).view(1, 10, 10)
    masks = torch.tensor([False, True])[:, None, None].expand(2, 10, 10)
    bounds = (0.01, 0.1)
    # Found at t <= 95: where Fsh goes from 0.04 to 0.05, T goes from 0 to 1.
    tied = aupimo(torch.cat([normal, torch.full_like(normal, 95.0)]), masks, fpr_bounds=bounds, route="exact").mean
    expected = (math.log(0.1 / 0.05) + math.log(0.05 / 0.04) / 2) / math.log(10)
    assert tied == pytest.approx(expected, rel=1e-12)
    plain = aupimo(torch.cat([normal, torch.full_like(normal, 95.0)]), masks, 991, fpr_bounds=bounds).mean
    assert plain == pytest.approx(expected, rel=1e-12)  # steps of 0.1 hit every whole score


def test_exact_bounds_may_lie_between_levels() -> None:
    normal = torch.arange(100.0, dtype=torch.float64).view(1, 10, 10)
    masks = torch.tensor([False, True])[:, None, None].expand(2, 10, 10)
    maps = torch.cat([normal, torch.full_like(normal, 95.5)])
    for low, high in [(0.015, 0.1), (0.01, 0.055), (0.033, 0.037), (0.05, 0.05001)]:
        expected = max(0.0, math.log(high / max(low, 0.04))) / math.log(high / low)
        got = aupimo(maps, masks, fpr_bounds=(low, high), route="exact").mean
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("route", ROUTES)
def test_images_of_different_sizes_weigh_alike(route: str) -> None:
    """Fsh is the mean over normal images of their own rate, not the pooled rate."""
    small, large = torch.arange(100.0).view(10, 10), torch.arange(10_000.0).view(100, 100) / 1000 + 200
    bad = torch.full((5, 5), 150.0)
    maps = [small.double(), large.double(), bad.double()]
    masks = [torch.zeros(10, 10), torch.zeros(100, 100), torch.ones(5, 5)]
    masks = [m.bool() for m in masks]
    # The large image is above 150 throughout: Fsh(150) = 1/2, and half of ln(1 / 0.25) lies above it.
    count = None if route == "exact" else 100_000
    result = aupimo(maps, masks, count, fpr_bounds=(0.25, 1.0), route=route, force=True)  # type: ignore[arg-type]
    assert result.mean == pytest.approx(0.5, abs=1e-3 if route == "fast" else 1e-5)
    curves = pimo_curves(maps, masks, 50, spacing="log-fpr")
    assert curves.shared_fpr[0] == 1
    assert (curves.shared_fpr.diff() < 0).all()


@pytest.mark.parametrize("route", ROUTES)
def test_an_upper_bound_of_one_takes_the_last_threshold_with_fsh_one(route: str) -> None:
    maps, masks = seven_levels()
    count = 601 if route == "plain" else None
    result = aupimo(maps, masks, count, fpr_bounds=(1e-6, 1.0), route=route, force=True)  # type: ignore[arg-type]
    assert result.curves.thresholds[0] == 1.0
    # Six pieces, each a tenth of the one before: mean of (1 + 0.1)/2, (0.1 + 0.01)/2, ...
    assert result.scores[1].item() == pytest.approx(sum(0.55 * 0.1**k for k in range(6)) / 6, rel=1e-9)


def test_log_spaced_curves_are_points_of_the_same_curve() -> None:
    maps, masks = defects()
    curves = pimo_curves(maps, masks, 60, spacing="log-fpr")
    steps = curves.shared_fpr.log().diff()
    assert curves.shared_fpr[0] == 1
    assert curves.shared_fpr[-1] == pytest.approx(1 / (6 * 64 * 64))
    assert steps[:30].tolist() == pytest.approx([steps[0].item()] * 30, rel=0.05)
    t = curves.thresholds[25]
    assert curves.shared_fpr[25] == (maps[:6] >= t).double().mean()
    assert curves.per_image_tpr[7, 25] == (maps[7][masks[7]] >= t).double().mean()


# what is refused, and what is warned of


@pytest.mark.check(system=28, number=10)
@pytest.mark.parametrize("route", ROUTES)
def test_what_cannot_be_scored_is_refused(route: str) -> None:
    maps, masks = defects()

    def refused(match: str, m: Tensor = maps, truth: Tensor = masks, *count: int, **options) -> None:
        with pytest.raises(InputError, match=match):
            aupimo(m, truth, *count, **({"fpr_bounds": BOUNDS, "route": route} | options))

    refused("0 normal of 4 images", maps[6:], masks[6:])
    refused("6 normal of 6 images", maps[:6], masks[:6])
    refused("anomaly maps are floating point", maps.long())
    for bounds in [(1e-2, 1e-2), (1e-2, 1e-3), (0.0, 1e-2), (-1e-3, 1e-2), (1e-3, 1.01), (math.nan, 1.0)]:
        refused("0 < lower < upper <= 1", fpr_bounds=bounds)
    refused("num_thresholds 1: " + ("the exact route" if route == "exact" else "at least 2"), maps, masks, 1)
    refused("differ in size", maps, masks[:, :10])
    refused("NaN", maps.where(maps < 3, math.nan))


@pytest.mark.check(system=28, number=10)
def test_curves_refuse_the_same() -> None:
    maps, masks = defects()
    for m, truth, count in [
        (maps[6:], masks[6:], 9), (maps[:6], masks[:6], 9), (maps.long(), masks, 9), (maps, masks, 1),
    ]:  # fmt: skip
        with pytest.raises(InputError):
            pimo_curves(m, truth, count)
    with pytest.raises(InputError, match="did you mean 'log-fpr'"):
        pimo_curves(maps, masks, 9, spacing="log_fpr")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'fast'"):
        aupimo(maps, masks, route="fats")  # type: ignore[arg-type]


@pytest.mark.parametrize("route", ROUTES)
def test_a_level_out_of_reach_names_the_smallest_and_bounds_that_work(route: str) -> None:
    # One normal image of 192 x 192 cannot resolve 1e-5: 1/36,864.
    maps, masks = torch.rand(2, 192, 192, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 192, 192).bool()
    masks[1, :9, :9] = True
    with pytest.raises(InputError, match=r"reaches down to 2\.71e-05 only, with 1 normal images of 36864 pixels") as e:
        aupimo(maps, masks, route=route)  # type: ignore[arg-type]
    assert "bounds such as (1e-04, 1e-03)" in str(e.value)
    assert aupimo(maps, masks, fpr_bounds=(1e-4, 1e-3), route=route, force=True).mean >= 0  # type: ignore[arg-type]


def test_a_level_out_of_reach_for_good() -> None:
    maps, masks = torch.ones(2, 8, 8), torch.zeros(2, 8, 8).bool()
    masks[1, 0, 0] = True
    maps[0, 0] = 0.0  # 56 of 64 pixels share the highest score
    with pytest.raises(InputError, match=r"down to 0\.875 only.*maps with fewer equal scores"):
        aupimo(maps, masks)


def test_few_thresholds_are_refused_or_warned_of() -> None:
    maps, masks = defects()

    def points(count: int, force: bool = False) -> int:
        return len(aupimo(maps, masks, count, fpr_bounds=BOUNDS, force=force).curves.thresholds)

    counts = {n: points(n, force=True) for n in range(60, 500, 4)}
    below = max(n for n, k in counts.items() if k == 30)
    above = min(n for n, k in counts.items() if k == 31)
    with pytest.raises(InputError, match="only 30 thresholds lie between them, 31 are needed"):
        points(below)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="integrated over 31 thresholds; 300 are advised"):
            points(above)
    with pytest.raises(InputError, match="one and the same threshold"):
        points(3, force=True)


def test_bounds_missed_by_more_than_a_hundredth_are_told() -> None:
    maps, masks = defects()  # 24,576 pixels: 1e-3 is 24.576 of them
    with pytest.warns(UserWarning, match=r"bound 0\.001 was asked for, 0\.001017 is reached"):
        result = aupimo(maps, masks, fpr_bounds=(1e-3, 0.5))
    assert result.reached[0] == pytest.approx(25 / 24_576)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aupimo(maps, masks, fpr_bounds=(100 / 24_576, 0.5))
        aupimo(maps, masks, fpr_bounds=BOUNDS, route="exact")


def test_thresholds_that_float32_cannot_tell_apart() -> None:
    maps, masks = defects()
    with pytest.raises(InputError, match=r"float32 does not tell so many thresholds apart.*exact"):
        aupimo((maps + 1e4).float(), masks, fpr_bounds=BOUNDS)
    exact = aupimo((maps + 1e4).float(), masks, fpr_bounds=BOUNDS, route="exact")
    assert exact.mean == pytest.approx(aupimo(maps, masks, fpr_bounds=BOUNDS, route="exact").mean, abs=0.01)


def test_curves_made_elsewhere() -> None:
    fpr = torch.tensor([1.0, 0.1, 0.01, 0.0], dtype=torch.float64)
    curves = PimoCurves(torch.arange(4.0), fpr, torch.tensor([[1.0, 0.5, 0.25, 0.0]]).double(), torch.tensor([True]))
    with pytest.warns(UserWarning, match="1 thresholds with a shared FPR of 0"):
        # 1e-3 is nearest to 0, which ln cannot show: what is left reaches down to 1e-2.
        result = aupimo_from_curves(curves, fpr_bounds=(1e-3, 1.0), force=True)
    assert result.mean == pytest.approx((0.75 + 0.375) / 3, rel=1e-12)
    with pytest.raises(InputError, match=r"lies in \[0\.1, 1\]"):
        aupimo_from_curves(PimoCurves(*(x[..., :2] for x in curves[:3]), curves.classes), fpr_bounds=(1e-2, 1))


def test_of_several_thresholds_with_fsh_one_the_last_counts() -> None:
    fpr = torch.tensor([1.0, 1.0, 0.5, 0.25, 0.25, 0.125], dtype=torch.float64)
    curves = PimoCurves(torch.arange(6.0), fpr, torch.ones(1, 6).double(), torch.tensor([True]))
    result = aupimo_from_curves(curves, fpr_bounds=(0.25, 1.0), force=True)
    assert result.curves.thresholds.tolist() == [1, 2, 3]  # of equally near ones, the first
    assert result.mean == pytest.approx(1)
