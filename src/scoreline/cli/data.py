"""`scoreline data NAME`: summary and picture grid of a data set."""

from __future__ import annotations

from typing import Any, Literal

EXAMPLE = "scoreline data digits --out digits.png"


def run(
    source: str,
    split: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    out: str = "data.png",
) -> dict[str, Any]:
    """Summary and picture grid of a data set.

    Args:
        source: digits, cifar10, a folder, a .npz, .npy or .parquet file, or hf:owner/name.
        split: train, test, ...; nothing reads all.
        size: resize the shorter side to this and cut the middle square.
        channels: 1 for grey, 3 for RGB; nothing to see from the images.
        on_bad_image: what a broken picture does: error stops, skip leaves it out and lists it.
        out: PNG file for the grid.
    """
    from scoreline.data.summary import summarise

    return summarise(source, split=split, size=size, channels=channels, on_bad_image=on_bad_image, out=out)


def show(result: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from scoreline.cli.terminal import console

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in result.items():
        if key == "skipped" and value:
            shown = "\n".join(f"{item['name']}: {item['reason']}" for item in value)
        elif isinstance(value, dict):
            shown = "  ".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            shown = (" x " if key == "shape" else " to " if key == "range" else ", ").join(map(_word, value))
        else:
            shown = _word(value)
        table.add_row(key.replace("_", " "), Text(shown or "none"))
    console().print(table)


def _word(value: Any) -> str:
    return "none" if value is None or value == "" else f"{value:.4g}" if isinstance(value, float) else str(value)
