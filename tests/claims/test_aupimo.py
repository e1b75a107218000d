"""Claim 28: the rule on made-up numbers, the tiles, the detectors and the annotation noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from scoreline.claims import aupimo as claim
from scoreline.claims.aupimo import ARMS, CLAIM, anomaly_maps, photo_tiles
from scoreline.claims.engine import BUDGET, measure

SEEDS = 5


def made_up(**columns: Any) -> dict[str, dict[str, list[float]]]:
    """Numbers with which every part holds; a column is one value for all detectors, or one a detector."""
    rank = np.arange(12.0)
    values = {
        "auroc": 0.9 + 0.01 * rank,
        "aupro": 0.8 + 0.01 * rank,
        "aupimo": 0.1 + 0.05 * np.roll(rank, 1),
        "aupro_false_regions_drift": -0.1,
        "aupimo_false_regions_drift": -0.01,
    }
    for metric in claim.METRICS:
        for name in ("seconds", "normal_draw_std", "dilated_drift", "false_regions_drift"):
            values.setdefault(f"{metric}_{name}", 0.01)
    values |= columns
    table = {name: np.broadcast_to(column, 12) for name, column in values.items()}
    return {arm: {name: [float(c[i])] * SEEDS for name, c in table.items()} for i, arm in enumerate(ARMS)}


def judged(**columns: Any) -> tuple[str, list[bool | None]]:
    verdict, parts = CLAIM.verdict(made_up(**columns))
    return verdict, [part.holds for part in parts]


RANK = np.arange(12.0)


def test_all_parts_hold() -> None:
    assert judged() == ("holds", [True, True, True])


@pytest.mark.parametrize(
    "columns, verdict, parts",
    [
        # twice AUROC's spread of 0.11, and a little less
        ({"aupimo": 0.1 + 0.0201 * np.roll(RANK, 1)}, "holds", [True, True, True]),
        ({"aupimo": 0.1 + 0.0199 * np.roll(RANK, 1)}, "in part", [False, True, True]),
        # no reversal at all; one with AUROC alone is enough
        ({"aupimo": 0.1 + 0.05 * RANK}, "in part", [True, False, True]),
        ({"aupimo": 0.1 + 0.05 * RANK, "auroc": 0.9 + 0.01 * np.roll(RANK, 1)}, "holds", [True, True, True]),
        # drifts count by size, whatever their sign, and twice is enough
        ({"aupro_false_regions_drift": 0.0201}, "holds", [True, True, True]),
        ({"aupro_false_regions_drift": -0.0199}, "in part", [True, True, False]),
        # the rank of AUPRO and no difference in drift: refuted, whatever the spread
        ({"aupimo": 0.1 + 0.05 * RANK, "aupro_false_regions_drift": 0.01}, "refuted", [True, False, False]),
        ({"aupimo": 0.1 + 0.001 * RANK, "aupro_false_regions_drift": 0.01}, "refuted", [False, False, False]),
    ],
)
def test_each_part_at_its_border(columns: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**columns) == (verdict, parts)


def test_one_reversal_of_66_pairs_is_a_correlation_above_0_95() -> None:
    swapped = RANK.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert claim.kendall(list(RANK), list(swapped)) == pytest.approx(64 / 66)
    assert judged(aupimo=0.1 + 0.05 * swapped, aupro_false_regions_drift=0.01) == ("refuted", [True, True, False])
    assert judged(aupimo=0.1 + 0.05 * swapped) == ("holds", [True, True, True])


def test_findings_name_what_a_draw_of_normal_images_does() -> None:
    said = " ".join(CLAIM.findings(made_up(aupimo_normal_draw_std=0.0321)))
    assert "moves it by 0.0321 (standard deviation, 9% of its mean), AUPRO by 0.0100 (1%)" in said
    assert "0.90 to 1.01 in AUROC, 0.80 to 0.91 in AUPRO, 0.10 to 0.65 in AUPIMO" in said


# tiles and detectors


@pytest.fixture(scope="module")
def tiles() -> claim.Tiles:
    return photo_tiles(0, train=20, normal=10, anomalous=15)


def test_tiles_hold_a_blob_of_the_other_photograph(tiles: claim.Tiles) -> None:
    assert tiles.train.shape == (20, 64, 64, 3)
    assert tiles.test.shape == (25, 64, 64, 3)
    assert not tiles.masks[:10].any()
    assert 0 <= tiles.test.min() < tiles.test.max() <= 1
    for mask in tiles.masks[10:].numpy():
        _, count = label(mask, np.ones((3, 3)))
        assert count == 1
        side = 2 * np.sqrt(mask.sum() / np.pi)  # across, if it were a disc
        assert 2 < side < 28
    assert not tiles.masks[:, [0, -1]].any()
    again, other = photo_tiles(0, train=20, normal=10, anomalous=15), photo_tiles(1, train=20, normal=10, anomalous=15)
    assert np.array_equal(again.test, tiles.test)
    assert not np.array_equal(other.test, tiles.test)


def test_colour_is_the_mahalanobis_distance(tiles: claim.Tiles) -> None:
    from sklearn.covariance import EmpiricalCovariance

    pixels = tiles.train.reshape(-1, 3)
    fitted = EmpiricalCovariance().fit(pixels)
    n = len(pixels)
    expected = np.sqrt(fitted.mahalanobis(tiles.test[12].reshape(-1, 3)) * (n - 1) / n).reshape(64, 64)
    np.testing.assert_allclose(anomaly_maps("colour sigma=0", tiles)[12].numpy(), expected, rtol=1e-8)


def test_reconstruction_is_that_of_principal_components(tiles: claim.Tiles) -> None:
    from sklearn.decomposition import PCA

    def cut(image: np.ndarray) -> np.ndarray:
        return np.stack([image[y : y + 8, x : x + 8].ravel() for y in range(0, 64, 8) for x in range(0, 64, 8)])

    pca = PCA(4, svd_solver="full").fit(np.concatenate([cut(image) for image in tiles.train]))
    patches = cut(tiles.test[3])
    error = ((patches - pca.inverse_transform(pca.transform(patches))) ** 2).reshape(8, 8, 8, 8, 3).sum(-1)
    expected = np.block([[error[y, x] for x in range(8)] for y in range(8)])
    np.testing.assert_allclose(anomaly_maps("pca-4 sigma=0", tiles)[3].numpy(), expected, rtol=1e-6, atol=1e-10)


def test_smoothing_is_within_each_map(tiles: claim.Tiles) -> None:
    from scipy.ndimage import gaussian_filter

    raw, smooth = (anomaly_maps(f"pca-16 sigma={sigma}", tiles).numpy() for sigma in (0, 2))
    np.testing.assert_allclose(smooth[7], gaussian_filter(raw[7], 2.0), rtol=1e-10)
    assert smooth.shape == raw.shape == (25, 64, 64)


def test_more_components_leave_less_error(tiles: claim.Tiles) -> None:
    errors = [float(anomaly_maps(f"pca-{k} sigma=0", tiles)[:10].mean()) for k in (4, 16, 48)]
    assert errors[0] > errors[1] > errors[2] > 0


# annotation noise


def test_dilation_grows_by_one_pixel_all_around() -> None:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 10:13, 20:22] = True
    grown = claim.dilated(masks)
    expected = torch.zeros_like(masks)
    expected[0, 9:14, 19:23] = True
    assert torch.equal(grown, expected)


def test_a_false_region_is_a_region_of_its_own_in_anomalous_masks_only(tiles: claim.Tiles) -> None:
    noisy = claim.with_false_regions(tiles.masks, 0)
    assert not noisy[:10].any()
    for before, after in zip(tiles.masks[10:].numpy(), noisy[10:].numpy()):
        added = after & ~before
        assert added.sum() == 4
        assert label(after, np.ones((3, 3)))[1] == label(before, np.ones((3, 3)))[1] + 1
        assert label(added)[1] == 1
    assert torch.equal(claim.with_false_regions(tiles.masks, 0), noisy)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    assert {run["arm"] for run in result["runs"]} == set(ARMS)
    assert len(ARMS) == 12
    assert len(CLAIM.seeds) == 5
    run = result["runs"][0]
    assert run[BUDGET] == 0
    assert {f"{m}_{n}_drift" for m in claim.METRICS for n in ("dilated", "false_regions")} <= set(run)
    assert all(0 <= run[m] <= 1 for m in claim.METRICS)
    assert len(result["findings"]) == 6
