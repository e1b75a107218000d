"""PSNR and SSIM against closed forms, literal windows and torchmetrics; diversity against its double loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.metrics.image_quality import _pair, pairwise_diversity, psnr, psnr_of_images, ssim, ssim_of_images


def images(n: int, seed: int, size: tuple[int, int] = (14, 17)) -> Tensor:
    return torch.rand(n, 2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


@pytest.mark.check(system=0, number=7)
def test_known_values() -> None:
    x = images(3, 0) / 2 + 0.4
    assert psnr(x, x + 0.1, data_range=2) == pytest.approx(20 + 20 * math.log10(2), rel=1e-9)
    zero = torch.zeros(2, 1, 4, 4)
    assert psnr(zero, zero + 0.1, data_range=1) == pytest.approx(20, rel=1e-6)
    assert psnr(zero, zero + 0.1, data_range=1, average="batch") == pytest.approx(20, rel=1e-6)
    assert psnr(zero, zero, data_range=1) == math.inf
    for border in ("valid", "reflect"):
        assert ssim(x, x, data_range=2, border=border) == pytest.approx(1, abs=1e-12)


def test_psnr_averages_images_or_errors() -> None:
    x, y = images(4, 0), images(4, 1)
    y[0] = x[0] + 0.01 * y[0]
    y = y.clamp(-1, 1)
    each = [10 * math.log10(4 / float((a - b).square().mean())) for a, b in zip(x, y)]
    assert psnr_of_images(x, y, data_range=2).tolist() == pytest.approx(each)
    assert psnr(x, y, data_range=2) == pytest.approx(sum(each) / 4)
    whole = 10 * math.log10(4 / float((x - y).square().mean()))
    assert psnr(x, y, data_range=2, average="batch") == pytest.approx(whole)
    assert whole < sum(each) / 4 - 5
    from torchmetrics.functional.image import peak_signal_noise_ratio

    assert psnr(x, y, data_range=2, average="batch") == pytest.approx(
        float(peak_signal_noise_ratio(y, x, data_range=2.0)), rel=1e-6
    )


def literal(x: np.ndarray, y: np.ndarray, data_range: float) -> list[float]:
    """SSIM at every position whose window lies inside, by loops over one channel."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, ab = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
            found.append((2 * ma * mb + c1) * (2 * ab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return found


@pytest.mark.parametrize("border", ["valid", "reflect"])
def test_ssim_equals_the_windows(border: str) -> None:
    x = images(2, 0)
    y = (x + 0.5 * images(2, 1)).clamp(-1, 1)

    def padded(image: Tensor) -> np.ndarray:
        return np.pad(image.numpy(), 5, mode="reflect") if border == "reflect" else image.numpy()

    expected = [float(np.mean([literal(padded(x[i, c]), padded(y[i, c]), 2.0) for c in range(2)])) for i in range(2)]
    found = ssim_of_images(x, y, data_range=2, border=border)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert ssim(x, y, data_range=2, border=border) == pytest.approx(sum(expected) / 2, rel=1e-9)
    assert found.tolist() == pytest.approx(ssim_of_images(y, x, data_range=2, border=border).tolist(), rel=1e-12)


def test_the_border_counts() -> None:
    """Images that differ in their outermost pixels only: far less visible to "valid"."""
    x = images(1, 0, (24, 24))
    y = x.clone()
    y[..., 0, :] *= -1
    valid, reflect = (ssim(x, y, data_range=2, border=border) for border in ("valid", "reflect"))
    assert 1 > valid > reflect + 0.01


def test_ssim_keeps_its_digits_in_float32() -> None:
    """A nearly flat bright image: E x^2 - mu^2 in float32 would be noise."""
    x = (0.9 + 1e-4 * images(1, 0)).float()
    y = (0.9 + 1e-4 * images(1, 1)).float()
    assert ssim(x, y, data_range=2) == pytest.approx(ssim(x.double(), y.double(), data_range=2), rel=1e-12)


def test_diversity_is_the_mean_over_pairs() -> None:
    x = images(7, 0, (2, 2))

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).sum(1)

    loop = [float((x[i] - x[j]).abs().sum()) for i in range(7) for j in range(i + 1, 7)]
    assert pairwise_diversity(x, distance, batch_size=4) == pytest.approx(sum(loop) / 21)
    assert pairwise_diversity(x, distance, pairs=21) == pytest.approx(sum(loop) / 21)
    drawn = [pairwise_diversity(x, distance, pairs=5, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert pairwise_diversity(x[:1].expand(5, -1, -1, -1), distance) == 0


def test_numbers_of_pairs_are_one_to_one() -> None:
    table = _pair(torch.arange(45)).tolist()
    assert sorted(map(tuple, table)) == [(i, j) for i in range(10) for j in range(i + 1, 10)]
    last = 3_000_000 * 2_999_999 // 2 - 1
    assert _pair(torch.tensor([last])).tolist() == [[2_999_998, 2_999_999]]


def test_bad_input() -> None:
    x = images(2, 0)
    for measure in (psnr, ssim):
        with pytest.raises(InputError, match="alike"):
            measure(x, x[:1], data_range=2)
        with pytest.raises(InputError, match="span more"):
            measure(x, x, data_range=1)  # [-1, 1] given as if it were [0, 1]
        with pytest.raises(InputError, match="not finite"):
            measure(x, x * float("nan"), data_range=2)
        with pytest.raises(InputError, match="floating"):
            measure(x.to(torch.uint8), x.to(torch.uint8), data_range=255)
        with pytest.raises(InputError, match="positive"):
            measure(x, x, data_range=0)
    with pytest.raises(InputError, match="'batch'"):
        psnr(x, x, data_range=2, average="bach")
    with pytest.raises(InputError, match="'valid'"):
        ssim(x, x, data_range=2, border="valids")
    with pytest.raises(InputError, match="at least 11"):
        ssim(x[..., :10], x[..., :10], data_range=2)
    with pytest.raises(InputError, match="at least 6"):
        ssim(x[..., :5], x[..., :5], data_range=2, border="reflect")
    for bad, words in (({"pairs": 2}, "1 to 1 pairs"), ({"pairs": 0}, "1 to 1"), ({"batch_size": 0}, "1 or more")):
        with pytest.raises(InputError, match=words):
            pairwise_diversity(x, lambda a, b: a.flatten(1).sum(1), **bad)
    with pytest.raises(InputError, match="two"):
        pairwise_diversity(x[:1], lambda a, b: a.flatten(1).sum(1))
    with pytest.raises(InputError, match="a pair"):
        pairwise_diversity(x, lambda a, b: a - b)
