"""Paired images: the stand-in sensor by its formula, folders of two sides, what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data import from_arrays, load_images
from scoreline.data.paired import Paired, load_paired, sar_like


def picture(path: Path, value: int, mode: str = "L", side: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side, side) if mode == "L" else (side, side, 3)
    Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(path)


def test_the_stand_in_is_an_edge_map_under_speckle():
    # A ramp of 0.5 a pixel in [-1, 1] is 0.25 in [0, 1]; the border is halved by replication.
    ramp = torch.linspace(-1, 1, 5, dtype=torch.float64).view(1, 1, 1, 5).expand(4000, 1, 5, 5)
    s = sar_like(ramp, range(4000))
    strength = (((s + 1) / 2 * math.log1p(10)).exp() - 1) / 10
    inside = strength[:, 0, :, 1:-1]
    assert inside.mean() == pytest.approx(0.25, rel=0.01)
    assert strength[:, 0, :, 0].mean() == pytest.approx(0.125, rel=0.02)
    # Gamma(4, 1/4): the relative variance is 1/4, the relative skewness 2/sqrt(4).
    assert inside.var() / inside.mean() ** 2 == pytest.approx(0.25, rel=0.05)
    centred = (inside - inside.mean()) / inside.std()
    assert (centred**3).mean() == pytest.approx(1.0, rel=0.15)
    assert sar_like(ramp[:1], [0], looks=400).std() < s[:1].std()
    assert torch.equal(sar_like(ramp[:2], [7, 3])[1:], sar_like(ramp[:1], [3]))
    colour = torch.stack([torch.ones(4, 4), torch.zeros(4, 4), torch.zeros(4, 4)])[None]
    assert (sar_like(colour, [0]) == -1).all()


def test_a_set_with_a_sensor_says_that_it_is_a_stand_in():
    test = load_paired("digits", split="test", paired="sar-like")
    batch = test.batch([4, 2])
    assert torch.equal(batch.image, load_images("digits", split="test").batch([4, 2]).image)
    assert torch.equal(batch.extras["source"], sar_like(batch.image, batch.index))
    assert "stand-in" in repr(test)
    assert "stand-in" in test.name
    assert test.fingerprint != load_images("digits", split="test").fingerprint
    part = test.subset([4, 2])
    assert torch.equal(part.batch([1]).extras["source"], batch.extras["source"][1:])
    assert part.num_classes == 10


def test_folders_of_two_sides(tmp_path: Path):
    for k in (3, 1, 2):
        picture(tmp_path / "plain/s1/deep" / f"p{k}.png", 10 * k)
        picture(tmp_path / "plain/s2/deep" / f"p{k}.png", 50 * k, "RGB")
        picture(tmp_path / "sen/ROIs1158_spring/s1_12" / f"ROIs1158_spring_s1_12_p{k}.png", 10 * k)
        picture(tmp_path / "sen/ROIs1158_spring/s2_12" / f"ROIs1158_spring_s2_12_p{k}.png", 50 * k, "RGB")
    for name in ("plain", "sen"):
        pairs = load_paired(tmp_path / name, paired="s1,s2")
        batch = pairs.batch(range(3))
        assert (pairs.shape, pairs.source_shape) == ((3, 4, 4), (1, 4, 4))
        assert ((batch.extras["source"][:, 0, 0, 0] + 1) * 127.5).round().tolist() == [10, 20, 30]
        assert ((batch.image[:, 0, 0, 0] + 1) * 127.5).round().tolist() == [50, 100, 150]
    both = load_paired(tmp_path / "sen", paired="s1,s2", size=8, source_channels=3)
    assert (both.shape, both.source_shape) == ((3, 8, 8), (3, 8, 8))
    back = load_paired(tmp_path / "sen", paired="s2,s1")
    assert (back.shape, back.source_shape) == ((1, 4, 4), (3, 4, 4))
    (tmp_path / "sen/ROIs1158_spring/s2_12/ROIs1158_spring_s2_12_p2.png").unlink()
    with pytest.raises(InputError, match=r"s2_12/ROIs1158_spring_s2_12_p2\.png is missing"):
        load_paired(tmp_path / "sen", paired="s1,s2")
    (tmp_path / "plain/s1/deep/p1.png").unlink()
    with pytest.raises(InputError, match=r"s1/deep/p1\.png is missing"):
        load_paired(tmp_path / "plain", paired="s1,s2")


def test_bad_input_is_refused(tmp_path: Path):
    images = from_arrays(torch.zeros(3, 1, 4, 4))
    for make in (
        lambda: Paired(images, from_arrays(torch.zeros(2, 1, 4, 4))),
        lambda: Paired(images, from_arrays(torch.zeros(3, 1, 8, 8))),
        lambda: load_paired("digits", paired="sar-lik"),
        lambda: load_paired("digits", paired="s1,s1"),
        lambda: sar_like(torch.zeros(1, 1, 4, 4), [0], looks=0),
    ):
        with pytest.raises(InputError):
            make()
    with pytest.raises(ArtefactError):
        load_paired(tmp_path / "none", paired="s1,s2")
    picture(tmp_path / "one/s1/a.png", 3)
    with pytest.raises(ArtefactError, match="under a folder s2"):
        load_paired(tmp_path / "one", paired="s1,s2")
