"""Guidance by extrapolating between two predictions: classifier-free guidance.

F = F_u + s (F_c - F_u) in the network's own kind; s = 1 is conditional, s = 0 unconditional, s > 1 extrapolates. Since
all kinds are affine in F the same images come out in the eps-, v- and x0-form. Papers' w is s - 1.

Reference: Ho & Salimans 2022 (arXiv 2207.12598); Lin et al. 2023 (rescaling).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError
from scoreline.core.schedule import Time

__all__ = ["ClassifierFree", "extrapolate", "rescale"]


def extrapolate(unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
    """unconditional + guidance (conditional - unconditional)."""
    return torch.lerp(unconditional, conditional, guidance)


def rescale(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """share * guided std(conditional)/std(guided) + (1 - share) * guided, standard deviations per image.

    Reference: Lin et al. 2023, section 3.4 (share 0.7).
    """
    dims = tuple(range(1, guided.dim()))
    # A constant prediction stays what it is.
    ratio = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True).clamp_min(1e-12)
    return guided * (share * ratio + (1 - share))


class ClassifierFree(View):
    """A conditional denoiser with classifier-free guidance; each call costs two evaluations, made as one doubled batch.

    Args:
        inner: a model trained with dropped conditions.
        guidance: s; 1 conditional, 0 unconditional.
        rescaling: share of the standard deviation given back, in [0, 1].
    """

    def __init__(self, inner: Denoiser, guidance: float, *, rescaling: float = 0.0) -> None:
        super().__init__(inner)
        if not 0 <= rescaling <= 1:
            raise InputError("rescaling", rescaling, "must lie in [0, 1]")
        if inner.num_classes is None and type(inner).null is Denoiser.null:
            raise InputError("guidance", guidance, "this model takes no conditions, so there is nothing to guide by")
        self.guidance, self.rescaling = float(guidance), rescaling
        self.evaluations = 2 * inner.evaluations

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        if cond is None:
            raise InputError("condition", None, "guidance needs conditions; bind them with given(Cond(labels=...))")
        both_t: Any = torch.cat([t, t]) if isinstance(t, Tensor) and t.dim() else t
        post = self.inner(torch.cat([x, x]), both_t, cond.cat(self.inner.null(cond)))
        conditional, unconditional = post.raw.chunk(2)
        raw = extrapolate(unconditional, conditional, self.guidance)
        if self.rescaling:
            raw = rescale(raw, conditional, self.rescaling)
        # The learned variance is never extrapolated: it is the conditional branch's.
        return post.first_half(x, raw)
