"""Progress of long evaluations on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress"]


@contextmanager
def progress(title: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int, str], None]]:
    """A function advance(n, text) for `total` units of work.

    Args:
        title: shown in front.
        total: units of work in all.
        quiet: show nothing.
    """
    if quiet:
        yield lambda n, text: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        with bar:
            task = bar.add_task(title, total=total, text="")
            yield lambda n, text: bar.update(task, advance=n, text=text)
        return
    start, done = time.monotonic(), 0
    last, said = start, False

    def advance(n: int, text: str) -> None:
        nonlocal done, last, said
        done += n
        now = time.monotonic()
        # Short work says nothing.
        if now - last > 5 or (said and done >= total):
            last, said = now, True
            left = (now - start) / max(done, 1) * (total - done)
            print(f"{title}: {100 * done / max(total, 1):3.0f} %, {left:.0f} s left, {text}", file=sys.stderr)

    yield advance
