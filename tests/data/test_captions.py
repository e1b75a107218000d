"""Captions made from labels: one an image, the same everywhere, and marked as made."""

from __future__ import annotations

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.noise import derive
from scoreline.data import from_arrays, load_images
from scoreline.data.captions import MADE, TEMPLATES, by_prompt, captioned, captions_for, classes_of, replaced

DIGITS = [str(k) for k in range(10)]


def test_a_caption_follows_from_seed_and_number() -> None:
    made = captions_for([3, 3, 0, -1], [7, 8, 9, 10], DIGITS)
    known = TEMPLATES["digits"]
    assert made[0] == known[derive(0, "caption", 7) % len(known)].format(name="three")
    assert "zero" in made[2]
    assert made[3] == ""
    assert len(set(captions_for([3] * 100, range(100), DIGITS))) == len(known)
    assert captions_for([3] * 100, range(100), DIGITS, seed=1) != captions_for([3] * 100, range(100), DIGITS)
    photos = captions_for([0, 1], [0, 1], ["airplane", "polar_bear"], templates="photos")
    assert "an airplane" in photos[0]
    assert "a polar bear" in photos[1]


def test_images_keep_their_captions_and_say_where_they_come_from() -> None:
    plain, images = load_images("digits", split="test"), load_images("digits", split="test", captions="digits")
    assert plain.captions is None
    assert "captions" not in plain.describe()
    assert images.captions == images.subset([4]).captions == images.describe()["captions"] == MADE
    batch = images.subset([30, 5]).batch([1, 0])
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    assert batch.label is not None
    for caption, label in zip(batch.extras["caption"], batch.label.tolist()):
        assert words[label] in caption
    assert batch.extras["caption"] == images.batch([5, 30]).extras["caption"]
    assert images.fingerprint != plain.fingerprint
    assert torch.equal(images.batch([3]).image, plain.batch([3]).image)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load_images("digits", captions="digit")
    with pytest.raises(InputError, match="one label each"):
        captioned(from_arrays(torch.zeros(2, 1, 4, 4).numpy()))
    with pytest.raises(InputError, match="captions of its own"):
        captioned(load_images("digits", captions="digits"))


def test_captions_by_number_and_what_they_show() -> None:
    images = load_images("digits", split="test", captions="digits")
    prompts = ["the digit four", "a small grey one"]
    told = by_prompt(images, prompts)
    assert (told.num_classes, told.class_names) == (2, prompts)
    assert told.labels is not None
    for caption, label in zip(told.extras["caption"], told.labels):
        assert (prompts[label] if label >= 0 else None) == (caption if caption in prompts else None)
    assert classes_of(images, prompts) == [4, 1]
    with pytest.raises(InputError, match="no labelled image"):
        classes_of(images, [*prompts, "the digit eleven"])
    with pytest.raises(InputError, match="none of the model's captions"):
        by_prompt(images, ["a cat"])
    with pytest.raises(InputError, match="has no captions"):
        by_prompt(load_images("digits", split="test"), prompts)
    with pytest.raises(InputError, match="needs captions"):
        classes_of(load_images("digits", split="test"), prompts)


def test_a_concept_is_replaced_as_a_whole_word() -> None:
    assert replaced("One, written by hand", "one", "two") == "two, written by hand"
    assert replaced("a lonely one", "one", r"\1") == r"a lonely \1"
    assert replaced("a lonely phone", "one", "two") is None
    assert replaced("a (red) car", "(red)", "blue") == "a blue car"
