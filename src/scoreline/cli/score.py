"""`scoreline score`: distances between two sets of images."""

from __future__ import annotations

from typing import Any

TAKES_QUIET = True


def run(
    real: str,
    generated: str,
    features: str = "auto",
    metrics: str = "fd,kid,prdc",
    real_split: str | None = None,
    generated_split: str | None = None,
    size: int | None = None,
    batch_size: int = 250,
    save_statistics: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Scores of a generated set against a real one, each with its interval and protocol.

    Args:
        real: the reference: a data set's name, a folder, an array file, or saved statistics (.npz with mu and sigma).
        generated: the images that are judged: likewise.
        features: auto (digits for 8x8 grey images, inception-2015 elsewhere), digits, inception-2015 or pixels.
        metrics: of fd, kid, prdc, is, fd-infinity, separated by commas.
        real_split: split of the real set; digits are scored against their test split.
        generated_split: split of the generated set.
        size: resize and crop both sets to this before anything else.
        batch_size: images a batch.
        save_statistics: write mean and covariance of the real set's features to this .npz.
        seed: of subsets and intervals.
    """
    from scoreline.evaluate.scoring import score_sets

    return score_sets(
        real, generated, features=features, metrics=[m.strip() for m in metrics.split(",") if m.strip()],
        real_split=real_split, generated_split=generated_split, size=size, batch_size=batch_size,
        save_statistics=save_statistics, seed=seed, quiet=quiet,
    )  # fmt: skip


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for score in result["scores"]:
        interval = score["interval"]
        shown = "" if interval is None else f"{interval['low']:.4g} to {interval['high']:.4g}"
        value = score["value"]
        table.add_row(score["name"], value if isinstance(value, str) else f"{value:.4g}", shown)
    console.print(table)
    if result["floor"]:
        floors = ", ".join(f"{name} {value:.4g}" for name, value in result["floor"].items())
        console.print(f"floor (independent real images, same count): {floors}", highlight=False)
    for warning in result["warnings"]:
        console.print(f"note: {warning}", highlight=False)
    console.print(f"protocol: {result['protocol']}", highlight=False, soft_wrap=True)
