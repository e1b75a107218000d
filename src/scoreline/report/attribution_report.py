"""The report of an attribution: csv files, plots and one html page that needs nothing but itself.

The page answers in sentences first, then shows contributions beside their comparators, every coalition with its
pictures, interactions, and how all of it was measured.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoreline.core.errors import InputError
from scoreline.core.files import atomic_path
from scoreline.report.numbers import human_count, human_number, human_seconds
from scoreline.report.page import rendered
from scoreline.report.plots import COLOURS, INK, MUTED, PAPER, RULE, drawing, themed_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = ["FORMAT", "contribution_figure", "contribution_table", "said", "sentences", "write_attribution"]

FORMAT = "scoreline/attribute/1"
_PARTS = ("mean", "sd", "se", "low", "high")
_SHOWN = 64  # coalitions with pictures on the page
_COMPARATORS = {"leave_one_out": "leave-one-out", "single": "alone", "banzhaf": "Banzhaf"}
_MARKERS = {"leave_one_out": "D", "single": "o", "banzhaf": "^"}


def write_attribution(results: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write contributions.csv, coalitions.csv, plots/*.png and report.html.

    Args:
        results: what `scoreline attribute` stores as results.json.
        folder: where to write; the pictures that `results` names are looked for here.

    Returns:
        The files written; the page last.

    Raises:
        InputError: `results` is no attribution.
        ArtefactError: a file cannot be written.
    """
    if results.get("format") != FORMAT or not results.get("attributions"):
        raise InputError("results", results.get("format"), f"the report is made from results of format {FORMAT!r}")
    folder = Path(folder)
    written = []
    tables = {"contributions.csv": _contributions_csv(results), "coalitions.csv": _coalitions_csv(results)}
    for name, text in tables.items():
        written.append(folder / name)
        with atomic_path(written[-1]) as path:
            path.write_text(text, encoding="utf-8")
    for attribution in results["attributions"]:
        written.append(folder / "plots" / f"{attribution['name']}.png")
        with atomic_path(written[-1]) as path:
            contribution_figure(attribution).savefig(path, dpi=160)
    page = _page(results, folder, tables["contributions.csv"])
    written.append(folder / "report.html")
    with atomic_path(written[-1]) as path:
        path.write_text(page, encoding="utf-8")
    return written


def said(attribution: Mapping[str, Any]) -> str:
    """Who contributed most, in a sentence."""
    rows = _ranked(attribution)
    first, total = rows[0], attribution["total"]
    title = _title(attribution["name"])
    empty, full = attribution["coalitions"][0]["distance"]["mean"], attribution["coalitions"][-1]["distance"]["mean"]
    way = f"{title} from {_number(empty)} to {_number(full)}"
    if total <= 0:
        return f"The whole workflow is no closer to the artwork than its stand-ins: {way}."
    if first["phi"]["mean"] <= 0:
        return f"No component contributes: {way}."
    return (
        f"{_capital(first['component'])} contributes most, {_with_sd(first['phi'])} of the {_number(total)} by which "
        f"the whole workflow comes closer to the artwork ({way})."
    )


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What a reader takes home, the first one being the headline."""
    main, *others = results["attributions"]
    rows = _ranked(main)
    lines = [said(main)]
    rest = [f"{row['component']} {_with_sd(row['phi'])}" for row in rows[1:]]
    if rest:
        lines.append(f"The others: {_and(rest)}.")
    if rows[0]["material"] is not None and main["total"] > 0:
        material = [row["component"] for row in rows if row["material"]]
        small = [row["component"] for row in rows if not row["material"] and row["phi"]["mean"] >= 0]
        away = [row["component"] for row in rows if row["phi"]["mean"] < 0]
        text = (
            f"Material (above 2 sd and above 10 % of the whole): {_and(material)}" if material else "None is material"
        )
        text += f"; not material: {_and(small)}" if small else ""
        text += f"; {_and(away)} moves the images away from the artwork" if len(away) == 1 else ""
        text += f"; {_and(away)} move the images away from the artwork" if len(away) > 1 else ""
        lines.append(f"{text}.")
    left_out = sorted(rows, key=lambda row: -row["leave_one_out"]["mean"])
    if [r["component"] for r in left_out] != [r["component"] for r in rows]:
        listed = _and([f"{row['component']} {_number(row['leave_one_out']['mean'])}" for row in left_out])
        lines.append(
            f"Taking out one component at a time ranks them otherwise ({listed}), because components that need or "
            "replace each other are counted twice or not at all; Shapley's values sum to the whole."
        )
    order = [row["component"] for row in rows]
    same = [_title(a["name"]) for a in others if [r["component"] for r in _ranked(a)] == order]
    differing = [a for a in others if [r["component"] for r in _ranked(a)] != order]
    if same:
        lines.append(f"The same order by {_and(same)}.")
    if differing:
        told = [f"{_title(a['name'])} ({', '.join(r['component'] for r in _ranked(a))})" for a in differing]
        lines.append(f"Another order by {_and(told)}: features decide what similar means.")
    return lines


def contribution_table(attribution: Mapping[str, Any]) -> Table:
    """The contributions of one attribution for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"Contributions by {_title(attribution['name'])}"), title_justify="left")
    table.add_column("component")
    for title in ("contribution", "share", "material", "leave-one-out", "alone", "Banzhaf"):
        table.add_column(title, justify="right")
    for row in _ranked(attribution):
        table.add_row(row["component"], *_cells(row))
    table.add_section()
    table.add_row("together", _number(attribution["total"]))
    return table


def contribution_figure(attribution: Mapping[str, Any], *, title: bool = True) -> Figure:
    """Bars of the contributions with their sd, and marks of the comparators.

    Args:
        attribution: one of the results.
        title: whether to name the utility above.

    Returns:
        A figure that belongs to no window.
    """
    from matplotlib.figure import Figure

    rows = _ranked(attribution)[::-1]
    places = list(range(len(rows)))
    with drawing():
        figure = Figure(figsize=(6.4, 1.15 + 0.5 * len(rows)), layout="constrained", facecolor=PAPER)
        ax = figure.add_subplot()
        colours = [COLOURS[0] if row["phi"]["mean"] >= 0 else COLOURS[1] for row in rows]
        ax.barh(places, [row["phi"]["mean"] for row in rows], height=0.5, color=colours, zorder=2)
        known = [(p, row["phi"]) for p, row in zip(places, rows) if row["phi"]["sd"] is not None]
        if known:
            ax.errorbar(
                [phi["mean"] for _, phi in known], [p for p, _ in known], xerr=[phi["sd"] for _, phi in known],
                fmt="none", ecolor=INK, elinewidth=1.4, capsize=3, zorder=4,
            )  # fmt: skip
        for key, name in _COMPARATORS.items():
            points = [(row[key]["mean"], p) for p, row in zip(places, rows) if row[key] is not None]
            if points:
                x, y = zip(*points)
                ax.scatter(
                    x, y, marker=_MARKERS[key], s=28, zorder=5, label=name, linewidth=1.3, facecolor=PAPER,
                    edgecolor=MUTED,
                )  # fmt: skip
        ax.axvline(0, color=MUTED, linewidth=0.9)
        ax.set_yticks(places, [row["component"] for row in rows])
        ax.tick_params(axis="y", length=0, labelcolor=INK)
        ax.grid(axis="x", color=RULE, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(f"fall of {_title(attribution['name'])}; bars: Shapley value, whiskers: sd")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
        if title:
            ax.set_title(f"{_title(attribution['name'])}: {_number(attribution['total'])} in all")
    return figure


def _page(results: dict[str, Any], folder: Path, table: str) -> str:
    from markupsafe import Markup

    main = results["attributions"][0]
    headline, *further = sentences(results)
    panels = [
        {
            "title": _title(attribution["name"]),
            "total": _number(attribution["total"]),
            "svg": Markup(themed_svg(contribution_figure(attribution, title=False))),
            "alt": said(attribution),
            "rows": [(row["component"], _cells(row)) for row in _ranked(attribution)],
            "interaction": _interaction(attribution),
            "owners": [(owner, _with_sd(e)) for owner, e in attribution["owners"].items()],
        }
        for attribution in results["attributions"]
    ]
    warnings = list(dict.fromkeys(note for a in results["attributions"] for note in a["warnings"]))
    values = {
        "results": results,
        "headline": headline,
        "further": further,
        "meaning": main["meaning"],
        "warnings": warnings,
        "components": main["components"],
        "panels": panels,
        "titles": [_title(attribution["name"]) for attribution in results["attributions"]],
        "coalitions": _coalitions(results, folder),
        "hidden": max(0, len(main["coalitions"]) - _SHOWN),
        "artwork": _picture(folder, results["artwork"]["picture"]),
        "facts": _facts(results),
        "csv": base64.b64encode(table.encode()).decode(),
    }
    return rendered("attribution.html", values)


def _coalitions(results: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Every coalition with its picture and its distance by every utility; those of most components first."""
    names = [component["name"] for component in results["attributions"][0]["components"]]
    listed: list[dict[str, Any]] = []
    for k, coalition in enumerate(results["attributions"][0]["coalitions"]):
        cells = [a["coalitions"][k]["distance"] for a in results["attributions"]]
        listed.append(
            {
                "active": [(name, name in coalition["active"]) for name in names],
                "size": len(coalition["active"]),
                "picture": _picture(folder, results["pictures"].get(str(coalition["mask"]))),
                "cells": [(_number(cell["mean"]), cell["mean"]) for cell in cells],
            }
        )
    listed.sort(key=lambda entry: (-entry["size"], entry["cells"][0][1]))
    return listed[: _SHOWN // 2] + listed[-_SHOWN // 2 :] if len(listed) > _SHOWN else listed


def _picture(folder: Path, path: str | None) -> str:
    """A PNG file inside the report's own folder as base64 text, or nothing."""
    file = (folder / (path or ".")).resolve()
    if not path or not file.is_relative_to(folder.resolve()) or not file.is_file():
        return ""
    return base64.b64encode(file.read_bytes()).decode()


def _interaction(attribution: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Rows of the interaction matrix; each cell its text and its strength in [-1, 1], for the colour."""
    matrix = attribution["interaction"]
    if not matrix or len(matrix) < 2:
        return []
    names = [component["name"] for component in attribution["components"]]
    largest = max(abs(value) for row in matrix for value in row) or 1.0
    return [
        (name, [("" if i == j else _number(value), value / largest) for j, value in enumerate(row)])
        for i, (name, row) in enumerate(zip(names, matrix))
    ]


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    main, artwork = results["attributions"][0], results["artwork"]
    shape = "×".join(str(side) for side in artwork["shape"])
    networks = dict.fromkeys(
        f"{a['protocol']['features']} ({a['protocol']['tap']}), weights {a['protocol']['weights'][:12]}"
        for a in results["attributions"]
    )
    facts = [
        ("Utility", "v(S) = F(nothing) − F(S), the fall of a distance to the artwork"),
        ("Method", f"{main['method']}; {results['coalitions']['asked']} coalitions, "
                   f"{results['coalitions']['different']} of them different"),
        ("Images", f"{human_count(results['images'])} a coalition and seed set, the same noise in all"),
        ("Seed sets", ", ".join(str(seed) for seed in results["seed_sets"])),
        ("Errors", main["spread"]),
        ("Artwork", f"{human_count(artwork['count'])} images of {artwork['source']}, {shape}"),
        ("Features", "; ".join(networks)),
        ("Efficiency", f"contributions sum to the whole, to {max(a['residual'] for a in results['attributions']):.1g}"),
        ("Time", human_seconds(results["seconds"])),
        ("Machine", ", ".join(f"{k} {v}" for k, v in results["machine"].items() if v not in (None, ""))),
        ("scoreline", results["version"]),
    ]  # fmt: skip
    return [(name, value) for name, value in facts if value]


def _contributions_csv(results: Mapping[str, Any]) -> str:
    """One row a utility and component; empty: no number."""
    columns = ["phi", "leave_one_out", "single", "banzhaf", "owen"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    parts = [f"{column} {part}" for column in columns for part in _PARTS]
    writer.writerow(["utility", "component", *parts, "share", "material"])
    for attribution in results["attributions"]:
        for row in attribution["contributions"]:
            cells = [(row[column] or {}).get(part) for column in columns for part in _PARTS]
            writer.writerow([attribution["name"], row["component"], *cells, row["share"], row["material"]])
    return file.getvalue()


def _coalitions_csv(results: Mapping[str, Any]) -> str:
    """One row a utility and coalition."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    header = [f"{column} {part}" for column in ("distance", "value") for part in _PARTS]
    writer.writerow(["utility", "mask", "coalition", *header])
    for attribution in results["attributions"]:
        for row in attribution["coalitions"]:
            cells = [row[column][part] for column in ("distance", "value") for part in _PARTS]
            writer.writerow([attribution["name"], row["mask"], " + ".join(row["active"]) or "nothing", *cells])
    return file.getvalue()


def _ranked(attribution: Mapping[str, Any]) -> list[dict[str, Any]]:
    return sorted(attribution["contributions"], key=lambda row: -row["phi"]["mean"])


def _cells(row: Mapping[str, Any]) -> list[str]:
    """contribution with sd, share, material, leave-one-out, alone, Banzhaf."""
    share = "–" if row["share"] is None else f"{row['share']:.0%}"
    material = {None: "–", True: "yes", False: "no"}[row["material"]]
    banzhaf = "–" if row["banzhaf"] is None else _number(row["banzhaf"]["mean"])
    means = [_number(row[key]["mean"]) for key in ("leave_one_out", "single")]
    return [_with_sd(row["phi"]), share, material, *means, banzhaf]


def _title(name: str) -> str:
    """fd-pixel -> FD-pixel, feature-distance-digits as it is."""
    head, dash, tail = name.partition("-")
    return f"{head.upper()}{dash}{tail}" if head in ("fd", "kid", "cmmd") else name


def _number(value: float | None) -> str:
    # Round-off of a sum that is 0 is no measurement.
    return human_number(0.0 if value is not None and abs(value) < 1e-12 else value).replace("-", "−", 1)


def _with_sd(estimate: Mapping[str, float | None]) -> str:
    shown = _number(estimate["mean"])
    return shown if estimate["sd"] is None else f"{shown} ± {human_number(estimate['sd'], 2)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _and(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
