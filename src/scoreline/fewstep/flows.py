"""What all rectified flows share: straight paths, the student's form, straightness, and running backwards.

Time is this package's: t = 0 is data x, t = 1 is noise z.
    x_t = (1 - t) x + t z,   velocity v(x_t, t) = E[z - x | x_t],   x_t - t v = E[x | x_t]
Papers that let t run from noise to data say t' = 1 - t and v' = -v.

Reference: Liu et al. 2022 (Flow Straight and Fast); Liu et al. 2023 (InstaFlow); Lee et al. 2024 (2-rectified flow++).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import Draws, Noise
from scoreline.core.schedule import Time, spread
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import Flow
from scoreline.fewstep.teachers import advance, check_alike, rebuilt
from scoreline.samplers.euler import Euler

__all__ = ["EDGE", "as_flow", "conditions", "flow_student", "interpolate", "invert", "mean_straightness"]
__all__ += ["network_of", "online_pairs", "pair_of", "path_straightness", "stage_straightness", "starting_from"]
__all__ += ["straightness", "training_times", "velocity_loss", "velocity_target"]
__all__ += ["check_flow", "coupling"]

EDGE = 1e-5
"""How near to both ends of [0, 1] a model of another form is asked: sigma/alpha is 0 or infinite at the ends."""


def interpolate(x: Tensor, z: Tensor, t: Time) -> Tensor:
    """x_t = (1 - t) x + t z, (B, ...).

    Args:
        x: data, (B, ...).
        z: noise, (B, ...).
        t: 0 (data) to 1 (noise), a float or (B,).
    """
    return spread(1 - t, x) * x + spread(t, x) * z


def velocity_target(x: Tensor, z: Tensor) -> Tensor:
    """dx_t/dt = z - x of the straight path, (B, ...); towards noise, since t = 1 is noise.

    Args:
        x: data, (B, ...).
        z: noise, (B, ...).
    """
    return z - x


def velocity_loss(velocity: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """Mean over the entries of |v - (z - x)|^2, (B,).

    Args:
        velocity: v(x_t, t), (B, ...), towards noise.
        x: data, (B, ...).
        z: noise, (B, ...).
    """
    return (velocity - velocity_target(x, z)).square().flatten(1).mean(1)


def training_times(u: Tensor, *, eps: float = 1e-3) -> Tensor:
    """t' = eps + u (1 - eps) in the papers' time, (B,) float64.

    Args:
        u: uniform on [0, 1), (B,).
        eps: the least time.
    """
    return eps + u.double() * (1 - eps)


def as_flow(model: Denoiser) -> Denoiser:
    """Any model on the flow schedule, so that `velocity(x, t)` is that of straight paths.

    E[x | x_t] is the same image in all coordinates: of EDM's form at x_t/(1-t), sigma = t/(1-t), and so on. A model
    that is on a flow schedule comes back as it is; EDM's form needs no conversion; others are asked by equal lambda.
    The new schedule has the levels that the model was trained on, sigma/(alpha + sigma) at its t_min to that at its
    t_max, and stays clear of 0 and 1 by `EDGE`.

    Args:
        model: a denoiser on any schedule.
    """
    if isinstance(model.schedule, Flow):
        return model
    ends = np.array([model.schedule.t_min, model.schedule.t_max])
    alpha, sigma = model.schedule.alpha(ends), model.schedule.sigma(ends)
    low, high = (sigma / (alpha + sigma)).clip(EDGE, 1 - EDGE).tolist()
    flow = Flow(t_min=low, t_max=high)
    if type(model) is Preconditioned and _moves_freely(model) and model._plan is None:
        return Preconditioned(model.net, flow, kind="edm", sigma_data=model.sigma_data).given(model._given)
    return model.on(flow, extrapolate=True)


def flow_student(teacher: Denoiser | None, net: nn.Module | None = None, *, form: str = "flow") -> Denoiser:
    """The student of a flow method: a network on the flow schedule, whose `velocity(x, t)` is trained.

    A given network answers with the velocity and is told 999 (1 - t), as in the code of rectified flow. A copy of the
    teacher's network keeps its weights:
        flow    as it is
        edm     EDM's scalings at x_t/(1-t), sigma = t/(1-t); starts as the teacher's own flow
        v       by equal lambda; starts as the teacher's own flow
        eps, x0 answers with the velocity without conversion, as InstaFlow does with Stable Diffusion; the network's
                time 0 ... 1000 is 1000 t

    Args:
        teacher: the model whose network is copied; None with a network of one's own.
        net: a network to train instead of a copy; a model that is on a flow schedule already stays as it is.
        form: of a given network: "flow", or "edm" for EDM's scalings with the teacher's sigma_data (0.5 without one).

    Returns:
        a :class:`Preconditioned` or what wraps one; every parameter of its network takes gradients.

    Raises:
        InputError: neither is given, the teacher has no network, or its shape or classes differ from the network's.
    """
    if isinstance(net, Denoiser):
        return net.requires_grad_(True) if isinstance(net.schedule, Flow) else flow_student(net)
    if form not in ("flow", "edm"):
        raise unknown_name("form", form, ("flow", "edm"))
    if net is not None:
        if teacher is not None and tuple(net.in_shape) != tuple(teacher.shape):  # type: ignore[arg-type]
            mend = f"the teacher's images are {tuple(teacher.shape)}; a student makes images of the same shape"
            raise InputError("student", tuple(net.in_shape), mend)  # type: ignore[arg-type]
        if teacher is not None and net.num_classes not in (None, teacher.num_classes):
            mend = f"the teacher knows {teacher.num_classes} classes; a student takes the same ones, or none"
            raise InputError("student", f"{net.num_classes} classes", mend)
        net.requires_grad_(True)
        if form == "edm":
            own = None if teacher is None else getattr(_innermost(teacher), "sigma_data", None)
            return _in_latents(_edm_flow(net, own or 0.5), teacher)
        made: Denoiser = Preconditioned(net, Flow(), kind="flow", time_input="999(1-t)")
        return _in_latents(made, teacher)
    if teacher is None:
        raise InputError("student", None, "needs a network, or a teacher whose network is copied")
    inner = _innermost(teacher)
    if not isinstance(inner, Preconditioned):
        mend = "has no network to copy; give the student a network of its own"
        raise InputError("teacher", type(teacher).__name__, mend)
    copied, _ = rebuilt(inner.net, {"out_channels": inner.shape[0]} if inner.learned_variance else {})
    copied.requires_grad_(True)
    if inner.kind == "flow":
        made = Preconditioned(copied, inner.schedule, kind="flow", time_input=inner.time_input)
    elif _moves_freely(inner):
        made = _edm_flow(copied, inner.sigma_data)
    elif inner.kind in ("edm", "v"):
        again = Preconditioned(
            copied, inner.schedule, kind=inner.kind, sigma_data=inner.sigma_data, time_input=inner.time_input
        )
        made = again.on(Flow(t_min=EDGE, t_max=1 - EDGE), extrapolate=True)
    else:
        told = inner.time_input if inner.time_input in ("999t", "1000t") else "1000t"
        made = Preconditioned(copied, Flow(), kind="flow", time_input=told)
    return _in_latents(made, teacher)


def starting_from(student: Denoiser, t_max: float) -> Denoiser:
    """The same student, sampled from t_max on instead of from its own noisiest level; its network is shared.

    A student that was trained up to 1 - eps must be asked there: its time features tell the levels beyond apart.

    Args:
        student: a denoiser on the flow schedule; one that starts no later stays as it is.
        t_max: in (0, 1].
    """
    if student.schedule.t_max <= t_max:
        return student
    flow = Flow(t_min=student.schedule.t_min, t_max=t_max)
    if type(student) is Preconditioned:
        told, sd = student.time_input, student.sigma_data
        return Preconditioned(student.net, flow, kind=student.kind, sigma_data=sd, time_input=told)
    return student.on(flow, extrapolate=True)


def _moves_freely(model: Preconditioned) -> bool:
    """Whether the network is told nothing but sigma/alpha, so that another schedule is the same network again."""
    return model.kind == "edm" and model.time_input == "ln-sigma/4" and not model.learned_variance


def _edm_flow(net: nn.Module, sigma_data: float) -> Preconditioned:
    return Preconditioned(net, Flow(t_min=EDGE, t_max=1 - EDGE), kind="edm", sigma_data=sigma_data)


def _innermost(model: Denoiser) -> Denoiser:
    while isinstance(getattr(model, "inner", None), Denoiser):
        model = model.inner  # type: ignore[assignment]
    return model


def _in_latents(student: Denoiser, teacher: Denoiser | None) -> Denoiser:
    while teacher is not None and not isinstance(teacher, Latent):
        teacher = getattr(teacher, "inner", None)
    if teacher is None:
        return student
    return Latent(student, teacher.autoencoder.requires_grad_(False), scale=teacher.scale)


def network_of(student: Denoiser) -> nn.Module:
    """The trainable network inside a student, whatever wraps it.

    Raises:
        InputError: there is none.
    """
    inner = _innermost(student)
    if not isinstance(inner, Preconditioned):
        raise InputError("student", type(student).__name__, "has no network to train")
    return inner.net


def conditions(model: Denoiser, batch: Any, p_uncond: float = 0.0) -> Cond | None:
    """The labels of a batch as the conditions of a model; None for a model without classes.

    Args:
        model: with `num_classes`.
        batch: with `label` (B,) or None, -1 where missing, and `draws`.
        p_uncond: share of labels that are replaced by "no label" (draw (0, 2) of each image).

    Raises:
        InputError: the model is class-conditional and the batch has no labels.
    """
    if model.num_classes is None:
        return None
    if batch.label is None:
        raise InputError("labels", None, "the model is class-conditional; give labelled images or pairs")
    without = batch.label < 0
    if p_uncond:
        without = without | (batch.draws.uniform(step=0, part=2) < p_uncond)
    return Cond(labels=torch.where(without, model.num_classes, batch.label))


def pair_of(batch: Any) -> tuple[Tensor, Tensor]:
    """(x, z) of a batch: the stored pair, or an image with noise of its own (draw (0, 0)).

    Args:
        batch: with `image` and `draws`; the noise of a pair is `extras["noise"]`.
    """
    x = batch.image
    z = batch.extras.get("noise")
    return x, batch.draws.reshaped(x.shape[1:]).normal().to(x) if z is None else z.to(x)


def online_pairs(teacher: Denoiser, noise: Tensor, steps: int = 20, cond: Cond | None = None) -> Tensor:
    """X_1 = ODE[v](X_0) by Euler steps of the teacher, without gradients, (B, *shape).

    Args:
        teacher: a denoiser on any schedule.
        noise: X_0, (B, *shape) standard normal.
        steps: evaluations, 20 in the code of rectified flow.
        cond: conditions of the batch.
    """
    flow = as_flow(teacher)
    top = float(flow.schedule.t_max)
    times = torch.linspace(top, 0.0, steps + 1, dtype=torch.float64, device=noise.device)
    return advance(Euler(), flow, noise * top, times[:, None].expand(-1, len(noise)), cond)


def coupling(teacher: Denoiser | None, online: int, batch: Any, *, pairs: bool = False) -> tuple[Tensor, Tensor]:
    """(x, z) of a turn: the batch's own, or the images that the teacher makes of the batch's noise.

    Args:
        teacher: makes the images, or None.
        online: its Euler steps.
        batch: see :func:`pair_of`.
        pairs: refuse images without noise of theirs where no teacher makes them.

    Raises:
        InputError: pairs are wanted and the batch holds none.
    """
    if teacher is None and pairs and "noise" not in batch.extras:
        raise InputError("data", "images", "this is learned on pairs of a flow; make them with scoreline pairs")
    x, z = pair_of(batch)
    return (x, z) if teacher is None else (online_pairs(teacher, z, online, conditions(teacher, batch)), z)


def check_flow(student: Denoiser, teacher: Denoiser | None = None, online: int = 0) -> None:
    """Refuse a student that is no flow, a teacher that does not fit it, and pairs of each batch without a teacher.

    Raises:
        InputError: see above.
    """
    if not isinstance(student.schedule, Flow):
        mend = f"has the schedule {type(student.schedule).__name__}; make a flow of it with student_of"
        raise InputError("student", type(student).__name__, mend)
    if online < 0 or (online and teacher is None):
        raise InputError("online", online, "counts Euler steps of a teacher, which must be given; 0: stored pairs")
    if teacher is not None:
        check_alike(student, teacher)


def path_straightness(path: Sequence[Tensor], times: Any) -> Tensor:
    """S = sum_i h_i |(Z_T - Z_0)/(T - 0) - (Z_{i+1} - Z_i)/h_i|^2 of each path, summed over entries, (B,).

    On the states of an Euler run, whose differences are h_i v(Z_i, t_i), it is the integral of InstaFlow by the
    rectangle rule, S(Z) = int |(Z_1 - Z_0) - v(Z_t, t)|^2 dt; it is 0 for a straight path and for a single step.

    Args:
        path: states (B, ...) at the times, in order.
        times: (N+1,) rising or falling.

    Raises:
        InputError: the counts differ or there is no step.

    Reference: Liu et al. 2023, section 2; Liu et al. 2022, section 2.1.
    """
    at = np.asarray(times, dtype=np.float64)
    if at.shape != (len(path),) or len(path) < 2:
        raise InputError("times", at.shape, f"need one for each of the {len(path)} states, two or more")
    whole = (path[-1] - path[0]) / (at[-1] - at[0])
    total = torch.zeros(len(whole), dtype=whole.dtype, device=whole.device)
    for before, after, h in zip(path[:-1], path[1:], np.diff(at).tolist()):
        total += abs(h) * ((after - before) / h - whole).square().flatten(1).sum(1)
    return total


def mean_straightness(path: Sequence[Tensor]) -> Tensor:
    """Mean over even steps and entries of ((z_{i-1} - z_i) N - (z_0 - z_N))^2 of each path, (B,).

    It is S over the number of entries: the form that the code of 2-rectified flow++ prints.

    Args:
        path: N + 1 states (B, ...) at even times.

    Raises:
        InputError: there is no step.

    Reference: Lee et al. 2024, code.
    """
    return path_straightness(path, np.linspace(0.0, 1.0, len(path))) / path[0][0].numel()


@torch.no_grad()
def straightness(model: Denoiser, noise: Draws, *, steps: int = 100) -> Tensor:
    """S of a model's own paths from noise to data, (B,), by Euler steps; its mean over noise is S(Z).

    Args:
        model: on any schedule, with its conditions bound by `given`.
        noise: the starts, (B) streams.
        steps: Euler steps, as many evaluations.
    """
    flow = as_flow(model)
    run = Euler(steps=steps)(flow, noise, trajectory=True)
    assert run.trajectory is not None
    return path_straightness(run.trajectory, run.times)


@torch.no_grad()
def stage_straightness(student: Denoiser, *, count: int = 40, steps: int = 50, seed: int = 0) -> float:
    """S of a flow, told at the end of a stage: the mean over `count` starts, labels in turn, by Euler steps.

    Args:
        student: a denoiser.
        count: starts.
        steps: Euler steps of each.
        seed: of the starts.
    """
    cond = None
    place = next(student.parameters(), torch.empty(0)).device
    if student.num_classes is not None:
        cond = Cond(labels=torch.arange(count, device=place) % student.num_classes)
    draws = Noise(seed).at(range(count), student.shape, device=place)
    return float(straightness(student.given(cond), draws, steps=steps).mean())


@torch.no_grad()
def invert(model: Denoiser, x: Tensor, noise: Draws, *, steps: int = 128, start: float = 1e-3) -> Tensor:
    """The noise of images, (B, *shape): Euler on the flow from t = start up to noise.

    Images are first mixed with fresh noise, x_start = (1 - start) x + start eps, since no model was trained on bare
    images; the levels are t_max i/N with those up to `start` replaced by it. The state at t_max is divided by t_max, as
    sampling starts from t_max z. For the inverse by any other sampler see :func:`scoreline.samplers.latents.encode`.

    Args:
        model: on any schedule, with its conditions bound by `given`.
        x: images (or latents), (B, *shape).
        noise: draw (0, 0) is mixed in.
        steps: N, 1 or more.
        start: the least level, in (0, 1); no less than the model's own is taken.

    Raises:
        InputError: there is no step, or the start is no level.

    Reference: Lee et al. 2024, section 4.4 and code.
    """
    flow = as_flow(model)
    top = float(flow.schedule.t_max)
    low = max(start, float(flow.schedule.t_min))
    if steps < 1 or not 0 < low < top:
        raise InputError("start", start, f"must lie between 0 and the noisiest level, {top:g}, with 1 step or more")
    levels = np.linspace(0.0, top, steps + 1)
    times = np.append(low, levels[levels > low])
    mixed = interpolate(x, noise.normal().to(x), low)
    return Euler()(flow, noise, times=times, x=mixed).x / top
