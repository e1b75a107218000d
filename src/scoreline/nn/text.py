"""Texts as conditions: a small transformer over bytes, and networks that have their text encoder inside.

    ids      start, the bytes of the UTF-8 text, zeros:  (B, L)
    tokens   norm(blocks(embedding(ids) + position)),    (B, L, D), and a mask that is true up to the text's last byte
No text at all is the start alone: the null caption of classifier-free guidance, which training teaches by leaving
captions out.

A network that was given a list of prompts knows them by number, too: label k stands for prompt k, "no label" for the
null caption. So whatever works with classes (matching, pairs, partitions, forgetting, scores) works with texts.

An encoder has `ids(texts)`, `context(ids)` -> (tokens, mask), `encode(texts)` -> Cond, `dim` and `learns`. CLIP's text
tower (:class:`scoreline.nn.clip.CLIPTextEncoder`) is another one, by its published weights.

Reference: Vaswani et al. 2017 (arXiv 1706.03762); Xue et al. 2022 (ByT5, arXiv 2105.13626), for bytes as tokens.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.nn.embeddings import check_inputs, null_cond
from scoreline.nn.network import Network
from scoreline.nn.plan import Plan, Tracer
from scoreline.nn.vit import Block

__all__ = ["ByteTransformer", "TextConditioned", "TextEncoder", "byte_ids", "text_network", "tokens_of", "told_texts"]

PAD, START, FIRST = 0, 1, 2  # a byte b is FIRST + b


class TextEncoder(Protocol):
    """What makes tokens of texts.

    Attributes:
        dim: size of a token.
        learns: whether it is trained with the network that reads it.
    """

    dim: int
    learns: bool

    def ids(self, texts: Sequence[str | None]) -> Tensor:
        """Numbers of texts, (B, L) int64; None is the null caption."""

    def context(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, dim) and mask (B, L), True where a token counts."""


def byte_ids(texts: Sequence[str | None], length: int) -> Tensor:
    """Texts as numbers: 1 starts, a byte b is 2 + b, 0 fills up; (B, length + 1) int64.

    Args:
        texts: B texts; None is no text, which is the start alone.
        length: bytes that fit.

    Raises:
        InputError: a text is empty or too long, or there is none.

    >>> byte_ids(["ab", None], 3).tolist()
    [[1, 99, 100, 0], [1, 0, 0, 0]]
    """
    if isinstance(texts, str) or not texts:
        raise InputError("texts", texts, "give a list of texts, at least one")
    rows = torch.zeros(len(texts), length + 1, dtype=torch.int64)
    rows[:, 0] = START
    for row, text in zip(rows, texts):
        if text is None:
            continue
        if not text.strip():
            raise InputError("text", text, "is empty; give words, or None for no caption")
        found = text.encode()
        if len(found) > length:
            raise InputError("text", text, f"has {len(found)} bytes, {length} fit; shorten it")
        row[1 : 1 + len(found)] = torch.tensor(list(found)) + FIRST
    return rows


@recorded
class ByteTransformer(nn.Module):
    """A small transformer over the bytes of a text; no vocabulary, no download, trained with the network it serves.

    Args:
        width: size of a token, a multiple of `heads`.
        depth: blocks.
        heads: attention heads.
        length: bytes of a text at most.

    Raises:
        InputError: a size is impossible.
    """

    learns = True

    def __init__(self, *, width: int = 64, depth: int = 2, heads: int = 2, length: int = 48) -> None:
        super().__init__()
        if heads < 1 or width < heads or width % heads:
            raise InputError("width", width, f"must be a multiple of heads, {heads}")
        if depth < 0 or length < 1:
            raise InputError("length" if length < 1 else "depth", min(length, depth), "is too small")
        self.dim, self.length = width, length
        self.embedding = nn.Embedding(FIRST + 256, width)
        self.position = nn.Parameter(0.1 * torch.randn(length + 1, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def ids(self, texts: Sequence[str | None]) -> Tensor:
        """Numbers of texts, (B, length + 1), see :func:`byte_ids`."""
        return byte_ids(texts, self.length)

    def context(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, width) and mask (B, L) of numbers (B, L), L at most length + 1.

        Raises:
            InputError: more numbers than there are positions.
        """
        if ids.dim() != 2 or ids.shape[1] > len(self.position):
            raise InputError("text ids", tuple(ids.shape), f"(B, L) with L at most {len(self.position)}")
        mask = ids != PAD
        x = self.embedding(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        return self.norm(x), mask

    def encode(self, texts: Sequence[str | None]) -> Cond:
        """The conditions Cond(tokens=(B, L, width), mask=(B, L)) of texts, for a network with cross-attention."""
        tokens, mask = self.context(self.ids(texts).to(self.position.device))
        return Cond(tokens=tokens, mask=mask)


@recorded
class TextConditioned(Network):
    """A network with cross-attention and its text encoder as one network: its `tokens` are numbers of texts, (B, L, 1).

    So what is trained, averaged, copied and saved holds both. `told(texts)` gives the conditions; the null condition is
    the null caption. Where labels are given and no tokens, they are numbers of the prompts.

    Args:
        net: network with `context_dim` equal to the encoder's size.
        encoder: :class:`ByteTransformer` or :class:`scoreline.nn.clip.CLIPTextEncoder`.
        prompts: texts that are known by number; their count is `num_classes`. None are needed.

    Raises:
        InputError: the network takes no tokens, or tokens of another size; or it knows classes already, or a prompt is
            empty, too long or given twice.
    """

    def __init__(self, net: Network, encoder: Any, prompts: Sequence[str] = ()) -> None:
        super().__init__()
        if "tokens" not in net.accepts:
            raise InputError("network", type(net).__name__, f"takes no tokens; give it context_dim={encoder.dim}")
        wanted = getattr(net, "_arguments", {}).get("context_dim", encoder.dim)
        if wanted != encoder.dim:
            raise InputError("context_dim", wanted, f"the encoder's tokens have size {encoder.dim}")
        twice = [text for text, count in Counter(prompts).items() if count > 1]
        if twice or (prompts and net.num_classes is not None):
            thing = twice[0] if twice else f"{len(prompts)} beside {net.num_classes} classes"
            raise InputError("prompts", thing, "give each once, to a network without classes")
        self.net, self.encoder, self.prompts = net, encoder, list(prompts)
        self.in_shape, self.out_channels, self.num_classes = net.in_shape, net.out_channels, net.num_classes
        self.second_time, self.accepts = net.second_time, net.accepts - {"mask"}
        if prompts:
            self.num_classes, self.accepts = len(prompts), self.accepts | {"labels"}
            self.register_buffer("by_number", self.told([*prompts, None]), persistent=False)
        self.by_number: Tensor
        self.num_layers, self.num_attention_maps = net.num_layers, net.num_attention_maps
        self.joints, self.taps = net.joints, net.taps
        self._null: Tensor | None = None

    def over(self, net: nn.Module) -> TextConditioned:
        """Another network with a copy of this one's encoder, and its prompts."""
        return TextConditioned(net, copy.deepcopy(self.encoder), self.prompts)  # type: ignore[arg-type]

    def told(self, texts: Sequence[str | None]) -> Tensor:
        """What Cond(tokens=...) is given for texts, (B, L, 1) int64; None is the null caption."""
        return self.encoder.ids(texts)[:, :, None]

    def null(self, cond: Cond | None) -> Cond:
        """`cond` with no class and the null caption."""
        texts = cond is not None and cond.labels is None and cond.tokens is not None
        given = null_cond(cond, None if self.prompts and texts else self.num_classes)
        if given.tokens is None:
            return given
        return given.replace(tokens=self.null_tokens(given.tokens).expand(len(given.tokens), -1, -1))

    def null_tokens(self, like: Tensor) -> Tensor:
        """The null caption, (1, L, 1), where `like` is."""
        if self._null is None:
            self._null = self.told([None])
        if self._null.device != like.device:
            self._null = self._null.to(like.device)
        return self._null

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As for any module, but an encoder that does not learn stays as it is."""
        super().requires_grad_(requires_grad)
        if not self.encoder.learns:
            self.encoder.requires_grad_(False)
        return self

    def _checked(self, x: Tensor, t: Tensor, cond: Cond | None) -> Cond:
        if cond is not None and self.prompts and cond.labels is not None:
            tokens = self.by_number[cond.labels] if cond.tokens is None else cond.tokens
            cond = cond.replace(labels=None, tokens=tokens)
        if cond is None or cond.tokens is None:
            raise InputError("text", None, "this network takes captions: pass Cond(tokens=net.told([...]))")
        accepts, times = self.net.accepts - {"mask"}, 2 if self.second_time else 1
        return check_inputs(f"this {type(self).__name__}", x, t, cond, self.in_shape, accepts, times)

    def _run(self, x: Tensor, t: Tensor, cond: Cond, tracer: Tracer | None) -> Tensor | None:
        assert cond.tokens is not None
        # Tokens of no channels are how shapes of features are probed: the null caption.
        ids = cond.tokens if cond.tokens.shape[-1] else self.null_tokens(cond.tokens)
        tokens, mask = self.encoder.context(ids[:, :, 0])
        return self.net._run(x, t, cond.replace(tokens=tokens, mask=mask), tracer)

    def check(self, plan: Plan) -> None:
        self.net.check(plan)


def text_network(model: nn.Module) -> TextConditioned | None:
    """The network inside a model (a denoiser, views of one, a student, the first of several) that takes captions, or
    None."""
    found: Any = model
    students = getattr(model, "students", None)
    if isinstance(students, nn.ModuleList):
        found = students[0]
    while isinstance(getattr(found, "inner", None), nn.Module):
        found = found.inner
    found = getattr(found, "net", found) if not isinstance(found, TextConditioned) else found
    return found if isinstance(found, TextConditioned) else None


def told_texts(model: nn.Module, texts: Sequence[str | None]) -> Cond:
    """The conditions of a model that takes captions, Cond(tokens=...).

    Args:
        model: holds a :class:`TextConditioned`.
        texts: one an image; None is the null caption.

    Raises:
        InputError: the model takes no captions, or a text is empty or too long.
    """
    net = text_network(model)
    if net is None:
        raise InputError("text", texts[0] if texts else None, "this model takes no captions")
    return Cond(tokens=net.told(texts))


def tokens_of(model: nn.Module, batch: Any, without: Tensor | None = None) -> Tensor | None:
    """Numbers of a batch's captions, (B, L, 1), as a model takes them; None for a model that takes none, and where a
    batch has none for a model that knows prompts by number.

    Args:
        model: see :func:`text_network`.
        batch: its captions are `extras["caption"]`, an empty one is the null caption.
        without: (B,) bool, where the null caption is told instead.

    Raises:
        InputError: the model takes captions and the batch has none.
    """
    net = text_network(model)
    if net is None:
        return None
    texts = batch.extras.get("caption")
    if texts is None and net.prompts:
        return None
    if texts is None:
        raise InputError("captions", None, "the model takes captions; give data with some, e.g. captions: digits")
    told = net.told([text or None for text in texts]).to(batch.image.device, non_blocking=True)
    return told if without is None else torch.where(without[:, None, None], net.null_tokens(told), told)
