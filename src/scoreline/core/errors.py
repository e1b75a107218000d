"""Errors that name the thing, the value and the mend.

Everything scoreline refuses is refused through one of these classes, before any work is done. The command line turns
them into one line on stderr: exit code 2 for :class:`InputError` (what was asked for is wrong), 1 for the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ScorelineError", "InputError", "ArtefactError", "NonFiniteError", "unknown_name", "nearest"]


class ScorelineError(Exception):
    """Base of all errors that scoreline raises on purpose.

    Args:
        thing: what is wrong, in the words the caller used ("nfe", "sampler", "photo.png").
        value: the offending value, or None when the thing says it all.
        mend: what to do instead, as a sentence.
    """

    exit_code = 1

    def __init__(self, thing: str, value: object = None, mend: str = "") -> None:
        self.thing, self.value, self.mend = thing, value, mend
        shown = "" if value is None else f" {value!r}"
        super().__init__(f"{thing}{shown}: {mend}" if mend else f"{thing}{shown}")

    def __reduce__(self) -> tuple:
        return type(self), (self.thing, self.value, self.mend)


class InputError(ScorelineError, ValueError):
    """An argument, option, name, shape or range is wrong."""

    exit_code = 2


class ArtefactError(ScorelineError):
    """A file is missing, truncated, of another class, or belongs to something else."""


class NonFiniteError(ScorelineError, ArithmeticError):
    """A loss, gradient or image is not finite."""


def nearest(value: str, known: Iterable[str]) -> str | None:
    """The known name closest to `value`, or None when nothing resembles it.

    >>> nearest("huen", ["heun", "ddim"])
    'heun'
    """
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(value.lower(), lowered, n=1, cutoff=0.5)
    return lowered[close[0]] if close else None


def unknown_name(kind: str, value: str, known: Iterable[str]) -> InputError:
    """An :class:`InputError` for a misspelt name, with the nearest valid one first.

    >>> print(unknown_name("sampler", "huen", ["heun", "ddim"]))
    sampler 'huen': did you mean 'heun'? Known: ddim, heun
    """
    names = sorted(known)
    guess = nearest(value, names) if isinstance(value, str) else None
    hint = f"did you mean {guess!r}? " if guess else ""
    return InputError(kind, value, f"{hint}Known: {', '.join(names)}")
