"""Coalitions of a workflow made into images and features: in parallel, in a folder, each once.

A unit is (coalition, seed set). What it made is known by the SHA-256 of its images: coalitions that give the same
images share one file of features. A finished unit is one line of the folder's ledger, so that a run that was killed
goes on where it was, to the same numbers.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.encoder import Encoder
from scoreline.core.errors import ArtefactError, InputError, NonFiniteError
from scoreline.core.files import atomic_path
from scoreline.core.noise import Noise
from scoreline.data.grid import picture_grid, write_png
from scoreline.evaluate.ledger import Ledger
from scoreline.evaluate.protocols import features_of

__all__ = ["Coalitions", "Make", "Unit", "coalition_name"]

Make = Callable[[frozenset[str], Noise], Tensor]
"""make(active, noise): the images of the workflow with the components `active`, the others replaced by stand-ins."""

PICTURES = 10
_BATCH = 250


@dataclass(frozen=True)
class Unit:
    """One coalition under one seed set, as it was made.

    Args:
        digest: SHA-256 of the images.
        count: how many they are.
        seconds: what making them took.
    """

    digest: str
    count: int
    seconds: float


def coalition_name(active: Sequence[str]) -> str:
    """A coalition in words, components in the order given."""
    return " + ".join(active) if active else "nothing"


@dataclass
class Coalitions:
    """Makes the units of a game and keeps their features.

    Args:
        components: names; bit i of a mask stands for components[i].
        make: see :data:`Make`; the same noise belongs to every coalition of a seed set.
        encoders: feature networks by a short name.
        same: a text by coalition; those of equal text are known to give equal images and are made once.
    """

    components: Sequence[str]
    make: Make
    encoders: Mapping[str, Encoder]
    same: Callable[[frozenset[str]], str] | None = None
    folder: Path = field(default=Path(), init=False)
    units: dict[tuple[int, int], Unit] = field(default_factory=dict, init=False)
    leaders: dict[int, int] = field(default_factory=dict, init=False)

    def name(self, mask: int) -> str:
        """A coalition in words."""
        return coalition_name([name for i, name in enumerate(self.components) if mask >> i & 1])

    def active(self, mask: int) -> frozenset[str]:
        """The components of a mask."""
        return frozenset(name for i, name in enumerate(self.components) if mask >> i & 1)

    @contextmanager
    def made(
        self,
        masks: Sequence[int],
        seeds: Sequence[int],
        folder: str | os.PathLike[str] | None,
        job: Mapping[str, Any],
        *,
        workers: int = 1,
        advance: Callable[[int, str], None] = lambda n, text: None,
    ) -> Iterator[None]:
        """Make what is not there yet; inside the block `units` and `features` hold everything.

        Args:
            masks: coalitions.
            seeds: one seed set each.
            folder: where features, pictures and ledger stay; None takes a temporary one.
            job: what makes this run the one it is, for the ledger.
            workers: processes; more than one needs a system that can fork.
            advance: told of every unit that is done.

        Raises:
            ArtefactError: the folder holds another run, is in use, or a worker was killed.
            InputError, NonFiniteError: images that are no images, or not as many as the other coalitions'.
        """
        with tempfile.TemporaryDirectory(prefix="scoreline-") as temporary:
            self.folder = Path(temporary if folder is None else folder)
            with _alone(self.folder):
                ledger = Ledger(self.folder / "ledger.jsonl", dict(job))
                leaders = self.leaders = self._leaders(masks)
                wanted = [(mask, seed) for seed in seeds for mask in dict.fromkeys(leaders.values())]
                undone = [unit for unit in wanted if not self._known(ledger, unit)]
                advance(len(wanted) - len(undone), "known already")
                for (mask, seed), unit in self._run(undone, workers, seeds[0]):
                    self._check_count(unit.count, mask, ledger)
                    ledger.add(_key(mask, seed), digest=unit.digest, count=unit.count, seconds=unit.seconds)
                    advance(1, f"seed set {seed}, {self.name(mask)}")
                for mask, leader in leaders.items():
                    for seed in seeds:
                        row = ledger[_key(leader, seed)]
                        self.units[mask, seed] = Unit(row["digest"], row["count"], row["seconds"])
                yield

    def features(self, digest: str, encoder: str) -> Tensor:
        """The features (N, D) of images that were made, by their digest.

        Raises:
            ArtefactError: the file is missing or damaged.
        """
        file = self._file(digest, encoder)
        try:
            return torch.from_numpy(np.load(file, allow_pickle=False))
        except (OSError, ValueError, EOFError, TypeError) as error:
            raise ArtefactError("features", str(file), f"cannot be read ({error}); delete the folder") from None

    def picture(self, mask: int) -> str:
        """Where the first images of a coalition stand, inside the folder."""
        inside = "".join(str(mask >> i & 1) for i in range(len(self.components)))
        return f"pictures/coalition-{inside}.png"

    def _leaders(self, masks: Sequence[int]) -> dict[int, int]:
        """For each mask the first one that is known to give the same images."""
        if self.same is None:
            return {mask: mask for mask in masks}
        first: dict[str, int] = {}
        return {mask: first.setdefault(self.same(self.active(mask)), mask) for mask in masks}

    def _file(self, digest: str, encoder: str) -> Path:
        # Another network under the same name has files of its own.
        network = hashlib.sha256(repr(sorted(self.encoders[encoder].protocol.items())).encode()).hexdigest()
        return self.folder / "features" / f"{digest[:24]}-{encoder}-{network[:8]}.npy"

    def _known(self, ledger: Ledger, unit: tuple[int, int]) -> bool:
        key = _key(*unit)
        return key in ledger and all(self._file(ledger[key]["digest"], name).is_file() for name in self.encoders)

    def _check_count(self, count: int, mask: int, ledger: Ledger) -> None:
        others = {row["count"] for row in ledger.rows.values() if "count" in row}
        if others - {count}:
            mend = f"{count} images, others gave {others.pop()}; a distance depends on their number"
            raise InputError("coalition", self.name(mask), mend)

    def _run(
        self, units: Sequence[tuple[int, int]], workers: int, first_seed: int
    ) -> Iterator[tuple[tuple[int, int], Unit]]:
        if workers <= 1 or len(units) <= 1:
            for mask, seed in units:
                yield (mask, seed), self._make(mask, seed, picture=seed == first_seed)
            return
        threads = max(1, torch.get_num_threads() // workers)
        pool = ProcessPoolExecutor(
            min(workers, len(units)), mp_context=_forking(), initializer=_enter, initargs=(self, threads)
        )
        try:
            futures = {pool.submit(_in_worker, mask, seed, seed == first_seed): (mask, seed) for mask, seed in units}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            mend = "was killed (out of memory?); the same command goes on from here, perhaps with fewer workers"
            raise ArtefactError("worker", None, mend) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, mask: int, seed: int, *, picture: bool) -> Unit:
        name = self.name(mask)
        began = time.perf_counter()
        images = self.make(self.active(mask), Noise(seed))
        seconds = time.perf_counter() - began
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
            found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images of coalition {name}", found, "a coalition gives (N, C, H, W) floats in [-1, 1]")
        if not bool(torch.isfinite(images).all()):
            raise NonFiniteError(f"images of coalition {name}", None, "hold NaN or infinities")
        images = images.detach().float().cpu().contiguous()
        digest = hashlib.sha256(repr(tuple(images.shape)).encode() + images.numpy().tobytes()).hexdigest()
        for short, encoder in self.encoders.items():
            file = self._file(digest, short)
            if not file.is_file():
                features = features_of(encoder, images, batch_size=_BATCH)
                with atomic_path(file) as temporary, open(temporary, "wb") as out:
                    np.save(out, features.numpy())
        if picture and images.shape[1] in (1, 3):
            write_png(self.folder / self.picture(mask), picture_grid(images[:PICTURES], columns=PICTURES))
        return Unit(digest, len(images), seconds)


def _key(mask: int, seed: int) -> str:
    return f"{seed}/{mask}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        mend = f"cannot be written ({error.strerror}); choose another"
        raise ArtefactError("folder", str(folder), mend) from None
    try:
        # Not inherited by workers: with its owner gone the folder is free, whatever is left of them.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        mend = "is in use by another run; wait for it, or choose another folder"
        raise ArtefactError("folder", str(folder), mend) from None
    try:
        yield
    finally:
        os.close(lock)


def _forking() -> Any:
    if "fork" not in multiprocessing.get_all_start_methods():
        raise InputError("workers", None, "this system cannot fork processes; use 1 worker")
    return multiprocessing.get_context("fork")


_worker: Coalitions | None = None


def _enter(coalitions: Coalitions, threads: int) -> None:
    """Set up a worker: few threads, and no life beyond that of the process that started it."""
    global _worker
    _worker = coalitions
    torch.set_num_threads(threads)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_worker(mask: int, seed: int, picture: bool) -> Unit:
    assert _worker is not None
    return _worker._make(mask, seed, picture=picture)
