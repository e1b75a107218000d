"""Laws that hold for any features, asked of every metric that they concern, on random sets of random shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoreline.metrics import cmmd, fid_infinity, frechet_distance, inception_score, polynomial_mmd, prdc

LAW = settings(deadline=None, max_examples=12)
SEEDS = st.integers(0, 2**31)
Metric = Callable[[Tensor, Tensor], float]

SYMMETRIC: dict[str, Metric] = {
    "frechet": frechet_distance,
    "kid": polynomial_mmd,
    "kid, biased": lambda r, g: polynomial_mmd(r, g, estimator="biased"),
    "cmmd": lambda r, g: cmmd(r, g, sigma=1.0),
}
ALL: dict[str, Metric] = SYMMETRIC | {
    "precision": lambda r, g: prdc(r, g).precision,
    "recall": lambda r, g: prdc(r, g).recall,
    "density": lambda r, g: prdc(r, g).density,
    "coverage": lambda r, g: prdc(r, g).coverage,
    "recall, kynkaanniemi": lambda r, g: prdc(r, g, mode="kynkaanniemi").recall,
}
# cmmd and kid know where the origin is
TRANSLATED = [name for name in ALL if "kid" not in name and name != "cmmd"]


def draw(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sets(seed: int, d: int = 4) -> tuple[Tensor, Tensor]:
    return draw(40, d, seed) + 0.5, 0.8 * draw(30, d, seed + 1) + 0.3


@LAW
@given(seed=SEEDS, d=st.integers(1, 6))
@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_ones_are_symmetric(name: str, seed: int, d: int) -> None:
    x, y = sets(seed, d)
    assert ALL[name](x, y) == pytest.approx(ALL[name](y, x), rel=1e-8, abs=1e-10)


@LAW
@given(seed=SEEDS)
@pytest.mark.parametrize("name", ALL)
def test_a_common_rotation_and_the_order_of_images_do_not_matter(name: str, seed: int) -> None:
    x, y = sets(seed)
    turn = torch.linalg.qr(draw(4, 4, seed + 2)).Q
    value = ALL[name](x, y)
    assert ALL[name](x @ turn, y @ turn) == pytest.approx(value, rel=1e-8, abs=1e-10)
    assert ALL[name](x.flip(0), y.roll(7, 0)) == pytest.approx(value, rel=1e-9, abs=1e-11)


@LAW
@given(seed=SEEDS, scale=st.sampled_from([1e-3, 0.5, 30.0]))
@pytest.mark.parametrize("name", TRANSLATED)
def test_a_common_shift_does_not_matter_and_scale_as_it_should(name: str, seed: int, scale: float) -> None:
    x, y = sets(seed)
    shift = 3 * draw(1, 4, seed + 3)
    power = 2 if name == "frechet" else 0
    expected = scale**power * ALL[name](x, y)
    assert ALL[name](scale * x + shift, scale * y + shift) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@LAW
@given(seed=SEEDS, k=st.integers(1, 8), strict=st.booleans())
def test_precision_is_the_recall_of_the_other_side(seed: int, k: int, strict: bool) -> None:
    x, y = sets(seed)
    there, back = prdc(x, y, k=k, strict=strict), prdc(y, x, k=k, strict=strict)
    assert (there.precision, there.recall) == (back.recall, back.precision)


@LAW
@given(seed=SEEDS, k=st.integers(1, 8))
def test_larger_balls_hold_more(seed: int, k: int) -> None:
    x, y = sets(seed)
    small, closed, large = prdc(x, y, k=k), prdc(x, y, k=k, strict=False), prdc(x, y, k=k + 1)
    for name in ("precision", "recall", "coverage"):
        assert getattr(small, name) <= getattr(closed, name)
        assert getattr(small, name) <= getattr(large, name)
    assert small.density * k <= large.density * (k + 1)
    assert all(v >= 0 for v in small)
    assert max(small.precision, small.recall, small.coverage) <= 1


@LAW
@given(seed=SEEDS, sharpness=st.floats(0.1, 20))
def test_inception_score_lies_between_1_and_the_classes(seed: int, sharpness: float) -> None:
    logits = sharpness * draw(35, 6, seed)
    value = inception_score(logits, splits=1).mean
    assert 1 <= value <= 6 * (1 + 1e-12)
    turned = logits[torch.randperm(35)][:, torch.randperm(6)] + draw(35, 1, seed + 1)
    assert inception_score(turned, splits=1).mean == pytest.approx(value, rel=1e-9)
    # images that repeat add nothing
    assert inception_score(torch.cat([logits, logits]), splits=1).mean == pytest.approx(value, rel=1e-9)


@LAW
@given(seed=SEEDS, scale=st.floats(0.1, 10))
def test_fid_infinity_scales_as_the_distance_does(seed: int, scale: float) -> None:
    x, y = sets(seed)
    whole, scaled = fid_infinity(x, y, points=4, smallest=12), fid_infinity(scale * x, scale * y, points=4, smallest=12)
    assert scaled.value == pytest.approx(scale**2 * whole.value, rel=1e-6, abs=1e-8 * scale**2)


def test_biased_kernel_estimates_are_not_negative_and_unbiased_ones_average_to_zero() -> None:
    """Twenty pairs of sets of one distribution: the unbiased mean lies within three standard errors of 0."""
    pairs = [(draw(25, 3, seed), draw(25, 3, seed + 100)) for seed in range(40)]
    assert min(polynomial_mmd(x, y, estimator="biased") for x, y in pairs) > 0
    unbiased = torch.tensor([polynomial_mmd(x, y) for x, y in pairs])
    assert abs(unbiased.mean()) < 3 * unbiased.std() / 40**0.5
    biased = torch.tensor([polynomial_mmd(x, y, estimator="biased") for x, y in pairs])
    assert biased.mean() > 5 * biased.std() / 40**0.5
