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

from torch import Tensor

from scoreline.core.errors import unknown_name
from scoreline.core.moments import check_features
from scoreline.core.neighbours import ball_counts, kth_nearest

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
    distance: Literal["auto", "direct", "filtered"] = "auto",
) -> PRDC:
    """Precision, recall, density and coverage of (M, d) generated against (N, d) real features.

    Args:
        real: (N, d), N > k. generated: (M, d), M > k.
        mode: "prdc" (inside is <, k = 5: Naeem et al.) or "kynkaanniemi" (inside is <=, k = 3: Kynkaanniemi et al.,
            guided-diffusion, torch-fidelity).
        k: neighbours, None for the mode's own.
        strict: < (True) or <= (False), None for the mode's own.
        distance: how distances are computed (`scoreline.core.neighbours`): all from differences, or only those that
            products leave open. The answer is the same, bit by bit, and memory bounded.

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
    counts = ball_counts(real, generated, x_radii=real_radii, y_radii=generated_radii, strict=strict, way=distance)
    return PRDC(
        precision=int((counts.in_x_balls > 0).sum()) / len(generated),
        recall=int((counts.in_y_balls > 0).sum()) / len(real),
        density=int(counts.in_x_balls.sum()) / (k * len(generated)),
        coverage=int((counts.of_x_balls > 0).sum()) / len(real),
    )
