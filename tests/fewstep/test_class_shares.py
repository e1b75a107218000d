"""Partitions of classes: disjoint, even, neighbours together, and the data of a share."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.data import from_arrays
from scoreline.fewstep.class_shares import (
    ClassRouter,
    check_shares,
    clustered_shares,
    consecutive_shares,
    interleaved_shares,
    of_classes,
    random_shares,
    within_share_scatter,
)

ANGLES = torch.arange(8).double() * torch.pi / 4
ELLIPSE = torch.stack([2 * ANGLES.cos(), ANGLES.sin()], 1)


@pytest.mark.check(system=30, number=1)
def test_consecutive_classes_go_to_one_student() -> None:
    shares = consecutive_shares(1000, 4)
    assert [len(share) for share in shares] == [250] * 4
    router = ClassRouter(shares)
    assert router(Cond(labels=torch.tensor([0, 249, 250, 999]))).tolist() == [0, 0, 1, 3]
    assert sorted(y for share in shares for y in share) == list(range(1000))
    assert router.table.tolist() == [y // 250 for y in range(1000)]


@pytest.mark.parametrize("students", [1, 3, 4, 10])
def test_every_partition_of_classes_is_one(students: int) -> None:
    points = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    for shares in (
        consecutive_shares(10, students), interleaved_shares(10, students), random_shares(10, students, 1),
        clustered_shares(points, students),
    ):  # fmt: skip
        table = check_shares(shares, 10)
        sizes = np.bincount(table, minlength=students)
        assert sizes.max() - sizes.min() <= 1
        assert all(share == sorted(share) for share in shares)
    assert random_shares(10, 3, 1) == random_shares(10, 3, 1) != random_shares(10, 3, 2)


def test_clusters_keep_together_what_lies_together_and_stay_even() -> None:
    points = torch.tensor([[0.0], [10.0], [0.1], [10.1], [0.2], [0.3]])
    assert clustered_shares(points, 2) == [[0, 2, 4], [1, 3, 5]]  # even: one of the four must go with the pair
    points = torch.tensor([[0.0], [10.0], [0.1], [10.1], [0.2]])
    assert clustered_shares(points, 2) == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ([[0, 1], [3]], "classes 2: are left out"),
        ([[0, 1], [1, 2, 3]], "class 1: stands in shares 0 and 1"),
        ([[0, 1], [2, 3, 4]], "the classes are 0 to 3"),
        ([[0, 1, 2, 3], []], "share 1: is empty"),
        ([[0, 1, 2, -1], [3]], "class -1"),
    ],
    ids=["left", "twice", "unknown", "empty", "negative"],
)
def test_what_is_no_partition_is_refused(shares: list[list[int]], words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_shares(shares, 4)
    assert words.replace(": ", "': ") in str(caught.value) or words in str(caught.value)


def test_more_students_than_classes_are_refused() -> None:
    for make in (consecutive_shares, interleaved_shares, random_shares):
        with pytest.raises(InputError, match="1 to 4"):
            make(4, 5)
        with pytest.raises(InputError, match="1 to 4"):
            make(4, 0)
    with pytest.raises(InputError, match="embeddings"):
        clustered_shares(torch.full((4, 2), torch.nan), 2)


@pytest.mark.check(system=30, number=8)
def test_scatter_within_shares_falls_where_neighbours_stay_together() -> None:
    falling = [within_share_scatter(ELLIPSE, consecutive_shares(8, k)) for k in (1, 2, 4, 8)]
    assert falling[0] == pytest.approx(2.5)
    assert falling[-1] == 0
    assert all(a > b for a, b in pairwise(falling))
    dealt = [within_share_scatter(ELLIPSE, interleaved_shares(8, k)) for k in (1, 2, 4, 8)]
    assert dealt == pytest.approx([2.5, 2.5, 2.5, 0])
    # Two neighbours 45 degrees apart lie |m_a - m_b|^2/4 from their mean each.
    pairs = (ELLIPSE[::2] - ELLIPSE[1::2]).square().sum(1).mean() / 4
    assert falling[2] == pytest.approx(float(pairs))
    points = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    nested = [within_share_scatter(points, consecutive_shares(8, k)) for k in (1, 2, 4, 8)]
    assert all(a >= b for a, b in pairwise(nested))


def test_images_of_a_share_keep_labels_and_numbers() -> None:
    pixels = np.zeros((6, 8, 8), dtype=np.uint8)
    images = from_arrays(pixels, labels=[0, 1, 2, 0, 1, 2], num_classes=4)
    kept = of_classes(images, [0, 2])
    assert kept.index.tolist() == [0, 2, 3, 5]
    assert kept.labels.tolist() == [0, 2, 0, 2]
    assert kept.num_classes == 4
    with pytest.raises(InputError, match="no image of them"):
        of_classes(images, [3])
    with pytest.raises(InputError, match="no class for each"):
        of_classes(images.relabel(None), [0])
