"""Inpainting and colourisation with an unconditional model: what is known is put back after every update.

With y the known image and a mask that is 1 where it is known,
    x <- mask (alpha(t) y + sigma(t) z) + (1 - mask) x,      z fresh,
after every step of the sampler, and inside a step before every further call of the network (so after each correction of
a predictor-corrector sampler as well). At the clean end sigma = 0 and the known part is y itself.

Colourisation is the same in other channels: with M orthogonal, x -> M x for every pixel, the mask there, and back. The
first row of M is (1, 1, 1)/sqrt(3), so that channel holds the grey image. Orthogonality keeps the noise white.

This is a replacement in x_t, which approximates sampling from p(x | y); it is not exact.

Outside the mask the image is what the sampler returns: the mean of the last step, as the paper says, or with
`denoise=False` of :class:`scoreline.samplers.score_sde.PC` the noisy state, as the released code returns it there.

Reference: Song et al. 2021 (arXiv 2011.13456), section 5 and appendix I.2.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import Draws
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule, Time
from scoreline.samplers.wrapped import Wrapped

__all__ = ["Inpainting", "colour_axes", "colourisation", "replaced"]


def colour_axes(dtype: torch.dtype = torch.float64) -> Tensor:
    """M, (3, 3) orthogonal, rows (1, 1, 1)/sqrt(3), (-2, 1, 1)/sqrt(6) and (0, 1, -1)/sqrt(2)."""
    rows = [[1.0, 1.0, 1.0], [-2.0, 1.0, 1.0], [0.0, 1.0, -1.0]]
    lengths = torch.tensor([[3.0], [6.0], [2.0]], dtype=dtype).sqrt()
    return torch.tensor(rows, dtype=dtype) / lengths


def replaced(x: Tensor, known: Tensor, mask: Tensor, axes: Tensor | None = None) -> Tensor:
    """mask known + (1 - mask) x; with `axes` M^T (mask M known + (1 - mask) M x), pixel by pixel.

    Args:
        x, known: (B, C, ...).
        mask: bool, true where known, broadcastable against x.
        axes: M, (C, C) orthogonal, or None for the identity.
    """
    if axes is None:
        return torch.where(mask, known, x)  # no arithmetic: what is kept is kept bit by bit
    change = torch.einsum("dc,bc...->bd...", axes.to(x), known - x)
    return x + torch.einsum("dc,bd...->bc...", axes.to(x), mask.to(x) * change)


class Inpainting(Wrapped):
    """A sampler that keeps a known part of each image.

    Args:
        of: the sampler inside, with its cost, which takes steps on a fixed grid.
        image: y, (B, *shape) in [-1, 1], one for each image of the batch, or (1, *shape) for all.
        mask: bool or numbers 0 and 1, 1 where y is known; broadcastable against (1, *shape): (H, W), (1, H, W), ...
        axes: M, (C, C) orthogonal: the mask is in the channels of M x; see :func:`colourisation`.
        fresh: draw z anew for every replacement, as in the paper; else one z an image for the whole run, with which the
            known part of a deterministic sampler stays on one path.
        variant: "paper"; "released" starts with the known part free of noise, as only the first call then sees it.

    Raises:
        InputError: the sampler makes steps of its own, between which nothing can be put back, or mask, image and axes
            do not fit together.
    """

    def __init__(
        self,
        of: Sampler,
        *,
        image: Tensor,
        mask: Tensor,
        axes: Tensor | None = None,
        fresh: bool = True,
        variant: str = "paper",
    ) -> None:
        if variant not in ("paper", "released"):
            raise unknown_name("variant", variant, ("paper", "released"))
        super().__init__(of, steps=of.steps, nfe=of.nfe, grid=of.grid)
        self.fresh, self.variant = fresh, variant
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError("mask", None, "holds values other than 0 and 1; 1 marks what is known")
        try:
            fits = torch.broadcast_shapes(mask.shape, image.shape[1:]) == image.shape[1:]
        except RuntimeError:
            fits = False
        if not fits:
            mend = f"does not fit images of shape {tuple(image.shape[1:])}; give one number for each pixel"
            raise InputError("mask shape", tuple(mask.shape), mend)
        if axes is not None:
            count = image.shape[1]
            wide = axes.double()
            if axes.shape != (count, count) or (wide @ wide.T - torch.eye(count)).abs().max() > 1e-6:
                raise InputError("axes", tuple(axes.shape), f"must be an orthogonal matrix, ({count}, {count})")
        self._image, self._mask, self._axes = image, mask.bool(), axes
        self.order, self.rising, self.stochastic = None, False, True

    def init(self, denoiser: Denoiser, noise: Draws, rows: Rows, x: Tensor | None = None) -> State:
        shape = (len(noise), *noise.shape)
        if self._image.shape[1:] != shape[1:] or len(self._image) not in (1, len(noise)):
            raise InputError("image shape", tuple(self._image.shape), f"this run makes images of shape {shape}")
        state = self._inner.init(denoiser, noise, rows, x)
        here = state.x.device
        image, mask = self._image.to(state.x), self._mask.to(here)
        kept = _Known(image, mask, self._axes, noise, denoiser.schedule, self.fresh)
        start: Any = denoiser.schedule.clean if self.variant == "released" else rows.times[0]
        return state._replace(x=kept.put(state.x, start, 0, 0), memory=(state.memory, kept))

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        memory, kept = state.memory
        view = _KeptInside(denoiser, kept, row.i + 1)
        after = self._inner.step(view, state._replace(memory=memory), row)
        return after._replace(x=kept.put(after.x, row.s, row.i + 1, 0), memory=(after.memory, kept))


class _Known:
    """The known part of a batch and the noise it is shown with."""

    def __init__(
        self, image: Tensor, mask: Tensor, axes: Tensor | None, noise: Draws, schedule: Schedule, fresh: bool
    ) -> None:
        self.image, self.mask, self.axes, self.schedule, self.fresh = image, mask, axes, schedule, fresh
        self.draws = noise.derived("inpainting")

    def put(self, x: Tensor, t: Time, step: int, part: int) -> Tensor:
        z = self.draws.normal(step, part) if self.fresh else self.draws.normal()
        return replaced(x, self.schedule.marginal(self.image.expand_as(x), t, z), self.mask, self.axes)


class _KeptInside(View):
    """Puts the known part back before every call of a step but the first, whose state was prepared already."""

    def __init__(self, inner: Denoiser, kept: _Known, step: int) -> None:
        super().__init__(inner)
        self.kept, self.number, self.calls = kept, step, 0

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        if self.calls:
            x = self.kept.put(x, t, self.number, self.calls)
        self.calls += 1
        return self.inner(x, t, cond)


def colourisation(of: Sampler, grey: Tensor, *, fresh: bool = True) -> Inpainting:
    """A sampler that colours grey images: the mean of R, G and B is kept, the two other channels are made.

    Args:
        of: the sampler inside, with its cost.
        grey: (B, 1, H, W) in [-1, 1].
        fresh: see :class:`Inpainting`.

    Raises:
        InputError: the images are not grey.
    """
    if grey.dim() != 4 or grey.shape[1] != 1:
        raise InputError("grey", tuple(grey.shape), "needs images of one channel, (B, 1, H, W)")
    mask = torch.tensor([True, False, False]).view(3, 1, 1)
    return Inpainting(of, image=grey.expand(-1, 3, -1, -1), mask=mask, axes=colour_axes(), fresh=fresh)
