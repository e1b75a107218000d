"""The fixed protocols."""

from __future__ import annotations

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.data import load_images
from scoreline.data.arrays import from_arrays
from scoreline.evaluate.protocols import FID_DIGITS_COUNT, FrechetProtocol, digits_net, features_of, pick_encoder
from scoreline.metrics import frechet_distance
from scoreline.nn.features import Pixels


def test_the_distance_is_that_of_the_features() -> None:
    test, train = (load_images("digits", split=split) for split in ("test", "train"))
    scorer = FrechetProtocol(Pixels((1, 8, 8)), test, split="test")
    x = train.batch(range(300)).image
    wanted = frechet_distance(test.batch(range(500)).image.flatten(1), x.flatten(1))
    assert scorer.distance(x.flatten(1)) == pytest.approx(wanted, rel=1e-6)
    score = scorer.score(x.flatten(1))
    assert (score.name, score.protocol.generated_count, score.protocol.reference_count) == ("fd-pixel", 300, 500)
    other = FrechetProtocol(Pixels((1, 8, 8)), train, split="train").score(x.flatten(1))
    with pytest.raises(InputError):
        assert score < other


def test_fid_digits_is_the_name_of_one_protocol_only() -> None:
    test = load_images("digits", split="test")
    fixed = FrechetProtocol(digits_net(), test, split="test")
    assert fixed.name(FID_DIGITS_COUNT) == "fid@digits"
    assert FID_DIGITS_COUNT == 10_000
    assert fixed.name(FID_DIGITS_COUNT - 1) == "fd-digits"
    assert FrechetProtocol(digits_net(), load_images("digits", split="train")).name(FID_DIGITS_COUNT) == "fd-digits"
    assert FrechetProtocol(Pixels((1, 8, 8)), test, split="test").name(FID_DIGITS_COUNT) == "fd-pixel"


def test_the_floor_is_that_of_real_images_and_below_noise() -> None:
    test, train = (load_images("digits", split=split) for split in ("test", "train"))
    scorer = FrechetProtocol(Pixels((1, 8, 8)), test, split="test")
    floor = scorer.floor(train, 2000)
    assert floor == scorer.floor(train, 2000)
    assert floor != scorer.floor(train, 2000, seed=1)
    assert 0 < floor < scorer.floor(train, 200) < scorer.distance(torch.rand(500, 64) * 2 - 1)


def test_features_do_not_depend_on_the_chunks() -> None:
    x = load_images("digits", split="test").batch(range(20)).image
    net = digits_net()
    torch.testing.assert_close(features_of(net, x, batch_size=7), features_of(net, x), atol=1e-5, rtol=1e-5)


def test_the_network_that_fits() -> None:
    digits = load_images("digits", split="test")
    assert pick_encoder("auto", digits) is digits_net()
    assert isinstance(pick_encoder("pixels", digits), Pixels)
    large = from_arrays(torch.zeros(4, 3, 16, 16))
    assert pick_encoder("pixels", large).dim == 768
    with pytest.raises(InputError, match="use pixels"):
        pick_encoder("digits", large)
    with pytest.raises(InputError, match="did you mean 'pixels'"):
        pick_encoder("pixel", digits)
