"""`scoreline score`: distances between two sets of images."""

from __future__ import annotations

from typing import Any, Literal

TAKES_QUIET = True
EXAMPLE = "scoreline score --real digits --generated images --features pixels"


def run(
    *,
    real: str,
    generated: str,
    compare_to: str | None = None,
    metrics: str | None = None,
    features: Literal["auto", "inception-2015", "dinov2-vit-l-14", "clip-vit-l-14-336", "digits", "pixels"] = "auto",
    mode: Literal["pytorch-fid", "clean", "torch-fidelity"] | None = None,
    weights: str | None = None,
    real_split: str | None = None,
    generated_split: str | None = None,
    compare_split: str | None = None,
    size: int | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    dtype: Literal["float32", "bf16"] = "float32",
    compile: bool = False,
    save_statistics: str | None = None,
    statistics_layout: Literal["scoreline", "pytorch-fid", "clean-fid", "edm", "guided-diffusion"] = "scoreline",
    out: str | None = None,
    no_cache: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Scores of a generated set against a real one, each with its interval and protocol. A killed run goes on when the
    same command is given again. For several processes: torchrun --nproc-per-node 2 -m scoreline score ...

    Args:
        real: the reference: a data set's name, a folder, an array file, features (.npy or .npz, floating point, one
            row an image), or statistics (.npz with mu and sigma).
        generated: the images that are judged: likewise.
        compare_to: a second generated set; every score gets a paired test of the first against it.
        metrics: of fd, sfid, is, kid, prdc (k = 5, inside is <), precision-recall (k = 3, inside is <=), fd-infinity,
            cmmd, separated by commas; nothing takes fd,kid,prdc, or fd where only statistics are given.
        features: feature network; auto takes digits for 8x8 grey images and inception-2015 elsewhere.
        mode: resizing, scaling and root of another implementation; nothing takes those of the TensorFlow original
            with a root that is never complex.
        weights: file of the feature network's weights; nothing looks in the cache folder.
        real_split: split of the real set; nothing takes all of it, of digits the test split.
        generated_split: split of the generated set.
        compare_split: split of the set to compare to.
        size: resize and crop all sets to this before anything else.
        on_bad_image: stop at a picture that cannot be read, or leave it out and count it.
        batch_size: images a batch; nothing takes 32, or 256 for small images.
        workers: processes that decode and resize images; nothing takes half of the cores, 0 for small images.
        device: auto (the first of cuda, mps, cpu that is there), cpu, cuda, cuda:1, ..., or mps.
        dtype: arithmetic of the network; bf16 is faster and another protocol.
        compile: compile the network first; pays from some thousand images on.
        save_statistics: write mean and covariance of the real set's features to this .npz.
        statistics_layout: whose layout; guided-diffusion needs sfid among the metrics.
        out: folder for results.json and the work files; nothing keeps work files in the cache folder.
        no_cache: keep neither statistics and features of the real set nor work files for the next run.
        seed: of intervals and subsets.
    """
    from scoreline.evaluate.scoring import score_sets

    chosen = None if metrics is None else [m.strip() for m in metrics.split(",") if m.strip()]
    result = score_sets(
        real, generated, compare_to=compare_to, features=features, metrics=chosen, mode=mode, weights=weights,
        real_split=real_split, generated_split=generated_split, compare_split=compare_split, size=size,
        on_bad_image=on_bad_image, batch_size=batch_size, workers=workers, device=device, dtype=dtype, compile=compile,
        save_statistics=save_statistics, statistics_layout=statistics_layout, out=out, cache=not no_cache, seed=seed,
        quiet=quiet,
    )  # fmt: skip
    if not result:
        # One of several processes: the first one prints.
        raise SystemExit(0)
    return result


def show(result: dict[str, Any]) -> None:
    from scoreline.cli.terminal import console

    screen = console()
    screen.print(_sets(result["sets"]), markup=False)
    screen.print()
    screen.print(_scores(result))
    if result["floor"]:
        screen.print("floor: the same distance for independent real images, as many as were generated")
    if result["comparison"]:
        screen.print()
        screen.print(_comparison(result))
        screen.print("p: two-sided paired test that both generators score alike")
    if result["warnings"]:
        screen.print()
        for warning in result["warnings"]:
            screen.print(f"note: {warning}", markup=False)
    screen.print()
    screen.print(f"protocol: {result['protocol']}", markup=False, soft_wrap=True)
    cost = result["cost"]
    rate = cost["images_per_second"]
    shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    features = f"features {cost['seconds_features']:.1f} s ({shown} images/s)"
    scores = f"scores {cost['seconds'] - cost['seconds_features']:.1f} s"
    screen.print(f"cost: {features}, {scores}, peak memory {cost['peak_memory_bytes'] / 2**20:.0f} MiB", markup=False)


def _sets(sets: dict[str, Any]) -> str:
    shown = []
    for role, one in sets.items():
        name = one["name"] + (f" {one['split']}" if one["split"] else "")
        count = "" if one["count"] is None else f"{one['count']:,} "
        shown.append(f"{role}: {name} ({count}{one['kind']})")
    return ", ".join(shown)


def _scores(result: dict[str, Any]) -> Any:
    table = _table(["score", "value", "95 % interval", *(["floor"] if result["floor"] else []), "better"])
    for score in result["scores"]:
        floor = result["floor"].get(score["name"])
        table.add_row(
            score["name"], _number(score["value"]), _interval(score["interval"]),
            *(["" if floor is None else _number(floor)] if result["floor"] else []), _better(score),
        )  # fmt: skip
    return table


def _comparison(result: dict[str, Any]) -> Any:
    sets = result["sets"]
    table = _table(["score", sets["generated"]["name"], sets["compared"]["name"], "difference", "95 % interval", "p",
                    "better"])  # fmt: skip
    for row in result["comparison"]:
        p = row["p_value"]
        table.add_row(
            row["name"], _number(row["generated"]), _number(row["compared"]), _number(row["difference"]),
            _interval(row["interval"]), "" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}", _winner(row, sets),
        )  # fmt: skip
    return table


def _table(titles: list[str]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(escape(title), justify="left" if title in ("score", "better") else "right")
    return table


def _winner(row: dict[str, Any], sets: dict[str, Any]) -> str:
    """The better set, where the test tells them apart at 5 %."""
    if row["p_value"] is None or row["p_value"] >= 0.05:
        return "cannot tell"
    first = (row["difference"] > 0) == row["higher_is_better"]
    return sets["generated" if first else "compared"]["name"]


def _better(score: dict[str, Any]) -> str:
    return "higher" if score["higher_is_better"] else "lower"


def _interval(interval: dict[str, Any] | None) -> str:
    return "" if interval is None else f"{_number(interval['low'])} to {_number(interval['high'])}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
