"""The same numbers as the other implementations: what they printed for these features, written down.

Features from NumPy's legacy generator, whose stream is fixed for good. Printed by prdc 0.2, pytorch-fid 0.3.0,
clean-fid 0.1.35 (after np.random.seed(2020)) and torch-fidelity 0.4.0, with SciPy 1.17 and NumPy 2, in float64.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.metrics import frechet_distance, inception_score, kernel_distance, prdc


@pytest.fixture(scope="module")
def sets() -> tuple[Tensor, Tensor]:
    rng = np.random.RandomState(0)
    mix = rng.randn(16, 16)
    real, generated = rng.randn(1200, 16) @ mix, 0.9 * rng.randn(1100, 16) @ mix + 0.2
    return torch.from_numpy(real), torch.from_numpy(generated)


@pytest.mark.parametrize("method", ["symmetric", "sqrtm", "sqrtm-clean", "eigvals"])
def test_frechet_distance_of_pytorch_fid_clean_fid_and_torch_fidelity(method: str, sets: tuple[Tensor, Tensor]) -> None:
    for printed in (3.8155891200630094, 3.8155891200630094, 3.8155891200638052):
        assert frechet_distance(*sets, method=method) == pytest.approx(printed, rel=1e-11)


@pytest.mark.parametrize("mode", ["torch-fidelity", "clean-fid"])
def test_kernel_distance_of_torch_fidelity_and_clean_fid(mode: str, sets: tuple[Tensor, Tensor]) -> None:
    """Their subsets are ours: draws from RandomState(2020), the generated set first."""
    found = kernel_distance(*sets, mode=mode)
    assert found.mean == pytest.approx(5.610762332239849, rel=1e-12)
    assert found.std == pytest.approx(1.372492214528821, rel=1e-11)


def test_inception_score_of_torch_fidelity(sets: tuple[Tensor, Tensor]) -> None:
    found = inception_score(sets[1])
    assert found.mean == pytest.approx(5.072121353577345, rel=1e-12)
    assert found.std == pytest.approx(0.19830462982758867, rel=1e-11)


@pytest.mark.parametrize("distance", ["direct", "filtered"])
def test_shares_of_prdc_and_torch_fidelity(distance: str, sets: tuple[Tensor, Tensor]) -> None:
    printed = (0.9627272727272728, 0.8608333333333333, 1.31, 0.9733333333333334)
    assert prdc(*sets, distance=distance) == pytest.approx(printed, rel=1e-12)
    precision, recall, *_ = prdc(*sets, mode="kynkaanniemi", distance=distance)
    assert (precision, recall) == pytest.approx((0.9245454668998718, 0.7583333253860474), rel=1e-7)  # float32 there
