"""Captions made from labels, for text-conditional models where no real captions are at hand.

Each image gets one of a few templates with its class's name in it, by (seed, index) and nothing else, so that it has
the same caption in any batch, subset and run. Such sets say so: `images.captions` is "made from labels", which
`describe()` and the cards of models trained on them repeat. An image without a label gets an empty caption: none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import derive
from scoreline.data.images import Images

__all__ = ["MADE", "TEMPLATES", "by_prompt", "captioned", "captions_for", "classes_of", "replaced"]

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


def classes_of(images: Images, prompts: Sequence[str]) -> list[int]:
    """The class that most images with a caption have, for each of some captions.

    Args:
        images: with captions and one label each.
        prompts: the captions.

    Raises:
        InputError: labels or captions are missing, or no labelled image has one of the captions.
    """
    captions, labels = images.extras.get("caption"), images.labels
    if captions is None or labels is None or labels.ndim != 1 or images.num_classes is None:
        raise InputError("data", images.name, "needs captions and one label an image, to say what captions show")
    told = by_prompt(images, prompts).labels
    assert told is not None
    votes = np.zeros((len(prompts), images.num_classes), dtype=np.int64)
    known = (told >= 0) & (labels >= 0)
    np.add.at(votes, (told[known], labels[known]), 1)
    empty = np.flatnonzero(votes.sum(1) == 0)
    if len(empty):
        raise InputError("caption", prompts[int(empty[0])], f"no labelled image of {images.name} has it")
    return [int(k) for k in votes.argmax(1)]


def by_prompt(images: Images, prompts: Sequence[str]) -> Images:
    """The same images with the number of their caption among `prompts` as label, -1 where it is none of them.

    Args:
        images: with captions.
        prompts: texts by number, such as a model knows them.

    Raises:
        InputError: there are no captions, or all are others.
    """
    captions = images.extras.get("caption")
    if captions is None:
        mend = f"has no captions, and the model knows {len(prompts)} by number; make them: captions: digits"
        raise InputError("data", images.name, mend)
    numbers = {text: number for number, text in enumerate(prompts)}
    labels = np.array([numbers.get(text, -1) for text in captions.tolist()], dtype=np.int64)
    if not (labels >= 0).any():
        raise InputError("data", images.name, f"has none of the model's captions, such as {prompts[0]!r}")
    return images.relabel(labels, num_classes=len(prompts), class_names=list(prompts))


def replaced(text: str, concept: str, other: str) -> str | None:
    """The text with a concept, a whole word or several, exchanged for another one; None where it does not name it.

    >>> replaced("The digit zero", "zero", "one"), replaced("zeroes", "zero", "one")
    ('The digit one', None)
    """
    pattern = re.compile(rf"(?<!\w){re.escape(concept)}(?!\w)", re.IGNORECASE)
    return pattern.sub(lambda _: other, text) if pattern.search(text) else None
