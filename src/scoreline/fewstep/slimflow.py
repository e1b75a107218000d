"""SlimFlow: a small one-step flow, by reflow from scratch with annealed noise, then distillation guided by that flow.

The code's time, t' = 0 for noise x0 and t' = 1 for data x1, eps = 1e-3 at the noisy end; with fresh noise x0':
    annealing     b(k) = 1 - min(1, k/K)                        1: an ordinary rectified flow, 0: ordinary reflow
                  x0^b = sqrt(1 - b^2) x0 + b x0'               the noise is annealed, never the data
                  min E |v'(x_t', t') - (x1 - x0^b)|^2,  x_t' = t' x1 + (1 - t') x0^b,  t' ~ U(eps, 1)
    distillation  L_distill = D(x0 + v'(x0, eps), x1)           pairs of the small flow itself
                  L_2step   = D(x0' + v'(x0', eps), xhat),  r ~ U(0.2, 0.8)
                  a = x0' + r v'(x0', eps),  xhat = a + (1 - r) v_phi'(a, r)      no gradient through either
The paper's formula takes the first half-step of the target with the guide v_phi, its code with the student; both are
here. Models of this package live in t = 1 - t' with velocity v = -v' (towards noise), and so do the functions below
unless they say otherwise. Students reach to t = 1 - eps, where they are trained and where sampling starts.

Reference: Zhu, Liu & Liu 2024 (SlimFlow), arXiv 2407.12718, and its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.method import Method, Update
from scoreline.fewstep.distances import Distance, squared
from scoreline.fewstep.distances import distance as named_distance
from scoreline.fewstep.flows import (
    as_flow,
    check_flow,
    conditions,
    coupling,
    flow_student,
    interpolate,
    network_of,
    stage_straightness,
    starting_from,
    training_times,
    velocity_loss,
)
from scoreline.samplers.euler import Euler
from scoreline.samplers.generator import Sampled

__all__ = ["ANNEALING", "EPS", "AnnealedReflow", "FlowGuidedDistillation", "annealed_noise", "annealing"]
__all__ += ["guided_losses", "split_times", "two_step_target"]

Lr = float | Callable[[int], float]

EPS = 1e-3
"""The least t': how far from pure noise the flow starts."""

ANNEALING = ("linear", "exponential", "cosine", "constant")


def annealing(step: int, *, rule: str = "linear", over: float = 300_000, constant: float = 1.0) -> float:
    """b(k), the share of fresh noise.

    linear 1 - min(1, k/K); exponential exp(-k/K), never 0; cosine (1 + cos(pi min(1, k/K)))/2; constant.

    Args:
        step: k = 0, 1, ..., counted from the start of the training, also of a resumed one.
        rule: one of `ANNEALING`.
        over: K > 0; the paper's is 300,000 of 800,000 updates.
        constant: b of the rule "constant", 0 to 1.

    Raises:
        InputError: the rule is unknown, K is not positive, or the constant leaves [0, 1].

    >>> [annealing(k) for k in (0, 75_000, 150_000, 300_000, 800_000)]
    [1.0, 0.75, 0.5, 0.0, 0.0]
    """
    if rule not in ANNEALING:
        raise unknown_name("rule", rule, ANNEALING)
    if not over > 0:
        raise InputError("over", over, "counts the updates until the fresh noise is gone; must be positive")
    if not 0 <= constant <= 1:
        raise InputError("constant", constant, "is a share of noise, in [0, 1]")
    share = min(1.0, step / over)
    if rule == "linear":
        return 1.0 - share
    if rule == "exponential":
        return math.exp(-step / over)
    return 0.5 * (1 + math.cos(math.pi * share)) if rule == "cosine" else float(constant)


def annealed_noise(z: Tensor, fresh: Tensor, b: float) -> Tensor:
    """x0^b = sqrt(1 - b^2) x0 + b x0', standard normal for every b, (B, ...).

    Args:
        z: x0, the noise of the pairs, (B, ...).
        fresh: x0', independent of it, (B, ...).
        b: 0 to 1.
    """
    return z * math.sqrt(max(1.0 - b * b, 0.0)) + fresh * b


def split_times(u: Tensor, *, low: float = 0.2, high: float = 0.8) -> Tensor:
    """r = low + u (high - low), the code's time at which the two steps of the target meet, (B,) float64.

    Args:
        u: uniform on [0, 1), (B,).
        low, high: 0.2 and 0.8 in the code.

    >>> split_times(torch.tensor([0.0, 0.5])).tolist()
    [0.2, 0.5]
    """
    return low + u.double() * (high - low)


@torch.no_grad()
def two_step_target(guide: Denoiser, z: Tensor, velocity: Tensor, r: Tensor, cond: Cond | None = None) -> Tensor:
    """xhat = a + (1 - r) v_phi'(a, r), a = x0' + r v', without gradients, (B, *shape).

    Args:
        guide: v_phi, on the flow schedule.
        z: x0', (B, *shape).
        velocity: -v'(x0', eps) of whoever takes the first step, towards noise as velocities are here, (B, *shape).
        r: the code's time, (B,) float64.
        cond: conditions of the batch.
    """
    a = interpolate(z - velocity, z, 1 - r)
    t = (1 - r).clamp(guide.schedule.t_min, guide.schedule.t_max)
    v = guide.velocity(a, t, cond)
    return interpolate(a - v, a, r)


def guided_losses(
    student: Denoiser,
    guide: Denoiser,
    x: Tensor,
    z: Tensor,
    fresh: Tensor,
    r: Tensor,
    cond: Cond | None = None,
    *,
    apart: Distance = squared,
    first: str = "student",
) -> tuple[Tensor, Tensor]:
    """(L_distill, L_2step), means over the batch; one call of the student serves both.

    Args:
        student: v', on the flow schedule; gradients reach it through x0 + v'(x0, eps) and x0' + v'(x0', eps) alone.
        guide: v_phi, on the flow schedule.
        x: x1, where the guide's flow ends, (B, *shape).
        z: x0, its start, (B, *shape).
        fresh: x0', (B, *shape).
        r: see :func:`split_times`, (B,).
        cond: conditions of the batch, those of the pairs; the fresh noise has the same.
        apart: D, one number an image.
        first: whose velocity takes the target's first step, "student" as in the code or "guide" as in the paper.
    """
    n, starts = len(z), torch.cat([z, fresh])
    twice = None if cond is None or cond.labels is None else Cond(labels=torch.cat([cond.labels, cond.labels]))
    v = student.velocity(starts, student.schedule.t_max, twice)
    ends = starts - v
    own = v[n:].detach()
    if first == "guide":
        with torch.no_grad():
            own = guide.velocity(fresh, min(student.schedule.t_max, guide.schedule.t_max), cond)
    target = two_step_target(guide, fresh, own, r, cond)
    return apart(ends[:n], x).mean(), apart(ends[n:], target).mean()


@dataclass(frozen=True)
class Paired:
    """What one turn of annealing shares: data ends, annealed noise, times (1 - t') and conditions."""

    x: Tensor
    z: Tensor
    t: Tensor
    cond: Cond | None


class AnnealedReflow(Method):
    """Train a small flow from scratch on the pairs of a large one: from independent noise to the pairs' own.

    Args:
        student: a denoiser on the flow schedule, of any size; its network takes the gradients.
        teacher: makes the pairs of each batch where `online` says so; with stored pairs it is not asked.
        steps: updates of the training; the annealing takes 3/8 of them, the paper's 300,000 of 800,000.
        rule: b(k), one of `ANNEALING`.
        over: K, instead of 3/8 of the steps.
        constant: b of the rule "constant": 0 is reflow, 1 an ordinary rectified flow on the teacher's images.
        online: Euler steps of the teacher for the pairs of each batch; 0 takes stored pairs.
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
        steps: int = 800_000,
        rule: str = "linear",
        over: float | None = None,
        constant: float = 1.0,
        online: int = 0,
        lr: Lr = 2e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        check_flow(student, teacher, online)
        self.rule, self.over, self.constant = rule, 3 / 8 * steps if over is None else over, constant
        annealing(0, rule=rule, over=self.over, constant=constant)
        self.student, self.online = student, online
        self.teacher = teacher.requires_grad_(False).eval() if teacher is not None and online else None
        network = network_of(student)
        self.updates = [Update(network, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> Denoiser:
        """A flow of a network, or of a copy of the teacher's, from t = 1 - eps on: see :func:`flow_student`."""
        return starting_from(flow_student(teacher, net), 1 - EPS)

    def frozen(self) -> tuple[nn.Module, ...]:
        return () if self.teacher is None else (self.teacher,)

    def averaged(self) -> nn.Module:
        return network_of(self.student)

    def prepare(self, batch: Any, step: int) -> Paired:
        cond = conditions(self.student, batch)
        x, z = coupling(self.teacher, self.online, batch, pairs=True)
        b = annealing(step, rule=self.rule, over=self.over, constant=self.constant)
        if b > 0:  # nothing is drawn any more once the fresh noise has gone
            z = annealed_noise(z, batch.draws.reshaped(z.shape[1:]).normal(step=0, part=3).to(z), b)
        eps = 1 - self.student.schedule.t_max
        return Paired(x, z, 1 - training_times(batch.draws.uniform(step=0, part=1), eps=eps), cond)

    def loss(self, batch: Any, shared: Paired, step: int) -> Tensor:
        t = shared.t.clamp_min(self.student.schedule.t_min)
        v = self.student.velocity(interpolate(shared.x, shared.z, t), t, shared.cond)
        return velocity_loss(v, shared.x, shared.z).mean()

    def measured(self) -> dict[str, float]:
        """What is told at the end of a training: the straightness S, on which one-step quality rests."""
        return {"straightness": stage_straightness(self.student)}

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), Euler(steps=20))


@dataclass(frozen=True)
class Doubled:
    """What one turn of distillation shares: a pair, fresh noise, where the target's steps meet, conditions."""

    x: Tensor
    z: Tensor
    fresh: Tensor
    r: Tensor
    cond: Cond | None


class FlowGuidedDistillation(Method):
    """Distil a small flow into one step, on pairs of that flow and on two-step targets that it guides.

    Args:
        student: a denoiser on the flow schedule, usually a copy of the guide; its network takes the gradients.
        teacher: the guide: the small 2-rectified flow, with its averaged weights. The pairs must be its own.
        two_step: weight of L_2step, 1 in the code; 0 leaves it out.
        split: least and largest r; (0.2, 0.8) in the code.
        first: whose velocity takes the target's first step: "student" (the code) or "guide" (the paper's formula).
        distance: D, a name in `scoreline.fewstep.distances.DISTANCES`; lpips-vgg in the paper.
        size: LPIPS only: pixels to which images are resized, 64 in the paper; None leaves them.
        online: Euler steps of the guide for the pairs of each batch; 0 takes stored pairs.
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
        teacher: Denoiser,
        *,
        two_step: float = 1.0,
        split: tuple[float, float] = (0.2, 0.8),
        first: str = "student",
        distance: str = "squared",
        size: int | None = None,
        online: int = 0,
        lr: Lr = 2e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        check_flow(student, teacher, online)
        if teacher.num_classes != student.num_classes:
            mend = f"the guide knows {teacher.num_classes} classes; the student must take the same"
            raise InputError("student", f"{student.num_classes} classes", mend)
        if not two_step >= 0:
            raise InputError("two_step", two_step, "is the weight of a loss, 0 or more")
        if len(split) != 2 or not 0 < split[0] <= split[1] < 1:
            raise InputError("split", tuple(split), "needs the least and the largest r, within (0, 1)")
        if first not in ("student", "guide"):
            raise unknown_name("first", first, ("student", "guide"))
        self.student, self.two_step, self.split, self.first = student, two_step, tuple(split), first
        self.online, self.apart = online, named_distance(distance, size=size)
        self.guide = as_flow(teacher).requires_grad_(False).eval()
        network = network_of(student)
        self.updates = [Update(network, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> Denoiser:
        """A flow of a network, or of a copy of the teacher's, from t = 1 - eps on: see :func:`flow_student`."""
        return starting_from(flow_student(teacher, net), 1 - EPS)

    def frozen(self) -> tuple[nn.Module, ...]:
        return (self.guide,)

    def averaged(self) -> nn.Module:
        return network_of(self.student)

    def prepare(self, batch: Any, step: int) -> Doubled:
        cond = conditions(self.student, batch)
        x, z = coupling(self.guide if self.online else None, self.online, batch, pairs=True)
        fresh = batch.draws.reshaped(z.shape[1:]).normal(step=0, part=3).to(z) if self.two_step else z
        r = split_times(batch.draws.uniform(step=0, part=1), low=self.split[0], high=self.split[1])
        return Doubled(x, z, fresh, r, cond)

    def loss(self, batch: Any, shared: Doubled, step: int) -> dict[str, Tensor]:
        s = shared
        if not self.two_step:
            end = s.z - self.student.velocity(s.z, self.student.schedule.t_max, s.cond)
            return {"loss": self.apart(end, s.x).mean()}
        distil, two = guided_losses(
            self.student, self.guide, s.x, s.z, s.fresh, s.r, s.cond, apart=self.apart, first=self.first
        )
        return {"loss": distil + self.two_step * two, "distil": distil.detach(), "two_step": two.detach()}

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), Euler(steps=1))
