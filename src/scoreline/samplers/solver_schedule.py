"""The decision space of the unified sampling framework (USF), Liu et al. 2024 (arXiv 2312.07243), as one typed object.

A solver schedule says for every step of an exponential integrator: which prediction is expanded, from which visited
point, to which Taylor order, how each derivative is estimated and scaled, and whether the step is corrected. It holds
the times as well, and the analytic first step and the skip coefficients of the released code. DDIM, DPM-Solver,
DPM-Solver++, DEIS in lambda, UniPC and iPNDM are points of the space: see :func:`known_solver`.
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

__all__ = ["KNOWN", "SCALINGS", "Solver", "SolverSchedule", "Step", "known_solver", "read_plans"]
__all__ += ["singlestep_groups", "uniform", "write_plans"]

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
        scaling: factor on the first derivative, one of `SCALINGS`, or None.
        linear: c of the scaling "linear", 1 + c h.
        even: take the points as evenly spaced by this step's h (PNDM).
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
    even: bool = False
    corrector: str | None = None
    corrector_scaling: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(tuple(int(p) for p in each) for each in self.points))
        _one_of("prediction", self.prediction, PREDICTIONS)
        for thing, scaling in (("scaling", self.scaling), ("corrector_scaling", self.corrector_scaling)):
            if scaling is not None:
                _one_of(thing, scaling, SCALINGS)
        if self.corrector is not None:
            _one_of("corrector", self.corrector, CORRECTORS)
        if not isinstance(self.order, int) or self.order < 1:
            raise InputError("order", self.order, f"the Taylor order is a whole number from 1 to {MAX_ORDER}")
        if len(self.points) != self.order - 1:
            raise InputError("points", self.points, f"order {self.order} estimates {self.order - 1} derivatives")
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
            _one_of("afs", self.afs, AFS)
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


def _one_of(thing: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise unknown_name(thing, value, known)


@dataclass(frozen=True)
class Solver:
    """A solver that makes the same decisions at every step, as far as the visited points allow.

    Args:
        prediction: see :class:`Step`.
        order: Taylor order once enough points are visited.
        scalings: scaling by Taylor order, where there is one.
        corrector: of every step but the last; None for none.
        corrector_scalings: scaling inside the corrector, by the order of its predictor.
        even: see :class:`Step`.
        single: a singlestep method: this many steps belong together, the last of them starts where the first did.
        convergence: its order of convergence.
    """

    prediction: str
    order: int
    scalings: tuple[tuple[int, str], ...] = ()
    corrector: str | None = None
    corrector_scalings: tuple[tuple[int, str], ...] = ()
    even: bool = False
    single: int = 1
    convergence: int = 1


def _unipc(p: int, bh: str) -> Solver:
    # In systems of one unknown UniPC sets the weight 1/2 instead of solving; B(h) survives there only.
    return Solver("data", p, ((2, bh),), "pseudo", ((1, bh),), convergence=p + 1)


KNOWN: dict[str, Solver] = {
    "ddim": Solver("data", 1),
    "dpm-solver-2": Solver("noise", 2, ((2, "dpmsolver-2"),), single=2, convergence=2),
    "dpm-solver-3": Solver("noise", 2, single=3, convergence=3),
    "dpm-solver-2m": Solver("noise", 2, ((2, "dpmsolver-2"),), convergence=2),
    "dpm-solver-3m": Solver("noise", 3, ((2, "dpmsolver-2"),), convergence=3),
    "dpm-solver++2s": Solver("data", 2, ((2, "dpmsolver-2"),), single=2, convergence=2),
    "dpm-solver++2m": Solver("data", 2, ((2, "dpmsolver-2"),), convergence=2),
    "dpm-solver++3m": Solver("data", 3, ((2, "dpmsolver-2"),), convergence=3),
    **{f"deis-{r}": Solver("noise", r + 1, convergence=r + 1) for r in (1, 2, 3)},
    **{f"unipc-{p}": _unipc(p, "unipc-bh2") for p in (1, 2, 3)},
    **{f"unipc-{p}-bh1": _unipc(p, "unipc-bh1") for p in (1, 2, 3)},
    "ipndm": Solver("noise", 4, ((2, "adams"), (3, "adams"), (4, "adams")), even=True),
}


def known_solver(name: str, lam: Sequence[float], *, variant: str = "paper") -> tuple[Step, ...]:
    """The decisions of a published solver, one a step.

    Args:
        name: of `KNOWN`: ddim; dpm-solver-2, -3 and dpm-solver++2s (singlestep, whose intermediate points are visited
            points like all others); dpm-solver-2m, -3m, dpm-solver++2m, ++3m (multistep); deis-r with a polynomial of
            degree r in lambda; unipc-p and unipc-p-bh1 with their corrector; ipndm.
        lam: (S+1,) lambda at every visited time; +inf at the clean end, -inf where no signal is left.
        variant: "released" halves the second derivative of the third-order DPM-Solvers, as their code does.

    Raises:
        InputError: an unknown name or variant.
    """
    _one_of("solver", name, sorted(KNOWN))
    _one_of("variant", variant, ("paper", "released"))
    solver = KNOWN[name]
    if variant == "released" and name in ("dpm-solver-3m", "dpm-solver++3m"):
        solver = Solver(**{**asdict(solver), "scalings": (*solver.scalings, (3, "dpmsolver-3-released"))})
    return uniform(solver, lam)


def uniform(solver: Solver, lam: Sequence[float], *, lower_order_final: bool = False) -> tuple[Step, ...]:
    """The decisions of a solver that does the same at every step.

    The order of step i is at most i + 1. Steps to the clean end, where h is infinite, and steps from a level without
    signal are of first order, and no other step uses such a level.

    Args:
        solver: the decisions.
        lam: (S+1,) lambda at every visited time.
        lower_order_final: the last q - 1 steps go down to order q - 1, ..., 1.
    """
    lam = np.asarray(lam, dtype=np.float64)
    count = len(lam) - 1
    if solver.single > 1:
        groups = singlestep_groups(count, solver.single, np.isfinite(lam))
        return tuple(step for size in groups for step in _single(solver, size))
    steps = []
    for i in range(count):
        usable = 0
        while usable <= i and np.isfinite(lam[i - usable]):
            usable += 1
        order = min(solver.order, usable) if np.isfinite(lam[i + 1]) else 1
        if lower_order_final:
            order = min(order, count - i)
        order = max(order, 1)
        extra = tuple(range(-2, -order - 1, -1))
        corrector = solver.corrector if i < count - 1 and np.isfinite(lam[i : i + 2]).all() else None
        steps.append(
            Step(
                solver.prediction,
                order,
                -1,
                (extra,) * (order - 1),
                dict(solver.scalings).get(order),
                even=solver.even,
                corrector=corrector,
                corrector_scaling=dict(solver.corrector_scalings).get(order) if corrector else None,
            )
        )
    return tuple(steps)


def singlestep_groups(count: int, size: int, finite: Sequence[bool]) -> list[int]:
    """How `count` steps are put into groups of `size`: the steps with an infinite h alone, what is left over last.

    Args:
        count: number of steps.
        size: of a whole group.
        finite: (count+1,) whether lambda is finite at each visited time.

    >>> singlestep_groups(6, 2, [True] * 6 + [False])
    [2, 2, 1, 1]
    """
    head, tail = int(not finite[0]), int(not finite[-1] and count > int(not finite[0]))
    inner = count - head - tail
    whole, rest = divmod(inner, size)
    return [1] * head + [size] * whole + ([rest] if rest else []) + [1] * tail


def _single(solver: Solver, size: int) -> list[Step]:
    """DPM-Solver of `size` evaluations: every stage starts where the group does and looks at the stage before it."""
    steps = [Step(solver.prediction)]
    for stage in range(1, size):
        # In a group of two the weight of the last stage is that of the midpoint rule; in a group of three Taylor's.
        scaling = dict(solver.scalings).get(2) if solver.single == 2 else "dpmsolver-2" if size == 2 else None
        steps.append(Step(solver.prediction, 2, -1 - stage, ((-1,),), scaling))
    return steps


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
    return dict(values)
