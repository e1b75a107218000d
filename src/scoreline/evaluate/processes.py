"""One job over several processes: those that torchrun started (who am I, what did the first one decide, are all there),
and the workers of a pool of our own."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoreline.core.errors import InputError

__all__ = ["Processes", "become_worker", "processes"]

T = TypeVar("T")

# A slow disk under one process must not end the others.
_PATIENCE = datetime.timedelta(days=7)


class Processes:
    """The processes of this job.

    Args:
        rank: number of this one; only number 0 prints and writes results.
        world: how many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all are here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()

    def agreed(self, decide: Callable[[], T]) -> T:
        """What process 0 decides, in all of them; plain values only."""
        if self.world == 1:
            return decide()
        import torch.distributed as dist

        box: list[Any] = [decide() if self.first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The tensors of all processes, by rank, of the same names and shapes in each; empty but in process 0."""
        if self.world == 1:
            return [dict(tensors)]
        import torch.distributed as dist

        found: list[dict[str, Tensor]] = [{} for _ in range(self.world)]
        for name, value in sorted(tensors.items()):
            parts = [torch.empty_like(value) for _ in range(self.world)] if self.first else None
            dist.gather(value.contiguous(), parts, dst=0)
            for one, part in zip(found, parts or ()):
                one[name] = part
        return found if self.first else []


@contextmanager
def processes() -> Iterator[Processes]:
    """The processes that torchrun announces in RANK and WORLD_SIZE, or this one alone.

    Raises:
        InputError: the variables are set, but not as torchrun sets them.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    rank = os.environ.get("RANK", "0")
    if not (world.isdecimal() and rank.isdecimal() and int(rank) < max(int(world), 1)):
        raise InputError("RANK and WORLD_SIZE", f"{rank} of {world}", "are set by torchrun; unset them, or use it")
    if int(world) <= 1:
        yield Processes()
        return
    import torch.distributed as dist

    # Gloo carries a few words between barriers, and moments, so that it serves CPU and GPU alike.
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Processes(int(rank), int(world))
    finally:
        if started:
            dist.destroy_process_group()


def become_worker() -> None:
    """Make this process, started by a pool, a worker: one thread of torch, and an end when the main process ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A worker holds both ends of its queue and would wait for ever when the main process was killed.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
