"""Adversarial losses at points where they are known, and the adaptive weight."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.fewstep.adversarial import adaptive_weight, discriminator_loss, generator_loss

ZERO = torch.zeros(4, 3)


def test_values():
    assert discriminator_loss(ZERO, ZERO, "hinge") == 2
    assert generator_loss(ZERO, "hinge") == 0
    assert discriminator_loss(ZERO, ZERO, "softplus").item() == pytest.approx(2 * math.log(2))
    assert generator_loss(ZERO, "softplus").item() == pytest.approx(math.log(2))
    assert discriminator_loss(ZERO + 2, ZERO - 1, "wasserstein") == -3
    assert discriminator_loss(ZERO + 2, ZERO - 2, "hinge") == 0
    assert discriminator_loss(ZERO + 3, ZERO, "softplus") < discriminator_loss(ZERO, ZERO, "softplus")
    assert generator_loss(ZERO + 1, "softplus") < generator_loss(ZERO, "softplus")
    with pytest.raises(InputError, match="did you mean 'hinge'"):
        generator_loss(ZERO, "hing")


def test_the_adaptive_weight_makes_both_gradients_alike():
    w = torch.tensor([2.0, 1.0], requires_grad=True)
    main, other = (w * torch.tensor([3.0, 4.0])).sum(), (w * torch.tensor([0.0, 0.5])).sum()
    assert adaptive_weight(main, other, w, eps=0.0).item() == pytest.approx(10.0)
    assert adaptive_weight(main, other, w, high=4.0).item() == 4.0
    assert not adaptive_weight(main, other, w).requires_grad
