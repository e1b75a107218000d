"""What a teacher says: steps of its ODE or SDE inside a training, and networks that start as its copies.

Any sampler that takes times of each image's own is a teacher's solver: `advance(Heun(), teacher, x, times)`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.artefact import build, describe
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.noise import Draws
from scoreline.core.sampler import Sampler, State
from scoreline.core.schedule import Schedule

__all__ = ["GridSteps", "advance", "check_alike", "copied", "ema_update", "guided_teacher", "innermost", "rebuilt"]


@torch.no_grad()
def advance(
    solver: Sampler, teacher: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, noise: Draws | None = None
) -> Tensor:
    """The teacher's steps from times[0] to times[-1], without gradients.

    Args:
        solver: a sampler with times of each image's own (`per_image`), e.g. `Heun()` or `DDIM()`.
        teacher: the model.
        x: states at times[0], (B, ...).
        times: (S+1, B) float64, descending; columns may differ.
        cond: conditions of the batch.
        noise: streams for stochastic solvers, whose draws (1, ...), (2, ...), ... of step i they take.

    Raises:
        InputError: the solver takes one list of times for a whole batch.
    """
    _check_solver(solver)
    given = teacher.given(cond) if cond is not None else teacher
    state = State(x, noise)
    for row in solver.coefficients(teacher.schedule, times):
        state = solver.step(given, state, row)
    return state.x


class GridSteps(nn.Module):
    """A solver's steps between neighbouring times of a fixed grid, tabulated: each image enters where it wants, and no
    device is waited for.

    Args:
        solver: a sampler with times of each image's own, without noise.
        schedule: in whose coordinates the teacher is asked.
        grid: (N,) float64, descending.

    Raises:
        InputError: the solver takes one list of times for a whole batch, or cannot take one of the steps.
    """

    def __init__(self, solver: Sampler, schedule: Schedule, grid: Tensor) -> None:
        super().__init__()
        _check_solver(solver)
        self.solver, self.shared = solver, dict[str, Any]()
        # Every step of the grid is one image of a batch that makes a single step.
        (row,) = solver.coefficients(schedule, torch.stack([grid[:-1], grid[1:]]).cpu())
        for name, value in vars(row).items():
            if isinstance(value, Tensor):
                self.register_buffer(f"row_{name}", value, persistent=False)
            else:
                self.shared[name] = value

    @torch.no_grad()
    def forward(self, teacher: Denoiser, x: Tensor, index: Tensor, steps: int, cond: Cond | None = None) -> Tensor:
        """So many steps, without gradients, of each image from its own grid[index].

        Args:
            teacher: the model, on the schedule of the table.
            x: states at grid[index], (B, ...).
            index: (B,) int64.
            steps: as many for all.
            cond: conditions of the batch.
        """
        given = teacher.given(cond) if cond is not None else teacher
        state = State(x)
        for k in range(steps):
            own = {name.removeprefix("row_"): table[index + k] for name, table in self.named_buffers()}
            state = self.solver.step(given, state, SimpleNamespace(**{**self.shared, **own, "i": k}))
        return state.x


def _check_solver(solver: Sampler) -> None:
    if not solver.per_image:
        raise InputError("solver", type(solver).__name__, "takes no times of each image's own; use ddim, euler or heun")


def check_alike(student: Denoiser, teacher: Denoiser) -> None:
    """Refuse a teacher of other images than the student's, or of other classes; a student may have no classes.

    Raises:
        InputError: shapes or classes differ.
    """
    if tuple(teacher.shape) != tuple(student.shape):
        mend = f"the teacher's images are {tuple(teacher.shape)}; a student makes images of the same shape"
        raise InputError("student", tuple(student.shape), mend)
    if student.num_classes not in (None, teacher.num_classes):
        mend = f"the teacher knows {teacher.num_classes} classes; a student takes the same ones, or none"
        raise InputError("student", f"{student.num_classes} classes", mend)


def guided_teacher(teacher: Denoiser, guidance: float | None) -> Denoiser:
    """The teacher under classifier-free guidance of strength s; None or 1 leaves it alone.

    Raises:
        InputError: guidance of a model without conditions.
    """
    from scoreline.guidance.extrapolate import ClassifierFree

    if guidance is None or guidance == 1:
        return teacher
    if teacher.num_classes is None:
        raise InputError("guidance", guidance, "the teacher has no conditions to be guided by")
    return ClassifierFree(teacher, guidance)


def innermost(model: Denoiser) -> Denoiser:
    """The denoiser at the bottom of views of it (other coordinates, guidance, thresholds)."""
    while isinstance(getattr(model, "inner", None), Denoiser):
        model = model.inner  # type: ignore[assignment]
    return model


def copied(module: nn.Module) -> Any:
    """A copy that no gradient reaches: a teacher's twin, or a target network."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def rebuilt(net: nn.Module, changes: Mapping[str, Any]) -> tuple[nn.Module, list[str]]:
    """The network again with some constructor arguments changed, holding its weights wherever they fit.

    A matrix that has only gained inputs (a second time beside the first) keeps those it had, in front; an output that
    has lost channels (a learned variance) keeps the first ones.

    Args:
        net: a network of ours (its constructor's arguments are recorded).
        changes: arguments to change, e.g. {"second_time": True}.

    Returns:
        (network, names of the tensors that are new or have grown; what is new keeps its fresh initialisation).

    Raises:
        InputError: the network is not one of ours, so that it can be copied but not rebuilt.
    """
    if not changes:
        return copy.deepcopy(net), []
    if not changes.keys() <= getattr(net, "_arguments", {}).keys():
        raise InputError("network", type(net).__name__, "can be copied but not rebuilt with other settings")
    description = describe(net)
    description["args"] = {**description["args"], **changes}
    made = build(description)
    old, fresh = net.state_dict(), made.state_dict()
    kept = {name: value for name, value in old.items() if name in fresh and fresh[name].shape == value.shape}
    grown = {}
    for name in (old.keys() & fresh.keys()) - kept.keys():
        before, now = old[name], fresh[name].clone()
        if "out_channels" in changes and before.shape[1:] == now.shape[1:] and len(before) > len(now):
            had = net._arguments["out_channels"] or net.in_shape[0]  # type: ignore[index]
            rows = before.view(-1, had, *before.shape[1:])[:, : changes["out_channels"]]  # of each pixel of a patch
            kept[name] = rows.reshape(now.shape)
        elif before.dim() == now.dim() == 2 and len(before) == len(now) and before.shape[1] < now.shape[1]:
            now[:, : before.shape[1]] = before
            grown[name] = now
    made.load_state_dict({**fresh, **kept, **grown})
    return made, sorted(fresh.keys() - kept.keys())


@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, rate: float) -> None:
    """target <- rate target + (1 - rate) source over parameters; buffers are copied.

    >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> ema_update(a, b, 0.0); bool((a.weight == b.weight).all())
    True
    """
    ours: list[Tensor] = [p.detach() for p in target.parameters()]
    theirs: list[Tensor] = [p.detach() for p in source.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - rate)
    for mine, its in zip(target.buffers(), source.buffers()):
        mine.copy_(its)
