"""The report of `scoreline forget`: what was forgotten, what was kept, class by class, and the same requests before and
after, as one html page that needs nothing but itself."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoreline.core.files import atomic_path
from scoreline.report.numbers import MISSING, human_number
from scoreline.report.page import rendered

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["class_rows", "forgetting_table", "headline", "summary_rows", "write_forgetting_report"]


def percent(share: float | None) -> str:
    """A share in percent, one digit behind the point.

    >>> percent(0.9964), percent(None)
    ('99.6 %', '–')
    """
    return MISSING if share is None else f"{100 * share:.1f} %"


def headline(result: dict[str, Any]) -> str:
    """What happened, in two sentences."""
    after, before = result["rows"]["after"], result["rows"]["before"]
    named = ", ".join(map(str, result["classes"]))
    several = len(result["classes"]) > 1
    shown = "a class that is kept"
    if result["overrides"] is not None:
        shown = " and ".join(map(str, dict.fromkeys(result["overrides"])))
    gone, what = "theirs" if several else "it", f"class{'es' if several else ''} {named}"
    if result.get("concept") is not None:
        gone, what, shown = "it", f"“{result['concept']}”", f"“{result['override']}”"
    first = (
        f"Forgetting {what}: {percent(after['unlearning accuracy'])} of the requests no longer show "
        f"{gone}, {percent(after['override hits'])} show {shown}."
    )
    if after["distance"] is None:
        return first
    return (
        f"{first} The kept classes are at {after['name']} {human_number(after['distance'])} in {after['nfe']:g} "
        f"evaluation{'s' * (after['nfe'] != 1)}, {human_number(before['distance'])} before in {before['nfe']:g}."
    )


def summary_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, before, after), what was measured of all requests."""
    rows = result["rows"]
    kept = {name: _mean([row["accuracy"][c] for c in result["kept"]]) for name, row in rows.items()}
    out = [("network evaluations an image", *(f"{row['nfe']:g}" for row in rows.values()))]
    shares = {
        "requests for forgotten classes that no longer show them": "unlearning accuracy",
        "the same by the released script, over all images": "released script",
        "requests for forgotten classes that show the override": "override hits",
        "judge's mean probability of the forgotten class": "forgotten probability",
    }
    out += [(text, *(percent(row[name]) for row in rows.values())) for text, name in shares.items()]
    out += [
        ("judge's entropy on these requests (nats)", *(human_number(r["forgotten entropy"]) for r in rows.values()))
    ]
    out += [("kept classes judged right, mean", *(percent(kept[name]) for name in rows))]
    if rows["after"]["distance"] is not None:
        out += [(f"kept classes, {rows['after']['name']}", *(human_number(row["distance"]) for row in rows.values()))]
        out += [
            (f"kept classes, {name}", *(human_number(row[name]) for row in rows.values()))
            for name in ("precision", "recall")
        ]
    return out  # type: ignore[return-value]


def class_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each class: whether it was forgotten, its override, and the share judged right before and after."""
    before, after = (result["rows"][name]["accuracy"] for name in ("before", "after"))
    overrides = dict(zip(result["classes"], result["overrides"] or []))
    return [
        {
            "class": c, "forgotten": c in result["classes"], "override": overrides.get(c),
            "before": percent(before[c]), "after": percent(after[c]),
        }
        for c in range(len(after))
    ]  # fmt: skip


def forgetting_table(result: dict[str, Any]) -> Table:
    """The summary for a terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for row in summary_rows(result):
        table.add_row(*row)
    return table


def write_forgetting_report(result: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write report.html.

    Args:
        result: of :func:`scoreline.fewstep.forget.forget`.
        folder: where to write.

    Returns:
        The files of the run's result, the page last.
    """
    root = Path(folder)
    picture = root / "forgetting.png"
    told = [f"“{column}”" if isinstance(column, str) else str(column) for column in result["columns"]]
    values = {
        "results": result, "headline": headline(result), "summary": summary_rows(result), "classes": class_rows(result),
        "picture": base64.b64encode(picture.read_bytes()).decode(), "columns": ", ".join(told),
    }  # fmt: skip
    page = root / "report.html"
    with atomic_path(page) as temporary:
        temporary.write_text(rendered("forgetting.html", values), encoding="utf-8")
    return [root / "forgetting.json", picture, page]


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
