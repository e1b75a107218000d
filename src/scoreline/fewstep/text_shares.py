"""Partitions of texts: which of several students answers a caption, by where its embedding lies.

    e(y) = mean over tokens of the teacher's text encoder,  k(y) = its quadrant (1 of 4)

The directions are the principal components of the prompts that the teacher knows by number; any other caption goes to
the student whose quadrant it falls into.

Reference: Song et al. 2025 (Multi-student Diffusion Distillation, arXiv 2410.23274), section 5.3. Which two directions
the paper takes is not known; principal components are our choice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.fewstep.class_shares import Shares, check_shares
from scoreline.nn.text import text_network

__all__ = ["QuadrantRouter", "TextRouter", "pooled_texts", "quadrants", "text_router", "text_shares"]


def quadrants(embeddings: Tensor, *, nested: bool = False) -> QuadrantRouter:
    """Four shares of embedded texts: the signs of their first two principal components, thresholds at the medians.

    Args:
        embeddings: (N, D) pooled embeddings of the prompts that are trained on, N at least 4.
        nested: take the second median within each half of the first component, so that the four shares are equal to
            a prompt; medians of the whole make halves equal, not quarters.

    Raises:
        InputError: too few embeddings, or all on a line.
    """
    if embeddings.dim() != 2 or len(embeddings) < 4 or embeddings.shape[1] < 2:
        raise InputError(
            "embeddings", tuple(embeddings.shape), "give at least four rows of two numbers or more, (N, D)"
        )
    rows = embeddings.detach().double().cpu()
    centre = rows.mean(0)
    covariance = (rows - centre).T @ (rows - centre) / len(rows)
    if not bool(torch.isfinite(covariance).all()):
        raise InputError("embeddings", tuple(embeddings.shape), "are not finite")
    sizes, columns = torch.linalg.eigh(covariance)  # ascending
    if sizes[-2] <= 1e-12 * sizes[-1]:
        raise InputError("embeddings", tuple(embeddings.shape), "lie on a line; there is no second component")
    axes = columns[:, [-1, -2]].T
    # A component's sign is arbitrary: its largest entry is made positive.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    at = (rows - centre) @ axes.T
    first = _median(at[:, 0])
    upper = at[:, 0] > first
    second = [_median(at[~upper, 1]), _median(at[upper, 1])] if nested else [_median(at[:, 1])] * 2
    return QuadrantRouter(centre.tolist(), axes.tolist(), [first, *second])


@recorded
class QuadrantRouter(nn.Module):
    """k = 2 [a_1 > m_1] + [a_2 > m_2], a = (e - centre) axes^T of the pooled embedding e of a text.

    Args:
        centre: D numbers.
        axes: two directions of D numbers each.
        thresholds: (m_1, m_2 where a_1 <= m_1, m_2 where a_1 > m_1); the last two are the same unless nested.

    Raises:
        InputError: the numbers do not fit together.
    """

    def __init__(self, centre: Sequence[float], axes: Sequence[Sequence[float]], thresholds: Sequence[float]) -> None:
        super().__init__()
        if len(axes) != 2 or len(thresholds) != 3 or {len(axis) for axis in axes} != {len(centre)}:
            raise InputError("axes", len(axes), "give two directions as long as the centre, and three thresholds")
        self.students = 4
        for name, value in (("centre", centre), ("axes", axes), ("thresholds", thresholds)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64), persistent=False)
        self.centre: Tensor
        self.axes: Tensor
        self.thresholds: Tensor

    def forward(self, cond: Cond | None) -> Tensor:
        """Number of the student of each text, (B,) 0 to 3; tokens without a pooled vector are averaged.

        Raises:
            InputError: there is no text, or its embedding has another size.
        """
        if cond is not None and cond.vector is not None:
            pooled = cond.vector.double()
        elif cond is not None and cond.tokens is not None:
            pooled = _mean_token(cond.tokens.double(), cond.mask)
        else:
            raise InputError("condition", None, "students have a share of the texts each; give a vector or tokens")
        if pooled.shape[1] != len(self.centre):
            raise InputError("embedding", pooled.shape[1], f"texts were shared out by embeddings of {len(self.centre)}")
        first, second = ((pooled - self.centre) @ self.axes.T).unbind(1)
        above = first > self.thresholds[0]
        limit = torch.where(above, self.thresholds[2], self.thresholds[1])
        return 2 * above.long() + (second > limit).long()


@torch.no_grad()
def pooled_texts(encoder: Any, ids: Tensor) -> Tensor:
    """Embeddings of texts, (B, D): the mean of their tokens.

    Args:
        encoder: of texts, see :class:`scoreline.nn.text.TextEncoder`.
        ids: (B, L) numbers of texts.
    """
    return _mean_token(*encoder.context(ids))


@recorded
class TextRouter(QuadrantRouter):
    """k(y) of captions, given as numbers of texts or as numbers of prompts.

    Args:
        encoder: the text encoder whose embeddings were shared out; it is not trained.
        prompts: texts that labels stand for, as the students know them.
        centre, axes, thresholds: see :class:`QuadrantRouter`.
    """

    def __init__(
        self,
        encoder: Any,
        prompts: Sequence[str],
        centre: Sequence[float],
        axes: Sequence[Sequence[float]],
        thresholds: Sequence[float],
    ) -> None:
        super().__init__(centre, axes, thresholds)
        self.encoder = encoder.requires_grad_(False)
        self.register_buffer("by_number", encoder.ids([*prompts]), persistent=False)
        self.by_number: Tensor

    def forward(self, cond: Cond | None) -> Tensor:
        """Number of the student of each caption, (B,) 0 to 3.

        Raises:
            InputError: there is neither caption nor label, or a label is no prompt ("no caption" is nobody's).
        """
        if cond is not None and cond.tokens is not None:
            ids = cond.tokens[:, :, 0]
        elif cond is not None and cond.labels is not None:
            wrong = cond.labels[(cond.labels < 0) | (cond.labels >= len(self.by_number))]
            if len(wrong):
                mend = f"has no student; the prompts are 0 to {len(self.by_number) - 1}"
                raise InputError("label", int(wrong[0]), mend)
            ids = self.by_number[cond.labels]
        else:
            raise InputError("condition", None, "students have a share of the captions each; give captions")
        return super().forward(Cond(vector=pooled_texts(self.encoder, ids)))


def text_router(teacher: Denoiser, partition: Mapping[str, Any]) -> TextRouter:
    """The router of a recipe's `partition: {by: quadrants, nested: false}`.

    Args:
        teacher: reads captions and knows its prompts by number.
        partition: with `nested`, see :func:`quadrants`; `students`, if given, is 4.

    Raises:
        InputError: the teacher reads none, or a key or number is wrong.
    """
    reads = text_network(teacher)
    if reads is None or not reads.prompts:
        raise InputError("partition by", "quadrants", "shares out captions; take a teacher that knows some by number")
    for key in partition:
        if key not in ("by", "students", "nested"):
            raise unknown_name("key of partition by quadrants", str(key), ("by", "students", "nested"))
    if partition.get("students", 4) != 4:
        raise InputError("students", partition["students"], "quadrants are four; leave the number out")
    embedded = pooled_texts(reads.encoder, reads.encoder.ids(reads.prompts))
    cut = quadrants(embedded, nested=bool(partition.get("nested", False)))
    numbers = [getattr(cut, name).tolist() for name in ("centre", "axes", "thresholds")]
    return TextRouter(copy.deepcopy(reads.encoder), reads.prompts, *numbers)


def text_shares(router: TextRouter) -> Shares:
    """Numbers of the prompts of each student.

    Raises:
        InputError: a quadrant is empty.
    """
    count = len(router.by_number)
    numbers = router(Cond(labels=torch.arange(count))).tolist()
    shares = [[y for y in range(count) if numbers[y] == k] for k in range(router.students)]
    check_shares(shares, count)
    return shares


def _median(values: Tensor) -> float:
    return float(values.quantile(0.5))  # halfway between the two middle values: as many lie above as below


def _mean_token(tokens: Tensor, mask: Tensor | None) -> Tensor:
    seen = torch.ones_like(tokens[..., :1]) if mask is None else mask.unsqueeze(-1).to(tokens)
    return (tokens * seen).sum(1) / seen.sum(1).clamp_min(1)
