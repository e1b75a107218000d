"""From images in [-1, 1] to the 299 x 299 input of the Inception network, by every rule in use.

Parmar et al. 2022 (2104.11222) show that the resizing rule alone moves a Frechet distance by more than the usual gap
between papers. `fid_mode` collects what pytorch-fid, clean-fid and torch-fidelity do, so that their numbers can be
reproduced by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreline.core.encoder import QUANTISATIONS, check_images, quantise
from scoreline.core.errors import unknown_name

__all__ = [
    "FID_MODES",
    "FidMode",
    "InceptionInput",
    "RESIZES",
    "SCALINGS",
    "fid_mode",
    "resize_antialias",
    "resize_clean",
    "resize_pytorch",
    "resize_tf1",
]


# --- resizing of images as levels in [0, 255] --------------------------------------------------------------------


def resize_tf1(levels: Tensor, size: int = 299) -> Tensor:
    """TensorFlow 1 bilinear: source i * in / out, no half-pixel centre, no antialias (TTUR, torch-fidelity)."""
    height, width = levels.shape[2:]

    def axis(length: int) -> tuple[Tensor, Tensor, Tensor]:
        # float32 products, as TensorFlow forms them: some land just below an integer, and so choose its neighbour
        scale = torch.tensor(length / size, dtype=torch.float32, device=levels.device)
        source = torch.arange(size, dtype=torch.float32, device=levels.device) * scale
        low = source.floor().long().clamp(max=length - 1)
        return low, (low + 1).clamp(max=length - 1), (source - low).to(levels.dtype)

    y0, y1, dy = axis(height)
    x0, x1, dx = axis(width)
    top, bottom = levels[:, :, y0], levels[:, :, y1]
    top = top[..., x0] + (top[..., x1] - top[..., x0]) * dx
    bottom = bottom[..., x0] + (bottom[..., x1] - bottom[..., x0]) * dx
    return top + (bottom - top) * dy[:, None]


def resize_pytorch(levels: Tensor, size: int = 299) -> Tensor:
    """Bilinear with half-pixel centres, no antialias (pytorch-fid)."""
    return F.interpolate(levels, size=(size, size), mode="bilinear", align_corners=False)


def resize_clean(levels: Tensor, size: int | tuple[int, int] = 299) -> Tensor:
    """Pillow's bicubic on each float32 channel, antialiased, clipped to [0, 255], not rounded (clean-fid).

    On the CPU, image by image; gradients do not pass. A size of two numbers is (H, W).
    """
    import numpy as np
    from PIL import Image

    height, width = (size, size) if isinstance(size, int) else size

    planes = levels.detach().to("cpu", torch.float32).flatten(0, 1).numpy()
    resized = [np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)) for plane in planes]
    out = torch.from_numpy(np.stack(resized)).clamp(0, 255)
    return out.view(*levels.shape[:2], height, width).to(levels)


def resize_antialias(levels: Tensor, size: int = 299) -> Tensor:
    """Bilinear with antialias (torchmetrics from 1.8.0)."""
    return F.interpolate(levels, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


RESIZES = {"tf1": resize_tf1, "pytorch": resize_pytorch, "clean": resize_clean, "torchmetrics": resize_antialias}

# --- the input of the network ------------------------------------------------------------------------------------

# What level 255 becomes: 127/128 in TensorFlow's graph, exactly 1 in pytorch-fid; level 0 is -1 in both.
SCALINGS = ("tf", "pytorch")


@dataclass(frozen=True)
class InceptionInput:
    """Quantise to uint8 levels u, resize to 299 x 299, then (u - 128) / 128 ("tf") or 2 u / 255 - 1 ("pytorch").

    Args:
        resize: a name of `RESIZES`.
        quantisation: "uint8-round", "uint8-truncate" or "none".
        scaling: a name of `SCALINGS`.

    Raises:
        InputError: an unknown name.
    """

    resize: str = "tf1"
    quantisation: str = "uint8-round"
    scaling: str = "tf"

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("resize", self.resize, list(RESIZES)),
            ("quantisation", self.quantisation, list(QUANTISATIONS)),
            ("scaling", self.scaling, list(SCALINGS)),
        ):
            if value not in known:
                raise unknown_name(kind, value, known)

    def __call__(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to (N, 3, 299, 299).

        Raises:
            InputError: images of the wrong shape, dtype or range.
        """
        check_images(x, channels=3)
        u = RESIZES[self.resize](quantise(x, self.quantisation))
        return (u - 128) / 128 if self.scaling == "tf" else u / 127.5 - 1


@dataclass(frozen=True)
class FidMode:
    """What a published implementation of the FID does between an image file and the number.

    Attributes:
        resize, quantisation, scaling: as for :class:`InceptionInput`.
        root: how tr (S_R S_G)^(1/2) is computed, the `method` of `scoreline.metrics.frechet_distance`.
    """

    resize: str
    quantisation: str
    scaling: str
    root: Literal["sqrtm", "sqrtm-clean", "eigvals"]


# Image files hold uint8 levels, which "uint8-round" restores exactly. pytorch-fid and clean-fid take the real part of
# SciPy's root of the product (clean-fid however large the imaginary one is), torch-fidelity the roots of its
# eigenvalues.
FID_MODES = {
    "pytorch-fid": FidMode("pytorch", "uint8-round", "pytorch", "sqrtm"),
    "clean": FidMode("clean", "uint8-round", "tf", "sqrtm-clean"),
    "torch-fidelity": FidMode("tf1", "uint8-round", "tf", "eigvals"),
}


def fid_mode(name: str) -> FidMode:
    """The conventions of a published implementation: "pytorch-fid", "clean" or "torch-fidelity".

    "torch-fidelity" has the input of the TensorFlow original (TTUR), which takes the root by "sqrtm". A callable that
    clean-fid scores is not quantised by it: reproduce that with quantisation "none".

    >>> fid_mode("clean").resize
    'clean'

    Raises:
        InputError: another name.
    """
    if name not in FID_MODES:
        raise unknown_name("mode", name, FID_MODES)
    return FID_MODES[name]
