"""The report of a comparison: results.csv, plots and one html page that needs nothing but itself.

Pictures and curves stand inside the page, styles and the few lines of script too, so that it can be mailed, kept and
read without a network. Curves are SVG that follows the page's light or dark theme; the PNG files under plots/ are for
slides and papers.
"""

from __future__ import annotations

import base64
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoreline.core.errors import InputError
from scoreline.core.files import atomic_path
from scoreline.report.answer import answer, blur_warning, interval, main_score, marks, mean
from scoreline.report.numbers import MISSING, finite, human_bytes, human_count, human_number, human_seconds
from scoreline.report.page import rendered
from scoreline.report.plots import Level, Panel, Series, curve_figure, swatch_svg, themed_svg
from scoreline.report.tables import csv_text, evaluations, series_names, several_models

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["write_report", "FORMAT"]

FORMAT = "scoreline/compare/1"
_LEVELS = {"converged": "converged ODE", "floor": "floor (real)"}
_GRID_WIDTH, _GRID_GAP = 946, 18  # pixels that a row of picture grids may take on a wide screen, and between two


def write_report(results: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write results.csv, plots/*.png and report.html.

    Args:
        results: what `scoreline compare` stores as results.json.
        folder: where to write; the pictures that `results` names are looked for here.

    Returns:
        The files written; the page last.

    Raises:
        InputError: `results` is no comparison, or holds no arm.
        ArtefactError: a file cannot be written.
    """
    if results.get("format") != FORMAT:
        raise InputError("results", results.get("format"), f"the report is made from results of format {FORMAT!r}")
    if not results.get("arms"):
        raise InputError("results", None, "hold no arm; nothing was compared")
    folder = Path(folder)
    names = series_names(results["arms"])
    panels = [_panel(results, score, names) for score in results["scores"]]
    table = csv_text(results)
    written = [folder / "results.csv"]
    with atomic_path(written[0]) as path:
        path.write_text(table, encoding="utf-8")
    drawn = {re.sub(r"[^\w.-]+", "-", score): [panel] for score, panel in zip(results["scores"], panels)}
    if len(panels) > 1:
        drawn["all-scores"] = panels
    for stem, chosen in drawn.items():
        written.append(folder / "plots" / f"{stem}.png")
        with atomic_path(written[-1]) as path:
            curve_figure(chosen).savefig(path, dpi=160)
    page = _page(results, folder, names, panels, table)
    written.append(folder / "report.html")
    with atomic_path(written[-1]) as path:
        path.write_text(page, encoding="utf-8")
    return written


def _panel(results: dict[str, Any], score: str, names: list[str]) -> Panel:
    about, nan = results["scores"][score], float("nan")
    curves = []
    for style, name in enumerate(dict.fromkeys(names)):
        arms = [arm for arm, own in zip(results["arms"], names) if own == name and finite(arm.get("nfe"))]
        arms.sort(key=lambda arm: arm["nfe"])
        means = [mean(arm, score) for arm in arms]
        ends = [interval(arm, score) or (nan, nan) for arm in arms]
        y = [nan if m is None else m for m in means]
        curves.append(Series(name, [a["nfe"] for a in arms], y, [e[0] for e in ends], [e[1] for e in ends], style))
    levels = [Level(text, value) for key, text in _LEVELS.items() if (value := finite(about.get(key))) is not None]
    return Panel(
        title=about["title"],
        x_label="network evaluations per image (NFE)",
        y_label=about.get("unit") or about["title"],
        series=curves,
        levels=levels,
        log_y=bool(about.get("log")),
    )


def _page(results: dict[str, Any], folder: Path, names: list[str], panels: list[Panel], table: str) -> str:
    series = list(dict.fromkeys(names))
    budgets = sorted({arm["budget"] for arm in results["arms"]})
    headline, *further = answer(results, names)
    values = {
        "results": results,
        "created": _date(results.get("created")),
        "headline": headline,
        "further": further,
        "blur": blur_warning(results),
        "series": series,
        "swatches": [_symbol(style) for style in range(len(series))],
        "curves": [_curve(score, results, panel) for score, panel in zip(results["scores"], panels)],
        "rows": _rows(results, names, series),
        "sizes": ["Parameters"] if several_models(results) else [],
        "budgets": budgets,
        "given": _given(results, folder, len(budgets)),
        "grids": _grids(results, folder, names, budgets),
        "facts": _facts(results),
        "protocols": [
            (results["scores"].get(score, {}).get("title", score), _set_fields(fields))
            for score, fields in (results.get("protocol") or {}).items()
        ],
        "csv": base64.b64encode(table.encode()).decode(),
        "count": human_count,
        "main_title": results["scores"][score]["title"] if (score := main_score(results)) else "",
    }
    return rendered("compare.html", values)


def _symbol(style: int) -> Markup:
    """The line and marker of a curve, drawn once for the page and used by legend, table and pictures."""
    from markupsafe import Markup

    text = swatch_svg(style).replace("<svg", f'<symbol id="swatch-{style}"', 1)
    return Markup(text.removesuffix("</svg>") + "</symbol>")


def _date(created: str | None) -> str:
    try:
        return f"{datetime.fromisoformat(created or ''):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return created or ""


def _curve(score: str, results: dict[str, Any], panel: Panel) -> dict[str, Any]:
    from markupsafe import Markup

    about = results["scores"][score]
    said = [
        f"{s.name}: " + ", ".join(f"{human_number(y)} at {human_count(x)}" for x, y in zip(s.x, s.y))
        for s in panel.series
    ]
    bare = Panel("", panel.x_label, panel.y_label, panel.series, panel.levels, panel.log_y)
    better = "higher is better" if about["higher_is_better"] else "lower is better"
    notes = [better]
    if about.get("converged") == 0:
        notes.append("0 is the converged ODE itself")
    return {
        "title": panel.title,
        "note": ", ".join(notes),
        "alt": f"{panel.title} ({better}) against network evaluations per image. {'; '.join(said)}.",
        "svg": Markup(themed_svg(curve_figure([bare], legend=False))),
    }


def _rows(results: dict[str, Any], names: list[str], series: list[str]) -> list[dict[str, Any]]:
    """Table rows; each cell is its text, the number it is sorted by, and for scores an interval and a mark."""
    marked = marks(results)
    rows = []
    order = sorted(range(len(names)), key=lambda i: (results["arms"][i]["budget"], series.index(names[i])))
    for i in order:
        arm = results["arms"][i]
        cells = [
            _cell(str(arm["budget"]), arm["budget"]),
            _cell(evaluations(arm), arm.get("nfe")),
            _cell(human_count(arm.get("macs")), arm.get("macs")),
            _cell(human_seconds(arm.get("seconds")), arm.get("seconds")),
            _cell(human_number(arm.get("images_per_second")), arm.get("images_per_second")),
            _cell(human_bytes(arm.get("peak_memory")), arm.get("peak_memory")),
        ]
        for score in results["scores"]:
            ends, value = interval(arm, score), mean(arm, score)
            cell = _cell(human_number(value), value)
            cell["interval"] = f"{human_number(ends[0])} – {human_number(ends[1])}" if ends else ""
            cell["mark"] = marked.get((score, i), "")
            cells.append(cell)
        if several_models(results):
            cells.insert(0, _cell(human_count(arm.get("parameters")), arm.get("parameters")))
        rows.append({"style": series.index(names[i]), "name": names[i], "budget": arm["budget"], "cells": cells})
    return rows


def _cell(text: str, value: object) -> dict[str, Any]:
    number = finite(value)
    return {"text": text, "value": "" if number is None else repr(number), "interval": "", "mark": ""}


def _given(results: dict[str, Any], folder: Path, columns: int) -> list[dict[str, Any]]:
    """What the samplers' pictures are held against; what is not there is left out."""
    pictures = results.get("pictures") or {}
    reference = (results.get("reference") or {}).get("text")
    texts = {
        "reference": f"Converged ODE: {reference}" if reference else "Converged ODE",
        "real": "Real images, for comparison",
    }
    found = [_picture(folder, pictures.get(key), text, columns) for key, text in texts.items()]
    return [picture for picture in found if picture["data"]]


def _grids(
    results: dict[str, Any], folder: Path, names: list[str], budgets: list[int]
) -> list[tuple[int, str, list[list[dict[str, Any]]]]]:
    """For each sampler and budget the picture grids (several only when two arms share both)."""
    score = main_score(results)
    rows = []
    for style, name in enumerate(dict.fromkeys(names)):
        row = []
        for budget in budgets:
            cell = []
            for arm, own in zip(results["arms"], names):
                if own == name and arm["budget"] == budget:
                    spent = f"{evaluations(arm)} evaluations"
                    text = f"Images made by {name} with {spent}"
                    picture = _picture(folder, arm.get("pictures"), text, len(budgets))
                    value = human_number(mean(arm, score)) if score else MISSING
                    cell.append({**picture, "spent": spent, "score": value})
            row.append(cell)
        rows.append((style, name, row))
    return rows


def _picture(folder: Path, path: str | None, text: str, columns: int) -> dict[str, Any]:
    """A PNG file as inline data, shown at a whole multiple of its size where it is small."""
    missing = {"text": text, "data": "", "width": 0, "height": 0, "small": False}
    if not path:
        return missing
    file = (folder / path).resolve()
    # Only what lies in the report's own folder goes into a page that people pass on.
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        return missing
    data = file.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or len(data) < 24:
        return missing
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    times = max(1, min(8, (_GRID_WIDTH // max(3, columns) - _GRID_GAP) // max(1, width)))
    return {
        "text": text,
        "data": base64.b64encode(data).decode(),
        "width": width * times,
        "height": height * times,
        "small": times > 1,
    }


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    model, data, seeds = results["model"], results.get("data") or {}, results.get("seeds") or []
    shape = "×".join(str(n) for n in model.get("shape") or [])
    size = _joined(
        _with(model.get("parameters"), "parameters"),
        _with(model.get("macs"), "multiply-accumulates per evaluation and image"),
    )
    judged = _joined(data.get("name"), data.get("split"), _with(data.get("count"), "images"))
    listed = f"{len(seeds)} seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))})"
    students = {arm["sampler"]: arm for arm in results["arms"] if arm.get("student")}
    shown = [
        f"{name} ({human_count(a.get('parameters'))} parameters, by {a['student']['sampler']})"
        for name, a in students.items()
    ]
    facts = [
        ("Model", _joined(model.get("name"), shape, _with(model.get("num_classes"), "classes"))),
        ("Model size", size),
        ("Students", "; ".join(shown)),
        ("Model fingerprint", model.get("fingerprint") or ""),
        ("Data", judged),
        ("Data fingerprint", data.get("fingerprint") or ""),
        ("Images", f"{human_count(results.get('count'))} for each of {listed}"),
        ("Intervals", results.get("interval") or ("over seeds" if len(seeds) > 1 else "none, with a single seed")),
        ("Reference", _reference(results.get("reference") or {})),
        ("Timing", "time per image and images/s: median over seeds; memory: peak while sampling"),
    ]
    machine = (results.get("machine") or {}).items()
    facts.append(("Machine", _joined(*(f"{key} {value}" for key, value in machine if value not in (None, "")))))
    facts.append(("scoreline", str(results.get("version", ""))))
    return [(name, value) for name, value in facts if value]


def _reference(reference: dict[str, Any]) -> str:
    text = reference.get("text") or reference.get("sampler") or ""
    return f"{text} ({human_count(reference['nfe'])} evaluations)" if text and reference.get("nfe") else text


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)


def _with(value: float | None, unit: str) -> str:
    return "" if value is None else f"{human_count(value)} {unit}"


def _set_fields(fields: dict[str, Any]) -> list[tuple[str, str]]:
    """The fields of a protocol that say something."""
    flat = {name: value for name, value in fields.items() if name != "extra"} | dict(fields.get("extra") or {})
    return [(name.replace("_", " "), str(value)) for name, value in flat.items() if value not in (None, "", "none")]
