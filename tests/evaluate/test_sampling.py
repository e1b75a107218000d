"""Images by number into files; the command line's side is in tests/cli/test_sample.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data import to_uint8
from scoreline.evaluate.sampling import image_path, sample_to
from scoreline.evaluate.specs import labels_for, make_sampler


def test_where_an_image_lies(tmp_path: Path) -> None:
    for index, place in (
        (0, "000000/000000"),
        (999, "000000/000999"),
        (1000, "001000/001000"),
        (1234567, "1234000/1234567"),
    ):
        assert image_path(tmp_path, index) == tmp_path / f"{place}.png"


def test_the_files_hold_what_the_sampler_makes(tiny: str, tmp_path: Path) -> None:
    indices = [2, 17, 5]
    found = sample_to(tmp_path / "made", tiny, "ddim:eta=1", indices, nfe=6, noise_seed=3, device="cpu", quiet=True)
    assert (found["count"], found["made"], found["nfe"]) == (3, 3, 6)
    model = load(tiny)
    sample = make_sampler("ddim:eta=1", nfe=6)(model.given(labels_for(indices, 10)), Noise(3).at(indices, model.shape))
    wanted = to_uint8(sample.x.clamp(-1, 1))
    for row, index in enumerate(indices):
        picture = np.asarray(Image.open(image_path(tmp_path / "made", index)))
        np.testing.assert_array_equal(picture, wanted[row, 0].numpy())


def test_float64_is_near_float32(tiny: str, tmp_path: Path) -> None:
    pictures = []
    for dtype in ("float32", "float64"):
        sample_to(tmp_path / f"{dtype}.npz", tiny, "heun", range(6), nfe=9, dtype=dtype, device="cpu", quiet=True)
        with np.load(tmp_path / f"{dtype}.npz") as arrays:
            pictures.append(torch.from_numpy(arrays["arr_0"].astype(int)))
    assert int((pictures[0] - pictures[1]).abs().max()) <= 1
