"""Captions made from labels, for text-conditional models where no real captions are at hand.

Each image gets one of a few templates with its class's name in it, by (seed, index) and nothing else, so that it has
the same caption in any batch, subset and run. Such sets say so: `images.captions` is "made from labels", which
`describe()` and the cards of models trained on them repeat. An image without a label gets an empty caption: none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import derive
from scoreline.data.images import Images

__all__ = ["MADE", "TEMPLATES", "captioned", "captions_for"]

MADE = "made from labels"

TEMPLATES: dict[str, tuple[str, ...]] = {
    "digits": (
        "a handwritten {name}",
        "the digit {name}",
        "a picture of the number {name}",
        "{name}, written by hand",
        "a small grey {name}",
    ),
    "photos": ("a photo of {a} {name}", "a picture of {a} {name}", "{a} {name}", "an image that shows {a} {name}"),
}
"""Templates by name: {name} is the class, {a} its article."""

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def captions_for(
    labels: Sequence[int] | np.ndarray,
    index: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    *,
    templates: str = "digits",
    seed: int = 0,
) -> list[str]:
    """One caption an image, from its class and its number.

    Args:
        labels: (N,) classes, -1 where missing; their captions are empty.
        index: (N,) numbers of the images.
        class_names: one name a class; the names 0 to 9 are written out.
        templates: of `TEMPLATES`.
        seed: another choice of templates.

    Raises:
        InputError: unknown templates.

    >>> captions_for([3, -1], [0, 1], [str(k) for k in range(10)])[1]
    ''
    """
    if templates not in TEMPLATES:
        raise unknown_name("captions", templates, TEMPLATES)
    known = TEMPLATES[templates]
    found = []
    for label, number in zip(labels, index):
        if label < 0:
            found.append("")
            continue
        name = class_names[int(label)]
        name = _WORDS[int(name)] if name in "0123456789" and len(name) == 1 else name.replace("_", " ")
        article = "an" if name[:1].lower() in "aeiou" else "a"
        found.append(known[derive(seed, "caption", int(number)) % len(known)].format(name=name, a=article))
    return found


def captioned(images: Images, templates: str = "digits", *, seed: int = 0) -> Images:
    """The same images with captions made from their labels, and marked so.

    Args:
        images: with one label an image.
        templates: of `TEMPLATES`.
        seed: another choice of templates.

    Raises:
        InputError: the images have no labels or several, or captions already; or unknown templates.
    """
    if images.labels is None or images.labels.ndim != 1 or images.class_names is None:
        raise InputError("captions", templates, "are made from labels; give images with one label each")
    if "caption" in images.extras:
        raise InputError("captions", templates, f"{images.name} has captions of its own")
    made = captions_for(images.labels, images.index, images.class_names, templates=templates, seed=seed)
    return images.with_captions(made, MADE)
