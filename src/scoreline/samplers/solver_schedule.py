"""The decision space of the unified sampling framework (USF), Liu et al. 2024 (arXiv 2312.07243), as one typed object.

A solver schedule says for every step of an exponential integrator: which prediction is expanded, from which visited
point, to which Taylor order, how each derivative is estimated and scaled, and whether the step is corrected. It holds
the times as well, and the analytic first step and the skip coefficients of the released code. DDIM, DPM-Solver,
DPM-Solver++, DEIS in lambda, UniPC and iPNDM are points of it: see `scoreline.samplers.known_solvers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import scoreline
from scoreline.core.artefact import FORMAT, describe
from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.core.files import read_json, write_json
from scoreline.core.schedule import Schedule

__all__ = ["SCALINGS", "SolverSchedule", "Step", "one_of", "read_plans", "write_plans"]

KIND = "solver-schedules"

PREDICTIONS = ("noise", "data", "ems")
SCALINGS = ("linear", "unipc-bh1", "unipc-bh2", "dpmsolver-2", "0.5exp", "-0.5exp", "adams", "dpmsolver-3-released")
CORRECTORS = ("pseudo", "implicit")
AFS = ("zero", "average")
MAX_ORDER = 4


@dataclass(frozen=True)
class Step:
    """The decisions of one step. Points are counted backwards: -1 is the newest visited one.

    Args:
        prediction: "noise", "data" or "ems" (DPM-Solver-v3's, with the statistics of the model).
        order: Taylor order q, 1 to 4.
        start: the point from which the step is made; older ones than -1 give singlestep methods.
        points: for each derivative k = 1 .. q-1 the extra points of its estimate, at least k of them.
        scaling: factor on the first derivative, one of `SCALINGS`, or None. "adams" takes Adams-Bashforth weights of
            even steps in place of the phi functions and of the true spacing (PNDM); "dpmsolver-3-released" halves the
            second derivative.
        linear: c of the scaling "linear", 1 + c h.
        corrector: None, "pseudo" (the step is redone with the network's answer at its end, which the next step needs
            anyway) or "implicit" (the network is asked once more, at the corrected point).
        corrector_scaling: scaling inside the corrector.
    """

    prediction: str = "data"
    order: int = 1
    start: int = -1
    points: tuple[tuple[int, ...], ...] = ()
    scaling: str | None = None
    linear: float = 0.0
    corrector: str | None = None
    corrector_scaling: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(tuple(int(p) for p in each) for each in self.points))
        one_of("prediction", self.prediction, PREDICTIONS)
        for thing, scaling in (("scaling", self.scaling), ("corrector_scaling", self.corrector_scaling)):
            if scaling is not None:
                one_of(thing, scaling, SCALINGS)
        if self.corrector is not None:
            one_of("corrector", self.corrector, CORRECTORS)
        if not isinstance(self.order, int) or self.order < 1:
            raise InputError("order", self.order, f"the Taylor order is a whole number from 1 to {MAX_ORDER}")
        if len(self.points) != self.order - 1:
            raise InputError("points", self.points, f"order {self.order} estimates {self.order - 1} derivatives")
        if self.prediction == "ems" and "adams" in (self.scaling, self.corrector_scaling):
            raise InputError("scaling", "adams", "is defined for noise and data predictions")
        if not math.isfinite(self.linear):
            raise InputError("linear", self.linear, "must be finite")
        for k, extra in enumerate(self.points, start=1):
            if len(extra) < k:
                raise InputError("points", extra, f"derivative {k} needs at least {k} extra points")
            if len(set(extra)) < len(extra) or self.start in extra:
                raise InputError("points", extra, f"must be distinct and differ from the start point, {self.start}")

    def corrected(self) -> Step:
        """The step that redoes this one once the network has answered at its end: order q + 1, every point one further
        back, the new one beside them, and one more derivative from the points of the last."""
        moved = tuple((-1, *(p - 1 for p in extra)) for extra in self.points)
        extra = moved[-1] if moved else (-1,)
        return Step(
            self.prediction, self.order + 1, self.start - 1, (*moved, extra), self.corrector_scaling, self.linear
        )


@dataclass(frozen=True)
class SolverSchedule:
    """A whole run: where it stops and how each step is made.

    Args:
        times: (S+1,) strictly decreasing times of the schedule, the end included.
        steps: (S,) decisions.
        afs: analytic first step: None, "zero" (x_0 := 0, so eps := x_T/sigma_T) or "average" (x_0 := mean image of the
            training set); it saves the first network evaluation.
        skips: one factor a skip joint of the network, deepest first, all through the run; None leaves it alone.

    Raises:
        InputError: a decision is infeasible: times that do not decrease, an order above the number of visited points,
            points outside the history, a corrector at the last step.
    """

    times: tuple[float, ...]
    steps: tuple[Step, ...]
    afs: str | None = None
    skips: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(float(t) for t in self.times))
        object.__setattr__(self, "steps", tuple(self.steps))
        if self.skips is not None:
            object.__setattr__(self, "skips", tuple(float(s) for s in self.skips))
        if len(self.times) < 2 or not np.isfinite(self.times).all() or not (np.diff(self.times) < 0).all():
            raise InputError("times", self.times, "must decrease strictly, from the start to the end")
        if len(self.steps) != len(self.times) - 1:
            raise InputError("steps", len(self.steps), f"{len(self.times)} times make {len(self.times) - 1} steps")
        if self.afs is not None:
            one_of("afs", self.afs, AFS)
        if self.skips is not None and not all(math.isfinite(s) for s in self.skips):
            raise InputError("skips", self.skips, "factors must be finite")
        for i, step in enumerate(self.steps):
            where, visited = f"step {i}", i + 1
            if step.order > MAX_ORDER:
                raise InputError(where, step.order, f"the Taylor order is a whole number from 1 to {MAX_ORDER}")
            if step.order > visited:
                raise InputError(where, step.order, f"its order is above the number of visited points, {visited}")
            if not -visited <= step.start <= -1:
                raise InputError(
                    where, step.start, f"its start point must be one of the {visited} visited, -1 the newest"
                )
            if any(not -visited <= p <= -1 for extra in step.points for p in extra):
                raise InputError(where, step.points, f"its points must be among the {visited} visited, -1 the newest")
            if step.corrector is not None and i == len(self.steps) - 1:
                raise InputError(where, step.corrector, "the last step has no corrector: it would cost an evaluation")

    def nfe(self, *, variant: str = "paper") -> int:
        """Network evaluations: one a step, one less with an analytic first step, one more an implicit corrector.

        Args:
            variant: "released" counts as that code runs, where implicit correctors never ask the network again.
        """
        implicit = sum(step.corrector == "implicit" for step in self.steps) if variant == "paper" else 0
        return len(self.steps) - (self.afs is not None) + implicit

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; decisions that stand at their defaults are left out."""
        plain = Step()
        steps = [
            {k: v for k, v in asdict(s).items() if v != getattr(plain, k) or k == "prediction"} for s in self.steps
        ]
        for step in steps:
            if "points" in step:
                step["points"] = [list(extra) for extra in step["points"]]
        out: dict[str, Any] = {"times": list(self.times), "steps": steps}
        if self.afs is not None:
            out["afs"] = self.afs
        if self.skips is not None:
            out["skips"] = list(self.skips)
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SolverSchedule:
        """The schedule that :meth:`to_dict` wrote.

        Raises:
            InputError: an unknown or missing entry, or an infeasible decision.
        """
        values = _entries("solver schedule", values, cls, needed=("times", "steps"))
        steps = [Step(**_entries("step", step, Step)) for step in values.pop("steps")]
        return cls(steps=tuple(steps), **values)


def _entries(thing: str, values: Any, cls: type, needed: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(thing, values, "must be an object with named entries")
    known = [f.name for f in fields(cls)]
    for name in values:
        if name not in known:
            raise unknown_name(f"entry of a {thing}", name, known)
    for name in needed:
        if name not in values:
            raise InputError(thing, None, f"has no {name}")
    return dict(values)


def one_of(thing: str, value: Any, known: Sequence[str]) -> None:
    """Refuse a value that is not among the known ones; the nearest is named."""
    if value not in known:
        raise unknown_name(thing, value, known)


def write_plans(
    path: str | Path, plans: Sequence[Mapping[str, Any]], schedule: Schedule, *, mean: Any = None, **facts: Any
) -> dict[str, Any]:
    """Write solver schedules as plain JSON, atomically, for `usf:plan=FILE`.

    Args:
        path: the file, ending in .json.
        plans: each {"plan": SolverSchedule or its JSON values, ...} with whatever is known of it (score, seeds).
        schedule: noise schedule to which the times belong; the file is refused on another.
        mean: nested list, the mean image of the training set, for plans with afs "average".
        facts: what else a reader should know (model, search, cost).

    Returns:
        What was written.
    """
    if Path(path).suffix != ".json":
        raise InputError("plan file", str(path), "must end in .json")
    entries = []
    for each in plans:
        plan = each["plan"]
        plan = plan if isinstance(plan, SolverSchedule) else SolverSchedule.from_dict(plan)
        entries.append({**each, "nfe": plan.nfe(), "plan": plan.to_dict()})
    if not entries:
        raise InputError("plans", None, "there is none to write")
    values = {
        "format": FORMAT, "kind": KIND, "version": scoreline.__version__, "schedule": describe(schedule),
        "mean": mean, "plans": entries, **facts,
    }  # fmt: skip
    write_json(path, values)
    return values


def read_plans(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The checked content of a file of :func:`write_plans`.

    Raises:
        ArtefactError: no such file, or it holds no solver schedules.
        InputError: a schedule in it is infeasible.
    """
    values = source if isinstance(source, Mapping) else read_json(source)
    name = "plan" if isinstance(source, Mapping) else str(source)
    if not isinstance(values, Mapping) or values.get("format") != FORMAT or values.get("kind") != KIND:
        raise ArtefactError(name, None, "holds no solver schedules; `scoreline search MODEL --space solver` makes them")
    plans = values.get("plans")
    if not isinstance(plans, Sequence) or not plans or not all(isinstance(p, Mapping) and "plan" in p for p in plans):
        raise ArtefactError(name, None, "its list of plans is damaged; make it again")
    for each in plans:
        SolverSchedule.from_dict(each["plan"])
    schedule = values.get("schedule")
    # A description that is built again hands the schedule over as an object.
    return {**values, "schedule": describe(schedule) if isinstance(schedule, Schedule) else schedule}
