"""run(): a training with a folder, that can be killed at any moment and goes on when the same command is given again.

The folder holds run.json (the resolved run), log.csv, checkpoints/ and, where a sample callback is given, samples/.
Started by `torchrun` or `accelerate launch`, the same run is carried out by several processes: each takes its piece of
the same global batches, and the first one writes.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.core.device import pick_device
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.files import sweep
from scoreline.core.method import Method
from scoreline.train import checkpoint
from scoreline.train.ema import EMA
from scoreline.train.fit import Trained, finish, pick_autocast
from scoreline.train.loop import Loop, kept_generators
from scoreline.train.order import Data
from scoreline.train.record import Record
from scoreline.train.resolve import claim_folder, resolve

__all__ = ["run"]

Sample = Callable[[Method, int, Path], None]
STOP_EVERY = 16


def run(
    method: Method,
    data: Data,
    folder: str | os.PathLike[str],
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "float32",
    accumulate: int = 1,
    ema: EMA = None,
    skip_nonfinite: int = 0,
    checkpoint_every: int = 1000,
    checkpoint_seconds: float | None = None,
    log_every: int = 50,
    sample_every: int | None = None,
    sample: Sample | None = None,
    stop_at: int | None = None,
    config: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Trained:
    """Train a method in a folder; the same call in the same folder goes on from its last checkpoint.

    On the same machine and with the same thread count a resumed run ends with the same bits as one never stopped. A
    finished run returns at once what it left; asked for more `steps`, it goes on.

    Args:
        method: what is trained; it is changed in place.
        data: Images; a tensor (N, ...); a pair (images, labels); or None for methods that make their own data.
        folder: where the run lives; several machines must share it.
        steps: turns of the loop in all, 1 or more.
        batch_size: images a step, over all processes.
        seed: of order, noise and dropout.
        device: auto, cpu, cuda or mps.
        precision: float32, bf16, or fp16 (CUDA only).
        accumulate: parts into which a process cuts its share of a batch, their gradients averaged.
        ema: decay or decays of the moving averages, see :mod:`scoreline.train.ema`.
        skip_nonfinite: how many non-finite updates may be left out before the run stops.
        checkpoint_every: steps between checkpoints; there is one before the first step and one after the last, too.
        checkpoint_seconds: seconds after which a further checkpoint is made, or None.
        log_every: steps between rows of the log, whose losses are means over these steps.
        sample_every: steps between calls of `sample`, or None for never.
        sample: called as sample(method, step, path) in evaluation mode, with the first average's weights if there are
            averages; `path` (samples/<step>.png) is where it may write.
        stop_at: stop after this step, with a checkpoint, as if interrupted; None goes on to the end.
        config: what else makes the run the one it is, stored and compared.
        quiet: no progress on stderr.

    Returns:
        The method and what belongs to it; `.result()` is what the method leaves.

    Raises:
        NonFiniteError: a loss or gradient is not finite; the last checkpoint is from before that.
        ArtefactError: the folder holds another run, or cannot be written to.
        InputError: an argument is wrong.
        KeyboardInterrupt: after Ctrl-C, when the checkpoint is written.
    """
    intervals = {"checkpoint_every": checkpoint_every, "log_every": log_every, "sample_every": sample_every}
    for name, value in intervals.items():
        if value is not None and value < 1:
            raise InputError(name, value, "counts steps: 1 or more")
    if (sample_every is None) != (sample is None):
        raise InputError("sample_every", sample_every, "give both sample_every and sample, or neither")
    place, rank, world = _processes(device)
    root = Path(folder)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": seed,
        "accumulate": accumulate,
        "ema": ema,
        "skip_nonfinite": skip_nonfinite,
        "world": world,
    }
    resolved = resolve(method, data, steps=steps, device=place, precision=precision, config=config, **settings)
    if rank == 0:
        sweep(root)
        claim_folder(root, resolved)
    loop = Loop(method, data, device=place, autocast=pick_autocast(precision, place), rank=rank, **settings)
    start, header = _go_on(loop, root, steps)
    if rank == 0:
        checkpoint.prune(root / "checkpoints")
    record = Record(loop, root, steps, start, header, quiet=quiet)
    last = steps if stop_at is None else max(min(stop_at, steps), start)
    losses: dict[str, Tensor] = {}
    loop.train_mode()
    try:
        with kept_generators(place), _interrupts() as stop:
            record.save(start)
            for step in range(start + 1, last + 1):
                losses = loop.turn(step - 1)
                record.count(losses)
                if step % log_every == 0 or step == steps:
                    record.write(step)
                if sample is not None and sample_every is not None and (step % sample_every == 0 or step == steps):
                    with record.paused():
                        if rank == 0:
                            _draw(loop, sample, step, root)
                late = checkpoint_seconds is not None and record.seconds_unsaved() > checkpoint_seconds
                if step % checkpoint_every == 0 or step == last or late:
                    record.save(step)
                if _stopped(stop, step, world, place):
                    record.save(step)
                    record.progress.say(f"stopped after step {step}; the same command goes on from there")
                    raise KeyboardInterrupt
    finally:
        record.progress.close()
    return finish(loop, max(last, start), losses)


def _processes(device: str | torch.device) -> tuple[torch.device, int, int]:
    """(device, number of this process, number of processes), the process group joined where there are several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return pick_device(device), 0, 1
    from accelerate import PartialState

    wanted = pick_device(device)
    state = PartialState(cpu=wanted.type == "cpu")
    # On the CPU accelerate numbers the processes' devices; torch knows one.
    place = state.device if state.device.type == "cuda" else torch.device(state.device.type)
    return place, state.process_index, state.num_processes


def _go_on(loop: Loop, root: Path, steps: int) -> tuple[int, dict[str, Any] | None]:
    """Load the newest checkpoint if there is one; (its step, its header), or (0, None)."""
    found = checkpoint.newest(root / "checkpoints") if loop.rank == 0 else None
    chosen = torch.tensor(-1 if found is None else found[1]["step"], device=loop.device)
    if loop.world > 1:
        torch.distributed.broadcast(chosen, 0)
    step = int(chosen)
    if step < 0:
        return 0, None
    if step > steps:
        raise ArtefactError(str(root), None, f"is at step {step} already; ask for that many steps or more")
    path = root / "checkpoints" / f"{step:09d}.safetensors"
    header, tensors = found[1:] if found is not None else checkpoint.read(path)
    return checkpoint.load_state(loop, header, tensors, thing=str(path)), header


def _draw(loop: Loop, sample: Sample, step: int, root: Path) -> None:
    """Call the sample callback with averaged weights, in evaluation mode."""
    path = root / "samples" / f"{step:09d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    first = next(iter(loop.averages.values)) if loop.averages is not None else None
    loop.method.eval()
    try:
        with torch.no_grad():
            if loop.averages is None:
                sample(loop.method, step, path)
            else:
                with loop.averages.applied(first):
                    sample(loop.method, step, path)
    finally:
        loop.train_mode()


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM ask for a stop after the present step; a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _stopped(stop: threading.Event, step: int, world: int, device: torch.device) -> bool:
    """Whether to stop now; several processes must agree, and ask each other now and then only."""
    if world == 1:
        return stop.is_set()
    if step % STOP_EVERY:
        return False
    flag = torch.tensor(float(stop.is_set()), device=device)
    torch.distributed.all_reduce(flag)
    return bool(flag > 0)
