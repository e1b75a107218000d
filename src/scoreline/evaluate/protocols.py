"""The fixed protocols: which reference, which network, how many images. `fid@digits` is fixed once for good.

fid@digits: Frechet distance between the features of 10,000 generated digits, labels in equal shares, and those of the
test split of the digits (500 images, never trained on by a shipped model). The features are the hidden layer of the
shipped `digits-net`, named by its hash: a changed network would be a new name. The floor printed beside it is the
same distance for 10,000 draws from the training split, the independent real part, labels in equal shares too. With
other counts the number is called fd-digits, and compares only with its like.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.core.artefact import load_artefact
from scoreline.core.device import pick_dtype
from scoreline.core.encoder import Encoder
from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.core.load import model_path
from scoreline.core.moments import Moments
from scoreline.core.names import lookup
from scoreline.core.score import Protocol, Score
from scoreline.data import load_images
from scoreline.data.images import Images
from scoreline.metrics import frechet_distance
from scoreline.metrics.frechet import Method
from scoreline.nn.features import Pixels

__all__ = [
    "COLOUR",
    "FEATURES",
    "FID_DIGITS_COUNT",
    "FrechetProtocol",
    "digits_net",
    "features_of",
    "frechet_name",
    "network_name",
    "on_device",
    "pick_encoder",
]

FEATURES = ("auto", "inception-2015", "dinov2-vit-l-14", "clip-vit-l-14-336", "digits", "pixels")
TAKE_WEIGHTS = ("inception-2015", "dinov2-vit-l-14", "clip-vit-l-14-336")
# networks that take three channels only
COLOUR = TAKE_WEIGHTS

FID_DIGITS_COUNT = 10_000
FID_DIGITS_NETWORK = "005a200450439ac8d86c88988cba4094b46ae355c8d0478548a95a542cf18798"
FID_DIGITS_REFERENCE = "cca4b1be673783887475dc008e71dbbc089a151ea127d6a1d56bfdf43987988a"


@functools.cache
def digits_net() -> Encoder:
    """The shipped feature network of fid@digits.

    Raises:
        ArtefactError: the installed file is not the network that the name stands for.
    """
    net, _ = load_artefact(model_path("digits-net"), kind="encoder")
    if net.protocol["weights"] != FID_DIGITS_NETWORK:
        raise ArtefactError("digits-net", str(model_path("digits-net")), "is not the network of fid@digits; reinstall")
    return net


def network_name(name: str, images: Images) -> str:
    """The network that "auto" stands for: digits for 8x8 grey images, inception-2015 elsewhere.

    Raises:
        InputError: an unknown name.
    """
    if name not in FEATURES:
        raise unknown_name("features", name, FEATURES)
    if name == "auto":
        return "digits" if images.shape == (1, 8, 8) else "inception-2015"
    return name


def pick_encoder(name: str, images: Images, *, mode: str | None = None, weights: str | Path | None = None) -> Encoder:
    """The feature network for a data set.

    Args:
        name: one of `FEATURES`; see `network_name` for "auto".
        images: the reference set.
        mode: conventions of another implementation for inception-2015, see `scoreline.nn.resizing.fid_mode`; None takes
            those of TensorFlow's original.
        weights: file of the network's weights; None looks where the network's own message says.

    Raises:
        InputError: an unknown name, a network that does not take such images, or an option that it does not have.
        ArtefactError: weights that have to be downloaded by the user are missing.
    """
    name = network_name(name, images)
    if mode is not None and name != "inception-2015":
        raise InputError("mode", mode, f"says how images reach inception-2015; the features are {name}")
    if weights is not None and name not in TAKE_WEIGHTS:
        raise InputError("weights", str(weights), f"{name} has none to be read")
    if name == "pixels":
        return Pixels(images.shape)
    if name == "digits":
        if images.shape != (1, 8, 8):
            raise InputError("features", name, f"takes 1x8x8 images, not {images.shape}; use pixels")
        return digits_net()
    try:
        if name == "inception-2015":
            from scoreline.nn.inception import Inception2015
            from scoreline.nn.resizing import fid_mode

            if mode is None:
                return Inception2015.load(weights)
            how = fid_mode(mode)
            return Inception2015.load(weights, resize=how.resize, quantisation=how.quantisation, scaling=how.scaling)
        return lookup("encoder", name).load(weights)
    except ArtefactError as error:
        mend = f"{error.mend}; or measure pixels with --features pixels"
        raise ArtefactError(error.thing, error.value, mend) from None


def on_device(encoder: Encoder, device: torch.device, dtype: str, compile: bool) -> Encoder:
    """The network where it shall run, in its fast form.

    Raises:
        InputError: bf16 or compilation of a network that does not offer it.
    """
    return encoder.fast(compile=compile, dtype=pick_dtype(dtype)).to(device)


@torch.no_grad()
def features_of(encoder: Encoder, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """Features (N, D) of images (N, C, H, W) in [-1, 1], in fixed chunks."""
    return torch.cat([encoder.features(chunk) for chunk in images.split(batch_size)])


def frechet_name(protocol: Protocol) -> str:
    """What a Frechet distance is called: fid@digits only under its full protocol, fd-<features> otherwise."""
    if (
        protocol.features == "digits"
        and protocol.generated_count == FID_DIGITS_COUNT
        and protocol.weights == FID_DIGITS_NETWORK
        and protocol.resize == "none"
        and protocol.method == "symmetric"
        and protocol.reference_fingerprint == FID_DIGITS_REFERENCE
    ):
        return "fid@digits"
    names = {
        "pixels": "fd-pixel", "inception-2015": "fid", "dinov2-vit-l-14": "fd-dinov2", "clip-vit-l-14-336": "fd-clip",
        "unknown": "fd",
    }  # fmt: skip
    return names.get(protocol.features, f"fd-{protocol.features}")


class FrechetProtocol:
    """A Frechet distance against a fixed reference set.

    Args:
        encoder: the feature network.
        reference: the real images.
        split: which split of its data set the reference is.
        conditions: how the labels of the generated images are drawn, for the protocol.
        moments: of the reference's features, where they are known already.
        method: how the root is taken, see `frechet_distance`.
    """

    def __init__(
        self,
        encoder: Encoder,
        reference: Images,
        *,
        split: str = "",
        conditions: str = "none",
        moments: Moments | None = None,
        method: Method = "symmetric",
    ) -> None:
        self.encoder, self.reference = encoder, reference
        if moments is None:
            moments = Moments(encoder.dim)
            with torch.no_grad():
                for batch in reference.batches(500):
                    moments.update(encoder.features(batch.image))
        self.moments, self.method = moments, method
        named: dict[str, Any] = dict(encoder.protocol)
        self.base = Protocol(
            metric="frechet-distance",
            **named,
            image="x".join(map(str, reference.shape)),
            conditions=conditions,
            reference=reference.name,
            reference_split=split,
            reference_fingerprint=reference.fingerprint,
            reference_count=len(reference),
            method=method,
            ddof=1,
        )

    def name(self, count: int) -> str:
        """What the number is called: fid@digits only under its full protocol, fd-<features> otherwise."""
        return frechet_name(self.protocol(count))

    def protocol(self, count: int) -> Protocol:
        """The protocol of a score on `count` generated images."""
        return self.base.replace(generated_count=count)

    def distance(self, features: Tensor | Moments) -> float:
        """The distance of generated features (N, D) or their moments."""
        return frechet_distance(self.moments, features, method=self.method)

    def score(self, features: Tensor | Moments, *, cost: dict[str, Any] | None = None) -> Score:
        """The distance with its protocol."""
        count = features.count if isinstance(features, Moments) else len(features)
        value = self.distance(features)
        return Score(self.name(count), value, self.protocol(count), higher_is_better=False, cost=cost or {})

    def floor(self, real: Images, count: int, *, seed: int = 0) -> float:
        """The distance of `count` draws from an independent real set, with replacement, classes in equal shares."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(real), (count,), generator=generator)
        if real.num_classes is not None and real.labels is not None and real.labels.ndim == 1:
            # As the generated sets have them; else a small floor would hold the chance of its labels.
            labels = torch.from_numpy(real.labels)
            members = [torch.nonzero(labels == c)[:, 0] for c in range(real.num_classes)]
            rows = torch.stack([m[int(r) % len(m)] for r, m in zip(rows, members * count) if len(m)])
        features = features_of(self.encoder, real.batch(range(len(real))).image)
        return self.distance(features[rows])


def digits_protocols() -> dict[str, FrechetProtocol]:
    """The two Frechet protocols printed beside each other for digits: learned features and pixels."""
    test = load_images("digits", split="test")
    return {
        "digits": FrechetProtocol(digits_net(), test, split="test", conditions="labels-uniform"),
        "pixels": FrechetProtocol(Pixels(test.shape), test, split="test", conditions="labels-uniform"),
    }
