"""Plain classification: shifts, the loss, what it leaves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from scoreline.classify.plain import Classification, accuracy, shifted
from scoreline.core.encoder import Classifier
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.train import fit


class Linear(Classifier):
    """Logits are a matrix times the image."""

    def __init__(self, size: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.dim, self.num_classes = size * size, classes
        self.head = nn.Linear(size * size, classes)
        self.seen: list[Tensor] = []

    def features(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return x.flatten(1)


def batch(count: int = 6, *, first: int = 0, labels: list[int] | None = None) -> Batch:
    index = torch.arange(first, first + count)
    image = torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))[index] * 2 - 1
    label = index % 3 if labels is None else torch.tensor(labels)
    return Batch(image, label, index, draws=Noise(1).at(index, (1, 4, 4)))


def test_shifts_move_by_whole_pixels_and_fill_with_black():
    image = torch.arange(2 * 2 * 3 * 4, dtype=torch.float32).view(2, 2, 3, 4)
    assert torch.equal(shifted(image, torch.zeros(2, 2, dtype=torch.long)), image)
    moved = shifted(image, torch.tensor([[1, 0], [-2, 3]]))
    assert torch.equal(moved[0, :, 1:], image[0, :, :-1])  # down
    assert (moved[0, :, 0] == -1).all()
    assert torch.equal(moved[1, :, :1, 3:], image[1, :, 2:, :1])  # up by two, right by three
    assert int((moved[1] != -1).sum()) == 2
    assert (shifted(image, torch.full((2, 2), 9)) == -1).all()


def test_every_shift_is_drawn_equally_often_and_belongs_to_the_image():
    method = Classification(Linear(), shift=1)
    b = batch(270)
    method.loss(b, None, 0)
    seen = method.classifier.seen[0]
    offsets = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    hits = torch.stack([(shifted(b.image, torch.tensor([o] * 270)) == seen).flatten(1).all(1) for o in offsets])
    assert (hits.sum(0) == 1).all()
    assert float((hits.double().mean(1) - 1 / 9).abs().max()) < 4 * math.sqrt(8 / 81 / 270)
    method.loss(batch(5, first=20), None, 0)
    assert torch.equal(method.classifier.seen[1], seen[20:25])


def test_noise_is_added_and_clamped():
    method = Classification(Linear(), shift=0, noise=0.5)
    b = batch()
    method.loss(b, None, 0)
    torch.testing.assert_close(method.classifier.seen[0], (b.image + 0.5 * b.draws.normal()).clamp(-1, 1))


def test_loss_is_smoothed_cross_entropy():
    b = batch()
    for smoothing in (0.0, 0.3):
        method = Classification(Linear(), shift=0, label_smoothing=smoothing)
        made = method.loss(b, None, 0)
        log_p = method.classifier(b.image).log_softmax(1)
        target = torch.eye(3)[b.label] * (1 - smoothing) + smoothing / 3
        torch.testing.assert_close(made["loss"], -(target * log_p).sum(1).mean())
        assert float(made["accuracy"]) == float((log_p.argmax(1) == b.label).float().mean())


def test_missing_labels_are_left_out():
    method = Classification(Linear(), shift=0)
    some = method.loss(batch(6, labels=[0, 1, 2, -1, -1, -1]), None, 0)
    known = method.loss(batch(3), None, 0)
    torch.testing.assert_close(some["loss"], known["loss"])
    assert float(some["accuracy"]) == float(known["accuracy"])


def test_it_learns_and_accuracy_counts():
    image = torch.rand(90, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 1
    label = torch.arange(90) % 3
    image[torch.arange(90), 0, 1, label] = 1.0
    method = Classification(Linear(), shift=0, lr=3e-2)
    assert method.averaged() is method.classifier
    net = fit(method, (image, label), steps=60, batch_size=30, ema=0.8).result()
    assert net is method.classifier
    assert not net.training
    assert accuracy(net, image, label) == 1.0
    wrong = label.clone()
    wrong[:9] = (wrong[:9] + 1) % 3
    assert accuracy(net, image, wrong, batch_size=7) == pytest.approx(0.9)


def test_refusal():
    with pytest.raises(InputError, match="shift"):
        Classification(Linear(), shift=-1)
