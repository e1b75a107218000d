"""Conditions: named fields, one batch dimension."""

from __future__ import annotations

import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError


def both() -> Cond:
    return Cond(labels=torch.tensor([0, 1, 2]), vector=torch.arange(6.0).view(3, 2))


def test_items_are_the_fields_that_are_set() -> None:
    assert [name for name, _ in both().items()] == ["labels", "vector"]
    assert Cond().items() == []


def test_unknown_fields_are_refused_by_name() -> None:
    both().require(["vector", "labels", "mask"], "unet")
    with pytest.raises(InputError, match="'vector': unet accepts labels, mask"):
        both().require({"mask", "labels"}, "unet")
    with pytest.raises(InputError, match="takes no conditions"):
        both().require([], "mlp")
    Cond().require([], "mlp")
    with pytest.raises(TypeError):
        Cond(label=torch.tensor([0]))  # type: ignore[call-arg]


def test_rows_map_cat_replace() -> None:
    cond = both()
    assert cond[1:].labels is not None
    assert cond[1:].labels.tolist() == [1, 2]
    assert cond[torch.tensor([2, 0])].vector is not None
    assert cond[torch.tensor([2, 0])].vector.tolist() == [[4.0, 5.0], [0.0, 1.0]]  # type: ignore[union-attr]
    assert cond[1:].tokens is None
    double = cond.map(lambda v: v * 2)
    assert double.labels.tolist() == [0, 2, 4]  # type: ignore[union-attr]
    joined = cond.cat(double)
    assert joined.labels.tolist() == [0, 1, 2, 0, 2, 4]  # type: ignore[union-attr]
    assert joined.vector.shape == (6, 2)  # type: ignore[union-attr]
    assert cond.replace(labels=None).labels is None
    assert cond.labels is not None
    assert cond.to("cpu").labels.tolist() == [0, 1, 2]  # type: ignore[union-attr]
    with pytest.raises(AttributeError):
        cond.labels = None  # type: ignore[misc]


def test_unlike_conditions_do_not_join() -> None:
    with pytest.raises(InputError, match="vector"):
        both().cat(Cond(labels=torch.tensor([1])))
