"""Plain training of a classifier: cross-entropy with label smoothing and small shifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.encoder import Classifier
from scoreline.core.errors import InputError
from scoreline.core.method import Method, Update

__all__ = ["Classification", "accuracy", "shifted"]


def shifted(images: Tensor, offsets: Tensor) -> Tensor:
    """Images moved by whole pixels, the edge filled with -1.

    Args:
        images: (B, C, H, W).
        offsets: (B, 2) int64, down and right.
    """
    batch, _, height, width = images.shape
    reach = int(offsets.abs().max()) if offsets.device.type == "cpu" else max(height, width)
    padded = F.pad(images, (reach,) * 4, value=-1.0)
    rows = torch.arange(height, device=images.device) + reach - offsets[:, :1]
    columns = torch.arange(width, device=images.device) + reach - offsets[:, 1:]
    picked = padded[torch.arange(batch, device=images.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


class Classification(Method):
    """Train a classifier on labelled images; those with label -1 (missing) are left out of the loss.

    Args:
        classifier: the network.
        lr: learning rate, or a function of the step.
        shift: images are moved by up to this many pixels in each direction; 0 for none.
        noise: standard deviation of Gaussian noise added to the images, so that features do not hang on single pixels.
        label_smoothing: share of the target spread over all classes.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        lr: float | Callable[[int], float] = 1e-3,
        shift: int = 1,
        noise: float = 0.0,
        label_smoothing: float = 0.0,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        if shift < 0:
            raise InputError("shift", shift, "counts pixels: 0 or more")
        self.classifier, self.shift, self.noise, self.label_smoothing = classifier, shift, noise, label_smoothing
        self.updates = [
            Update(classifier, self.loss, optimizer=torch.optim.AdamW, lr=lr, settings={"weight_decay": weight_decay})
        ]

    def averaged(self) -> nn.Module:
        return self.classifier

    def loss(self, batch: Any, shared: Any, step: int) -> dict[str, Tensor]:
        images = batch.image
        if self.shift:
            offsets = (batch.draws.uniform(part=1, shape=(2,)) * (2 * self.shift + 1)).long() - self.shift
            images = shifted(images, offsets)
        if self.noise:
            images = (images + self.noise * batch.draws.normal()).clamp(-1, 1)
        logits = self.classifier(images)
        loss = F.cross_entropy(logits, batch.label, label_smoothing=self.label_smoothing, ignore_index=-1)
        right = (logits.argmax(1) == batch.label).sum() / (batch.label >= 0).sum()
        return {"loss": loss, "accuracy": right}

    def result(self) -> Classifier:
        return self.classifier.eval()


@torch.no_grad()
def accuracy(classifier: Classifier, images: Tensor, labels: Tensor, *, batch_size: int = 1000) -> float:
    """Share of images (N, C, H, W) whose largest logit is their label (N,)."""
    right = [(classifier(x).argmax(1) == y).sum() for x, y in zip(images.split(batch_size), labels.split(batch_size))]
    return float(torch.stack(right).sum()) / len(images)
