"""One pass over a set of images that feeds every metric: fixed chunks, several processes, a kill survived.

The set is cut into chunks of 512 images by index, whatever the batch size and the number of processes. A process takes
every W-th chunk and writes its features to the work folder; process 0 merges finished chunks strictly in their order
into moments (float64), a fixed sample of rows and, for the metrics that need them, a file of all rows. After every 16
merged chunks the merged state is written and their files are deleted, so that memory (and without such metrics disk,
too) stays flat in the number of images, and a run that was killed goes on and gives the same number bit for bit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scoreline.core.encoder import Encoder
from scoreline.core.errors import ArtefactError, ScorelineError
from scoreline.core.files import atomic_path, sweep
from scoreline.core.moments import Moments, check_features
from scoreline.data.images import Images
from scoreline.evaluate.processes import Processes
from scoreline.evaluate.protocols import COLOUR
from scoreline.evaluate.rows import FeatureFile

__all__ = ["CHUNK", "SAMPLE", "Network", "Taken", "extract", "sampled_rows", "take_features", "work_folder", "work_key"]

CHUNK = 512
SAMPLE = 4096
_SAVE_EVERY = 16


@dataclass(frozen=True)
class Network:
    """An encoder and what is wanted of it.

    Args:
        encoder: on the device where it shall run.
        taps: name of a tap -> whether all its rows are kept.
    """

    encoder: Encoder
    taps: Mapping[str, bool]


@dataclass
class Taken:
    """What a pass leaves of one tap.

    Args:
        moments: of all rows, float64.
        sample: the rows at `sampled_rows`, all of them for small sets; intervals are estimated from it.
        rows: all rows in a file, where they are kept.
    """

    moments: Moments
    sample: Tensor
    rows: FeatureFile | None = None

    @property
    def count(self) -> int:
        return self.moments.count

    def all_rows(self) -> Tensor:
        """All rows: mapped where they lie in a file, else the sample, which then must hold all."""
        return self.rows.tensor() if self.rows is not None else self.sample


def sampled_rows(count: int, size: int) -> Tensor:
    """Sorted numbers of the rows that are sampled: `size` of `count` without replacement, the same for ever."""
    if count <= size:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:size].sort().values


def take_features(
    features: FeatureFile, name: str, advance: Callable[[int, str], None], team: Processes
) -> Taken | None:
    """Moments and sample of stored features, streamed, an equal share in each process; None but in process 0."""
    moments = Moments(features.dim)
    for chunk in features.chunks(team.rank, team.world):
        check_features(chunk, name)
        moments.update(chunk)
        advance(len(chunk) * team.world, name)
    parts = team.gathered(moments.to_tensors())
    if not team.first:
        return None
    moments = Moments(features.dim)
    for part in parts:
        moments.merge(Moments.from_tensors(part))
    return Taken(moments, features.take(sampled_rows(len(features), SAMPLE)), features)


def work_key(images: str, networks: Sequence[Network], batch_size: int, compiled: bool = False) -> str:
    """Name of a work folder: whatever may change a bit of the result gives another one."""
    job = {
        "images": images,
        "networks": [[n.encoder.protocol, dict(n.taps), str(next(n.encoder.parameters(), torch.zeros(0)).device)]
                     for n in networks],
        "sizes": [CHUNK, SAMPLE, batch_size],
        "compiled": compiled,
        "torch": torch.__version__,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:20]


@contextmanager
def work_folder(base: Path, key: str) -> Iterator[Path]:
    """A folder for this work that no other living run uses: what a killed one left is taken up, a busy one is not.

    Args:
        base: where work folders lie.
        key: name of the work; a second run of it beside the first gets the name with a number.

    Raises:
        ArtefactError: a hundred runs of the same work are under way.
    """
    for number in range(100):
        folder = base / (f"{key}-{number}" if number else key)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as file:
            if not _lock(file):
                continue
            with suppress(FileNotFoundError):
                # A run that ended between opening and locking took its file away.
                if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / "lock")):
                    yield folder
                    return
    raise ArtefactError("work folder", str(base / key), "is in use by a hundred runs; wait, or give another --out")


def _lock(file: IO[str]) -> bool:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows has no such locks; two runs at once are then the user's care
        return True
    except OSError:
        return False
    return True


class _Merger:
    """Process 0's side: chunks in order into moments, sample and kept rows."""

    def __init__(self, folder: Path, count: int, networks: Sequence[Network]) -> None:
        self.folder, self.count = folder, count
        self.keep = {f"{i}.{tap}": keep for i, n in enumerate(networks) for tap, keep in n.taps.items()}
        self.chosen = sampled_rows(count, SAMPLE)
        self.done = 0
        self.taken: dict[str, Taken] = {}
        self._load()

    def merge(self) -> None:
        """Take in every chunk whose turn has come."""
        while (path := chunk_path(self.folder, self.done)).exists():
            for name, features in _read(path).items():
                self._absorb(name, features)
            self.done += 1
            if self.done % _SAVE_EVERY == 0:
                self.save()

    def save(self) -> None:
        """Write the state, then drop the chunks that are in it."""
        state = {"done": torch.tensor(self.done)}
        for name, taken in self.taken.items():
            state |= {f"{name}.{key}": value for key, value in taken.moments.to_tensors().items()}
            state[f"{name}.sample"] = taken.sample
        with atomic_path(self.folder / "state.safetensors") as temporary:
            save_file({key: value.contiguous() for key, value in state.items()}, temporary)
        for number in range(self.done):
            with suppress(FileNotFoundError):
                chunk_path(self.folder, number).unlink()

    def _load(self) -> None:
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        state = _read(path)
        self.done = int(state["done"])
        for name in self.keep:
            parts = {key: state[f"{name}.{key}"] for key in ("count", "mean", "scatter")}
            self.taken[name] = Taken(Moments.from_tensors(parts), state[f"{name}.sample"], self._rows(name, state))

    def _rows(self, name: str, state: Mapping[str, Tensor]) -> FeatureFile | None:
        return self._file(name, state[f"{name}.sample"].shape[1])

    def _file(self, name: str, dim: int) -> FeatureFile | None:
        return FeatureFile.create(self.folder / f"rows-{name}.raw", self.count, dim) if self.keep[name] else None

    def _absorb(self, name: str, features: Tensor) -> None:
        dim = features.shape[1]
        if name not in self.taken:
            self.taken[name] = Taken(Moments(dim), torch.zeros(len(self.chosen), dim), self._file(name, dim))
        taken, start = self.taken[name], self.done * CHUNK
        taken.moments.update(features)
        here = (self.chosen >= start) & (self.chosen < start + len(features))
        taken.sample[here] = features[self.chosen[here] - start]
        if taken.rows is not None:
            taken.rows.write(start, features)


def chunk_path(folder: Path, number: int) -> Path:
    return folder / "chunks" / f"{number:08d}.safetensors"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtefactError("work file", str(path), f"is damaged ({error}); delete its folder") from None


class _Batches(torch.utils.data.Dataset):
    """Prepared batches by number, for worker processes; an error comes back as a value, so that it stays one line."""

    def __init__(self, images: Images, prepare: Sequence[Callable[[Tensor], Tensor]], spans: list[range]) -> None:
        self.images, self.prepare, self.spans = images, prepare, spans

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> list[Tensor] | Exception:
        try:
            image = self.images.batch(self.spans[number]).image
            return [prepare(image) for prepare in self.prepare]
        except ScorelineError as error:
            return error


def extract(
    images: Images,
    networks: Sequence[Network],
    folder: Path,
    *,
    name: str,
    batch_size: int,
    workers: int,
    team: Processes,
    advance: Callable[[int, str], None],
) -> dict[str, Taken]:
    """Features of a set at all taps of all networks, in one pass.

    Args:
        images: the set.
        networks: what is wanted.
        folder: the work folder, seen by all processes; what is in it already is not computed again.
        name: of the set, for errors and progress.
        batch_size: images a batch, at most a chunk.
        workers: processes that decode and preprocess; 0 does it in this one.
        team: the processes of this job.
        advance: told of progress.

    Returns:
        "<number of the network>.<tap>" -> what was taken; empty in all processes but the first.

    Raises:
        ArtefactError: a broken picture, or a work folder that the processes do not share.
        InputError: images that a network refuses, or features that are not finite.
    """
    count = len(images)
    merger = _Merger(folder, count, networks) if team.first else None
    merged = team.agreed(lambda: merger.done if merger is not None else 0)
    mine = [
        c for c in range(merged, -(-count // CHUNK))
        if c % team.world == team.rank and not chunk_path(folder, c).exists()
    ]  # fmt: skip
    if team.first:
        sweep(folder)
        advance(count - min(count, CHUNK * len(mine) * team.world), name)
    team.barrier()
    spans = [
        range(start, min(start + batch_size, (c + 1) * CHUNK, count))
        for c in mine
        for start in range(c * CHUNK, min((c + 1) * CHUNK, count), batch_size)
    ]
    parts: dict[str, list[Tensor]] = {}
    for span, prepared in zip(spans, _prepared(images, networks, spans, workers)):
        for i, (network, x) in enumerate(zip(networks, prepared)):
            for tap, value in _activations(network, x).items():
                parts.setdefault(f"{i}.{tap}", []).append(value)
        if team.first:
            advance(len(span) * team.world, name)
        if span.stop % CHUNK == 0 or span.stop == count:
            found = {key: torch.cat(values) for key, values in parts.items()}
            for features in found.values():
                check_features(features, name)
            path = chunk_path(folder, span.start // CHUNK)
            with atomic_path(path) as temporary:
                save_file(found, temporary)
            parts = {}
            if merger is not None:
                merger.merge()
    team.barrier()
    if merger is None:
        return {}
    merger.merge()
    if merger.done * CHUNK < count:
        mend = "lacks chunks that other processes made; all processes need the same folder, give --out on a shared disk"
        raise ArtefactError("work folder", str(folder), mend)
    return merger.taken


@torch.inference_mode()
def _activations(network: Network, prepared: Tensor) -> dict[str, Tensor]:
    device = next((p.device for p in network.encoder.parameters()), prepared.device)
    found = network.encoder.activations(prepared.to(device, non_blocking=True), list(network.taps))
    # a copy, since a tap may be a view of something larger, or of another tap
    return {tap: value.to("cpu", torch.float32, copy=True).contiguous() for tap, value in found.items()}


def _preparation(encoder: Encoder, images: Images) -> Callable[[Tensor], Tensor]:
    """The network's own preprocessing, after grey images got the three channels that some networks take alone."""
    if images.shape[0] == 1 and encoder.protocol["features"] in COLOUR:
        return functools.partial(_coloured, encoder.preprocess)
    return encoder.preprocess


def _coloured(preprocess: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    return preprocess(image.expand(-1, 3, -1, -1))


def _prepared(images: Images, networks: Sequence[Network], spans: list[range], workers: int) -> Iterator[list[Tensor]]:
    if not spans:
        return
    batches = _Batches(images, [_preparation(network.encoder, images) for network in networks], spans)
    settings: dict[str, Any] = {}
    if workers > 0:
        # Forked workers share what is read already; where there is no fork, they are given a copy.
        context = "fork" if os.name == "posix" and os.uname().sysname == "Linux" else "spawn"
        settings = {"prefetch_factor": 2, "multiprocessing_context": context}
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=min(workers, len(spans)), **settings)
    for found in loader if workers > 0 else (batches[number] for number in range(len(batches))):
        if isinstance(found, Exception):
            raise found
        yield found
