"""Consistency training (CT) and consistency distillation (CD) as first published: the baselines of what came after.

With noise levels s_1 < ... < s_N (EDM's, rho = 7), a gap i drawn uniformly and a target network theta^-:
    CT    d(f_theta(x + s_{i+1} z, s_{i+1}), f_theta^-(x + s_i z, s_i))
          N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1,  mu(k) = exp(s0 ln(mu0)/N(k))      (`curricula`)
    CD    d(f_theta(x_{i+1}, s_{i+1}), f_theta^-(x^_i, s_i)),  x_{i+1} = x + s_{i+1} z,
          x^_i: one Heun step of the teacher's ODE from x_{i+1} to s_i
    theta^- <- mu theta^- + (1 - mu) theta after every update
Every pair weighs 1. d is LPIPS in the paper's best runs, on images large enough for it, or the squared distance.

Reference: Song, Dhariwal, Chen & Sutskever 2023 (Consistency Models), arXiv 2303.01469, algorithms 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.flow_map import FlowMap
from scoreline.core.method import Method, Update
from scoreline.core.sampler import Sampler
from scoreline.core.schedule import spread
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.consistency import as_target, consistency_student
from scoreline.fewstep.curricula import ascending_levels, growing_points, target_rate
from scoreline.fewstep.distances import Distance, lpips_size, squared
from scoreline.fewstep.distances import distance as named_distance
from scoreline.fewstep.flows import conditions
from scoreline.fewstep.maps import ConsistencyFunction
from scoreline.fewstep.teachers import advance, check_alike, copied, ema_update, guided_teacher
from scoreline.samplers.euler import Euler
from scoreline.samplers.generator import Sampled
from scoreline.samplers.heun import Heun
from scoreline.samplers.jumps import Jumps

__all__ = ["CD", "CT", "SOLVERS", "distillation_loss", "on_edm", "training_loss", "uniform_pair"]

SOLVERS: dict[str, type[Sampler]] = {"heun": Heun, "euler": Euler}


def uniform_pair(u: Tensor, points: int) -> Tensor:
    """Index i of each image's gap (s_i, s_{i+1}), (B,) int64 from 0 to N-2, all equally likely.

    Args:
        u: (B,) uniform on [0, 1), float64.
        points: N, the number of levels.

    >>> uniform_pair(torch.tensor([0.0, 0.49, 0.5, 0.99]), 3).tolist()
    [0, 0, 1, 1]
    """
    return (u * (points - 1)).long().clamp_(max=points - 2)


def training_loss(
    student: FlowMap,
    target: FlowMap,
    x0: Tensor,
    noise: Tensor,
    low: Tensor,
    high: Tensor,
    cond: Cond | None = None,
    *,
    apart: Distance = squared,
) -> Tensor:
    """CT: mean over the batch of d(f_theta(x0 + high z, high), f_theta^-(x0 + low z, low)), a scalar.

    Args:
        student: f_theta; it jumps to its end.
        target: f_theta^-, which takes no gradient.
        x0: clean images, (B, *shape).
        noise: z, (B, *shape), shared by both levels.
        low, high: s_i < s_{i+1} of each image, (B,) float64.
        cond: conditions of the batch.
        apart: d, one number an image.

    Reference: algorithm 3.
    """
    noisy, cleaner = x0 + spread(high, x0) * noise, x0 + spread(low, x0) * noise
    return _between(student, target, noisy, cleaner, low, high, cond, apart)


def distillation_loss(
    student: FlowMap,
    target: FlowMap,
    teacher: Denoiser,
    x0: Tensor,
    noise: Tensor,
    low: Tensor,
    high: Tensor,
    cond: Cond | None = None,
    *,
    solver: Sampler | None = None,
    teacher_cond: Cond | None = None,
    apart: Distance = squared,
) -> Tensor:
    """CD: mean over the batch of d(f_theta(x_high, high), f_theta^-(x^, low)), x^ one step of the teacher, a scalar.

    Args:
        student, target, x0, noise, low, high, cond, apart: as of :func:`training_loss`.
        teacher: the denoiser whose ODE is followed, on EDM's schedule, see :func:`on_edm`.
        solver: its one step; None takes Heun's.
        teacher_cond: conditions of the teacher.

    Reference: algorithm 2.
    """
    noisy = x0 + spread(high, x0) * noise
    cleaner = advance(Heun() if solver is None else solver, teacher, noisy, torch.stack([high, low]), teacher_cond)
    return _between(student, target, noisy, cleaner, low, high, cond, apart)


def _between(
    student: FlowMap,
    target: FlowMap,
    noisy: Tensor,
    cleaner: Tensor,
    low: Tensor,
    high: Tensor,
    cond: Cond | None,
    apart: Distance,
) -> Tensor:
    with as_target(target):
        b = target.jump(cleaner, low, target.end, cond).detach()
    return apart(student.jump(noisy, high, student.end, cond), b).mean()


def on_edm(teacher: Denoiser, schedule: EDM) -> Denoiser:
    """The teacher in EDM's coordinates, x = x_t/alpha and sigma/alpha, whatever it was trained in; levels that it never
    saw (the least ones, for many tables) are asked all the same."""
    return teacher if isinstance(teacher.schedule, EDM) else teacher.on(schedule, extrapolate=True)


@dataclass(frozen=True)
class Noised:
    """What one turn of training shares."""

    noise: Tensor
    low: Tensor
    high: Tensor
    cond: Cond | None
    teacher_cond: Cond | None = None


class CT(Method):
    """Consistency training as first published: no teacher, a target network, a growing number of levels.

    Args:
        student: the model; its network takes the gradients.
        steps: K, all updates of the training.
        s0, s1: number of gaps between levels at the start and at the end.
        mu0: decay of the target network at the start (0.9 on CIFAR-10).
        rho: spacing of the levels.
        distance: d, a name in `scoreline.fewstep.distances.DISTANCES`.
        lr: learning rate, or a function of the step.
        optimizer, settings, clip: see :class:`scoreline.core.method.Update`.

    Raises:
        InputError: a setting is out of range.
    """

    sampler = "jumps"
    made_for: tuple[int, ...] | None = None

    def __init__(
        self,
        student: ConsistencyFunction,
        *,
        steps: int,
        s0: int = 2,
        s1: int = 150,
        mu0: float = 0.95,
        rho: float = 7.0,
        distance: str = "squared",
        lr: float | Callable[[int], float] = 4e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.RAdam,
        settings: dict[str, Any] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise InputError("steps", steps, "the curriculum needs the number of updates, 1 or more")
        if not 2 <= s0 <= s1:
            raise InputError("s0, s1", (s0, s1), "need 2 <= s0 <= s1")
        if not 0 < mu0 < 1:
            raise InputError("mu0", mu0, "must lie between 0 and 1")
        self.student, self.steps, self.s0, self.s1, self.mu0, self.rho = student, steps, s0, s1, mu0, rho
        self.apart = named_distance(distance, size=lpips_size(student.shape))
        self.target = copied(student)
        self._levels: dict[int, Tensor] = {}
        self.updates = [Update(student.net, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> ConsistencyFunction:
        """A consistency function of a network, or of a copy of the teacher's; one that is given stays as it is.

        Raises:
            InputError: neither is given, or the teacher has no network.
        """
        return consistency_student(teacher, net)

    def averaged(self) -> nn.Module:
        return self.student.net

    def points(self, step: int) -> int:
        """N(k), the number of noise levels of an update."""
        return growing_points(step, self.steps, s0=self.s0, s1=self.s1)

    def prepare(self, batch: Any, step: int) -> Noised:
        levels = _grid(self._levels, self.student, self.points(step), self.rho, batch.image.device)
        i = uniform_pair(batch.draws.uniform(step=0, part=1), len(levels))
        return Noised(batch.draws.normal(), levels[i], levels[i + 1], conditions(self.student, batch))

    def loss(self, batch: Any, shared: Noised, step: int) -> Tensor:
        s = shared
        return training_loss(self.student, self.target, batch.image, s.noise, s.low, s.high, s.cond, apart=self.apart)

    def after_update(self, step: int) -> None:
        ema_update(self.target, self.student, target_rate(self.points(step), s0=self.s0, mu0=self.mu0))

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), Jumps(steps=1))


class CD(Method):
    """Consistency distillation: neighbouring points of the teacher's ODE must be sent to the same image.

    Args:
        student: the model; its network takes the gradients.
        teacher: any denoiser, on any schedule.
        steps: all updates of the training; the method itself does not ask.
        points: N, the number of noise levels (18 on CIFAR-10, 40 on ImageNet 64x64).
        target_ema: mu, decay of the target network (0 on CIFAR-10, 0.95 on ImageNet 64x64).
        rho: spacing of the levels.
        solver: the teacher's one step, a name in `SOLVERS`.
        guidance: strength s of the teacher's classifier-free guidance; None leaves it out.
        distance: d, a name in `scoreline.fewstep.distances.DISTANCES`.
        lr: learning rate, or a function of the step.
        optimizer, settings, clip: see :class:`scoreline.core.method.Update`.

    Raises:
        InputError: a setting is out of range, or teacher and student make images of different shapes.
    """

    sampler = "jumps"
    made_for: tuple[int, ...] | None = None

    def __init__(
        self,
        student: ConsistencyFunction,
        teacher: Denoiser,
        *,
        steps: int,
        points: int = 18,
        target_ema: float = 0.0,
        rho: float = 7.0,
        solver: str = "heun",
        guidance: float | None = None,
        distance: str = "squared",
        lr: float | Callable[[int], float] = 4e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.RAdam,
        settings: dict[str, Any] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise InputError("steps", steps, "a training has 1 or more")
        if points < 2:
            raise InputError("points", points, "a grid of levels has 2 or more")
        if not 0 <= target_ema < 1:
            raise InputError("target_ema", target_ema, "must lie in [0, 1)")
        if solver not in SOLVERS:
            raise unknown_name("solver", solver, SOLVERS)
        check_alike(student, teacher)
        schedule = student.schedule
        assert isinstance(schedule, EDM)
        self.student, self.rho, self.target_ema = student, rho, target_ema
        self.teacher = on_edm(guided_teacher(teacher, guidance), schedule)
        self.points, self.solver = points, SOLVERS[solver]()
        self.apart = named_distance(distance, size=lpips_size(student.shape))
        self.target = copied(student) if target_ema else None
        self._levels: dict[int, Tensor] = {}
        self.updates = [Update(student.net, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> ConsistencyFunction:
        """A consistency function of a network, or of a copy of the teacher's; one that is given stays as it is.

        Raises:
            InputError: neither is given, the teacher has no network, or shapes or classes differ.
        """
        return consistency_student(teacher, net)

    def frozen(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    def averaged(self) -> nn.Module:
        return self.student.net

    def prepare(self, batch: Any, step: int) -> Noised:
        levels = _grid(self._levels, self.student, self.points, self.rho, batch.image.device)
        i = uniform_pair(batch.draws.uniform(step=0, part=1), self.points)
        cond, told = conditions(self.student, batch), conditions(self.teacher, batch)
        return Noised(batch.draws.normal(), levels[i], levels[i + 1], cond, told)

    def loss(self, batch: Any, shared: Noised, step: int) -> Tensor:
        s = shared
        return distillation_loss(
            self.student,
            self.student if self.target is None else self.target,
            self.teacher,
            batch.image,
            s.noise,
            s.low,
            s.high,
            s.cond,
            solver=self.solver,
            teacher_cond=s.teacher_cond,
            apart=self.apart,
        )

    def after_update(self, step: int) -> None:
        if self.target is not None:
            ema_update(self.target, self.student, self.target_ema)

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), Jumps(steps=1))


def _grid(
    known: dict[int, Tensor], student: ConsistencyFunction, points: int, rho: float, device: torch.device
) -> Tensor:
    """The ascending levels of N points on the device, made once for each N."""
    if points not in known or known[points].device != device:
        schedule = student.schedule
        levels = ascending_levels(points, sigma_min=schedule.t_min, sigma_max=schedule.t_max, rho=rho)
        known[points] = torch.from_numpy(levels).to(device)
    return known[points]
