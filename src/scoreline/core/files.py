"""Files that are either whole or not there: atomic writes and JSON, with clear errors.

A file is written under a temporary name beside its place and moved there in one step, so that a reader, or a run that
was killed, never sees half of it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scoreline.core.errors import ArtefactError, InputError

__all__ = ["atomic_path", "cache_folder", "sweep", "write_json", "read_json"]

_MENDS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "cannot be written: permission denied; choose a folder you may write to",
    errno.EPERM: "cannot be written: not permitted; choose a folder you may write to",
    errno.EROFS: "cannot be written: the file system is read-only; choose another folder",
    errno.ENOTDIR: "cannot be written: a part of the path is a file, not a folder",
    errno.EEXIST: "cannot be written: a part of the path is a file, not a folder",
    errno.EISDIR: "cannot be written: a folder of that name is in the way",
    errno.ENAMETOOLONG: "cannot be written: the name is too long",
}


def _mend(error: BaseException) -> str | None:
    """What to say about a failed write, or None when the error is not about writing."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None and isinstance(error, Exception):
        # Libraries written in Rust (safetensors) report the number only inside their message.
        found = re.search(r"os error (\d+)", str(error))
        code = int(found.group(1)) if found else None
    return _MENDS.get(code) if code is not None else None


def _umask() -> int:
    # The only way to read the mask is to set it; done once, on import, before there are threads.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


_UMASK = _umask()


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed when it does not.

    The temporary name starts with a dot and keeps the suffix of `path`, for libraries that look at it. Missing folders
    are made. A file that was at `path` before stays untouched until the last moment.

    Args:
        path: where the file shall stand in the end.

    Returns:
        The path to write to, inside a `with` block.

    Raises:
        ArtefactError: the disk is full, or the folder cannot be written to.
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(6)}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        yield temporary
        # Some writers make files for their owner alone; others may read what any program here writes.
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, target)
    except Exception as error:
        mend = _mend(error)
        if mend is None or not _concerns(error, target, temporary):
            raise
        raise ArtefactError(str(target), None, mend) from error
    finally:
        # Also on Ctrl-C. The clean-up must not hide the error that led here.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove the unfinished files that a killed run left in a folder of its own and in the folders inside it.

    Those are the temporary files of :func:`atomic_path` and of safetensors, which writes by way of one of its own
    (`.tmp` and six letters or digits).
    """
    for path in (found for pattern in (".*", "*/.*") for found in Path(folder).glob(pattern)):
        if re.fullmatch(r"\.\w+\.partial.*|\.tmp\w{6}", path.name):
            with suppress(OSError):
                path.unlink()


def cache_folder() -> Path:
    """Where to keep what can be made again: $SCORELINE_CACHE, else scoreline/ in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SCORELINE_CACHE") or Path(base) / "scoreline")


def _concerns(error: Exception, target: Path, temporary: Path) -> bool:
    if not isinstance(error, OSError) or error.filename is None:
        return True
    return Path(os.fsdecode(error.filename)) in {target, temporary, *target.parents}


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON in UTF-8, atomically.

    Raises:
        InputError: `value` holds NaN, infinity or something that JSON does not know.
        ArtefactError: the file cannot be written.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InputError("JSON value", str(path), f"cannot be stored ({error}); use null for no number") from error
    except TypeError as error:
        raise InputError("JSON value", str(path), f"cannot be stored ({error})") from error
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file.

    Raises:
        ArtefactError: the file is missing, unreadable, truncated or no JSON.
    """
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ArtefactError(str(path), None, "no such file") from None
    except OSError as error:
        raise ArtefactError(str(path), None, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtefactError(str(path), None, f"is no valid JSON, corrupt or truncated ({error})") from error
