"""DINOv2's vision transformer (Oquab et al. 2023, 2304.07193), whose features FD-DINOv2 takes (Stein et al. 2023,
2306.04675).

ViT-L/14 with layer scale, trained at 518 x 518; its 37 x 37 position embeddings are interpolated to the 16 x 16 patches
of a 224 x 224 picture. Features are the class token after the last norm, d = 1024.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.artefact import fingerprint, recorded
from scoreline.core.encoder import Encoder
from scoreline.core.errors import InputError
from scoreline.nn.pretrained import Unfilled, fill, read_pretrained
from scoreline.nn.vit import Block, PatchInput, fast_copy

__all__ = ["DINOv2"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@recorded
class DINOv2(Encoder):
    """DINOv2: images in [-1, 1] to the class token after the last norm; always in eval mode, frozen.

    Quantise to uint8, Pillow bicubic 224 (squeezed to a square), ImageNet mean and std, network.

    Args:
        width: channels of a token, the dimension of the features.
        depth: blocks.
        heads: attention heads.
        patch: pixels of a patch's side.
        trained_size: pixels of the pictures it was trained on: fixes the number of position embeddings.
        size: pixels of its input here, a multiple of `patch`.
        resize: "pil-bicubic" (dgm-eval's default) or "clean" (dgm-eval with clean_resize).
        quantisation: "uint8-round", "uint8-truncate" or "none".

    The defaults are ViT-L/14. Untrained as constructed; :meth:`load` reads the published weights.

    Raises:
        InputError: a size that is no multiple of the patch; an unknown rule.
    """

    tap = "cls"

    def __init__(
        self,
        *,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        patch: int = 14,
        trained_size: int = 518,
        size: int = 224,
        resize: str = "pil-bicubic",
        quantisation: str = "uint8-round",
    ) -> None:
        super().__init__()
        for name, value in (("trained_size", trained_size), ("size", size)):
            if value < patch or value % patch:
                raise InputError(name, value, f"must be a multiple of the patch, {patch}")
        if width % heads:
            raise InputError("width", width, f"must be a multiple of heads, {heads}")
        self.dim, self.grid, self.weights_sha256 = width, trained_size // patch, ""
        self._input = PatchInput(size, MEAN, STD, resize=resize, quantisation=quantisation)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # only training uses it; the published file has it
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.blocks = nn.ModuleList([Block(width, heads, eps=1e-6, layer_scale=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.requires_grad_(False)
        self.eval()

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "features": "dinov2-vit-l-14",
            "tap": self.tap,
            "weights": self.weights_sha256 or fingerprint({}, self.state_dict()),
            "resize": self._input.name,
            "quantisation": self._input.quantisation,
            "precision": str(self.norm.weight.dtype).removeprefix("torch."),
        }

    @property
    def preprocess(self) -> Callable[[Tensor], Tensor]:
        """Images (N, 3, H, W) in [-1, 1] to the network's input (N, 3, size, size)."""
        return self._input

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings (1, 1 + rows columns, width), interpolated by a bicubic filter.

        As the released code does it, the scale is (rows + 0.1) / grid, not rows / grid: the 0.1 was put in against
        rounding and moves the sample points a little.
        """
        if rows == columns == self.grid:
            return self.pos_embed
        token, places = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        image = places.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        scale = [(n + 0.1) / self.grid for n in (rows, columns)]
        image = F.interpolate(image.float(), scale_factor=scale, mode="bicubic").to(places.dtype)
        return torch.cat([token, image.flatten(2).transpose(1, 2)], 1)

    def activations(self, prepared: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The class token of the network's own input (N, 3, size, size)."""
        self.check_taps(names)
        patches = self.patch_embed["proj"](prepared.to(self.norm.weight.dtype))
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        x = x + self.positions(*patches.shape[2:])
        for block in self.blocks:
            x = block(x)
        token = self.norm(x[:, 0])
        return dict.fromkeys(names, token if token.dtype == torch.float64 else token.float())

    def fast(self, *, compile: bool = False, dtype: torch.dtype | None = None) -> DINOv2:
        """A copy in bfloat16 or with compiled blocks, on request; see :meth:`Encoder.fast`."""
        return fast_copy(self, compile, dtype)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        resize: str = "pil-bicubic",
        quantisation: str = "uint8-round",
        trusted: bool = False,
    ) -> DINOv2:
        """ViT-L/14 with the published weights, from a file; nothing is downloaded.

        Args:
            path: a .pth or .safetensors file; None searches for `dinov2_vitl14_pretrain.pth`
                (`scoreline.nn.pretrained.pretrained_folders`).
            resize, quantisation: as for the class.
            trusted: read a .pth file whose SHA-256 is not the known one.

        Raises:
            InputError: an unknown rule.
            ArtefactError: no such file, an unknown checksum, an unreadable file, or tensors that do not fit.
        """
        with Unfilled():
            net = cls(resize=resize, quantisation=quantisation)
        state, file, digest = read_pretrained("dinov2-vit-l-14", path, trusted=trusted)
        fill(net, state, file)
        net.weights_sha256 = digest
        return net
