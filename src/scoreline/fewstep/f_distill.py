"""f-distill: distribution matching that minimises any f-divergence, by weighting the score difference.

D_f(p||q) = E_q f(p/q) of the teacher's p and the student's q at each noise level; h(r) = r^2 f''(r), r = p/q:

    grad_theta D_f(p_t||q_t) = - E[ h(r(x_t)) (score_p(x_t) - score_q(x_t)) . dx_t/dtheta ]
    r     = clip(exp(clamp(mean over heads of the logits, -10, 10)), 0.1, 20)       a discriminator's log p/q
    m_b  <- e m_b + (1 - e) mean of r in bin b of t;  r <- r/m_b                     since E_q[r] = 1 at every level
    w     = h(r)/mean h                                                              over the whole batch
    L     = 0.5 mean |x - stopgrad(x - w (D_f - D_r)/mean|x - D_r|)|^2 + lambda_g mean softplus(-logits)
Reverse KL is h = 1, which is DMD2. One noised version of each image serves score difference, ratio and adversary; the
heads sit on the teacher's features and read them from the very evaluation that gives D_r.

Names: "kl" is KL(teacher||student), h = r; "rkl" is KL(student||teacher), h = 1.

Reference: Xu, Nie & Vahdat 2025 (One-step Diffusion Models with f-Divergence Distribution Matching, arXiv 2502.15681);
clipping and defaults as in the group's released code (FastGen).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import Draws
from scoreline.fewstep.adversarial import generator_loss
from scoreline.fewstep.matching import Matched, Matching, Turn, matching_direction, matching_surrogate
from scoreline.fewstep.mean_map import MeanMap
from scoreline.nn.plan import Plan

__all__ = ["DIVERGENCES", "FDistill", "Judged", "bin_index", "density_ratio", "divergence_direction", "f_of"]
__all__ += ["h_of", "normalised_ratio", "normalised_weight", "updated_bins"]

DIVERGENCES = ("js", "rkl", "sf", "sh", "kl", "jf", "neyman")
"""Jensen-Shannon, reverse KL, softened reverse KL, squared Hellinger, forward KL, Jeffreys, Neyman's chi^2."""

EPS = 1e-6


def f_of(r: Tensor, divergence: str = "js") -> Tensor:
    """f(r) of D_f(p||q) = E_q f(p/q), elementwise; convex, f(1) = 0.

    js: r ln r - (r+1) ln((r+1)/2);  rkl: -ln r;  sf: (r+1) ln((r+1)/(2r));  sh: 1 - sqrt r;  kl: r ln r;
    jf: (r-1) ln r;  neyman: (1-r)^2/r.

    Args:
        r: p/q, teacher over student, positive.
        divergence: one of `DIVERGENCES`.

    Raises:
        InputError: an unknown divergence.

    Reference: Xu et al. 2025, table 1.
    """
    if divergence == "js":
        return r * r.log() - (r + 1) * ((r + 1) / 2).log()
    if divergence == "rkl":
        return -r.log()
    if divergence == "sf":
        return (r + 1) * ((r + 1) / (2 * r)).log()
    if divergence == "sh":
        return 1 - r.sqrt()
    if divergence == "kl":
        return r * r.log()
    if divergence == "jf":
        return (r - 1) * r.log()
    if divergence == "neyman":
        return (1 - r).square() / r
    raise unknown_name("divergence", divergence, DIVERGENCES)


def h_of(r: Tensor, divergence: str = "js", *, constant: bool = False) -> Tensor:
    """h(r) = r^2 f''(r), elementwise, without the constants that normalisation takes away.

    js: r/(1+r);  rkl: 1;  sf: 1/(1+r);  sh: sqrt r;  kl: r;  jf: 1+r;  neyman: 1/r.

    Args:
        r: p/q, teacher over student, positive.
        divergence: one of `DIVERGENCES`.
        constant: keep the factors 1/4 of sh and 2 of neyman, so that h is r^2 f'' exactly.

    Raises:
        InputError: an unknown divergence.

    Reference: Xu et al. 2025, table 1.

    >>> [float(h_of(torch.tensor(1.0), name)) for name in DIVERGENCES]
    [0.5, 1.0, 0.5, 1.0, 1.0, 2.0, 1.0]
    """
    if divergence == "js":
        return r / (1 + r)
    if divergence == "rkl":
        return torch.ones_like(r)
    if divergence == "sf":
        return 1 / (1 + r)
    if divergence == "sh":
        return r.sqrt() * (0.25 if constant else 1.0)
    if divergence == "kl":
        return r.clone()
    if divergence == "jf":
        return 1 + r
    if divergence == "neyman":
        return (2.0 if constant else 1.0) / r
    raise unknown_name("divergence", divergence, DIVERGENCES)


def divergence_direction(ratio: Tensor, real_score: Tensor, fake_score: Tensor, divergence: str = "js") -> Tensor:
    """-h(r) (score_p - score_q), (B, ...): its mean against dx/dtheta is the gradient of D_f(p||q), constants kept.

    Args:
        ratio: p/q at each sample, (B,), exact or estimated.
        real_score, fake_score: of the teacher and of the student at the samples, (B, ...).
        divergence: one of `DIVERGENCES`.

    Reference: Xu et al. 2025, theorem 1.
    """
    h = h_of(ratio, divergence, constant=True)
    return -h.reshape(-1, *[1] * (real_score.dim() - 1)) * (real_score - fake_score)


def density_ratio(logits: Tensor, *, clamp: float = 10.0, clip: Sequence[float] = (0.1, 20.0)) -> Tensor:
    """r = clip(exp(clamp(mean over heads of the logits))), (B,), in float32 or wider and without a graph.

    Args:
        logits: of the student's noised images, high for real ones, (B, K) or (B,).
        clamp: largest absolute mean logit.
        clip: least and largest ratio.
    """
    mean = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).reshape(len(logits), -1).mean(1)
    return mean.clamp(-clamp, clamp).exp().clamp(*clip)


def bin_index(t: Tensor, low: float, high: float, bins: int = 10) -> Tensor:
    """Which of so many equally wide bins between two levels t lies in, (B,) int64, 0 to bins - 1.

    >>> bin_index(torch.tensor([0.002, 7.9, 8.1, 80.0]), 0.002, 80.0).tolist()
    [0, 0, 1, 9]
    """
    return ((t - low) / (high - low) * bins).floor().long().clamp(0, bins - 1)


def updated_bins(means: Tensor, ratio: Tensor, index: Tensor, rate: float = 0.0) -> Tensor:
    """m_b <- e m_b + (1 - e) mean of the ratios in bin b, for the bins that were hit, (bins,).

    In a training of several processes the mean is over the images of all of them.

    Args:
        means: m_b so far, (bins,); 1 at first.
        ratio, index: r and the bin of each image, (B,).
        rate: e, 0 to 1; 0 keeps nothing of the past.
    """
    sums, counts = torch.zeros_like(means), torch.zeros_like(means)
    sums = sums.index_add(0, index, ratio.to(means))
    counts = counts.index_add(0, index, torch.ones_like(ratio, dtype=means.dtype))
    sums, counts = _over_processes(torch.stack([sums, counts]))
    return torch.where(counts > 0, rate * means + (1 - rate) * sums / counts.clamp_min(1), means)


def normalised_ratio(ratio: Tensor, means: Tensor, index: Tensor) -> Tensor:
    """r/(m_b + 1e-6), (B,), with the means after their update."""
    return ratio / (means[index].to(ratio) + EPS)


def normalised_weight(h: Tensor) -> Tensor:
    """h/(mean of h + 1e-6), (B,), the mean over the images of all processes."""
    total, count = _over_processes(torch.stack([h.sum(), torch.full_like(h[0], len(h))]))
    return h / (total / count + EPS)


def _over_processes(sums: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return sums


@dataclass(frozen=True)
class Judged(Matched):
    """What matching compares, and what the discriminator says of the same noised images.

    Attributes:
        logits: (B, K), with their graph to x.
        ratio: r after clipping and bins, (B,), without a graph, as all that follows.
        h: of the divergence, (B,).
        weight: h over its mean, (B,).
    """

    logits: Tensor
    ratio: Tensor
    h: Tensor
    weight: Tensor


class FDistill(Matching):
    """Distribution matching by an f-divergence.

    Args:
        student, teacher, critic, ratio, critic_rests, start, student_steps, simulate, levels, guidance, classes,
            matching_weight, heads_on, taps, discriminator, lr, critic_lr, optimizer, settings: see
            :class:`scoreline.fewstep.matching.Matching`. Critic and discriminator learn on the turns on which the
            student rests, unless `critic_rests` is off, and at the levels of the matching.
        divergence: one of `DIVERGENCES`.
        clip_ratio: least and largest density ratio.
        bins: of t, in which the ratio is normalised.
        bin_rate: e of their means.
        uniform: (low, high), between which t is uniform instead of the table's entries (latent models: 0.001, 0.999).
        gan_weight: lambda_g; without a discriminator there is no ratio, so it must be positive.
        critic_gan_weight: of the discriminator's loss, beside the critic's.
        clip: of the student's gradient norm; the critic's is left alone.

    Attributes:
        bin_means: (bins,) m_b, saved with the training.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        student: MeanMap,
        teacher: Denoiser,
        critic: Denoiser | None = None,
        *,
        divergence: str = "js",
        ratio: int = 5,
        critic_rests: bool = True,
        clip_ratio: Sequence[float] = (0.1, 20.0),
        bins: int = 10,
        bin_rate: float = 0.0,
        start: float | None = None,
        student_steps: int = 1,
        simulate: bool = True,
        levels: Sequence[float] = (0.02, 0.98),
        uniform: Sequence[float] | None = None,
        guidance: float | None = None,
        classes: Sequence[int] | None = None,
        matching_weight: float = 1.0,
        gan_weight: float = 1e-3,
        critic_gan_weight: float = 1.0,
        heads_on: str = "teacher",
        taps: Sequence[str] | None = None,
        discriminator: nn.Module | None = None,
        lr: float | Callable[[int], float] = 1e-4,
        critic_lr: float | Callable[[int], float] = 1e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        settings: dict[str, Any] | None = None,
        clip: float | None = 10.0,
    ) -> None:
        if divergence not in DIVERGENCES:
            raise unknown_name("divergence", divergence, DIVERGENCES)
        if len(clip_ratio) != 2 or not 0 < clip_ratio[0] <= 1 <= clip_ratio[1]:
            raise InputError("clip_ratio", clip_ratio, "give (low, high) with 0 < low <= 1 <= high")
        if bins < 1 or not 0 <= bin_rate < 1:
            raise InputError("bins", (bins, bin_rate), "needs 1 or more bins, and a rate of at least 0 and below 1")
        if gan_weight <= 0:
            raise InputError("gan_weight", gan_weight, "must be positive: the density ratio is the discriminator's")
        super().__init__(
            student, teacher, critic, ratio=ratio, critic_rests=critic_rests, start=start, student_steps=student_steps,
            simulate=simulate, levels=levels, guidance=guidance, classes=classes, matching_weight=matching_weight,
            gan_weight=gan_weight, critic_gan_weight=critic_gan_weight, heads_on=heads_on, taps=taps,
            discriminator=discriminator, lr=lr, critic_lr=critic_lr, optimizer=optimizer, settings=settings, clip=clip,
        )  # fmt: skip
        low, high = self.schedule.t_min, self.schedule.t_max
        if uniform is not None and (len(uniform) != 2 or not low <= uniform[0] < uniform[1] <= high):
            raise InputError("uniform", uniform, f"give (low, high) within the schedule's levels, {low} to {high}")
        self.divergence, self.clip_ratio, self.bins, self.bin_rate = divergence, tuple(clip_ratio), bins, bin_rate
        self.uniform = uniform
        # A discriminator of one's own has features of its own.
        self.heads_on = heads_on if discriminator is None else None
        self.register_buffer("bin_means", torch.ones(bins))
        self.bin_means: Tensor
        self.updates[1] = replace(self.updates[1], clip=None)

    def level(self, draws: Draws, part: int) -> Tensor:
        if self.uniform is None:
            return super().level(draws, part)
        return self.uniform[0] + (self.uniform[1] - self.uniform[0]) * draws.uniform(part=part)

    def critic_level(self, draws: Draws, part: int) -> Tensor:
        return self.level(draws, part)

    def match(self, x: Tensor, draws: Draws, cond: Cond | None, told: Cond | None, part: int = 2) -> Judged:
        x_t, t, noise = self.noised(x, self.level, draws, part)
        real, fake, logits = self.judge(x_t, t, cond, told)
        index = bin_index(t, self.schedule.t_min, self.schedule.t_max, self.bins)
        ratio = density_ratio(logits, clip=self.clip_ratio)
        with torch.no_grad():
            self.bin_means.copy_(updated_bins(self.bin_means, ratio, index, self.bin_rate))
        ratio = normalised_ratio(ratio, self.bin_means, index)
        h = h_of(ratio, self.divergence)
        return Judged(x, x_t, t, noise, real, fake, logits, ratio, h, normalised_weight(h))

    def judge(self, x_t: Tensor, t: Tensor, cond: Cond | None, told: Cond | None) -> tuple[Tensor, Tensor, Tensor]:
        """D_r, D_f and the logits; heads read the features of the evaluation that gives D_r or D_f."""
        judge: Any = self.discriminator
        seen: dict[str, Tensor] = {}
        answers = []
        for name, model, given in (("teacher", self.teacher, told), ("critic", self.critic, cond)):
            if name == self.heads_on:
                post = model.under(Plan(taps=judge.trunk.plan.taps))(x_t, t, given)
                seen = post.taps
            else:
                with torch.no_grad():
                    post = model(x_t, t, given)
            answers.append(post.mean.detach())
        if self.heads_on is None:
            return answers[0], answers[1], judge(x_t, t, cond)
        logits = [head(seen[tap]) for head, tap in zip(judge.heads, judge.trunk.plan.taps)]
        return answers[0], answers[1], torch.cat(logits, 1)

    def term(self, m: Matched) -> Tensor:
        weight = m.weight if isinstance(m, Judged) else None
        return matching_surrogate(m.x, matching_direction(m.x, m.real, m.fake, weight))

    def student_loss(self, batch: Any, turn: Turn, step: int) -> dict[str, Tensor]:
        x = self.student.answer(turn.x, turn.level, turn.cond)
        turn.made = x.detach()
        m = self.match(x, batch.draws.reshaped(self.student.shape), turn.cond, turn.told)
        matching, fooled = self.term(m), generator_loss(m.logits, "softplus")
        told = {"matching": matching, "fooled": fooled, "gap": (m.fake - m.real).square().mean().sqrt()}
        # A ratio that stays at its clip says that the discriminator has won.
        told |= {"h_min": m.h.min(), "h_mean": m.h.mean(), "h_max": m.h.max()}
        told["ratio_max"] = density_ratio(m.logits, clip=self.clip_ratio).max()
        loss = self.matching_weight * matching + self.gan_weight * fooled
        return {"loss": loss, **{name: value.detach() for name, value in told.items()}}
