"""The results of a comparison as tables: CSV for spreadsheets, a rich table for the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from scoreline.report.answer import interval, marks, mean
from scoreline.report.numbers import finite, human_bytes, human_count, human_number, human_seconds

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["csv_text", "several_models", "series_names", "text_table"]

_COSTS = ["nfe", "nfe_max", "macs", "seconds", "images_per_second", "peak_memory"]


def several_models(results: dict[str, Any]) -> bool:
    """Whether a comparison holds students beside its model, so that each arm has parameters of its own."""
    return any(arm.get("student") for arm in results["arms"])


def series_names(arms: list[dict[str, Any]]) -> list[str]:
    """For each arm, the name of the curve it belongs to: its sampler, and what tells it from others of that sampler.

    A sampler measured once a budget keeps its bare name; one measured in several variants (two grids, two settings)
    has what differs behind it, for instance "heun (grid=karras)".

    Args:
        arms: the arms of a comparison.

    Returns:
        One name an arm, in their order.
    """
    by_sampler: dict[str, list[int]] = defaultdict(list)
    for i, arm in enumerate(arms):
        by_sampler[arm["sampler"]].append(i)
    names = [str(arm["sampler"]) for arm in arms]
    for group in by_sampler.values():
        budgets = [arms[i]["budget"] for i in group]
        if len(set(budgets)) == len(budgets):
            continue
        variants = [{**(arms[i].get("settings") or {}), "grid": arms[i].get("grid")} for i in group]
        keys = sorted({key for variant in variants for key in variant})
        differing = [key for key in keys if len({repr(variant.get(key)) for variant in variants}) > 1]
        for i, variant in zip(group, variants):
            shown = ", ".join(f"{key}={variant[key]}" for key in differing if variant.get(key) is not None)
            names[i] += f" ({shown})" if shown else ""
    return names


def csv_text(results: dict[str, Any]) -> str:
    """The comparison as CSV, one row an arm.

    Columns: what was run (name, sampler, settings as JSON, grid, budget), what it cost (nfe, nfe_max, macs, seconds,
    images_per_second: per image; peak_memory: bytes), and for each score its mean, low and high; where there are
    students, parameters come last. Empty: no number.

    Args:
        results: what `scoreline compare` stores.
    """
    columns = ["name", "sampler", "settings", "grid", "budget", *_COSTS]
    parts = ("mean", "low", "high")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    last = ["parameters"] if several_models(results) else []
    writer.writerow(columns + [f"{score} {part}" for score in results["scores"] for part in parts] + last)
    for arm in results["arms"]:
        row = {**arm, "settings": json.dumps(arm.get("settings") or {}, sort_keys=True)}
        measured = [arm["scores"].get(score, {}).get(part) for score in results["scores"] for part in parts]
        writer.writerow(
            [row.get(column) for column in columns[:5]]
            + [_plain(row.get(column)) for column in _COSTS]
            + [_plain(value) for value in measured]
            + [arm.get(column) for column in last]
        )
    return file.getvalue()


def _plain(value: object) -> object:
    return value if finite(value) is not None else None


def text_table(results: dict[str, Any]) -> Table:
    """The comparison as a table for the terminal; the best of each budget is bold, ties by interval are marked ~.

    Args:
        results: what `scoreline compare` stores.
    """
    from rich.table import Table
    from rich.text import Text

    marked = marks(results)
    table = Table(title=Text(results["title"]), caption=Text("bold: best at its budget   ~: interval overlaps with it"))
    table.add_column("sampler")
    sizes = several_models(results)
    for title in (
        *(["parameters"] if sizes else []),
        "budget",
        "evaluations",
        "MACs/image",
        "time/image",
        "images/s",
        "memory",
    ):
        table.add_column(Text(title), justify="right", no_wrap=True)
    for about in results["scores"].values():
        table.add_column(Text(about["title"]), justify="right")
    budget = None
    arms, names = results["arms"], series_names(results["arms"])
    for i in sorted(range(len(arms)), key=lambda i: arms[i]["budget"]):
        arm = arms[i]
        if budget not in (None, arm["budget"]):
            table.add_section()
        budget = arm["budget"]
        cells = [Text(names[i])]
        cells += [Text(human_count(arm.get("parameters")))] if sizes else []
        cells += [Text(text) for text in (str(budget), evaluations(arm), human_count(arm.get("macs")))]
        cells += [Text(human_seconds(arm.get("seconds"))), Text(human_number(arm.get("images_per_second")))]
        cells.append(Text(human_bytes(arm.get("peak_memory"))))
        for score in results["scores"]:
            mark = marked.get((score, i))
            cell = Text(human_number(mean(arm, score)), style="bold green" if mark == "best" else "")
            if ends := interval(arm, score):
                cell.append(f" [{human_number(ends[0])}, {human_number(ends[1])}]", style="not bold dim")
            if mark == "tied":
                cell = Text("~ ").append_text(cell)
            cells.append(cell)
        table.add_row(*cells)
    return table


def evaluations(arm: dict[str, Any]) -> str:
    """The network evaluations of an arm, with the maximum where images differ."""
    shown, most = human_count(arm.get("nfe")), finite(arm.get("nfe_max"))
    return shown if most is None or most == arm.get("nfe") else f"{shown} (max {human_count(most)})"
