"""The picture of a search: what it found as it went, and what may be said of it at the end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoreline.core.files import atomic_path
from scoreline.report.plots import COLOURS, INK, MUTED, PAPER, RULE, drawing

__all__ = ["search_figure", "write_search_plot"]


def search_figure(results: Mapping[str, Any]) -> Any:
    """Two panels: the best value so far of every searcher, and the reported values with their intervals.

    Where candidates differ in cost, a third one in between: every candidate's value against its multiply-accumulates,
    with the front of cost and value.

    Args:
        results: of `scoreline search`: "progress", "seen", "front", "rows", "settings".

    Returns:
        A figure that belongs to no window.
    """
    from matplotlib.figure import Figure

    seen, metric = results.get("seen") or [], results["settings"]["metric"]
    varied = len({one["macs"] for one in seen}) > 1
    with drawing():
        figure = Figure(figsize=(13.2 if varied else 9.0, 3.6), layout="constrained", facecolor=PAPER)
        axes = figure.subplots(1, 3 if varied else 2)
        for i, (name, best) in enumerate(results["progress"].items()):
            known = [value if value is not None else float("nan") for value in best]
            axes[0].plot(
                range(1, len(known) + 1), known, drawstyle="steps-post", color=COLOURS[i % len(COLOURS)], label=name
            )
        axes[0].set(xlabel="candidates scored", ylabel=f"best {metric} so far", title="as the search saw it (too good)")
        axes[0].legend(frameon=False)
        if varied:
            axes[1].scatter(
                [s["macs"] / 1e6 for s in seen], [s["value"] for s in seen], s=9, color=RULE, label="candidates"
            )
            front = sorted(results["front"], key=lambda one: one["macs"])
            axes[1].plot(
                [one["macs"] / 1e6 for one in front], [one["value"] for one in front], "o-", ms=4, color=COLOURS[1],
                label="front",
            )  # fmt: skip
            # What failed is far away and would leave no room for the rest.
            values = sorted(one["value"] for one in seen)
            top = values[int(0.9 * (len(values) - 1))] + 0.2 * values[0]
            axes[1].set(xlabel="MACs an image, millions", ylabel=f"{metric} in the search", title="cost and quality")
            axes[1].set_ylim(min(0.8 * values[0], values[0] - 0.05 * (top - values[0])), top)
            axes[1].legend(frameon=False)
        rows = results["rows"][::-1]
        for y, row in enumerate(rows):
            searched = row["name"] in results["progress"]
            colour = COLOURS[0] if searched else MUTED
            axes[-1].plot([row["low"], row["high"]], [y, y], color=colour, lw=1.5)
            axes[-1].plot(row["mean"], y, "o", color=colour)
        axes[-1].set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes[-1].set(xlabel=metric, title="with noise that it did not see")
        for axis in axes:
            axis.title.set_color(INK)
        return figure


def write_search_plot(results: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the picture as PNG, whole or not at all."""
    target = Path(path)
    with atomic_path(target) as temporary, drawing():
        search_figure(results).savefig(temporary, dpi=150)
    return target
