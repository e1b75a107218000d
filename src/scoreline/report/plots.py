"""Curves of quality against cost: one way to draw them, for files (PNG) and for pages (SVG that follows their theme).

Figures are made without pyplot, so nothing here touches global state, opens a window or needs a display.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scoreline.report.numbers import human_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["COLOURS", "Level", "Panel", "Series", "curve_figure", "themed_svg", "swatch_svg", "drawing"]

# Hues that stay apart for the three common kinds of colour blindness, at 3:1 or more on white; the page has a lighter
# set for its dark theme. Beyond the last colour they return with dashed lines; markers do not repeat within 12 curves.
COLOURS = ["#0072b2", "#d55e00", "#00805e", "#aa4499", "#a86f00", "#332288", "#2b95d6", "#882255"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*"]
INK, MUTED, RULE, PAPER = "#1b2027", "#5a6472", "#dfe3e8", "#fefefe"
_VARIABLES = {
    **{colour: f"var(--s{i})" for i, colour in enumerate(COLOURS)},
    **{INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--card)"},
}


@dataclass(frozen=True)
class Series:
    """One curve.

    Args:
        name: as the legend shows it.
        x, y: its points; a NaN in y leaves a gap.
        low, high: ends of the error bars, or empty; NaN: none at that point.
        style: which colour and marker; the same number is the same look in every figure.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: int = 0


@dataclass(frozen=True)
class Level:
    """A horizontal line with its name beside it, such as the floor of a score."""

    name: str
    value: float


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title: above the axes; empty: none.
        x_label, y_label: what the axes show, with units.
        series: the curves.
        levels: horizontal lines; on a logarithmic axis those at or below 0 are left out.
        log_y: whether y is logarithmic; ignored where no positive value is left to show, or some are not positive.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = field(default_factory=tuple)
    levels: Sequence[Level] = ()
    log_y: bool = False


def curve_figure(
    panels: Sequence[Panel], *, legend: bool = True, columns: int = 3, size: tuple[float, float] = (4.0, 3.1)
) -> Figure:
    """Panels side by side, with one legend for all of them; x is logarithmic with ticks at the points that were run.

    Args:
        panels: what to draw, at least one.
        legend: whether to name the curves below the panels.
        columns: panels in a row.
        size: width and height of one panel, inches.

    Returns:
        A figure that belongs to no window; save it with `figure.savefig(path)`.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    names = {series.name: series for panel in panels for series in panel.series}
    across = max(1, int(columns * size[0] // (0.75 + 0.085 * max((len(name) for name in names), default=1))))
    below = 0.1 + 0.24 * math.ceil(len(names) / across) if legend and names else 0.0
    with drawing():
        height = rows * size[1] + below
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, rect=(0, below / height, 1, 1 - below / height))
        figure = Figure(figsize=(columns * size[0], height), layout=layout, facecolor=PAPER)
        for i, panel in enumerate(panels):
            _draw(figure.add_subplot(rows, columns, i + 1), panel)
        if below:
            handles = [_line(series) for series in names.values()]
            figure.legend(handles, list(names), loc="lower center", ncols=min(across, len(names)), fontsize=9)
    return figure


@contextmanager
def drawing() -> Iterator[None]:
    """The look of all figures here, for the time of a block; the caller's matplotlib settings come back after it."""
    import matplotlib

    look: dict[Any, Any] = {
        "font.size": 9,
        "text.color": INK,
        "text.parse_math": False,  # a name with a $ in it is no formula
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "axes.facecolor": PAPER,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "legend.frameon": False,
        "svg.fonttype": "none",  # text stays text: the page's font, selectable
        "svg.hashsalt": "scoreline",
        "savefig.facecolor": "auto",
    }
    with matplotlib.rc_context(look):
        yield


def _line(series: Series) -> Line2D:
    from matplotlib.lines import Line2D

    colour, marker = COLOURS[series.style % len(COLOURS)], MARKERS[series.style % len(MARKERS)]
    dashed = series.style // len(COLOURS) % 2 == 1
    return Line2D(
        series.x,
        series.y,
        color=colour,
        marker=marker,
        markersize=7 if marker == "*" else 5,
        markeredgecolor=PAPER,
        markeredgewidth=0.6,
        linewidth=1.6,
        linestyle=(0, (3, 1.5)) if dashed else "-",
        zorder=3,
    )


def _draw(ax: Axes, panel: Panel) -> None:
    values = [v for s in panel.series for v in (*s.y, *s.low, *s.high) if math.isfinite(v)]
    points = [v for s in panel.series for v in s.y if math.isfinite(v)]
    log = panel.log_y and bool(points) and min(points) > 0
    shown = [v for v in values if v > 0] if log else values
    levels = [level for level in panel.levels if math.isfinite(level.value) and (level.value > 0 or not log)]
    xs = [x for s in panel.series for x in s.x if math.isfinite(x) and x > 0]
    ax.set_title(panel.title)
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(panel.y_label)
    ax.set_axisbelow(True)
    ax.grid(axis="y", color=RULE, linewidth=0.8)
    _limits(ax, xs, shown + [level.value for level in levels], log)
    for series in panel.series:
        curve = ax.add_line(_line(series))
        curve.set_gid(f"series-{series.style}")
        if any(math.isfinite(v) for v in series.low):
            _bars(ax, series, log)
    if not points:
        ax.text(0.5, 0.5, "no finite values", transform=ax.transAxes, ha="center", va="center", color=MUTED)
    _levels(ax, levels, log)


def _bars(ax: Axes, series: Series, log: bool) -> None:
    bottom = ax.get_ylim()[0]
    colour = COLOURS[series.style % len(COLOURS)]
    triples = [(x, max(low, bottom) if log else low, high) for x, low, high in zip(series.x, series.low, series.high)]
    x, low, high = zip(*[triple for triple in triples if all(math.isfinite(v) for v in triple)])
    stems = ax.vlines(x, low, high, color=colour, linewidth=1.2, zorder=2)
    caps = ax.scatter(x + x, low + high, marker="_", s=22, color=colour, linewidth=1.2, zorder=2)
    for part in (stems, caps):
        part.set_gid(f"series-{series.style}")


def _limits(ax: Axes, xs: list[float], ys: list[float], log: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    text = FuncFormatter(lambda value, _: _tick(value))
    if xs:
        ax.set_xscale("log", base=2)
        left, right = math.log2(min(xs)), math.log2(max(xs))
        room = max(0.06 * (right - left), 0.15)
        ax.set_xlim(2 ** (left - room), 2 ** (right + room))
        labelled = _apart(xs, right - left + 2 * room)
        ax.xaxis.set_major_locator(FixedLocator(labelled))
        ax.xaxis.set_minor_locator(FixedLocator(sorted(set(xs) - set(labelled))))
        ax.xaxis.set_major_formatter(text)
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    if log and ys:
        ax.set_yscale("log")
        low, high = math.log10(min(ys)), math.log10(max(ys))
        room = max(0.08 * (high - low), 0.05)
        ax.set_ylim(10 ** (low - room), 10 ** (high + room))
        ax.yaxis.set_major_locator(FixedLocator(_log_ticks(10 ** (low - room), 10 ** (high + room))))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(text)
    elif ys:
        room = 0.08 * (max(ys) - min(ys)) or 0.1 * abs(ys[0]) or 1.0
        ax.set_ylim(min(ys) - room, max(ys) + room)


def _apart(values: list[float], span: float) -> list[float]:
    """Those of the values whose labels do not touch on an axis `span` octaves long; the ones that occur most first."""
    kept: list[float] = []
    for value in sorted(set(values), key=lambda value: (-values.count(value), -value)):
        # Widths as shares of the axis: half a label on either side, and some air between them.
        room = {other: 0.013 * (len(_tick(value)) + len(_tick(other))) + 0.02 for other in kept}
        if all(abs(math.log2(value / other)) >= room[other] * span for other in kept):
            kept.append(value)
    return sorted(kept)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        found = [step * 10.0**d for d in decades for step in steps if low <= step * 10.0**d <= high]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 7)]
    from matplotlib.ticker import MaxNLocator

    return [float(v) for v in MaxNLocator(4).tick_values(low, high) if low <= v <= high] or found


def _tick(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"


def _levels(ax: Axes, levels: Sequence[Level], log: bool) -> None:
    """Lines with their names in the right margin, where no curve runs; names that would touch are pushed apart."""
    low, high = (math.log10(v) for v in ax.get_ylim()) if log else ax.get_ylim()
    previous = -math.inf
    for i, level in enumerate(sorted(levels, key=lambda level: level.value)):
        at = ((math.log10(level.value) if log else level.value) - low) / (high - low)
        dashes = (0, (1, 1.6)) if i % 2 == 0 else (0, (5, 2))
        ax.axhline(level.value, color=MUTED, linewidth=1.1, linestyle=dashes, zorder=1)
        at = previous = max(at, previous + 0.17)
        text = f"{level.name}\n{human_number(level.value)}"
        ax.annotate(
            text,
            (1, at),
            (4, 0),
            "axes fraction",
            "offset points",
            va="center",
            fontsize=8,
            color=MUTED,
            linespacing=1.15,
        )


def themed_svg(figure: Figure) -> str:
    """A figure as inline SVG for a page: its colours become the page's CSS variables, its text the page's font.

    The page defines --s0 ... --s7, --ink, --muted, --rule and --card. Curves carry `data-series` with their style.

    Args:
        figure: made inside :func:`drawing`, or by :func:`curve_figure`.

    Returns:
        An <svg> element without size, ids of its own, metadata or addresses.
    """
    file = io.StringIO()
    with drawing():
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r'id="series-(\d+)"', r'class="series" data-series="\1"', body)
    # Ids that nothing refers to would collide between two pictures of one page.
    used = set(re.findall(r"#([A-Za-z]\w*)", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found.group(0) if found.group(1) in used else "", body)
    # Matplotlib up to 3.9 writes the font in one declaration, later ones in several.
    body = re.sub(r'font: (?:[a-z0-9]+ )*([\d.]+px) [^;"]*', r"font-size: \1", body)
    body = re.sub(r'font-family: [^;"]*(?:; )?', "", body).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r">\s+<", "><", body)
    return f"<svg {view.group(0) if view else ''}>{body}"


def swatch_svg(style: int) -> str:
    """The line and marker of a style, as small inline SVG for legends and tables."""
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(28 / 72, 14 / 72), facecolor="none")
        line = _line(Series("", [0.05, 0.5, 0.95], [0.5, 0.5, 0.5], style=style))
        line.set_markevery([1])
        line.set_markersize(line.get_markersize() + 2)
        figure.add_artist(line)
    return themed_svg(figure)
