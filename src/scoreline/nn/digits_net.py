"""The small classifier of 8x8 digits whose features give `fid@digits`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.artefact import fingerprint, recorded
from scoreline.core.encoder import Checked, Classifier

__all__ = ["DigitsNet"]


@recorded
class DigitsNet(Classifier):
    """Four 3x3 convolutions and a hidden layer; the features are the hidden layer after its ReLU.

    Args:
        width: channels of the first two convolutions; the others have twice as many.
        dim: length of the feature vector.
        num_classes: outputs of the head.
    """

    in_shape = (1, 8, 8)

    def __init__(self, *, width: int = 32, dim: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        self.dim, self.num_classes, self.tap = dim, num_classes, f"hidden-{dim}"
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.hidden = nn.Linear(2 * width * 4, dim)
        self.head = nn.Linear(dim, num_classes)

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "features": "digits",
            "tap": self.tap,
            "weights": fingerprint({}, self.state_dict()),
            "resize": "none",
            "quantisation": "none",
            "precision": "float32",
        }

    @property
    def tap_names(self) -> tuple[str, ...]:
        return (self.tap, "logits")

    @property
    def preprocess(self) -> Callable[[Tensor], Tensor]:
        return Checked(1, (8, 8))

    def activations(self, prepared: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The hidden layer (N, dim) and the logits (N, num_classes) of (N, 1, 8, 8) images."""
        self.check_taps(names)
        h = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(prepared)))), 2)
        h = F.max_pool2d(F.relu(self.conv4(F.relu(self.conv3(h)))), 2)
        h = F.relu(self.hidden(h.flatten(1)))
        return {name: self.head(h) if name == "logits" else h for name in names}
