"""CLIP's two towers (Radford et al. 2021, 2103.00020): embeddings of images (CMMD, CLIP score) and of texts.

    image: class token and patches -> norm -> blocks -> norm of the class token -> projection
    text:  tokens -> blocks that look back only -> norm of the end token -> projection

Weights load as OpenAI publishes them (TorchScript, or its tensors as .safetensors) and as Hugging Face's
transformers names them. The embeddings are not normalised: `scoreline.metrics` divides by their length where it must.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from scoreline.core.artefact import fingerprint, recorded
from scoreline.core.cond import Cond
from scoreline.core.encoder import Encoder
from scoreline.core.errors import InputError, unknown_name
from scoreline.nn.clip_tokenizer import CLIPTokenizer
from scoreline.nn.pretrained import Unfilled, fill, read_pretrained
from scoreline.nn.vit import Block, PatchInput, fast_copy, quick_gelu

__all__ = ["CLIP_MODELS", "CLIPImageEncoder", "CLIPTextEncoder"]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# name -> arguments of the image tower, arguments of the text tower; heads are width / 64 throughout
CLIP_MODELS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "clip-vit-l-14-336": ({"width": 1024, "depth": 24, "patch": 14, "size": 336, "dim": 768}, {"width": 768}),
    "clip-vit-l-14": ({"width": 1024, "depth": 24, "patch": 14, "size": 224, "dim": 768}, {"width": 768}),
    "clip-vit-b-32": ({"width": 768, "depth": 12, "patch": 32, "size": 224, "dim": 512}, {"width": 512, "dim": 512}),
}


def _heads(width: int, heads: int | None) -> int:
    heads = max(width // 64, 1) if heads is None else heads
    if width % heads:
        raise InputError("width", width, f"must be a multiple of heads, {heads}")
    return heads


@recorded
class CLIPImageEncoder(Encoder):
    """CLIP's image tower: images in [-1, 1] to embeddings of the space that texts share, not normalised.

    Quantise to uint8, centre square and Pillow bicubic, CLIP's mean and std, network. Always in eval mode, frozen.

    Args:
        width: channels of a token. depth: blocks. heads: attention heads, None for width / 64.
        patch: pixels of a patch's side. size: pixels of the input's side, a multiple of `patch`.
        dim: length of an embedding.
        resize: "pil-bicubic" or "clean"; crop: "before" resizing (CMMD) or "after" it (CLIP's own, so CLIP scores); see
            `scoreline.nn.vit.PatchInput`.
        quantisation: "uint8-round", "uint8-truncate" or "none".

    The defaults are ViT-L/14 at 336. Untrained as constructed; :meth:`load` reads published weights.

    Raises:
        InputError: sizes that do not fit each other; an unknown rule.
    """

    tap = "embedding"

    def __init__(
        self,
        *,
        width: int = 1024,
        depth: int = 24,
        heads: int | None = None,
        patch: int = 14,
        size: int = 336,
        dim: int = 768,
        resize: str = "pil-bicubic",
        crop: str = "before",
        quantisation: str = "uint8-round",
    ) -> None:
        super().__init__()
        if size < patch or size % patch:
            raise InputError("size", size, f"must be a multiple of the patch, {patch}")
        self.dim, self.name, self.weights_sha256 = dim, "clip-vit-l-14-336", ""
        self._input = PatchInput(size, MEAN, STD, crop=crop, resize=resize, quantisation=quantisation)
        heads = _heads(width, heads)
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(1 + (size // patch) ** 2, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList([Block(width, heads, activation=quick_gelu) for _ in range(depth)])
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, dim))
        self.requires_grad_(False)
        self.eval()

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "features": self.name,
            "tap": self.tap,
            "weights": self.weights_sha256 or fingerprint({}, self.state_dict()),
            "resize": self._input.name,
            "quantisation": self._input.quantisation,
            "precision": str(self.proj.dtype).removeprefix("torch."),
        }

    @property
    def preprocess(self) -> Callable[[Tensor], Tensor]:
        """Images (N, 3, H, W) in [-1, 1] to the network's input (N, 3, size, size)."""
        return self._input

    def activations(self, prepared: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The embeddings of the network's own input (N, 3, size, size)."""
        self.check_taps(names)
        patches = self.conv1(prepared.to(self.proj.dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.blocks:
            x = block(x)
        embedding = self.ln_post(x[:, 0]) @ self.proj
        return dict.fromkeys(names, embedding if embedding.dtype == torch.float64 else embedding.float())

    def fast(self, *, compile: bool = False, dtype: torch.dtype | None = None) -> CLIPImageEncoder:
        """A copy in bfloat16 or with compiled blocks, on request; see :meth:`Encoder.fast`."""
        return fast_copy(self, compile, dtype)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        model: str = "clip-vit-l-14-336",
        resize: str = "pil-bicubic",
        crop: str = "before",
        quantisation: str = "uint8-round",
        trusted: bool = False,
    ) -> CLIPImageEncoder:
        """The image tower with published weights, from a file; nothing is downloaded.

        Args:
            path: OpenAI's .pt, or a .safetensors file with OpenAI's or transformers' names; None searches for the
                former (`scoreline.nn.pretrained.pretrained_folders`).
            model: of `CLIP_MODELS`.
            resize, crop, quantisation: as for the class.
            trusted: read another file than .safetensors whose SHA-256 is not the known one.

        Raises:
            InputError: an unknown model or rule.
            ArtefactError: no such file, an unknown checksum, an unreadable file, or tensors that do not fit.
        """
        sizes = _sizes(model)[0]
        state, file, digest = _read(model, path, trusted)
        with Unfilled():
            net = cls(**sizes, resize=resize, crop=crop, quantisation=quantisation)
        fill(net, state, file, rename=lambda name: name.removeprefix("visual.") if name.startswith("visual.") else None)
        net.name, net.weights_sha256 = model, digest
        return net


@recorded
class CLIPTextEncoder(nn.Module):
    """CLIP's text tower: texts, or tokens, to embeddings (N, dim) of the space that images share, not normalised.

    It is a text encoder in the sense of :mod:`scoreline.nn.text` too: `ids`, `context` and `encode` give the last
    hidden states of a text's tokens, as latent diffusion models read them. It stays frozen there. The tokenizer is
    looked for when it is first needed, or set as `tokenizer`.

    Args:
        width: channels of a token. depth: blocks. heads: attention heads, None for width / 64.
        length: tokens of a text at most. vocabulary: number of tokens; the last one ends a text.
        dim: length of an embedding.

    The defaults are those of ViT-L/14. Untrained as constructed; :meth:`load` reads published weights.
    """

    mask: Tensor
    learns = False

    def __init__(
        self,
        *,
        width: int = 768,
        depth: int = 12,
        heads: int | None = None,
        length: int = 77,
        vocabulary: int = 49408,
        dim: int = 768,
    ) -> None:
        super().__init__()
        self.length, self.dim, self.weights_sha256 = length, width, ""
        self.tokenizer: CLIPTokenizer | None = None
        heads = _heads(width, heads)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(length, width))
        self.blocks = nn.ModuleList([Block(width, heads, activation=quick_gelu) for _ in range(depth)])
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, dim))
        self.register_buffer("mask", torch.ones(length, length, dtype=torch.bool).tril(), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings (N, dim) of tokens (N, L), int64; each text ends with the highest token, zeros may follow."""
        x = self._states(tokens)
        end = tokens.argmax(1)
        return self.ln_final(x[torch.arange(len(x), device=x.device), end]) @ self.text_projection

    def _states(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 2 or tokens.shape[1] > self.length:
            raise InputError("tokens", tuple(tokens.shape), f"(N, L) with L at most {self.length}")
        count = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:count]
        for block in self.blocks:
            x = block(x, self.mask[:count, :count])
        return x

    def ids(self, texts: Sequence[str | None]) -> Tensor:
        """Tokens (N, length), int64, of texts; None is the null caption, start and end.

        Raises:
            InputError: an empty text, or one of more tokens than fit.
            ArtefactError: the tokenizer's table is not there.
        """
        if isinstance(texts, str) or not texts:
            raise InputError("texts", texts, "give a list of texts, at least one")
        for text in texts:
            if text is not None and not text.strip():
                raise InputError("text", text, "is empty; give words, or None for no caption")
        if self.tokenizer is None:
            self.tokenizer = CLIPTokenizer.load()
        return self.tokenizer([text or "" for text in texts], length=self.length)

    def context(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states (N, L, width) of tokens (N, L) after the last norm, and a mask that is True up to the end.

        Models that were trained to read the padding too, as Stable Diffusion's, are given the states without the mask.
        """
        places = torch.arange(ids.shape[-1], device=ids.device)
        return self.ln_final(self._states(ids)), places <= ids.argmax(1, keepdim=True)

    def encode(self, texts: Sequence[str | None]) -> Cond:
        """The conditions Cond(tokens=(N, L, width), mask=(N, L)) of texts."""
        tokens, mask = self.context(self.ids(texts).to(self.text_projection.device))
        return Cond(tokens=tokens, mask=mask)

    def embed(self, texts: Sequence[str], tokenizer: CLIPTokenizer, *, truncate: bool = False) -> Tensor:
        """Embeddings (N, dim) of texts.

        Args:
            texts: N texts.
            tokenizer: CLIP's own.
            truncate: cut texts that are too long, as transformers does, instead of refusing them.

        Raises:
            InputError: a text of more tokens than fit.
        """
        tokens = tokenizer(texts, length=self.length, truncate=truncate)
        return self(tokens.to(self.text_projection.device))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str] | None = None, *, model: str = "clip-vit-l-14-336", trusted: bool = False
    ) -> CLIPTextEncoder:
        """The text tower with published weights; arguments and errors as for :meth:`CLIPImageEncoder.load`."""
        sizes = _sizes(model)[1]
        state, file, digest = _read(model, path, trusted)
        with Unfilled():
            net = cls(**sizes)
        fill(net, state, file, rename=lambda name: None if name.startswith("visual.") else name)
        net.weights_sha256 = digest
        return net


# --- published names ---------------------------------------------------------------------------------------------

# Neither tower's: the temperature of training, and the sizes that OpenAI's files hold beside the tensors.
_LEFT_OUT = ("logit_scale", "input_resolution", "context_length", "vocab_size")

_OPENAI = (
    (r"transformer\.resblocks\.", "blocks."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_TRANSFORMERS = (
    (r"^vision_model\.", "visual."),
    (r"^text_model\.", ""),
    (r"embeddings\.class_embedding$", "class_embedding"),
    (r"embeddings\.patch_embedding\.", "conv1."),
    (r"embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"embeddings\.token_embedding\.", "token_embedding."),
    (r"encoder\.layers\.", "blocks."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"pre_layrnorm\.", "ln_pre."),
    (r"post_layernorm\.", "ln_post."),
    (r"final_layer_norm\.", "ln_final."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_projection\.weight$", "text_projection"),
)


def _sizes(model: str) -> tuple[dict[str, int], dict[str, int]]:
    if model not in CLIP_MODELS:
        raise unknown_name("CLIP model", model, CLIP_MODELS)
    return CLIP_MODELS[model]


def _read(model: str, path: str | os.PathLike[str] | None, trusted: bool) -> tuple[dict[str, Tensor], Path, str]:
    """Tensors of both towers under this file's names, the image tower's beginning with "visual."."""
    state, file, digest = read_pretrained(model, path, trusted=trusted)
    hub = any(name.startswith(("vision_model.", "text_model.")) for name in state)
    return (_from_transformers(state) if hub else _renamed(state, _OPENAI)), file, digest


def _renamed(state: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        if name in _LEFT_OUT or name.endswith(".position_ids"):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = _renamed(state, _TRANSFORMERS)
    for name in ("visual.proj", "text_projection"):
        if name in found:
            found[name] = found[name].T
    for name in [name for name in found if ".self_attn.q_proj." in name]:  # three matrices become one
        parts = [found.pop(name.replace("q_proj", f"{letter}_proj"), None) for letter in "qkv"]
        if all(part is not None for part in parts):
            found[name.replace("self_attn.q_proj", "attn.qkv")] = torch.cat([p for p in parts if p is not None])
    return found
