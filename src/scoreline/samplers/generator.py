"""A denoiser with a sampler, as an image generator."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.generator import ImageGenerator
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler

__all__ = ["Sampled"]


class Sampled(ImageGenerator):
    """Images of a denoiser by a sampler.

    Args:
        denoiser: the model.
        sampler: settings of the solver, with steps or nfe chosen.
    """

    def __init__(self, denoiser: Denoiser, sampler: Sampler) -> None:
        super().__init__()
        self.denoiser, self.sampler = denoiser, sampler
        self.shape, self.num_classes = denoiser.shape, denoiser.num_classes

    def generate(
        self, indices: Sequence[int] | Tensor, noise: Noise, cond: Cond | None = None, *, steps: int | None = None
    ) -> Tensor:
        sampler = self.sampler
        if steps is not None:
            sampler = copy.copy(sampler)
            sampler.steps, sampler.nfe = steps, None
        device = next((b.device for b in [*self.denoiser.parameters(), *self.denoiser.buffers()]), "cpu")
        draws = noise.at(indices, self.denoiser.shape, device=device)
        sample = sampler(self.denoiser.given(cond), draws)
        self.nfe = sample.nfe
        return self.denoiser.decode(sample.x).clamp(-1, 1).float()
