"""What a run says while it trains: a CSV file that survives resuming, and progress on stderr."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoreline.core.errors import ArtefactError
from scoreline.core.files import atomic_path

__all__ = ["CsvLog", "Progress"]


class CsvLog:
    """Rows of numbers in a CSV file, one file from the first step to the last whatever happened in between.

    Args:
        path: the file.
        step: rows of later steps are dropped, because the run goes on from here.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or [])
                # A row that a kill cut short has no last column.
                rows = [r for r in reader if None not in r.values() and r["step"].isdigit() and int(r["step"]) <= step]
            self._rewrite(rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; a column that was not there before is added to the whole file."""
        new = [name for name in row if name not in self.columns]
        if new:
            rows: list[dict[str, str]] = []
            if self.path.exists():
                with self.path.open(newline="", encoding="utf-8") as file:
                    rows = list(csv.DictReader(file))
            self.columns += new
            self._rewrite(rows)
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns, restval="", lineterminator="\n").writerow(row)
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(text.getvalue())
        except OSError as error:
            raise ArtefactError(str(self.path), None, f"cannot be written: {error.strerror}") from error

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


class Progress:
    """Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing when quiet.

    Args:
        steps: steps of the whole run.
        done: steps made before.
        quiet: say nothing.
    """

    def __init__(self, steps: int, done: int, *, quiet: bool = False) -> None:
        self.steps, self.quiet = steps, quiet
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=steps, completed=done)
            self._bar.start()

    def show(self, row: Mapping[str, Any], names: list[str]) -> None:
        """One state of the run: the step of `row`, its speed, and the entries called `names`."""
        losses = "  ".join(f"{name} {row[name]:.4g}" for name in names if name in row)
        text = f"{losses}  {row['images_per_second']:.0f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], description=text)
        elif not self.quiet:
            print(f"step {row['step']}/{self.steps}  {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
