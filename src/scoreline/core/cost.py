"""What a result cost: network evaluations, multiply-accumulates, seconds, memory."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.schedule import Time

__all__ = ["Call", "Cost", "Counted", "Evaluations", "count_macs", "evaluations", "machine", "measured"]


class Counted(View):
    """A view of a denoiser that counts network evaluations per image, those of views made from it among them."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self._spent = [0]  # in a list, which copies of this view share

    @property
    def nfe(self) -> int:
        """Evaluations so far; a guided denoiser, which runs the network on a doubled batch, counts 2 a call."""
        return self._spent[0]

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        self._spent[0] += self.evaluations
        return self.inner(x, t, cond)

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        """The jump of a flow map, counted."""
        self._spent[0] += self.evaluations
        return self.inner.jump(x, t, s, cond)  # type: ignore[operator]


@dataclass
class Cost:
    """Cost of one measured block; see :func:`measured`.

    Attributes:
        seconds: wall-clock time.
        peak_memory: largest memory in use during the block, bytes: resident set on CPU, allocated on CUDA.
    """

    seconds: float = float("nan")
    peak_memory: int = 0


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def measured(device: torch.device | str = "cpu", *, interval: float = 0.01) -> Iterator[Cost]:
    """Measure seconds and peak memory of a block.

    Args:
        device: CUDA blocks are synchronised on both sides and ask the allocator; elsewhere the resident set is sampled.
        interval: seconds between two samples of the resident set.
    """
    cost, device = Cost(), torch.device(device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            cost.peak_memory = max(cost.peak_memory, _resident())
            done.wait(interval)

    watcher = threading.Thread(target=watch, daemon=True)
    if not cuda:
        watcher.start()
    start = time.perf_counter()
    try:
        yield cost
        if cuda:
            torch.cuda.synchronize(device)
    finally:
        cost.seconds = time.perf_counter() - start
        done.set()
        if cuda:
            cost.peak_memory = torch.cuda.max_memory_allocated(device)
        else:
            watcher.join()
            cost.peak_memory = max(cost.peak_memory, _resident())


def count_macs(function: Callable[..., Any], *args: Any) -> int:
    """Multiply-accumulates of one call (matrix products, convolutions, attention), counted on what it is given."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*args)
    return counter.get_total_flops() // 2


@dataclass
class Call:
    """One call of a network, with what is needed to make it again.

    Attributes:
        name: of the network.
        method: "forward" or "trace".
        args, kwargs: as given.
        graph: whether gradients were recorded.
        weights: whether the network's own parameters took part in them.
        back: whether gradients came back through it.
    """

    name: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    graph: bool
    weights: bool
    back: bool = False


@dataclass
class Evaluations:
    """Network evaluations of a training; see :func:`evaluations`.

    Attributes:
        forward: images that went through a network.
        backward: images for which gradients came back through one.
        calls: every call in order, where they were asked for.
        paused: while it is set, nothing is counted (pictures drawn in the middle of a training).
    """

    forward: int = 0
    backward: int = 0
    calls: list[Call] = field(default_factory=list)
    paused: bool = False

    @property
    def total(self) -> int:
        """Images times evaluations, a forward pass 1, a backward pass 2."""
        return self.forward + 2 * self.backward


@contextmanager
def evaluations(networks: Mapping[str, nn.Module], *, calls: bool = False) -> Iterator[Evaluations]:
    """Count what goes through networks inside the block, whoever calls them, by `forward` or by `trace`.

    Args:
        networks: by name; a call that one makes inside another counts once, for the outer one.
        calls: keep them all, with their arguments.
    """
    counted, depth = Evaluations(), 0

    def wrapped(name: str, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                out = original(x, *args, **kwargs)
            finally:
                depth -= 1
            if depth == 0 and not counted.paused:
                size, entry = len(x), None
                counted.forward += size
                if calls:
                    weights = any(p.requires_grad for p in networks[name].parameters())
                    entry = Call(name, method, (x, *args), kwargs, torch.is_grad_enabled(), weights)
                    counted.calls.append(entry)
                raw = out[0] if isinstance(out, (tuple, list)) else out
                if isinstance(raw, Tensor) and raw.requires_grad:
                    raw.register_hook(lambda grad: returned(size, entry))
            return out

        return call

    def returned(size: int, entry: Call | None) -> None:
        counted.backward += size
        if entry is not None:
            entry.back = True

    changed: list[tuple[nn.Module, str]] = []
    try:
        for name, net in networks.items():
            for method in ("forward", "trace"):
                if hasattr(net, method) and method not in net.__dict__:
                    net.__dict__[method] = wrapped(name, method, getattr(net, method))
                    changed.append((net, method))
        yield counted
    finally:
        for net, method in changed:
            del net.__dict__[method]


def machine() -> dict[str, Any]:
    """Facts about the machine that a timing belongs to."""
    facts: dict[str, Any] = {
        "system": platform.system(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
