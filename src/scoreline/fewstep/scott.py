"""SCott: stochastic consistency distillation, whose target takes a few steps of an SDE solver with little noise.

Student f, its average f_- (decay 0.95), the frozen teacher under guidance of a strength w drawn for each image, which
the student is told: eps_w = eps(c) + w (eps(c) - eps(null)), w ~ U(3, 15), 0 is unguided.
    n on the grid 24, 48, ..., 984, 999 of a table of a thousand,  m = n - 24,   z_n = alpha_n z + sigma_n eps
    z_m = h = 3 steps of DDIM with noise eta, or of ER-SDE, from n to m, each with noise of its own
    L_CD = mean |f(z_n, n, c, w) - f_-(z_m, m, c, w)|^2
    L_D = mean relu(1 - D(real)) + mean relu(1 + D(fake)),   L_G = -mean D(fake),  both noised to a level of the grid
    student: L_CD + 0.4 L_G;   then the discriminator on the same batch;   then the average
Squared, the loss has its least value at f(z_n) = E[f_-(z_m) | z_n]: noise of the solver is averaged out and images
blur, wholly at eta = 1 (see `gaussian_chain`). So noise must be weak, and the adversary sharpens.

Reference: Liu et al. 2024 (SCott, arXiv 2403.01505); Luo et al. 2023 (Latent Consistency Models), for f and w; Cui et
al. 2023 (arXiv 2309.06169), for ER-SDE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.method import Method, Update
from scoreline.core.noise import Draws
from scoreline.core.sampler import Sampler
from scoreline.core.schedule import Schedule
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.fewstep.adversarial import ADVERSARIAL, discriminator_loss, generator_loss
from scoreline.fewstep.consistency import as_target
from scoreline.fewstep.discriminators import named_discriminator, seen_by
from scoreline.fewstep.distances import distance as named_distance
from scoreline.fewstep.guided import SKIP, USUAL, GuidedConsistency, WeightGuided, sub_steps, told, weight_taking
from scoreline.fewstep.teachers import advance, check_alike, copied, ema_update, innermost
from scoreline.nn.adapters import LoRA, is_adapted, merged
from scoreline.nn.discriminator import TapDiscriminator
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.er_sde import ERSDE
from scoreline.samplers.generator import Sampled
from scoreline.samplers.jumps import Jumps

__all__ = ["SOLVERS", "SCott", "gaussian_chain", "sde_steps", "variance_ratio"]

SOLVERS = ("ddim", "er-sde")
DISCRIMINATORS = ("taps", "lora")


class _Given:
    """Noises that are given, as the streams that a solver asks: that of step i is draw i + 1."""

    def __init__(self, noises: Tensor) -> None:
        self.noises = noises

    def normal(self, step: int = 0, part: int = 0) -> Tensor:
        return self.noises[step - 1]


def sde_steps(
    solver: Sampler, teacher: Denoiser, x: Tensor, times: Tensor, noises: Tensor, cond: Cond | None = None
) -> Tensor:
    """The teacher's steps from times[0] to times[-1] with the noises given, without gradients.

    Args:
        solver: a sampler with times of each image's own, e.g. `DDIM(eta=0.2)` or `ERSDE()`.
        teacher: the model; guided by `cond.weight` where it is a :class:`WeightGuided`.
        x: states at times[0], (B, ...).
        times: (h+1, B) float64, descending.
        noises: (h, B, ...) standard normal, one for each step; a solver without noise does not look at them.
        cond: conditions of the batch.
    """
    return advance(solver, teacher, x, times, cond, noise=cast(Draws, _Given(noises)))


def gaussian_chain(
    schedule: Schedule, times: Sequence[float] | NDArray[np.float64], variance: float, solver: Sampler
) -> tuple[float, float]:
    """What a solver makes of data N(0, c^2) with the exact model, from times[0] to times[-1]: (gain, variance).

    Each step is z_s = g z_t + std xi, g = a + b alpha_t c^2/(alpha_t^2 c^2 + sigma_t^2); the gain is the product of g.
    It is also the slope of the best student under squared loss, f(z) = E[f(z_m)|z], where times end with f(z) = z.

    Args:
        schedule: coordinates.
        times: (S+1,) descending.
        variance: c^2.
        solver: DDIM or ER-SDE, whose coefficients are a, b, std.

    Returns:
        the product of gains, and the variance at the end of a state that has the exact one, alpha^2 c^2 + sigma^2, at
        the start.
    """
    at = np.asarray(times, dtype=np.float64)
    start = schedule.alpha(at[0]) ** 2 * variance + schedule.sigma(at[0]) ** 2
    gain, total = 1.0, float(start)
    for row in solver.coefficients(schedule, at):
        alpha, sigma = schedule.alpha(row.t), schedule.sigma(row.t)
        g = float(row.a + row.b * alpha * variance / (alpha**2 * variance + sigma**2))
        gain, total = gain * g, g * g * total + float(row.std) ** 2
    return gain, total


def variance_ratio(
    schedule: Schedule, times: Sequence[float] | NDArray[np.float64], variance: float, solver: Sampler
) -> float:
    """Variance of the best student's images in one step over that of the data N(0, c^2): 1 is sharp, less is blurred.

    gain^2 (alpha^2 c^2 + sigma^2)/c^2, the gain that of :func:`gaussian_chain`; with eta = 1, at a clean end, it is
    abar c^2/(abar c^2 + 1 - abar) for any number of steps.

    Args:
        schedule, times, variance, solver: as of :func:`gaussian_chain`; times end at a level where f(z) = z.
    """
    gain, _ = gaussian_chain(schedule, times, variance, solver)
    alpha, sigma = schedule.alpha(float(times[0])), schedule.sigma(float(times[0]))
    return float(gain**2 * (alpha**2 * variance + sigma**2) / variance)


@dataclass
class Shared:
    """What the updates of one turn share.

    `noises` (h, B, ...) are the solver's, one for each of its steps, 0 where it takes none. The student's update leaves
    `fake`, its images as the discriminator is shown them, detached, and their `level`.
    """

    z_n: Tensor
    z_m: Tensor
    n: Tensor
    m: Tensor
    noises: Tensor
    cond: Cond | None
    told: Cond | None
    fake: Tensor | None = None
    level: Tensor | None = None


class SCott(Method):
    """Distil a denoiser into a consistency function by a stochastic solver of several steps, with an adversary.

    Args:
        student: f, see :meth:`student_of`.
        teacher: any denoiser, on any schedule.
        h: steps of the teacher from n to m.
        solver: "ddim", or "er-sde", which makes more noise with the phis that are known.
        phi: noise scale of ER-SDE, see :func:`scoreline.samplers.er_sde.noise_scale`.
        eta: noise of DDIM, in [0, 1]; the paper's range is 0 to 0.6.
        skip, points: see :func:`sub_steps`; None takes the student's.
        guidance: (low, high) of w ~ U(low, high); None leaves guidance out.
        sampling_guidance: w when images are made; None takes 7.5, or the end of the range next to it.
        distance: "squared", "pseudo-huber" or "elementwise-huber".
        target_rate: decay of the average that gives the target.
        discriminator: "taps", heads on frozen features of the teacher's network; "lora", heads on the last features of
            a copy of it whose decoder is adapted, as in the paper; a module `d(x, t, cond)` -> logits; None leaves the
            adversary out.
        discriminator_rank: of the adapters of "lora".
        adversarial: "hinge", or another of :mod:`scoreline.fewstep.adversarial`.
        adversarial_weight: of L_G; 0 leaves the adversary out.
        renoise: whether the discriminator judges images noised to a level drawn from the grid, or clean ones, called
            of the least level.
        lora: {rank:, alpha:, layers:} of :meth:`scoreline.nn.adapters.LoRA.of`: only adapters of the student are
            trained, and the result has them merged; None trains the whole network.
        lr, discriminator_lr: learning rates, or functions of the step.
        optimizer, settings, clip: of both, see :class:`scoreline.core.method.Update`.

    Raises:
        InputError: a setting is out of range or does not fit teacher and student, or their shapes differ.
    """

    sampler = "jumps"
    made_for: tuple[int, ...] | None = None

    def __init__(
        self,
        student: GuidedConsistency,
        teacher: Denoiser,
        *,
        h: int = 3,
        solver: str = "ddim",
        phi: str = "er-sde-5",
        eta: float = 0.2,
        guidance: Sequence[float] | None = (3.0, 15.0),
        sampling_guidance: float | None = None,
        distance: str = "squared",
        target_rate: float = 0.95,
        discriminator: nn.Module | str | None = "taps",
        discriminator_rank: int = 64,
        adversarial: str = "hinge",
        adversarial_weight: float = 0.4,
        renoise: bool = True,
        lora: Mapping[str, Any] | None = None,
        lr: float | Callable[[int], float] = 8e-6,
        discriminator_lr: float | Callable[[int], float] = 2e-5,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        settings: dict[str, Any] | None = None,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        if solver not in SOLVERS:
            raise unknown_name("solver", solver, SOLVERS)
        if not 0 <= target_rate < 1:
            raise InputError("target_rate", target_rate, "must lie in [0, 1)")
        if adversarial not in ADVERSARIAL:
            raise unknown_name("adversarial", adversarial, ADVERSARIAL)
        if adversarial_weight < 0:
            raise InputError("adversarial_weight", adversarial_weight, "must not be negative")
        check_alike(student, teacher)
        self.range = _checked_range(guidance, student)
        self.solver: Sampler = ERSDE(phi=phi) if solver == "er-sde" else DDIM(eta=eta)
        times = sub_steps(student.schedule, h=h, skip=student.skip, points=len(student.trained))
        self.solver.coefficients(student.schedule, times[-1])  # refuses levels without signal now, not in a turn
        self.register_buffer("times", torch.from_numpy(times), persistent=False)
        self.times: Tensor
        there = teacher.on(student.schedule)
        if self.range is not None:
            low, high = self.range
            wanted = min(max(USUAL, low), high) if sampling_guidance is None else sampling_guidance
            student.guidance.fill_(wanted)
            student.interval.copy_(torch.tensor(self.range))
        self.adapted = lora is not None
        if lora is not None:
            LoRA.of(student.net, **_checked_lora(lora)).attach(student.net)
        self.student, self.target = student, copied(student)
        self.teacher: Denoiser = there if self.range is None else WeightGuided(there)
        if isinstance(discriminator, str):
            if discriminator not in DISCRIMINATORS:
                raise unknown_name("discriminator", discriminator, DISCRIMINATORS)
            rank = discriminator_rank if discriminator == "lora" else None
            discriminator = _judge(teacher, student, rank) if adversarial_weight else None
        self.discriminator = discriminator if adversarial_weight else None
        self.adversarial, self.adversarial_weight, self.renoise = adversarial, adversarial_weight, renoise
        self.target_rate, self.apart = target_rate, named_distance(distance)
        self.updates = [Update(student.net, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]
        if self.discriminator is not None:
            critic = Update(
                self.discriminator, self.critic_loss, optimizer=optimizer, lr=discriminator_lr,
                settings=settings or {}, clip=clip, name="discriminator",
            )  # fmt: skip
            self.updates.append(critic)

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> GuidedConsistency:
        """A guided consistency function over a network, or over a copy of the teacher's that is told w besides.

        See :func:`scoreline.fewstep.guided.weight_taking`.

        Raises:
            InputError: the teacher has no network, or its images are of another shape than the student's.
        """
        if isinstance(net, GuidedConsistency):
            return net
        inner = None if teacher is None else innermost(teacher)
        if not isinstance(inner, Preconditioned):
            mend = "gives the student its schedule and kind; take a model with a network, or a student: of one's own"
            raise InputError("teacher", None if inner is None else type(inner).__name__, mend)
        if net is None:
            net = weight_taking(inner)
        if tuple(getattr(net, "in_shape", inner.shape)) != tuple(inner.shape):
            raise InputError("student", getattr(net, "in_shape", None), f"the teacher's images are {inner.shape}")
        table = inner.schedule.known
        skip = SKIP if table is None else max(1, min(SKIP, len(table) * SKIP // 1000))
        return GuidedConsistency(
            net.requires_grad_(True), inner.schedule, kind=inner.kind, sigma_data=inner.sigma_data,
            time_input=inner.time_input, skip=skip,
        )  # fmt: skip

    def frozen(self) -> tuple[nn.Module, ...]:
        judge = self.discriminator
        if isinstance(judge, TapDiscriminator) and judge.frozen_trunk and not is_adapted(judge.trunk):
            return (self.teacher, judge.trunk)
        return (self.teacher,)

    def averaged(self) -> nn.Module:
        return self.student.net

    def prepare(self, batch: Any, step: int) -> Shared:
        draws = batch.draws.reshaped(batch.image.shape[1:])
        times = self.times[draws.integers(len(self.times), step=0, part=1)].T
        cond, real = told(self.student, batch), told(self.teacher, batch)
        shown = real
        if self.range is not None:
            low, high = self.range
            weight = (low + (high - low) * draws.uniform(step=0, part=3)).to(batch.image.dtype)
            cond, shown = (c.replace(weight=weight) for c in (cond or Cond(), real or Cond()))
        h = len(times) - 1
        if self.solver.stochastic:
            noises = torch.stack([draws.normal(step=k + 1) for k in range(h)])
        else:
            noises = torch.zeros((), device=times.device).expand(h, *batch.image.shape)
        z_n = self.student.schedule.marginal(batch.image, times[0], draws.normal())
        z_m = sde_steps(self.solver, self.teacher, z_n, times, noises, shown)
        return Shared(z_n, z_m, times[0], times[-1], noises, cond, real)

    def loss(self, batch: Any, shared: Shared, step: int) -> dict[str, Tensor]:
        s = shared
        with as_target(self.target):
            target = self.target.jump(s.z_m, s.m, self.student.end, s.cond).detach()
        pred = self.student.jump(s.z_n, s.n, self.student.end, s.cond)
        consistency = self.apart(pred, target).mean()
        if self.discriminator is None:
            return {"loss": consistency}
        s.level = self._level(batch, s)
        shown = self._shown(batch, pred, s.level, 5)
        s.fake = shown.detach()
        fooled = generator_loss(self.discriminator(shown, s.level, s.told), self.adversarial)
        total = consistency + self.adversarial_weight * fooled
        return {"loss": total, "consistency": consistency.detach(), "adversarial": fooled.detach()}

    def critic_loss(self, batch: Any, shared: Shared, step: int) -> Tensor:
        """L_D of this turn's images, which the student's update left, and of the real ones."""
        s = shared
        assert self.discriminator is not None
        assert s.fake is not None
        assert s.level is not None
        real = self.discriminator(self._shown(batch, batch.image, s.level, 6), s.level, s.told)
        return discriminator_loss(real, self.discriminator(s.fake, s.level, s.told), self.adversarial)

    def after_update(self, step: int) -> None:
        ema_update(self.target, self.student, self.target_rate)

    def result(self) -> Sampled:
        student = self.student.eval()
        return Sampled(student.with_net(merged(student.net)) if self.adapted else student, Jumps(steps=1))

    def _level(self, batch: Any, shared: Shared) -> Tensor:
        """The levels at which the discriminator judges, (B,)."""
        if not self.renoise:
            return torch.full_like(shared.n, self.student.end)
        return self.times[batch.draws.integers(len(self.times), step=0, part=4), 0]

    def _shown(self, batch: Any, image: Tensor, level: Tensor, part: int) -> Tensor:
        """Images as the discriminator is shown them: noised by the draw (0, part) of each."""
        if not self.renoise:
            return image
        draws = batch.draws.reshaped(image.shape[1:])
        return self.student.schedule.marginal(image, level, draws.normal(step=0, part=part))


def _checked_range(guidance: Sequence[float] | None, student: GuidedConsistency) -> tuple[float, float] | None:
    if guidance is None:
        return None
    if isinstance(guidance, str) or len(guidance) != 2 or not guidance[0] <= guidance[1]:
        raise InputError("guidance", guidance, "give [low, high] of w, or null")
    if guidance[0] < guidance[1] and not student.takes_weight:
        mend = "the student is not told w; give [w, w], null, or a network with weight_input=True"
        raise InputError("guidance", list(guidance), mend)
    return float(guidance[0]), float(guidance[1])


def _checked_lora(lora: Mapping[str, Any]) -> dict[str, Any]:
    known = ("rank", "alpha", "layers")
    if not isinstance(lora, Mapping):
        raise InputError("lora", lora, "give a mapping, e.g. {rank: 64}, or null")
    for key in lora:
        if key not in known:
            raise unknown_name("setting of lora", str(key), known)
    return dict(lora)


def _judge(teacher: Denoiser, student: GuidedConsistency, rank: int | None) -> nn.Module | None:
    if rank is None:
        return named_discriminator("taps", teacher, student.schedule, student.shape)
    seen = seen_by(teacher, student.schedule, copy=True)
    net: Any = seen.net
    decoder = any(".decoder." in f".{name}." for name, _ in net.named_modules())
    judge = TapDiscriminator(seen, ("decoder",) if "decoder" in net.taps else None)
    LoRA.of(net, rank=rank, layers=["*decoder.*"] if decoder else None).attach(net)
    return judge
