"""Which images go into which part: a rule that depends on nothing but the seed and the images' own indices."""

from __future__ import annotations

import hashlib

import numpy as np

from scoreline.core.errors import InputError

__all__ = ["choose"]


def choose(index: np.ndarray, labels: np.ndarray | None, count: int, *, seed: int = 0) -> np.ndarray:
    """Choose `count` images, each class by its share.

    Within a class the images with the smallest SHA-256 of "seed:index" are chosen, so that the choice is the same for
    ever: no library's random numbers enter it. Classes get the integer part of their share, and what is left goes to
    the largest remainders (the smaller label first).

    Args:
        index: (N,) original indices, each once.
        labels: (N,) labels to stratify by, or None for one common class.
        count: how many to choose, 0 to N.
        seed: another seed gives another choice.

    Returns:
        (N,) bool, True for the chosen.

    Raises:
        InputError: `count` is out of range, or an index comes twice (both parts would hold the same image).
    """
    if not 0 <= count <= len(index):
        raise InputError("count", count, f"choose between 0 and {len(index)} images")
    if len(np.unique(index)) != len(index):
        raise InputError("split", None, "an image occurs more than once and could end in both parts; split first")
    groups = np.zeros(len(index), dtype=np.int64) if labels is None else labels
    classes, sizes = np.unique(groups, return_counts=True)
    quotas, remainders = np.divmod(count * sizes, max(len(index), 1))
    by_remainder = np.argsort(-remainders, kind="stable")
    quotas[by_remainder[: count - int(quotas.sum())]] += 1

    chosen = np.zeros(len(index), dtype=bool)
    keys = [hashlib.sha256(f"{seed}:{int(i)}".encode()).digest() for i in index]
    for label, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(groups == label)
        chosen[sorted(members, key=keys.__getitem__)[:quota]] = True
    return chosen
