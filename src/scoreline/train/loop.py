"""The training loop, written once: one turn of any Method.

For each step: seed what draws from torch's global generator (dropout), let the method prepare, then for each due
update make its loss with only its parameters taking gradients, step its optimizer and count; then `after_update`, then
the moving averages. Everything random is a function of (seed, step), so that the state is: tensors, counters, step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.errors import InputError, NonFiniteError
from scoreline.core.method import Method, Update
from scoreline.core.noise import derive
from scoreline.train.ema import EMA, Averages, decays
from scoreline.train.freezing import freeze
from scoreline.train.groups import Group, group_updates
from scoreline.train.order import Data, Feed

__all__ = ["Loop", "kept_generators"]

CHECK_EVERY = 50


class Loop:
    """The state of a training and the turn that moves it on.

    Args:
        method: what is trained; it is moved to `device` and its frozen modules are frozen.
        data: see :class:`scoreline.train.order.Feed`.
        batch_size: images a step, over all processes.
        seed: any integer.
        device: where to train; None leaves the method where it is.
        autocast: torch.bfloat16 or torch.float16 for mixed precision, None for the parameters' own type.
        accumulate: parts into which a process cuts its batch, their gradients averaged.
        ema: moving averages of `method.averaged()`, see :func:`scoreline.train.ema.decays`.
        skip_nonfinite: how many non-finite updates may be left out before the run stops.
        rank, world: number of this process, and of processes.
        check_every: steps between two looks at the device's non-finite flag; None takes 50 on a GPU whose optimizers
            can be held by that flag, 1 elsewhere. Parameters never take a non-finite step either way.
    """

    def __init__(
        self,
        method: Method,
        data: Data,
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
        accumulate: int = 1,
        ema: EMA = None,
        skip_nonfinite: int = 0,
        rank: int = 0,
        world: int = 1,
        check_every: int | None = None,
    ) -> None:
        if accumulate < 1:
            raise InputError("accumulate", accumulate, "a step is made in 1 or more parts")
        first = next(method.parameters(), None)
        self.device = device if device is not None else torch.device("cpu") if first is None else first.device
        self.method = method.to(self.device)
        self.feed = Feed(data, batch_size=batch_size, seed=seed, device=self.device, pieces=world * accumulate)
        self.accumulate, self.rank, self.world = accumulate, rank, world
        self.dropout_seed = derive(seed, "dropout", rank)
        for module in method.frozen():
            freeze(module)
        self.updates, self.groups = group_updates(method)
        self.autocast = autocast
        self.scale = 65536.0 if autocast == torch.float16 else 1.0
        self.scale_age = 0
        self.skip_nonfinite, self.skipped = skip_nonfinite, 0
        holdable = all(group.fused for group in self.groups) and not skip_nonfinite and autocast != torch.float16
        self.check_every = check_every or (CHECK_EVERY if self.device.type == "cuda" and holdable else 1)
        if self.check_every > 1 and not holdable:
            raise InputError("check_every", self.check_every, "needs fused optimizers, no fp16 and no skips")
        self.bad = torch.full((), -1, dtype=torch.int64, device=self.device)
        schedules = decays(ema)
        averaged = method.averaged()
        if schedules and averaged is None:
            raise InputError("ema", ", ".join(schedules), f"{type(method).__name__}.averaged() names no module")
        self.averages = Averages(averaged, schedules) if schedules and averaged is not None else None
        self.averaged_by = _movers(self.updates, averaged) if averaged is not None else []
        self.buffers = [b for b in _live_buffers(method) if b.is_floating_point()]
        if world > 1:
            for tensor in [*method.parameters(), *method.buffers()]:
                torch.distributed.broadcast(tensor.detach(), 0)

    def train_mode(self) -> None:
        """Training mode for everything that is not frozen."""
        self.method.train()
        for module in self.method.frozen():
            module.eval()

    def turn(self, step: int) -> dict[str, Tensor]:
        """One step: every due update of the method once.

        Returns:
            Detached losses by update name, and what else the losses' mappings held as "update/entry".

        Raises:
            NonFiniteError: a loss or gradient is not finite, and no skip is left; the parameters are those before it.
        """
        self._seed(step)
        before = [b.clone() for b in self.buffers] if self.skip_nonfinite else []
        numbers = range(self.rank * self.accumulate, (self.rank + 1) * self.accumulate)
        parts = [self.feed.piece(step, number) for number in numbers]
        shared: list[Any] = [None] * len(parts)
        due = [k for k, (_, update, _) in enumerate(self.updates) if update.due(step)]
        logged: dict[str, Tensor] = {}
        for turn_of, k in enumerate(due or [None]):
            for i, batch in enumerate(parts):
                if turn_of == 0:
                    with self._precision():
                        shared[i] = self.method.prepare(batch, step)
                if k is not None:
                    self._backward(k, batch, shared[i], step, logged)
                if turn_of == len(due) - 1:
                    shared[i] = None
            if k is not None and not self._move(k, step, logged):
                for buffer, value in zip(self.buffers, before):
                    buffer.copy_(value)
                return logged
        with torch.no_grad():
            self.method.after_update(step)
            self._mean_buffers()
            if self.averages is not None and (not self.averaged_by or any(k in due for k in self.averaged_by)):
                self.averages.update((step + 1) * self.feed.batch_size)
        if self.check_every > 1 and (step + 1) % self.check_every == 0:
            self.check()
        return logged

    def check(self) -> None:
        """Look at the device's non-finite flag, where it is not looked at in every step.

        Raises:
            NonFiniteError: an earlier update met a non-finite loss or gradient; nothing moved since.
        """
        place = int(self.bad) if self.check_every > 1 else -1
        if place >= 0:
            step, k = divmod(place, len(self.updates))
            raise _nonfinite("loss or gradient", step, self.updates[k][0])

    def _backward(self, k: int, batch: Any, shared: Any, step: int, logged: dict[str, Tensor]) -> None:
        name, update, group = self.updates[k]
        with group.alone(), self._precision():
            made = update.loss(batch, shared, step)
            loss = _scalar(name, made)
            # Only towards these parameters: nothing is computed for other networks that a shared graph goes through.
            (loss * (self.scale / self.accumulate)).backward(inputs=group.parameters)
        entries = {name: loss}
        if isinstance(made, Mapping):
            entries |= {f"{name}/{entry}": value for entry, value in made.items() if entry != "loss"}
        for entry, value in entries.items():
            value = torch.as_tensor(value, device=self.device).detach().float() / self.accumulate
            if value.dim():
                raise InputError(f"logged value {entry}", tuple(value.shape), "must be one number")
            logged[entry] = logged[entry] + value if entry in logged else value

    def _move(self, k: int, step: int, logged: dict[str, Tensor]) -> bool:
        """Average over processes, check, clip, step and count; False when this update was skipped."""
        name, update, group = self.updates[k]
        gradients = group.gradients()
        if self.world > 1:
            own = [entry for entry in logged if entry == name or entry.startswith(f"{name}/")]
            means = group.mean_over_processes(torch.stack([logged[entry] for entry in own]), self.world)
            logged.update(zip(own, means.unbind()))
            gradients = group.gradients()
        loss = logged[name]
        if not gradients:
            raise InputError(f"update {name}", None, "its loss does not depend on its parameters")
        found = group.nonfinite(gradients, 1 / self.scale)
        if self.check_every > 1:
            # The fused optimizers leave parameters and states alone where this flag is set, without a look from here.
            held = torch.maximum(found, (~torch.isfinite(loss) | (self.bad >= 0)).to(found))
            place = step * len(self.updates) + k
            self.bad = torch.where((self.bad < 0) & (held > 0), torch.full_like(self.bad, place), self.bad)
            group.clip(gradients, update)
            group.step(held)
            return True
        finite_loss, finite_gradient = math.isfinite(float(loss)), float(found) == 0
        if self.autocast == torch.float16 and finite_loss and not finite_gradient and self.scale > 1:
            self.scale, self.scale_age = self.scale / 2, 0
            group.clear()
            return True
        if not (finite_loss and finite_gradient):
            group.clear()
            self._skip(_nonfinite("gradient" if finite_loss else "loss", step, name))
            return False
        if self.autocast == torch.float16:
            self.scale_age += 1
            if self.scale_age >= 2000:
                self.scale, self.scale_age = self.scale * 2, 0
        group.clip(gradients, update)
        group.step()
        return True

    def _skip(self, error: NonFiniteError) -> None:
        if self.skipped >= self.skip_nonfinite:
            raise error
        self.skipped += 1
        if self.rank == 0:
            print(f"skipped {self.skipped} of at most {self.skip_nonfinite}: {error.thing}", file=sys.stderr)

    def _mean_buffers(self) -> None:
        # Running statistics see each process's own images; their mean keeps all processes on the same weights.
        if self.world > 1 and self.buffers:
            flat = torch.cat([b.reshape(-1).double() for b in self.buffers])
            torch.distributed.all_reduce(flat)
            for buffer, mean in zip(self.buffers, (flat / self.world).split([b.numel() for b in self.buffers])):
                buffer.copy_(mean.view_as(buffer))

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    def _seed(self, step: int) -> None:
        """Seed what draws from torch's global generator, so that a resumed run drops the same units."""
        # An odd factor keeps the low 32 bits, all that the CPU generator looks at, distinct for 2^32 steps.
        seed = (self.dropout_seed + step * 0x9E3779B1) % (1 << 63)
        # torch.manual_seed would ask every kind of device that torch knows, which takes longer than a small step.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or torch.cuda.current_device()].manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Leave the caller's global generators as they were found."""
    state = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)


def _scalar(name: str, made: Any) -> Tensor:
    if isinstance(made, Mapping) and "loss" not in made:
        raise InputError(f"update {name}", ", ".join(made), "its loss gave a mapping without an entry named 'loss'")
    loss = made["loss"] if isinstance(made, Mapping) else made
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"update {name}", shape, "its loss must be one number; take the mean over the batch")
    if not loss.requires_grad:
        raise InputError(f"update {name}", None, "its loss does not depend on its parameters")
    return loss.reshape(())


def _nonfinite(what: str, step: int, name: str) -> NonFiniteError:
    mend = "lower the learning rate, clip gradients, or allow a few with skip_nonfinite"
    return NonFiniteError(f"non-finite {what} at step {step} in update {name!r}", None, mend)


def _movers(updates: list[tuple[str, Update, Group]], averaged: nn.Module) -> list[int]:
    """Numbers of the updates that move the averaged module."""
    live = {id(p) for p in averaged.parameters()}
    return [k for k, (_, _, group) in enumerate(updates) if any(id(p) in live for p in group.parameters)]


def _live_buffers(method: Method) -> list[Tensor]:
    frozen = {id(b) for module in method.frozen() for b in module.buffers()}
    return [b for b in method.buffers() if id(b) not in frozen]
