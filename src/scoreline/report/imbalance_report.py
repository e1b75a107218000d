"""What `scoreline imbalance` writes: the numbers as JSON and CSV, and a picture of the thresholds and of the noise."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoreline.core.files import atomic_path, write_json
from scoreline.metrics.binary_curves import Cells
from scoreline.metrics.imbalance import cell_metrics
from scoreline.metrics.label_noise import noise_correct, noisy_cells
from scoreline.report.numbers import human_number
from scoreline.report.plots import COLOURS, INK, MARKERS, MUTED, PAPER, RULE, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["choices_csv", "imbalance_figure", "metrics_csv", "write_imbalance"]

_CURVES = ("f1", "g-mean", "mcc", "precision", "recall")
_NOISE = ("f1", "g-mean", "mcc", "precision")


def write_imbalance(result: dict[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Write imbalance.json, metrics.csv, thresholds.csv and imbalance.png, each whole or not at all.

    Args:
        result: what :func:`scoreline.evaluate.imbalance.examine` returns.
        folder: made if missing.

    Returns:
        The files.

    Raises:
        ArtefactError: a file cannot be written.
    """
    out = Path(folder)
    files = [out / name for name in ("imbalance.json", "metrics.csv", "thresholds.csv", "imbalance.png")]
    write_json(files[0], _plain(result))
    for file, text in ((files[1], metrics_csv(result)), (files[2], choices_csv(result))):
        with atomic_path(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    figure = imbalance_figure(result)
    with atomic_path(files[3]) as temporary, drawing():
        figure.savefig(temporary, dpi=150)
    return files


def _plain(value: Any) -> Any:
    """An infinite threshold, which predicts no positive, is the text "inf" in JSON."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([header, *rows])
    return file.getvalue()


def metrics_csv(result: dict[str, Any]) -> str:
    """One row a metric: value, low, high, the same corrected for label noise, and what is proved of it."""
    header = ["metric", "value", "low", "high", "corrected", "corrected low", "corrected high", "at prevalence"]
    header += ["other prevalence keeps", "label noise keeps", "sees false alarms", "sees misses"]
    rows = []
    for m in result["metrics"]:
        ends, mended = (m[name] or [None, None] for name in ("interval", "corrected_interval"))
        facts = [m["other_prevalence"], m["ranking_under_noise"], m["sees_false_alarms"], m["sees_misses"]]
        rows.append([m["name"], m["value"], *ends, m["corrected"], *mended, m["at_prevalence"], *facts])
    return _csv(header, rows)


def choices_csv(result: dict[str, Any]) -> str:
    """One row a criterion: its threshold with interval, and what that threshold does."""
    shown = ["predicted_positive", "precision", "recall", "f1", "g-mean", "mcc"]
    rows = [
        [c["criterion"], c["threshold"], *(c["threshold_interval"] or [None, None]), *(c[name] for name in shown)]
        for c in result["choices"]
    ]
    return _csv(["criterion", "threshold", "low", "high", *shown], rows)


def imbalance_figure(result: dict[str, Any]) -> Figure:
    """Three panels: metrics over the threshold, precision against recall, and what false alarms of the annotator do.

    Args:
        result: what :func:`scoreline.evaluate.imbalance.examine` returns.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with drawing():
        figure = Figure(figsize=(12.6, 4.4), facecolor=PAPER, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        left, middle, right = (figure.add_subplot(1, 3, i) for i in (1, 2, 3))
        _thresholds(left, result)
        _precision_recall(middle, result)
        _false_alarms(right, result)
    return figure


def _axes(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_axisbelow(True)
    ax.grid(axis="y", color=RULE, linewidth=0.8)


def _log_x(ax: Axes, low: float, high: float) -> None:
    """A logarithmic axis whose ticks are plain text: names with a $ in them stay names in these figures."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    ax.set_xscale("log")
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    ax.xaxis.set_major_locator(FixedLocator([10.0**power for power in powers]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _legend(ax: Axes, title: str | None = None, columns: int = 3) -> None:
    """Below the axes, where no curve runs."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, fontsize=8, title=title,
                  title_fontsize=8)  # fmt: skip


def _thresholds(ax: Axes, result: dict[str, Any]) -> None:
    curve = result["curve"]
    mended = "corrected for label noise" if result["noise"] else "as annotated"
    _axes(ax, "Metrics over the threshold", "rows predicted positive", f"metric, {mended}")
    _log_x(ax, curve["predicted_positive"][0], curve["predicted_positive"][-1])
    for i, name in enumerate(_CURVES):
        ax.plot(curve["predicted_positive"], curve[name], color=COLOURS[i], linewidth=1.6, label=name)
    for i, name in enumerate(("f1", "g-mean", "mcc")):
        chosen = next(c for c in result["choices"] if c["criterion"] == name)
        if chosen["predicted_positive"]:
            ax.plot(chosen["predicted_positive"], chosen[name], "o", color=COLOURS[i], markeredgecolor=PAPER, zorder=4)
    ax.axvline(result["positives"], color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.6)))
    ax.annotate(
        " annotated\n positives", (result["positives"], 1.0), xycoords=("data", "axes fraction"), va="top",
        fontsize=8, color=MUTED,
    )  # fmt: skip
    ax.set_ylim(-0.02, 1.04)
    _legend(ax)


def _precision_recall(ax: Axes, result: dict[str, Any]) -> None:
    curve = result["curve"]
    _axes(ax, "Precision against recall", "recall", "precision")
    ax.plot(curve["recall"], curve["precision"], color=INK, linewidth=1.6)
    noise = result["noise"]
    share = noise["true_prevalence"] if noise else result["prevalence"]
    ax.axhline(share, color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.6)))
    # Near the left end of the line, where the curve is far above it.
    ax.annotate(f"chance {human_number(share)}", (0.02, share), (0, 3), textcoords="offset points", fontsize=8,
                color=MUTED)  # fmt: skip
    groups: dict[tuple[float, float], list[str]] = {}
    for chosen in result["choices"]:
        if chosen["predicted_positive"]:
            groups.setdefault((chosen["recall"], chosen["precision"]), []).append(chosen["criterion"])
    for i, ((recall, precision), names) in enumerate(groups.items()):
        ax.plot(recall, precision, MARKERS[i], color=COLOURS[-1 - i], markeredgecolor=PAPER, markersize=7, zorder=4,
                label=", ".join(names))  # fmt: skip
    ax.set_xlim(-0.02, 1.04)
    ax.set_ylim(-0.02, 1.04)
    _legend(ax, title="dots: best threshold by", columns=2)


def _false_alarms(ax: Axes, result: dict[str, Any]) -> None:
    """The metrics at the threshold used, if so many negatives were annotated as positive; expected values."""
    import torch

    noise = result["noise"] or {"miss_rate": 0.0, "false_rate": 0.0, "true_prevalence": result["prevalence"]}
    cells = Cells(*(torch.tensor(float(result["cells"][name])) for name in ("tp", "fp", "fn", "tn")))
    t, f = noise_correct(cells, noise["miss_rate"], noise["false_rate"])
    pi = noise["true_prevalence"]
    rates = torch.logspace(math.log10(pi / 100), math.log10(min(10 * pi, 0.5)), 60, dtype=torch.float64)
    metrics = cell_metrics(noisy_cells(pi, t, f, noise["miss_rate"], rates), _NOISE)
    _axes(
        ax,
        "If the annotator flags negatives wrongly",
        "share of negatives flagged (e0)",
        "expected metric as annotated",
    )
    _log_x(ax, float(rates[0]), float(rates[-1]))
    for name in _NOISE:
        ax.plot(rates, metrics[name], color=COLOURS[_CURVES.index(name)], linewidth=1.6, label=name)
    ax.axvline(pi, color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.6)))
    ax.annotate(" e0 = share\n of positives", (pi, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color=MUTED)
    if noise["false_rate"]:
        ax.axvline(noise["false_rate"], color=INK, linewidth=1.1, linestyle=(0, (5, 2)))
        ax.annotate(" given ", (noise["false_rate"], 1.0), xycoords=("data", "axes fraction"), va="top", fontsize=8,
                    color=INK)  # fmt: skip
    ax.set_ylim(-0.02, 1.04)
    _legend(ax)
