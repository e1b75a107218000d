"""MSD: one teacher distilled into K students, each for a share of the conditions; one of them runs for a request.

    V_1, ..., V_K   a partition of the conditions: disjoint, of equal size, neighbours together
    k(y)            the router, a fixed look-up: classes by a table, texts by the quadrant of their embedding
                    (:mod:`scoreline.fewstep.class_shares`, :mod:`scoreline.fewstep.text_shares`)
    G_k = Distill(teacher, F(D, V_k)),   x = G_{k(y)}(sigma_start z, y)
F keeps the labels that are drawn and the real images of the share. Pairs of noise and image are not filtered: every
student regresses on all of them. Students share no weights; each is trained as if it were alone, by any method that
makes students, so that K at a batch of B/K cost in all what one costs at B. A student of another architecture is first
fitted to the teacher's answers (:mod:`scoreline.fewstep.teacher_matching`). Samples of all students are scored as one
set, never each share on its own.

Reference: Song, Lorraine, Nie, Kreis & Lucas 2025 (Multi-student Diffusion Distillation, arXiv 2410.23274).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.core.artefact import describe, recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.flow_map import FlowMap
from scoreline.core.schedule import Time, spread
from scoreline.fewstep.class_shares import ClassRouter
from scoreline.fewstep.text_shares import QuadrantRouter

__all__ = ["Routed", "dm_gradient"]


@recorded
class Routed(FlowMap):
    """K students as one model: each image is sent to the student of its condition.

    Args:
        students: K of the same images, classes, schedule and form; flow maps, or denoisers.
        router: whose share a condition is in.

    Raises:
        InputError: their number, images, classes or schedules differ.
    """

    def __init__(self, students: Sequence[Denoiser], router: ClassRouter | QuadrantRouter) -> None:
        super().__init__()
        if len(students) != router.students:
            raise InputError("students", len(students), f"the conditions are shared out among {router.students}")
        first = students[0]
        for k, other in enumerate(students):
            for thing in ("shape", "num_classes", "evaluations"):
                a, b = getattr(first, thing), getattr(other, thing)
                if a != b:
                    raise InputError(f"student {k}", b, f"student 0 has {thing} {a}; all need the same")
            if type(other) is not type(first) or describe(other.schedule) != describe(first.schedule):
                raise InputError(f"student {k}", type(other).__name__, "has another form or schedule than student 0")
        if len(students) > 1 and isinstance(router, ClassRouter) and first.num_classes != router.num_classes:
            mend = f"the partition is one of {router.num_classes} classes"
            raise InputError("students", f"{first.num_classes} classes", mend)
        self.students, self.router = nn.ModuleList(students), router
        self.schedule, self.shape, self.num_classes = first.schedule, tuple(first.shape), first.num_classes
        self.evaluations = first.evaluations
        self.scored, self.end = True, first.schedule.clean
        if isinstance(first, FlowMap):
            self.scored, self.anywhere, self.end = first.scored, first.anywhere, first.end

    def levels(self, steps: int) -> Any:
        found = [np.asarray(student.levels(steps)) for student in self._maps()]
        for k, levels in enumerate(found):
            if not np.array_equal(levels, found[0]):
                mend = f"student 0 starts its steps at {found[0].tolist()}; train all with the same settings"
                raise InputError(f"student {k}", levels.tolist(), mend)
        return found[0]

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        maps, out = self._maps(), torch.empty_like(x)

        def ask(k: int, rows: Tensor, given: Cond | None) -> Tensor:
            return maps[k].jump(x[rows], _at(t, rows), _at(s, rows), given)

        for rows, part in self._sent(len(x), cond, ask):
            out[rows] = part
        return out

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        if not self.scored:
            return super().posterior(x, t, cond)

        def ask(k: int, rows: Tensor, given: Cond | None) -> Posterior:
            found: Posterior = self.students[k](x[rows], _at(t, rows), given)
            return found

        parts = self._sent(len(x), cond, ask)
        raw = torch.empty_like(x)
        for rows, part in parts:
            raw[rows] = part.raw
        mean, eps = (
            tuple(_gathered([(rows, getattr(part, name)[i]) for rows, part in parts], x) for i in (0, 1))
            for name in ("_mean", "_eps")
        )
        return Posterior(x, raw, mean=mean, eps=eps, sigma=spread(self.schedule.sigma(t), x))

    def check(self, times: Time) -> None:
        for student in self._each():
            student.check(times)

    def decode(self, x: Tensor) -> Tensor:
        return self._each()[0].decode(x)

    def null(self, cond: Cond) -> Cond:
        if len(self.students) == 1:
            return self._each()[0].null(cond)
        raise InputError("null condition", type(self).__name__, "no student has it; each knows its own share")

    def _each(self) -> list[Denoiser]:
        return list(self.students)  # type: ignore[arg-type]

    def _maps(self) -> list[FlowMap]:
        maps = [student for student in self._each() if isinstance(student, FlowMap)]
        if len(maps) < len(self.students):
            raise InputError("model", type(self.students[0]).__name__, "does not jump; sample these students by heun")
        return maps

    def _sent(
        self, count: int, cond: Cond | None, ask: Callable[[int, Tensor, Cond | None], Any]
    ) -> list[tuple[Tensor, Any]]:
        """(places, answer) of the students whose share is asked for; the others are left alone."""
        cond = self._given if cond is None else cond
        if len(self.students) == 1:  # whatever it is asked, there is nobody else
            return [(torch.arange(count), ask(0, torch.arange(count), cond))]
        number = self.router(cond)
        out = []
        for k in number.unique().tolist():
            rows = (number == k).nonzero()[:, 0]
            out.append((rows, ask(k, rows, None if cond is None else cond[rows])))
        return out


def dm_gradient(x: Tensor, x_t: Tensor, real: Tensor, fake: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """w_t alpha_t (s_fake - s_real), (B, ...): distribution matching as the paper writes it, by scores.

    s = -(x_t - alpha mu)/sigma^2,   w_t = sigma^2/alpha C S/|mu_teacher - x|_1;   it is alpha times the direction of
    :func:`scoreline.fewstep.matching.matching_direction`, which is the form that trains.

    Args:
        x: the student's images, clean, (B, *shape).
        x_t: x noised.
        real, fake: mu of teacher and critic at x_t.
        alpha, sigma: (B,) of the levels.

    Reference: Yin et al. 2024 (DMD), eqs. 7 and 8.
    """
    a, s = spread(alpha, x), spread(sigma, x)
    s_real, s_fake = -(x_t - a * real) / s**2, -(x_t - a * fake) / s**2
    norm = spread((real - x).abs().flatten(1).sum(1), x)
    w = s**2 / a * x[0].numel() / norm
    return w * a * (s_fake - s_real)


def _at(t: Time, rows: Tensor) -> Time:
    return t[rows] if isinstance(t, Tensor) and t.dim() else t


def _gathered(parts: Sequence[tuple[Tensor, Any]], x: Tensor) -> Any:
    """A coefficient of all images from those of the students; a number where it is the same for all."""
    values = [value for _, value in parts]
    if not any(isinstance(value, Tensor) for value in values) and len(set(values)) == 1:
        return values[0]
    whole = x.new_empty(len(x), *[1] * (x.dim() - 1))
    for rows, value in parts:
        whole[rows] = value.to(x) if isinstance(value, Tensor) else value
    return whole
