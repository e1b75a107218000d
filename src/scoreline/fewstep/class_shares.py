"""Partitions of classes: which of several students answers for a class.

    V_1, ..., V_K   a partition of the classes: disjoint, of equal size, neighbours together
    k(y)            the router, a table
F(D, V) keeps the labels that are drawn and the real images of a share. A label stays what it was for the teacher, it is
not counted within the share. How evenly a partition shares the load is seen in the scatter of the classes within a
share: it falls with K where neighbours stay together, and stays where they are dealt out. Partitions of texts:
:mod:`scoreline.fewstep.text_shares`.

Reference: Song, Lorraine, Nie, Kreis & Lucas 2025 (Multi-student Diffusion Distillation, arXiv 2410.23274).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import derive

__all__ = ["ClassRouter", "Shares", "check_shares", "clustered_shares", "consecutive_shares", "interleaved_shares"]
__all__ += ["of_classes", "random_shares", "within_share_scatter"]

Shares = list[list[int]]


def consecutive_shares(num_classes: int, students: int) -> Shares:
    """Neighbouring classes together: k(y) = floor(y K / C), which is y // (C/K) where K divides C.

    Args:
        num_classes: C.
        students: K, 1 to C.

    Raises:
        InputError: more students than classes, or none.

    >>> consecutive_shares(8, 4)
    [[0, 1], [2, 3], [4, 5], [6, 7]]
    """
    _check_count(num_classes, students)
    return _grouped([y * students // num_classes for y in range(num_classes)], students)


def interleaved_shares(num_classes: int, students: int) -> Shares:
    """Neighbours dealt out: k(y) = y mod K, the partition that reduces the load least where neighbours are alike.

    >>> interleaved_shares(8, 4)
    [[0, 4], [1, 5], [2, 6], [3, 7]]
    """
    _check_count(num_classes, students)
    return _grouped([y % students for y in range(num_classes)], students)


def random_shares(num_classes: int, students: int, seed: int = 0) -> Shares:
    """Shares of the sizes of :func:`consecutive_shares`, filled at random.

    Args:
        num_classes: C.
        students: K, 1 to C.
        seed: of the order.
    """
    order = np.random.default_rng(derive(seed, "shares")).permutation(num_classes)
    return [sorted(int(order[y]) for y in share) for share in consecutive_shares(num_classes, students)]


def clustered_shares(embeddings: Tensor, students: int, seed: int = 0) -> Shares:
    """Classes whose embeddings are alike: k-means, then the assignment to its centres of least total squared distance
    in which shares differ by one class at most.

    Args:
        embeddings: (C, D), one a class, e.g. means of images or rows of a label embedding.
        students: K, 1 to C.
        seed: of the k-means.

    Returns:
        K lists of classes, in the order of their smallest one.

    Raises:
        InputError: more students than classes, or embeddings of another form.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans

    if embeddings.dim() != 2 or not bool(torch.isfinite(embeddings).all()):
        raise InputError("embeddings", tuple(embeddings.shape), "give one finite row for each class, (C, D)")
    count = len(embeddings)
    _check_count(count, students)
    rows = embeddings.detach().double().cpu().numpy()
    fitted = KMeans(students, n_init=10, random_state=derive(seed, "clusters") % 2**32).fit(rows)
    apart = ((rows[:, None] - fitted.cluster_centers_) ** 2).sum(-1)
    # Every centre has floor(C/K) places, and as many of them one more as are left over; which, the cost decides. Places
    # that must be filled are cheaper than those that may be by more than all distances together.
    least, most = count // students, -(-count // students)
    base = apart.sum() + 1.0
    places = np.concatenate([np.repeat(apart, least, axis=1), *([apart + base] if most > least else [])], axis=1)
    owner = np.concatenate([np.repeat(np.arange(students), least), *([np.arange(students)] if most > least else [])])
    row, column = linear_sum_assignment(places)
    return sorted(_grouped(owner[column[np.argsort(row)]].tolist(), students))


def check_shares(shares: Sequence[Sequence[int]], num_classes: int) -> NDArray[np.int64]:
    """The router's table k(y), (C,); refused unless every class stands in exactly one share.

    Args:
        shares: K lists of classes.
        num_classes: C.

    Raises:
        InputError: a share is empty, a class is left out, stands twice, or does not exist.

    >>> check_shares([[0, 2], [1]], 3).tolist()
    [0, 1, 0]
    """
    table = np.full(num_classes, -1, dtype=np.int64)
    for k, share in enumerate(shares):
        if not len(share):
            raise InputError("partition", f"share {k}", "is empty; give each student a class, or take fewer students")
        for y in share:
            if not isinstance(y, int) or isinstance(y, bool) or not 0 <= y < num_classes:
                raise InputError("partition", f"class {y} in share {k}", f"the classes are 0 to {num_classes - 1}")
            if table[y] >= 0:
                raise InputError(
                    "partition", f"class {y}", f"stands in shares {table[y]} and {k}; give each class once"
                )
            table[y] = k
    left = np.flatnonzero(table < 0).tolist()
    if left:
        shown = ", ".join(map(str, left[:8])) + (", ..." if len(left) > 8 else "")
        raise InputError("partition", f"classes {shown}", "are left out; give every class to one student")
    return table


def within_share_scatter(means: Tensor, shares: Sequence[Sequence[int]]) -> float:
    """(1/C) sum_k sum_{y in V_k} |m_y - mean of V_k|^2: what one student of the partition has to cover, on the average.

    Args:
        means: (C, D), where the conditions lie.
        shares: the partition.
    """
    check_shares(shares, len(means))
    rows = [means[list(share)].double() for share in shares]
    return float(sum((row - row.mean(0)).square().sum() for row in rows) / len(means))


def of_classes(source: Any, classes: Sequence[int]) -> Any:
    """F(D, V): images whose label lies in a share, which keep their labels and numbers; pairs in memory alike.

    Args:
        source: :class:`scoreline.data.images.Images` or :class:`scoreline.data.pair_store.Pairs`.
        classes: V.

    Raises:
        InputError: the set has no labels, or holds nothing of these classes.
    """
    from scoreline.data.pair_store import Pairs

    given = source.label if isinstance(source, Pairs) else getattr(source, "labels", None)
    labels = None if given is None else np.asarray(given)
    if labels is None or labels.ndim != 1:
        raise InputError("classes", list(classes), f"{getattr(source, 'name', 'the data')} has no class for each image")
    rows = np.flatnonzero(np.isin(labels, np.asarray(classes)))
    if len(rows) == 0:
        raise InputError("classes", list(classes), f"{source.name} holds no image of them")
    if not isinstance(source, Pairs):
        return source.subset(rows)
    assert source.label is not None
    at = torch.from_numpy(rows)
    kept = Pairs(
        source.noise[at], source.image[at], source.label[at], num_classes=source.num_classes, flips=source.flips,
        name=source.name,
    )  # fmt: skip
    kept.index = source.index[rows]
    return kept


@recorded
class ClassRouter(nn.Module):
    """k(y) by a table of classes.

    Args:
        shares: K lists of classes, a partition of 0 to C-1.

    Raises:
        InputError: see :func:`check_shares`.
    """

    def __init__(self, shares: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.students, self.num_classes = len(shares), sum(len(share) for share in shares)
        table = check_shares(shares, self.num_classes)
        self.register_buffer("table", torch.from_numpy(table), persistent=False)
        self.table: Tensor

    def forward(self, cond: Cond | None) -> Tensor:
        """Number of the student of each image, (B,) 0 to K-1.

        Raises:
            InputError: there are no labels, or one is none of the classes ("no label" is nobody's).
        """
        if cond is None or cond.labels is None:
            raise InputError("condition", None, "students have a share of the classes each; give labels")
        labels = cond.labels.to(self.table.device)
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            raise InputError("label", int(wrong[0]), f"has no student; the classes are 0 to {self.num_classes - 1}")
        return self.table[labels]


def _check_count(num_classes: int, students: int) -> None:
    if not 1 <= students <= num_classes:
        raise InputError("students", students, f"must be 1 to {num_classes}, the number of classes")


def _grouped(numbers: Sequence[int], students: int) -> Shares:
    return [[y for y, k in enumerate(numbers) if k == share] for share in range(students)]
