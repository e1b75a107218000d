"""The Inception network of 2015-12-05, on which FID, KID, IS and precision/recall are defined.

Szegedy et al. 2015 (1512.00567), in the TensorFlow graph that Salimans et al. and Heusel et al. used. It differs from
later releases: 1008 outputs and no auxiliary head; average pools leave the zero padding out of the divisor; the pool
branch of the last block (Mixed_7c) takes the MAXIMUM; batch norm eps 1e-3. Module names follow the ported public
weights, `pt_inception-2015-12-05-6726825d.pth`, which load without renaming.
"""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.encoder import Encoder
from scoreline.core.errors import InputError
from scoreline.nn.inception_blocks import Conv, FoldedConv, Mixed8, Mixed17, Mixed35, Reduce17, Reduce35
from scoreline.nn.pretrained import Unfilled, fill, read_pretrained
from scoreline.nn.resizing import InceptionInput

__all__ = ["TAPS", "Inception2015"]

# tap -> dimension
TAPS = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits": 1008, "logits-no-bias": 1008, "sfid": 2023}


def _usual_scaling(resize: str) -> str:
    return "pytorch" if resize == "pytorch" else "tf"


@cache
def _bfloat16_pays() -> bool:
    """Whether oneDNN has bfloat16 kernels for this CPU; the others that torch falls back to are ten times slower."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Inception2015(Encoder):
    """Inception of 2015-12-05: images in [-1, 1] to features at one of its taps; always in eval mode, frozen.

    Quantise to uint8 levels u, resize to 299 x 299, scale, network.

    Args:
        tap: "64", "192", "768" (spatial averages after the first and second max pool and Mixed_6e), "2048" (the
            global average pool; FID, KID), "logits", "logits-no-bias" (IS), "sfid" (first 7 channels of
            Mixed_6d.branch1x1 before batch norm, 17 x 17 flattened; Nash et al. 2021, 2103.03841).
        resize: "tf1" (TTUR, torch-fidelity), "pytorch" (pytorch-fid), "clean" (clean-fid), "torchmetrics" (1.8 on).
        quantisation: "uint8-round", "uint8-truncate" or "none".
        scaling: "tf", (u - 128) / 128, or "pytorch", 2 u / 255 - 1; None takes the resizing rule's own: "pytorch" for
            "pytorch", "tf" for the others. `scoreline.nn.resizing.fid_mode` names whole sets of these.

    Untrained as constructed; :meth:`load` reads the published weights.

    Reference: Heusel et al. 2017, 1706.08500; Szegedy et al. 2015, 1512.00567.
    """

    _compiled: Callable[[Tensor, frozenset[str]], dict[str, Tensor]] | None = None
    _batch = 0

    def __init__(
        self,
        tap: str = "2048",
        resize: str = "tf1",
        quantisation: str = "uint8-round",
        scaling: str | None = None,
    ) -> None:
        super().__init__()
        if scaling is None:
            scaling = _usual_scaling(resize)
        self._input = InceptionInput(resize, quantisation, scaling)
        self.check_taps([tap])
        self.tap, self.dim = tap, TAPS[tap]
        self.weights_sha256: str | None = None
        self.register_buffer("sfid_weight", None, persistent=False)
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = Mixed35(192, 32)
        self.Mixed_5c = Mixed35(256, 64)
        self.Mixed_5d = Mixed35(288, 64)
        self.Mixed_6a = Reduce35(288)
        self.Mixed_6b = Mixed17(768, 128)
        self.Mixed_6c = Mixed17(768, 160)
        self.Mixed_6d = Mixed17(768, 160)
        self.Mixed_6e = Mixed17(768, 192)
        self.Mixed_7a = Reduce17(768)
        self.Mixed_7b = Mixed8(1280, maximum=False)
        self.Mixed_7c = Mixed8(2048, maximum=True)
        self.fc = nn.Linear(2048, 1008)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Inception2015:
        """Stays in eval mode: batch statistics would make an image's features depend on its neighbours."""
        return super().train(False)

    @property
    def protocol(self) -> dict[str, str]:
        resize, scaling = self._input.resize, self._input.scaling
        return {
            "features": "inception-2015",
            "tap": self.tap,
            "weights": self.weights_sha256 or self._state_sha256(),
            "resize": resize if scaling == _usual_scaling(resize) else f"{resize}, {scaling} scaling",
            "quantisation": self._input.quantisation,
            "precision": str(self.Conv2d_1a_3x3.conv.weight.dtype).removeprefix("torch."),
        }

    @property
    def tap_names(self) -> tuple[str, ...]:
        return tuple(TAPS)

    @property
    def preprocess(self) -> Callable[[Tensor], Tensor]:
        """Images (N, 3, H, W) in [-1, 1] to the network's input (N, 3, 299, 299): an :class:`InceptionInput`."""
        return self._input

    def taps(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Several taps of (N, 3, H, W) images in [-1, 1] in one pass, so that FID, IS and sFID share the network.

        Raises:
            InputError: images of the wrong shape, dtype or range; an unknown tap.
        """
        return self.activations(self.preprocess(x), names)

    def activations(self, prepared: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Taps of the network's own input (N, 3, 299, 299); stops after the last one that is asked for."""
        self.check_taps(names)
        x = prepared.to(self.Conv2d_1a_3x3.conv.weight.dtype)
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _bfloat16_pays():
            warnings.warn("this CPU has no bfloat16 instructions: float32 is faster here", UserWarning, stacklevel=2)
        if self.folded:
            x = x.contiguous(memory_format=torch.channels_last)
        if self._compiled is None:
            return self._trunk(x, frozenset(names))
        # A last, smaller batch would be compiled anew: it is filled up instead.
        count, self._batch = len(x), max(self._batch, len(x))
        x = torch.cat([x, x.new_zeros(self._batch - count, *x.shape[1:])]) if count < self._batch else x
        return {name: value[:count] for name, value in self._compiled(x, frozenset(names)).items()}

    def _trunk(self, x: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def done(name: str, value: Tensor) -> bool:
            if name in wanted:
                found[name] = value.to(self.fc.weight.dtype)
            return found.keys() == wanted

        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        if done("64", x.mean((2, 3))):
            return found
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        if done("192", x.mean((2, 3))):
            return found
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6c(self.Mixed_6b(x))
        if "sfid" in wanted and done("sfid", F.conv2d(x, self._sfid()).flatten(1)):
            return found
        x = self.Mixed_6e(self.Mixed_6d(x))
        if done("768", x.mean((2, 3))):
            return found
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3)).to(self.fc.weight.dtype)
        if done("2048", x):
            return found
        without_bias = x @ self.fc.weight.T
        done("logits-no-bias", without_bias)
        done("logits", without_bias + self.fc.bias)
        return found

    def _sfid(self) -> Tensor:
        """The first seven filters of Mixed_6d.branch1x1 as trained: sFID taps them before batch norm and ReLU."""
        weight = self.Mixed_6d.branch1x1.conv.weight[:7] if self.sfid_weight is None else self.sfid_weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def folded(self) -> bool:
        """Whether batch norms are folded into the convolutions, see :meth:`fast`."""
        return isinstance(self.Conv2d_1a_3x3, FoldedConv)

    def fast(self, *, compile: bool = False, dtype: torch.dtype | None = None) -> Inception2015:
        """A copy made for speed: batch norms folded into the convolutions, channels-last memory.

        Its features equal the plain network's to 1e-5 relative in float32. It is as :meth:`load` gives it. (Winograd's
        route does not pay here: too few channels where the time goes.)

        Args:
            compile: also compile it, at the first batch; that takes a minute or two.
            dtype: of the convolutions: torch.bfloat16 is coarser, faster where the processor has instructions for it (a
                warning says where not), and named in the protocol. None keeps it.

        Raises:
            InputError: a type that is neither float32, float64 nor bfloat16.
        """
        if dtype not in (None, torch.float32, torch.float64, torch.bfloat16):
            raise InputError("dtype", str(dtype), "Inception runs in float32, float64 or bfloat16")
        made = copy.deepcopy(self)
        if not made.folded:
            made._fold()
        if dtype is not None:
            # Averages over places are rounded to the convolutions' type; the last layer stays in at least float32.
            made.to(dtype).fc.to(torch.float32 if dtype == torch.bfloat16 else dtype)
            made.fc.load_state_dict(self.fc.state_dict())
        if compile:
            made._compiled, made._batch = torch.compile(made._trunk, dynamic=False), 0
        return made

    def _fold(self) -> None:
        # The weights' name outlives the folding, which changes the tensors by rounding only.
        self.weights_sha256 = self.weights_sha256 or self._state_sha256()
        self.sfid_weight = self._sfid().detach().clone()
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Conv):
                    setattr(parent, name, child.folded())

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code stays with the process and the object that it was made for.
        return {key: value for key, value in self.__dict__.items() if key not in ("_compiled", "_batch")}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        tap: str = "2048",
        resize: str = "tf1",
        quantisation: str = "uint8-round",
        scaling: str | None = None,
        trusted: bool = False,
    ) -> Inception2015:
        """The network with published weights, from a file, ready for inference (:meth:`fast`); nothing is downloaded.

        Args:
            path: a .pth or .safetensors file; None searches for the published one
                (`scoreline.nn.pretrained.pretrained_folders`).
            tap, resize, quantisation, scaling: as for the class.
            trusted: read a .pth file whose SHA-256 is not the known one.

        Raises:
            InputError: an unknown name.
            ArtefactError: no such file, an unknown checksum, an unreadable file, or tensors that do not fit.
        """
        with Unfilled():
            net = cls(tap, resize, quantisation, scaling)
        state, file, digest = read_pretrained("inception-2015", path, trusted=trusted)
        fill(net, state, file)
        net.weights_sha256 = digest
        net._fold()
        return net

    def _state_sha256(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
