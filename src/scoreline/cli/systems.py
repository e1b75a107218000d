"""`scoreline systems`: the 48 systems and their state."""

from __future__ import annotations

from typing import Any


def run(id: str | None = None) -> list[dict[str, Any]]:
    """The 48 systems and their state, read from tests, claims and docs.

    Args:
        id: number or short name of one system; nothing lists all.
    """
    from scoreline.core.systems import facts, system

    rows = facts()["systems"]
    return rows if id is None else [row for row in rows if row["id"] == system(id).id]


def show(result: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("id", "name", "paper", "module", "checks", "claim", "state"):
        table.add_column(column, no_wrap=column in ("id", "paper", "state"))
    colours = {"works": "green", "stale": "yellow", "incomplete": "yellow", "planned": "dim"}
    for row in result:
        checks, claim = row["checks"], row["claim"]
        table.add_row(
            row["id"], row["name"], row["paper"], row["module"].removeprefix("scoreline."),
            f"{len(checks['passed'])}/{checks['of']}", claim["verdict"] if claim else "",
            f"[{colours[row['state']]}]{row['state']}[/]",
        )  # fmt: skip
    console = Console()
    console.print(table)
    if len(result) == 1:
        for line in result[0]["missing"]:
            console.print(f"missing: {line}", highlight=False)
        if result[0]["page"]:
            console.print(f"page: {result[0]['page']['page']}", highlight=False)
    else:
        states = [row["state"] for row in result]
        console.print(", ".join(f"{states.count(state)} {state}" for state in colours if state in states))
