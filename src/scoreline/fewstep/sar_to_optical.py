"""Adversarial consistency distillation: a translator of images in one to eight steps, from one in a thousand.

The model is told a source image s, concatenated to its input and never noised. Student f, its average f_-, the frozen
teacher, and 50 levels of the teacher's DDIM (19, 39, ..., 999 on a table of a thousand; the level before 19 is 0):
    j ~ U{0 ... 49},  n = tau_j,  m = max(n - 20, 0),   y_n = alpha_n y + sigma_n eps
    pred = f(y_n, n, s),   y_m = alpha_m x0 + sigma_m eps_hat (one DDIM step of the teacher),   target = f_-(y_m, m, s)
    L_cd = mean sqrt((pred - target)^2 + c^2) - c                      (element-wise pseudo-Huber, c = 1e-3)
The discriminator sees pairs of states: logit = D(y_n, n, y', m), y' = pred, or for the real pair y' = target, which is
the average's answer and not the image y:
    L_G = mean softplus(-D(pred)),   L_D = mean softplus(D(pred)) + mean softplus(-D(target))
    student: L_cd + weight L_G;   then the discriminator on the same batch;   then the average, decay 0.95
There is no guidance. Sampling jumps to the end and puts noise back, from levels among the 50.

Reference: Bai & Xu 2024 (arXiv 2407.06095); Luo et al. 2023 (Latent Consistency Models), for f.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.method import Method, Update
from scoreline.core.schedule import Schedule
from scoreline.diffusion.denoising import source_of
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.fewstep.adversarial import ADVERSARIAL, discriminator_loss, generator_loss
from scoreline.fewstep.consistency import as_target
from scoreline.fewstep.curricula import solver_levels
from scoreline.fewstep.distances import distance as named_distance
from scoreline.fewstep.flows import conditions
from scoreline.fewstep.maps import LatentConsistency
from scoreline.fewstep.teachers import advance, check_alike, copied, ema_update, innermost, rebuilt
from scoreline.nn.discriminator import PairDiscriminator
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.generator import Sampled
from scoreline.samplers.jumps import Jumps

__all__ = ["REAL", "AdversarialConsistency", "ddim_pairs"]

POINTS = 50
REAL = ("target", "image")


def ddim_pairs(schedule: Schedule, points: int = POINTS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, m): the levels from which the teacher steps, ascending, and those to which it steps, each (points,).

    Args:
        schedule: of teacher and student.
        points: how many.

    >>> from scoreline.diffusion.schedules import Discrete
    >>> n, m = ddim_pairs(Discrete())
    >>> n[:2].tolist(), m[:2].tolist()
    ([19.0, 39.0], [0.0, 19.0])
    """
    n = solver_levels(schedule, points)
    return n, np.append(schedule.t_min, n[:-1])


@dataclass
class Shared:
    """What the updates of one turn share; the student's update leaves the two states that the discriminator judges."""

    x_n: Tensor
    x_m: Tensor
    n: Tensor
    m: Tensor
    cond: Cond | None
    states: list[Tensor] = field(default_factory=list)


class AdversarialConsistency(Method):
    """Distil a denoiser that is told an image (or labels, or nothing) into a consistency function, with an adversary.

    Args:
        student: f, a latent consistency function over the teacher's network.
        teacher: any denoiser, on any schedule.
        points: levels of the teacher's DDIM.
        distance: "elementwise-huber" (paper) or "squared".
        huber_c: c.
        target_rate: decay of the average that gives the target.
        discriminator: "pairs" starts one from the teacher's encoder; a module called as
            :class:`scoreline.nn.discriminator.PairDiscriminator` is; None leaves the adversary out.
        adversarial: "softplus" (the paper's "unsaturated"), "hinge" or "wasserstein".
        adversarial_weight: of L_G.
        real: second state of the real pair: "target", the average's answer (paper), or "image", the true one.
        lr: of both optimizers, or a function of the step; the paper's is 8e-6, cosine, 500 steps of warm-up.
        discriminator_lr: None takes `lr`.
        optimizer, settings, clip: of both, see :class:`scoreline.core.method.Update`; settings None takes betas
            (0.9, 0.999), a weight decay of 1e-2 and eps 1e-8.

    Raises:
        InputError: a setting is out of range, or shapes or classes differ.
    """

    sampler = "jumps"
    made_for: tuple[int, ...] | None = None

    def __init__(
        self,
        student: LatentConsistency,
        teacher: Denoiser,
        *,
        points: int = POINTS,
        distance: str = "elementwise-huber",
        huber_c: float = 1e-3,
        target_rate: float = 0.95,
        discriminator: nn.Module | str | None = "pairs",
        adversarial: str = "softplus",
        adversarial_weight: float = 1.0,
        real: str = "target",
        lr: float | Callable[[int], float] = 8e-6,
        discriminator_lr: float | Callable[[int], float] | None = None,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        settings: dict[str, Any] | None = None,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= target_rate < 1:
            raise InputError("target_rate", target_rate, "must lie in [0, 1)")
        if adversarial not in ADVERSARIAL:
            raise unknown_name("adversarial", adversarial, ADVERSARIAL)
        if real not in REAL:
            raise unknown_name("real", real, REAL)
        check_alike(student, teacher)
        if teacher.num_classes != student.num_classes:
            mend = f"the teacher's number of classes is {teacher.num_classes}; give both the same"
            raise InputError("student", student.num_classes, mend)
        if isinstance(discriminator, str):
            if discriminator != "pairs":
                raise unknown_name("discriminator", discriminator, ("pairs",))
            # In the coordinates of the student, who is a copy of the teacher at the start.
            seen = Preconditioned(
                student.net, student.schedule, kind=student.kind, sigma_data=student.sigma_data,
                time_input=student.time_input,
            )  # fmt: skip
            discriminator = PairDiscriminator(seen)
        self.student, self.target, self.teacher = student, copied(student), teacher.on(student.schedule)
        self.discriminator, self.adversarial, self.adversarial_weight = discriminator, adversarial, adversarial_weight
        self.target_rate, self.real, self.solver = target_rate, real, DDIM()
        self.apart = named_distance(distance, c=huber_c if "huber" in distance else None)
        n, m = ddim_pairs(student.schedule, points)
        self.register_buffer("n", torch.from_numpy(n), persistent=False)
        self.register_buffer("m", torch.from_numpy(m), persistent=False)
        self.n: Tensor
        self.m: Tensor
        rule = {"betas": (0.9, 0.999), "weight_decay": 1e-2, "eps": 1e-8} if settings is None else settings
        self.updates = [Update(student.net, self.loss, optimizer=optimizer, lr=lr, settings=rule, clip=clip)]
        if discriminator is not None:
            rate = lr if discriminator_lr is None else discriminator_lr
            critic = Update(
                discriminator, self.critic_loss, optimizer=optimizer, lr=rate, settings=rule, clip=clip,
                name="discriminator",
            )  # fmt: skip
            self.updates.append(critic)

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> LatentConsistency:
        """A latent consistency function over a network, or over a copy of the teacher's.

        Raises:
            InputError: there is no network, or its images are of another shape than the teacher's.
        """
        if isinstance(net, LatentConsistency):
            return net
        inner = None if teacher is None else innermost(teacher)
        if not isinstance(inner, Preconditioned):
            mend = "gives the student its schedule and kind; take a model with a network, or a student: of one's own"
            raise InputError("teacher", None if inner is None else type(inner).__name__, mend)
        if net is None:
            net, _ = rebuilt(inner.net, {"out_channels": inner.shape[0]} if inner.learned_variance else {})
        if tuple(getattr(net, "in_shape", inner.shape)) != tuple(inner.shape):
            raise InputError("student", getattr(net, "in_shape", None), f"the teacher's images are {inner.shape}")
        points = None if inner.schedule.known is not None and len(inner.schedule.known) < POINTS else POINTS
        return LatentConsistency(
            net.requires_grad_(True), inner.schedule, kind=inner.kind, sigma_data=inner.sigma_data,
            time_input=inner.time_input, points=points,
        )  # fmt: skip

    def frozen(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    def averaged(self) -> nn.Module:
        return self.student.net

    def prepare(self, batch: Any, step: int) -> Shared:
        j = batch.draws.integers(len(self.n), step=0, part=1)
        n, m = self.n[j], self.m[j]
        cond = conditions(self.student, batch)
        if "image" in getattr(self.student.net, "accepts", ()):
            cond = (cond or Cond()).replace(image=source_of(batch))
        noise = batch.draws.reshaped(batch.image.shape[1:]).normal()
        x_n = self.student.schedule.marginal(batch.image, n, noise)
        x_m = advance(self.solver, self.teacher, x_n, torch.stack([n, m]), cond)
        return Shared(x_n, x_m, n, m, cond)

    def loss(self, batch: Any, shared: Shared, step: int) -> dict[str, Tensor]:
        s = shared
        with as_target(self.target):
            target = self.target.jump(s.x_m, s.m, self.student.end, s.cond).detach()
        pred = self.student.jump(s.x_n, s.n, self.student.end, s.cond)
        consistency = self.apart(pred, target).mean()
        if self.discriminator is None:
            return {"loss": consistency}
        s.states = [pred.detach(), target if self.real == "target" else batch.image]
        fooled = generator_loss(self._judged(s, pred), self.adversarial)
        total = consistency + self.adversarial_weight * fooled
        return {"loss": total, "consistency": consistency.detach(), "adversarial": fooled.detach()}

    def critic_loss(self, batch: Any, shared: Shared, step: int) -> Tensor:
        """L_D of this turn's states, which the student's update left."""
        fake, real = shared.states
        return discriminator_loss(self._judged(shared, real), self._judged(shared, fake), self.adversarial)

    def after_update(self, step: int) -> None:
        ema_update(self.target, self.student, self.target_rate)

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), Jumps(steps=1))

    def _judged(self, shared: Shared, state: Tensor) -> Tensor:
        assert self.discriminator is not None
        return self.discriminator(shared.x_n, shared.n, state, shared.m, shared.cond)
