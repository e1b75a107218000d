"""One function that opens every kind of data set; no source is guessed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, overload

from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.data.arrays import from_arrays, load_arrays
from scoreline.data.captions import captioned
from scoreline.data.digits import load_digits
from scoreline.data.folder import SUFFIXES, load_folder
from scoreline.data.images import Images
from scoreline.data.parquet import load_table
from scoreline.data.pixels import OnBadImage, check_options
from scoreline.data.stream import ImageStream

__all__ = ["load_images", "NAMES"]

NAMES = {"digits": "built in", "cifar10": "hf:uoft-cs/cifar10"}
"""Names that stand for a data set, and where it comes from."""

_FILES = (".npz", ".npy", ".parquet")


@overload
def load_images(
    source: str | os.PathLike[str], *, split: str | None = ..., config: str | None = ..., size: int | None = ...,
    channels: int | None = ..., on_bad_image: OnBadImage = ..., image_column: str | None = ...,
    label_column: str | None = ..., caption_column: str | None = ..., captions: str | None = ...,
    streaming: Literal[False] = ...,
) -> Images: ...  # fmt: skip
@overload
def load_images(
    source: str | os.PathLike[str], *, split: str | None = ..., config: str | None = ..., size: int | None = ...,
    channels: int | None = ..., on_bad_image: OnBadImage = ..., image_column: str | None = ...,
    label_column: str | None = ..., caption_column: str | None = ..., captions: str | None = ..., streaming: bool,
) -> Images | ImageStream: ...  # fmt: skip
def load_images(
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
    captions: str | None = None,
    streaming: bool = False,
) -> Images | ImageStream:
    """Open a data set by name or path.

    What looks like a path (contains / or \\, starts with . or ~, or ends with a known suffix) is one: a folder of
    pictures, or a .npz, .npy or .parquet file. `hf:owner/name` is a data set of the hub. All else must be a known name:
    digits, cifar10.

    Args:
        source: name, path or hub id.
        split: "train", "test", ...; None reads all of a source without splits (and all digits).
        config: configuration of a hub data set.
        size: resize the shorter side to this (antialiased bicubic) and cut the middle square.
        channels: 1 for grey, 3 for RGB, None to see from the images.
        on_bad_image: "error", or "skip" to leave bad pictures out and list them in `.skipped`.
        image_column: column of pictures in a parquet file or hub data set; None looks for img, then image.
        label_column: column of labels; None takes `label` if there is one.
        caption_column: column of captions; None reads none.
        captions: make captions from the labels by these templates, "digits" or "photos", and mark them as made
            (:mod:`scoreline.data.captions`); None makes none.
        streaming: read a parquet file or hub data set in order, without random access.

    Raises:
        InputError: unknown name, or an option that does not fit the source.
        ArtefactError: the source is missing, broken or unreachable.

    >>> len(load_images("digits", split="train"))
    1297
    """
    if captions is not None:
        if streaming:
            raise InputError("captions", captions, "are not made for a stream; leave streaming out")
        images = load_images(
            source, split=split, config=config, size=size, channels=channels, on_bad_image=on_bad_image,
            image_column=image_column, label_column=label_column, caption_column=caption_column,
        )  # fmt: skip
        return captioned(images, captions)
    check_options(size, channels, on_bad_image)
    text = os.fspath(source)
    columns = {"image_column": image_column, "label_column": label_column, "caption_column": caption_column}
    if isinstance(source, str) and (text.startswith("hf:") or text == "cifar10"):
        return load_table(
            NAMES["cifar10"] if text == "cifar10" else text, split=split, config=config, size=size, channels=channels,
            on_bad_image=on_bad_image, streaming=streaming, **columns,
        )  # fmt: skip
    if isinstance(source, str) and not _looks_like_path(text):
        if text != "digits":
            raise _unknown(text)
        _refuse_table_options(text, config, streaming, columns)
        return _digits(split, size, channels)

    path = Path(text).expanduser()
    suffix = path.suffix.lower()
    if suffix == ".parquet" and not path.is_dir():
        return load_table(
            path, split=split, config=config, size=size, channels=channels, on_bad_image=on_bad_image,
            streaming=streaming, **columns,
        )  # fmt: skip
    _refuse_table_options(text, config, streaming, columns)
    if suffix in (".npy", ".npz") and not path.is_dir():
        if split is not None:
            raise InputError("split", split, f"{path.name} is one file without splits; leave split out")
        return load_arrays(path, size=size, channels=channels)
    if path.is_file():
        raise InputError("data set", text, f"is no {', '.join(_FILES)} file; pictures are read from folders")
    if not path.exists():
        raise ArtefactError(f"data set {text}", None, "no such file or folder")
    return load_folder(path, split=split, size=size, channels=channels, on_bad_image=on_bad_image)


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.startswith((".", "~")) or text.lower().endswith((*_FILES, *SUFFIXES))


def _unknown(text: str) -> InputError:
    error = unknown_name("data set", text, NAMES)
    extra = "; hub data sets are written hf:owner/name, folders ./name"
    if Path(text).is_dir():
        extra = f"; for the folder of that name write ./{text}"
    return InputError(error.thing, error.value, error.mend + extra)


def _digits(split: str | None, size: int | None, channels: int | None) -> Images:
    digits = load_digits(split)
    if size in (None, 8) and channels in (None, 1):
        return digits
    pixels = digits.batch(range(len(digits))).image
    other = from_arrays(pixels, digits.labels, name=digits.name, num_classes=10, size=size, channels=channels)
    other.index = digits.index
    return other


def _refuse_table_options(text: str, config: str | None, streaming: bool, columns: dict[str, str | None]) -> None:
    given = {"config": config, "streaming": streaming or None, **columns}
    for option, value in given.items():
        if value is not None:
            raise InputError(option, value, f"belongs to parquet files and hub data sets, which {text} is not")
