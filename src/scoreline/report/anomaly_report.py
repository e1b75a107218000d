"""The report of `scoreline anomaly`: scores by image as CSV, curves and boxplots, the images behind the quartiles, and
one html page that needs nothing but itself.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from scoreline.core.errors import InputError
from scoreline.core.files import atomic_path, write_json
from scoreline.evaluate.anomaly import FORMAT, Exhibit, ModelCurves
from scoreline.report.numbers import MISSING, human_number
from scoreline.report.page import rendered
from scoreline.report.plots import COLOURS, INK, MUTED, PAPER, RULE, drawing, themed_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = ["SCORES", "anomaly_csv", "anomaly_table", "boxplot_figure", "exhibit_picture", "pimo_figure"]
__all__ += ["write_anomaly_report"]

SCORES = {
    "aupimo": "AUPIMO", "aupro": "AUPRO", "auroc": "pixel AUROC", "aupr": "pixel AUPR", "image-auroc": "image AUROC",
}  # fmt: skip
MOST_CURVES = 40
_ZONES = ((246, 178, 30), (226, 36, 36))  # above the score where Fsh = U, and above that where Fsh = L
_OUTLINE = (0, 150, 255)
_WIDTH = 220


def write_anomaly_report(
    results: dict[str, Any],
    curves: Mapping[str, ModelCurves],
    exhibits: Sequence[Exhibit],
    folder: str | Path,
    *,
    pictures: Mapping[str, np.ndarray] | None = None,
) -> list[Path]:
    """Write results.json, per_image.csv, plots/*.png, images/*.png and report.html.

    Args:
        results, curves, exhibits: of :func:`scoreline.evaluate.anomaly.score_anomaly_maps`.
        folder: where to write.
        pictures: image name -> (H, W, 3) uint8, shown under the maps; without them the maps are shown alone.

    Returns:
        The files written; the page last.

    Raises:
        InputError: `results` is of another kind.
        ArtefactError: a file cannot be written.
    """
    if results.get("format") != FORMAT:
        raise InputError("results", results.get("format"), f"the report is made from results of format {FORMAT!r}")
    folder = Path(folder)
    bounds = (results["fpr_bounds"][0], results["fpr_bounds"][1])
    figures = {"pimo-curves": pimo_figure(curves, bounds), "boxplots": boxplot_figure(results)}
    written = [folder / "results.json", folder / "per_image.csv"]
    write_json(written[0], results)
    with atomic_path(written[1]) as path:
        path.write_text(anomaly_csv(results), encoding="utf-8")
    for stem, figure in figures.items():
        written.append(folder / "plots" / f"{stem}.png")
        with atomic_path(written[-1]) as path:
            figure.savefig(path, dpi=160)
    shown: dict[str, list[dict[str, Any]]] = {}
    for place, exhibit in enumerate(exhibits):
        picture = exhibit_picture(exhibit, (pictures or {}).get(exhibit.image))
        stem = re.sub(r"[^\w.-]+", "-", f"{exhibit.model}-{place:02d}-{exhibit.image}")
        written.append(folder / "images" / f"{stem}.png")
        with atomic_path(written[-1]) as path:
            picture.save(path)
        data = base64.b64encode(written[-1].read_bytes()).decode()
        shown.setdefault(exhibit.model, []).append({"exhibit": exhibit, "data": data, "size": picture.size})
    page = _page(results, figures, shown)
    written.append(folder / "report.html")
    with atomic_path(written[-1]) as path:
        path.write_text(page, encoding="utf-8")
    return written


# tables


def anomaly_csv(results: Mapping[str, Any]) -> str:
    """One row an image: its name, whether it is anomalous, and its AUPIMO by each model (empty for normal images)."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "anomalous", *(f"aupimo {model['name']}" for model in results["models"])])
    for i, image in enumerate(results["images"]):
        writer.writerow([image["name"], int(image["anomalous"]), *(m["per_image"][i] for m in results["models"])])
    return file.getvalue()


def anomaly_table(results: Mapping[str, Any]) -> Table:
    """The scores of all models for the terminal; the best of each is bold."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("model")
    for title in (*SCORES.values(), "median image"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in _rows(results):
        bold = ["bold" if cell["best"] and len(results["models"]) > 1 else "" for cell in row["cells"]]
        cells = [Text(cell["text"] + cell["interval"], style=style) for cell, style in zip(row["cells"], bold)]
        table.add_row(Text(row["name"]), *cells)
    return table


def _rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    best = {name: max(model["scores"][name]["value"] for model in results["models"]) for name in SCORES}
    rows = []
    for model in results["models"]:
        cells = []
        for name in SCORES:
            score = model["scores"][name]
            ends = score["interval"]
            interval = f" [{human_number(ends['low'])}, {human_number(ends['high'])}]" if ends else ""
            best_one = score["value"] == best[name]
            cells.append({"text": human_number(score["value"]), "interval": interval, "best": best_one})
        median = next(s["value"] for s in model["statistics"] if s["name"] == "median")
        cells.append({"text": human_number(median), "interval": "", "best": False})
        rows.append({"name": model["name"], "cells": cells})
    return rows


# figures


def pimo_figure(curves: Mapping[str, ModelCurves], bounds: tuple[float, float], *, columns: int = 3) -> Figure:
    """PIMO curves, one panel a model: recall in each anomalous image (thin) and their mean against log FPR.

    Args:
        curves: model -> its curves; of more than 40 images, 40 evenly spaced ones (by their mean recall) are drawn.
        bounds: L and U, between which AUPIMO integrates; shaded.
        columns: panels in a row.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(curves))
    rows = -(-len(curves) // columns)
    with drawing():
        figure = Figure(figsize=(4.0 * columns, 3.1 * rows), layout="constrained", facecolor=PAPER)
        for i, (name, curve) in enumerate(curves.items()):
            ax = figure.add_subplot(rows, columns, i + 1)
            colour = COLOURS[i % len(COLOURS)]
            order = np.argsort(curve.tpr.mean(axis=1))
            chosen = order[np.linspace(0, len(order) - 1, min(MOST_CURVES, len(order))).round().astype(int)]
            ax.axvspan(*bounds, color=RULE, linewidth=0, zorder=0)
            for tpr in curve.tpr[chosen]:
                ax.plot(curve.fpr, tpr, color=MUTED, linewidth=0.6, alpha=0.45, zorder=2)
            ax.plot(curve.fpr, curve.tpr.mean(axis=0), color=colour, linewidth=2.2, zorder=3)
            ax.plot(curve.fpr, curve.fpr, color=MUTED, linewidth=0.9, linestyle=(0, (1, 1.6)), zorder=1)
            ax.set_xscale("log")
            ax.set_xlim(min(curve.fpr[-1], bounds[0]), 1)
            ax.set_ylim(-0.02, 1.02)
            ax.set_title(name)
            ax.set_xlabel("false-positive rate on normal images (log)")
            ax.set_ylabel("recall in an anomalous image")
            ax.text(
                (bounds[0] * bounds[1]) ** 0.5, 1.0, "AUPIMO", ha="center", va="top", fontsize=8, color=MUTED, zorder=1
            )
    return figure


def boxplot_figure(results: Mapping[str, Any]) -> Figure:
    """AUPIMO of every anomalous image, one row a model: boxes with 1.5 IQR whiskers, the mean as a diamond."""
    from matplotlib.figure import Figure

    models = results["models"]
    with drawing():
        figure = Figure(figsize=(7.2, 0.9 + 0.55 * len(models)), layout="constrained", facecolor=PAPER)
        ax = figure.add_subplot()
        for i, model in enumerate(models):
            colour, at = COLOURS[i % len(COLOURS)], len(models) - 1 - i
            values = np.array([v for v in model["per_image"] if v is not None])
            s = {entry["name"]: entry["value"] for entry in model["statistics"]}
            # The same small shifts for every model and every run: no draw, no seed.
            shifts = ((np.arange(len(values)) * 0.6180339887) % 1 - 0.5) * 0.5
            ax.scatter(values, at + shifts, s=9, color=colour, alpha=0.4, linewidths=0, zorder=2)
            ax.hlines(at, s["whisker-low"], s["whisker-high"], color=INK, linewidth=1.1, zorder=3)
            ax.vlines([s["whisker-low"], s["whisker-high"]], at - 0.12, at + 0.12, color=INK, linewidth=1.1, zorder=3)
            ax.barh(
                at, s["q3"] - s["q1"], left=s["q1"], height=0.44, facecolor=(1, 1, 1, 0), edgecolor=INK, linewidth=1.2,
                zorder=4,
            )  # fmt: skip
            ax.vlines(s["median"], at - 0.22, at + 0.22, color=INK, linewidth=2.2, zorder=5)
            ax.scatter([s["mean"]], [at], marker="D", s=30, color=colour, edgecolors=PAPER, linewidths=0.8, zorder=6)
        ax.set_yticks(range(len(models)), [model["name"] for model in reversed(models)])
        ax.set_ylim(-0.6, len(models) - 0.4)
        ax.set_xlim(-0.02, 1.02)
        low, high = results["fpr_bounds"]
        ax.set_xlabel(f"AUPIMO of an image, false-positive rates {low:g} to {high:g} (bar: median, diamond: mean)")
        ax.grid(axis="x", color=RULE, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0)
    return figure


def exhibit_picture(exhibit: Exhibit, picture: np.ndarray | None = None) -> Image.Image:
    """An image with what the model found in it: orange where the map exceeds the score at which Fsh = U, red where it
    exceeds that at which Fsh = L, the mask's outline in blue.

    Args:
        exhibit: the image.
        picture: (H, W, 3) uint8 to draw on; None draws on the map itself, in grey.
    """
    scores, mask = exhibit.scores.numpy(), exhibit.mask.numpy()
    height, width = scores.shape
    if picture is None:
        low, high = np.quantile(scores, [0.01, 0.999])
        grey = np.clip((scores - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1) * 235
        ground = np.repeat(grey[..., None], 3, axis=2)
    else:
        ground = np.asarray(Image.fromarray(picture).resize((width, height)), dtype=np.float64)
    orange, red = scores >= exhibit.levels[0], scores >= exhibit.levels[1]
    for colour, above in zip(_ZONES, (orange & ~red, red)):
        ground[above] = 0.45 * ground[above] + 0.55 * np.array(colour)
    times = max(1, round(_WIDTH / width))
    large = ground.round().astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1)
    outline = mask.repeat(times, axis=0).repeat(times, axis=1)
    thick = max(1, min(large.shape[:2]) // 150)
    inner = outline.copy()
    for _ in range(thick):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    large[outline & ~inner] = _OUTLINE
    return Image.fromarray(large)


# the page


def _page(results: Mapping[str, Any], figures: Mapping[str, Figure], shown: Mapping[str, list[dict[str, Any]]]) -> str:
    from markupsafe import Markup

    comparison = results["comparison"]
    values = {
        "results": results,
        "headline": headline(results),
        "titles": [*SCORES.values(), "median image"],
        "rows": _rows(results),
        "svg": {name: Markup(themed_svg(figure)) for name, figure in figures.items()},
        "shown": shown,
        "pairs": []
        if comparison is None
        else list(zip(comparison["models"], comparison["merit"], comparison["confidence"])),
        "number": human_number,
        "missing": MISSING,
        "csv": base64.b64encode(anomaly_csv(results).encode("utf-8", "replace")).decode(),
    }
    return rendered("anomaly.html", values)


def headline(results: Mapping[str, Any]) -> str:
    """What was found, in a sentence that says no more than its numbers do."""
    models = sorted(results["models"], key=lambda model: -model["scores"]["aupimo"]["value"])
    low, high = results["fpr_bounds"]
    best = models[0]
    value = human_number(best["scores"]["aupimo"]["value"])
    count = results["counts"]["anomalous"]
    many = f"{count} anomalous image{'s' * (count != 1)}"
    if len(models) == 1:
        return f"{best['name']} finds {value} of a defect on average over {many} (AUPIMO, FPR {low:g} to {high:g})."
    text = f"{best['name']} has the best mean AUPIMO of {len(models)} models, {value} over {many}"
    comparison = results["comparison"]
    if comparison is None:
        return text + "; too few images to test the difference."
    at = {name: i for i, name in enumerate(comparison["models"])}
    rivals = [m["name"] for m in models[1:]]
    sure = [comparison["confidence"][at[best["name"]]][at[name]] for name in rivals]
    name = {"wilcoxon": "Wilcoxon's signed-rank test", "t": "the paired t-test"}[comparison["test"]]
    beaten = [rival for rival, confidence in zip(rivals, sure) if confidence is not None and confidence >= 0.95]
    if len(beaten) == len(rivals):
        whom = "every other" if len(rivals) > 1 else rivals[0]
        return f"{text}; image by image it is better than {whom} ({name}, 95 %)."
    open_ones = [rival for rival in rivals if rival not in beaten]
    return f"{text}; image by image, {name} does not place it above {', '.join(open_ones)} at 95 %."
