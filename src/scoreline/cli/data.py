"""`scoreline data NAME`: summary and picture grid of a data set."""

from __future__ import annotations

from typing import Any, Literal


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
        on_bad_image: error, or skip to leave bad pictures out and list them.
        out: PNG file for the grid.
    """
    from scoreline.data.summary import summarise

    return summarise(source, split=split, size=size, channels=channels, on_bad_image=on_bad_image, out=out)


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in result.items():
        if key == "skipped" and value:
            value = "\n".join(f"{item['name']}: {item['reason']}" for item in value)
        elif isinstance(value, dict):
            value = "  ".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            value = " x ".join(map(str, value)) if key == "shape" else ", ".join(map(str, value))
        elif isinstance(value, float):
            value = f"{value:.4g}"
        table.add_row(key.replace("_", " "), "none" if value in (None, "") else str(value))
    Console().print(table)
