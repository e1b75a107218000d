"""Precision and recall (Kynkaanniemi et al. 2019, 1904.06991), density and coverage (Naeem et al. 2020, 2002.09797).

With r_k(x) the distance from x to its k-th nearest OTHER point of the same set, and ball(x) what is nearer than that:

precision = share of generated points inside some real ball
recall    = share of real points inside some generated ball
density   = 1/(kM) sum_j #{i: y_j in ball(x_i)}           (may exceed 1)
coverage  = share of real points whose ball contains a generated point

Adding noise to the generated points RAISES recall: a known defect, which density and coverage repair.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scoreline.core.errors import unknown_name
from scoreline.core.moments import check_features
from scoreline.core.pairwise import distance_blocks, kth_nearest

__all__ = ["PRDC", "prdc"]

# mode -> (k, strict)
MODES = {"prdc": (5, True), "kynkaanniemi": (3, False)}


class PRDC(NamedTuple):
    """The four shares; density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(
    real: Tensor,
    generated: Tensor,
    *,
    mode: Literal["prdc", "kynkaanniemi"] = "prdc",
    k: int | None = None,
    strict: bool | None = None,
    distance: Literal["auto", "direct", "gram"] = "auto",
) -> PRDC:
    """Precision, recall, density and coverage of (M, d) generated against (N, d) real features.

    Args:
        real: (N, d), N > k. generated: (M, d), M > k.
        mode: "prdc" (inside is <, k = 5: Naeem et al.) or "kynkaanniemi" (inside is <=, k = 3: Kynkaanniemi et al.,
            guided-diffusion, torch-fidelity).
        k: neighbours, None for the mode's own.
        strict: < (True) or <= (False), None for the mode's own.
        distance: how distances are computed (`scoreline.core.pairwise`); always float64, in blocks of bounded memory.

    Returns:
        (precision, recall, density, coverage).

    Raises:
        InputError: k < 1, sets of at most k points, shapes that do not fit, values that are not finite.

    Reference: 1904.06991, 2002.09797.
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    k = MODES[mode][0] if k is None else k
    strict = MODES[mode][1] if strict is None else strict
    check_features(real, "real")
    check_features(generated, "generated", dim=real.shape[1])
    real_radii, generated_radii = kth_nearest(real, k, way=distance), kth_nearest(generated, k, way=distance)
    inside = torch.lt if strict else torch.le

    balls_around_generated = torch.zeros(len(generated), dtype=torch.int64, device=real.device)
    recalled = covered = 0
    for rows, squared in distance_blocks(real, generated, way=distance):
        in_real_ball = inside(squared, real_radii[rows, None])
        balls_around_generated += in_real_ball.sum(dim=0)
        covered += int(in_real_ball.any(dim=1).sum())
        recalled += int(inside(squared, generated_radii).any(dim=1).sum())
    return PRDC(
        precision=float((balls_around_generated > 0).double().mean()),
        recall=recalled / len(real),
        density=float(balls_around_generated.sum()) / (k * len(generated)),
        coverage=covered / len(real),
    )
