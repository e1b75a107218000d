"""Models that are told a guidance strength: a teacher guided by each image's own, and a student that takes it as input.

    eps_w = eps(c) + w (eps(c) - eps(null)),  w = 0 is unguided (Latent Consistency's convention; s = 1 + w elsewhere)
    f(x, t, c, w) = c_skip x + c_out x0(x, t, c, w),   f(x, 0) = x

Reference: Luo et al. 2023 (Latent Consistency Models); Meng et al. 2023 (guided distillation), for w as an input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError
from scoreline.core.schedule import Schedule, Time, spread
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.fewstep.curricula import solver_levels
from scoreline.fewstep.flows import conditions
from scoreline.fewstep.maps import LatentConsistency
from scoreline.fewstep.teachers import innermost, rebuilt
from scoreline.nn.text import TextConditioned, tokens_of

__all__ = ["POINTS", "SKIP", "USUAL", "GuidedConsistency", "WeightGuided", "sub_steps", "told", "weight_taking"]

SKIP, POINTS = 24, 42
USUAL = 7.5
"""Strength of images where none is given."""


def sub_steps(schedule: Schedule, *, h: int = 3, skip: int = SKIP, points: int = POINTS) -> NDArray[np.float64]:
    """Times of the teacher's h steps from each level n of training to its m, (N, h+1), n ascending, rows descending.

    On a table of T: n = skip, 2 skip, ..., and T-1; m = n - skip. Elsewhere n are levels of the schedule's own grid and
    m the next cleaner one, t_min below the last. The h steps are equally long in time, rounded to entries of a table.

    Args:
        schedule: of teacher and student.
        h: steps of the teacher.
        skip: entries of a table from n to m.
        points: levels on a schedule without a table.

    Raises:
        InputError: h is no positive number or has no room in a skip, or the table is shorter than a skip.

    >>> from scoreline.diffusion.schedules import Discrete
    >>> sub_steps(Discrete())[[0, -1]].tolist()
    [[24.0, 16.0, 8.0, 0.0], [999.0, 991.0, 983.0, 975.0]]
    """
    if h < 1:
        raise InputError("h", h, "the teacher takes 1 or more steps")
    if schedule.known is None:
        n = solver_levels(schedule, points)
        return np.linspace(n, np.append(schedule.t_min, n[:-1]), h + 1, axis=1)
    top = len(schedule.known) - 1
    if not h <= skip <= top:
        raise InputError("skip", skip, f"is {h}, the number of steps, to {top} on this table")
    n = np.append(np.arange(skip, top, skip), top).astype(np.float64)
    return np.rint(np.linspace(n, n - skip, h + 1, axis=1))


def told(model: Denoiser, batch: Any) -> Cond | None:
    """What a model is told of a batch: labels where it has classes, captions where it takes text, else None.

    Raises:
        InputError: the batch lacks labels or captions that the model needs.
    """
    cond, tokens = conditions(model, batch), tokens_of(model, batch)
    return cond if tokens is None else (cond or Cond()).replace(tokens=tokens)


def weight_taking(teacher: Preconditioned) -> nn.Module:
    """A copy of a teacher's network that is told w besides, and answers with the image's channels only.

    The new input's layer starts at 0, so that the copy answers as before for every w. A network that cannot be rebuilt
    with one, or has no conditions, is copied as it is.
    """
    outer: Any = teacher.net
    net: Any = outer.net if isinstance(outer, TextConditioned) else outer
    changes: dict[str, Any] = {"out_channels": teacher.shape[0]} if teacher.learned_variance else {}
    conditional = teacher.num_classes is not None or isinstance(outer, TextConditioned)
    if conditional and "weight_input" in getattr(net, "_arguments", {}):
        changes["weight_input"] = True
    made, _ = rebuilt(net, changes)
    return outer.over(made) if isinstance(outer, TextConditioned) else made


class WeightGuided(View):
    """A model guided by `cond.weight`, each image by its own w: eps_w = eps(c) + w (eps(c) - eps(null)).

    Each call costs two evaluations, made as one doubled batch.

    Args:
        inner: a conditional model.

    Raises:
        InputError: it takes no conditions.
    """

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        accepts = getattr(getattr(innermost(inner), "net", None), "accepts", ())
        if inner.num_classes is None and not {"tokens", "vector"} & set(accepts):
            raise InputError("guidance", type(inner).__name__, "the teacher has no conditions; give guidance: null")
        self.evaluations = 2 * inner.evaluations

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        if cond is None or cond.weight is None:
            raise InputError("condition", "weight", "give labels and a strength: Cond(labels=..., weight=...)")
        told = cond.replace(weight=None)
        both: Any = torch.cat([t, t]) if isinstance(t, Tensor) and t.dim() else t
        post = self.inner(torch.cat([x, x]), both, told.cat(self.inner.null(told)))
        conditional, without = post.raw.chunk(2)
        return post.first_half(x, torch.lerp(without, conditional, spread(1 + cond.weight, x)))


@recorded
class GuidedConsistency(LatentConsistency):
    """A consistency function in Latent Consistency's form that is told the guidance strength w: SCott's student.

    `cond.weight` is w, 0 unguided; where none is given it is `guidance`. This and the `interval` of its training, (2,),
    infinite before any, are saved with the weights.

    Args:
        net: network `net(x, t, cond)`; with `weight_input=True` it takes w.
        schedule, kind, sigma_data, time_input, boundary_data, time_scaling: as of
            :class:`scoreline.fewstep.maps.LatentConsistency`.
        skip, points: of :func:`sub_steps`, from whose levels a run's are taken.
    """

    guidance: Tensor
    interval: Tensor

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        *,
        kind: str = "eps",
        sigma_data: float = 0.5,
        time_input: str | None = None,
        boundary_data: float = 0.5,
        time_scaling: float | None = None,
        skip: int = SKIP,
        points: int = POINTS,
    ) -> None:
        super().__init__(
            net, schedule, kind=kind, sigma_data=sigma_data, time_input=time_input, boundary_data=boundary_data,
            time_scaling=time_scaling,
        )  # fmt: skip
        self.skip, self.trained = skip, sub_steps(schedule, h=1, skip=skip, points=points)[::-1, 0].copy()
        self.takes_weight = "weight" in getattr(net, "accepts", ())
        self.register_buffer("guidance", torch.tensor(USUAL))
        self.register_buffer("interval", torch.tensor([0.0, torch.inf]))

    def with_net(self, net: nn.Module) -> GuidedConsistency:
        """The same student over another network."""
        made = GuidedConsistency(net, **{k: v for k, v in self._arguments.items() if k != "net"})  # type: ignore
        made.guidance.copy_(self.guidance)
        made.interval.copy_(self.interval)
        return made.train(self.training)

    def levels(self, steps: int) -> Any:
        """Entry floor(i N/steps) of the N levels of training, the noisiest first.

        Raises:
            InputError: more steps than there are levels.
        """
        count = len(self.trained)
        if not 1 <= steps <= count:
            raise InputError("steps", steps, f"the student knows {count} levels; take 1 to {count}")
        return self.trained[np.arange(steps) * count // steps]

    def answer(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """f(x, t, c, w), (B, *shape): the jump to the end, in which gradients flow."""
        cond = self._given if cond is None else cond
        if self.takes_weight and (cond is None or cond.weight is None):
            cond = (cond or Cond()).replace(weight=self.guidance.expand(len(x)))
        elif not self.takes_weight and cond is not None:
            cond = cond.replace(weight=None)
        return super().answer(x, t, cond)
