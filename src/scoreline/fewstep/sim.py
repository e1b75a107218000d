"""SIM: one-step distillation by matching scores in any distance, without data.

    D = int w(t) E d(y_t) dt,   y_t = s_p(x_t) - s_q(x_t)           s_p the generator's score, s_q the teacher's
    L = E[-w(t) d'(y_t)^T (s_phi(x_t) - grad log q(x_t|x_0))],   x_0 = G(z),  x_t = alpha x_0 + sigma eps
With s_phi = s_p the gradient of L is that of D at a frozen law of x_t, and its value is 0 whatever the generator is.
The parameters of s_phi are constants in L; gradients flow through x_0 and through x_t wherever they occur.

    d       |y|^2        sqrt(|y|^2 + c^2) - c (pseudo-Huber)      |y|_p^p
    d'      2 y          y/sqrt(|y|^2 + c^2), norm of an image     p |y|^(p-1) sign y
On clean images, s = (alpha D - x_t)/sigma^2, so y = alpha/sigma^2 (D_f - D_r) and the other factor is
alpha/sigma^2 (D_f - x_0): `sim_loss` leaves both factors out (w takes them up), `sim_score_loss` keeps them.
With d = |y|^2 and half of it, the loss on clean images is SiD's with alpha = 1 and no normaliser.

What the paper does not say and is chosen here: clean images, c = 0.01, w = 1, SiD's levels.

Reference: Luo et al. 2024 (Score Implicit Matching, arXiv 2410.16794).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.schedule import Time, arithmetic, spread
from scoreline.fewstep.matching import Matched
from scoreline.fewstep.mean_map import MeanMap
from scoreline.fewstep.through import SIGMA_INIT, TOP, Through

__all__ = ["C", "DISTANCES", "SIM", "SPACES", "conditional_score", "distance_gradient", "distance_value"]
__all__ += ["mean_score", "sim_loss", "sim_score_loss", "text_levels", "text_scalings", "text_time"]

DISTANCES = ("pseudo-huber", "squared", "lp")
SPACES = ("image", "score")
C, P = 1e-2, 4.0
TINY = 1e-6


def distance_value(y: Tensor, distance: str = "pseudo-huber", *, c: float = C, p: float = P) -> Tensor:
    """d(y) of each image, (B,): |y|^2, sqrt(|y|^2 + c^2) - c, or the sum of |y|^p over its entries.

    Args:
        y: (B, ...).
        distance: one of `DISTANCES`.
        c: of the pseudo-Huber distance, > 0.
        p: of "lp", > 1.

    Raises:
        InputError: an unknown name, or c or p out of range.
    """
    _check(distance, c, p)
    if distance == "lp":
        return y.abs().pow(p).flatten(1).sum(1)
    square = y.square().flatten(1).sum(1)
    return square if distance == "squared" else square / ((square + c * c).sqrt() + c)


def distance_gradient(y: Tensor, distance: str = "pseudo-huber", *, c: float = C, p: float = P) -> Tensor:
    """d'(y), like y, with its graph: 2 y, y/sqrt(|y|^2 + c^2), or p |y|^(p-1) sign y.

    Args:
        y: (B, ...); the pseudo-Huber norm is over all entries of an image.
        distance, c, p: see :func:`distance_value`.

    Raises:
        InputError: an unknown name, or c or p out of range.

    >>> distance_gradient(torch.tensor([[3.0, 4.0]]), c=12.0).tolist()
    [[0.23076923191547394, 0.3076923191547394]]
    """
    _check(distance, c, p)
    if distance == "squared":
        return 2 * y
    if distance == "lp":
        return p * y * y.abs().clamp_min(TINY).pow(p - 2)
    return y / spread((y.square().flatten(1).sum(1) + c * c).sqrt(), y)


def sim_loss(
    x: Tensor,
    real: Tensor,
    fake: Tensor,
    distance: str = "pseudo-huber",
    *,
    c: float = C,
    p: float = P,
    weight: Tensor | None = None,
) -> Tensor:
    """-w d'(D_f - D_r)^T (D_f - x) of each image, (B,): a sum over its entries, on clean images.

    Args:
        x: the generator's images, (B, ...), with their graph.
        real, fake: the teacher's D_r and the online network's D_f at the same x_t, with their graphs through it.
        distance, c, p: see :func:`distance_value`.
        weight: w of each image, (B,); None is 1.

    Raises:
        InputError: an unknown name, or c or p out of range.

    Reference: Luo et al. 2024, section 3.2.
    """
    return _projected(fake - real, fake - x, distance, c, p, weight)


def sim_score_loss(
    teacher: Tensor,
    online: Tensor,
    conditional: Tensor,
    distance: str = "pseudo-huber",
    *,
    c: float = C,
    p: float = P,
    weight: Tensor | None = None,
) -> Tensor:
    """-w d'(s_phi - s_q)^T (s_phi - grad log q(x_t|x_0)) of each image, (B,): a sum over its entries, in scores.

    Args:
        teacher, online: s_q and s_phi at the same x_t, (B, ...), with their graphs through it.
        conditional: see :func:`conditional_score`.
        distance, c, p, weight: see :func:`sim_loss`. The squared distance grows like sigma^-4 here.

    Raises:
        InputError: an unknown name, or c or p out of range.

    Reference: Luo et al. 2024, section 3.2.
    """
    return _projected(online - teacher, online - conditional, distance, c, p, weight)


def conditional_score(x: Tensor, x_t: Tensor, alpha: Time, sigma: Time) -> Tensor:
    """grad log q(x_t|x_0) = (alpha x_0 - x_t)/sigma^2, the score of the noising itself.

    Args:
        x, x_t: clean and noised images, (B, ...).
        alpha, sigma: float or (B,).
    """
    return (spread(alpha, x) * x - x_t) / spread(sigma * sigma, x)


def mean_score(mean: Tensor, x_t: Tensor, alpha: Time, sigma: Time) -> Tensor:
    """s = (alpha D - x_t)/sigma^2 of a denoiser's answer D = E[x_0|x_t].

    Args:
        mean, x_t: (B, ...).
        alpha, sigma: float or (B,).
    """
    return conditional_score(mean, x_t, alpha, sigma)


class SIM(Through):
    """Score implicit matching.

    Args:
        student, teacher, critic, sigma_init, top, ratio, guidance, classes, lr, critic_lr, optimizer, settings, clip,
            clip_value: see :class:`scoreline.fewstep.through.Through`.
        distance, c, p: see :func:`distance_value`.
        space: what d measures: differences of clean "image" estimates or of "score".
        power: w = (sigma^2/alpha)^power; with "score", 1 (pseudo-Huber) and 2 (squared) undo the scores' own factor.

    Raises:
        InputError: a setting is out of range, or student, teacher and critic do not fit.
    """

    def __init__(
        self,
        student: MeanMap,
        teacher: Denoiser,
        critic: Denoiser | None = None,
        *,
        distance: str = "pseudo-huber",
        c: float = C,
        p: float = P,
        space: str = "image",
        power: float = 0.0,
        sigma_init: float = SIGMA_INIT,
        top: float = TOP,
        ratio: int = 1,
        guidance: float | None = None,
        classes: Sequence[int] | None = None,
        lr: float | Callable[[int], float] = 1e-5,
        critic_lr: float | Callable[[int], float] = 1e-5,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        _check(distance, c, p)
        if space not in SPACES:
            raise unknown_name("space", space, SPACES)
        super().__init__(
            student, teacher, critic, sigma_init=sigma_init, top=top, ratio=ratio, guidance=guidance, classes=classes,
            lr=lr, critic_lr=critic_lr, optimizer=optimizer, settings=settings, clip=clip, clip_value=clip_value,
        )  # fmt: skip
        self.distance, self.c, self.p, self.space, self.power = distance, c, p, space, power

    def term(self, m: Matched) -> Tensor:
        alpha, sigma = self.schedule.alpha(m.t), self.schedule.sigma(m.t)
        weight = (sigma * sigma / alpha) ** self.power if self.power else None
        if self.space == "image":
            each = sim_loss(m.x, m.real, m.fake, self.distance, c=self.c, p=self.p, weight=weight)
        else:
            teacher, online, conditional = (mean_score(d, m.x_t, alpha, sigma) for d in (m.real, m.fake, m.x))
            each = sim_score_loss(teacher, online, conditional, self.distance, c=self.c, p=self.p, weight=weight)
        return each.mean()


def text_levels(count: int = 1000, *, first: float = 1e-4, last: float = 0.02) -> NDArray[np.float64]:
    """Levels of the text model, (count + 1,) float64, falling to 0: its linear-beta table in units of sigma.

    u_count = 0,  u_{j-1} = sqrt((u_j^2 + 1)/max(1 - beta_j, 0.001) - 1),  beta_j = last + (first - last) j/count

    Args:
        count: steps of the table.
        first, last: beta at the clean and at the noisy end.

    Reference: Luo et al. 2024, the released wrapper.

    >>> u = text_levels()
    >>> len(u), round(float(u[0]), 1), float(u[-1])
    (1001, 156.6, 0.0)
    """
    u = np.zeros(count + 1)
    for j in range(count, 0, -1):
        beta = last + (first - last) * j / count
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(1 - beta, 1e-3) - 1)
    return u


def text_time(sigma: Time, count: int = 1000) -> Any:
    """What the text model's network is told of sigma: count - 1 less the index of the nearest level, 0 or more.

    Args:
        sigma: float, array or tensor, >= 0; 2.5, where the generator starts, is 440.
        count: steps of its table.

    >>> int(text_time(2.5))
    440
    """
    levels = text_levels(count)
    if isinstance(sigma, Tensor):
        known = torch.from_numpy(levels).to(sigma.device)
        return (count - 1 - (sigma.double().unsqueeze(-1) - known).abs().argmin(-1)).clamp_min(0)
    return np.maximum(count - 1 - np.abs(np.asarray(sigma, dtype=np.float64)[..., None] - levels).argmin(-1), 0)


def text_scalings(sigma: Time) -> tuple[Time, Time, Time]:
    """(c_skip, c_out, c_in) = (1, -sigma, 1/sqrt(sigma^2 + 1)) of the text model: its network estimates the noise.

    Args:
        sigma: float, array or tensor.
    """
    return 0 * sigma + 1.0, -sigma, 1 / arithmetic(sigma).sqrt(sigma * sigma + 1)


def _projected(y: Tensor, b: Tensor, distance: str, c: float, p: float, weight: Tensor | None) -> Tensor:
    each = -(distance_gradient(y, distance, c=c, p=p) * b).flatten(1).sum(1)
    return each if weight is None else each * weight.to(each)


def _check(distance: str, c: float, p: float) -> None:
    if distance not in DISTANCES:
        raise unknown_name("distance", distance, DISTANCES)
    if distance == "pseudo-huber" and not c > 0:
        raise InputError("c", c, "must be positive; the squared distance is the limit of large c")
    if distance == "lp" and not p > 1:
        raise InputError("p", p, "must be above 1, or d' jumps")
