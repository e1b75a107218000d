"""The denoising Method: trains a preconditioned network on noised images.

Loss per image: w(t) mean |F(x_t, t) - target|^2 in the network's own kind. With kind "edm" and weight 1 this is EDM's
loss; with kind "eps" it is DDPM's L_simple. A network that learns its variance adds the bound, (T/1000) L_vlb, through
which the mean takes no gradient (Nichol & Dhariwal 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.method import Method, Update
from scoreline.core.schedule import Schedule, Time
from scoreline.diffusion.levels import antithetic, draw_levels
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import Discrete
from scoreline.diffusion.variational import vlb_term
from scoreline.nn.text import text_network, tokens_of

__all__ = ["WEIGHTS", "Denoising", "min_snr_weight", "source_of"]

WEIGHTS = ("one", "min-snr")


def min_snr_weight(snr: Time, kind: str, *, gamma: float = 5.0) -> Any:
    """Min-SNR-gamma weight of the loss in the network's own kind.

    eps: min(SNR, gamma)/SNR;   x0: min(SNR, gamma);   v: min(SNR, gamma)/(SNR + 1).

    Args:
        snr: alpha^2/sigma^2, float or tensor.
        kind: "eps", "x0" or "v".

    Reference: Hang et al. 2023.
    """
    capped = torch.clamp(snr, max=gamma) if isinstance(snr, Tensor) else min(snr, gamma)
    if kind == "eps":
        return torch.clamp(gamma / snr, max=1.0) if isinstance(snr, Tensor) else (1.0 if snr <= gamma else gamma / snr)
    if kind == "x0":
        return capped
    if kind == "v":
        return capped / (snr + 1)
    raise InputError("kind", kind, "min-SNR weights exist for eps, x0 and v")


@dataclass(frozen=True)
class Noised:
    """What one turn of training shares."""

    x0: Tensor
    x: Tensor
    t: Tensor
    noise: Tensor
    cond: Cond | None


class Denoising(Method):
    """Train a denoiser.

    Args:
        denoiser: the model; its network takes the gradients.
        levels: how t is drawn, a name in `scoreline.diffusion.levels.LEVELS`; None takes the usual one of the kind.
        weight: "one" or "min-snr".
        p_uncond: share of images whose label and caption are replaced by null, for classifier-free guidance.
        lr: learning rate, or a function of the step.
        optimizer, settings, clip: see :class:`scoreline.core.method.Update`.
        perturbation: gamma of input perturbation: x_t is built with eps + gamma eps', and the target stays that of eps
            (Ning et al. 2023).
        pair_levels: draw antithetic pairs of levels within a batch (tables only).
        transform: applied to clean images (augmentation, or encoding as latents), `transform(image, draws)`.

    Raises:
        InputError: a setting is out of range, or does not fit the model's kind or schedule.
    """

    def __init__(
        self,
        denoiser: Preconditioned,
        *,
        levels: str | None = None,
        weight: str = "one",
        p_uncond: float = 0.1,
        lr: float | Callable[[int], float] = 1e-3,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = 1.0,
        perturbation: float = 0.0,
        pair_levels: bool = False,
        transform: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if weight not in WEIGHTS:
            raise unknown_name("weight", weight, WEIGHTS)
        if not 0 <= p_uncond < 1:
            raise InputError("p_uncond", p_uncond, "must lie in [0, 1)")
        if perturbation < 0:
            raise InputError("perturbation", perturbation, "must not be negative")
        schedule: Schedule = denoiser.schedule
        if weight == "min-snr":
            min_snr_weight(1.0, denoiser.kind)
        if denoiser.learned_variance and not isinstance(schedule, Discrete):
            raise InputError("learned_variance", True, "the bound needs a discrete schedule")
        if pair_levels and schedule.known is None:
            raise InputError("pair_levels", True, f"{type(schedule).__name__} has no table of levels to pair")
        if schedule.known is not None:
            denoiser.check(schedule.known)
        self.levels = levels or _usual_levels(denoiser)
        draw_levels(self.levels, torch.zeros(1, dtype=torch.float64), schedule)
        self.denoiser, self.weight, self.p_uncond = denoiser, weight, p_uncond
        self.perturbation = perturbation
        self.pair_levels, self.transform = pair_levels, transform
        self.updates = [Update(denoiser.net, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    def averaged(self) -> nn.Module:
        return self.denoiser.net

    def prepare(self, batch: Any, step: int) -> Noised:
        x0, draws = batch.image, batch.draws
        if self.transform is not None:
            x0 = self.transform(x0, draws)
        schedule = self.denoiser.schedule
        t = draw_levels(self.levels, draws.uniform(step=0, part=1), schedule)
        if self.pair_levels:
            t = antithetic(t, len(schedule.known if schedule.known is not None else ()))
        noise = draws.reshaped(x0.shape[1:]).normal()  # a transform may encode images as latents
        cond = None
        if self.denoiser.num_classes is not None:
            if batch.label is None:
                raise InputError("labels", None, "the model is class-conditional; give labelled images")
            drop = draws.uniform(step=0, part=2) < self.p_uncond
            labels = torch.where(drop | (batch.label < 0), self.denoiser.num_classes, batch.label)
            cond = Cond(labels=labels)
        if text_network(self.denoiser) is not None:
            told = tokens_of(self.denoiser, batch, draws.uniform(step=0, part=2) < self.p_uncond)
            cond = (cond or Cond()).replace(tokens=told)
        if "image" in getattr(self.denoiser.net, "accepts", ()):
            cond = (cond or Cond()).replace(image=source_of(batch))
        shown = noise
        if self.perturbation:
            shown = noise + self.perturbation * draws.reshaped(x0.shape[1:]).normal(step=0, part=3)
        return Noised(x0, schedule.marginal(x0, t, shown), t, noise, cond)

    def loss(self, batch: Any, shared: Noised, step: int) -> dict[str, Tensor]:
        model, s = self.denoiser, shared
        post = model(s.x, s.t, s.cond)
        each = (post.raw - model.target(s.x0, s.x, s.t, s.noise)).square().flatten(1).mean(1)
        if self.weight == "min-snr":
            snr = (2 * model.schedule.lam(s.t)).exp()
            each = each * min_snr_weight(snr, model.kind).to(each)
        simple = each.mean()
        if post.mix is None:
            return {"loss": simple}
        schedule = model.schedule
        assert isinstance(schedule, Discrete)
        bound = vlb_term(schedule, s.x0, s.x, s.t, post.mean.detach(), post.mix).mean()
        return {"loss": simple + schedule.T / 1000 * bound, "simple": simple.detach(), "vlb": bound.detach()}

    def result(self) -> Preconditioned:
        return self.denoiser.eval()


def source_of(batch: Any) -> Tensor:
    """The image that a batch's images are made from, (B, C', H, W); it is never noised.

    Raises:
        InputError: the batch has none.
    """
    source = batch.extras.get("source")
    if source is None:
        raise InputError("source", None, "the model is told an image; give paired images (data: {paired: ...})")
    return source


def _usual_levels(denoiser: Preconditioned) -> str:
    if denoiser.schedule.known is not None:
        return "uniform-index"
    return "lognormal" if denoiser.kind == "edm" else "uniform"
