"""CLIP score: how well images fit their texts, by the cosine of CLIP's two embeddings; three conventions in use.

"torchmetrics"  max(100 mean_i cos_i, 0)              default network there: ViT-L/14
"clipscore"     mean_i 2.5 max(cos_i, 0)              Hessel et al. 2021 (2104.08718), ViT-B/32
"cosine"        mean_i cos_i                          text-to-image papers, about .3

The numbers differ by a factor of 100 or 2.5, and the networks differ too: name both with the value.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.moments import check_features

__all__ = ["CONVENTIONS", "clip_score", "cosines"]

Convention = Literal["torchmetrics", "clipscore", "cosine"]
CONVENTIONS = ("torchmetrics", "clipscore", "cosine")


def cosines(image: Tensor, text: Tensor) -> Tensor:
    """Cosine of every image's embedding with its own text's.

    cos_i = a_i . b_i / (|a_i| |b_i|)

    Args:
        image: (N, d) embeddings, of any length. text: (N, d), row i of the text that belongs to image i.

    Returns:
        (N,) float64 in [-1, 1].

    Raises:
        InputError: shapes that do not fit, values that are not finite, a row of zeros.
    """
    check_features(image, "image")
    check_features(text, "text", dim=image.shape[1])
    if len(image) != len(text):
        raise InputError("counts", (len(image), len(text)), "every image needs its own text, in the same order")
    units = []
    for name, rows in (("image", image), ("text", text)):
        rows = rows.to(torch.float64)
        length = rows.norm(dim=1, keepdim=True)
        if not bool((length > 0).all()):
            raise InputError(name, "a row of zeros", "an embedding of length 0 has no direction; look at the network")
        units.append(rows / length)
    return (units[0] * units[1]).sum(dim=1).clamp(-1, 1)


def clip_score(image: Tensor, text: Tensor, *, convention: Convention = "torchmetrics") -> float:
    """CLIP score of (N, d) image embeddings and the embeddings of their texts.

    Args:
        image, text: as for :func:`cosines`.
        convention: "torchmetrics", "clipscore" or "cosine", the formulas above.

    Returns:
        The score: up to 100, 2.5 or 1.

    Raises:
        InputError: an unknown convention, or as for :func:`cosines`.

    Reference: Hessel et al. 2021, 2104.08718.

    >>> image, text = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [-3.0, 4.0]])
    >>> [round(clip_score(image, text, convention=c), 6) for c in CONVENTIONS]  # cosines .6 and -.6
    [0.0, 0.75, 0.0]
    """
    if convention not in CONVENTIONS:
        raise unknown_name("convention", convention, CONVENTIONS)
    found = cosines(image, text)
    if convention == "torchmetrics":
        return max(100 * float(found.mean()), 0.0)
    if convention == "clipscore":
        return float(2.5 * found.clamp(min=0).mean())
    return float(found.mean())
