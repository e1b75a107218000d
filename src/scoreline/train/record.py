"""What a run keeps of itself while it trains: means of losses, rows of the log, checkpoints, time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.train import checkpoint
from scoreline.train.log import CsvLog, Progress
from scoreline.train.loop import Loop

__all__ = ["Record"]


class Record:
    """The log and the checkpoints of a run; only the first process writes.

    Args:
        loop: the training.
        root: the run's folder.
        steps: steps of the whole run.
        start: steps made before.
        header: of the checkpoint from which the run goes on, or None at its beginning.
        quiet: no progress on stderr.
    """

    def __init__(
        self, loop: Loop, root: Path, steps: int, start: int, header: Mapping[str, Any] | None, *, quiet: bool
    ) -> None:
        self.loop, self.root, self.writes = loop, root, loop.rank == 0
        # The sums travel in the checkpoint, so that the means of a resumed run are those of one never stopped.
        before: dict[str, list] = {} if header is None else header["log"]
        self.sums = {name: torch.tensor(total, device=loop.device) for name, (total, _) in before.items()}
        self.counts: dict[str, int] = {name: count for name, (_, count) in before.items()}
        self.log = CsvLog(root / "log.csv", start) if self.writes else None
        self.progress = Progress(steps, start, quiet=quiet or not self.writes)
        self.saved = start if header is not None else -1
        now = time.monotonic()
        self.began = now - (0.0 if header is None else header["seconds"])
        self.saved_at = self.logged_at = now
        self.logged_step = start

    def count(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of a step to the sums, on their device."""
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def write(self, step: int) -> None:
        """A row of the log: mean losses since the last row, learning rates, speed."""
        self.loop.check()
        means = {name: float(total / self.counts[name]) for name, total in self.sums.items()}
        now = time.monotonic()
        batch_size = self.loop.feed.batch_size
        speed = (step - self.logged_step) * batch_size / max(now - self.logged_at, 1e-9)
        rates = {f"lr/{name}": group.rate() for name, _, group in self.loop.updates}
        row = {"step": step, "images": step * batch_size, **means, **rates}
        row |= {"images_per_second": round(speed, 2), "seconds": round(now - self.began, 3)}
        if self.log is not None:
            self.log.add(row)
            self.progress.show(row, [name for name, _, _ in self.loop.updates])
        self.sums, self.counts = {}, {}
        self.logged_at, self.logged_step = now, step

    def save(self, step: int) -> None:
        """A checkpoint, unless this step has one.

        Raises:
            NonFiniteError: an update before this step was not finite; nothing is written.
        """
        self.loop.check()
        if self.writes and self.saved != step:
            header, tensors = checkpoint.state(self.loop, step)
            header["seconds"] = time.monotonic() - self.began
            header["log"] = {name: [float(total), self.counts[name]] for name, total in self.sums.items()}
            checkpoint.save(self.root / "checkpoints", header, tensors)
        self.saved, self.saved_at = step, time.monotonic()

    def seconds_unsaved(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self.saved_at

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block does not count in the training's speed."""
        began = time.monotonic()
        yield
        self.logged_at += time.monotonic() - began
