"""Progressive distillation: a student whose DDIM step does what two of its teacher's do, again and again.

On t_i = t_max i/N, i = 0 ... N, t_0 clean; one student step goes from t = t_{i+1} to s = t_i, the teacher's two meet at
m = (t + s)/2. With rho_ab = sigma_b/sigma_a, x1 = x(z_t, t), x2 = x(z_m, m) of the teacher:
    z_m = rho_tm z_t + (alpha_m - rho_tm alpha_t) x1,   z_s = rho_ms z_m + (alpha_s - rho_ms alpha_m) x2      (DDIM)
    target     x~ = (z_s - rho_ts z_t)/(alpha_s - rho_ts alpha_t)          so that one step t -> s ends at z_s
                  = w x1 + (1 - w) x2,  w = rho_ms (alpha_m - rho_tm alpha_t)/(alpha_s - rho_ts alpha_t)
    loss       omega(t) |x(z_t, t) - x~|^2, mean over the entries
    omega      truncated SNR max(alpha^2/sigma^2, 1);  SNR + 1 = |v - v~|^2;  SNR = |eps - eps~|^2;  1
The second form of the target has no cancellation and needs no case of its own at s = 0, where x~ = x2. It is written
for any denoiser with any conditions: a guidance strength among them is a condition like a label.

The next halving takes this student as teacher: a recipe has a stage for each. An eps network is no good for the last
ones, since x = (z - sigma eps)/alpha at the noisiest level multiplies its errors by 1/alpha; x0, v and EDM's form are.

Reference: Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2, section 4 and appendix G, and its code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.method import Method, Update
from scoreline.core.schedule import Schedule, Time, spread
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import VP, Cosine, Flow
from scoreline.fewstep.flows import conditions, network_of
from scoreline.fewstep.teachers import check_alike
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.generator import Sampled
from scoreline.samplers.steps import eta_step

__all__ = ["WEIGHTS", "Progressive", "halving_loss", "halving_target", "halving_times", "halving_weights"]
__all__ += ["implied_mean", "on_cosine", "snr_weight"]

GRID = "time-to-clean"
WEIGHTS = ("snr-trunc", "snr+1", "snr", "one")
_LOW = 2 / np.pi * float(np.arctan(np.exp(-10.0)))  # where log(alpha^2/sigma^2) = 20 on alpha = cos(pi t/2)


def snr_weight(snr: Time, name: str = "snr-trunc") -> Time:
    """omega of the loss in x: max(SNR, 1), SNR + 1, SNR or 1.

    Args:
        snr: alpha^2/sigma^2, float, array or tensor.
        name: one of `WEIGHTS`.

    Raises:
        InputError: the name is unknown.

    Reference: Salimans & Ho 2022, section 4.

    >>> snr_weight(0.25), snr_weight(4.0), snr_weight(4.0, "snr+1")
    (1.0, 4.0, 5.0)
    """
    if name not in WEIGHTS:
        raise unknown_name("weight", name, WEIGHTS)
    if name == "snr-trunc":
        return (
            snr.clamp_min(1.0) if isinstance(snr, Tensor) else np.maximum(snr, 1.0) if np.ndim(snr) else max(snr, 1.0)
        )
    return snr + 1.0 if name == "snr+1" else snr if name == "snr" else snr * 0 + 1.0


def halving_times(index: Tensor, n: int, t_max: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(t, m, s) = t_max ((i + 1)/N, (i + 1/2)/N, i/N), (B,) float64 each.

    Args:
        index: i, 0 ... N-1, (B,).
        n: N, steps of the student.
        t_max: the noisiest level.

    >>> [float(t) for t in halving_times(torch.tensor(1), 4)]
    [0.5, 0.375, 0.25]
    """
    i = index.double()
    return (i + 1) / n * t_max, (i + 0.5) / n * t_max, i / n * t_max


def implied_mean(schedule: Schedule, z_t: Tensor, z_s: Tensor, t: Time, s: Time) -> Tensor:
    """x~ = (z_s - rho z_t)/(alpha_s - rho alpha_t), rho = sigma_s/sigma_t: what a DDIM step from z_t to z_s took for
    the image, (B, ...).

    Args:
        schedule: gives alpha and sigma.
        z_t, z_s: states, (B, ...).
        t, s: their levels, floats or (B,), t noisy.
    """
    rho, b, _ = eta_step(schedule, t, s, 0.0)
    return (z_s - spread(rho, z_t) * z_t) / spread(b, z_t)


def halving_weights(schedule: Schedule, t: Time, m: Time, s: Time) -> tuple[Time, Time]:
    """(w, 1 - w) of the target x~ = w x1 + (1 - w) x2, float64; both lie in [0, 1].

    Args:
        schedule: gives alpha and sigma.
        t, m, s: start, middle and end of the two steps, floats or (B,).
    """
    _, b1, _ = eta_step(schedule, t, m, 0.0)
    rho, b2, _ = eta_step(schedule, m, s, 0.0)
    return rho * b1 / (rho * b1 + b2), b2 / (rho * b1 + b2)


@torch.no_grad()
def halving_target(
    teacher: Denoiser, z: Tensor, t: Tensor, m: Tensor, s: Tensor, cond: Cond | None = None
) -> tuple[Tensor, Tensor]:
    """(x~, z_s): the image that one DDIM step must take to end where two of the teacher's do, and that end.

    Args:
        teacher: a denoiser; labels, guidance strengths and whatever else it knows are in `cond`.
        z: z_t, (B, *shape).
        t, m, s: start, middle and end of the two steps, (B,) float64.
        cond: conditions of the batch.
    """
    a1, b1, _ = eta_step(teacher.schedule, t, m, 0.0)
    a2, b2, _ = eta_step(teacher.schedule, m, s, 0.0)
    first = teacher(z, t, cond)
    middle = first.combine(spread(a1, z), spread(b1, z))
    second = teacher(middle, m, cond)
    w, rest = halving_weights(teacher.schedule, t, m, s)
    return spread(w, z) * first.mean + spread(rest, z) * second.mean, second.combine(spread(a2, z), spread(b2, z))


def halving_loss(
    student: Denoiser, z: Tensor, t: Tensor, target: Tensor, cond: Cond | None = None, *, weight: str = "snr-trunc"
) -> Tensor:
    """omega(t) times the mean over the entries of |x(z_t, t) - x~|^2, (B,).

    Args:
        student: a denoiser.
        z: z_t, (B, *shape).
        t: (B,) float64.
        target: x~, (B, *shape).
        cond: conditions of the batch.
        weight: omega, one of `WEIGHTS`.
    """
    omega = snr_weight((student.schedule.alpha(t) / student.schedule.sigma(t)) ** 2, weight)
    each = (student(z, t, cond).mean - target).square().flatten(1).mean(1)
    return each * omega.to(each)


def on_cosine(model: Denoiser) -> Denoiser:
    """A model on a schedule whose steps can be halved: its own if that is cosine, VP or flow, else alpha = cos(pi t/2)
    between the noise levels that it was trained on.

    Args:
        model: any denoiser.
    """
    if isinstance(model.schedule, (Cosine, VP, Flow)):
        return model
    ends = model.schedule.lam(np.array([model.schedule.t_min, model.schedule.t_max]))
    low, high = np.asarray(Cosine(s=0.0).time(ends)).tolist()
    cosine = Cosine(s=0.0, t_min=low, t_max=high)
    if type(model) is Preconditioned and model.kind == "edm" and model.time_input == "ln-sigma/4":
        # EDM's form is told sigma/alpha alone: on another schedule it is the same network again.
        plain = Preconditioned(model.net, cosine, kind="edm", sigma_data=model.sigma_data)
        return plain.given(model._given) if model._plan is None else model.on(cosine, extrapolate=True)
    return model.on(cosine, extrapolate=True)


@dataclass(frozen=True)
class Halved:
    """What one turn shares: z_t, t, the target and the conditions."""

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
        weight: omega, one of `WEIGHTS`.
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
        lr: float | Callable[[int], float] = 5e-5,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(n, int) or n < 1:
            raise InputError("n", n, "counts the student's steps, 1 or more")
        snr_weight(1.0, weight)
        if not isinstance(student.schedule, (Cosine, VP, Flow)):
            mend = f"has the schedule {type(student.schedule).__name__}; put it on another with student_of"
            raise InputError("student", type(student).__name__, mend)
        check_alike(student, teacher)
        if teacher.num_classes != student.num_classes:
            mend = f"the teacher knows {teacher.num_classes} classes; the student must take the same"
            raise InputError("student", f"{student.num_classes} classes", mend)
        self.student, self.n, self.weight, self.made_for = student, n, weight, (n,)
        seen = teacher if _same(teacher.schedule, student.schedule) else _moved(teacher, student.schedule)
        self.teacher = seen.requires_grad_(False).eval()
        network = network_of(student)
        self.updates = [Update(network, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> Denoiser:
        """A copy of the teacher, or a network of v, on a schedule whose steps can be halved; see :func:`on_cosine`.

        Raises:
            InputError: neither is given, or the teacher has no network.
        """
        if isinstance(net, Denoiser):
            teacher, net = net, None
        if net is not None:
            # The paper's schedule; its code tells the network atan(sigma/alpha) 2/pi, which is t here.
            made: Denoiser = Preconditioned(net, Cosine(s=0.0, t_min=_LOW, t_max=1 - _LOW), kind="v", time_input="t")
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
        t, m, s = halving_times(batch.draws.integers(self.n, part=1), self.n, schedule.t_max)
        z = schedule.marginal(x, t, batch.draws.reshaped(x.shape[1:]).normal().to(x))
        return Halved(z, t, halving_target(self.teacher, z, t, m, s, cond)[0], cond)

    def loss(self, batch: Any, shared: Halved, step: int) -> Tensor:
        return halving_loss(self.student, shared.z, shared.t, shared.target, shared.cond, weight=self.weight).mean()

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), DDIM(steps=self.n, grid=GRID))


def _same(a: Schedule, b: Schedule) -> bool:
    return type(a) is type(b) and vars(a).keys() == vars(b).keys() and all(vars(a)[k] == vars(b)[k] for k in vars(a))


def _moved(teacher: Denoiser, schedule: Schedule) -> Denoiser:
    """The teacher on the student's schedule: the same network again where it can be, else by equal lambda."""
    near = on_cosine(teacher)
    return near if _same(near.schedule, schedule) else teacher.on(schedule, extrapolate=True)
