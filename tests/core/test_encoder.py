"""The Encoder contract: range checks, quantisation, heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scoreline.core.encoder import Classifier, check_images, quantise
from scoreline.core.errors import InputError


class CountSyncs(TorchDispatchMode):
    syncs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.syncs += 1
        return func(*args, **(kwargs or {}))


def test_good_images_pass() -> None:
    check_images(torch.rand(2, 3, 4, 4) * 2 - 1, channels=3, size=(4, 4))
    check_images(torch.full((1, 1, 2, 2), 1.0009))
    check_images(torch.zeros(1, 1, 2, 2, dtype=torch.float64))


def test_one_reduction_is_read_back() -> None:
    """The values leave the device once, as one tensor of two numbers."""
    read: list[int] = []

    class Watched(Tensor):
        def tolist(self):
            read.append(self.numel())
            return self.as_subclass(Tensor).tolist()

    with CountSyncs() as mode:
        check_images(torch.rand(2, 3, 4, 4).as_subclass(Watched), channels=3)
    assert read == [2]
    assert mode.syncs == 0


@pytest.mark.parametrize(
    "x, words",
    [
        (torch.zeros(2, 3, 4), "NCHW"),
        (torch.zeros(0, 3, 4, 4), "NCHW"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "127.5"),
        (torch.zeros(1, 1, 4, 4), "expand"),
        (torch.zeros(1, 3, 5, 4), "4 x 4"),
        (torch.full((1, 3, 4, 4), 1.002), "range"),
        (torch.full((1, 3, 4, 4), -1.002), "range"),
        (torch.full((1, 3, 4, 4), 255.0), r"\[0, 255\]"),
        (torch.full((1, 3, 4, 4), float("nan")), "range"),
        (torch.full((1, 3, 4, 4), float("-inf")), "range"),
    ],
)
def test_bad_images_are_refused(x: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_images(x, channels=3, size=(4, 4))


def test_one_nan_among_many_is_found() -> None:
    x = torch.zeros(4, 3, 8, 8)
    x[2, 1, 3, 3] = float("nan")
    with pytest.raises(InputError, match="nan"):
        check_images(x)


@pytest.mark.parametrize("rule", ["uint8-round", "uint8-truncate"])
def test_uint8_images_return_to_their_levels(rule: str) -> None:
    """Plain truncation of the float32 round trip loses a level here and there."""
    levels = torch.arange(256, dtype=torch.float32)
    for x in (levels / 127.5 - 1, levels / 255 * 2 - 1):
        assert torch.equal(quantise(x, rule), levels)


def test_quantisation_rules_differ_between_levels() -> None:
    x = torch.tensor([100.3, 100.7, 300.0, -5.0]) / 127.5 - 1
    assert quantise(x, "uint8-round").tolist() == [100, 101, 255, 0]
    assert quantise(x, "uint8-truncate").tolist() == [100, 100, 255, 0]
    torch.testing.assert_close(quantise(x, "none"), torch.tensor([100.3, 100.7, 255, 0]), rtol=1e-5, atol=0)
    with pytest.raises(InputError, match="uint8-round"):
        quantise(x, "uint8-rond")


class Tiny(Classifier):
    dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    @property
    def protocol(self) -> dict[str, str]:
        return {"features": "tiny"}

    def features(self, x: Tensor) -> Tensor:
        check_images(x)
        return x.flatten(1)


def test_logits_are_the_head_of_the_features() -> None:
    net, x = Tiny(), torch.rand(3, 1, 2, 2)
    assert torch.equal(net(x), net.head(net.features(x)))
    other = net.with_classes(5)
    assert other(x).shape == (3, 5)
    assert net(x).shape == (3, 2)
    assert torch.equal(other.features(x), net.features(x))
    with pytest.raises(InputError):
        net.with_classes(0)
