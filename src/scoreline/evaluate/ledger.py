"""The ledger of a long job: one JSON line a finished unit, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from scoreline.core.errors import ArtefactError
from scoreline.core.files import read_json, sweep, write_json

__all__ = ["Ledger"]


class Ledger:
    """Finished units of one job, by key.

    Args:
        path: file of JSON lines; a torn last line, left by a kill, is dropped.
        job: what makes the job the one it is; a ledger of another job is refused.

    Raises:
        ArtefactError: the file belongs to another job or is damaged before its last line.
    """

    def __init__(self, path: str | os.PathLike[str], job: dict[str, Any]) -> None:
        self.path = Path(path)
        self.rows: dict[str, dict[str, Any]] = {}
        mark = self.path.with_suffix(".job.json")
        sweep(self.path.parent)
        plain = json.loads(json.dumps(job))
        if mark.exists():
            known = read_json(mark)
            if not isinstance(known, dict):
                raise ArtefactError("folder", str(self.path.parent), f"{mark.name} is damaged; delete the folder")
            if known != plain:
                differing = sorted(k for k in known.keys() | plain.keys() if known.get(k) != plain.get(k))
                mend = f"holds another run (they differ in {', '.join(differing)}); choose another folder or delete it"
                raise ArtefactError("folder", str(self.path.parent), mend)
        else:
            write_json(mark, plain)
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole, _, torn = data.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                raise ArtefactError("ledger", str(self.path), f"line {number} is damaged; delete the file") from None
        if torn:
            with open(self.path, "r+b") as file:
                file.truncate(len(data) - len(torn))

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.rows[key]

    def add(self, key: str, **values: Any) -> dict[str, Any]:
        """Write one finished unit; it is on disk when this returns."""
        row = {"key": key, **values}
        line = json.dumps(row).encode() + b"\n"
        try:
            with open(self.path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # A torn line may be left; it is dropped when the ledger is opened again.
            mend = f"cannot be written ({error.strerror}); free some space and run the same command again"
            raise ArtefactError("ledger", str(self.path), mend) from None
        self.rows[key] = row
        return row
