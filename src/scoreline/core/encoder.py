"""The contract of everything that turns images into features, and of everything that turns features into logits.

Resizing, quantisation and normalisation happen inside an encoder, because each of them moves a Frechet distance by
more than the usual gap between papers (Parmar et al. 2022, 2104.11222); `protocol` names them.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoreline.core.errors import InputError, unknown_name

__all__ = ["Checked", "Classifier", "Encoder", "QUANTISATIONS", "check_images", "quantise"]

QUANTISATIONS = ("none", "uint8-round", "uint8-truncate")

_SLACK = 1e-3


def check_images(x: Tensor, *, channels: int | None = None, size: tuple[int, int] | None = None) -> None:
    """Refuse a batch that is not float32 or float64 NCHW in [-1, 1]; costs one host synchronisation.

    Images in [0, 1] lie inside [-1, 1] and cannot be told apart reliably: that is the caller's to know.

    Args:
        x: (N, C, H, W) in [-1, 1], with a slack of 1e-3.
        channels: the C that is expected, or None for any.
        size: the (H, W) that is expected, or None for any.

    Raises:
        InputError: wrong dtype, rank, channels or size; values outside [-1, 1], NaN or infinite.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError("image dtype", str(x.dtype), "images are float32 in [-1, 1]; uint8 becomes x / 127.5 - 1")
    if x.ndim != 4 or 0 in x.shape:
        raise InputError("image shape", tuple(x.shape), "images are NCHW: (N, C, H, W), none of them 0")
    if channels is not None and x.shape[1] != channels:
        grey = "; x.expand(-1, 3, -1, -1) makes three of a grey one" if (x.shape[1], channels) == (1, 3) else ""
        raise InputError("image shape", tuple(x.shape), f"{channels} channels are expected{grey}")
    if size is not None and tuple(x.shape[2:]) != tuple(size):
        raise InputError("image shape", tuple(x.shape), f"images of {size[0]} x {size[1]} are expected")
    low, high = torch.stack(torch.aminmax(x.detach())).tolist()
    if not (low >= -1 - _SLACK and high <= 1 + _SLACK):  # NaN compares false, and so is refused
        guess = "[0, 255]: x / 127.5 - 1 maps them" if low >= 0 and 1 < high <= 255 else "not images"
        raise InputError("image range", (low, high), f"images lie in [-1, 1]; these look like {guess}")


def quantise(x: Tensor, rule: str) -> Tensor:
    """Images in [-1, 1] as levels in [0, 255], float, by a named rule.

    u = (x + 1) 127.5 clipped to [0, 255], then left as it is, rounded, or truncated. Truncation takes values within
    1e-3 below a level as that level, so that images which came from uint8 return to their own levels under both rules.

    Args:
        x: images in [-1, 1], any shape.
        rule: "none", "uint8-round" or "uint8-truncate" (the usual `.to(uint8)`).

    Raises:
        InputError: an unknown rule.
    """
    levels = ((x + 1) * 127.5).clamp(0, 255)
    if rule == "none":
        return levels
    if rule == "uint8-round":
        return levels.round()
    if rule == "uint8-truncate":
        return (levels + _SLACK).floor().clamp(max=255)
    raise unknown_name("quantisation", rule, QUANTISATIONS)


@dataclass(frozen=True)
class Checked:
    """The preprocessing of networks that take images as they are: :func:`check_images` and nothing else.

    Attributes:
        channels: the C that is expected, or None for any.
        size: the (H, W) that is expected, or None for any.
    """

    channels: int | None = None
    size: tuple[int, int] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        check_images(x, channels=self.channels, size=self.size)
        return x


class Encoder(nn.Module):
    """Images in, feature vectors out, in two halves.

    features(x) = activations(preprocess(x), [tap])[tap]

    The first half (checks, quantisation, resizing) has no parameters and may run in worker processes; the second is
    one pass through the network for any number of taps. A subclass sets `dim` (D), `tap` (the one that
    :meth:`features` gives) and `protocol`, and defines :meth:`activations`, `tap_names` when there is more than one
    tap, and `preprocess` when its images need more than a check. One that has a single tap and nothing to prepare may
    define :meth:`features` alone.

    `protocol` holds plain values under names of fields of `scoreline.core.score.Protocol`: features (the network's
    name), tap, weights (a SHA-256 or "none"), resize, quantisation, precision.
    """

    dim: int
    tap: str = "features"

    @property
    @abstractmethod
    def protocol(self) -> dict[str, str]:
        """What moves a score besides the images, under the field names of a Protocol."""
        raise NotImplementedError(f"{type(self).__name__} states no protocol")

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The taps that :meth:`activations` knows."""
        return (self.tap,)

    @property
    def preprocess(self) -> Callable[[Tensor], Tensor]:
        """A function from images (N, C, H, W) in [-1, 1] to the input of the network.

        It holds no parameters and no reference to the network, so that it is cheap to pickle for worker processes.
        It refuses images of the wrong shape, dtype or range with an InputError.
        """
        return Checked()

    def activations(self, prepared: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Taps of prepared images, each (N, D of that tap), from one pass through the network.

        Args:
            prepared: what `preprocess` returned, on the network's device.
            names: of `tap_names`.

        Raises:
            InputError: an unknown tap.
        """
        self.check_taps(names)
        return {name: self.features(prepared) for name in dict.fromkeys(names)}

    def features(self, x: Tensor) -> Tensor:
        """Feature vectors (N, D) of images (N, C, H, W) in [-1, 1].

        Raises:
            InputError: images of the wrong shape, dtype or range.
        """
        if type(self).activations is Encoder.activations:
            raise NotImplementedError(f"{type(self).__name__} defines neither activations nor features")
        return self.activations(self.preprocess(x), [self.tap])[self.tap]

    def check_taps(self, names: Sequence[str]) -> None:
        """Refuse names that are no taps of this network, with the nearest one that is."""
        for name in names:
            if name not in self.tap_names:
                raise unknown_name("tap", name, self.tap_names)

    def fast(self, *, compile: bool = False, dtype: torch.dtype | None = None) -> Encoder:
        """The same network made for speed; what a small one has no need of is refused, never ignored.

        Args:
            compile: run it through `torch.compile`.
            dtype: of its layers, None for the one it has; the protocol says which.

        Raises:
            InputError: this network has no such form.
        """
        name = self.protocol["features"]
        if compile:
            raise InputError("compile", compile, f"{name} is not compiled; leave it out")
        if dtype not in (None, torch.float32):
            raise InputError("dtype", str(dtype).removeprefix("torch."), f"{name} runs in float32")
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Classifier(Encoder):
    """An encoder with a head: logits = head(features(x)).

    A subclass sets `head` too; `with_classes` suits a linear head on (N, D), others (a label a pixel) override it.
    """

    head: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def with_classes(self, num_classes: int) -> Classifier:
        """A copy with the same features and a new, untrained linear head of `num_classes` outputs.

        Raises:
            InputError: fewer than one class.
        """
        if num_classes < 1:
            raise InputError("num_classes", num_classes, "a classifier has at least one class")
        new = copy.deepcopy(self)
        weight = next(self.parameters())
        new.head = nn.Linear(self.dim, num_classes, device=weight.device, dtype=weight.dtype)
        return new
