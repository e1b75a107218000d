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
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.fewstep.msd import QuadrantRouter, Shares, check_shares, quadrants
from scoreline.nn.text import text_network

__all__ = ["TextRouter", "pooled_texts", "text_router", "text_shares"]


@torch.no_grad()
def pooled_texts(encoder: Any, ids: Tensor) -> Tensor:
    """Embeddings of texts, (B, D): the mean of their tokens.

    Args:
        encoder: of texts, see :class:`scoreline.nn.text.TextEncoder`.
        ids: (B, L) numbers of texts.
    """
    tokens, mask = encoder.context(ids)
    seen = mask.unsqueeze(-1).to(tokens)
    mean: Tensor = (tokens * seen).sum(1) / seen.sum(1).clamp_min(1)
    return mean


@recorded
class TextRouter(QuadrantRouter):
    """k(y) of captions, given as numbers of texts or as numbers of prompts.

    Args:
        encoder: the text encoder whose embeddings were shared out; it is not trained.
        prompts: texts that labels stand for, as the students know them.
        centre, axes, thresholds: see :class:`scoreline.fewstep.msd.QuadrantRouter`.
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
        partition: with `nested`, see :func:`scoreline.fewstep.msd.quadrants`; `students`, if given, is 4.

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
