"""Rectified flow, reflow and distillation: straight paths that one Euler step follows to their end (InstaFlow).

The papers' time runs from noise, t' = 0, to data, t' = 1; with noise X_0 and data X_1
    X_t' = t' X_1 + (1 - t') X_0                       t' ~ U(eps, 1), eps = 1e-3
    rectified flow   min E |(X_1 - X_0) - v'(X_t', t')|^2, X_0 and X_1 independent        (1-rectified flow)
    reflow           the same on pairs X_1 = ODE[v'](X_0)                                 (2-, 3-, ... rectified flow)
    straightness     S = int E|(Z_1 - Z_0) - v'(Z_t', t')|^2 dt'          (`scoreline.fewstep.flows.straightness`)
    distillation     min E D(ODE[v'](X_0), X_0 + v'(X_0, 0));  for k steps reflow with t' ~ U{0, 1/k, ..., (k-1)/k}
    guidance         v'_a = a v'(x, t' | text) + (1 - a) v'(x, t' | nothing)
Models of this package live in t = 1 - t', with velocity v = -v': functions that can be called alone say which one they
take; those named after a formula above take t'. Sampling as the released code does it, grids and time labels included,
is in `scoreline.samplers.rectified`.

At t' = 0 the optimal v' of an independent coupling is E[X_1] - x, so that one Euler step of a 1-rectified flow gives
the mean of the data: that is what it has to give.

Reference: Liu et al. 2023 (InstaFlow), arXiv 2309.06380; Liu et al. 2022 (Flow Straight and Fast), arXiv 2209.03003.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.method import Method, Update
from scoreline.fewstep.distances import Distance, squared
from scoreline.fewstep.distances import distance as named_distance
from scoreline.fewstep.flows import (
    check_flow,
    conditions,
    coupling,
    flow_student,
    interpolate,
    network_of,
    online_pairs,
    stage_straightness,
    starting_from,
    training_times,
    velocity_loss,
)
from scoreline.fewstep.teachers import guided_teacher
from scoreline.samplers.euler import Euler
from scoreline.samplers.generator import Sampled

__all__ = ["FlowDistillation", "RectifiedFlow", "distillation_loss", "distillation_times", "guided_flow"]
__all__ += ["guided_velocity", "online_pairs", "reflow_loss", "stage_straightness", "training_times"]

Lr = float | Callable[[int], float]

EPS = 1e-3  # where training and, in the released code, sampling start, in t'


def distillation_times(u: Tensor, k: int, *, eps: float = 0.0) -> Tensor:
    """t' uniform on {0, 1/k, ..., (k-1)/k}, moved to (1 - eps) t' + eps; the papers' time, (B,) float64.

    Args:
        u: uniform on [0, 1), (B,).
        k: steps of the distilled model.
        eps: 0 in the paper, 1e-3 in the released code.

    >>> distillation_times(torch.tensor([0.0, 0.49, 0.5, 0.99]), 2).tolist()
    [0.0, 0.0, 0.5, 0.5]
    """
    return eps + (u.double() * k).floor().clamp(max=k - 1) / k * (1 - eps)


def guided_velocity(text: Tensor, nothing: Tensor, a: float) -> Tensor:
    """v_a = a v(x, t | text) + (1 - a) v(x, t | nothing), (B, ...); a = 1 is the first, whatever the second holds.

    Args:
        text, nothing: the two velocities, (B, ...), in either time.
        a: strength, 1.5 for targets of a 2-rectified flow, useful from 1 to 2.
    """
    return torch.lerp(nothing, text, a) if a != 1 else text


def guided_flow(model: Denoiser, a: float) -> Denoiser:
    """A flow under guidance of strength a; 1 is the conditional model itself, at half the cost.

    Args:
        model: a denoiser on any schedule; all forms give the same images, since velocity is affine in them.
        a: 1 or more. A distilled model takes none.

    Raises:
        InputError: a is below 1 (the released pipeline then runs the conditional branch alone), or the model has no
            conditions.
    """
    if not a >= 1:
        raise InputError("guidance", a, "a flow is guided with 1 (conditional) or more; bind no label to leave it out")
    return guided_teacher(model, a)


def reflow_loss(student: Denoiser, x: Tensor, z: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    """Mean over the batch of |v(x_t, t) - (z - x)|^2, x_t = (1 - t) x + t z: rectified flow, and reflow on pairs.

    Args:
        student: a denoiser on the flow schedule.
        x: X_1, data ends, (B, *shape).
        z: X_0, noise, (B, *shape): independent of x for a 1-rectified flow, its partner for reflow.
        t: 1 - t', (B,) float64; times nearer to an end than the student goes are moved to it.
        cond: conditions of the batch.
    """
    t = t.clamp(student.schedule.t_min, student.schedule.t_max)
    return velocity_loss(student.velocity(interpolate(x, z, t), t, cond), x, z).mean()


def distillation_loss(
    student: Denoiser, x: Tensor, z: Tensor, t: Tensor, cond: Cond | None = None, *, apart: Distance = squared
) -> Tensor:
    """Mean over the batch of D(X_1, X_0 + v'(X_t', t')), t' = 0: the one-step student against where the flow ends.

    Args:
        student: a denoiser on the flow schedule.
        x: X_1 = ODE[v](X_0), (B, *shape).
        z: X_0, (B, *shape).
        t: 1 - t', (B,) float64: 1, or 0.999 in the released code; no noisier than the student goes.
        cond: conditions of the batch.
        apart: D, one number an image; squared, then LPIPS in the paper.
    """
    t = t.clamp(max=student.schedule.t_max)
    return apart(z - student.velocity(interpolate(x, z, t), t, cond), x).mean()


@dataclass(frozen=True)
class Coupled:
    """What one turn of training shares: data ends, noise, times (1 - t') and conditions."""

    x: Tensor
    z: Tensor
    t: Tensor
    cond: Cond | None


class RectifiedFlow(Method):
    """Train a rectified flow: on images a 1-rectified flow, on pairs of a flow the next one (reflow).

    Args:
        student: a denoiser on the flow schedule; its network takes the gradients.
        teacher: makes the pairs of each batch where `online` says so; with stored pairs it is not asked.
        online: Euler steps of the teacher for the pairs of each batch, 20 in the released code; 0 takes the batch's own
            noise where it holds pairs, and independent noise (a 1-rectified flow) where it holds images.
        guidance: a, of the teacher, 1 or more.
        eps: the least time t'.
        p_uncond: share of labels dropped, so that the flow can be guided.
        flips: see an image in the mirror with probability 1/2; pairs have their own flips, of image and noise together.
        lr: learning rate, or a function of the step.
        optimizer, settings, clip: see :class:`scoreline.core.method.Update`.

    Raises:
        InputError: a setting is out of range, or teacher and student do not fit.
    """

    sampler = "euler"
    made_for: tuple[int, ...] | None = None

    def __init__(
        self,
        student: Denoiser,
        teacher: Denoiser | None = None,
        *,
        online: int = 0,
        guidance: float = 1.0,
        eps: float = EPS,
        p_uncond: float = 0.0,
        flips: bool = False,
        lr: Lr = 2e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= eps < 1:
            raise InputError("eps", eps, "is the least time, in [0, 1)")
        if not 0 <= p_uncond < 1:
            raise InputError("p_uncond", p_uncond, "must lie in [0, 1)")
        if flips and len(student.shape) != 3:
            raise InputError("flips", True, f"belong to pictures, not to data of shape {tuple(student.shape)}")
        self.student, self.eps, self.p_uncond, self.online, self.flips = student, eps, p_uncond, online, flips
        check_flow(student, teacher, online)
        self.teacher = _pair_maker(teacher, guidance) if online else None
        network = network_of(student)
        self.updates = [Update(network, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> Denoiser:
        """A flow of a network, or of a copy of the teacher's, from t = 1 - 1e-3 on: see :func:`flow_student`."""
        return starting_from(flow_student(teacher, net), 1 - EPS)

    def frozen(self) -> tuple[nn.Module, ...]:
        return () if self.teacher is None else (self.teacher,)

    def averaged(self) -> nn.Module:
        return network_of(self.student)

    def prepare(self, batch: Any, step: int) -> Coupled:
        cond = conditions(self.student, batch, self.p_uncond)
        x, z = coupling(self.teacher, self.online, batch)
        if self.flips and self.teacher is None and "noise" not in batch.extras:
            mirrored = batch.draws.uniform(step=0, part=3) < 0.5
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
        return Coupled(x, z, 1 - training_times(batch.draws.uniform(step=0, part=1), eps=self.eps), cond)

    def loss(self, batch: Any, shared: Coupled, step: int) -> Tensor:
        return reflow_loss(self.student, shared.x, shared.z, shared.t, shared.cond)

    def measured(self) -> dict[str, float]:
        """What is told at the end of a training: the straightness S."""
        return {"straightness": stage_straightness(self.student)}

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), Euler(steps=20))


class FlowDistillation(Method):
    """Distil a flow into one Euler step, or k, on pairs of that flow; straight flows (2-rectified) distil best.

    Args:
        student: a denoiser on the flow schedule, usually a copy of the flow; its network takes the gradients.
        teacher: makes the pairs of each batch where `online` says so; with stored pairs it is not asked.
        k: Euler steps of the result.
        distance: D for k = 1, a name in `scoreline.fewstep.distances.DISTANCES`; the paper ends with lpips-vgg. More
            steps take the squared velocity.
        size: LPIPS only: pixels to which images are resized; None leaves them.
        eps: how far from pure noise the student is trained: 0, or 1e-3 as in the released code; no nearer than its own
            noisiest level.
        online, guidance: as of :class:`RectifiedFlow`.
        lr: learning rate, or a function of the step.
        optimizer, settings, clip: see :class:`scoreline.core.method.Update`.

    Raises:
        InputError: a setting is out of range, or teacher and student do not fit.
    """

    sampler = "euler"
    made_for: tuple[int, ...] | None = (1,)

    def __init__(
        self,
        student: Denoiser,
        teacher: Denoiser | None = None,
        *,
        k: int = 1,
        distance: str = "squared",
        size: int | None = None,
        eps: float = 0.0,
        online: int = 0,
        guidance: float = 1.0,
        lr: Lr = 2e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= eps < 1:
            raise InputError("eps", eps, "is the least time, in [0, 1)")
        if k < 1:
            raise InputError("k", k, "counts Euler steps, 1 or more")
        if k > 1 and distance != "squared":
            raise InputError("distance", distance, "belongs to one step; k steps take the squared velocity")
        self.student, self.k, self.eps, self.online = student, k, eps, online
        self.made_for, self.apart = (k,), named_distance(distance, size=size)
        check_flow(student, teacher, online)
        self.teacher = _pair_maker(teacher, guidance) if online else None
        network = network_of(student)
        self.updates = [Update(network, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> Denoiser:
        """A flow of a network, or of a copy of the teacher's, from t = 1 - 1e-3 on: see :func:`flow_student`."""
        return starting_from(flow_student(teacher, net), 1 - EPS)

    def frozen(self) -> tuple[nn.Module, ...]:
        return () if self.teacher is None else (self.teacher,)

    def averaged(self) -> nn.Module:
        return network_of(self.student)

    def prepare(self, batch: Any, step: int) -> Coupled:
        cond = conditions(self.student, batch)
        x, z = coupling(self.teacher, self.online, batch, pairs=True)
        t = 1 - distillation_times(batch.draws.uniform(step=0, part=1), self.k, eps=self.eps)
        return Coupled(x, z, t, cond)

    def loss(self, batch: Any, shared: Coupled, step: int) -> Tensor:
        if self.k > 1:
            return reflow_loss(self.student, shared.x, shared.z, shared.t, shared.cond)
        return distillation_loss(self.student, shared.x, shared.z, shared.t, shared.cond, apart=self.apart)

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), Euler(steps=self.k))


def _pair_maker(teacher: Denoiser | None, guidance: float) -> Denoiser:
    """The frozen teacher that makes pairs during the training."""
    assert teacher is not None
    return guided_flow(teacher.requires_grad_(False).eval(), guidance)
