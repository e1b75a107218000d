"""Scores of one set of images against another: the work behind `scoreline score`.

Everything is refused before anything is computed; then one pass over each set feeds every metric (`extraction`), and
process 0 makes scores of what was taken (`measures`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings as python_warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from scoreline.core.cost import machine, measured
from scoreline.core.device import pick_device
from scoreline.core.errors import ArtefactError, InputError, ScorelineError, unknown_name
from scoreline.core.files import cache_folder, write_json
from scoreline.core.score import Protocol
from scoreline.data import load_images
from scoreline.data.pixels import OnBadImage
from scoreline.evaluate.cache import cached, store
from scoreline.evaluate.extraction import Network, Taken, extract, take_features, work_folder, work_key
from scoreline.evaluate.measures import PRDC_MODES, Known, Measured, Scorer, compare_measured
from scoreline.evaluate.planning import METRICS, Part, Plan, check_saving, planned
from scoreline.evaluate.processes import Processes, processes
from scoreline.evaluate.progress import progress
from scoreline.evaluate.protocols import FrechetProtocol
from scoreline.evaluate.sources import Source
from scoreline.evaluate.statistics import LAYOUTS, write_statistics

__all__ = ["METRICS", "score_sets"]

_ROWS_OF = {"real": {"kid", "cmmd", *PRDC_MODES}, "generated": {"kid", "cmmd", "fd-infinity", *PRDC_MODES}}


def score_sets(
    real: str,
    generated: str,
    *,
    compare_to: str | None = None,
    features: str = "auto",
    metrics: Sequence[str] | None = None,
    mode: str | None = None,
    weights: str | None = None,
    real_split: str | None = None,
    generated_split: str | None = None,
    compare_split: str | None = None,
    size: int | None = None,
    on_bad_image: OnBadImage = "error",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    compile: bool = False,
    save_statistics: str | None = None,
    statistics_layout: str = "scoreline",
    out: str | None = None,
    cache: bool = True,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score a generated set against a real one.

    Args:
        real, generated, compare_to: data sets as `load_images` takes them, .npz statistics, or features (.npy or .npz,
            floating point, (N, D)); `compare_to` is a second generated set.
        features: see `pick_encoder`.
        metrics: of `METRICS`; None takes fd, kid and prdc, or fd alone where statistics are given.
        mode: conventions of another implementation, see `scoreline.nn.resizing.fid_mode`.
        weights: file of the feature network's weights.
        real_split, generated_split, compare_split, size, on_bad_image: as for `load_images`.
        batch_size: images a batch; None takes 32, or 256 for 8x8 images.
        workers: processes that decode and preprocess; None decides by the work there is.
        device: where the network runs, see `pick_device`.
        dtype: "float32" or "bf16", which the protocol then says.
        compile: compile the network.
        save_statistics: path for the real set's statistics.
        statistics_layout: of `LAYOUTS`.
        out: folder for results.json and for the work files; a killed run goes on there.
        cache: keep statistics of the real set (and its features, where a metric needs them), and work files, in the
            user's cache folder.
        seed: of intervals and of the sizes of fd-infinity.
        quiet: no progress.

    Returns:
        {"scores": [...], "comparison": [...], "floor": {...}, "sets": {...}, "protocol": text, "warnings": [...],
        "cost": {...}}, plain values; empty in all processes but the first.

    Raises:
        InputError: names, shapes or metrics that do not fit.
        ArtefactError: files or weights that are missing or damaged.
    """
    named = {"real": (real, real_split), "generated": (generated, generated_split)}
    if compare_to is not None:
        named["compared"] = (compare_to, compare_split)
    with (
        processes() as team,
        _base_folder(out, cache, team) as base,
        tempfile.TemporaryDirectory(prefix="scoreline-") as scratch,
        python_warnings.catch_warnings(record=True) as caught,
    ):
        python_warnings.simplefilter("always", UserWarning)
        try:
            _check_options(metrics, batch_size, workers, seed, dtype, save_statistics, statistics_layout)
            plan = planned(
                named, Path(scratch), features, metrics, mode, weights, size, on_bad_image, batch_size, workers,
                _own(pick_device(device), team), dtype, compile,
            )  # fmt: skip
            check_saving(plan, save_statistics, statistics_layout)
        except ScorelineError as error:
            if team.first:
                raise
            # Process 0 met the same error and says it; torchrun would end it before, were this one gone first.
            with suppress(RuntimeError):
                team.barrier()
            raise SystemExit(error.exit_code) from None
        result = _run(plan, base, team, cache, seed, quiet or not team.first, size, save_statistics, statistics_layout)
        if not team.first:
            return {}
        said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        result["warnings"] = list(dict.fromkeys([*result["warnings"], *said]))
        if out is not None:
            write_json(Path(out) / "results.json", result)
        return result


def _check_options(
    metrics: Sequence[str] | None, batch_size: int | None, workers: int | None, seed: int, dtype: str,
    save_statistics: str | None, statistics_layout: str,
) -> None:  # fmt: skip
    """What can be refused without opening anything."""
    for metric in metrics or ():
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
    if metrics is not None and not metrics:
        raise InputError("metrics", None, "give at least one")
    for thing, number, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("seed", seed, 0)):
        if number is not None and number < least:
            raise InputError(thing, number, f"must be {least} or more")
    if dtype not in ("float32", "bf16"):
        raise unknown_name("dtype", dtype, ["float32", "bf16"])
    if statistics_layout not in LAYOUTS:
        raise unknown_name("statistics layout", statistics_layout, LAYOUTS)
    if save_statistics is not None and Path(save_statistics).suffix != ".npz":
        raise InputError("save_statistics", save_statistics, "takes a name ending in .npz")


@contextmanager
def _base_folder(out: str | None, cache: bool, team: Processes) -> Iterator[Path]:
    """Where work files lie: `out`, the cache folder, or a temporary folder."""
    if out is not None:
        yield Path(out).expanduser()
    elif cache:
        yield cache_folder()
    else:
        with ExitStack() as stack:
            text = team.agreed(lambda: stack.enter_context(tempfile.TemporaryDirectory(prefix="scoreline-")))
            yield Path(text)


def _own(device: torch.device, team: Processes) -> torch.device:
    """One GPU a process, as torchrun numbers them on each host."""
    if device.type == "cuda" and device.index is None and team.world > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return device


def _run(
    plan: Plan, base: Path, team: Processes, cache: bool, seed: int, quiet: bool, size: int | None,
    save: str | None, layout: str,
) -> dict[str, Any]:  # fmt: skip
    sources = plan.sources
    total = sum(len(s.images or s.features or ()) for s in sources.values())
    with ExitStack() as stack:
        cost = stack.enter_context(measured())
        advance = stack.enter_context(progress("score", total, quiet=quiet))
        start = time.perf_counter()
        passes: dict[str, dict[str, Taken]] = {}
        folders: list[Path] = []
        taken = {
            role: _taken(s, plan, base, team, cache, advance, stack, passes, folders) for role, s in sources.items()
        }
        if not team.first:
            return {}
        passed = time.perf_counter() - start
        known = {role: _known(sources[role], plan, found) for role, found in taken.items()}
        measured_now: dict[str, list[Measured]] = {"generated": [], "compared": []}
        floors: dict[str, float] = {}
        notes = list(plan.notes)
        for position, part in enumerate(plan.parts):
            for role in (role for role in measured_now if role in sources):
                scorer = Scorer(
                    known["real"][position], known[role][position], _base_protocol(plan, part, sources[role], known),
                    plan.root, plan.kid_mode, part.taps, seed,
                )  # fmt: skip
                measured_now[role] += scorer.measure(part.metrics)
                notes += scorer.notes if role == "generated" else []
            floors |= _floors(part, plan, known["real"][position], size)
        comparison = []
        if "compared" in sources:
            comparison = compare_measured(measured_now["generated"], measured_now["compared"], seed)
        if save is not None:
            _save(save, plan.parts[0], known["real"][0], layout)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    facts = machine()
    spent = {
        "seconds": cost.seconds, "seconds_features": passed, "images_per_second": total / max(passed, 1e-9),
        "peak_memory_bytes": cost.peak_memory,
    }  # fmt: skip
    for m in (*measured_now["generated"], *measured_now["compared"]):
        m.score.cost.update(spent, machine=facts)  # type: ignore[attr-defined]
    scores = [m.score for m in measured_now["generated"]]
    return {
        "sets": {role: {"name": s.text, "split": s.split, "count": s.count, "kind": s.kind}
                 for role, s in sources.items()},
        "scores": [score.to_dict() for score in scores],
        "compared": [m.score.to_dict() for m in measured_now["compared"]],
        "comparison": comparison,
        "floor": floors,
        "protocol": str(scores[0].protocol),
        "warnings": notes,
        "cost": spent,
    }  # fmt: skip


def _save(path: str, part: Part, found: Mapping[str, Known], layout: str) -> None:
    taken = {tap: known.taken.moments for tap, known in found.items() if known.taken is not None}
    known = None if part.encoder is None else part.encoder.protocol
    write_statistics(path, taken["features"], known=known, spatial=taken.get("sfid"), layout=layout)


def _taken(
    source: Source, plan: Plan, base: Path, team: Processes, cache: bool, advance: Callable[[int, str], None],
    stack: ExitStack, passes: dict[str, dict[str, Taken]], folders: list[Path],
) -> dict[str, Taken]:  # fmt: skip
    """Features of one set: from the cache, from a pass over the images, or streamed from a file."""
    if source.features is not None:
        found = take_features(source.features, source.role, advance, team)
        return {} if found is None else {"0.features": found}
    if source.images is None:
        return {}
    rows_of = _ROWS_OF["real" if source.role == "real" else "generated"]
    networks = []
    for part in plan.parts:
        assert part.encoder is not None
        taps = {part.taps["features"]: bool(rows_of & set(part.metrics))}
        if "sfid" in part.taps:
            taps[part.taps["sfid"]] = False
        if "logits" in part.taps and source.role != "real":
            taps[part.taps["logits"]] = True
        networks.append(Network(part.encoder, taps))
    images = source.images
    fingerprint = team.agreed(lambda: images.fingerprint)
    named = [(f"{i}.{tap}", n, tap, keep) for i, n in enumerate(networks) for tap, keep in n.taps.items()]
    known: dict[str, Taken] = {}
    remember = cache and source.role == "real"
    if remember and team.first:
        kept = {
            key: cached(cache_folder(), fingerprint, n.encoder.protocol, tap, rows=keep) for key, n, tap, keep in named
        }
        known = {key: taken for key, taken in kept.items() if taken is not None}
    if team.agreed(lambda: len(known) == len(named)):
        advance(len(images), source.role)
        return known
    key = work_key(fingerprint, networks, plan.batch_size, plan.compiled)
    if key in passes:  # the same images in two roles
        advance(len(images), source.role)
        return passes[key]
    folder = Path(team.agreed(lambda: str(stack.enter_context(work_folder(base / "work", key)))))
    known = passes[key] = extract(
        images, networks, folder, name=source.role, batch_size=plan.batch_size, workers=plan.workers, team=team,
        advance=advance,
    )  # fmt: skip
    folders.append(folder)
    if remember and team.first:
        for key, n, tap, _ in named:
            try:
                store(cache_folder(), fingerprint, n.encoder.protocol, tap, known[key])
            except ArtefactError as error:
                plan.notes.append(f"the statistics were not kept: {error}")
    return known


def _known(source: Source, plan: Plan, taken: Mapping[str, Taken]) -> list[dict[str, Known]]:
    """For every part: tap -> what is known there."""
    if source.statistics is not None:
        pairs = {"features": source.statistics.pair("fd")}
        if "sfid" in plan.parts[0].metrics:
            pairs["sfid"] = source.statistics.pair("sfid")
        return [{tap: Known(None, pair, source.count) for tap, pair in pairs.items()}] * len(plan.parts)
    found = []
    for i, part in enumerate(plan.parts):
        keys = {"features": "0.features"} if source.features is not None else {
            kind: f"{i}.{tap}" for kind, tap in part.taps.items()
        }  # fmt: skip
        found.append({kind: Known(taken[key], None, source.count) for kind, key in keys.items() if key in taken})
    return found


def _base_protocol(plan: Plan, part: Part, judged: Source, known: Mapping[str, Any]) -> Protocol:
    real = plan.sources["real"]
    if part.encoder is not None and real.images is not None:
        moments = known["real"][plan.parts.index(part)]["features"].taken.moments
        base = FrechetProtocol(part.encoder, real.images, split=real.split, moments=moments, method=plan.root).base
        return base.replace(generated_count=judged.count)
    named: dict[str, Any] = dict(part.encoder.protocol) if part.encoder is not None else {"features": "unknown"}
    if part.encoder is None:
        for source in (judged, real):
            named |= dict((source.statistics.known or {}) if source.statistics is not None else {})
    return Protocol(
        metric="frechet-distance", **named, reference=real.text, method=plan.root, ddof=1,
        reference_count=real.count, generated_count=judged.count,
    )  # fmt: skip


def _floors(part: Part, plan: Plan, known: Mapping[str, Known], size: int | None) -> dict[str, float]:
    """On digits: the same distance for as many independent real images."""
    real, generated = plan.sources["real"], plan.sources["generated"]
    if part.encoder is None or real.images is None or known["features"].taken is None or "fd" not in part.metrics:
        return {}
    if (real.text, real.split) != ("digits", "test") or size not in (None, 8) or generated.count is None:
        return {}
    scorer = FrechetProtocol(
        part.encoder, real.images, split="test", moments=known["features"].taken.moments, method=plan.root
    )
    count = generated.count
    train = load_images("digits", split="train", channels=real.images.shape[0])
    return {scorer.name(count): scorer.floor(train, count)}
