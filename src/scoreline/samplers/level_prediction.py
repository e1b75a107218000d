"""Which noise level is an image at: p(sigma | x) for denoising MCMC, Kim & Ye 2023 (arXiv 2209.14593).

With the flat prior over the table of levels, p(sigma_j | x) = softmax_j log p(x | sigma_j). Where the density of the
data is known the posterior is exact (:class:`ExactLevels`); elsewhere a small classifier is trained by cross-entropy on
images with noise of a level drawn uniformly from the table (:class:`LevelPredictor`, the calibration `denoising-mcmc`).

The paper's levels are those of data in [0, 1]; `table` holds them doubled, for images in [-1, 1].
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.method import Method, Update
from scoreline.core.noise import derive
from scoreline.core.schedule import Schedule
from scoreline.data.images import Images
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.nn.level_classifier import LevelClassifier, level_table
from scoreline.train.lr import Cosine
from scoreline.train.run import run

__all__ = ["ExactLevels", "LevelPredictor", "LevelTraining", "exact_levels", "largest_level", "noised"]

CELLS = 4_000_000
SMALL = 16


def noised(images: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """x = x_0 + sigma z for images x_0 (B, ...), levels sigma (B,) in the images' own units and noise z like x_0."""
    return images + levels.to(images).view(-1, *[1] * (images.dim() - 1)) * noise


def largest_level(schedule: Schedule) -> float:
    """sigma/alpha at the noisy end of a schedule, for data in [0, 1]; infinite where no signal is left."""
    return 0.5 * float(np.exp(-schedule.lam(schedule.t_max)))


class LevelTraining(Method):
    """Trains a level classifier: cross-entropy of the level, drawn uniformly from the table.

    Args:
        net: the classifier.
        table: (M,) levels in the units of the images.
        lr: learning rate of Adam.
    """

    table: Tensor

    def __init__(self, net: LevelClassifier, table: np.ndarray, *, lr: float | Callable[[int], float] = 1e-3) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("table", torch.tensor(table, dtype=torch.float32))
        self.updates = [Update(net, self.loss, lr=lr)]

    def loss(self, batch: Any, shared: Any, step: int) -> dict[str, Tensor]:
        level = batch.draws.integers(len(self.table), part=1)
        logits = self.net(noised(batch.image, self.table[level], batch.draws.normal()))
        off = (logits.argmax(1) - level).abs().float().mean()
        return {"loss": F.cross_entropy(logits, level), "levels off": off}

    def result(self) -> LevelClassifier:
        return self.net.eval()


@recorded
class LevelPredictor(nn.Module):
    """A trained classifier with the table it was trained on.

    Args:
        in_shape, channels, strides, levels: of :class:`scoreline.nn.level_classifier.LevelClassifier`.
        sigma_min, sigma_max: ends of the table, for data in [0, 1].

    Attributes:
        stored_as: the type in which it is stored.
    """

    stored_as = torch.float16

    def __init__(
        self,
        *,
        in_shape: Sequence[int],
        channels: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int] | None = None,
        levels: int = 1000,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
    ) -> None:
        super().__init__()
        self.table = 2 * level_table(sigma_min, sigma_max, levels)
        self.net = LevelClassifier(in_shape=in_shape, channels=channels, strides=strides, levels=levels)

    def forward(self, y: Tensor, cond: Cond | None = None) -> Tensor:
        """log p(sigma_j | y) up to a constant, (B, M), for y = x/alpha (B, C, H, W); conditions are not looked at."""
        return self.net(y.float())

    def summary(self) -> str:
        """What it is, in a line."""
        low, high = 0.5 * self.table[-1], 0.5 * self.table[0]
        count = sum(p.numel() for p in self.parameters())
        return f"{len(self.table)} levels from {high:.3g} down to {low:.2g} (data in [0, 1]), {count:,} parameters"

    @classmethod
    def calibrate(
        cls,
        denoiser: Denoiser,
        images: Images,
        *,
        samples: int = 400_000,
        batch_size: int = 100,
        seed: int = 0,
        folder: Path | str | None = None,
        advance: Callable[[int, str], None] | None = None,
        levels: int | None = None,
        channels: Sequence[int] | None = None,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        lr: float = 2e-3,
    ) -> Self:
        """Train the predictor of a model on the images that the model was trained on.

        Args:
            denoiser: the model, for the shape of its images and the range of its levels.
            images: clean images.
            samples: noised images shown in training, over all passes.
            batch_size: images a step.
            seed: of initialisation, order and noise.
            folder: where a stopped training goes on; None trains in a temporary one.
            advance: called as advance(images, text) on the way.
            levels: entries of the table; nothing takes the paper's 1000, on images of at most 16x16, which tell their
                level less precisely, 200.
            channels: of the blocks; nothing takes the paper's, on images of at most 16x16 half of the first two. An
                image too small for all of them gets the first ones.
            sigma_min, sigma_max: ends of the table, for data in [0, 1]; cut to the levels that the model knows.
            lr: of Adam at the start, from where it falls to 0 along a cosine; the paper keeps 1e-3, for longer.

        Returns:
            The predictor, in evaluation mode.

        Raises:
            InputError: the images do not fit the model, or it knows none of the levels.
        """
        if tuple(images.shape) != tuple(denoiser.shape):
            raise InputError("images", tuple(images.shape), f"the model makes {tuple(denoiser.shape)}")
        if samples < batch_size:
            raise InputError("samples", samples, f"needs at least one batch of {batch_size}")
        top = largest_level(denoiser.schedule)
        small = max(denoiser.shape[1:], default=0) <= SMALL
        channels = channels or ((16, 32) if small else (32, 64, 128, 256))
        levels = levels or (200 if small else 1000)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "level-classifier") % 2**63)
            made = cls(
                in_shape=list(denoiser.shape), channels=list(channels), levels=levels, sigma_min=sigma_min,
                sigma_max=min(sigma_max, top),
            )  # fmt: skip
        steps = samples // batch_size
        device = next((t.device for t in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))
        method = LevelTraining(made.net, made.table, lr=Cosine(lr, steps, warmup=0))
        every = max(steps // 50, 1)
        seen = 0

        def tell(_: Method, step: int, path: Path) -> None:
            nonlocal seen
            if advance is not None:
                advance((step - seen) * batch_size, f"level classifier, step {step}")
            seen = step

        with tempfile.TemporaryDirectory() as scratch:
            place = scratch if folder is None else folder
            config = {"sigma_min": sigma_min, "sigma_max": sigma_max, "levels": levels}
            run(
                method, images, place, steps=steps, batch_size=batch_size, seed=seed, device=device, quiet=True,
                checkpoint_every=max(steps // 10, 1), sample_every=every, sample=tell, config=config,
            )  # fmt: skip
        return made.eval()


class ExactLevels(nn.Module):
    """The exact posterior over levels for a Gaussian or a mixture:

        log p(y | s) = log sum_k w_k N(y; m_k, (v_k + s^2) I),   y = x/alpha, s = sigma/alpha

    Args:
        denoiser: whose density it is.
        sigma_min, sigma_max: ends of the table, for data in [0, 1] as everywhere in this method.
        levels: entries of the table.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor
    labels: Tensor | None

    def __init__(
        self, denoiser: Gaussian | Mixture, *, sigma_min: float = 0.01, sigma_max: float = 50.0, levels: int = 1000
    ) -> None:
        super().__init__()
        self.table = 2 * level_table(sigma_min, min(sigma_max, largest_level(denoiser.schedule)), levels)
        if isinstance(denoiser, Gaussian):
            self.register_buffer("means", denoiser.mean_.double().flatten()[None])
            self.register_buffer("variances", denoiser.variance.double().flatten()[None])
            self.register_buffer("log_weights", torch.zeros(1, dtype=torch.float64, device=denoiser.mean_.device))
            self.labels, self.num_classes = None, None
        else:
            self.register_buffer("means", denoiser.means.double())
            self.register_buffer("variances", denoiser.variances.double()[:, None])
            self.register_buffer("log_weights", denoiser.log_weights.double())
            self.register_buffer("labels", denoiser.labels)
            self.num_classes = denoiser.num_classes
        # One variance for everybody allows a sum of float32 exponentials of what lies above the nearest point.
        self._shared = self.variances.numel() == len(self.means) and bool((self.variances == self.variances[0]).all())

    def forward(self, y: Tensor, cond: Cond | None = None) -> Tensor:
        """log p(y | sigma_j) up to a constant that does not depend on the level, (B, M) float64.

        Args:
            y: x/alpha, (B, *shape).
            cond: labels restrict a labelled mixture to their components.
        """
        flat = y.double().flatten(1)
        if self.variances.shape[1] == flat.shape[1] and self.variances.shape[1] > 1:
            return self._diagonal(flat)
        distance = torch.cdist(flat, self.means, compute_mode="donot_use_mm_for_euclid_dist").square()
        log_w = self.log_weights.expand(len(flat), -1)
        if cond is not None and cond.labels is not None and self.labels is not None:
            mine = (self.labels == cond.labels[:, None]) | (cond.labels[:, None] == self.num_classes)
            log_w = log_w.masked_fill(~mine, -torch.inf)
        table = torch.as_tensor(self.table, device=flat.device)
        size = max(CELLS // distance.numel(), 1)
        return torch.cat([self._some(distance, log_w, levels, flat.shape[1]) for levels in table.split(size)], 1)

    def _some(self, distance: Tensor, log_w: Tensor, levels: Tensor, dim: int) -> Tensor:
        if self._shared:
            total = self.variances[0, 0] + levels**2
            # The nearest among the components that the condition leaves.
            least = distance.masked_fill(log_w.isinf(), torch.inf).amin(1, keepdim=True)
            above = (distance - least).float()
            rate = (-0.5 / total).float()[None, :, None]
            sums = torch.exp(above[:, None, :] * rate + log_w.float()[:, None, :]).sum(-1)
            return sums.double().log() - least / (2 * total) - 0.5 * dim * total.log()
        total = self.variances[:, 0] + levels[:, None] ** 2
        each = log_w[:, None] - distance[:, None] / (2 * total) - 0.5 * dim * total.log()
        return each.logsumexp(-1)

    def _diagonal(self, flat: Tensor) -> Tensor:
        table = torch.as_tensor(self.table, device=flat.device)
        total = self.variances + table[:, None] ** 2
        return -0.5 * ((flat - self.means).square() @ (1 / total).T + total.log().sum(1))


def exact_levels(denoiser: Denoiser) -> ExactLevels | None:
    """The exact posterior of a closed-form denoiser, also behind views of it; None for any other model."""
    inner: Any = denoiser
    while not isinstance(inner, (Gaussian, Mixture)):
        inner = getattr(inner, "inner", None)
        if inner is None:
            return None
    return ExactLevels(inner)
