"""The exact likelihood of a diffusion model, by the probability-flow ODE, in nats and in bits a dimension.

    log p(x_0) = log p_T(x_T) + integral of div f over the ODE from x_0 to x_T
Integrated in the angle phi (:mod:`scoreline.diffusion.sde`) with u = x/r, together with the state, by the adaptive
Dormand-Prince of our own; the change of units adds D log(r_T/r_0). The prior is N(0, sigma_T^2 I): exact where no
signal is left, close where sigma_T is much larger than the data (VE).

Likelihoods of stored pictures need dequantisation. Pixels on L levels become continuous by noise within their bin, of
width w; the density then bounds the probability of the levels themselves:
    bits/dim = -log p(x)/(D log 2) - log2(w)
With x = 2 (k + u)/L - 1, w = 2/L, this is the "+7" for 8 bits on [-1, 1] (and would be +8 on [0, 1]); other depths and
ranges have other offsets. Without dequantisation there is no offset, and densities at the levels grow without bound.

Reference: Song et al. 2021 (arXiv 2011.13456), section 4.3 and appendix D.2; Chen et al. 2018; Grathwohl et al. 2019;
Theis, van den Oord & Bethge 2016 for dequantisation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import Draws
from scoreline.diffusion.dormand_prince import check_tolerances, integrate
from scoreline.diffusion.sde import angle, bound_inside, flow_slope, radius

__all__ = ["BINS", "DIVERGENCES", "Likelihood", "bin_width", "bits_per_dim", "dequantised", "log_likelihood"]

DIVERGENCES = ("rademacher", "gaussian", "exact")
BINS = ("paper", "centred")


class Likelihood(NamedTuple):
    """The likelihood of a batch.

    Attributes:
        log_p: (B,) float64, natural logarithm of the density at each image.
        latents: (B, ...) state at t_max divided by the size of the prior. Their mean square is about 1; where it is far
            above, the model was asked where it never learned, and log_p tells of its errors there.
        evaluations: (B,) int64 network evaluations, each with one backward pass a probe (`exact`: one a dimension).
    """

    log_p: Tensor
    latents: Tensor
    evaluations: Tensor


def bin_width(levels: int, bins: str = "paper") -> float:
    """w, the width on [-1, 1] of the bin of one of `levels` values; see :func:`dequantised`.

    >>> -math.log2(bin_width(256))
    7.0
    """
    if bins not in BINS:
        raise unknown_name("bins", bins, BINS)
    if levels < 2:
        raise InputError("levels", levels, "pixels have at least 2 levels; 256 for 8 bits")
    return 2 / levels if bins == "paper" else 2 / (levels - 1)


def dequantised(images: Tensor, levels: int, uniform: Tensor, *, bins: str = "paper") -> Tensor:
    """Continuous images: noise spread evenly over the bin of each pixel's level k = (x + 1)/2 (L - 1).

    paper: x' = 2 (k + u)/L - 1, the L bins fill [-1, 1];  centred: x' = x + (2 u - 1)/(L - 1), bins around the values.

    Args:
        images: (B, ...) on L equal levels from -1 to 1.
        levels: L, 256 for 8 bits, 17 for the digits.
        uniform: u, (B, ...) in [0, 1).
        bins: "paper" or "centred".

    Raises:
        InputError: a pixel lies on none of the levels.
    """
    bin_width(levels, bins)
    k = (images.double() + 1) / 2 * (levels - 1)
    whole = k.round()
    off = (k - whole).abs().max()
    # 2^-10: single precision, and half precision with few levels.
    if not bool(off < 2**-10) or bool((whole < 0).any()) or bool((whole >= levels).any()):
        raise InputError("levels", levels, "the images do not lie on so many equal levels from -1 to 1; 0 for none")
    if bins == "centred":
        return 2 * (whole + uniform - 0.5) / (levels - 1) - 1
    return 2 * (whole + uniform) / levels - 1


def bits_per_dim(log_p: Tensor, dims: int, width: float = 1.0) -> Tensor:
    """-log p/(D log 2) - log2(w), (B,).

    Args:
        log_p: (B,) log density, nats.
        dims: D, numbers in an image.
        width: w of :func:`bin_width`; 1 for the density itself, which may be negative in bits.

    >>> float(bits_per_dim(torch.tensor([0.0]), 4, width=2 / 256))
    7.0
    """
    return -log_p.double() / (dims * math.log(2)) - math.log2(width)


def log_likelihood(
    denoiser: Denoiser,
    images: Tensor,
    *,
    divergence: str = "rademacher",
    draws: Draws | None = None,
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float | None = None,
    t: float | None = None,
) -> Likelihood:
    """log p of images under the probability-flow ODE.

    Args:
        denoiser: the model, with the conditions of these images bound by `given`.
        images: (B, *shape), taken as the state at time `t`, scaled by alpha(t); their density is returned.
        divergence: "rademacher" or "gaussian": v^T J v with one fixed v a probe (Hutchinson), unbiased in log p;
            "exact": the trace, D backward passes an evaluation.
        draws: the images' noise streams, for the probes; "exact" needs none.
        probes: average over so many v.
        rtol, atol: tolerances of the integration (state, u of unit size, and log density alike); atol None takes rtol.
        t: least time; None takes the schedule's t_min (1e-5 in the paper).

    Returns:
        Likelihood, integrated in float64.

    Raises:
        InputError: a shape, name or number does not fit, or the device has no float64.
    """
    if divergence not in DIVERGENCES:
        raise unknown_name("divergence", divergence, DIVERGENCES)
    if tuple(images.shape[1:]) != tuple(denoiser.shape):
        raise InputError("images", tuple(images.shape), f"the model knows images of shape {tuple(denoiser.shape)}")
    if probes < 1:
        raise InputError("probes", probes, "must be 1 or more")
    if divergence != "exact" and (draws is None or len(draws) != len(images)):
        raise InputError("draws", None if draws is None else len(draws), "Hutchinson's probes need a stream an image")
    atol = rtol if atol is None else atol
    check_tolerances(rtol, atol)
    if images.device.type == "mps":
        raise InputError("device", "mps", "has no float64, which the integration needs; use cpu or cuda")
    schedule = denoiser.schedule
    start, end = schedule.t_min if t is None else t, schedule.t_max
    if not schedule.clean < start < end:
        raise InputError("t", start, f"the integration starts after {schedule.clean} and before {end}")
    denoiser.check(start)
    x = images.double() * float(schedule.alpha(start))
    batch, dims = len(x), x[0].numel()
    cond, compact = denoiser._given, not bound_inside(denoiser)
    v = None if divergence == "exact" else _probes(divergence, draws, x, probes)

    def slope(y: Tensor, phi: Tensor, rows: Tensor | None) -> Tensor:
        given = cond if cond is None or rows is None else cond[rows]
        with torch.enable_grad():
            u = y[:, :dims].detach().view(-1, *x.shape[1:]).requires_grad_()
            f = flow_slope(denoiser, u, phi, given)
            div = _divergence(f, u, None if v is None else v if rows is None else v[:, rows])
        return torch.cat([f.detach().flatten(1), div.detach()[:, None]], 1)

    r0, r1 = float(radius(schedule, start)), float(radius(schedule, end))
    y = torch.cat([(x / r0).flatten(1), x.new_zeros(batch, 1)], 1)
    solved = integrate(slope, y, angle(schedule, start), angle(schedule, end), rtol=rtol, atol=atol, compact=compact)
    last = solved.y[:, :dims] * r1
    std = float(schedule.prior())
    log_prior = -0.5 * (last / std).double().square().sum(1) - 0.5 * dims * math.log(2 * math.pi * std**2)
    # Densities of x at the end, of u there, of u at the start, of x, and of the image itself.
    log_p = log_prior + solved.y[:, dims].double() + dims * (math.log(r1 / r0) + math.log(float(schedule.alpha(start))))
    return Likelihood(log_p, (last / std).view_as(x), solved.evaluations * denoiser.evaluations)


def _probes(kind: str, draws: Draws | None, x: Tensor, count: int) -> Tensor:
    """(count, B, ...) probes with E[v v^T] = I."""
    assert draws is not None
    drawn = torch.stack([draws.derived("probe").normal(0, part) for part in range(count)]).to(x)
    return torch.where(drawn < 0, -1.0, 1.0).to(x) if kind == "rademacher" else drawn


def _divergence(f: Tensor, u: Tensor, v: Tensor | None) -> Tensor:
    """div f = trace(df/du) of each image, (B,): exact without v, else the mean of v^T (df/du) v over probes."""
    if v is not None:
        total = torch.zeros(len(u), dtype=u.dtype, device=u.device)
        for i, probe in enumerate(v):
            (vJ,) = torch.autograd.grad((f * probe).sum(), u, retain_graph=i + 1 < len(v))
            total = total + (vJ * probe).flatten(1).sum(1)
        return total / len(v)
    flat, total = f.flatten(1), torch.zeros(len(u), dtype=u.dtype, device=u.device)
    for d in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, d].sum(), u, retain_graph=d + 1 < flat.shape[1])
        total = total + row.flatten(1)[:, d]
    return total
