"""The arithmetic of halving: two steps of a deterministic sampler as one, down to the image or up to the noise.

Down, from t by m to s, with rho_ab = sigma_b/sigma_a, x1 = x(z_t, t), x2 = x(z_m, m) of the teacher:
    z_m = rho_tm z_t + (alpha_m - rho_tm alpha_t) x1,   z_s = rho_ms z_m + (alpha_s - rho_ms alpha_m) x2      (DDIM)
    x~ = (z_s - rho_ts z_t)/(alpha_s - rho_ts alpha_t)          so that one step t -> s ends at z_s
       = w x1 + (1 - w) x2,  w = rho_ms (alpha_m - rho_tm alpha_t)/(alpha_s - rho_ts alpha_t)
    loss  omega(t) |x(z_t, t) - x~|^2, mean over the entries
    omega truncated SNR max(alpha^2/sigma^2, 1);  SNR + 1 = |v - v~|^2;  SNR = |eps - eps~|^2;  1
The second form has no cancellation and needs no case of its own at s = 0, where x~ = x2.
Up, from s by m to t, alpha and sigma change places, and eps takes that of x (of x nothing would be left to see, where
sigma_t/sigma_s is thousands):
    z_m = r_sm z_s + (sigma_m - r_sm sigma_s) e1,   z_t = r_mt z_m + (sigma_t - r_mt sigma_m) e2,
    r_ab = alpha_b/alpha_a,
    e~ = (z_t - r_st z_s)/(sigma_t - r_st sigma_s) = w e1 + (1 - w) e2
    loss  omega(s)/SNR |eps(z_s, s) - e~|^2, which is omega(s) |x - x~|^2 again

Reference: Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2, section 4 and appendix G, and its code; Meng et al. 2023
(arXiv 2210.03142), for steps of double length and for the way up.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import unknown_name
from scoreline.core.schedule import Schedule, Time, spread
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import VP, Cosine, Flow
from scoreline.samplers.steps import eta_step

__all__ = [
    "GRID",
    "LOW",
    "WEIGHTS",
    "double_times",
    "encoding_times",
    "halving_loss",
    "halving_target",
    "halving_times",
]
__all__ += ["halving_weights", "implied_mean", "on_cosine", "on_students", "rising_loss", "rising_target"]
__all__ += ["rising_times", "rising_weights", "same_schedule", "snr_weight"]

GRID = "time-to-clean"
WEIGHTS = ("snr-trunc", "snr+1", "snr", "one")
LOW = 2 / np.pi * float(np.arctan(np.exp(-10.0)))  # where log(alpha^2/sigma^2) = 20 on alpha = cos(pi t/2)


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


def double_times(index: Tensor, n: int, t_max: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(t, m, s) of the sampler with steps of double length: t = t_max (i + 1)/N, s = t - 2 t_max/N, or t - t_max/N at
    the last level i = 0, m halfway, (B,) float64 each.

    Args:
        index: i, 0 ... N-1, (B,).
        n: N, steps of the student.
        t_max: the noisiest level.

    Reference: Meng et al. 2023, the variant of algorithm 2 for the stochastic sampler.

    >>> [t.tolist() for t in double_times(torch.tensor([0, 1, 3]), 4)]
    [[0.25, 0.5, 1.0], [0.125, 0.25, 0.75], [0.0, 0.0, 0.5]]
    """
    i = index.double()
    t, s = (i + 1) / n * t_max, (i - 1).clamp_min(0) / n * t_max
    return t, (t + s) / 2, s


def rising_times(index: Tensor, n: int, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """(s, m, t) of the steps up, t_max (i, i + 1/2, i + 1)/N, (B,) float64 each; the first starts at t_min.

    Args:
        index: i, 0 ... N-1, (B,).
        n: N, steps of the student.
        schedule: of the student.
    """
    i = index.double()
    s = torch.where(i > 0, i / n * schedule.t_max, schedule.t_min)
    return s, (s + (i + 1) / n * schedule.t_max) / 2, (i + 1) / n * schedule.t_max


def encoding_times(schedule: Schedule, n: int) -> np.ndarray:
    """t_min, t_max/N, ..., t_max: the levels of N steps up, (N+1,) float64.

    >>> encoding_times(Cosine(t_min=0.01, t_max=1.0), 2).tolist()
    [0.01, 0.5, 1.0]
    """
    return np.append(schedule.t_min, np.arange(1, n + 1) / n * schedule.t_max)


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


def rising_weights(schedule: Schedule, s: Time, m: Time, t: Time) -> tuple[Time, Time]:
    """(w, 1 - w) of the target e~ = w e1 + (1 - w) e2 on the way up, float64; both lie in [0, 1].

    Args:
        schedule: gives alpha and sigma.
        s, m, t: start, middle and end of the two steps, floats or (B,).
    """
    (a_s, d_s), (a_m, d_m), (a_t, d_t) = ((schedule.alpha(v), schedule.sigma(v)) for v in (s, m, t))
    first = a_t / a_m * (d_m - d_s * a_m / a_s)
    second = d_t - d_m * a_t / a_m
    return first / (first + second), second / (first + second)


@torch.no_grad()
def rising_target(
    teacher: Denoiser, z: Tensor, s: Tensor, m: Tensor, t: Tensor, cond: Cond | None = None
) -> tuple[Tensor, Tensor]:
    """(e~, z_t): the noise that one DDIM step up must take to end where two of the teacher's do, and that end.

    Args:
        teacher: a denoiser.
        z: z_s, (B, *shape).
        s, m, t: start, middle and end of the two steps up, (B,) float64.
        cond: conditions of the batch.
    """
    schedule = teacher.schedule

    def levels(v: Tensor) -> tuple[Tensor, Tensor]:
        return spread(schedule.alpha(v), z), spread(schedule.sigma(v), z)

    first = teacher(z, s, cond)
    # alpha x + sigma eps: the form in x_t and x would take the difference of two large numbers near the clean end.
    middle = first.combine(0.0, *levels(m))
    second = teacher(middle, m, cond)
    w, rest = rising_weights(schedule, s, m, t)
    return spread(w, z) * first.eps + spread(rest, z) * second.eps, second.combine(0.0, *levels(t))


def rising_loss(
    student: Denoiser, z: Tensor, s: Tensor, target: Tensor, cond: Cond | None = None, *, weight: str = "snr-trunc"
) -> Tensor:
    """omega(s)/SNR(s) times the mean over the entries of |eps(z_s, s) - e~|^2, (B,); it is omega(s) |x - x~|^2.

    Args:
        student: a denoiser.
        z: z_s, (B, *shape).
        s: (B,) float64.
        target: e~, (B, *shape).
        cond: conditions of the batch.
        weight: omega, one of `WEIGHTS`.
    """
    snr = (student.schedule.alpha(s) / student.schedule.sigma(s)) ** 2
    each = (student(z, s, cond).eps - target).square().flatten(1).mean(1)
    return each * (snr_weight(snr, weight) / snr).to(each)


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


def same_schedule(a: Schedule, b: Schedule) -> bool:
    """Whether two schedules are of one class with the same settings."""
    return type(a) is type(b) and vars(a).keys() == vars(b).keys() and all(vars(a)[k] == vars(b)[k] for k in vars(a))


def on_students(teacher: Denoiser, schedule: Schedule) -> Denoiser:
    """A teacher on its student's schedule: the same network again where it can be, else by equal lambda.

    Args:
        teacher: any denoiser.
        schedule: of the student.
    """
    if same_schedule(teacher.schedule, schedule):
        return teacher
    near = on_cosine(teacher)
    return near if same_schedule(near.schedule, schedule) else teacher.on(schedule, extrapolate=True)
