"""What a scoring run will do: sets opened, networks chosen, refusals made, before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from scoreline.core.encoder import Encoder
from scoreline.core.errors import InputError
from scoreline.data.images import Images
from scoreline.data.pixels import OnBadImage
from scoreline.evaluate.extraction import CHUNK
from scoreline.evaluate.protocols import COLOUR, network_name, on_device, pick_encoder
from scoreline.evaluate.set_warnings import set_warnings
from scoreline.evaluate.sources import Source, check_alike, open_sources
from scoreline.metrics.frechet import Method
from scoreline.nn.features import Pixels
from scoreline.nn.resizing import fid_mode

__all__ = ["METRICS", "Part", "Plan", "check_saving", "planned"]

METRICS = ("fd", "sfid", "is", "kid", "prdc", "precision-recall", "fd-infinity", "cmmd")
_CLIP = "clip-vit-l-14-336"
_LEAST = {"is": 10, "prdc": 6, "precision-recall": 4, "fd-infinity": 4}
_FEWEST = 100
"""Images from which on the bias of a Frechet distance is estimated beside it."""


@dataclass(frozen=True)
class Part:
    """One network and what is measured on it.

    Args:
        encoder: None for stored features.
        metrics: measured on it.
        taps: "features", "sfid", "logits" -> the network's own names.
    """

    encoder: Encoder | None
    metrics: tuple[str, ...]
    taps: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """All that was decided.

    Args:
        sources: the sets by role.
        parts: networks and metrics; the first holds what was asked for, the others stand beside it.
        batch_size, workers: of the pass over images.
        compiled: whether the network is compiled, which changes last bits.
        root: how Frechet distances take the root.
        kid_mode: how KID draws its subsets.
        notes: what a person should know.
    """

    sources: dict[str, Source]
    parts: list[Part]
    batch_size: int
    workers: int
    compiled: bool
    root: Method
    kid_mode: str
    notes: list[str]


def planned(
    named: Mapping[str, tuple[str, str | None]], scratch: Path, features: str, metrics: Sequence[str] | None,
    mode: str | None, weights: str | None, size: int | None, on_bad_image: OnBadImage, batch_size: int | None,
    workers: int | None, device: torch.device, dtype: str, compile: bool,
) -> Plan:  # fmt: skip
    """Open everything and decide everything; all refusals are here."""
    sources = _opened(named, scratch, features, size, on_bad_image)
    kinds = {role: s.kind for role, s in sources.items()}
    if metrics is None:
        metrics = ["fd"] if "statistics" in kinds.values() else ["fd", "kid", "prdc"]
    metrics = list(dict.fromkeys(metrics))
    beyond = [m for m in metrics if m not in ("fd", "sfid")]
    if beyond and "statistics" in kinds.values():
        raise InputError(
            "metrics", ",".join(metrics), "saved statistics give the Frechet distance only; use fd or sfid"
        )
    for metric in ("sfid", "is"):
        if metric in metrics and "features" in kinds.values():
            raise InputError("metric", metric, "needs images: stored features are of one layer only")
    counts = {role: sources[role].count for role in ("generated", "compared") if role in sources}
    if len(set(counts.values())) > 1:
        mend = "a Frechet distance depends on the count: give both generated sets as many images"
        raise InputError("counts of images", " and ".join(f"{c} {role}" for role, c in counts.items()), mend)
    for role, source in sources.items():
        if source.statistics is not None and "sfid" in metrics:
            source.statistics.pair("sfid")  # refused where the file lacks it
        for metric in metrics:
            if source.count is not None and source.count < _LEAST.get(metric, 2) and (metric, role) != ("is", "real"):
                mend = f"{metric} needs at least {_LEAST.get(metric, 2)} images a set"
                raise InputError(f"{role} images", source.count, mend)
    # the distance without its bias, beside it, where the features are kept anyway
    enough = all((s.count or 0) >= _FEWEST for s in sources.values())
    if "fd" in metrics and "fd-infinity" not in metrics and set(beyond) - {"is"} and enough:
        metrics.insert(metrics.index("fd") + 1, "fd-infinity")
    some = _some_images(sources)
    root: Method = "symmetric" if mode is None else fid_mode(mode).root
    kid_mode = "clean-fid" if mode == "clean" else "torch-fidelity"
    notes = set_warnings(sources, size)
    if some is None:
        if mode is not None or features != "auto" or weights is not None:
            raise InputError("features", features, "no set holds images; leave features, mode and weights out")
        return Plan(sources, [Part(None, tuple(metrics), {})], 1, 0, False, root, kid_mode, notes)

    name = network_name(features, some)
    main = on_device(pick_encoder(name, some, mode=mode, weights=weights), device, dtype, compile)
    parts = [_part(main, [m for m in metrics if m != "cmmd" or name == _CLIP])]
    if "cmmd" in metrics and name != _CLIP and set(kinds.values()) != {"images"}:
        raise InputError("metric", "cmmd", f"needs {_CLIP}: choose it with --features, or give images on both sides")
    if "cmmd" in metrics and name != _CLIP:
        clip = on_device(pick_encoder(_CLIP, some), device, "float32", False)
        parts.append(_part(clip, ["cmmd"]))
        if not parts[0].metrics:
            parts = parts[1:]
    if name != "pixels" and some.shape == (1, 8, 8) and "fd" in metrics and set(kinds.values()) == {"images"}:
        parts.append(_part(Pixels(some.shape).to(device), ["fd"]))
    for role, source in sources.items():
        if source.kind != "images":
            _check_foreign(role, source, main)
    tiny = max(some.shape[1:]) <= 16
    batch_size = min(batch_size or (256 if tiny else 32), CHUNK)
    if workers is None:
        workers = 0 if tiny else max(1, (os.cpu_count() or 1) // 2)
    return Plan(sources, parts, batch_size, workers, compile, root, kid_mode, notes)


def _opened(
    named: Mapping[str, tuple[str, str | None]],
    scratch: Path,
    features: str,
    size: int | None,
    on_bad_image: OnBadImage,
) -> dict[str, Source]:
    """The sets; grey images get three channels where the network takes no other."""
    sources = open_sources(named, scratch, size=size, on_bad_image=on_bad_image)
    some = _some_images(sources)
    if some is not None and network_name(features, some) in COLOUR:
        grey = [role for role, s in sources.items() if s.images is not None and s.images.shape[0] == 1]
        if grey:
            sources = open_sources(named, scratch, size=size, channels=3, on_bad_image=on_bad_image)
            sources |= {role: replace(sources[role], grey=True) for role in grey}
    check_alike(sources)
    return sources


def _some_images(sources: Mapping[str, Source]) -> Images | None:
    return next((s.images for s in sources.values() if s.images is not None), None)


def _part(encoder: Encoder, metrics: Sequence[str]) -> Part:
    taps = {"features": encoder.tap}
    for metric, kind, names in (("sfid", "sfid", ("sfid",)), ("is", "logits", ("logits-no-bias", "logits"))):
        if metric not in metrics:
            continue
        own = next((name for name in names if name in encoder.tap_names), None)
        if own is None:
            what = "spatial features of inception-2015" if metric == "sfid" else "a feature network with class outputs"
            raise InputError("metric", metric, f"needs {what}; {encoder.protocol['features']} has none")
        taps[kind] = own
    return Part(encoder, tuple(metrics), taps)


def _check_foreign(role: str, source: Source, encoder: Encoder) -> None:
    """Stored features or statistics beside images: they must be of the network that the images go through."""
    own = encoder.protocol
    dim = source.dim
    if dim != encoder.dim:
        raise InputError(f"{role} {source.kind}", dim, f"are of another network: {own['features']} has {encoder.dim}")
    known = source.statistics.known if source.statistics is not None else None
    for name, value in (known or {}).items():
        if value != own.get(name):
            mend = f"are of other {name} than {own.get(name)}; give the same options as when they were made"
            raise InputError(f"{role} statistics", value, mend)


def check_saving(plan: Plan, path: str | None, layout: str) -> None:
    if path is None:
        return
    if plan.sources["real"].kind == "statistics":
        raise InputError("save_statistics", path, "the real set is given as statistics already")
    if layout == "guided-diffusion" and "sfid" not in plan.parts[0].taps:
        raise InputError("statistics_layout", layout, "holds mu_s and sigma_s too; add sfid to --metrics")
