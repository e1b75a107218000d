"""Steps after generation, on images small enough to do by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.explain.finishing import FINISHING, finish, read_finishing, said

X = torch.tensor([[[[-1.0, 0.0], [0.5, 1.0]]]])


def done(*steps: Any) -> list[list[float]]:
    return finish(X, read_finishing(list(steps), "post"))[0, 0].tolist()


def test_each_step_by_hand() -> None:
    assert done({"shift": [0, 1]}) == [[-1, -1], [-1, 0.5]]
    assert done({"shift": [-1, 0]}) == [[0.5, 1], [-1, -1]]
    assert done({"shift": [5, 0]}) == [[-1, -1], [-1, -1]]
    assert done({"contrast": 2}) == [[-1, 0], [1, 1]]
    assert done({"brightness": 0.5}) == [[-0.5, 0.5], [1, 1]]
    assert done({"levels": 2}) == [[-1, -1], [1, 1]]
    assert done({"turn": 1}) == [[0, 1], [-1, 0.5]]
    assert done("mirror") == [[0, -1], [1, 0.5]]
    assert done("invert") == [[1, 0], [-0.5, -1]]
    assert done() == X[0, 0].tolist()


def test_steps_are_taken_in_order() -> None:
    assert done({"brightness": 1}, "invert") == [[0, -1], [-1, -1]]
    assert done("invert", {"brightness": 1}) == [[1, 1], [0.5, 0]]


def test_blur_is_a_normalised_gaussian() -> None:
    x = torch.zeros(1, 2, 15, 15)
    x[0, 0, 7, 7] = 1
    out = finish(x, read_finishing([{"blur": 1.0}], "post"))
    assert out.shape == x.shape
    assert out[0, 0].sum() == pytest.approx(1, abs=1e-5)
    assert out[0, 0, 7, 8] / out[0, 0, 7, 7] == pytest.approx(torch.tensor(-0.5).exp().item(), rel=1e-4)
    assert out[0, 0, 8, 7] == out[0, 0, 7, 8]
    assert (out[0, 1] == 0).all()  # channels do not mix
    flat = torch.full((1, 1, 4, 4), 0.3)
    torch.testing.assert_close(finish(flat, read_finishing([{"blur": 2.0}], "post")), flat)


def test_images_stay_in_range() -> None:
    arguments: dict[str, Any] = {
        "shift": [1, -1],
        "blur": 0.7,
        "contrast": 3,
        "brightness": 1.5,
        "levels": 4,
        "turn": 3,
    }
    for name in FINISHING:
        out = finish(X, read_finishing([{name: arguments.get(name, True)}], "post"))
        assert out.shape == X.shape
        assert out.min() >= -1
        assert out.max() <= 1


def test_steps_in_words() -> None:
    assert said(read_finishing([{"blur": 0.5}, "mirror"], "post")) == "blur 0.5; mirror"


@pytest.mark.parametrize(
    "given, word",
    [
        ({"blur": 1}, "list of steps"),
        (["blurr"], "did you mean 'blur'"),
        ([{"blur": 0}], "above 0"),
        ([{"blur": True}], "above 0"),
        ([{"blur": "much"}], "above 0"),
        ([{"shift": 1}], "rows down"),
        ([{"shift": [0.5, 1]}], "whole pixels"),
        ([{"mirror": False}], "true"),
        ([{"levels": 1}], "2 levels"),
        ([{"blur": 1, "mirror": True}], "each step"),
        ([{"contrast": float("nan")}], "factor"),
    ],
)
def test_refusals(given: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        read_finishing(given, "post")
