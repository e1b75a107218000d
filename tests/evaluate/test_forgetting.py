"""What a judge says of a model that was to forget, on images whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from scoreline.core.encoder import Classifier
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.data import from_arrays, load_images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.schedules import EDM
from scoreline.evaluate.forgetting import (
    forgetting_scores,
    kept_images,
    mark_of,
    measure_forgetting,
    open_judge,
    request_grid,
    retention_protocol,
)
from scoreline.samplers.heun import Heun


class Judge(Classifier):
    """Knows two pictures: all black is 0, all white is 1; never sees 2."""

    dim, num_classes = 1, 3

    def activations(self, prepared: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: prepared.mean((1, 2, 3))[:, None] for name in names}

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        return torch.cat([-20 * h, 20 * h, torch.full_like(h, -50)], 1)


def test_the_forgotten_class_is_divided_by_its_own_requests() -> None:
    # Ten classes, ten requests each: class 0 is seen in two of its own and in all requests for 9.
    asked = torch.arange(100) % 10
    seen = asked.clone()
    seen[asked == 0] = torch.tensor([0, 0, 1, 1, 1, 1, 1, 2, 2, 2])
    seen[asked == 9] = 0
    found = forgetting_scores(asked, torch.eye(10)[seen], [0], [1])
    assert found["unlearning accuracy"] == pytest.approx(0.8)
    assert found["released script"] == pytest.approx(0.98)
    assert found["override hits"] == pytest.approx(0.5)
    assert found["accuracy"] == pytest.approx([0.2, *[1.0] * 8, 0.0])
    assert found["forgotten probability"] == pytest.approx(0.2)
    assert found["forgotten entropy"] == pytest.approx(0.0)
    # Without a fixed override any kept class is a hit; several classes have one each.
    assert forgetting_scores(asked, torch.eye(10)[seen], [0])["override hits"] == pytest.approx(0.8)
    several = forgetting_scores(asked, torch.eye(10)[seen], [0, 9], [2, 5])
    assert several["unlearning accuracy"] == pytest.approx(18 / 20)
    assert several["override hits"] == pytest.approx(3 / 20)
    assert forgetting_scores(asked, torch.eye(10)[seen], [0, 9])["override hits"] == pytest.approx(8 / 20)
    even = forgetting_scores(asked, torch.full((100, 10), 0.1), [3])
    assert even["forgotten entropy"] == pytest.approx(torch.tensor(10.0).log().item())
    with pytest.raises(InputError, match="none of the images"):
        forgetting_scores(torch.ones(3), torch.eye(3), [0])
    with pytest.raises(InputError, match="one row for each"):
        forgetting_scores(torch.ones(3), torch.eye(2), [0])


def test_a_model_of_known_pictures() -> None:
    # A model that answers 0 with black, 1 with white, 2 with white: 2 is forgotten for 1.
    pictures = torch.stack([torch.full((1, 2, 2), v) for v in (-0.9, 0.9, 0.9)])
    model = Empirical(EDM(), pictures, labels=torch.arange(3))
    found = measure_forgetting(model, Heun(nfe=3), Judge(), [2], [1], count=9, batch_size=4)
    assert found["accuracy"] == [1.0, 1.0, 0.0]
    assert (found["unlearning accuracy"], found["override hits"]) == (1.0, 1.0)
    assert (found["count"], found["kept"], found["nfe"], found["distance"]) == (9, 6, 3, None)
    with pytest.raises(InputError, match="give 6 or more"):
        measure_forgetting(model, Heun(nfe=3), Judge(), [2], count=5)
    assert len(mark_of(model)) == 64


def test_retention_is_measured_on_the_kept_classes(tmp_path: Path) -> None:
    model = load("digits")
    protocol = retention_protocol("digits", "auto", model, [0, 3])
    real = load_images("digits", split="test")
    assert set(protocol.reference.labels.tolist()) == {1, 2, 4, 5, 6, 7, 8, 9}  # type: ignore[union-attr]
    assert len(protocol.reference) == sum(int(c) not in (0, 3) for c in real.labels.tolist())  # type: ignore[union-attr]
    found = measure_forgetting(model, Heun(nfe=5), open_judge(None, model), [0, 3], protocol=protocol, count=40)
    assert (found["name"], found["kept"]) == ("fd-digits", 32)
    assert found["distance"] > 0
    assert 0 <= found["precision"] <= 1
    shown = request_grid([("a", model, Heun(nfe=3)), ("b", model, Heun(nfe=3))], [3], tmp_path / "grid.png")
    assert shown == [3, 0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert Image.open(tmp_path / "grid.png").size[1] == 2 + 6 * 50


@pytest.mark.each("case, word", [
    (lambda digits, other: open_judge(None, other), "give --judge"),
    (lambda digits, other: open_judge("digits-net", other), "knows 10 classes, the model 3"),
    (lambda digits, other: open_judge("digits", digits), "not a classifier"),
    (lambda digits, other: retention_protocol("digits", "auto", other, [0]), "the model makes"),
    (lambda digits, other: kept_images(from_arrays(torch.zeros(3, 1, 2, 2)), [0]), "no labels"),
])  # fmt: skip
def test_what_cannot_be_judged_is_refused(case: Any, word: str) -> None:
    other = Empirical(EDM(), torch.zeros(3, 1, 2, 2), labels=torch.arange(3))
    with pytest.raises(InputError, match=word):
        case(load("digits"), other)
