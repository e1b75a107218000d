"""CTM: a network that jumps from any noise level t to any lower one s, and at s = t is a denoiser.

    G(x, t, s) = (s/t) x + (1 - s/t) g(x, t, s),   g(x, t, t) = E[x_0|x_t]      (`Trajectory` in `fewstep.maps`)
On a grid of N levels, index 0 the noisiest, with one number m of teacher steps for a whole batch, P(m) ~ m:
    i ~ U{0 ... N-1-m},  t = grid[i],  u = grid[i+m],  j ~ U{i+m ... N-1},  s = grid[j]
    x_t = x_0 + t eps,   x_u = m Heun steps of the frozen teacher from x_t
    estimate = G_ema(G_theta(x_t, t, s), s, end),   target = G_ema(G_sg(theta)(x_u, u, s), s, end)
    L = d(estimate, target) + lam_DSM L_DSM + lam_GAN L_GAN
The gradient passes through the outer jump, whose averaged weights stay, into the inner one; the target has none. L_DSM
is denoising at s = t, which the factor 1 - s/t hides from the first term. lam = |dL_CTM/dw|/(|dL_other/dw| + 1e-4) with
w the last layer's weight. u = s is global consistency, u = the next level local, a random u the paper's soft one.

Reference: Kim, Lai et al. 2024 (arXiv 2310.02279).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoreline.core.artefact import describe
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.flow_map import FlowMap
from scoreline.core.method import Method, Update
from scoreline.core.noise import derive
from scoreline.core.schedule import Schedule
from scoreline.diffusion.levels import lognormal
from scoreline.diffusion.preconditioned import edm_weight
from scoreline.fewstep.adversarial import adaptive_weight, discriminator_loss, generator_loss
from scoreline.fewstep.consistency import as_target
from scoreline.fewstep.discriminators import frozen_part, named_discriminator
from scoreline.fewstep.distances import Distance, lpips_size, squared
from scoreline.fewstep.distances import distance as named_distance
from scoreline.fewstep.flows import conditions
from scoreline.fewstep.maps import Trajectory
from scoreline.fewstep.teachers import GridSteps, check_alike, copied, ema_update
from scoreline.fewstep.trajectory import training_grid, trajectory_student
from scoreline.samplers.generator import Sampled
from scoreline.samplers.heun import Heun
from scoreline.samplers.jumps import Jumps
from scoreline.train.freezing import frozen

__all__ = ["BOOTSTRAPS", "CTM", "ctm_loss", "draw_indices", "draw_number_of_steps", "dsm_levels", "dsm_loss"]
__all__ += ["number_of_steps_weights"]

BOOTSTRAPS = ("heun", "jump", "jumps")
# Where the draws of an image lie; 0 is its noise and 2 its label dropped, as in every method.
INDEX_T, INDEX_S, SIGMA, NOISE, FAKE_T, FAKE_S = 3, 4, 5, 6, 7, 8


def number_of_steps_weights(most: int, power: float = 1.0) -> NDArray[np.float64]:
    """P(m) = m^power/sum_k k^power, m = 1 ... M, (M,): how many teacher steps lie between t and u.

    Args:
        most: M, 17 on CIFAR-10 and 39 on ImageNet.
        power: 1 in the paper's runs; 0 is uniform.

    >>> (number_of_steps_weights(17)[[0, 16]] * 153).round(12).tolist()
    [1.0, 17.0]
    """
    if most < 1:
        raise InputError("teacher_steps", most, "needs 1 or more")
    weights = np.arange(1, most + 1, dtype=np.float64) ** power
    return weights / weights.sum()


def draw_number_of_steps(weights: NDArray[np.float64], seed: int) -> int:
    """m from its weights, on the host and once for a batch, so that no device is waited for.

    Args:
        weights: (M,), of :func:`number_of_steps_weights`.
        seed: of the turn; the same in all parts of a batch.
    """
    u = np.random.default_rng(derive(seed, "number of teacher steps")).random()
    return int(np.searchsorted(np.cumsum(weights)[:-1], u, side="right")) + 1


def draw_indices(points: int, steps: int, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(i, j), each (B,) int64: i uniform on 0 ... N-1-m, j uniform on i+m ... N-1.

    Args:
        points: N, levels of the grid.
        steps: m, teacher steps from t = grid[i] to u = grid[i+m].
        u, v: uniform draws, (B,) float64 in [0, 1).

    Raises:
        InputError: so many steps do not fit on the grid.
    """
    if not 1 <= steps < points:
        raise InputError("teacher_steps", steps, f"needs 1 to {points - 1} on a grid of {points} levels")
    i = (u * (points - steps)).long().clamp_(max=points - steps - 1)
    room = points - steps - i
    return i, i + steps + torch.minimum((v * room).long(), room - 1)


def dsm_levels(
    u: Tensor, schedule: Schedule, *, mean: float = -1.2, std: float = 1.2, share: float = 0.7, rho: float = 7.0
) -> Tensor:
    """Times of the denoising loss, (B,) float64: half of them lognormal, half on the noisier part of the grid.

    u < 1/2: ln sigma = mean + std n, n the normal quantile of 2u;   else: the continuous grid at place share (2u - 1),
    sigma = (smax^(1/rho) + place (smin^(1/rho) - smax^(1/rho)))^rho, where place 0 is smax.

    Args:
        u: uniform draws, (B,) float64 in [0, 1).
        schedule: gives the ends; on a table, the nearest of its levels.
        mean, std: of ln sigma.
        share: how much of the grid, from its noisy end, is drawn from.
        rho: spacing of the grid.
    """
    ends = np.array([schedule.t_max, schedule.t_min])
    high, low = (schedule.sigma(ends) / schedule.alpha(ends)) ** (1 / rho)
    place = share * (2 * u - 1)
    spaced = schedule.time(-((high + place * (low - high)).clamp_min(low) ** rho).log())
    drawn = lognormal((2 * u).clamp(max=1.0), schedule, mean=mean, std=std)
    return schedule.snap(torch.where(u < 0.5, drawn, spaced).clamp(schedule.t_min, schedule.t_max))


def dsm_loss(student: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
    """(sigma^2 + sd^2)/(sigma sd)^2 times the mean over pixels of |g(x_t, t, t) - x_0|^2, (B,).

    Args:
        student: a denoiser; its `sigma_data` is sd, 0.5 where it has none.
        x0: clean images, (B, *shape).
        t: (B,) float64.
        noise: (B, *shape).
        cond: conditions of the batch.
    """
    schedule = student.schedule
    mean = student(schedule.marginal(x0, t, noise), t, cond).mean
    weight = edm_weight(schedule.sigma(t) / schedule.alpha(t), getattr(student, "sigma_data", 0.5))
    return weight.to(x0) * squared(mean, x0)


def ctm_loss(
    student: FlowMap,
    outer: FlowMap,
    x_t: Tensor,
    x_u: Tensor,
    t: Tensor,
    u: Tensor,
    s: Tensor,
    cond: Cond | None = None,
    *,
    apart: Distance = squared,
) -> Tensor:
    """d(G_ema(G_theta(x_t, t, s), s, end), G_ema(G_sg(theta)(x_u, u, s), s, end)), (B,).

    Args:
        student: G_theta.
        outer: G_ema, whose parameters take no gradients.
        x_t: noised images, (B, *shape).
        x_u: where the teacher's path from x_t stands at u, (B, *shape).
        t, u, s: times, t > u >= s, (B,) float64.
        cond: conditions of the batch.
        apart: d, two batches to (B,).
    """
    target = _target(student, outer, x_u, u, s, cond)
    return apart(outer.jump(student.jump(x_t, t, s, cond), s, outer.end, cond), target)


def _target(student: FlowMap, outer: FlowMap, x_u: Tensor, u: Tensor, s: Tensor, cond: Cond | None) -> Tensor:
    with as_target(student):
        return outer.jump(student.jump(x_u, u, s, cond), s, outer.end, cond).detach()


@dataclass
class Shared:
    """What the updates of one turn share; the student's update leaves its image for the discriminator's.

    `told` are the conditions of teacher and discriminator: the student's, or no label where it takes none.
    """

    x_t: Tensor
    x_u: Tensor
    t: Tensor
    u: Tensor
    s: Tensor
    cond: Cond | None
    told: Cond | None
    fake: list[Tensor] = field(default_factory=list)


class CTM(Method):
    """Train a consistency trajectory model, from a teacher or by itself.

    Args:
        student: G_theta.
        teacher: any denoiser that knows the student's levels; None trains without one.
        points: N, levels of the grid.
        teacher_steps: M, the most Heun steps from t to u.
        bootstrap: the solver without a teacher, by the averaged student: "heun" on its own E[x_0|x_t] (paper), "jump"
            from t to u at once or "jumps" along the grid (both in the released code).
        distance: d, see :func:`scoreline.fewstep.distances.distance`; LPIPS sees 224 pixels.
        target_rate: decay of the averaged student; 0.9999 on unconditional CIFAR-10 with an adversarial term.
        dsm_weight: lam_DSM; None adapts it, 0 leaves the denoising loss out.
        dsm_start: before this step lam_DSM is 1.
        discriminator: "taps", heads on frozen features of the teacher's network, "features", on those of the digits'
            classifier, or a module `d(x, t, cond)` -> logits (B, K); None leaves the adversarial loss out.
        gan_weight: lam_GAN; None adapts it within [0.01, 10].
        gan_start: step from which the student sees the adversarial loss.
        fake: the image judged: the "estimate", or that of (t, s) drawn on its "own", with m uniform.
        p_uncond: share of labels dropped, for guidance; 0 in the paper.
        lr, optimizer, settings, clip: of the student, see :class:`scoreline.core.method.Update`.
        discriminator_lr: its optimizer is RAdam with betas (0.5, 0.9).

    Raises:
        InputError: a setting is out of range, shapes or classes differ, or the teacher does not know a level.
    """

    sampler = "jumps"
    made_for: tuple[int, ...] | None = None

    def __init__(
        self,
        student: Trajectory,
        teacher: Denoiser | None = None,
        *,
        points: int = 18,
        teacher_steps: int = 17,
        bootstrap: str = "heun",
        distance: str = "lpips-vgg",
        target_rate: float = 0.999,
        dsm_weight: float | None = None,
        dsm_start: int = 0,
        discriminator: nn.Module | str | None = None,
        gan_weight: float | None = None,
        gan_start: int = 0,
        fake: str = "estimate",
        p_uncond: float = 0.0,
        lr: float | Callable[[int], float] = 4e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.RAdam,
        settings: dict[str, Any] | None = None,
        clip: float | None = None,
        discriminator_lr: float | Callable[[int], float] = 2e-3,
    ) -> None:
        super().__init__()
        if bootstrap not in BOOTSTRAPS:
            raise unknown_name("bootstrap", bootstrap, BOOTSTRAPS)
        if fake not in ("estimate", "own"):
            raise unknown_name("fake", fake, ("estimate", "own"))
        for thing, value in (("target_rate", target_rate), ("p_uncond", p_uncond)):
            if not 0 <= value < 1:
                raise InputError(thing, value, "must lie in [0, 1)")
        if not 1 <= teacher_steps < points:
            raise InputError("teacher_steps", teacher_steps, f"needs 1 to {points - 1} on a grid of {points} levels")
        if not isinstance(student, Trajectory):
            raise InputError("student", type(student).__name__, "CTM trains a Trajectory; make one with student_of")
        grid = training_grid(student.schedule, points)
        if teacher is not None:
            check_alike(student, teacher)
            same = describe(teacher.schedule) == describe(student.schedule)
            teacher = teacher if same else teacher.on(student.schedule)
            teacher.check(grid)
        self.student, self.teacher, self.target = student, teacher, copied(student)
        self.points, self.weights, self.bootstrap = points, number_of_steps_weights(teacher_steps), bootstrap
        self.distance = named_distance(distance, size=lpips_size(student.shape))
        self.target_rate, self.p_uncond = target_rate, p_uncond
        self.dsm_weight, self.dsm_start = dsm_weight, dsm_start
        self.gan_weight, self.gan_start, self.fake = gan_weight, gan_start, fake
        self.register_buffer("grid", torch.from_numpy(grid), persistent=False)
        self.grid: Tensor
        self.walk = GridSteps(Heun(), student.schedule, self.grid)
        # In a tuple, so that it is not registered a second time.
        self._last = ([p for p in student.net.parameters() if p.dim() > 1][-1],)
        self.updates = [
            Update(student.net, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip, name="ctm")
        ]
        self.discriminator = named_discriminator(discriminator, teacher, student.schedule, student.shape)
        if self.discriminator is not None:
            critic, rule, betas = self.discriminator, torch.optim.RAdam, {"betas": (0.5, 0.9)}
            self.updates.append(
                Update(critic, self.critic_loss, 1, rule, discriminator_lr, betas, name="discriminator")
            )

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> Trajectory:
        """See :func:`scoreline.fewstep.trajectory.trajectory_student`."""
        return trajectory_student(teacher, net)

    def frozen(self) -> tuple[nn.Module, ...]:
        # The averaged student is no stranger: it is saved, and drops the same units as the student.
        return (*(() if self.teacher is None else (self.teacher,)), *frozen_part(self.discriminator))

    def averaged(self) -> nn.Module:
        return self.student.net

    def prepare(self, batch: Any, step: int) -> Shared:
        draws, x0 = batch.draws.reshaped(batch.image.shape[1:]), batch.image
        steps = draw_number_of_steps(self.weights, draws.seed)
        i, j = draw_indices(self.points, steps, draws.uniform(part=INDEX_T), draws.uniform(part=INDEX_S))
        times = self.grid[i + torch.arange(steps + 1, device=i.device).unsqueeze(1)]
        t, u, s = times[0], times[-1], self.grid[j]
        cond = conditions(self.student, batch, self.p_uncond)
        x_t = self.student.schedule.marginal(x0, t, draws.normal())
        told = cond
        if cond is None and self.teacher is not None and self.teacher.num_classes is not None:
            every = torch.full((len(x0),), self.teacher.num_classes, device=x0.device)
            told = self.teacher.null(Cond(labels=every))
        return Shared(x_t, self._solved(x_t, times, i, told), t, u, s, cond, told)

    @torch.no_grad()
    def _solved(self, x: Tensor, times: Tensor, index: Tensor, cond: Cond | None) -> Tensor:
        """x_u from x_t, along the teacher's path or the averaged student's own."""
        if self.teacher is not None:
            return self.walk(self.teacher, x, index, len(times) - 1, cond)
        with frozen(self.target):  # a solver drops no units
            if self.bootstrap == "heun":
                return self.walk(self.target, x, index, len(times) - 1, cond)
            stops = [times[0], times[-1]] if self.bootstrap == "jump" else [*times]
            for t, s in itertools.pairwise(stops):
                x = self.target.jump(x, t, s, cond)
            return x

    def loss(self, batch: Any, shared: Shared, step: int) -> dict[str, Tensor]:
        p, student, outer = shared, self.student, self.target
        adversarial = self.discriminator is not None and step >= self.gan_start
        goal = _target(student, outer, p.x_u, p.u, p.s, p.cond)
        middle = student.jump(p.x_t, p.t, p.s, p.cond)
        estimate = outer.jump(middle, p.s, outer.end, p.cond)
        ctm = self.distance(estimate, goal).mean()
        # The way back through the outer jump is walked once, whatever gradients are asked for behind it.
        main = _carried(ctm, middle, again=adversarial and self.fake == "estimate")
        loss, seen = main, {"consistency": ctm.detach()}
        if self.dsm_weight != 0:
            draws = batch.draws.reshaped(batch.image.shape[1:])
            t = dsm_levels(draws.uniform(part=SIGMA), student.schedule)
            dsm = dsm_loss(student, batch.image, t, draws.normal(part=NOISE), p.cond).mean()
            weight = self._weight(main, dsm, 1.0 if step < self.dsm_start else self.dsm_weight)
            loss = loss + weight * dsm
            seen |= {"dsm": dsm.detach(), "dsm_weight": weight}
        if self.discriminator is not None:
            if adversarial and self.fake == "own":
                middle, estimate = self._own_fake(batch, p.cond)
            p.fake = [estimate.detach()]
        if adversarial:
            gan = generator_loss(self._judged(estimate, p.told))
            line = _carried(gan, middle)
            weight = self._weight(main, line, self.gan_weight, low=0.01, high=10.0)
            loss = loss + weight * line
            seen |= {"gan": gan.detach(), "gan_weight": weight}
        return {"loss": loss, **seen}

    def _weight(self, main: Tensor, other: Tensor, fixed: float | None, low: float = 0.0, high: float = 1e4) -> Tensor:
        if fixed is not None:
            return torch.full((), fixed, device=main.device)
        return adaptive_weight(main, other, self._last[0], low=low, high=high)

    def _own_fake(self, batch: Any, cond: Cond | None) -> tuple[Tensor, Tensor]:
        draws = batch.draws.reshaped(batch.image.shape[1:])
        even = number_of_steps_weights(len(self.weights), 0.0)
        steps = draw_number_of_steps(even, derive(draws.seed, "fake"))
        i, j = draw_indices(self.points, steps, draws.uniform(part=FAKE_T), draws.uniform(part=FAKE_S))
        t, s = self.grid[i], self.grid[j]
        middle = self.student.jump(self.student.schedule.marginal(batch.image, t, draws.normal()), t, s, cond)
        return middle, self.target.jump(middle, s, self.target.end, cond)

    def _judged(self, x: Tensor, cond: Cond | None) -> Tensor:
        end = torch.full((len(x),), self.student.end, dtype=torch.float64, device=x.device)
        assert self.discriminator is not None
        return self.discriminator(x, end, cond)

    def critic_loss(self, batch: Any, shared: Shared, step: int) -> Tensor:
        """The discriminator's hinge loss: real images against the student's image of this turn."""
        if not shared.fake:
            with as_target(self.student):
                shared.fake = [ctm_estimate(self.student, self.target, shared).detach()]
        return discriminator_loss(self._judged(batch.image, shared.told), self._judged(shared.fake[0], shared.told))

    def after_update(self, step: int) -> None:
        ema_update(self.target, self.student, self.target_rate)

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), Jumps(steps=1))


def ctm_estimate(student: FlowMap, outer: FlowMap, shared: Shared) -> Tensor:
    """G_ema(G_theta(x_t, t, s), s, end) of a turn."""
    p = shared
    return outer.jump(student.jump(p.x_t, p.t, p.s, p.cond), p.s, outer.end, p.cond)


def _carried(loss: Tensor, through: Tensor, *, again: bool = False) -> Tensor:
    """A scalar with the value of `loss` and its gradient, in which what lies after `through` is walked no more."""
    slope = torch.autograd.grad(loss, through, retain_graph=again)[0].detach()
    line = (slope * through).sum()
    return line + (loss - line).detach()
