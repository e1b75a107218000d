"""`scoreline claims`: what the papers promise, measured again."""

from __future__ import annotations

from typing import Any, Literal

TAKES_COMMAND = TAKES_QUIET = True
EXAMPLE = "scoreline claims 09 --scale smoke"


def run(
    id: str | None = None,
    /,
    scale: Literal["laptop", "smoke", "gpu"] = "laptop",
    seeds: str | None = None,
    out: str = "claims",
    store: bool = False,
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any] | list[dict[str, Any]]:
    """Measure what a paper promises and judge it; run again, the same command goes on where it stopped.

    Args:
        id: number or short name of a system; nothing lists what was measured.
        scale: laptop takes minutes, gpu is the real one; smoke takes seconds and stores nothing.
        seeds: seeds, separated by commas or as a range 0:3, at least three; nothing takes the claim's own.
        out: folder of the result and of what a stopped run goes on from.
        store: put the result among those of the package (for maintainers).
    """
    from scoreline.claims.board import board, find_claim
    from scoreline.claims.engine import measure
    from scoreline.cli.compare import numbers

    if id is None:
        return board()
    chosen = None if seeds is None else numbers(seeds, "seeds")
    return measure(find_claim(id), scale=scale, seeds=chosen, out=out, store=store, command=command, quiet=quiet)


def show(result: dict[str, Any] | list[dict[str, Any]]) -> None:
    from rich.table import Table

    from scoreline.cli.terminal import console

    screen = console()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    if isinstance(result, list):
        for column in ("id", "name", "paper", "verdict", "scale", "seeds", "source"):
            table.add_column(column, no_wrap=True)
        for row in result:
            source = {None: "", True: "changed since", False: "present"}[row.get("stale")]
            cells = [row["id"], row["name"], row["paper"], row["verdict"] or "not measured"]
            table.add_row(*cells, row.get("scale", ""), str(row.get("seeds", "")), source)
        screen.print(table)
        return
    columns = list(dict.fromkeys(name for arm in result["summary"].values() for name in arm))
    table.add_column("arm", no_wrap=True)
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for arm, values in result["summary"].items():
        spreads = [values.get(name) for name in columns]
        table.add_row(arm, *[_cell(spread, len(result["seeds"])) for spread in spreads])
    screen.print(table)
    for line in [*result["reasons"], *result["findings"]]:
        screen.print(line, markup=False, soft_wrap=True)
    screen.print(f"verdict: {result['verdict']}", markup=False)
    for file in result["stored"]:
        screen.print(f"result: {file}", markup=False, soft_wrap=True)
    if not result["stored"]:
        screen.print("a smoke test: nothing is stored and the verdict means nothing", markup=False)


def _cell(spread: dict[str, float] | None, seeds: int) -> str:
    if spread is None:
        return ""
    return f"{spread['mean']:.3g}" + (f" ± {spread['std']:.1g}" if seeds > 1 and spread["std"] else "")
