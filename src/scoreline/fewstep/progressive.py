"""Progressive distillation: a student whose DDIM step does what two of its teacher's do, again and again.

On t_i = t_max i/N, i = 0 ... N, t_0 clean; one student step goes from t = t_{i+1} to s = t_i, the teacher's two meet at
m = (t + s)/2. The target x~ is the image with which one step t -> s ends where the two end:
    loss  omega(t) |x(z_t, t) - x~|^2                       see :mod:`scoreline.fewstep.halving` for x~ and omega
    direction "up"       the same from s to t, for the noise e~: a student that encodes images
    stochastic           steps of double length from each level, for :class:`scoreline.samplers.double_step.DoubleStep`
A student that is told a guidance strength is trained with one drawn anew for every image, w ~ U[low, high], and its
teacher is asked with the same w: for both it is a condition like a label.

The next halving takes this student as teacher: a recipe has a stage for each. An eps network is no good for the last
ones, since x = (z - sigma eps)/alpha at the noisiest level multiplies its errors by 1/alpha; x0, v and EDM's form are.

Reference: Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2, section 4 and appendix G, and its code; Meng et al. 2023
(arXiv 2210.03142), sections 3.2 and 3.3, for strengths, the way up and double steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.method import Method, Update
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import VP, Cosine, Flow
from scoreline.fewstep.flows import conditions, network_of
from scoreline.fewstep.guidance_students import DistilledGuidance, Noising, check_interval, drawn_weights, interval_of
from scoreline.fewstep.halving import (
    GRID,
    LOW,
    double_times,
    halving_loss,
    halving_target,
    halving_times,
    on_cosine,
    on_students,
    rising_loss,
    rising_target,
    rising_times,
    snr_weight,
)
from scoreline.fewstep.teachers import check_alike
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.double_step import DoubleStep
from scoreline.samplers.generator import Sampled

__all__ = ["DIRECTIONS", "Progressive"]

DIRECTIONS = ("down", "up")


@dataclass(frozen=True)
class Halved:
    """What one turn shares: the state, its level, the target (of x, or on the way up of eps) and the conditions."""

    z: Tensor
    t: Tensor
    target: Tensor
    cond: Cond | None


class Progressive(Method):
    """One halving: the student learns in N steps what the teacher does in 2N.

    Args:
        student: a denoiser, usually a copy of the teacher; its network takes the gradients.
        teacher: any denoiser; in the next halving this student, with its averaged weights.
        n: N, steps of the student.
        weight: omega, one of :data:`scoreline.fewstep.halving.WEIGHTS`.
        guidance: (low, high) of the strengths w that are drawn; None takes those that the student was trained with. Of
            a student that is told none it must be None.
        direction: "down" makes images, "up" noise of images.
        stochastic: train steps of double length, for the stochastic sampler; a good teacher knows steps of half their
            length, 1/N: the deterministic student of N steps.
        lr: learning rate, or a function of the step; the paper lets it fall linearly to 0 in every halving.
        optimizer, settings, clip: see :class:`scoreline.core.method.Update`.

    Raises:
        InputError: a setting is out of range, teacher and student do not fit, or the student's schedule has no even
            times that end at the clean image.
    """

    sampler = f"ddim:grid={GRID}"
    made_for: tuple[int, ...] | None = None

    def __init__(
        self,
        student: Denoiser,
        teacher: Denoiser,
        *,
        n: int = 4,
        weight: str = "snr-trunc",
        guidance: Sequence[float] | None = None,
        direction: str = "down",
        stochastic: bool = False,
        lr: float | Callable[[int], float] = 5e-5,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(n, int) or n < 1:
            raise InputError("n", n, "counts the student's steps, 1 or more")
        snr_weight(1.0, weight)
        if direction not in DIRECTIONS:
            raise unknown_name("direction", direction, DIRECTIONS)
        if stochastic and direction == "up":
            raise InputError("stochastic", stochastic, "noise is put back on the way down only")
        if not isinstance(student.schedule, (Cosine, VP, Flow)):
            mend = f"has the schedule {type(student.schedule).__name__}; put it on another with student_of"
            raise InputError("student", type(student).__name__, mend)
        check_alike(student, teacher)
        if teacher.num_classes != student.num_classes:
            mend = f"the teacher knows {teacher.num_classes} classes; the student must take the same"
            raise InputError("student", f"{student.num_classes} classes", mend)
        self.range = _strengths(guidance, student, teacher)
        self.student, self.n, self.weight, self.made_for = student, n, weight, (n,)
        self.direction, self.stochastic = direction, stochastic
        if stochastic:
            self.sampler = f"double-step:grid={GRID}"
        self.teacher = on_students(teacher, student.schedule).requires_grad_(False).eval()
        network = network_of(student)
        self.updates = [Update(network, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> Denoiser:
        """A copy of the teacher, or a network of v, on a schedule whose steps can be halved (`on_cosine`).

        A network that takes a guidance strength has the interval and the default of its teacher.

        Raises:
            InputError: neither is given, or the teacher has no network.
        """
        if isinstance(net, Denoiser):
            teacher, net = net, None
        if net is not None:
            # The paper's schedule; its code tells the network atan(sigma/alpha) 2/pi, which is t here.
            made: Denoiser = Preconditioned(net, Cosine(s=0.0, t_min=LOW, t_max=1 - LOW), kind="v", time_input="t")
            if "weight" in getattr(net, "accepts", ()):
                made = DistilledGuidance(made)
                made.load_strengths(teacher)
        elif teacher is None:
            raise InputError("student", None, "needs a network, or a teacher that is copied")
        else:
            made = on_cosine(copy.deepcopy(teacher)).given(None)
        made.requires_grad_(False)
        network_of(made).requires_grad_(True)
        return made

    def frozen(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    def averaged(self) -> nn.Module:
        return network_of(self.student)

    def prepare(self, batch: Any, step: int) -> Halved:
        cond, x, schedule = conditions(self.student, batch), batch.image, self.student.schedule
        if self.range is not None:
            cond = (cond or Cond()).replace(weight=drawn_weights(batch.draws, self.range))
        index, noise = batch.draws.integers(self.n, part=1), batch.draws.reshaped(x.shape[1:]).normal().to(x)
        if self.direction == "up":
            s, m, t = rising_times(index, self.n, schedule)
            z = schedule.marginal(x, s, noise)
            return Halved(z, s, rising_target(self.teacher, z, s, m, t, cond)[0], cond)
        t, m, s = (double_times if self.stochastic else halving_times)(index, self.n, schedule.t_max)
        z = schedule.marginal(x, t, noise)
        return Halved(z, t, halving_target(self.teacher, z, t, m, s, cond)[0], cond)

    def loss(self, batch: Any, shared: Halved, step: int) -> Tensor:
        loss = rising_loss if self.direction == "up" else halving_loss
        return loss(self.student, shared.z, shared.t, shared.target, shared.cond, weight=self.weight).mean()

    def result(self) -> Any:
        """The student with its sampler; one that encodes is left alone, as it makes no images."""
        if self.direction == "up":
            return self.student.eval() if isinstance(self.student, Noising) else Noising(self.student.eval())
        return Sampled(self.student.eval(), (DoubleStep if self.stochastic else DDIM)(steps=self.n, grid=GRID))


def _strengths(guidance: Sequence[float] | None, student: Denoiser, teacher: Denoiser) -> tuple[float, float] | None:
    """The interval of strengths to draw from; refused where student or teacher is told none."""
    own = interval_of(student)
    if own is None and interval_of(teacher) is None:
        if guidance is not None:
            mend = "the student is told no strength; begin with scoreline distill guided-distillation, or leave it out"
            raise InputError("guidance", list(guidance), mend)
        return None
    if own is None or interval_of(teacher) is None:
        mend = "student and teacher are both told a guidance strength, or neither; student: {from: ...} takes the same"
        raise InputError("student", type(student).__name__, mend)
    if guidance is None:
        return own
    low, high = check_interval(guidance)
    if not own[0] <= low <= high <= own[1]:
        raise InputError(
            "guidance", [low, high], f"the student was trained with strengths from {own[0]:g} to {own[1]:g}"
        )
    return low, high
