"""Guided distillation: a guided teacher as one network that is told the strength, then its steps halved.

On log-SNR lambda(u) = -2 log tan(a u + b), u in [0, 1], lambda(0) = 20, lambda(1) = -20 (alpha = cos, sigma = sin):
    teacher    x_w(z, c) = (1 + w) x(z, c) - w x(z)                                    w = 0 is unguided
    stage one  E omega(lambda) |x_1(z, c, w) - x_w(z, c)|^2,   w ~ U[low, high], u ~ U[0, 1], z = alpha x + sigma eps
    stage two  :class:`scoreline.fewstep.progressive.Progressive` on x_1, N <- N/2, w drawn for every image again
    samplers   DDIM;  or steps of double length and noise back, :class:`scoreline.samplers.double_step.DoubleStep`
    restyle    up with a student of the way to noise, told (c, w); down with the usual one, told another (c, w)
w enters by features like those of time, through a layer that starts at zero: x_1 begins as the conditional model.

Reference: Meng et al. 2023 (arXiv 2210.03142), sections 3.1 to 3.4; Salimans & Ho 2022 (arXiv 2202.00512) for heads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.method import Method, Update
from scoreline.core.noise import Noise
from scoreline.core.schedule import Time, arithmetic, spread
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import VP, Cosine, Flow
from scoreline.fewstep.flows import conditions, network_of
from scoreline.fewstep.guidance_students import DistilledGuidance, TwoHeads, check_interval, drawn_weights
from scoreline.fewstep.guided import WeightGuided
from scoreline.fewstep.halving import GRID, LOW, encoding_times, halving_loss, on_cosine, on_students, snr_weight
from scoreline.fewstep.teachers import check_alike, innermost, rebuilt
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.generator import Sampled

__all__ = ["HEADS", "GuidanceDistillation", "guidance_error", "guidance_loss", "guided_mean", "head_mean", "log_snr"]
__all__ += ["noise_of", "restyle"]

HEADS = ("x", "eps", "v", "both")
STEPS = 16  # of a first look at the student of stage one, which is made for no number of steps


def log_snr(u: Time) -> Time:
    """lambda(u) = log(alpha^2/sigma^2) = -2 log tan(a u + b), b = arctan(e^-10), a = arctan(e^10) - b.

    In the time t = (a u + b) 2/pi of `Cosine(s=0)` it is twice that schedule's `lam`.

    Args:
        u: 0 (data) to 1 (noise), float, array or tensor.

    Reference: Salimans & Ho 2022, the released schedule, with limits +-20.

    >>> [round(log_snr(u) + 0.0, 6) + 0.0 for u in (0.0, 0.5, 1.0)]
    [20.0, 0.0, -20.0]
    """
    xp, b = arithmetic(u), math.atan(math.exp(-10.0))
    return -2 * xp.log(xp.tan((math.atan(math.exp(10.0)) - b) * u + b))


def guided_mean(conditional: Tensor, unconditional: Tensor, w: float | Tensor) -> Tensor:
    """x_w = (1 + w) x(z, c) - w x(z), (B, ...).

    Args:
        conditional, unconditional: E[x|z, c] and E[x|z], (B, ...).
        w: strength, a number or (B,); 0 is unguided, the scale s of other texts is 1 + w.
    """
    weight = spread(w, conditional)
    return (1 + weight) * conditional - weight * unconditional


def head_mean(head: str, z: Tensor, out: Tensor, alpha: Time, sigma: Time) -> Tensor:
    """E[x|z] of a network's answer: x; (z - sigma eps)/alpha; alpha z - sigma v; or of both heads
    sigma^2 x' + alpha^2 (z - sigma eps')/alpha.

    Args:
        head: one of `HEADS`.
        z: noisy images, (B, C, ...).
        out: the answer, (B, C, ...); of "both" (B, 2C, ...), x' first.
        alpha, sigma: of the level, floats or (B,); alpha^2 + sigma^2 = 1.

    Raises:
        InputError: an unknown head.
    """
    if head not in HEADS:
        raise unknown_name("head", head, HEADS)
    a, s = spread(alpha, z), spread(sigma, z)
    if head == "both":
        image, noise = out.chunk(2, 1)
        return s * s * image + a * (z - s * noise)
    return out if head == "x" else (z - s * out) / a if head == "eps" else a * z - s * out


def guidance_loss(
    student: Denoiser, z: Tensor, t: Tensor, target: Tensor, cond: Cond, *, weight: str = "snr-trunc"
) -> Tensor:
    """omega(t) times the mean over the entries of |x_1(z, c, w) - x_w(z, c)|^2, (B,).

    Args:
        student: x_1, told w by `cond.weight`.
        z: z_t, (B, *shape).
        t: (B,) float64, of the student's schedule.
        target: x_w, (B, *shape).
        cond: conditions and strengths.
        weight: omega, one of :data:`scoreline.fewstep.halving.WEIGHTS`.
    """
    return halving_loss(student, z, t, target, cond, weight=weight)


@torch.no_grad()
def guidance_error(
    student: Denoiser, teacher: Denoiser, images: Tensor, t: float, w: float, noise: Tensor, labels: Tensor
) -> float:
    """|x_1 - x_w| / |x_w|, root mean squares over images at one level and strength.

    Args:
        student: x_1.
        teacher: conditional model on the student's schedule.
        images: clean, (B, *shape).
        t: level of the student's schedule.
        w: strength.
        noise: (B, *shape).
        labels: (B,).
    """
    z = student.schedule.marginal(images, t, noise)
    cond = Cond(labels=labels, weight=torch.full((len(z),), w, device=z.device))
    wanted = WeightGuided(teacher)(z, t, cond).mean
    return float((student(z, t, cond).mean - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@dataclass(frozen=True)
class Guided:
    """What one turn shares: z_t, t, x_w, and what the student is told, w included."""

    z: Tensor
    t: Tensor
    target: Tensor
    cond: Cond


class GuidanceDistillation(Method):
    """Stage one: a student that is told the strength answers in one evaluation as the guided teacher does in two.

    Args:
        student: x_1, see :meth:`student_of`.
        teacher: a conditional denoiser that also knows "no condition".
        guidance: (low, high) of w ~ U[low, high]; the paper's for pixels, text-guided models have (2, 14).
        sampling_guidance: w where none is given when images are made, saved with the student; None takes the low end.
        weight: omega, one of :data:`scoreline.fewstep.halving.WEIGHTS`.
        lr: learning rate, or a function of the step.
        optimizer, settings, clip: see :class:`scoreline.core.method.Update`.

    Raises:
        InputError: the teacher has no conditions, a setting is out of range, or teacher and student do not fit.
    """

    sampler = f"ddim:grid={GRID}"
    made_for: tuple[int, ...] | None = None

    def __init__(
        self,
        student: DistilledGuidance,
        teacher: Denoiser,
        *,
        guidance: Sequence[float] = (0.0, 4.0),
        sampling_guidance: float | None = None,
        weight: str = "snr-trunc",
        lr: float | Callable[[int], float] = 3e-4,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        low, high = check_interval(guidance)
        snr_weight(1.0, weight)
        _check_conditional(teacher)
        check_alike(student, teacher)
        if not isinstance(student.schedule, (Cosine, VP, Flow)):
            mend = f"has the schedule {type(student.schedule).__name__}; put it on another with student_of"
            raise InputError("student", type(student).__name__, mend)
        chosen = low if sampling_guidance is None else float(sampling_guidance)
        if not low <= chosen <= high:
            raise InputError("sampling_guidance", chosen, f"lies outside the interval of training, {low:g} to {high:g}")
        student.guidance.fill_(chosen)
        student.interval.copy_(torch.tensor([low, high]))
        self.student, self.range, self.weight = student, (low, high), weight
        self.teacher = WeightGuided(on_students(teacher, student.schedule)).requires_grad_(False).eval()
        network = network_of(student)
        self.updates = [Update(network, self.loss, optimizer=optimizer, lr=lr, settings=settings or {}, clip=clip)]

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> DistilledGuidance:
        """A network that takes a strength, or a copy of the teacher's with such an input, which starts without effect.

        A network of one's own answers with v, or, with twice as many channels, with image and noise; it is told the
        time t of `Cosine(s=0)`, as in the released code.

        Raises:
            InputError: neither is given, the teacher has no conditions or no network that could take a strength.
        """
        if isinstance(net, DistilledGuidance):
            return net
        if teacher is not None:
            _check_conditional(teacher)
        if net is not None:
            cosine = Cosine(s=0.0, t_min=LOW, t_max=1 - LOW)
            both = getattr(net, "out_channels", None) == 2 * net.in_shape[0]  # type: ignore[index]
            own: Denoiser = TwoHeads(net, cosine) if both else Preconditioned(net, cosine, kind="v", time_input="t")
        else:
            own = on_cosine(_copy_told(teacher))
        made = DistilledGuidance(_in_latents(own, teacher))
        made.requires_grad_(False)
        network_of(made).requires_grad_(True)
        return made

    def frozen(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    def averaged(self) -> nn.Module:
        return network_of(self.student)

    def prepare(self, batch: Any, step: int) -> Guided:
        x, schedule, draws = batch.image, self.student.schedule, batch.draws.reshaped(batch.image.shape[1:])
        cond = (conditions(self.student, batch) or Cond()).replace(weight=drawn_weights(draws, self.range))
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * draws.uniform(step=0, part=1).double()
        z = schedule.marginal(x, t, draws.normal().to(x))
        with torch.no_grad():
            return Guided(z, t, self.teacher(z, t, cond).mean, cond)

    def loss(self, batch: Any, shared: Guided, step: int) -> Tensor:
        return guidance_loss(self.student, shared.z, shared.t, shared.target, shared.cond, weight=self.weight).mean()

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), DDIM(steps=STEPS, grid=GRID))


def _check_conditional(teacher: Denoiser) -> None:
    accepts = getattr(getattr(innermost(teacher), "net", None), "accepts", ())
    if teacher.num_classes is None and not {"tokens", "vector"} & set(accepts):
        mend = "has no conditions, and so no guidance to distil; scoreline distill progressive halves its steps"
        raise InputError("teacher", type(innermost(teacher)).__name__, mend)


def _copy_told(teacher: Denoiser | None) -> Preconditioned:
    """The teacher's innermost denoiser over a copy of its network that takes a strength besides."""
    inner = None if teacher is None else innermost(teacher)
    if not isinstance(inner, Preconditioned):
        mend = "has no network to copy; take a model with one, or give the student a network of its own"
        raise InputError("teacher", None if inner is None else type(inner).__name__, mend)
    two = isinstance(inner, TwoHeads)
    changes: dict[str, Any] = {"out_channels": inner.shape[0]} if inner.learned_variance and not two else {}
    if "weight" not in getattr(inner.net, "accepts", ()):
        changes["weight_input"] = True
    if getattr(inner.net, "_arguments", {}).get("dropout"):
        changes["dropout"] = 0.0  # a student imitates; nothing is to be kept from being learned by heart
    net = rebuilt(inner.net, changes)[0] if changes else copy.deepcopy(inner.net)
    if two:
        return TwoHeads(net, inner.schedule, time_input=inner.time_input)
    return Preconditioned(
        net, inner.schedule, kind=inner.kind, sigma_data=inner.sigma_data, time_input=inner.time_input
    )


def _in_latents(student: Denoiser, teacher: Denoiser | None) -> Denoiser:
    while teacher is not None and not isinstance(teacher, Latent):
        teacher = getattr(teacher, "inner", None)
    if teacher is None:
        return student
    return Latent(student, teacher.autoencoder.requires_grad_(False), scale=teacher.scale)


@torch.no_grad()
def noise_of(encoder: Denoiser, images: Tensor, *, steps: int) -> Tensor:
    """The noise of images, (B, *shape): DDIM up from t_min over t_max i/N, divided by the size of the prior.

    Args:
        encoder: a student of the way up (`direction: up`) with its conditions bound by `given`, or any model.
        images: (B, *shape); latents for a model of latents.
        steps: N, those that it was made for.
    """
    schedule = encoder.schedule
    draws = Noise(0).at(range(len(images)), encoder.shape, device=images.device, dtype=images.dtype)  # none is drawn
    x = images * float(schedule.alpha(schedule.t_min))
    return DDIM()(encoder, draws, times=encoding_times(schedule, steps), x=x).x / float(schedule.prior())


@torch.no_grad()
def restyle(encoder: Denoiser, decoder: Denoiser, images: Tensor, source: Cond, target: Cond, *, steps: int) -> Tensor:
    """Images told once more: to noise under one class and strength, back under another, N evaluations each way.

    Args:
        encoder: a student of the way up.
        decoder: a student of the way down.
        images: (B, *shape).
        source: what the images are, with `weight` for a strength of its own.
        target: what they become.
        steps: N, those that both were made for.

    Returns:
        (B, *shape), of the decoder's range, not clamped.

    Reference: Meng et al. 2023, section 3.4 and algorithm 5.
    """
    z = noise_of(encoder.given(source), images, steps=steps) * float(decoder.schedule.prior())
    draws = Noise(0).at(range(len(images)), decoder.shape, device=images.device, dtype=images.dtype)
    return DDIM(steps=steps, grid=GRID)(decoder.given(target), draws, x=z).x
