"""A folder of pictures: one subfolder a class, or all pictures without labels."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data.images import Images
from scoreline.data.pixels import OnBadImage, check_options, open_records

__all__ = ["load_folder", "SUFFIXES", "SPLITS"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
SPLITS = ("train", "test", "val", "valid", "validation")


class FileRecords:
    """The files of a folder, by their paths inside it."""

    def __init__(self, root: Path, paths: list[str]) -> None:
        self.root, self.paths = root, paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        return str(self.root / self.paths[row])

    def key(self, row: int) -> bytes:
        # Some file systems store accents in another Unicode form; the fingerprint must not depend on that.
        return unicodedata.normalize("NFC", self.paths[row]).encode("utf-8", "surrogateescape")

    def data(self, row: int) -> bytes:
        try:
            return (self.root / self.paths[row]).read_bytes()
        except OSError as error:
            raise ArtefactError(f"image {self.name(row)}", None, f"cannot be read: {error.strerror}") from error


def load_folder(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    on_bad_image: OnBadImage = "error",
) -> Images:
    """Read a folder of PNG, JPEG, BMP, WebP, TIFF and GIF files, in the order of their paths.

    Subfolders that hold pictures are the classes, in the order of their names; a folder without such subfolders has no
    labels. Hidden files and other file types are passed over. A folder as `scoreline sample` writes it (numbered files
    in folders of a thousand) has no labels, and the numbers are the indices.

    Args:
        path: the folder.
        split: read the subfolder of this name ("train", say); classes are those of all split folders together.
        size: resize the shorter side to this (antialiased bicubic) and cut the middle square; None takes the pictures'
            own size, which must agree.
        channels: 1, 3, or None for 1 where every picture is grey and 3 otherwise.
        on_bad_image: "error", or "skip" to leave bad pictures out and list them in `.skipped`.

    Raises:
        ArtefactError: no such folder, no pictures in it, or a bad picture.
        InputError: sizes differ and no `size` was given, or it is unclear what the subfolders are.
    """
    check_options(size, channels, on_bad_image)
    top = Path(path)
    if not top.is_dir():
        raise ArtefactError(f"folder {top}", None, "no such folder" if not top.exists() else "is a file, not a folder")
    root, name = (top, top.name) if split is None else (top / split, f"{top.name}:{split}")
    folders = _subfolders(top)
    if split is not None and split not in folders:
        raise InputError("split", split, f"{top} has no such subfolder; it has: {', '.join(folders) or 'none'}")
    if split is None and folders and all(folder in SPLITS for folder in folders):
        raise InputError("split", None, f"{top} holds {', '.join(folders)}; choose one with split= (--split)")

    paths = _pictures(root)
    if not paths:
        raise ArtefactError(f"folder {root}", None, f"holds no pictures ({', '.join(SUFFIXES)})")
    records = FileRecords(root, paths)
    owners = [path.split("/")[0] if "/" in path else "" for path in paths]
    numbers = _sample_numbers(paths)
    classes: list[str] | None = None
    if numbers is None and any(owners):
        if not all(owners):
            loose = paths[owners.index("")]
            raise InputError(
                f"folder {root}", None, f"holds pictures ({loose}) beside class folders; move them into one"
            )
        # A class may be missing from one split; its neighbours must keep their numbers.
        siblings = [top / other for other in folders if other in SPLITS] if split is not None else []
        elsewhere = (name for place in siblings for name in _subfolders(place) if _pictures(place / name))
        classes = sorted({*owners, *elsewhere})
    pixels, skipped = open_records(
        records, what=f"folder {root}", size=size, channels=channels, on_bad_image=on_bad_image
    )
    return Images(
        pixels,
        name=name,
        labels=None if classes is None else [classes.index(owners[row]) for row in pixels.rows],
        class_names=classes,
        index=pixels.rows if numbers is None else np.array(numbers)[pixels.rows],
        skipped=skipped,
    )


def _subfolders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures(root: Path) -> list[str]:
    """Paths inside `root` with forward slashes, sorted."""
    found = []
    for here, folders, files in os.walk(root):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for file in files:
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                found.append(Path(here, file).relative_to(root).as_posix())
    return sorted(found, key=lambda path: path.split("/"))


def _sample_numbers(paths: list[str]) -> list[int] | None:
    """The numbers of files like 003000/003141.png or 00003/003141.png, or None if any path is no such one."""
    numbers = []
    for path in paths:
        folder, _, file = path.rpartition("/")
        stem = file.rsplit(".", 1)[0]
        if not (folder.isdecimal() and stem.isdecimal()) or len(folder) < 3:
            return None
        if int(folder) not in (int(stem) // 1000, int(stem) // 1000 * 1000):
            return None
        numbers.append(int(stem))
    return numbers
