"""Estimation of DPM-Solver-v3's model statistics, Zheng et al. 2023 (arXiv 2310.13268), section 3.1 and appendix C.

At every node lambda of the grid, over points y = x/alpha = x_0 + e^{-lambda} eps, with D = E[x_0|x] and ' for the total
derivative d/dlambda along the ODE, y' = D - y:
    l = 1 - E[diag dD/dy]                              least E |d(sigma eps - l x)/dx|^2
    f = (1 - l) y - D,   f' = (1 - l)(D - y) - (dl/dlambda) y - D'
    s = (E[f f'] - E[f] E[f'])/(E[f^2] - E[f]^2),   b = E[f'] - s E[f]         least E |f' - s f - b|^2
The diagonal comes from Rademacher probes, v * (J v), or exactly; D' from one Jacobian-vector product in (x, t).

f and f' are linear in l and dl/dlambda, so the first two moments of (y, D, D') are sufficient statistics: they add up
over batches of any size, and l, dl/dlambda, s and b are made from them at the end, in the paper's order. Every point
has its own noise and probe, the same at all nodes, which keeps the curves smooth.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import ArtefactError, InputError, NonFiniteError, unknown_name
from scoreline.core.files import atomic_path, sweep
from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule
from scoreline.samplers.calibrations import fingerprint_of
from scoreline.samplers.model_statistics import ModelStatistics

__all__ = ["MOMENTS", "estimate", "jvp", "lam_range", "moments", "statistics_of"]

# What is summed over points, entry by entry.
MOMENTS = ("diagonal", "y", "D", "D'", "yy", "yD", "DD", "yD'", "DD'")
LOWEST = -7.0
SECONDS = 30.0
PRODUCTS = 4096
# Where f varies by less than this share of its size squared, it is taken for constant.
LEAST_VARIANCE = 1e-12


def lam_range(schedule: Schedule) -> tuple[float, float]:
    """(lowest, highest) lambda of a schedule's trained range; without a noisiest level that keeps signal, from -7."""
    low, high = float(schedule.lam(schedule.t_max)), float(schedule.lam(schedule.t_min))
    return max(low, LOWEST), high


def jvp(function: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """(value, Jacobian-vector product) of a function of tensors; backward mode twice where forward mode is missing.

    >>> jvp(lambda x: x**2, (torch.tensor(3.0),), (torch.tensor(1.0),))
    (tensor(9.), tensor(6.))
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # With gradients enabled layers keep to operations that can be differentiated; the weights themselves are constants.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        try:
            made: Any = torch.func.jvp(function, at, along)
        except (NotImplementedError, RuntimeError):
            made = torch.autograd.functional.jvp(function, at, along)
    return made[0].detach(), made[1].detach()


def moments(
    denoiser: Denoiser,
    lam: float,
    x0: Tensor,
    noise: Tensor,
    cond: Cond | None = None,
    *,
    probe: Tensor | None = None,
) -> Tensor:
    """The summed moments of some points at one lambda, (9, *shape) float64, in the order of `MOMENTS`.

    Args:
        denoiser: the model.
        lam: the node.
        x0: (B, *shape) clean points.
        noise: standard normal, the same shape.
        cond: conditions of the points.
        probe: (B, *shape) of +1 and -1; None takes the exact diagonal, one product an entry.
    """
    schedule, dtype = denoiser.schedule, x0.dtype
    t = _inside(schedule, float(schedule.time(lam)))
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    weights = {name: p.detach() for name, p in denoiser.named_parameters()}

    def mean(x: Tensor, at: Tensor, cond: Cond | None = cond) -> Tensor:
        return torch.func.functional_call(denoiser, weights, (x, at, cond)).mean

    y = x0 + (sigma / alpha) * noise
    x = alpha * y
    times = torch.full((len(x0),), t, dtype=torch.float64, device=x0.device)
    if probe is not None:
        D, product = jvp(lambda x: mean(x, times), (x,), (probe,))
        diagonal = alpha * probe * product
    else:
        D = mean(x, times).detach()
        diagonal = alpha * _diagonal(mean, x, times, cond)
    # dlambda/dt = alpha'/alpha - sigma'/sigma;  x' = alpha' y + alpha (D - y), both per lambda.
    da, ds = (float(rate) for rate in schedule.rates(t))
    speed = 1 / (da / alpha - ds / sigma)
    tangent = da * speed * y + alpha * (D - y)
    _, D_ = jvp(mean, (x, times), (tangent.to(dtype), torch.full_like(times, speed)))
    y, D, D_ = y.double(), D.double(), D_.double()
    parts = (diagonal.double(), y, D, D_, y * y, y * D, D * D, y * D_, D * D_)
    return torch.stack([part.sum(0) for part in parts])


def _diagonal(mean: Callable[..., Tensor], x: Tensor, times: Tensor, cond: Cond | None) -> Tensor:
    """The diagonal of d mean/dx, (B, *shape): one product an entry, as many at once as fit into `PRODUCTS`."""
    count, entries = len(x), x[0].numel()
    out = torch.empty(count, entries, dtype=x.dtype, device=x.device)
    units = torch.eye(entries, dtype=x.dtype, device=x.device)
    for part in torch.arange(entries).split(max(PRODUCTS // count, 1)):
        n = len(part)
        many = cond.map(lambda v, n=n: v.repeat(n, *[1] * (v.dim() - 1))) if cond is not None else None  # type: ignore[misc]
        wide, along = x.repeat(n, *[1] * (x.dim() - 1)), units[part].repeat_interleave(count, 0).view(-1, *x.shape[1:])
        at = times.repeat(n)
        _, product = jvp(lambda x, at=at, many=many: mean(x, at, many), (wide,), (along,))
        rows = torch.arange(n * count)
        out[:, part] = product.flatten(1)[rows, part.repeat_interleave(count)].view(n, count).T
    return out


def _inside(schedule: Schedule, t: float) -> float:
    """A table of levels has a slope between its entries only; at one of them the time is moved a little inwards."""
    if schedule.known is None or abs(t - round(t)) > 1e-4:
        return t
    return t + (1e-4 if t < 0.5 * (schedule.t_min + schedule.t_max) else -1e-4)


def statistics_of(
    sums: Tensor, count: int, low: float, high: float, *, fixed_l: float | None = None
) -> ModelStatistics:
    """l, s, b from summed moments.

    Args:
        sums: (N + 1, 9, *shape) sums over `count` points at each node.
        count: how many points.
        low, high: lambda at the first and last node.
        fixed_l: use this l everywhere, as the paper does with 1 on ImageNet-256; None takes the best.
    """
    diagonal, y, D, D_, yy, yD, DD, yD_, DD_ = (sums / count).unbind(1)
    l = 1 - diagonal if fixed_l is None else torch.full_like(diagonal, fixed_l)  # noqa: E741
    slope = torch.gradient(l, spacing=(high - low) / (len(l) - 1), dim=0, edge_order=2)[0]
    a, c = 1 - l, 1 - l + slope  # f = a y - D,  f' = a D - c y - D'
    f, f_ = a * y - D, a * D - c * y - D_
    ff = a * a * yy - 2 * a * yD + DD
    ff_ = a * a * yD - a * c * yy - a * yD_ - a * DD + c * yD + DD_
    variance = ff - f * f
    # A constant f says nothing of s: then s = 0 and b = f'.
    varies = variance > LEAST_VARIANCE * (a * a * yy + DD)
    s = torch.where(varies, (ff_ - f * f_) / torch.where(varies, variance, 1.0), 0.0)
    made = ModelStatistics(shape=tuple(l.shape[1:]), nodes=len(l) - 1, low=low, high=high).double()
    for name, value in (("l", l), ("s", s), ("b", f_ - s * f)):
        getattr(made, name).copy_(value)
    return made


def estimate(
    denoiser: Denoiser,
    images: Any,
    *,
    samples: int = 1024,
    batch_size: int = 256,
    seed: int = 0,
    folder: str | Path | None = None,
    advance: Callable[[int, str], None] | None = None,
    nodes: int = 120,
    diagonal: str = "probe",
    probes: int = 1,
    fixed_l: float | None = None,
    low: float | None = None,
    high: float | None = None,
) -> ModelStatistics:
    """Estimate l, s, b of a model on N + 1 nodes uniform in lambda.

    Args:
        denoiser: the model; conditions are the labels of the images.
        images: clean images: a data set with `batch(indices)`, or a pair (images (n, *shape), labels (n,) or None).
            Point k is image k mod n; those a model was trained on, or those it makes itself where none are at hand.
        samples: K, how many points at every node.
        batch_size: points a batch; the result does not depend on it beyond rounding.
        seed: of noise and probes.
        folder: where the sums are kept, so that a run that was killed goes on; None keeps nothing.
        advance: told of finished work, which adds up to `samples`.
        nodes: N.
        diagonal: "probe" for Rademacher probes, "exact" for one product an entry.
        probes: how many a point; points are repeated with other noise and another probe.
        fixed_l: use this l instead of the best.
        low, high: lambda of the first and last node; None takes the schedule's trained range.

    Returns:
        The statistics in float64.

    Raises:
        InputError: a setting is out of range, or the images do not have the model's shape.
        ArtefactError: the folder holds another run, or a broken one.
        NonFiniteError: the model's answer is not finite; the node is named.
    """
    for thing, value, least in (("samples", samples, 2), ("batch_size", batch_size, 1), ("probes", probes, 1)):
        if not isinstance(value, int) or value < least:
            raise InputError(thing, value, f"needs a whole number of at least {least}")
    if diagonal not in ("probe", "exact"):
        raise unknown_name("diagonal", diagonal, ("probe", "exact"))
    if not isinstance(nodes, int) or nodes < 4:
        raise InputError("nodes", nodes, "needs a whole number of at least 4")
    ends = lam_range(denoiser.schedule)
    low, high = ends[0] if low is None else low, ends[1] if high is None else high
    ModelStatistics(shape=denoiser.shape, nodes=nodes, low=low, high=high)  # refuses what is no range
    read, count = _reader(denoiser, images)
    device = next((v.device for v in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))
    lam, total = np.linspace(low, high, nodes + 1), samples * probes
    job = {
        "model": fingerprint_of(denoiser), "samples": total, "batch_size": batch_size, "seed": seed, "nodes": nodes,
        "diagonal": diagonal, "low": low, "high": high, "images": count,
    }  # fmt: skip
    store = _Store(folder, job, (nodes + 1, len(MOMENTS), *denoiser.shape))
    units = -(-total // batch_size) * (nodes + 1)
    told, batch = 0, -1
    for unit in range(units):
        if unit < store.done:
            continue
        if unit // (nodes + 1) != batch:
            batch = unit // (nodes + 1)
            points = range(batch * batch_size, min((batch + 1) * batch_size, total))
            x0, cond = read([k % count for k in points])
            draws = Noise(seed).at(points, denoiser.shape, device=device, dtype=x0.dtype)
            x0, noise = x0.to(device), draws.normal()
            cond = cond.to(device) if cond is not None else None
            sign = torch.sign(draws.normal(1)) if diagonal == "probe" else None
        node = unit % (nodes + 1)
        with torch.no_grad():
            part = moments(denoiser, float(lam[node]), x0, noise, cond, probe=sign).cpu()
        if not bool(part.isfinite().all()):
            raise NonFiniteError("statistics", float(lam[node]), "the model's answer at this lambda is not finite")
        store.add(node, part, last=unit == units - 1)
        if advance is not None:
            share = samples * (unit + 1) // units
            advance(share - told, f"lambda {lam[node]:.2f}")
            told = share
    return statistics_of(store.sums, total, low, high, fixed_l=fixed_l)


def _reader(denoiser: Denoiser, images: Any) -> tuple[Callable[[list[int]], tuple[Tensor, Cond | None]], int]:
    """(positions -> clean points of the model with their conditions, how many there are)."""
    encode = getattr(denoiser, "encode", None)

    def read(places: list[int]) -> tuple[Tensor, Cond | None]:
        if isinstance(images, tuple):
            pixels, labels = images[0][places], None if images[1] is None else images[1][places]
        else:
            batch = images.batch(places)
            pixels, labels = batch.image, batch.label
            pixels = encode(pixels) if encode is not None else pixels
        if tuple(pixels.shape[1:]) != tuple(denoiser.shape):
            raise InputError("image shape", tuple(pixels.shape[1:]), f"the model's is {tuple(denoiser.shape)}")
        if denoiser.num_classes is None:
            return pixels, None
        if labels is None:
            return pixels, denoiser.null(Cond(labels=torch.zeros(len(pixels), dtype=torch.int64)))
        # An image without a label is one of no class.
        labels = torch.where(labels < 0, denoiser.num_classes, labels)
        if int(labels.max()) > denoiser.num_classes:
            raise InputError("label", int(labels.max()), f"the model knows classes 0 to {denoiser.num_classes - 1}")
        return pixels, Cond(labels=labels)

    count = len(images[0]) if isinstance(images, tuple) else len(images)
    if count < 2:
        raise InputError("images", count, "need at least 2")
    return read, count


class _Store:
    """The sums, on disk now and then with how far they are; nothing is lost but the last half minute."""

    def __init__(self, folder: str | Path | None, job: dict[str, Any], shape: tuple[int, ...]) -> None:
        self.path = None if folder is None else Path(folder) / "sums.safetensors"
        self.job, self.done, self.sums = job, 0, torch.zeros(shape, dtype=torch.float64)
        self._saved = time.monotonic()
        if self.path is not None:
            sweep(self.path.parent)
            if self.path.exists():
                self._load(self.path)

    def _load(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                known = json.loads(file.metadata()["job"])
                sums, done = file.get_tensor("sums"), int(file.metadata()["done"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            raise ArtefactError("sums", str(path), "are damaged; delete the file") from None
        wrong = sorted(k for k in known.keys() | self.job.keys() if known.get(k) != self.job.get(k))
        if wrong or sums.shape != self.sums.shape:
            mend = (
                f"holds another estimation (they differ in {', '.join(wrong) or 'shape'}); delete it or choose another"
            )
            raise ArtefactError("folder", str(path.parent), mend)
        self.sums, self.done = sums, done

    def add(self, node: int, part: Tensor, *, last: bool) -> None:
        self.sums[node] += part
        self.done += 1
        if self.path is None or (time.monotonic() - self._saved < SECONDS and not last):
            return
        from safetensors.torch import save_file

        with atomic_path(self.path) as temporary:
            save_file({"sums": self.sums}, temporary, {"job": json.dumps(self.job), "done": str(self.done)})
        self._saved = time.monotonic()
