"""`scoreline systems`: the 48 systems and their state."""

from __future__ import annotations

from typing import Any

COLOURS = {"works": "green", "stale": "yellow", "incomplete": "yellow", "planned": "dim"}


def run(id: str | None = None, /) -> list[dict[str, Any]]:
    """The 48 systems and their state, read from tests, claims and docs.

    Args:
        id: number or short name of one system; nothing lists all.
    """
    from scoreline.core.systems import facts, system

    rows = facts()["systems"]
    return rows if id is None else [row for row in rows if row["id"] == system(id).id]


def show(result: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from scoreline.cli.terminal import console

    screen = console()
    if len(result) == 1:
        _show_one(result[0])
        return
    wide = screen.width >= 110
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    # A narrow terminal leaves out what `scoreline systems ID` shows as well.
    columns = ["id", "name", "paper", "module", "tests", "claim", "page", "state"]
    columns = [column for column in columns if wide or column not in ("module", "page")]
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column == "tests" else "left")
    for row in result:
        checks, claim = row["checks"], row["claim"]
        cells = {
            "id": row["id"], "name": row["name"], "paper": row["paper"],
            "module": row["module"].removeprefix("scoreline."), "tests": f"{len(checks['passed'])}/{checks['of']}",
            "claim": claim["verdict"] if claim else "", "page": "yes" if row["page"] else "",
            "state": f"[{COLOURS[row['state']]}]{row['state']}[/]",
        }  # fmt: skip
        table.add_row(*[cells[column] for column in columns])
    screen.print(table)
    states = [row["state"] for row in result]
    screen.print(", ".join(f"{states.count(state)} {state}" for state in COLOURS if state in states))


def _show_one(row: dict[str, Any]) -> None:
    from scoreline.cli.terminal import console

    checks, claim, page = row["checks"], row["claim"], row["page"]
    lines = {
        "paper": row["paper"], "module": row["module"], "tests": f"{len(checks['passed'])} of {checks['of']} checks",
        "claim": claim["verdict"] if claim else "not measured", "page": page["page"] if page else "none",
        "state": row["state"],
    }  # fmt: skip
    screen = console()
    screen.print(f"{row['id']}  {row['name']}", style="bold")
    for name, value in lines.items():
        screen.print(f"  {name:<8}{value}", markup=False, soft_wrap=True)
    for reason in row["missing"]:
        screen.print(f"  missing {reason}", markup=False, soft_wrap=True)
