"""Resizing to Inception's input against loops and Pillow; the conventions of each published implementation by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.metrics.frechet import METHODS
from scoreline.nn.inception import Inception2015
from scoreline.nn.resizing import (
    FID_MODES,
    InceptionInput,
    fid_mode,
    resize_antialias,
    resize_clean,
    resize_pytorch,
    resize_tf1,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("height, width, size", [(4, 6, 7), (9, 5, 3), (5, 5, 5), (1, 3, 4)])
def test_tf1_resize_against_loops(height: int, width: int, size: int) -> None:
    x = noise(2, 3, height, width) * 255
    out = resize_tf1(x, size).numpy()
    u = x.numpy()
    for i in range(size):
        for j in range(size):
            sy, sx = i * height / size, j * width / size
            y0, x0 = int(sy), int(sx)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            dy, dx = sy - y0, sx - x0
            expected = (
                (1 - dy) * (1 - dx) * u[:, :, y0, x0] + (1 - dy) * dx * u[:, :, y0, x1]
                + dy * (1 - dx) * u[:, :, y1, x0] + dy * dx * u[:, :, y1, x1]
            )  # fmt: skip
            np.testing.assert_allclose(out[:, :, i, j], expected, rtol=1e-5, atol=1e-3)


def test_pytorch_resize_has_half_pixel_centres_and_no_antialias() -> None:
    x = torch.tensor([0.0, 10.0, 20.0, 30.0]).expand(1, 1, 4, 4)
    assert resize_pytorch(x, 2)[0, 0, 0].tolist() == [5, 25]
    assert resize_tf1(x, 2)[0, 0, 0].tolist() == [0, 20]
    spike = torch.zeros(1, 1, 8, 8)
    spike[..., 0] = 80.0
    assert resize_pytorch(spike, 2)[0, 0, 0].tolist() == [0, 0]  # aliasing: the line is lost
    assert resize_antialias(spike, 2)[0, 0, 0, 0] > 5


def test_clean_resize_is_pillow_on_floats_clipped_not_rounded() -> None:
    from PIL import Image

    x = (noise(2, 3, 12, 9) > 0.5).float() * 255
    out = resize_clean(x, 20)
    one = np.asarray(Image.fromarray(x[1, 2].numpy()).resize((20, 20), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(out[1, 2].numpy(), one.clip(0, 255), rtol=1e-6)
    assert one.min() < 0 or one.max() > 255  # bicubic overshoots, so that clipping is seen
    assert (out != out.round()).any()
    assert out.shape == (2, 3, 20, 20)


def test_normalisation_of_each_mode() -> None:
    white, black = torch.ones(1, 3, 8, 8), -torch.ones(1, 3, 8, 8)
    ends = {"tf1": (127 / 128, -1), "clean": (127 / 128, -1), "torchmetrics": (127 / 128, -1), "pytorch": (1, -1)}
    for mode, (high, low) in ends.items():
        with torch.device("meta"):
            net = Inception2015(resize=mode)
        for x, end in ((white, high), (black, low)):
            out = net.preprocess(x)
            assert out.shape == (1, 3, 299, 299)
            torch.testing.assert_close(out, torch.full_like(out, end), rtol=0, atol=1e-6)


def test_scaling_can_be_chosen_apart_from_resizing() -> None:
    white = torch.ones(1, 3, 8, 8)
    assert InceptionInput("tf1", scaling="pytorch")(white).max() == 1
    assert float(InceptionInput("pytorch", scaling="tf")(white).max()) == pytest.approx(127 / 128, abs=1e-6)
    with torch.device("meta"):
        usual, other = Inception2015(resize="pytorch"), Inception2015(resize="pytorch", scaling="tf")
    assert usual.preprocess == InceptionInput("pytorch", "uint8-round", "pytorch")
    assert other.preprocess == InceptionInput("pytorch", "uint8-round", "tf")


def test_input_refuses_bad_names_and_images() -> None:
    for argument, words in (
        ({"resize": "claen"}, "'clean'"),
        ({"quantisation": "x"}, "none"),
        ({"scaling": "x"}, "tf"),
    ):
        with pytest.raises(InputError, match=words):
            InceptionInput(**argument)
    with pytest.raises(InputError, match="range"):
        InceptionInput()(torch.full((1, 3, 8, 8), 255.0))


# --- the modes ---------------------------------------------------------------------------------------------------


def test_modes_are_those_of_the_originals() -> None:
    table = {
        "pytorch-fid": ("pytorch", "pytorch", "sqrtm"),
        "clean": ("clean", "tf", "sqrtm-clean"),
        "torch-fidelity": ("tf1", "tf", "eigvals"),
    }
    assert set(FID_MODES) == set(table)
    for name, (resize, scaling, root) in table.items():
        mode = fid_mode(name)
        assert (mode.resize, mode.quantisation, mode.scaling, mode.root) == (resize, "uint8-round", scaling, root)
        assert mode.root in METHODS
    with pytest.raises(InputError, match="did you mean 'clean'"):
        fid_mode("claen")


def test_modes_give_the_input_of_the_originals_from_uint8_pixels() -> None:
    """Each original's steps, from the levels of a file, in its own order."""
    levels = torch.randint(0, 256, (1, 3, 40, 50), generator=torch.Generator().manual_seed(0))
    x = levels.float() / 127.5 - 1

    def input_of(name: str) -> Tensor:
        mode = fid_mode(name)
        return InceptionInput(mode.resize, mode.quantisation, mode.scaling)(x)

    unit = torch.nn.functional.interpolate(levels / 255, (299, 299), mode="bilinear", align_corners=False)
    torch.testing.assert_close(input_of("pytorch-fid"), 2 * unit - 1, rtol=0, atol=2e-6)
    torch.testing.assert_close(input_of("torch-fidelity"), (resize_tf1(levels.float()) - 128) / 128, rtol=0, atol=1e-6)
    torch.testing.assert_close(input_of("clean"), (resize_clean(levels.float()) - 128) / 128, rtol=0, atol=1e-6)
    assert len({float(input_of(name).sum()) for name in FID_MODES}) == 3
