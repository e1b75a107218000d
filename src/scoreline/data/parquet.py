"""Parquet files and hub data sets (which are parquet files too), both through the `datasets` library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.data.images import Images
from scoreline.data.pixels import OnBadImage, check_options, open_records
from scoreline.data.stream import Encoded, ImageStream

__all__ = ["load_table"]

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMN = "label"


class TableRecords:
    """Rows of a table with one column of encoded pictures."""

    def __init__(self, table: Any, column: str, what: str) -> None:
        self.table, self.column, self.what = table, column, what

    def __len__(self) -> int:
        return len(self.table)

    def name(self, row: int) -> str:
        return f"{row} of {self.what}"

    def key(self, row: int) -> bytes:
        return b""

    def data(self, row: int) -> bytes:
        return _picture_bytes(self.table[row][self.column], self.name(row))


@overload
def load_table(
    source: str | os.PathLike[str], *, split: str | None = ..., config: str | None = ..., size: int | None = ...,
    channels: int | None = ..., on_bad_image: OnBadImage = ..., image_column: str | None = ...,
    label_column: str | None = ..., caption_column: str | None = ..., streaming: Literal[False] = ...,
) -> Images: ...  # fmt: skip
@overload
def load_table(
    source: str | os.PathLike[str], *, split: str | None = ..., config: str | None = ..., size: int | None = ...,
    channels: int | None = ..., on_bad_image: OnBadImage = ..., image_column: str | None = ...,
    label_column: str | None = ..., caption_column: str | None = ..., streaming: bool,
) -> Images | ImageStream: ...  # fmt: skip
def load_table(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    config: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    on_bad_image: OnBadImage = "error",
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    streaming: bool = False,
) -> Images | ImageStream:
    """Read a local parquet file, or a data set of the hub.

    Args:
        source: path of a .parquet file, or "hf:owner/name".
        split: split of a hub data set; needed where it has several.
        config: configuration of a hub data set; needed where it has several.
        size: resize the shorter side to this and cut the middle square.
        channels: 1, 3, or None for 1 where every picture is grey and 3 otherwise.
        on_bad_image: "error", or "skip" to leave bad pictures out and list them in `.skipped`.
        image_column: column of pictures (bytes, or bytes and path); None looks for img, then image.
        label_column: column of labels (integers, class labels or text); None takes `label` if there is one.
        caption_column: column of texts for `extras["caption"]`; None reads none.
        streaming: read in order, without keeping the data on disk.

    Raises:
        ArtefactError: missing, broken or unreachable source, or a bad picture.
        InputError: a column, split or configuration that does not exist or must be chosen; sizes differ.
    """
    check_options(size, channels, on_bad_image)
    hub = str(source).startswith("hf:")
    what = str(source) if hub else Path(source).name
    if hub:
        table = _open_hub(str(source)[3:], split, config, streaming)
        what = f"{what}:{split}" if split else what
    else:
        if split is not None or config is not None:
            raise InputError("split", split or config, f"{what} is one file without splits; leave split and config out")
        table = _open_file(Path(source), streaming)

    import datasets

    features = table.features
    if features is None:
        raise ArtefactError(what, None, "does not say which columns it has; use it without streaming")
    image_column = _image_column(features, image_column, what)
    label_column = _known_column(features, label_column, what) or (_LABEL_COLUMN if _LABEL_COLUMN in features else None)
    caption_column = _known_column(features, caption_column, what)
    if isinstance(features[image_column], datasets.Image):
        table = table.cast_column(image_column, datasets.Image(decode=False))
    names = features[label_column].names if label_column and hasattr(features[label_column], "names") else None

    if streaming:
        if caption_column is not None:
            raise InputError("caption_column", caption_column, "streams carry no captions; use it without streaming")
        if label_column is not None and names is None:
            raise InputError("label column", label_column, f"{what} does not name its classes, so that their number is "
                             "unknown before the end; use it without streaming")  # fmt: skip
        return ImageStream(
            _Rows(table, image_column, label_column, what),
            name=what,
            num_classes=None if names is None else len(names),
            class_names=names,
            size=size,
            channels=channels,
            on_bad_image=on_bad_image,
        )

    records = TableRecords(table.select_columns([image_column]), image_column, what)
    if len(records) == 0:
        raise ArtefactError(what, None, "holds no rows")
    labels = None
    if label_column is not None:
        labels, names = _labels(list(table.select_columns([label_column])[label_column]), names, what, label_column)
    extras = {}
    if caption_column is not None:
        captions = list(table.select_columns([caption_column])[caption_column])
        extras["caption"] = ["" if text is None else str(text) for text in captions]
    pixels, skipped = open_records(records, what=what, size=size, channels=channels, on_bad_image=on_bad_image)
    return Images(
        pixels,
        name=what,
        labels=None if labels is None else labels[pixels.rows],
        class_names=names,
        index=pixels.rows,
        extras={name: np.array(value, dtype=object)[pixels.rows] for name, value in extras.items()},
        skipped=skipped,
    )


class _Rows:
    """One pass over a streamed table for each call; a class, so that it can be sent to worker processes."""

    def __init__(self, table: Any, image_column: str, label_column: str | None, what: str) -> None:
        self.table, self.image_column, self.label_column, self.what = table, image_column, label_column, what

    def __call__(self) -> Iterator[Encoded]:
        for position, row in enumerate(self.table):
            label = row[self.label_column] if self.label_column else None
            data = _picture_bytes(row[self.image_column], f"{position} of {self.what}")
            yield data, -1 if label is None else int(label)


def _open_file(path: Path, streaming: bool) -> Any:
    if not path.is_file():
        raise ArtefactError(str(path), None, "no such file")
    import datasets
    from pyarrow.parquet import read_metadata

    try:
        if read_metadata(path).num_rows:
            with _quiet():
                return datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=streaming)
    except Exception as error:  # pyarrow and datasets raise many kinds
        raise ArtefactError(str(path), None, f"is no parquet file that can be read ({_root_cause(error)})") from error
    raise ArtefactError(str(path), None, "holds no rows")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars for local files, and no log lines beside the error."""
    import datasets

    level, hidden = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not hidden:
            datasets.enable_progress_bars()


def _open_hub(repository: str, split: str | None, config: str | None, streaming: bool) -> Any:
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise InputError("hub data set", f"hf:{repository}", "is written hf:owner/name")
    import datasets

    thing = f"hub data set hf:{repository}"
    try:
        if split is None:
            splits = datasets.get_dataset_split_names(repository, config)
            if len(splits) != 1:
                raise InputError("split", None, f"hf:{repository} has {', '.join(splits)}; choose one with split=")
            split = splits[0]
        return datasets.load_dataset(repository, config, split=split, streaming=streaming)
    except InputError:
        raise
    except ValueError as error:  # how `datasets` reports unknown splits and configurations
        raise InputError(thing, None, _first_line(error)) from error
    except Exception as error:  # http, file system and parsing errors of several libraries
        raise ArtefactError(
            thing, None, f"cannot be read ({_root_cause(error)}); is the name right and the machine online? A parquet "
            "file or a folder of the same images works offline"
        ) from error  # fmt: skip


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {_first_line(error)}"


def _image_column(features: Any, column: str | None, what: str) -> str:
    if column is not None:
        return str(_known_column(features, column, what))
    found = next((name for name in _IMAGE_COLUMNS if name in features), None)
    if found is None:
        raise InputError(f"columns of {what}", sorted(features), "none is called img or image; give image_column=")
    return found


def _known_column(features: Any, column: str | None, what: str) -> str | None:
    if column is not None and column not in features:
        raise unknown_name(f"column of {what}", column, features)
    return column


def _picture_bytes(value: Any, name: str) -> bytes:
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        if data is None and path and os.path.isfile(path):
            return Path(path).read_bytes()
        value = data
    if value is None:
        return b""  # a missing picture is a bad picture, and is named or skipped like one
    if not isinstance(value, bytes):
        kind = type(value).__name__
        raise InputError(f"image {name}", None, f"is stored as {kind}; encoded pictures (bytes) are needed")
    return value


def _labels(values: list[Any], names: list[str] | None, what: str, column: str) -> tuple[np.ndarray, list[str] | None]:
    """Labels as int64, -1 where missing; text becomes the sorted list of classes."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, str) for value in known):
        names = sorted(set(known))
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([-1 if value is None else numbers[value] for value in values], dtype=np.int64), names
    if all(isinstance(value, int) for value in known):
        return np.array([-1 if value is None else int(value) for value in values], dtype=np.int64), names
    kind = type(known[0]).__name__
    raise InputError(f"label column of {what}", column, f"holds {kind}; integers, class labels or text are needed")
