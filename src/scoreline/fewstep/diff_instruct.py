"""Two ancestors of DMD2, on the same turn: Diff-Instruct, and DMD with its regression on stored pairs.

    Diff-Instruct   g = w(t) (D_f - D_r), L = 0.5 mean |x - stopgrad(x - g)|^2, the critic learns as often as G
                    w = 1, or alpha/sigma^2, which makes g the difference of the scores
    DMD             g = (D_f - D_r)/mean_{C,H,W}|x - D_r|
                    L = 0.5 mean |x - stopgrad(x - g)|^2 + lambda mean D(G(sigma_start z), y), pairs (z, y)
The pairs, made once by the teacher's deterministic sampler, keep a student steady whose critic is updated as seldom as
itself; DMD2 does without them.

Reference: Luo et al. 2023 (Diff-Instruct, arXiv 2305.18455); Yin et al. 2024 (DMD, arXiv 2311.18828).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.schedule import Schedule
from scoreline.fewstep.distances import Distance, lpips_size, squared
from scoreline.fewstep.distances import distance as named_distance
from scoreline.fewstep.matching import Matched, Matching, Turn, matching_direction, matching_surrogate
from scoreline.fewstep.mean_map import MeanMap

__all__ = ["DMD", "WEIGHTS", "DiffInstruct", "noise_of", "score_weight"]

WEIGHTS = ("one", "score")


def score_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """alpha/sigma^2, (B,): w (D_f - D_r) is then the critic's score less the teacher's, s = (alpha D - x_t)/sigma^2.

    Args:
        schedule: of both networks.
        t: levels, (B,) float64.
    """
    return torch.as_tensor(schedule.alpha(t)) / torch.as_tensor(schedule.sigma(t)) ** 2


class DiffInstruct(Matching):
    """Diff-Instruct: the integral KL divergence between the student's and the teacher's noised images.

    Args:
        student, teacher, critic, ratio, critic_rests, start, student_steps, simulate, levels, guidance, classes,
            matching_weight, gan_weight, critic_gan_weight, heads_on, taps, discriminator, lr, critic_lr, optimizer,
            settings, clip: see :class:`scoreline.fewstep.matching.Matching`.
        weight: w, "one" or "score".
    """

    def __init__(
        self,
        student: MeanMap,
        teacher: Denoiser,
        critic: Denoiser | None = None,
        *,
        weight: str = "one",
        ratio: int = 1,
        critic_rests: bool = False,
        start: float | None = None,
        student_steps: int = 1,
        simulate: bool = True,
        levels: Sequence[float] = (0.02, 0.98),
        guidance: float | None = None,
        classes: Sequence[int] | None = None,
        matching_weight: float = 1.0,
        gan_weight: float = 0.0,
        critic_gan_weight: float = 1e-2,
        heads_on: str = "critic",
        taps: Sequence[str] | None = None,
        discriminator: nn.Module | None = None,
        lr: float | Callable[[int], float] = 1e-5,
        critic_lr: float | Callable[[int], float] = 1e-5,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        settings: dict[str, Any] | None = None,
        clip: float | None = 10.0,
    ) -> None:
        if weight not in WEIGHTS:
            raise unknown_name("weight", weight, WEIGHTS)
        super().__init__(
            student, teacher, critic, ratio=ratio, critic_rests=critic_rests, start=start, student_steps=student_steps,
            simulate=simulate, levels=levels, guidance=guidance, classes=classes, matching_weight=matching_weight,
            gan_weight=gan_weight, critic_gan_weight=critic_gan_weight, heads_on=heads_on, taps=taps,
            discriminator=discriminator, lr=lr, critic_lr=critic_lr, optimizer=optimizer, settings=settings, clip=clip,
        )  # fmt: skip
        self.weight = weight

    def term(self, m: Matched) -> Tensor:
        weight = score_weight(self.schedule, m.t) if self.weight == "score" else None
        return matching_surrogate(m.x, matching_direction(m.x, m.real, m.fake, weight, floor=None))


class DMD(Matching):
    """Distribution matching distillation, with its regression loss.

    Args:
        student, teacher, critic, ratio, critic_rests, start, levels, guidance, classes, matching_weight, lr, critic_lr,
            optimizer, settings, clip: see :class:`scoreline.fewstep.matching.Matching`.
        regression: lambda, weight of the distance to the pairs' images.
        distance: D, one of `scoreline.fewstep.distances.DISTANCES`, LPIPS in the paper.
        size: pixels at which LPIPS sees the images; None takes 224 below 256 pixels, as the code does.
    """

    other_terms = True

    def __init__(
        self,
        student: MeanMap,
        teacher: Denoiser,
        critic: Denoiser | None = None,
        *,
        regression: float = 0.25,
        distance: str = "lpips-vgg",
        size: int | None = None,
        ratio: int = 1,
        critic_rests: bool = False,
        start: float | None = None,
        levels: Sequence[float] = (0.02, 0.98),
        guidance: float | None = None,
        classes: Sequence[int] | None = None,
        matching_weight: float = 1.0,
        lr: float | Callable[[int], float] = 5e-5,
        critic_lr: float | Callable[[int], float] = 5e-5,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        settings: dict[str, Any] | None = None,
        clip: float | None = 10.0,
    ) -> None:
        if not regression >= 0:
            raise InputError("regression", regression, "is a weight, 0 or more")
        if regression == matching_weight == 0:
            raise InputError("weights", (regression, matching_weight), "the student needs matching or regression")
        super().__init__(
            student, teacher, critic, ratio=ratio, critic_rests=critic_rests, start=start, levels=levels,
            guidance=guidance, classes=classes, matching_weight=matching_weight, lr=lr, critic_lr=critic_lr,
            optimizer=optimizer, settings=settings, clip=clip,
        )  # fmt: skip
        self.regression = regression
        shown = size or (lpips_size(self.student.shape) if distance.startswith("lpips") else None)
        self.apart: Distance = named_distance(distance, size=shown) if regression else squared

    def term(self, m: Matched) -> Tensor:
        return matching_surrogate(m.x, matching_direction(m.x, m.real, m.fake))

    def student_loss(self, batch: Any, turn: Turn, step: int) -> dict[str, Tensor]:
        told = super().student_loss(batch, turn, step)
        if not self.regression:
            return told
        cond = self.real(batch, "the regression")
        start = self.start_levels[0]
        x = self.student.answer(noise_of(batch) * self.student.prior(start), start, cond)
        apart = self.apart(x, batch.image).mean()
        return {**told, "loss": told["loss"] + self.regression * apart, "regression": apart.detach()}


def noise_of(batch: Any) -> Tensor:
    """z of the batch's pairs.

    Raises:
        InputError: it holds none.
    """
    noise = batch.extras.get("noise")
    if noise is None:
        raise InputError("data", None, "the regression needs pairs of noise and image; give pairs, or regression 0")
    return torch.as_tensor(noise)
