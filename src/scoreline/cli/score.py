"""`scoreline score`: distances between two sets of images."""

from __future__ import annotations

from typing import Any, Literal

TAKES_QUIET = True
EXAMPLE = "scoreline score --real digits --generated images --features pixels"


def run(
    *,
    real: str,
    generated: str,
    features: Literal["auto", "digits", "inception-2015", "pixels"] = "auto",
    metrics: str | None = None,
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
        features: feature network; auto takes digits for 8x8 grey images and inception-2015 elsewhere.
        metrics: of fd, kid, prdc, is, fd-infinity, separated by commas; nothing takes fd,kid,prdc, or fd where only
            statistics are given.
        real_split: split of the real set; nothing takes all of it, of digits the test split.
        generated_split: split of the generated set.
        size: resize and crop both sets to this before anything else.
        batch_size: images a batch.
        save_statistics: write mean and covariance of the real set's features to this .npz.
        seed: of subsets and intervals.
    """
    from scoreline.evaluate.scoring import score_sets

    chosen = None if metrics is None else [m.strip() for m in metrics.split(",") if m.strip()]
    return score_sets(
        real, generated, features=features, metrics=chosen,
        real_split=real_split, generated_split=generated_split, size=size, batch_size=batch_size,
        save_statistics=save_statistics, seed=seed, quiet=quiet,
    )  # fmt: skip


def show(result: dict[str, Any]) -> None:
    from rich.table import Table

    from scoreline.cli.terminal import console

    screen = console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("score", "value", "95 % interval", "floor", "better"):
        table.add_column(title, justify="left" if title in ("score", "better") else "right")
    for score in result["scores"]:
        interval = score["interval"]
        shown = "" if interval is None else f"{_number(interval['low'])} to {_number(interval['high'])}"
        floor = result["floor"].get(score["name"])
        better = "higher" if score["higher_is_better"] else "lower"
        table.add_row(score["name"], _number(score["value"]), shown, "" if floor is None else _number(floor), better)
    screen.print(table)
    if result["floor"]:
        screen.print("floor: the same distance for independent real images, as many as were generated")
    for warning in result["warnings"]:
        screen.print(f"note: {warning}", markup=False)
    screen.print(f"protocol: {result['protocol']}", markup=False, soft_wrap=True)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
