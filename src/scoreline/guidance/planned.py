"""A plan for a run: at which noise levels to stop, and which layers of the network to leave out at each of them.

The plans that AutoDiffusion finds (Li et al. 2023, arXiv 2309.10438) are of this kind; they are stored as JSON under
the header of all artefacts. A plan belongs to a noise schedule, and with layers left out to a network of as many
layers; the paper moves plans between models of one kind, so it is not bound to the weights it was found on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

import scoreline
from scoreline.core.artefact import FORMAT, describe, recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.files import read_json, write_json
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule
from scoreline.nn.plan import Plan
from scoreline.samplers.wrapped import Wrapped

__all__ = ["Planned", "RunPlan", "read_plan", "write_plan"]


@dataclass(frozen=True)
class RunPlan:
    """Levels and left-out layers of a run.

    Args:
        times: (S,) levels at which the model is asked, the noisiest first; the clean end is not one of them.
        drop: for each level the numbers of the layers left out; empty for none at all.
        schedule: description of the schedule that the times belong to, None where it is not known.
    """

    times: tuple[float, ...]
    drop: tuple[frozenset[int], ...] = ()
    schedule: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.schedule, Schedule):
            # What `build` makes of the description.
            object.__setattr__(self, "schedule", describe(self.schedule))
        times = tuple(float(t) for t in self.times)
        object.__setattr__(self, "times", times)
        object.__setattr__(
            self, "drop", tuple(frozenset(int(i) for i in d) for d in self.drop) or (frozenset(),) * len(times)
        )
        if not times or any(a <= b for a, b in itertools.pairwise(times)) or not np.isfinite(times).all():
            raise InputError("times of the plan", list(times)[:6], "must fall strictly, the noisiest first")
        if len(self.drop) != len(times):
            raise InputError(
                "drop of the plan", len(self.drop), f"needs one list of layers for each of {len(times)} times"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RunPlan:
        """From plain values {"times", "drop", "schedule"}.

        Raises:
            InputError: something is missing, unknown or of another type.
        """
        if not isinstance(values, Mapping) or "times" not in values or values.keys() - {"times", "drop", "schedule"}:
            shown = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise InputError("plan", shown, "has times, drop and schedule")
        try:
            return cls(tuple(values["times"]), tuple(values.get("drop") or ()), values.get("schedule"))
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("plan", None, f"times are numbers and drop are lists of layer numbers ({error})") from None

    def plain(self) -> dict[str, Any]:
        """The plan as JSON values."""
        drop = [sorted(d) for d in self.drop]
        return {"times": list(self.times), "drop": drop if any(drop) else [], "schedule": self.schedule}

    def check(self, schedule: Schedule) -> None:
        """Refuse a schedule that the times do not belong to.

        Raises:
            InputError: with the schedule of the plan.
        """
        if self.schedule is not None and hasattr(schedule, "_arguments") and describe(schedule) != self.schedule:
            args = ", ".join(f"{k}={str(v)[:40]}" for k, v in self.schedule.get("args", {}).items())
            mend = f"the plan was made for {self.schedule.get('name')} ({args}); search one for this model"
            raise InputError("schedule", type(schedule).__name__, mend)


def _fingerprint(args: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(args, sort_keys=True).encode()).hexdigest()


def write_plan(
    path: str | os.PathLike[str],
    plan: RunPlan,
    *,
    belongs_to: str | None = None,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write a plan as JSON under the header of artefacts, whole or not at all.

    Args:
        path: name of the file, ending in .json.
        plan: the plan.
        belongs_to: fingerprint of the model that it was found on.
        card: what a reader should know: command, scores, cost.

    Raises:
        InputError: another suffix.
    """
    if not str(path).endswith(".json"):
        raise InputError("plan", str(path), "must end in .json")
    args = plan.plain()
    header = {"format": FORMAT, "version": scoreline.__version__, "kind": "plan", "name": "planned", "args": args}
    write_json(path, header | {"fingerprint": _fingerprint(args), "belongs_to": belongs_to, "card": dict(card or {})})


def read_plan(path: str | os.PathLike[str]) -> RunPlan:
    """The plan in a file that :func:`write_plan` wrote.

    Raises:
        ArtefactError: the file is missing, is no plan, or was changed.
    """
    header = read_json(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("kind") != "plan":
        raise ArtefactError("plan", str(path), "was not written by scoreline search --space steps")
    args = header.get("args")
    if not isinstance(args, dict) or _fingerprint(args) != header.get("fingerprint"):
        raise ArtefactError("plan", str(path), "does not match its fingerprint; fetch or make it again")
    try:
        return RunPlan.of(args)
    except InputError as error:
        raise ArtefactError("plan", str(path), str(error)) from None


@recorded
class Planned(Wrapped):
    """A sampler that visits the levels of a plan, and leaves out the layers that the plan names at each.

    Args:
        plan: file of a plan, or its plain values {"times", "drop", "schedule"}; None leaves the inner sampler as it is.
        of: the sampler inside, a name or an object.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`; a plan fixes its steps, so steps must agree and
            nfe must be enough.

    Raises:
        InputError: the plan does not fit the sampler.
        ArtefactError: the plan cannot be read.
    """

    def __init__(
        self,
        *,
        plan: str | Mapping[str, Any] | None = None,
        of: str | Sampler = "ddim",
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(of, steps=steps, nfe=nfe, grid=grid)
        self.file = plan
        self._plan = None if plan is None else RunPlan.of(plan) if isinstance(plan, Mapping) else read_plan(plan)
        if self._plan is not None:
            count = len(self._plan.times)
            if steps not in (None, count):
                raise InputError("steps", steps, f"the plan has {count}; leave steps out")
            if count < self.min_steps:
                raise InputError("plan", count, f"{type(self._inner).__name__} needs at least {self.min_steps} steps")
            self.rising = False

    @property
    def run_plan(self) -> RunPlan | None:
        """The plan."""
        return self._plan

    def plan(self, evaluations: int = 1) -> int:
        if self._plan is None:
            return super().plan(evaluations)
        steps = len(self._plan.times)
        if self.nfe is not None and self.cost(steps) * evaluations > self.nfe:
            raise InputError("nfe", self.nfe, f"the plan costs {self.cost(steps) * evaluations} on this model")
        return steps

    def times(self, schedule: Schedule, evaluations: int = 1) -> np.ndarray:
        if self._plan is None:
            return super().times(schedule, evaluations)
        self.plan(evaluations)
        self._plan.check(schedule)
        return np.append(self._plan.times, schedule.clean)

    def calibrated(self, denoiser: Denoiser) -> Self:
        for drop in set(self._plan.drop if self._plan is not None else ()):
            if drop:
                denoiser.under(Plan(drop=drop))  # refused here, before any work
        return super().calibrated(denoiser)

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        if self._plan is not None and any(self._plan.drop) and len(times) - 1 != len(self._plan.drop):
            raise InputError("times", len(times) - 1, f"the plan leaves out layers in {len(self._plan.drop)} steps")
        return super().coefficients(schedule, times)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        drop = self._plan.drop[row.i] if self._plan is not None and any(self._plan.drop) else frozenset()
        if not drop:
            return self._inner.step(denoiser, state, row)
        return self._inner.step(denoiser.under(Plan(drop=drop)), state, row)

    def __repr__(self) -> str:
        plan = self.file if self._plan is None or isinstance(self.file, str) else self._plan.plain()
        shown = {"plan": plan, "of": self.of, "steps": self.steps, "nfe": self.nfe, "grid": self.grid}
        return f"Planned({', '.join(f'{k}={v!r}' for k, v in shown.items() if v is not None)})"
