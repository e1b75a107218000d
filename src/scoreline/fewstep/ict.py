"""Improved consistency training (iCT): a one-step generator from data alone.

Noise levels are EDM's: x_s = x + s z, s from 0.002 to 80. The model is f(x, s) with f(x, 0.002) = x
(:class:`scoreline.fewstep.maps.ConsistencyFunction`). Of update k of K:
    N(k)  = min(10 2^floor(k/K'), 1280) + 1 levels s_1 < ... < s_N, rho = 7      (`curricula.doubling_points`)
    i     ~ p(i), p(i) prop. to erf((ln s_{i+1} - Pm)/(sqrt2 Ps)) - erf((ln s_i - Pm)/(sqrt2 Ps))
    loss  = mean over the batch of d(f(x + s_{i+1} z, s_{i+1}), stopgrad f(x + s_i z, s_i)) / (s_{i+1} - s_i)
    d(a,b) = sqrt(|a - b|^2 + c^2) - c, c = 0.00054 sqrt(entries)                (`distances.pseudo_huber`)
Both sides have the same weights, noise and dropout mask; an average of the weights is kept for sampling only.

Reference: Song & Dhariwal 2024 (Improved Techniques for Training Consistency Models), arXiv 2310.14189.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.flow_map import FlowMap
from scoreline.core.method import Method, Update
from scoreline.core.schedule import Time, spread
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.consistency import as_target, consistency_student
from scoreline.fewstep.curricula import ascending_levels, doubling_points, lognormal_pairs
from scoreline.fewstep.distances import Distance, pseudo_huber
from scoreline.fewstep.distances import distance as named_distance
from scoreline.fewstep.flows import conditions
from scoreline.fewstep.maps import ConsistencyFunction
from scoreline.fewstep.teachers import copied, ema_update
from scoreline.samplers.generator import Sampled
from scoreline.samplers.jumps import Jumps

__all__ = ["ICT", "PointMass", "draw_pair", "ict_loss", "ict_weight", "pair_probabilities", "point_mass"]


def ict_weight(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """lambda(s_i) = 1/(s_{i+1} - s_i) of each gap, (N-1,), float64.

    Args:
        levels: (N,) ascending noise levels.

    Reference: section 3.1.

    >>> ict_weight(np.array([1.0, 1.5, 3.5])).tolist()
    [2.0, 0.5]
    """
    return 1 / np.diff(np.asarray(levels, dtype=np.float64))


def pair_probabilities(levels: NDArray[np.float64], *, mean: float = -1.1, std: float = 2.0) -> NDArray[np.float64]:
    """p(i) of each gap, (N-1,) float64, summing to 1: the discretised lognormal.

    Args:
        levels: (N,) ascending noise levels.
        mean, std: Pm and Ps, of ln s.

    Reference: section 3.5, equation 10.
    """
    weights = lognormal_pairs(levels, mean=mean, std=std)
    return weights / weights.sum()


def draw_pair(u: Tensor, probabilities: Tensor) -> Tensor:
    """Index i of each image's gap (s_i, s_{i+1}), (B,) int64, 0 to N-2: the inverse of the distribution function at u.

    Args:
        u: (B,) uniform on [0, 1), float64.
        probabilities: (N-1,) float64, of each gap.

    >>> draw_pair(torch.tensor([0.0, 0.24, 0.25, 0.99]), torch.tensor([0.25, 0.5, 0.25])).tolist()
    [0, 0, 1, 2]
    """
    reached = probabilities.double().cumsum(0)
    return torch.searchsorted(reached, u.double(), right=True).clamp_(max=len(probabilities) - 1)


def ict_loss(
    student: FlowMap,
    x0: Tensor,
    noise: Tensor,
    low: Tensor,
    high: Tensor,
    cond: Cond | None = None,
    *,
    apart: Distance = pseudo_huber,
    target: FlowMap | None = None,
) -> Tensor:
    """Mean over the batch of d(f(x0 + high z, high), stopgrad f(x0 + low z, low)) / (high - low), a scalar.

    Args:
        student: f; it jumps to its end.
        x0: clean images, (B, *shape).
        noise: z, (B, *shape), shared by both levels.
        low, high: s_i < s_{i+1} of each image, (B,) float64.
        cond: conditions of the batch.
        apart: d, one number an image.
        target: what answers at the lower level; None takes the student's own weights, as the paper does.

    Reference: sections 3.1 to 3.3.
    """
    teacher = student if target is None else target
    with as_target(teacher):
        b = teacher.jump(x0 + spread(low, x0) * noise, low, teacher.end, cond).detach()
    a = student.jump(x0 + spread(high, x0) * noise, high, student.end, cond)
    return (apart(a, b) / (high - low).to(a)).mean()


@dataclass(frozen=True)
class Noised:
    """What one turn of training shares."""

    noise: Tensor
    low: Tensor
    high: Tensor
    cond: Cond | None


class ICT(Method):
    """Train a consistency model without a teacher.

    Args:
        student: the model; its network takes the gradients.
        steps: K, all updates of the training.
        s0, s1: number of gaps between levels at the start, and the most.
        rho: spacing of the levels.
        p_mean, p_std: of the lognormal from which levels are drawn.
        distance: d, a name in `scoreline.fewstep.distances.DISTANCES`.
        c: constant of the pseudo-Huber distance; None takes 0.00054 sqrt(entries of an image).
        target_ema: decay of a separate target network; 0, the paper's point, is the student itself.
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
        s0: int = 10,
        s1: int = 1280,
        rho: float = 7.0,
        p_mean: float = -1.1,
        p_std: float = 2.0,
        distance: str = "pseudo-huber",
        c: float | None = None,
        target_ema: float = 0.0,
        lr: float | Callable[[int], float] = 1e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.RAdam,
        settings: dict[str, Any] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise InputError("steps", steps, "the curriculum needs the number of updates, 1 or more")
        if not 1 <= s0 <= s1:
            raise InputError("s0, s1", (s0, s1), "need 1 <= s0 <= s1")
        if not 0 <= target_ema < 1:
            raise InputError("target_ema", target_ema, "must lie in [0, 1); the paper's is 0")
        self.student, self.steps, self.s0, self.s1, self.rho = student, steps, s0, s1, rho
        self.p_mean, self.p_std, self.target_ema = p_mean, p_std, target_ema
        self.apart = named_distance(distance, c=c)
        self.target = copied(student) if target_ema else None
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}
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
        return doubling_points(step, self.steps, s0=self.s0, s1=self.s1)

    def table(self, points: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(levels (N,), p(i) (N-1,)) of N levels, float64; made once for each N."""
        if points not in self._tables or self._tables[points][0].device != device:
            schedule = self.student.schedule
            levels = ascending_levels(points, sigma_min=schedule.t_min, sigma_max=schedule.t_max, rho=self.rho)
            p = pair_probabilities(levels, mean=self.p_mean, std=self.p_std)
            self._tables[points] = (torch.from_numpy(levels).to(device), torch.from_numpy(p).to(device))
        return self._tables[points]

    def prepare(self, batch: Any, step: int) -> Noised:
        levels, p = self.table(self.points(step), batch.image.device)
        i = draw_pair(batch.draws.uniform(step=0, part=1), p)
        return Noised(batch.draws.normal(), levels[i], levels[i + 1], conditions(self.student, batch))

    def loss(self, batch: Any, shared: Noised, step: int) -> Tensor:
        s = shared
        return ict_loss(
            self.student, batch.image, s.noise, s.low, s.high, s.cond, apart=self.apart, target=self.target
        )  # fmt: skip

    def after_update(self, step: int) -> None:
        if self.target is not None:
            ema_update(self.target, self.student, self.target_ema)

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), Jumps(steps=1))


def point_mass(x: Tensor, sigma: Time, theta: Tensor | float, sigma_min: float = 0.002) -> Tensor:
    """f_theta(x, s) = (s_min/s) x + (1 - s_min/s) theta: the family of Proposition 1.

    For data that are a single point xi the exact consistency function is the member theta = xi.

    Args:
        x: (B, *shape).
        sigma: s, a float or (B,).
        theta: the point that the member answers far from it; broadcasts against x.
        sigma_min: s_min.

    With a target at theta' != theta the limit of many levels is E[(1 - s_min/s)^2 (theta - theta')^2], which does not
    hold xi at all; with theta' = theta the gradient, divided by the gap, tends to that of
    E[(s_min/s^2)(1 - s_min/s)(theta - xi)^2].

    Reference: Proposition 1.
    """
    share = spread(sigma_min / sigma, x)
    return share * x + (1 - share) * theta


class PointMass(FlowMap):
    """The family of Proposition 1 as a model, with theta as its parameter.

    Args:
        theta: where it starts, (*shape).
        schedule: EDM's; None takes its default.
    """

    def __init__(self, theta: Tensor, schedule: EDM | None = None) -> None:
        super().__init__()
        self.schedule = EDM() if schedule is None else schedule
        self.theta = nn.Parameter(theta.clone())
        self.shape, self.end = tuple(theta.shape), self.schedule.t_min

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        return point_mass(x, t, self.theta, self.end)
