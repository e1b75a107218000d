"""LPIPS v0.1, a perceptual distance between two pictures (Zhang et al. 2018, 1801.03924).

    d(x, y) = sum_l mean_hw w_l . (f_l(x) / (|f_l(x)| + 1e-10) - f_l(y) / (|f_l(y)| + 1e-10))^2

f_l are the activations of AlexNet or VGG-16 after five of their ReLUs, |.| their length over channels, w_l >= 0
weights fitted to human judgements. Version 0.1 puts images in [-1, 1] on the scale of ImageNet's mean and deviation
first, which 0.0 forgot. Always say which network: the two distances do not compare.
"""

from __future__ import annotations

import os
import warnings

import torch
from torch import Tensor, nn

from scoreline.core.encoder import check_images
from scoreline.core.errors import InputError, unknown_name
from scoreline.nn.pretrained import Unfilled, fill, read_pretrained

__all__ = ["LPIPS", "LPIPS_NETS", "lpips"]

LPIPS_NETS = ("alex", "vgg")

# after which layers of the backbone, how many channels there, smallest picture, name of the backbone's weights
_TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
_CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
_SMALLEST = {"alex": 31, "vgg": 16}
_BACKBONES = {"alex": "alexnet", "vgg": "vgg16"}

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """LPIPS v0.1: pairs of images in [-1, 1] to distances; frozen, gradients pass to the images.

    Args:
        net: "alex" (the authors' choice for measuring) or "vgg" (closer to a perceptual loss).

    Untrained as constructed; :meth:`load` reads the published weights.

    Raises:
        InputError: an unknown network.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "alex") -> None:
        super().__init__()
        if net not in LPIPS_NETS:
            raise unknown_name("LPIPS network", net, LPIPS_NETS)
        self.net, self.weights_sha256 = net, ""
        self.features = _alexnet() if net == "alex" else _vgg16()
        self.weights = nn.ParameterList([torch.rand(1, channels, 1, 1) for channels in _CHANNELS[net]])
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def name(self) -> str:
        """What the distance is called: "lpips-alex" or "lpips-vgg"."""
        return f"lpips-{self.net}"

    def activations(self, x: Tensor) -> list[Tensor]:
        """The five activations, each (N, C, H, W) with length 1 over channels, of images (N, 3, H, W) in [-1, 1]."""
        h = (x.to(self.shift.dtype) - self.shift) / self.scale
        found = []
        for i, layer in enumerate(self.features):
            h = layer(h)
            if i in _TAPS[self.net]:
                # vector_norm has a gradient where all channels are 0; the root of a sum of squares has none there
                found.append(h / (torch.linalg.vector_norm(h, dim=1, keepdim=True) + 1e-10))
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (N,) of x (N, 3, H, W) from y, image by image; see :func:`lpips`."""
        _check_pair(x, y, _SMALLEST[self.net])
        parts = [
            (weight * (a - b).square()).sum(1).mean((1, 2))
            for weight, a, b in zip(self.weights, self.activations(x), self.activations(y))
        ]
        return torch.stack(parts).sum(0)

    @classmethod
    def load(
        cls,
        net: str = "alex",
        backbone: str | os.PathLike[str] | None = None,
        linear: str | os.PathLike[str] | None = None,
        *,
        trusted: bool = False,
    ) -> LPIPS:
        """The network with published weights, from two files; nothing is downloaded.

        Args:
            net: "alex" or "vgg".
            backbone: torchvision's ImageNet weights of AlexNet or VGG-16; linear: the fitted weights of LPIPS v0.1.
                Both .pth or .safetensors; None searches for them (`scoreline.nn.pretrained.pretrained_folders`).
            trusted: read a .pth file whose SHA-256 is not the known one.

        Raises:
            InputError: an unknown network.
            ArtefactError: no such file, an unknown checksum, an unreadable file, or tensors that do not fit.
        """
        with Unfilled():
            made = cls(net)
        state, file, first = read_pretrained(_BACKBONES[net], backbone, trusted=trusted)
        # The classifier's layers come after the last tap.
        fill(
            made.features, state, file, rename=lambda n: None if n.startswith("classifier.") else n[len("features.") :]
        )
        state, file, second = read_pretrained(made.name, linear, trusted=trusted)
        fill(made.weights, state, file, rename=lambda n: n.removeprefix("lin").removesuffix(".model.1.weight"))
        made.weights_sha256 = f"{first}, {second}"
        return made


def lpips(x: Tensor, y: Tensor, net: LPIPS) -> Tensor:
    """LPIPS v0.1 of pairs of images: how differently people are likely to see them.

    d(x, y) = sum_l mean_hw w_l . (f_l(x) / (|f_l(x)| + 1e-10) - f_l(y) / (|f_l(y)| + 1e-10))^2

    Args:
        x, y: (N, 3, H, W) in [-1, 1], of one shape; H and W at least 31 for AlexNet, 16 for VGG-16.
        net: which network, with its weights.

    Returns:
        (N,) distances, 0 for equal images, symmetric.

    Raises:
        InputError: shapes that differ or are too small, values outside [-1, 1]. A warning where no value of either
            side is negative, as in images of [0, 1], which LPIPS does not take.

    Reference: Zhang et al. 2018, 1801.03924.
    """
    return net(x, y)


def _check_pair(x: Tensor, y: Tensor, smallest: int) -> None:
    for images in (x, y):
        check_images(images, channels=3)
    if x.shape != y.shape:
        raise InputError("image shapes", (tuple(x.shape), tuple(y.shape)), "LPIPS compares pairs of one shape")
    if min(x.shape[2:]) < smallest:
        raise InputError("image shape", tuple(x.shape), f"this network takes sides of at least {smallest} pixels")
    if min(float(x.detach().min()), float(y.detach().min())) >= 0:
        warnings.warn("LPIPS takes images in [-1, 1]; these look like [0, 1]", UserWarning, stacklevel=4)


# --- backbones, numbered as in torchvision -----------------------------------------------------------------------


def _alexnet() -> nn.Sequential:
    """AlexNet's convolutions (Krizhevsky 2014, 1404.5997) as far as the last tap."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def _vgg16() -> nn.Sequential:
    """VGG-16's convolutions (Simonyan and Zisserman 2015, 1409.1556) as far as the last tap."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        layers += [nn.MaxPool2d(2)] if stage else []
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)
