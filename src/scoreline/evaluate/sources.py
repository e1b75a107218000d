"""What a person names as a set to be scored: images, stored features, or statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scoreline.core.errors import InputError
from scoreline.data import load_images
from scoreline.data.images import Images
from scoreline.data.pixels import OnBadImage
from scoreline.evaluate.rows import FeatureFile, open_features
from scoreline.evaluate.statistics import Statistics, read_statistics

__all__ = ["Source", "check_alike", "open_sources"]


@dataclass(frozen=True)
class Source:
    """One set: exactly one of images, features and statistics is there.

    Args:
        role: "real", "generated" or "compared".
        text: what the user typed.
        split: of the data set, "" for none.
        grey: whether grey images were given three channels.
    """

    role: str
    text: str
    split: str = ""
    images: Images | None = None
    features: FeatureFile | None = None
    statistics: Statistics | None = None
    grey: bool = False

    @property
    def count(self) -> int | None:
        """How many images it stands for, None where the statistics do not say."""
        if self.images is not None:
            return len(self.images)
        if self.features is not None:
            return len(self.features)
        return None if self.statistics is None else self.statistics.count

    @property
    def dim(self) -> int | None:
        """Length of a feature vector, None for images."""
        if self.features is not None:
            return self.features.dim
        return None if self.statistics is None else len(self.statistics.mean)

    @property
    def kind(self) -> str:
        """Which of the three it is."""
        return "images" if self.images is not None else "features" if self.features is not None else "statistics"


def open_sources(
    named: Mapping[str, tuple[str, str | None]],
    folder: Path,
    *,
    size: int | None,
    channels: int | None = None,
    on_bad_image: OnBadImage = "error",
) -> dict[str, Source]:
    """Open every set.

    Args:
        named: role -> (what was typed, split).
        folder: for copies of packed feature arrays.
        size, channels, on_bad_image: as for `load_images`.

    Raises:
        InputError: unknown names, options that do not fit.
        ArtefactError: missing or damaged files.
    """
    opened: dict[str, Source] = {}
    for role, (text, split) in named.items():
        statistics = read_statistics(text)
        features = None if statistics is not None else open_features(text, folder)
        if statistics is not None or features is not None:
            if split is not None:
                raise InputError(f"{role}_split", split, f"{text} holds no images, and so has no splits")
            opened[role] = Source(role, text, features=features, statistics=statistics)
            continue
        if text == "digits" and split is None and role == "real":
            split = "test"
        images = load_images(text, split=split, size=size, channels=channels, on_bad_image=on_bad_image)
        opened[role] = Source(role, text, split or "", images=images)
    return opened


def check_alike(opened: Mapping[str, Source]) -> None:
    """Refuse sets that cannot be compared: images of unlike shapes, features or statistics of unlike networks.

    Raises:
        InputError: they differ; both values are named.
    """
    shapes = {role: s.images.shape for role, s in opened.items() if s.images is not None}
    if len(set(shapes.values())) > 1:
        listed = " and ".join(f"{role} {'x'.join(map(str, shape))}" for role, shape in shapes.items())
        raise InputError("image shapes", listed, "must be alike; give --size, or convert one of them")
    dims = {role: s.dim for role, s in opened.items() if s.dim is not None}
    if len(set(dims.values())) > 1:
        listed = ", ".join(f"{role} {dim}" for role, dim in dims.items())
        raise InputError("features", listed, "all need the same number of features: make them with the same network")
    said: dict[str, tuple[str, str]] = {}
    for role, source in opened.items():
        for name, value in ((source.statistics.known or {}) if source.statistics is not None else {}).items():
            other, wanted = said.setdefault(name, (role, value))
            if value != wanted:
                mend = f"the statistics are of different {name}; make both with the same network and options"
                raise InputError("statistics", f"{other} {wanted}, {role} {value}", mend)
