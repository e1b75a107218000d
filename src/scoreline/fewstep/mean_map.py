"""A denoising network as a generator: its answer for the image, E[x_0|x_t] at the start, is what it makes.

    G(x, t) = x_0 of the network,   x_start = sigma_start z;   next level: alpha x_0 + sigma eps with fresh noise
It is the form of students that learn from distributions of images rather than from paths: at the start it is the
teacher's posterior mean, later whatever the training made of it.

Reference: Yin et al. 2024 (DMD, DMD2); Luo et al. 2023, 2024 (Diff-Instruct, SIM); Zhou et al. 2024 (SiD).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.flow_map import FlowMap
from scoreline.core.names import lookup
from scoreline.core.schedule import Schedule, Time
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.fewstep.teachers import innermost, rebuilt

__all__ = ["LEVELS", "MeanMap", "level_table", "mean_map", "step_indices"]

LEVELS = 1000
"""Entries of the table of levels where a schedule has none of its own."""


def level_table(schedule: Schedule, count: int = LEVELS) -> NDArray[np.float64]:
    """The levels of distribution matching, ascending: a schedule's own table, else `count` points of its usual grid.

    On EDM's schedule sigma_i = (0.002^(1/7) + i/999 (80^(1/7) - 0.002^(1/7)))^7.

    Args:
        schedule: of teacher and critic.
        count: entries where the schedule has no table.

    >>> from scoreline.diffusion.schedules import EDM
    >>> level_table(EDM())[[0, -1]].tolist()
    [0.002, 80.0]
    """
    if schedule.known is not None:
        return np.asarray(schedule.known, dtype=np.float64)
    return np.ascontiguousarray(np.asarray(lookup("grid", schedule.grid)(schedule, count), dtype=np.float64)[::-1])


def step_indices(steps: int, *, top: int = LEVELS - 1) -> list[int]:
    """Entries of the table at which a run of so many steps stops, the noisiest first: top - floor(i (top + 1)/N).

    Args:
        steps: N, 1 to top + 1.
        top: entry of the first step.

    Raises:
        InputError: more steps than entries, or none.

    Reference: Yin et al. 2024 (DMD2), section 4.5.

    >>> step_indices(1), step_indices(2), step_indices(4)
    ([999], [999, 499], [999, 749, 499, 249])
    """
    if not 1 <= steps <= top + 1:
        raise InputError("steps", steps, f"must be 1 to {top + 1}, the levels up to the first")
    return [top - i * (top + 1) // steps for i in range(steps)]


@recorded
class MeanMap(Preconditioned, FlowMap):
    """A network whose answer for the image is the image: it jumps from where it starts to the clean end.

    Args:
        net: network `net(x, t, cond)`.
        schedule, kind, sigma_data, time_input: what the network was as a denoiser, see
            :class:`scoreline.diffusion.preconditioned.Preconditioned`.

    Attributes:
        start: () the noisiest level, t_max unless a method sets another; saved with the weights.
        scaled: () whether runs start from sigma_start z on variance-preserving schedules too; saved with the weights.
    """

    start: Tensor
    scaled: Tensor

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        *,
        kind: str = "edm",
        sigma_data: float = 0.5,
        time_input: str | None = None,
    ) -> None:
        super().__init__(net, schedule, kind=kind, sigma_data=sigma_data, time_input=time_input)
        self.end = schedule.clean
        self.register_buffer("start", torch.tensor(schedule.t_max))
        self.register_buffer("scaled", torch.tensor(False))

    def begin(self, start: float, *, scaled: bool = False) -> None:
        """Start at another level from now on.

        Args:
            start: in the schedule's time.
            scaled: start from sigma_start z where the schedule preserves the variance too, not from z.

        Raises:
            InputError: the model does not know it.
        """
        level = float(np.asarray(self.schedule.snap(start)))
        if not self.schedule.t_min <= start <= self.schedule.t_max:
            mend = f"the schedule has levels from {self.schedule.t_min} to {self.schedule.t_max}"
            raise InputError("start", start, mend)
        self.start.fill_(level)
        self.scaled.fill_(scaled)

    def levels(self, steps: int) -> NDArray[np.float64]:
        table, start = level_table(self.schedule), float(self.start)
        top = int(np.abs(table - start).argmin())
        chosen = table[step_indices(steps, top=top)]
        if not math.isclose(start, chosen[0], rel_tol=1e-6):  # the buffer may have rounded an entry of the table
            chosen[0] = start
        return chosen

    def prior(self, t: float) -> float:
        """Standard deviation of the noise with which a run starts: sigma, but 1 where the schedule preserves the
        variance and nothing is scaled, whatever the level that the network is told."""
        total = float(self.schedule.alpha(t)) ** 2 + float(self.schedule.sigma(t)) ** 2
        return 1.0 if abs(total - 1) < 1e-6 and not self.scaled else float(self.schedule.prior(t))

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        if not isinstance(s, Tensor) and s > self.end:
            raise InputError("s", s, "this model jumps to the clean end only; put noise back with schedule.renoise")
        return self.answer(x, t, cond)

    def answer(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """G(x, t), (B, *shape): the image, in which gradients flow."""
        return Preconditioned.posterior(self, x, t, self._given if cond is None else cond).mean

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        return FlowMap.posterior(self, x, t, cond)


def mean_map(teacher: Denoiser | None, net: Any = None) -> MeanMap:
    """A generator over a network of its own, or over a copy of the teacher's, which then makes E[x_0|x_start].

    A copy has no dropout: the critic is to see the images that will be sampled.

    Args:
        teacher: gives schedule and kind; None where `net` is a whole denoiser.
        net: a network of the teacher's kind, a denoiser, or a MeanMap, which stays as it is.

    Raises:
        InputError: neither has a network, or shapes or classes differ.
    """
    if isinstance(net, MeanMap):
        return net
    source = net if isinstance(net, Denoiser) else teacher
    inner, net = None if source is None else innermost(source), None if source is net else net
    if inner is None or (net is None and not isinstance(inner, Preconditioned)):
        mend = "has no network to copy; give the student a network, or a denoiser, of its own"
        raise InputError("teacher", None if inner is None else type(inner).__name__, mend)
    if isinstance(inner, Preconditioned):
        kind, sigma_data, time_input = inner.kind, inner.sigma_data, inner.time_input
        if net is None:
            changes: dict[str, Any] = {"out_channels": inner.shape[0]} if inner.learned_variance else {}
            if getattr(inner.net, "_arguments", {}).get("dropout"):
                changes["dropout"] = 0.0
            net, _ = rebuilt(inner.net, changes)
    else:  # an exact model has a schedule and no kind
        kind, sigma_data, time_input = "edm", 0.5, None
    if teacher is not None:
        shape, classes = tuple(net.in_shape), net.num_classes
        if shape != tuple(teacher.shape):
            raise InputError("student", shape, f"the teacher's images are {tuple(teacher.shape)}; give the same shape")
        if classes not in (None, teacher.num_classes):
            mend = f"the teacher knows {teacher.num_classes} classes; a student takes the same ones, or none"
            raise InputError("student", f"{classes} classes", mend)
    return MeanMap(net.requires_grad_(True), inner.schedule, kind=kind, sigma_data=sigma_data, time_input=time_input)
