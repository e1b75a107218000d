"""2-rectified flow++: one round of reflow, trained so well that nothing needs to be distilled afterwards.

Time is t = 0 for data x and t = 1 for noise z, as in the paper; x_t = (1 - t) x + t z on pairs (z, x) of a teacher.
    student    the teacher's EDM network as it is: v = (x_t - D)/t, D its denoiser at x_t/(1-t), sigma = t/(1-t)
    levels     t ~ p(t) = a/(2 sinh(a/2)) cosh(a (t - 1/2)), a = 4: the loss of reflow is largest at both ends
    Huber      hub = (sqrt(|v - (z - x)|^2 + c^2) - c)/d, d entries
    LPIPS      lp = LPIPS(up224(xhat), up224(x)), xhat = x_t - t v
    loss       D: hub      E: (1 - t) hub + lp      F: (1 - t) hub + lp/t
    G          F, then a little more on real images with the noise that the teacher's flow takes them to
Any premetric may be used, since on pairs of a nearly straight flow the best answer is the target itself; on independent
couplings only the squared one has E[z - x | x_t] as its minimum.

c: the released code, with which the paper's figures were made, has 0.00054 d ("linear"); the rule that it cites is
0.00054 sqrt(d) ("sqrt"). With the linear one the metric is nearly a squared distance.

Reference: Lee, Lin & Fanti 2024 (Improving the Training of Rectified Flows), arXiv 2405.20320, and code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.method import Method, Update
from scoreline.core.noise import Draws, Noise
from scoreline.core.schedule import Time, arithmetic, spread
from scoreline.data.pair_store import Pairs
from scoreline.diffusion.levels import draw_levels, mirrored, u_shaped
from scoreline.fewstep.distances import Distance, distance, huber_constant, pseudo_huber
from scoreline.fewstep.flows import (
    check_flow,
    conditions,
    flow_student,
    interpolate,
    invert,
    network_of,
    stage_straightness,
    starting_from,
    velocity_loss,
    velocity_target,
)
from scoreline.samplers.generator import Sampled
from scoreline.samplers.straight import Straight

__all__ = ["PREMETRICS", "RFPP", "edm_velocity", "huber", "inverted_pairs", "rfpp_loss", "weights"]

Lr = float | Callable[[int], float]

PREMETRICS = ("squared", "huber", "lpips-huber", "lpips-huber/t")
"""The paper's configurations B and C, D, E, F."""


def edm_velocity(x: Tensor, raw: Tensor, t: Time, sigma_data: float = 0.5) -> Tensor:
    """v of a flow from the output of an EDM network, without the cancellation of (x_t - D)/t, (B, ...).

    v = x~ (sigma/((1-t)(sigma^2 + sd^2)) - 1) - sd F/((1-t) sqrt(sigma^2 + sd^2)),  x~ = x_t/(1-t), sigma = t/(1-t).
    Towards t = 0 it is -(x_t + F), towards t = 1 x_t - sd F. A student does the same through `velocity`.

    Args:
        x: x_t, (B, ...).
        raw: F(c_in x~, ln(sigma)/4), (B, ...).
        t: in (0, 1), a float or (B,); float64, since 1 - t is taken.
        sigma_data: sd.
    """
    t = t.double() if isinstance(t, Tensor) else float(t)
    sigma = t / (1 - t)
    total = sigma * sigma + sigma_data * sigma_data
    # The bracket is (sigma - sd^2)/(sigma^2 + sd^2): the 1 cancels by hand, since sigma/(1-t) = sigma + sigma^2.
    own = (sigma - sigma_data * sigma_data) / (total * (1 - t))
    return spread(own, x) * x - spread(sigma_data / ((1 - t) * arithmetic(t).sqrt(total)), x) * raw


def huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """(sqrt(|a - b|^2 + c^2) - c)/d of each image, (B,): |a - b|/d for small c, |a - b|^2/(2 c d) for large c.

    Args:
        a, b: (B, ...), d entries an image.
        c: > 0; see :func:`scoreline.fewstep.distances.huber_constant`.

    Raises:
        InputError: c is not positive.
    """
    return pseudo_huber(a, b, c) / a[0].numel()


def weights(t: Time, premetric: str) -> tuple[Time, Time]:
    """(w, w') of w hub + w' lp: (1, 0) for "huber", (1 - t, 1) for "lpips-huber", (1 - t, 1/t) for "lpips-huber/t".

    Args:
        t: in (0, 1], a float or (B,).
        premetric: one of `PREMETRICS`; "squared" weighs as "huber" does.

    Raises:
        InputError: the name is unknown.

    >>> weights(0.25, "lpips-huber/t")
    (0.75, 4.0)
    """
    if premetric not in PREMETRICS:
        raise unknown_name("premetric", premetric, PREMETRICS)
    if premetric in ("squared", "huber"):
        return t * 0 + 1.0, t * 0
    return 1 - t, (1 / t if premetric == "lpips-huber/t" else t * 0 + 1.0)


def rfpp_loss(
    student: Denoiser,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    cond: Cond | None = None,
    *,
    premetric: str = "huber",
    c: float | None = None,
    apart: Distance | None = None,
) -> Tensor:
    """Mean over the batch of w(t) hub + w'(t) lp, or of the squared distance of the velocities.

    Args:
        student: a denoiser on the flow schedule.
        x, z: the pairs, (B, *shape).
        t: (B,) float64; times nearer to an end than the student goes are moved to it.
        cond: conditions of the batch.
        premetric: one of `PREMETRICS`.
        c: of the Huber distance; None takes 0.00054 d, as the released code.
        apart: LPIPS, one number an image.

    Raises:
        InputError: the premetric is unknown, or needs `apart` and there is none.
    """
    t = t.clamp(student.schedule.t_min, student.schedule.t_max)
    w, perceptual = weights(t, premetric)
    state = interpolate(x, z, t)
    v = student.velocity(state, t, cond)
    if premetric == "squared":
        return velocity_loss(v, x, z).mean()
    c = huber_constant(x.shape[1:], "linear") if c is None else c
    each = huber(v, velocity_target(x, z), c)
    each = w.to(each) * each
    if premetric != "huber":
        if apart is None:
            raise InputError("apart", None, f"{premetric} needs LPIPS, a function of two batches of images")
        lp = apart(state - spread(t, v) * v, x)
        each = each + perceptual.to(lp) * lp
    return each.mean()


@torch.no_grad()
def inverted_pairs(
    model: Denoiser, images: Tensor, labels: Tensor | None = None, *, steps: int = 128, seed: int = 0, batch: int = 256
) -> Pairs:
    """Real images with the noise that a flow takes them to, for a last fine-tuning (configuration G).

    Args:
        model: on any schedule, the teacher of the pairs in the paper.
        images: (N, *shape).
        labels: (N,) classes of a class-conditional model, or None.
        steps: Euler steps of the inversion, evaluations of the model.
        seed: of the little noise that images are mixed with.
        batch: images at a time.

    Raises:
        InputError: the model is class-conditional and there are no labels.
    """
    if model.num_classes is not None and labels is None:
        raise InputError("labels", None, "the model is class-conditional; give the classes of the images")
    made = []
    for start in range(0, len(images), batch):
        rows = slice(start, start + batch)
        cond = None if model.num_classes is None or labels is None else Cond(labels=labels[rows])
        draws = Noise(seed).at(range(start, start + len(images[rows])), model.shape, device=images.device)
        made.append(invert(model.given(cond), images[rows], draws, steps=steps))
    return Pairs(torch.cat(made), images, labels, num_classes=model.num_classes, name="inverted images")


@dataclass(frozen=True)
class Coupled:
    """What one turn of training shares: pairs, times and conditions."""

    x: Tensor
    z: Tensor
    t: Tensor
    cond: Cond | None


class RFPP(Method):
    """Train a 2-rectified flow on pairs of a teacher.

    Args:
        student: a denoiser on the flow schedule; its network takes the gradients.
        teacher: inverts images where `inversion` says so; with pairs it is not asked.
        levels: "u-shaped", or another name in `scoreline.diffusion.levels.LEVELS`.
        a: steepness of the U.
        mirrored: draw a batch's times as the released code does, as a random half of times and their mirror images.
        premetric: one of `PREMETRICS`; those with LPIPS need its weights.
        c: "linear" (0.00054 d), "sqrt" (0.00054 sqrt(d)), or a number.
        size: pixels to which images are resized for LPIPS; None leaves them.
        start: the noisiest time, from which images are made; None takes the student's, 1 - 1e-5 of a copied EDM network
            as in the paper, sigma = 1e5. A short training sees next to none of the times from 0.999 to that, and what
            its network says there is of no use.
        inversion: Euler steps with which the teacher inverts images that come without noise, 128 in the paper's last
            fine-tuning; 0 refuses such images. :func:`inverted_pairs` does it once and for all.
        lr: learning rate, or a function of the step.
        optimizer, settings, clip: see :class:`scoreline.core.method.Update`.

    Raises:
        InputError: a setting is out of range, or teacher and student do not fit.
        ArtefactError: the weights of LPIPS are not here.
    """

    sampler = "straight"
    made_for: tuple[int, ...] | None = None

    def __init__(
        self,
        student: Denoiser,
        teacher: Denoiser | None = None,
        *,
        levels: str = "u-shaped",
        a: float = 4.0,
        mirrored: bool = False,
        premetric: str = "lpips-huber/t",
        c: str | float = "linear",
        size: int | None = 224,
        start: float | None = None,
        inversion: int = 0,
        lr: Lr = 2e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        check_flow(student, teacher)
        if inversion < 0:
            raise InputError("inversion", inversion, "counts Euler steps of the teacher, 0 or more")
        if inversion and teacher is None:
            raise InputError("inversion", inversion, "needs a teacher that inverts the images")
        if mirrored and levels != "u-shaped":
            raise InputError("mirrored", True, f"belongs to the U-shaped levels, not to {levels}")
        first, last = student.schedule.t_min, student.schedule.t_max
        if start is not None and not first < start <= last:
            raise InputError("start", start, f"is a time of the student's, above {first:g}, at most {last:.9g}")
        self.student = student if start is None else starting_from(student, start)
        self.teacher = teacher.requires_grad_(False).eval() if inversion and teacher is not None else None
        self.levels, self.a, self.mirrored, self.inversion = levels, a, mirrored, inversion
        self._law(torch.zeros(1, dtype=torch.float64))
        weights(0.5, premetric)
        self.premetric, self.c = premetric, huber_constant(student.shape, c) if isinstance(c, str) else float(c)
        if not self.c > 0:
            raise InputError("c", c, "is linear, sqrt or a positive number")
        self.apart = distance("lpips-vgg", size=size) if premetric.startswith("lpips") else None
        network = network_of(student)
        self.updates = [Update(network, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> Denoiser:
        """A copy of the teacher's network, or a given network in EDM's form, as a flow; see
        :func:`scoreline.fewstep.flows.flow_student`."""
        return flow_student(teacher, net, form="edm")

    def frozen(self) -> tuple[nn.Module, ...]:
        return () if self.teacher is None else (self.teacher,)

    def averaged(self) -> nn.Module:
        return network_of(self.student)

    def _law(self, u: Tensor) -> Tensor:
        schedule = self.student.schedule
        return u_shaped(u, schedule, a=self.a) if self.levels == "u-shaped" else draw_levels(self.levels, u, schedule)

    def _times(self, draws: Draws) -> Tensor:
        u, schedule = draws.uniform(step=0, part=1), self.student.schedule
        if not self.mirrored:
            return self._law(u)
        keys = torch.cat([draws.uniform(step=0, part=3), draws.uniform(step=0, part=4)])
        return schedule.t_min + mirrored(u, keys, self.a) * (schedule.t_max - schedule.t_min)

    def prepare(self, batch: Any, step: int) -> Coupled:
        draws, x, z = batch.draws, batch.image, batch.extras.get("noise")
        cond = conditions(self.student, batch)
        if z is None:
            if self.teacher is None:
                mend = "2-rectified flow++ learns from pairs (scoreline pairs), or from images with inversion=128"
                raise InputError("data", "images", mend)
            z = invert(self.teacher.given(conditions(self.teacher, batch)), x, draws, steps=self.inversion)
        return Coupled(x, z.to(x), self._times(draws), cond)

    def loss(self, batch: Any, shared: Coupled, step: int) -> Tensor:
        s = shared
        return rfpp_loss(self.student, s.x, s.z, s.t, s.cond, premetric=self.premetric, c=self.c, apart=self.apart)

    def measured(self) -> dict[str, float]:
        """What is told at the end of a training: the straightness S."""
        return {"straightness": stage_straightness(self.student)}

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), Straight(steps=1))
