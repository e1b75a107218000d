"""Distances: limits, symmetry, gradients, refusals."""

from __future__ import annotations

import pytest
import torch

from scoreline.core.errors import ArtefactError, InputError
from scoreline.fewstep.distances import distance, elementwise_huber, huber_constant, lpips_size, pseudo_huber, squared

A, B = (torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))


def test_by_hand():
    a, b = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    assert squared(a, b).item() == 12.5
    assert pseudo_huber(a, b, 12.0).item() == 1.0  # sqrt(25 + 144) - 12
    assert elementwise_huber(a, b, 4.0).item() == pytest.approx((1 + 4 * 2**0.5 - 4) / 2)


def test_limits_and_gradients():
    norm = (A - B).flatten(1).norm(dim=1)
    assert torch.allclose(pseudo_huber(A, B, 1e-9), norm)
    assert torch.allclose(pseudo_huber(A, B, 1e5), norm**2 / 2e5, rtol=1e-6)
    x = A.clone().requires_grad_()
    slope = torch.autograd.grad(pseudo_huber(x, B, 0.1).sum(), x)[0].flatten(1).norm(dim=1)
    assert torch.allclose(slope, norm / (norm**2 + 0.01).sqrt())
    assert bool((slope < 1).all())
    same = A.clone().requires_grad_()
    assert torch.autograd.grad(pseudo_huber(same, A).sum(), same)[0].abs().max() == 0


def test_constants_and_names():
    assert huber_constant((1, 8, 8)) == pytest.approx(0.00432)
    assert torch.equal(distance("pseudo-huber")(A, B), pseudo_huber(A, B, 0.00054 * 6**0.5))
    assert torch.equal(distance("elementwise-huber")(A, B), elementwise_huber(A, B, 1e-3))
    assert torch.equal(distance("squared")(A, B), squared(A, B))
    assert (lpips_size((3, 255, 255)), lpips_size((3, 256, 256))) == (224, None)
    with pytest.raises(InputError, match="did you mean 'squared'"):
        distance("squarred")
    with pytest.raises(InputError, match="must be positive"):
        pseudo_huber(A, B, 0.0)
    with pytest.raises((ArtefactError, InputError), match="vgg"):
        distance("lpips-vgg")
