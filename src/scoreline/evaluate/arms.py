"""The arms of a comparison: samplers of one model at several budgets, and students of it beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scoreline.core.cost import count_macs
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.flow_map import FlowMap
from scoreline.core.load import load
from scoreline.core.sampler import Sampler
from scoreline.evaluate.specs import (
    adds_noise,
    check_counts,
    check_fit,
    is_adaptive,
    labels_for,
    make_sampler,
    parse_spec,
    sampling_of,
)

__all__ = ["Arm", "arms_of", "model_macs", "students_of"]


@dataclass(frozen=True)
class Arm:
    """One sampler at one cost; an adaptive one has budget and nfe 0, what it spends is measured.

    Args:
        spec: the sampler, with its settings.
        budget: evaluations that were allowed.
        nfe: evaluations that it takes.
        sampler: ready to be called.
        model: a student; None is the model that is compared.
        student: path of the student.
    """

    spec: str
    budget: int
    nfe: int
    sampler: Sampler
    model: Denoiser | None = None
    student: str | None = None

    @property
    def series(self) -> str:
        """The name of the curve that it belongs to: the sampler, or the student's file."""
        return self.spec if self.student is None else student_name(self.student)

    @property
    def fingerprint(self) -> str:
        """Of the student, "" of an arm of the model itself."""
        return "" if self.model is None else str(self.model.header["fingerprint"])  # type: ignore[index]

    @property
    def name(self) -> str:
        # It names files: a path among the settings must not become folders.
        plain = self.series.replace(":", "-").replace("=", "").replace("+", "p").replace("/", "_").replace(os.sep, "_")
        return f"{plain}-{self.nfe or 'adaptive'}"


def model_macs(model: Denoiser) -> int:
    """Multiply-accumulates of one network evaluation of one image."""
    x = torch.zeros(1, *model.shape)
    t = 0.5 * (model.schedule.t_min + model.schedule.t_max)
    cond = labels_for([0], model.num_classes)
    if isinstance(model, FlowMap) and not model.scored:
        return count_macs(lambda: model.jump(x, t, model.end, cond))
    return count_macs(lambda: model(x, t, cond)) // model.evaluations


def arms_of(model: Denoiser, samplers: Sequence[str], budgets: Sequence[int]) -> tuple[list[Arm], list[str]]:
    """The arms of a comparison, and a warning for each sampler and budget that does not fit.

    Raises:
        InputError: a name or setting is wrong, or nothing fits.
    """
    arms: list[Arm] = []
    warnings: list[str] = []
    for spec in dict.fromkeys(samplers):
        parse_spec(spec)
        if is_adaptive(spec):
            # It takes no budget; it is measured once and stands at the most evaluations that one of its images took.
            sampler = make_sampler(spec)
            check_fit(sampler, model)
            arms.append(Arm(spec, 0, 0, sampler))
            continue
        for budget in sorted(set(budgets)):
            sampler = make_sampler(spec, nfe=budget)
            try:
                nfe = check_fit(sampler, model)
            except InputError as error:
                reason = error.mend if error.thing == "nfe" else str(error)
                warnings.append(f"{spec} at {budget} evaluations is left out: {reason}")
                continue
            if any(arm.spec == spec and arm.nfe == nfe for arm in arms):
                warnings.append(f"{spec} at {budget} evaluations is the same run as at a smaller budget ({nfe} spent)")
                continue
            arms.append(Arm(spec, budget, nfe, sampler))
    if not arms:
        raise InputError("nfe", list(budgets), "; ".join(warnings) or "give at least one sampler and one budget")
    return arms, warnings


def student_name(path: str) -> str:
    """What a student is called beside others: its file's name, or its folder's where the file is model.safetensors.

    >>> student_name("runs/ctm/model.safetensors"), student_name("runs/one.safetensors")
    ('ctm', 'one')
    """
    file = Path(path)
    return file.parent.name if file.stem == "model" and file.parent.name else file.stem


def students_of(
    teacher: Denoiser, paths: Sequence[str], samplers: Sequence[str], budgets: Sequence[int], warnings: list[str]
) -> list[Arm]:
    """The arms of students, each by the sampler in its card, at every budget that it was made for.

    Args:
        teacher: the model beside which they stand.
        paths: of the students.
        samplers: names of the other curves, which a student's file may not have.
        budgets: evaluations per image.
        warnings: what is left out is said here.

    Raises:
        InputError: a student makes images of another shape or of other classes, has another one's name, or fits no
            budget.
    """
    arms: list[Arm] = []
    taken = set(samplers)
    for path in paths:
        student = load(path)
        name = student_name(path)
        if name in taken:
            raise InputError("students", path, f"there is a curve called {name} already; give the file another name")
        taken.add(name)
        if tuple(student.shape) != tuple(teacher.shape):
            mend = f"makes images of shape {tuple(student.shape)}, the model makes {tuple(teacher.shape)}"
            raise InputError("student", path, mend)
        if student.num_classes != teacher.num_classes:
            mend = f"has {student.num_classes or 'no'} classes, the model {teacher.num_classes or 'none'}"
            raise InputError("student", path, mend)
        own = sampling_of(student)
        if own is None:
            raise InputError("student", path, "its card names no sampler; is it a student? give others with --samplers")
        found: list[Arm] = []
        left: dict[str, list[int]] = {}
        for budget in sorted(set(budgets)):
            sampler = make_sampler(own[0], nfe=budget)
            try:
                nfe = check_fit(sampler, student)
                check_counts(student, own[0], sampler)
            except InputError as error:
                left.setdefault(error.mend, []).append(budget)
                continue
            if all(arm.nfe != nfe for arm in found):
                found.append(Arm(own[0], budget, nfe, sampler, student, path))
        if not found:
            raise InputError("student", path, f"was made for {own[1]} steps; give such a budget in --nfe")
        for reason, at in left.items():
            warnings.append(f"{name} at {', '.join(map(str, at))} evaluations is left out: {reason}")
        noisy = [arm.nfe for arm in found if adds_noise(arm.sampler, student)]
        if noisy:
            steps = ", ".join(map(str, noisy))
            warnings.append(
                f"{name} puts noise back at {steps} steps; its distance to the converged ODE holds that too"
            )
        arms += found
    return arms
