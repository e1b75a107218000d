"""Facts about two sets of images that move a score without any generator being better: stated, never guessed."""

from __future__ import annotations

from collections.abc import Mapping

from scoreline.data.images import Images
from scoreline.evaluate.sources import Source

__all__ = ["set_warnings"]

FEW = 2000
UNKNOWN = "do not say which network they are from; they must be of the same one, with the same resizing"


def set_warnings(sources: Mapping[str, Source], size: int | None) -> list[str]:
    """What a person should know before believing the numbers, one sentence each.

    Args:
        sources: the sets by role.
        size: the side that images were resized to, None where they were left alone.
    """
    images = {role: s.images for role, s in sources.items() if s.images is not None}
    return [
        *_counts(sources),
        *(f"{role}: {len(i.skipped)} bad images were left out, {len(i)} are scored, the first: "
          f"{i.skipped[0][0]} {i.skipped[0][1]}" for role, i in images.items() if i.skipped),
        *_formats(images),
        *_sides(images, size),
        *(f"{role}: grey images, given three equal channels for this network" for role, s in sources.items() if s.grey),
        *_same(images),
        *_unknown(sources),
    ]  # fmt: skip


def _unknown(sources: Mapping[str, Source]) -> list[str]:
    """Features and statistics whose network nobody knows."""
    found = [
        (role, s.kind) for role, s in sources.items()
        if s.images is None and not (s.statistics is not None and s.statistics.known)
    ]  # fmt: skip
    if not found:
        return []
    return [f"{', '.join(role for role, _ in found)}: these {' and '.join(sorted({k for _, k in found}))} {UNKNOWN}"]


def _counts(sources: Mapping[str, Source]) -> list[str]:
    few = [f"{s.count} {role}" for role, s in sources.items() if s.count is not None and s.count < FEW]
    if not few:
        return []
    mend = "compare it at equal counts only, or use --metrics fd-infinity"
    return [f"few images ({', '.join(few)}): a Frechet distance of N images is too high by about c/N; {mend}"]


def _formats(images: Mapping[str, Images]) -> list[str]:
    shares = {}
    for role, one in images.items():
        formats = one.formats
        jpeg = formats.get("JPEG", 0)
        shares[role] = "all" if jpeg == sum(formats.values()) else "none" if not jpeg else "some"
    notes = []
    if len(set(shares.values())) > 1:
        listed = ", ".join(f"{role}: {_listed(images[role].formats)}" for role in shares)
        notes.append(f"JPEG against other formats ({listed}): compression alone moves the score; encode both alike")
    elif "some" in shares.values():
        listed = ", ".join(f"{role}: {_listed(images[role].formats)}" for role in shares)
        notes.append(f"JPEG mixed with other formats ({listed}): compression alone moves the score")
    return notes


def _listed(formats: Mapping[str, int]) -> str:
    return " + ".join(f"{count} {name}" for name, count in formats.items())


def _sides(images: Mapping[str, Images], size: int | None) -> list[str]:
    """Mixed sizes, and sets of which one was resized and the other not, or from another size."""
    notes = []
    sides = {role: one.sides for role, one in images.items()}
    for role, found in sides.items():
        if len(found) > 1:
            (w0, h0), (w1, h1) = min(found), max(found)
            notes.append(f"{role}: mixed sizes, {len(found)} from {w0} x {h0} to {w1} x {h1}, "
                         f"all brought to {size} x {size} by antialiased bicubic and a centre crop")  # fmt: skip
    if size is None or len(images) < 2:
        return notes
    own = {role: found.keys() == {(size, size)} for role, found in sides.items()}
    if len(set(own.values())) > 1:
        resized = ", ".join(f"{role} from {_shown(sides[role])}" for role, kept in own.items() if not kept)
        kept = " and ".join(role for role, k in own.items() if k)
        notes.append(f"resized to {size} x {size}: {resized}; {kept} already had that size: "
                     "resizing one set alone moves the score")  # fmt: skip
    elif not any(own.values()) and len({frozenset(found) for found in sides.values()}) > 1:
        listed = ", ".join(f"{role} from {_shown(found)}" for role, found in sides.items())
        notes.append(f"resized to {size} x {size} from different sizes: {listed}: that alone moves the score")
    return notes


def _shown(sides: Mapping[tuple[int, int], int]) -> str:
    width, height = next(iter(sides))
    return f"{width} x {height}" if len(sides) == 1 else f"{len(sides)} sizes"


def _same(images: Mapping[str, Images]) -> list[str]:
    seen: dict[str, str] = {}
    notes = []
    for role, one in images.items():
        other = seen.setdefault(one.fingerprint, role)
        if other != role:
            notes.append(f"{other} and {role} are the same images, to the last bit")
    return notes
