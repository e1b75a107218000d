"""Guidance by a classifier of noisy images: an unconditional model asked for a class.

    score' = score + s grad_x log p(y | x_t, t):
    eps' = eps - s sigma grad,   E'[x_0|x_t] = E[x_0|x_t] + s sigma^2/alpha grad

The gradient enters wherever a sampler asks for a score: in predictors, in correctors and in the norms of their steps.

Reference: Song et al. 2021 (arXiv 2011.13456), section 5 and appendix I.1; Dhariwal & Nichol 2021 (the scale s).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.artefact import fingerprint, recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.encoder import Checked, Classifier
from scoreline.core.errors import InputError
from scoreline.core.method import Method, Update
from scoreline.core.schedule import Schedule, Time, spread
from scoreline.diffusion.levels import lognormal
from scoreline.diffusion.schedules import EDM
from scoreline.nn.embeddings import TimeFeatures

__all__ = ["ClassifierGuided", "NoisyClassification", "NoisyClassifier", "class_gradient"]


def class_gradient(classifier: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """grad_x log p(y | x_t, t) of each image, (B, ...); zero for the label K, "no class".

    Args:
        classifier: (x, t) -> logits (B, K).
        x: (B, ...).
        t: (B,) noise levels in the classifier's schedule.
        labels: y, (B,) int64 in [0, K].
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        log_p = F.log_softmax(classifier(x, t), dim=1)
        wanted = labels < log_p.shape[1]
        chosen = log_p.gather(1, torch.where(wanted, labels, 0)[:, None])[:, 0]
        return torch.autograd.grad((chosen * wanted).sum(), x)[0]


class ClassifierGuided(View):
    """A denoiser that a classifier steers to the labels bound by `given`; a call costs no further network evaluation of
    the denoiser, but a forward and a backward pass of the classifier.

    Args:
        inner: the model. One with classes is asked without them.
        classifier: (x, t) -> logits, with `schedule`, the coordinates in which it takes x and t, and `num_classes`.
            Levels noisier than its t_max are left unguided: it was not trained there.
        scale: s, 1 in the paper.

    Raises:
        InputError: the two have different classes or shapes.
    """

    def __init__(self, inner: Denoiser, classifier: nn.Module, scale: float = 1.0) -> None:
        super().__init__(inner)
        classes, shape = getattr(classifier, "num_classes", None), getattr(classifier, "in_shape", None)
        if not isinstance(classes, int) or not isinstance(getattr(classifier, "schedule", None), Schedule):
            mend = "needs num_classes and schedule, the coordinates of its x and t; NoisyClassifier has them"
            raise InputError("classifier", type(classifier).__name__, mend)
        if inner.num_classes not in (None, classes):
            raise InputError("classifier", classes, f"knows that many classes, the model {inner.num_classes}")
        if shape is not None and tuple(shape) != tuple(inner.shape):
            raise InputError("classifier", tuple(shape), f"takes images of that shape, the model's are {inner.shape}")
        self.classifier, self.scale, self.num_classes = classifier, float(scale), classes

    def null(self, cond: Cond) -> Cond:
        if cond.labels is None:
            return super().null(cond)
        assert self.num_classes is not None
        return cond.replace(labels=torch.full_like(cond.labels, self.num_classes))

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        if cond is None or cond.labels is None:
            raise InputError("condition", "labels", "guidance by a classifier needs classes; bind them with given()")
        free = cond.replace(labels=None) if self.inner.num_classes is None else self.inner.null(cond)
        post = self.inner(x, t, free)
        mine, theirs = self.schedule, self._theirs
        alpha, sigma = mine.alpha(t), mine.sigma(t)
        s = t if theirs is mine else theirs.time(mine.lam(t))
        known = s <= theirs.t_max * (1 + 1e-6)
        if not isinstance(known, Tensor) and (not known or alpha == 0):
            return post
        at = torch.as_tensor(s, dtype=torch.float64, device=x.device).expand(len(x))
        ratio = spread(theirs.alpha(s) / alpha, x)
        gradient = class_gradient(self.classifier, x * ratio, at, cond.labels) * ratio
        if isinstance(known, Tensor):
            gradient = torch.where(known.view(-1, *[1] * (x.dim() - 1)), gradient, 0.0)
        alpha, sigma = spread(alpha, x), spread(sigma, x)
        eps = post.eps - self.scale * sigma * gradient
        return Posterior(
            x, eps, mean=(1 / alpha, -sigma / alpha), eps=(0.0, 1.0), sigma=sigma, mix=post.mix, taps=post.taps
        )

    @property
    def _theirs(self) -> Schedule:
        schedule = self.classifier.schedule
        assert isinstance(schedule, Schedule)
        return schedule


class _Layer(nn.Module):
    """h + SiLU(W h + V e)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.level = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        return h + F.silu(self.linear(h) + self.level(e))


@recorded
class NoisyClassifier(Classifier):
    """p(y | x_t, t) of small images: a residual MLP that is told the noise level.

    e = SiLU(V_0 fourier(ln(t)/4)),  h_0 = W_0 x / sqrt(t^2 + sigma_data^2),  h_i = h_(i-1) + SiLU(W_i h_(i-1) + V_i e),
    logits = head(h_depth), for x = x_0 + t eps.

    Args:
        in_shape: (C, H, W).
        num_classes: K.
        width, depth: of the MLP.
        sigma_data: standard deviation of the clean images.
        t_min, t_max: noise levels between which it is trained.
    """

    def __init__(
        self,
        *,
        in_shape: tuple[int, ...] = (1, 8, 8),
        num_classes: int = 10,
        width: int = 96,
        depth: int = 3,
        sigma_data: float = 0.75,
        t_min: float = 0.02,
        t_max: float = 20.0,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError("num_classes", num_classes, "a classifier has at least one class")
        if not sigma_data > 0:
            raise InputError("sigma_data", sigma_data, "must be positive")
        self.in_shape, self.num_classes, self.sigma_data = tuple(in_shape), num_classes, sigma_data
        self.schedule = EDM(t_min=t_min, t_max=t_max)
        self.dim, self.tap = width, f"hidden-{width}"
        self.fourier = TimeFeatures(32, "fourier", fourier_scale=1.0)
        self.level = nn.Linear(32, width)
        self.input = nn.Linear(math.prod(in_shape), width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(depth))
        self.head = nn.Linear(width, num_classes)

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "features": "noisy-classifier", "tap": self.tap, "weights": fingerprint({}, self.state_dict()),
            "resize": "none", "quantisation": "none", "precision": "float32",
        }  # fmt: skip

    @property
    def preprocess(self) -> Callable[[Tensor], Tensor]:
        return Checked(self.in_shape[0], (self.in_shape[1], self.in_shape[2]))

    def features(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """The last hidden layer, (B, width).

        Args:
            x: (B, *in_shape).
            t: (B,) noise levels, those outside [t_min, t_max] moved to the nearest; None for clean images.
        """
        if t is None:
            x, t = self.preprocess(x), torch.zeros(len(x), device=x.device)
        level = t.to(next(self.parameters())).clamp(self.schedule.t_min, self.schedule.t_max)
        scaled = x.flatten(1).to(level) * (level.square() + self.sigma_data**2).rsqrt()[:, None]
        e = F.silu(self.level(self.fourier(level.log() / 4)))
        h = self.input(scaled)
        for layer in self.layers:
            h = layer(h, e)
        return h

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Logits (B, K) of `x` at noise levels `t`, see :meth:`features`."""
        return self.head(self.features(x, t))


class NoisyClassification(Method):
    """Train a classifier of noisy images: cross-entropy at levels with ln t ~ N(mean, std^2).

    Args:
        classifier: the network.
        lr: learning rate, or a function of the step.
        mean, std: of ln t; levels beyond the network's are moved to the nearest it knows.
        label_smoothing: share of the target spread over all classes.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        classifier: NoisyClassifier,
        *,
        lr: float | Callable[[int], float] = 1e-3,
        mean: float = -0.5,
        std: float = 1.5,
        label_smoothing: float = 0.0,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        if not std > 0:
            raise InputError("std", std, "must be positive")
        self.classifier, self.mean, self.std, self.label_smoothing = classifier, mean, std, label_smoothing
        self.updates = [
            Update(classifier, self.loss, optimizer=torch.optim.AdamW, lr=lr, settings={"weight_decay": weight_decay})
        ]

    def averaged(self) -> nn.Module:
        return self.classifier

    def loss(self, batch: Any, shared: Any, step: int) -> dict[str, Tensor]:
        schedule = self.classifier.schedule
        t = lognormal(batch.draws.uniform(part=1), schedule, mean=self.mean, std=self.std)
        t = t.clamp(schedule.t_min, schedule.t_max)
        noisy = schedule.marginal(batch.image, t, batch.draws.normal())
        logits = self.classifier(noisy, t)
        loss = F.cross_entropy(logits, batch.label, label_smoothing=self.label_smoothing, ignore_index=-1)
        right = (logits.argmax(1) == batch.label).sum() / (batch.label >= 0).sum()
        return {"loss": loss, "accuracy": right}

    def result(self) -> NoisyClassifier:
        return self.classifier.eval()
