"""The loop of every search: a searcher proposes genotypes, they are evaluated, it is told the results.

What a searcher sees depends on the genotypes alone, never on who evaluated them or when: results are told in the order
in which they were asked for, and an evaluation runs on one thread of torch wherever it runs. So the outcome is the same
in this process, in a pool and on a Ray cluster. Every finished evaluation is one line of plain JSON; a search that was
killed is replayed from its start, with the evaluations that are known looked up.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from scoreline.core.errors import InputError, ScorelineError
from scoreline.evaluate.ledger import Ledger
from scoreline.evaluate.processes import become_worker

__all__ = ["Evaluate", "Genotype", "Result", "Searcher", "genotype_key", "parse_workers", "search"]

Genotype = dict[str, Any]
Result = dict[str, float]
Evaluate = Callable[[Genotype], Mapping[str, float]]

# How often in a row workers may die without a single evaluation finished in between.
PATIENCE = 3
_RETRIES = 20


class Searcher(Protocol):
    """Proposes and learns. It draws from a seed of its own, so that a replay makes the same proposals."""

    def ask(self) -> list[Genotype]:
        """The next generation of genotypes, plain JSON values; empty when the search is over."""

    def tell(self, genotypes: list[Genotype], results: list[Result]) -> None:
        """The results of what was asked for, in its order."""


def genotype_key(genotype: Mapping[str, Any]) -> str:
    """The one way to write a genotype: JSON with sorted keys.

    >>> genotype_key({"steps": [1, 2], "drop": []})
    '{"drop":[],"steps":[1,2]}'
    """
    return json.dumps(genotype, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_workers(text: str | int) -> int | str:
    """A number of processes, or `ray`, or `ray:ADDRESS`.

    Raises:
        InputError: anything else, or Ray is not installed.

    >>> parse_workers("2"), parse_workers("1")
    (2, 1)
    """
    if isinstance(text, int) or text.isdecimal():
        if int(text) < 1 or isinstance(text, bool):
            raise InputError("workers", text, "must be 1 or more, or ray")
        return int(text)
    name, _, address = text.partition(":")
    if name != "ray" or (text != "ray" and not address):
        raise InputError("workers", text, "give a number of processes, ray, or ray:ADDRESS")
    _import_ray()
    return text


def search(
    searcher: Searcher,
    evaluate: Evaluate,
    *,
    ledger: str | os.PathLike[str] | None = None,
    job: Mapping[str, Any] | None = None,
    workers: int | str = 1,
    advance: Callable[[int, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Run a search to its end.

    Args:
        searcher: what proposes.
        evaluate: genotype -> {"value": ..., ...}, smaller values are better; a pure function of the genotype, and
            picklable unless it runs in this process. A value that is no finite number counts as infinite.
        ledger: file of JSON lines for the finished evaluations; None keeps nothing.
        job: what makes this search the one it is (model, objective, seed); a ledger of another job is refused.
        workers: 1 for this process, a number of processes, "ray" for a local Ray cluster or the one that is running,
            "ray:ADDRESS" for the cluster there.
        advance: called as (n, text) when n more of those asked for are done, known ones too.

    Returns:
        Every evaluation in the order asked: {"generation", "genotype", "result"}. A genotype that was asked again is
        there again, but was evaluated once.

    Raises:
        InputError: workers that do not exist, or something that cannot be sent to them.
        ArtefactError: the ledger belongs to another search.
        ScorelineError: workers die again and again.
    """
    workers = parse_workers(workers)
    book = None if ledger is None else Ledger(Path(ledger), dict(job or {}))
    known: dict[str, Result] = {} if book is None else {key: _read(row["result"]) for key, row in book.rows.items()}
    history: list[dict[str, Any]] = []
    best, generation = math.inf, 0

    def said(result: Result, times: int = 1) -> None:
        nonlocal best
        best = min(best, result["value"])
        if advance is not None:
            advance(times, f"best {best:.4g}")

    with _evaluators(evaluate, workers) as run:
        while asked := [json.loads(genotype_key(genotype)) for genotype in searcher.ask()]:
            keys = [genotype_key(genotype) for genotype in asked]
            missing = {key: genotype for key, genotype in zip(keys, asked) if key not in known}
            for key in keys:
                if key in known:
                    said(known[key])
            # Whichever is done first is written first: the order of the lines means nothing.
            for key, found in run(missing):
                known[key] = _finite(found, key)
                if book is not None:
                    book.add(key, genotype=missing[key], result=_plain(known[key]))
                said(known[key], keys.count(key))
            results = [dict(known[key]) for key in keys]
            history += [
                {"generation": generation, "genotype": genotype, "result": result}
                for genotype, result in zip(asked, results)
            ]
            searcher.tell(asked, results)
            generation += 1
    return history


def _finite(found: Mapping[str, float], key: str) -> Result:
    if "value" not in found:
        raise InputError("evaluation", key, "must return at least {'value': ...}")
    return {name: float(v) if math.isfinite(v) else math.inf for name, v in found.items()}


def _plain(result: Result) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in result.items()}


def _read(result: Mapping[str, float | None]) -> Result:
    return {name: math.inf if value is None else value for name, value in result.items()}


# --- who evaluates: this process, a pool, Ray. Each yields (key, result) as they are done. -----------------------

Run = Callable[[Mapping[str, Genotype]], Iterable[tuple[str, Mapping[str, float]]]]


@contextmanager
def _evaluators(evaluate: Evaluate, workers: int | str) -> Iterator[Run]:
    if workers == 1:
        yield lambda missing: _here(evaluate, missing)
        return
    try:
        # Sent once to every worker, not with every task; a pipe between our own processes, never a file.
        packed = pickle.dumps(evaluate)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError("workers", workers, f"this evaluation cannot be sent to another process ({error})") from None
    if isinstance(workers, int):
        with _Pool(packed, workers) as pool:
            yield pool.run
    else:
        with _on_ray(packed, workers.partition(":")[2] or None) as run:
            yield run


def _here(evaluate: Evaluate, missing: Mapping[str, Genotype]) -> Iterator[tuple[str, Mapping[str, float]]]:
    threads = torch.get_num_threads()
    for key, genotype in missing.items():
        # Sums are rounded in another order on more threads, which a close race between two genotypes could feel.
        torch.set_num_threads(1)
        try:
            result = evaluate(genotype)
        finally:
            torch.set_num_threads(threads)
        yield key, result


_EVALUATE: Evaluate | None = None


def _install(packed: bytes) -> None:
    """Make this process a worker."""
    global _EVALUATE
    become_worker()
    _EVALUATE = pickle.loads(packed)


def _work(genotype: Genotype) -> Mapping[str, float]:
    assert _EVALUATE is not None
    return _EVALUATE(genotype)


class _Pool:
    """A pool of processes that is made again when a worker dies."""

    def __init__(self, packed: bytes, workers: int) -> None:
        self.packed, self.workers = packed, workers
        self.pool: ProcessPoolExecutor | None = None

    def _started(self) -> ProcessPoolExecutor:
        if self.pool is None:
            from multiprocessing import get_context

            # Forking a process that runs threads of torch may lock up.
            self.pool = ProcessPoolExecutor(
                self.workers, mp_context=get_context("spawn"), initializer=_install, initargs=(self.packed,)
            )
        return self.pool

    def run(self, missing: Mapping[str, Genotype]) -> Iterator[tuple[str, Mapping[str, float]]]:
        left, deaths = dict(missing), 0
        while left:
            broken = False
            waiting: dict[Future[Mapping[str, float]], str] = {}
            try:
                for key, genotype in left.items():
                    waiting[self._started().submit(_work, genotype)] = key
            except BrokenProcessPool:
                broken = True
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda f: list(waiting).index(f)):
                    key = waiting.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        broken = True
                        continue
                    deaths = 0
                    del left[key]
                    yield key, result
            if broken:
                self.close()
                deaths += 1
                if deaths >= PATIENCE:
                    mend = "died again and again without finishing one evaluation; out of memory? try --workers 1"
                    raise ScorelineError("workers", self.workers, mend)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = None

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()


def _import_ray() -> Any:
    # Ray reports how it is used unless it is told not to before it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError("workers", "ray", "Ray is not installed: pip install 'scoreline[ray]'") from None
    return ray


_UNPACKED: dict[int, Evaluate] = {}


def _work_on_ray(packed: bytes, genotype: Genotype) -> Mapping[str, float]:
    """One evaluation in a process of Ray's, which keeps the unpacked callable for the next one."""
    torch.set_num_threads(1)
    mark = hash(packed)
    if mark not in _UNPACKED:
        _UNPACKED.clear()
        _UNPACKED[mark] = pickle.loads(packed)
    return _UNPACKED[mark](genotype)


def _check_answers(address: str | None) -> None:
    """Refuse a host and port where nobody listens; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError("workers", f"ray:{address}", f"no cluster answers there ({error})") from None


@contextmanager
def _on_ray(packed: bytes, address: str | None) -> Iterator[Run]:
    ray = _import_ray()
    ours = not ray.is_initialized()
    if ours:
        _check_answers(address)
        try:
            ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False,
                     configure_logging=False)  # fmt: skip
        except (ConnectionError, ValueError) as error:
            raise InputError("workers", f"ray:{address}", f"no cluster answers there ({error})") from None
    # The callable lies in the object store, once a node. What ran on a node that died runs again on another.
    stored = ray.put(packed)
    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_work_on_ray)

    def run(missing: Mapping[str, Genotype]) -> Iterator[tuple[str, Mapping[str, float]]]:
        waiting = {task.remote(stored, genotype): key for key, genotype in missing.items()}
        try:
            while waiting:
                done, _ = ray.wait(list(waiting), num_returns=1)
                for reference in done:
                    key = waiting.pop(reference)
                    try:
                        result = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from None
                    yield key, result
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)

    try:
        yield run
    finally:
        if ours:
            ray.shutdown()
