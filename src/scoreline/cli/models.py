"""`scoreline models`: the models that come with scoreline, or what a file or folder holds."""

from __future__ import annotations

from typing import Any


def run(name: str | None = None, /) -> list[dict[str, Any]]:
    """The models that come with scoreline, or the card of one.

    Args:
        name: a built-in name, the path of an artefact, or that of a pipeline folder of diffusers; nothing lists all
            built-in ones.
    """
    from scoreline.core.artefact import read_header
    from scoreline.core.load import model_cards, model_path

    if name is not None and model_path(name).is_dir():
        return [_of_folder(name)]
    headers = model_cards() if name is None else {name: read_header(model_path(name))}
    return [
        {
            "name": key, "kind": header["kind"], "class": header["name"], "fingerprint": header["fingerprint"],
            **header.get("card", {}),
        }
        for key, header in headers.items()
    ]  # fmt: skip


def _of_folder(name: str) -> dict[str, Any]:
    """What a folder holds; it has no header of ours, so that it is loaded whole."""
    from scoreline.core.artefact import describe
    from scoreline.core.load import load

    model = load(name)
    schedule = describe(model.schedule)
    # A table of a thousand betas says less than its length; what it was made of stands under "scheduler".
    known = model.schedule.known
    facts = schedule["args"] if known is None else {"levels": len(known)}
    header = model.header
    return {
        "name": name, "kind": header["kind"], "class": header["name"], "fingerprint": header["fingerprint"],
        "schedule": {"name": schedule["name"], **facts}, "shape": list(model.shape),
        "classes": model.num_classes, "parameters": sum(p.numel() for p in model.parameters()), **header["card"],
    }  # fmt: skip


def show(result: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from scoreline.cli.terminal import console

    screen = console()
    if not result:
        screen.print("no models came with this installation")
    if len(result) > 1:
        listed = Table(box=None, pad_edge=False)
        for name in ("model", "kind", "parameters", "made by"):
            listed.add_column(name, overflow="fold", justify="right" if name == "parameters" else "left")
        for row in result:
            # A student's steps are part of what it is.
            steps = (row.get("sampling") or {}).get("steps")
            kind = row["kind"] if steps is None else f"{'/'.join(map(str, steps))}-step student"
            count = row.get("parameters")
            listed.add_row(row["name"], kind, "" if count is None else f"{count:,}", Text(str(row.get("command", ""))))
        screen.print(listed)
        screen.print("\nscoreline models NAME tells the rest: scores, data, settings")
        return
    for row in result:
        table = Table(title=row["name"], title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for key, value in row.items():
            if key == "name" or value is None:
                continue
            if isinstance(value, dict):
                value = "\n".join(f"{k}: {v}" for k, v in value.items())
            table.add_row(key.replace("_", " "), Text(str(value)))
        screen.print(table)
        screen.print()
