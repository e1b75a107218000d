"""Adversarial losses on logits, and the adaptive weight between two losses.

Logits are high for real images. Reference: Lim & Ye 2017 (hinge), Goodfellow et al. 2014 (non-saturating),
Arjovsky et al. 2017 (Wasserstein), Esser et al. 2021 (VQGAN's adaptive weight).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreline.core.errors import unknown_name

__all__ = ["ADVERSARIAL", "adaptive_weight", "discriminator_loss", "generator_loss"]

ADVERSARIAL = ("hinge", "softplus", "wasserstein")


def discriminator_loss(real: Tensor, fake: Tensor, form: str = "hinge") -> Tensor:
    """What the discriminator minimises, a scalar.

    hinge: mean relu(1 - real) + mean relu(1 + fake);  softplus: mean softplus(-real) + mean softplus(fake);
    wasserstein: mean fake - mean real.

    Args:
        real, fake: logits of any shape.
        form: one of `ADVERSARIAL`.

    >>> float(discriminator_loss(torch.zeros(1), torch.zeros(1)))
    2.0
    """
    if form == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if form == "softplus":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if form == "wasserstein":
        return fake.mean() - real.mean()
    raise unknown_name("adversarial loss", form, ADVERSARIAL)


def generator_loss(fake: Tensor, form: str = "hinge") -> Tensor:
    """What the generator minimises, a scalar: -mean fake (hinge, wasserstein) or mean softplus(-fake).

    Args:
        fake: logits of the generator's images.
        form: one of `ADVERSARIAL`.
    """
    if form in ("hinge", "wasserstein"):
        return -fake.mean()
    if form == "softplus":
        return F.softplus(-fake).mean()
    raise unknown_name("adversarial loss", form, ADVERSARIAL)


def adaptive_weight(
    main: Tensor, other: Tensor, parameter: Tensor, *, low: float = 0.0, high: float = 1e4, eps: float = 1e-4
) -> Tensor:
    """clamp(|grad main| / (|grad other| + eps), low, high) with respect to one parameter, detached.

    Args:
        main, other: scalar losses whose graphs both reach `parameter`; they are kept.
        parameter: usually the weight of the last layer.
        low, high: the clamp.
        eps: keeps the ratio finite.
    """
    numerator = torch.autograd.grad(main, parameter, retain_graph=True)[0].norm()
    denominator = torch.autograd.grad(other, parameter, retain_graph=True)[0].norm()
    return (numerator / (denominator + eps)).clamp(low, high).detach()
