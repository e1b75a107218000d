"""Denoisers that are told a guidance strength w, that run upwards, or whose network has two heads.

    told      x(z, t, c, w): one evaluation in place of two; w = 0 is unguided (elsewhere s = 1 + w)
    both      the network answers (x', eps'): x = sigma^2 x' + alpha^2 (z - sigma eps')/alpha, which is the answer of a
              network of v = alpha eps' - sigma x', since x = alpha z - sigma v

Reference: Meng et al. 2023 (arXiv 2210.03142); Salimans & Ho 2022 (arXiv 2202.00512), section 4, for the two heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError
from scoreline.core.noise import Draws
from scoreline.core.schedule import Schedule, Time
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.fewstep.teachers import innermost

__all__ = ["DistilledGuidance", "Noising", "TwoHeads", "check_interval", "drawn_weights", "interval_of"]


def check_interval(interval: Sequence[float]) -> tuple[float, float]:
    """(low, high) of an interval of strengths.

    Raises:
        InputError: there are not two, or they fall, or the first is negative.
    """
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1]:
        raise InputError("guidance", list(interval), "give the least and the largest w, as [0, 4]; 0 is unguided")
    return float(interval[0]), float(interval[1])


def drawn_weights(draws: Draws, interval: Sequence[float]) -> Tensor:
    """w ~ U[low, high] of each image, (B,) float32: draw (0, 3).

    Args:
        draws: streams of the batch.
        interval: (low, high).
    """
    low, high = interval
    return (low + (high - low) * draws.uniform(step=0, part=3)).float()


def interval_of(model: nn.Module) -> tuple[float, float] | None:
    """The strengths that a student was trained with, or None of a model that is told none."""
    told = _told(model)
    return None if told is None else told.range


def _told(model: nn.Module | None) -> DistilledGuidance | None:
    while model is not None and not isinstance(model, DistilledGuidance):
        model = getattr(model, "inner", None)
    return model


@recorded
class DistilledGuidance(View):
    """A student that takes the guidance strength w as an input, `cond.weight`; where none is given, its own default.

    The interval of training and the default are saved with the weights. The strength is no guidance of the sampler's:
    to guide such a student once more is refused.

    Args:
        inner: a denoiser whose network takes a strength.

    Attributes:
        guidance: w where none is given.
        interval: (2,) least and largest w of its training.

    Raises:
        InputError: its network takes no strength.
    """

    guidance: Tensor
    interval: Tensor

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        net = getattr(innermost(inner), "net", None)
        if "weight" not in getattr(net, "accepts", ()):
            mend = "takes no guidance strength; give a network with weight_input: true"
            raise InputError("network", type(net).__name__, mend)
        self.register_buffer("guidance", torch.tensor(0.0))
        self.register_buffer("interval", torch.tensor([0.0, 4.0]))

    @property
    def range(self) -> tuple[float, float]:
        """(least, largest) w of its training."""
        low, high = self.interval.tolist()
        return low, high

    def load_strengths(self, model: nn.Module | None) -> None:
        """Take over interval and default of another student, where it has them."""
        other = _told(model)
        if other is not None:
            self.guidance.copy_(other.guidance)
            self.interval.copy_(other.interval)

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        if cond is None or cond.weight is None:
            cond = (cond or Cond()).replace(weight=self.guidance.expand(len(x)))
        return self.inner(x, t, cond)

    def given(self, cond: Cond | None) -> DistilledGuidance:
        if cond is not None and cond.weight is not None:
            low, high = self.range
            least, most = float(cond.weight.min()), float(cond.weight.max())
            if least < low - 1e-6 or most > high + 1e-6:
                said = f"guidance strength {least if least < low else most:g} lies outside [{low:g}, {high:g}], "
                warnings.warn(said + "with which this student was trained; expect less of it", stacklevel=2)
        return super().given(cond)

    def null(self, cond: Cond) -> Cond:
        """Refused: without its condition the student was never trained."""
        low, high = self.range
        mend = f"takes guidance as an input; set its strength w, {low:g} to {high:g}, with --guidance-weight"
        raise InputError("guidance", type(self).__name__, f"{mend} (w = s - 1)")


@recorded
class Noising(View):
    """A student that was trained to run upwards, from images to noise, and is refused the other way.

    Args:
        inner: the student.
    """

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        return self.inner(x, t, cond)

    def check(self, times: Time) -> None:
        values = np.asarray(times.detach().cpu() if isinstance(times, Tensor) else times)
        if values.ndim and len(values) > 1 and bool((values[1:] < values[:-1]).any()):
            mend = "was trained to run from images to noise; make images with the student of the other direction"
            raise InputError("sampler", type(self).__name__, mend)
        self.inner.check(times)


@recorded
class TwoHeads(Preconditioned):
    """A network that answers with an image x' and a noise eps', 2C channels, mixed by their certainty.

    Args:
        net: network of 2C channels; the first C are x'.
        schedule: variance preserving.
        time_input: see :class:`Preconditioned`.

    Raises:
        InputError: the network has not twice as many channels as its input, or the schedule does not preserve variance.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, *, time_input: str = "t") -> None:
        # The second half of the output passes as the "mix" of a learned variance, and is taken from there.
        super().__init__(net, schedule, kind="v", time_input=time_input, learned_variance=True)
        channels: Any = net.out_channels
        if channels != 2 * self.shape[0]:
            raise InputError("network", f"{channels} channels", f"two heads need {2 * self.shape[0]}")

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        post = super().posterior(x, t, cond)
        alpha, minus_sigma = post._mean
        v = alpha * post.mix + minus_sigma * post.raw
        return Posterior(x, v, mean=post._mean, eps=post._eps, sigma=post.sigma, taps=post.taps)
