"""Epsilon scaling: the network's noise estimate divided by a number a little above 1, against exposure bias.

eps' = eps / (b + k i),  i = 0, 1, ... the step.

Reference: Ning, Li, Su, Salah & Onal Ertugrul 2024 (arXiv 2308.15321); also in the code of the Time-Shift Sampler.
"""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError
from scoreline.core.sampler import Sampler, State
from scoreline.core.schedule import Time, spread
from scoreline.samplers.wrapped import Wrapped

__all__ = ["EpsilonScaling", "ScaledNoise"]


class ScaledNoise(View):
    """A denoiser whose noise estimate is divided by `scale`: E' = (x - sigma eps/scale)/alpha.

    Args:
        inner: the model.
        scale: > 0; 1 leaves the model alone.
    """

    def __init__(self, inner: Denoiser, scale: float) -> None:
        super().__init__(inner)
        if not scale > 0:
            raise InputError("scale", scale, "must be positive")
        self.scale = float(scale)

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        post = self.inner(x, t, cond)
        if self.scale == 1.0:
            return post
        alpha, sigma = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        pair = (0.0, 1 / self.scale)
        if not isinstance(alpha, Tensor) and alpha == 0:
            # Without signal the noise is the whole state, whatever the network says of its size.
            return post
        mean = (1 / alpha, -sigma / (alpha * self.scale))
        return Posterior(x, post.eps, mean=mean, eps=pair, sigma=sigma, mix=post.mix, taps=post.taps)


@recorded
class EpsilonScaling(Wrapped):
    """A sampler on a model whose noise estimate is divided by scale + slope i at step i.

    Args:
        of: the sampler inside, a name or an object.
        scale: b; 1.0012 in the released code for CIFAR-10.
        slope: k.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.
    """

    def __init__(
        self,
        *,
        of: str | Sampler = "ddim",
        scale: float = 1.0012,
        slope: float = 0.0,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(of, steps=steps, nfe=nfe, grid=grid)
        if not scale > 0 or not slope >= 0:
            raise InputError("scale, slope", (scale, slope), "needs scale above 0 and slope of 0 or more")
        self.scale, self.slope = scale, slope
        # Another model than the one that is asked for: its ODE is not the one that an order would be measured on.
        self.order, self.per_image, self.rising = None, False, False

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        return self._inner.step(ScaledNoise(denoiser, self.scale + self.slope * row.i), state, row)
