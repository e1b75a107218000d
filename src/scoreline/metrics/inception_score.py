"""Inception score (Salimans et al. 2016, 1606.03498): exp of the mean divergence of p(y|x) from p(y).

IS = exp( 1/N sum_i sum_c p_ic (log p_ic - log pbar_c) ),  pbar = mean_i p_i

Comparable only with the logits of the Inception-2015 network, WITHOUT the bias, over all 1008 outputs.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.moments import check_features
from scoreline.metrics.intervals import Spread

__all__ = ["inception_score"]

Mode = Literal["torch-fidelity", "drop-remainder", "guided-diffusion"]
MODES = ("torch-fidelity", "drop-remainder", "guided-diffusion")


def inception_score(
    logits: Tensor, *, mode: Mode = "torch-fidelity", splits: int = 10, chunk: int = 5000, seed: int | None = 2020
) -> Spread:
    """Inception score of (N, C) logits: mean and standard deviation (ddof 0) over splits.

    Args:
        logits: (N, C) before the softmax, which is taken in float64.
        mode: how the rows are split.
            "torch-fidelity": shuffled by RandomState(seed) (None: not), split i has rows iN/splits to (i+1)N/splits;
            "drop-remainder": in order, `splits` of N // splits rows, the rest is dropped (sbarratt, dgm-eval);
            "guided-diffusion": in order, consecutive chunks of `chunk` rows, the last may be shorter.
        splits: for the first two modes.
        chunk: for the third.
        seed: for the first.

    Returns:
        Mean, standard deviation and values, each from 1 to C.

    Raises:
        InputError: fewer rows than splits, values that are not finite, an unknown mode.

    Reference: Salimans et al. 2016, 1606.03498.
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    check_features(logits, "logits")
    count = len(logits)
    if mode != "guided-diffusion" and not 1 <= splits <= count:
        raise InputError("splits", splits, f"from 1 to {count}, the number of rows")
    if chunk < 1:
        raise InputError("chunk", chunk, "at least one row")
    if mode == "torch-fidelity":
        if seed is not None:
            order = np.random.RandomState(seed).permutation(count)  # the peer's own shuffle
            logits = logits[torch.from_numpy(order).to(logits.device)]
        bounds = [(i * count // splits, (i + 1) * count // splits) for i in range(splits)]
    elif mode == "drop-remainder":
        bounds = [(i * (count // splits), (i + 1) * (count // splits)) for i in range(splits)]
    else:
        bounds = [(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    return Spread.of([_score(logits[start:stop]) for start, stop in bounds])


def _score(logits: Tensor) -> float:
    log_p = logits.to(torch.float64).log_softmax(dim=1)
    log_pbar = log_p.logsumexp(dim=0) - math.log(len(log_p))
    return float((log_p.exp() * (log_p - log_pbar)).sum(dim=1).mean().exp())
