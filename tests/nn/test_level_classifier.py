"""The noise-level classifier: its table, its sizes, its units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scoreline.core.errors import InputError
from scoreline.nn.level_classifier import LevelClassifier, fitting_strides, level_table


@pytest.mark.check(system=8, number=1)
@pytest.mark.parametrize(("low", "high"), [(0.01, 50.0), (0.01, 348.0)])
def test_the_table_is_log_uniform_and_starts_at_the_largest_level(low: float, high: float) -> None:
    table = level_table(low, high, 1000)
    assert table.shape == (1000,)
    assert table.dtype == np.float64
    assert table[0] == high
    assert np.allclose(table[:-1] / table[1:], (high / low) ** (0.999 / 999), rtol=1e-12)
    assert table[-1] == pytest.approx(low * (high / low) ** 1e-3)
    assert table[-1] > low


@pytest.mark.check(system=8, number=2)
def test_both_published_nets_have_their_parameters_and_shapes() -> None:
    for side, strides in ((32, (2, 2, 2, 2)), (256, (4, 4, 4, 2))):
        net = LevelClassifier(in_shape=(3, side, side))
        assert net.strides == strides
        assert sum(p.numel() for p in net.parameters()) == 1_413_416
        with torch.no_grad():
            assert net(torch.zeros(2, 3, side, side)).shape == (2, 1000)


def test_small_images_get_a_fitting_depth() -> None:
    net = LevelClassifier(in_shape=(1, 8, 8), channels=(4, 8, 16, 32), levels=30)
    assert net.strides == (2, 2)
    assert net.head.in_features == 8 * 2 * 2
    assert net(torch.zeros(5, 1, 8, 8)).shape == (5, 30)
    assert [fitting_strides(n) for n in (4, 16, 64, 128)] == [(2,), (2, 2, 2), (4, 2, 2, 2), (4, 4, 2, 2)]


def test_forward_is_conv_relu_average_pool_on_data_in_0_1() -> None:
    torch.manual_seed(0)
    net = LevelClassifier(in_shape=(1, 4, 4), channels=(3,), levels=5)
    x = torch.randn(2, 1, 4, 4)
    h = torch.relu(F.conv2d(x * 0.5 + 0.5, net.convs[0].weight, net.convs[0].bias, padding=1))
    pooled = torch.stack([h[:, :, i : i + 2, j : j + 2].mean((2, 3)) for i in (0, 2) for j in (0, 2)], -1)
    wanted = pooled.flatten(1) @ net.head.weight.T + net.head.bias
    assert torch.allclose(net(x), wanted, atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"in_shape": (3,)},
        {"in_shape": (1, 12, 12)},
        {"in_shape": (1, 8, 16)},
        {"in_shape": (1, 8, 8), "strides": (2, 2, 2, 2)},
        {"in_shape": (1, 8, 8), "channels": (8,), "strides": (2, 2)},
    ],
)
def test_what_does_not_fit_is_refused(bad: dict) -> None:
    with pytest.raises(InputError):
        LevelClassifier(**bad)


def test_empty_ranges_are_refused() -> None:
    for arguments in ((0.0, 1.0, 10), (2.0, 1.0, 10), (0.1, 1.0, 1)):
        with pytest.raises(InputError):
            level_table(*arguments)
