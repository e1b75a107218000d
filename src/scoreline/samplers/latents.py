"""Images as latents of the probability-flow ODE, and back: encoding, decoding, interpolation.

The ODE is a bijection between images at the least noise level and noise: z = x_T/std(x_T) is close to N(0, I) and holds
all of the image. Any sampler that declares `rising` encodes; the adaptive :class:`scoreline.samplers.rk45.RK45` is the
default, because a code is as exact as its integration.

Reference: Song et al. 2021 (arXiv 2011.13456), section 4.3 and appendix D.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.artefact import load_artefact, read_header, recorded, save_artefact
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sample, Sampler
from scoreline.samplers.calibrations import fingerprint_of
from scoreline.samplers.rk45 import RK45

__all__ = ["Latents", "decode", "encode", "interpolate", "read_latents", "write_latents"]


@recorded
class Latents(nn.Module):
    """Latents in a file: an artefact that belongs to the model that encoded them.

    Args:
        shape: (N, *shape) of the latents.
        label: the class that the model was asked for, `num_classes` for none; None where it has no classes.

    Attributes:
        z: (N, *shape) float32, close to standard normal.

    Raises:
        InputError: the shape has no images or no entries.
    """

    z: Tensor

    def __init__(self, shape: Sequence[int], label: int | None = None) -> None:
        super().__init__()
        if len(shape) < 2 or min(shape) < 1:
            raise InputError("shape", tuple(shape), "latents have a batch and at least one dimension more")
        self.label = label
        self.register_buffer("z", torch.zeros(*shape))


def write_latents(
    path: str | os.PathLike[str], denoiser: Denoiser, z: Tensor, *, label: int | None = None, card: Any = None
) -> str:
    """Write latents for :func:`read_latents`; the file appears whole or not at all.

    Args:
        path: file ending in .safetensors.
        denoiser: the model that encoded them.
        z: (N, *shape) latents from :func:`encode`; float32 is what is kept.
        label: the class it was asked for, see :class:`Latents`.
        card: what a reader should know: data, image numbers, sampler.

    Returns:
        The fingerprint of the file.

    Raises:
        InputError: latents that are not finite, or another suffix.
    """
    if not bool(torch.isfinite(z).all()):
        raise InputError("latents", None, "are not finite; try more steps or another sampler")
    held = Latents(list(z.shape), label)
    held.z.copy_(z)
    return save_artefact(path, held, card=card, belongs_to=fingerprint_of(denoiser))


def read_latents(path: str | os.PathLike[str], denoiser: Denoiser) -> tuple[Latents, dict[str, Any]]:
    """The latents in a file, with its header.

    Args:
        path: file of :func:`write_latents`.
        denoiser: the model that is to decode them, or a view of it.

    Raises:
        ArtefactError: no such file, damaged, something else, or another model's latents.
    """
    header = read_header(path)
    if header["kind"] != "latents":
        raise ArtefactError("latents", str(path), f"holds a {header['kind']} ({header['name']}), no latents")
    if header.get("belongs_to") != fingerprint_of(denoiser):
        mend = "were encoded by another model, to which they mean other images; encode the images with this one"
        raise ArtefactError("latents", str(path), mend)
    held, header = load_artefact(path, kind="latents")
    if tuple(held.z.shape[1:]) != tuple(denoiser.shape):
        raise ArtefactError("latents", str(path), f"have shape {tuple(held.z.shape[1:])}, not {tuple(denoiser.shape)}")
    return held, header


def encode(denoiser: Denoiser, images: Tensor, sampler: Sampler | None = None) -> Tensor:
    """The latents of images: the ODE from t_min up to t_max, divided by the size of the prior.

    Args:
        denoiser: the model, with the conditions of these images bound by `given`.
        images: (B, *shape) clean images, float32 or float64, which decides the precision.
        sampler: a deterministic sampler that runs upwards, with its cost; None takes RK45 with rtol 1e-5.

    Returns:
        (B, *shape), close to standard normal.

    Raises:
        InputError: the sampler does not run upwards, or shapes do not fit.
    """
    sampler = RK45(rtol=1e-5) if sampler is None else sampler
    if not sampler.rising or sampler.stochastic:
        mend = "an encoding needs a deterministic sampler that runs upwards, as rk45, euler, ddim or heun"
        raise InputError("sampler", type(sampler).__name__, mend)
    schedule = denoiser.schedule
    x = images * float(schedule.alpha(schedule.t_min))
    times = sampler.times(schedule, denoiser.evaluations)[:-1][::-1].copy()
    return _run(denoiser, x, sampler, times).x / float(schedule.prior())


def decode(denoiser: Denoiser, latents: Tensor, sampler: Sampler | None = None, *, denoise: bool = False) -> Tensor:
    """Images of latents: the ODE from t_max down to t_min.

    Args:
        denoiser: the model, with its conditions bound by `given`.
        latents: (B, *shape), standard normal or from :func:`encode`.
        sampler: a deterministic sampler with its cost; None takes RK45 with rtol 1e-5.
        denoise: end with E[x_0|x_t]; without it decoding is the exact inverse of encoding.

    Raises:
        InputError: the sampler adds noise, or shapes do not fit.
    """
    sampler = RK45(rtol=1e-5) if sampler is None else sampler
    if sampler.stochastic:
        raise InputError("sampler", type(sampler).__name__, "adds noise; decode with a deterministic one, as rk45")
    schedule = denoiser.schedule
    times = sampler.times(schedule, denoiser.evaluations)
    x = latents * float(schedule.prior(float(times[0])))
    if denoise:
        return _run(denoiser, x, sampler, times).x
    return _run(denoiser, x, sampler, times[:-1]).x / float(schedule.alpha(float(times[-2])))


def interpolate(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation of latents: (sin((1 - w) theta) a + sin(w theta) b)/sin(theta), theta their angle.

    Points between two standard normal latents then have the length of standard normal latents.

    Args:
        a, b: (B, ...) latents of the same shape.
        weight: w, 0 for a and 1 for b; a number or (B,).

    Raises:
        InputError: the shapes differ.
    """
    if a.shape != b.shape:
        raise InputError("latents", (tuple(a.shape), tuple(b.shape)), "must have the same shape")
    flat_a, flat_b = a.double().flatten(1), b.double().flatten(1)
    cos = (flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1))
    theta = torch.acos(cos.clamp(-1, 1))
    w = torch.as_tensor(weight, dtype=torch.float64, device=a.device).expand(len(a))
    # Where the two point the same way, the limit is the straight line between them.
    near = theta.sin() < 1e-6
    sine = torch.where(near, 1.0, theta.sin())
    wa = torch.where(near, 1 - w, ((1 - w) * theta).sin() / sine)
    wb = torch.where(near, w, (w * theta).sin() / sine)
    return _wide(wa, a) * a + _wide(wb, b) * b


def _wide(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like).view(-1, *[1] * (like.dim() - 1))


def _run(denoiser: Denoiser, x: Tensor, sampler: Sampler, times: Any) -> Sample:
    draws = Noise(0).at(range(len(x)), denoiser.shape, device=x.device, dtype=x.dtype)  # a deterministic run draws none
    return sampler(denoiser, draws, times=times, x=x)
