"""Teacher score matching (TSM): a network of another architecture learns a teacher's answers, before it is distilled.

    x_t = alpha_t x + sigma_t eps,   L = E_{x, t}[ lambda_t || mu_phi(x_t, t, y) - mu_teacher(x_t, t, y) ||^2 ]
    lambda = (s^2 + sd^2)/(s sd)^2,   s = sigma/alpha,   ln s ~ N(-1.2, 1.2^2)
The target is the teacher's denoised image and not x, so that x only says where the two are compared; with labels of one
share alone, the student learns that share. What is left answers as the teacher does, and is the start of a student that
is smaller than its teacher.

Reference: Song et al. 2025 (Multi-student Diffusion Distillation, arXiv 2410.23274), section on smaller students; the
law of the levels and the weight are EDM's (Karras et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.method import Method, Update
from scoreline.core.schedule import Schedule, Time
from scoreline.diffusion.levels import lognormal
from scoreline.diffusion.preconditioned import Preconditioned, edm_weight
from scoreline.fewstep.matching import labelled
from scoreline.fewstep.mean_map import mean_map
from scoreline.fewstep.teachers import check_alike
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.generator import Sampled

__all__ = ["TeacherMatching", "tsm_loss", "tsm_weight"]


def tsm_weight(t: Time, schedule: Schedule, sigma_data: float = 0.5) -> Time:
    """lambda_t = (s^2 + sd^2)/(s sd)^2, s = sigma_t/alpha_t: 1 on the network's own output under EDM's scalings.

    Args:
        t: levels, float or (B,).
        schedule: in whose coordinates t is.
        sigma_data: sd.
    """
    return edm_weight(schedule.sigma(t) / schedule.alpha(t), sigma_data)


def tsm_loss(
    student: Denoiser, teacher: Denoiser, x_t: Tensor, t: Tensor, cond: Cond | None = None, told: Cond | None = None,
    *, sigma_data: float = 0.5,
) -> Tensor:  # fmt: skip
    """Mean over the batch of lambda_t || mu_phi(x_t, t, y) - mu_teacher(x_t, t, y) ||^2, the norm a sum over entries.

    The clean image does not enter: of two that give the same x_t neither is preferred.

    Args:
        student, teacher: on one schedule.
        x_t: noised images, (B, *shape).
        t: their levels, (B,).
        cond: the student's conditions.
        told: the teacher's; None takes the student's.
        sigma_data: sd of the weight.
    """
    with torch.no_grad():
        wanted = teacher(x_t, t, cond if told is None else told).mean
    apart = (student(x_t, t, cond).mean - wanted).square().flatten(1).sum(1)
    weight = tsm_weight(t, student.schedule, sigma_data)
    assert isinstance(weight, Tensor)
    return (weight.to(apart) * apart).mean()


class TeacherMatching(Method):
    """Fit a denoiser to a teacher's answers on real images.

    Args:
        student: what is fitted, with a network.
        teacher: any denoiser of the same images.
        mean, std: of ln(sigma/alpha).
        lr: learning rate, or a function of the step.
        optimizer, settings, clip: see :class:`scoreline.core.method.Update`.

    Raises:
        InputError: student and teacher do not fit, or std is not positive.
    """

    sampler = "ddim"
    made_for: tuple[int, ...] | None = None

    def __init__(
        self,
        student: Preconditioned,
        teacher: Denoiser,
        *,
        mean: float = -1.2,
        std: float = 1.2,
        lr: float | Callable[[int], float] = 1e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if std <= 0:
            raise InputError("std", std, "must be positive")
        check_alike(student, teacher)
        self.student, self.schedule = student, student.schedule
        self.teacher = teacher.on(student.schedule)
        self.mean, self.std = mean, std
        self.updates = [
            Update(student.net, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip, name="tsm")
        ]

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> Preconditioned:
        """A denoiser of the teacher's kind over a network of its own, or over a copy of the teacher's."""
        made = mean_map(teacher, net)
        return Preconditioned(
            made.net, made.schedule, kind=made.kind, sigma_data=made.sigma_data, time_input=made.time_input
        )

    def frozen(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    def averaged(self) -> nn.Module:
        return self.student.net

    def prepare(self, batch: Any, step: int) -> tuple[Tensor, Tensor, Cond | None, Cond | None]:
        t = lognormal(batch.draws.uniform(part=1), self.schedule, mean=self.mean, std=self.std)
        t = t.clamp(self.schedule.t_min, self.schedule.t_max)
        x_t = self.schedule.marginal(batch.image, t, batch.draws.normal())
        return x_t, t, labelled(self.student, batch.label), labelled(self.teacher, batch.label)

    def loss(self, batch: Any, shared: Any, step: int) -> Tensor:
        x_t, t, cond, told = shared
        return tsm_loss(self.student, self.teacher, x_t, t, cond, told, sigma_data=self.student.sigma_data)

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), DDIM(steps=1))
