"""Students that jump anywhere: how one is made of a teacher, at which times it is trained and sampled, and which of its
images a classifier keeps.

Reference: Kim, Lai et al. 2024 (Consistency Trajectory Models), sections 3 and 5.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoreline.core.artefact import build, describe
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.schedule import Schedule
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.curricula import ascending_levels
from scoreline.fewstep.maps import Trajectory
from scoreline.fewstep.teachers import innermost, rebuilt

__all__ = ["keep_likely", "training_grid", "trajectory_student", "two_step"]


def training_grid(schedule: Schedule, points: int = 18, *, rho: float = 7.0) -> NDArray[np.float64]:
    """The N times of training, descending: levels even in sigma^(1/rho), index 0 the noisiest, (N,).

    Args:
        schedule: from its least to its largest level; on a table, the nearest of its levels.
        points: N, 18 on CIFAR-10 and 40 on ImageNet.
        rho: spacing.

    >>> training_grid(EDM(), 18)[[0, 1, 17]].round(4).tolist()
    [80.0, 57.586, 0.002]
    """
    ends = np.array([schedule.t_min, schedule.t_max])
    with np.errstate(divide="ignore"):
        low, high = schedule.sigma(ends) / schedule.alpha(ends)
    if not np.isfinite(high):
        raise InputError("schedule", type(schedule).__name__, "its noisiest level keeps no signal; end a little below")
    levels = ascending_levels(points, sigma_min=float(low), sigma_max=float(high), rho=rho)[::-1]
    times = np.array(schedule.snap(schedule.time(-np.log(levels))))
    times[0], times[-1] = schedule.t_max, schedule.t_min
    if (np.diff(times) >= 0).any():
        raise InputError("points", points, "two levels fall on one that the model knows; use fewer")
    return times


def two_step(points: int, first: int, second: int, schedule: Schedule | None = None) -> tuple[float, list[float]]:
    """(gamma, times) with which `jumps` goes t_max -> grid[first], noise back up to grid[second], -> the end.

    gamma solves grid[first] = end + sqrt(1 - gamma^2) (grid[second] - end).

    Args:
        points: N of the grid.
        first: where the first jump ends; 36 of 40 in the paper's runs on ImageNet.
        second: up to which level noise is put back, second <= first; 20 there.
        schedule: None takes EDM's.

    >>> gamma, times = two_step(40, 36, 20)
    >>> round(gamma, 6), [round(t, 4) for t in times]
    (0.999992, [80.0, 2.2404, 0.0])
    """
    schedule = EDM() if schedule is None else schedule
    if not 0 < second <= first < points:
        raise InputError("first, second", (first, second), f"need 0 < second <= first < {points}")
    grid = training_grid(schedule, points)
    root = (grid[first] - grid[-1]) / (grid[second] - grid[-1]) if grid[second] > grid[-1] else 1.0
    return float(np.sqrt(1 - root**2)), [float(grid[0]), float(grid[second]), schedule.clean]


def keep_likely(logits: Tensor, labels: Tensor, rate: float) -> Tensor:
    """Classifier rejection: of each class, the images that a classifier gives most to it; row numbers, ascending.

    Of n images of a class the ceil((1 - rate) n) with the largest log p(class | image) stay. An image that is kept
    cost 1/(1 - rate) of the evaluations of one that is drawn.

    Args:
        logits: the classifier's, (B, K).
        labels: the class that each image was made for, (B,) int64 in 0 ... K-1.
        rate: share that is thrown away, in [0, 1).

    Raises:
        InputError: the rate is out of range, or the counts differ.

    >>> keep_likely(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]), 0.5).tolist()
    [1, 2]
    """
    if not 0 <= rate < 1:
        raise InputError("rate", rate, "must lie in [0, 1)")
    if labels.shape != logits.shape[:1]:
        raise InputError("labels", tuple(labels.shape), f"need one for each of the {len(logits)} images")
    best = logits.double().log_softmax(1).gather(1, labels[:, None])[:, 0].argsort(descending=True, stable=True)
    order = best[labels[best].argsort(stable=True)]  # class by class, the likeliest first
    counts = torch.bincount(labels, minlength=logits.shape[1])
    place = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels[order]]
    # Rounded first: (1 - 0.9) 10 is a little more than 1.
    kept = ((1 - rate) * counts.double()).round(decimals=9).ceil()
    return order[place < kept[labels[order]]].sort().values


def trajectory_student(teacher: Denoiser | None, net: nn.Module | None = None) -> Trajectory:
    """A trajectory function: of a copy of the teacher's network with its weights, or of a network of one's own.

    A copy keeps kind and schedule of the teacher, so that its g(x, t, t) starts near the teacher's answer; the layers
    of the second time are new. A schedule that ends in pure noise is taken up to sigma/alpha = 80. A network of one's
    own is of kind "edm" on EDM's schedule, 0.002 to 80 as far as the teacher knows it.

    Args:
        teacher: any denoiser, or None with a network.
        net: takes two times, or can be rebuilt so; a Trajectory stays as it is.

    Raises:
        InputError: neither is given, the teacher has no network or is one of latents, or the network cannot take a
            second time.
    """
    if isinstance(net, Trajectory):
        return net
    view = teacher
    while view is not None and not isinstance(view, Latent):
        view = getattr(view, "inner", None)
    if view is not None:
        mend = "makes images from latents, which no flow map does here; take a teacher of images"
        raise InputError("teacher", type(view).__name__, mend)
    inner = None if teacher is None else innermost(teacher)
    if net is not None:
        schedule = EDM() if teacher is None else _known_range(teacher.schedule)
        sigma_data = inner.sigma_data if isinstance(inner, Preconditioned) and inner.kind == "edm" else 0.5
        return Trajectory(_of_two_times(net), schedule, sigma_data=sigma_data)
    if inner is None:
        raise InputError("student", None, "needs a network, or a teacher whose network is copied")
    if not isinstance(inner, Preconditioned):
        mend = "has no network to copy; give the student a network of its own"
        raise InputError("teacher", type(inner).__name__, mend)
    return Trajectory(
        _of_two_times(inner.net),
        _with_signal(inner.schedule),
        kind=inner.kind,
        sigma_data=inner.sigma_data,
        time_input=inner.time_input,
        learned_variance=inner.learned_variance,
    )


def _of_two_times(net: nn.Module) -> nn.Module:
    made = rebuilt(net, {} if getattr(net, "second_time", False) else {"second_time": True})[0]
    return made.requires_grad_(True)


def _with_signal(schedule: Schedule) -> Schedule:
    """The schedule up to sigma/alpha = 80 where its noisiest level keeps no signal: no path begins there."""
    if schedule.alpha(schedule.t_max) > 0:
        return schedule
    if schedule.known is not None:
        mend = "its noisiest level keeps no signal; give the student a network of its own, on EDM's levels"
        raise InputError("teacher's schedule", type(schedule).__name__, mend)
    description = describe(schedule)
    description["args"] = {**description["args"], "t_max": float(schedule.time(-np.log(80.0)))}
    made: Schedule = build(description)
    return made


def _known_range(schedule: Schedule) -> EDM:
    """EDM's levels from 0.002 to 80, as far as a model of another schedule was trained on them."""
    ends = np.array([schedule.t_min, schedule.t_max])
    with np.errstate(divide="ignore"):
        low, high = schedule.sigma(ends) / schedule.alpha(ends)
    return EDM(t_min=max(0.002, float(low)), t_max=min(80.0, float(high)))
