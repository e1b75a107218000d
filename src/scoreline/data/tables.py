"""Tables of labels and scores: CSV with a header or without, .npy and .npz, in one file or two.

The encoding of the labels is told by their values: 0 and 1, false and true, -1 and 1. Anything else needs to be told
which value is the positive one; nothing is guessed, because a swapped class turns every metric round.
"""

from __future__ import annotations

import csv
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError, unknown_name

__all__ = ["LabelledScores", "encode_labels", "read_labelled_scores"]

LABEL_NAMES = ("label", "labels", "y", "y_true", "target", "targets", "class", "truth", "annotation")
SCORE_NAMES = ("score", "scores", "y_score", "probability", "prob", "proba", "prediction", "y_pred", "output")
_SUFFIXES = (".csv", ".tsv", ".txt", ".npy", ".npz")
_WORDS = {"true": 1.0, "false": 0.0}

Column = np.ndarray | list[str]


@dataclass(frozen=True)
class LabelledScores:
    """Rows with a label and a score.

    Attributes:
        scores: (N,) float64.
        labels: (N,) bool, True for the positive class.
        notes: what was made of the file, in sentences.
    """

    scores: Tensor
    labels: Tensor
    notes: list[str] = field(default_factory=list)


def read_labelled_scores(
    labels: str | os.PathLike[str],
    scores: str | os.PathLike[str] | None = None,
    *,
    label_column: str | None = None,
    score_column: str | None = None,
    positive: str | None = None,
) -> LabelledScores:
    """Read labels and scores.

    Args:
        labels: .csv (or .tsv, .txt), .npy or .npz with both, or with the labels alone.
        scores: the same kinds of files, with the scores, in the same order.
        label_column, score_column: names of columns or arrays; nothing takes the usual names, or the two there are.
        positive: the label of the positive class, as it stands in the file; nothing knows 0/1, false/true and -1/1.

    Raises:
        ArtefactError: a file is missing, empty, damaged or of another kind.
        InputError: columns that cannot be told apart, labels that are not two classes, a score that is no number.
    """
    notes: list[str] = []
    if scores is None:
        columns = _columns(Path(labels))
        label, score = _pick_both(columns, Path(labels), label_column, score_column, notes)
    else:
        label = _pick_one(_columns(Path(labels)), Path(labels), label_column, LABEL_NAMES, "--label-column")
        score = _pick_one(_columns(Path(scores)), Path(scores), score_column, SCORE_NAMES, "--score-column")
        if len(label) != len(score):
            mend = f"{labels} has {len(label)} rows and {scores} has {len(score)}; one score a label is needed"
            raise InputError("labels and scores", None, mend)
    numbers = _numbers(score, str(scores if scores is not None else labels))
    encoded, said = encode_labels(label, positive)
    notes += said
    return LabelledScores(torch.from_numpy(numbers), encoded, notes)


def encode_labels(values: Sequence[object] | np.ndarray, positive: str | None = None) -> tuple[Tensor, list[str]]:
    """Labels as booleans, True for the positive class, and what was understood.

    Args:
        values: (N,) numbers, booleans or texts.
        positive: the positive label; nothing knows 0/1, false/true and -1/1.

    Raises:
        InputError: a label is missing, there are not two classes, or it is not known which one is positive.

    >>> encode_labels(["-1", "1", "-1"])
    (tensor([False,  True, False]), ['labels are -1 and 1: 1 is the positive class'])
    """
    texts = np.asarray([str(value).strip() for value in values])
    known = sorted(set(texts.tolist()))
    missing = [text for text in known if text.lower() in ("", "nan", "none")]
    if missing:
        row = int(np.flatnonzero(texts == missing[0])[0]) + 1
        raise InputError("label", missing[0], f"row {row} has none; leave rows without a label out")
    if len(known) > 2 and positive is None:
        shown = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
        raise InputError("labels", shown, f"{len(known)} different values; name the positive one with --positive")
    if positive is not None:
        if positive not in known:
            same = [text for text in known if _value(text) is not None and _value(text) == _value(positive)]
            if not same:
                raise unknown_name("positive label", positive, known[:20])
            positive = same[0]
        encoded = torch.from_numpy(texts == positive)
        others = [text for text in known if text != positive]
        notes = [f"positive is {positive}; every other label ({len(others)} kinds) is negative"]
        notes = notes if len(others) > 1 else []
    else:
        meant = {text: _value(text) for text in known}
        if not set(meant.values()) <= {0.0, 1.0} and not set(meant.values()) <= {-1.0, 1.0}:
            mend = "name the positive one with --positive"
            raise InputError("labels", " and ".join(known), f"0/1, false/true and -1/1 are known; {mend}")
        encoded = torch.from_numpy(np.isin(texts, [text for text, value in meant.items() if value == 1.0]))
        notes = ["labels are -1 and 1: 1 is the positive class"] if -1.0 in meant.values() else []
    if encoded.all() or not encoded.any():
        raise InputError("labels", known[0] if len(known) == 1 else None, "both classes are needed")
    return encoded, notes


def _value(text: str) -> float | None:
    try:
        return _WORDS.get(text.lower()) if text.lower() in _WORDS else float(text)
    except ValueError:
        return None


def _numbers(column: Column, file: str) -> np.ndarray:
    try:
        numbers = np.asarray(column, dtype=np.float64)
    except ValueError:
        row = next(i for i, text in enumerate(column) if _value(str(text)) is None)
        raise InputError("score", str(column[row]), f"row {row + 1} of {file} is no number") from None
    if np.isnan(numbers).any():
        row = int(np.flatnonzero(np.isnan(numbers))[0])
        raise InputError("score", "NaN", f"row {row + 1} of {file} is no number; leave it out or mend the model")
    return numbers


def _columns(path: Path) -> dict[str, Column]:
    """name -> column; columns without a name are called 1, 2, ..."""
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError("file", str(path), f"tables are read from {', '.join(_SUFFIXES)}")
    if not path.is_file():
        raise ArtefactError(str(path), None, "no such file")
    if path.suffix.lower() in (".npy", ".npz"):
        return _arrays(path)
    return _csv(path)


def _arrays(path: Path) -> dict[str, Column]:
    try:
        loaded = np.load(path, allow_pickle=False)
        named = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArtefactError(str(path), None, f"cannot be read as numpy arrays ({error})") from None
    columns: dict[str, Column] = {}
    for name, array in named.items():
        if array.ndim == 2 and 1 <= array.shape[1] <= 2 and len(named) == 1:
            columns |= {str(i + 1): array[:, i] for i in range(array.shape[1])}
        elif array.ndim == 1:
            columns[name or "1"] = array
        else:
            mend = "labels and scores are one-dimensional, or two columns of one array"
            raise InputError(f"array {name}".strip() + f" of {path}", tuple(array.shape), mend)
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise InputError(str(path), sorted(lengths), "arrays of one length, at least 1, are needed")
    return columns


def _csv(path: Path) -> dict[str, Column]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head, body = file.readline().strip(), file.readline().strip()
            # A title may hold blanks; what separates columns stands in the rows too.
            marks = [mark for mark in (",", ";", "\t", " ") if mark in head and (mark in body or not body)]
            delimiter = marks[0] if marks else ","
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            rows = [row for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise ArtefactError(str(path), None, f"cannot be read as a table of text ({error})") from None
    if not rows:
        raise ArtefactError(str(path), None, "is empty")
    width = len(rows[0])
    ragged = next((i for i, row in enumerate(rows) if len(row) != width), None)
    if ragged is not None:
        mend = f"row {ragged + 1} has {len(rows[ragged])} columns, the first one {width}"
        raise ArtefactError(str(path), None, mend)
    names = [cell.strip() for cell in rows[0]]
    # A header holds no number; a first row of two labelled scores holds at least one.
    titled = all(_value(name) is None for name in names) and (
        len(set(names)) == width and all(names) and (width > 1 or _known(names[0]) or [names[0]] not in rows[1:])
    )
    data = rows[1:] if titled else rows
    if not data:
        raise ArtefactError(str(path), None, "has a header and no rows")
    titles = names if titled else [str(i + 1) for i in range(width)]
    return {title: [cell.strip() for cell in cells] for title, cells in zip(titles, zip(*data))}


def _known(name: str) -> bool:
    return name.lower() in LABEL_NAMES + SCORE_NAMES


def _named(columns: dict[str, Column], path: Path, wanted: str | None, usual: Sequence[str]) -> str | None:
    if wanted is not None:
        if wanted not in columns:
            raise unknown_name(f"column of {path}", wanted, columns)
        return wanted
    found = [name for name in columns if name.lower() in usual]
    return found[0] if len(found) == 1 else None


def _pick_one(columns: dict[str, Column], path: Path, wanted: str | None, usual: Sequence[str], option: str) -> Column:
    name = _named(columns, path, wanted, usual) or (next(iter(columns)) if len(columns) == 1 else None)
    if name is None:
        raise InputError(f"columns of {path}", ", ".join(columns), f"say which one with {option}")
    return columns[name]


def _pick_both(
    columns: dict[str, Column], path: Path, label: str | None, score: str | None, notes: list[str]
) -> tuple[Column, Column]:
    if len(columns) < 2:
        raise InputError(f"columns of {path}", ", ".join(columns), "labels and scores are two; give a second file")
    first, second = _named(columns, path, label, LABEL_NAMES), _named(columns, path, score, SCORE_NAMES)
    if len(columns) == 2 and (first is None or second is None):
        one, other = columns
        if first is None and second is None:
            # Without names, the column of two values holds the labels; where both do, the first one.
            kinds = [len(np.unique(np.asarray(columns[name]))) for name in (one, other)]
            first = other if kinds[1] <= 2 < kinds[0] else one
            notes.append(f"labels are column {first}, scores column {one if first == other else other}")
        first = first or (one if second == other else other)
        second = second or (one if first == other else other)
    if first is None or second is None or first == second:
        mend = "say which ones with --label-column and --score-column"
        raise InputError(f"columns of {path}", ", ".join(columns), mend)
    return columns[first], columns[second]
