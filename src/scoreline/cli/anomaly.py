"""`scoreline anomaly MAPS MASKS`: how well anomaly maps find defects, image by image."""

from __future__ import annotations

from typing import Any, Literal

TAKES_QUIET = True
EXAMPLE = "scoreline anomaly patchcore/maps masks --compare-to padim/maps --fpr-bounds 1e-5,1e-4 --out report"

DEMO = ("pca-16 sigma=1", "pca-48 sigma=2", "colour sigma=1")


def run(
    maps: str,
    masks: str | None = None,
    /,
    compare_to: str | None = None,
    names: str | None = None,
    fpr_bounds: str = "1e-5,1e-4",
    route: Literal["plain", "fast", "exact"] = "plain",
    thresholds: int | None = None,
    force: bool = False,
    aupro: Literal["distinct", "authors"] = "distinct",
    aupro_limit: float = 0.3,
    test: Literal["wilcoxon", "t"] = "wilcoxon",
    images: str | None = None,
    unmasked: Literal["error", "normal"] = "error",
    mask_above: int | None = None,
    out: str = "anomaly",
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """AUPIMO, AUPRO and AUROC of anomaly maps, for one model or several on the same images, with a report.

    Args:
        maps: folder of score maps (.npy, .npz, float .tiff, grey .png; one an image), or one .npy or .npz file of shape
            (N, H, W); photos for three simple detectors on tiles of photographs that come with scikit-learn.
        masks: the masks likewise, matched by name, 0 where normal; a mask may carry _mask behind the name.
        compare_to: maps of other models on the same images, separated by commas.
        names: names of the models, separated by commas; nothing takes those of their folders.
        fpr_bounds: false-positive rates on normal images between which AUPIMO integrates.
        route: plain is the authors' arithmetic, fast places thresholds only between the bounds, exact needs none.
        thresholds: how many; nothing takes 300,000 for plain and 300 for fast.
        force: integrate over fewer than 31 thresholds too.
        aupro: thresholds of AUPRO, every distinct score or the data set authors' 100.
        aupro_limit: false-positive rate up to which AUPRO integrates.
        test: how models are compared image by image, Wilcoxon's signed-rank test or the paired t-test.
        images: folder of the pictures, under the names of the maps, to show what was found.
        unmasked: what an image without a mask is; normal where normal images have no mask files.
        mask_above: mask pixels above this value are anomalous; nothing asks for masks of two values, 0 and another.
        out: folder for the report.
        seed: of the intervals.
    """
    from scoreline.evaluate.anomaly import score_anomaly_maps
    from scoreline.report.anomaly_report import write_anomaly_report

    models, pictures = _models(maps, masks, compare_to, names, images)
    results, curves, exhibits = score_anomaly_maps(
        models, masks or "photos", fpr_bounds=_bounds(fpr_bounds), route=route, num_thresholds=thresholds, force=force,
        convention=aupro, fpr_limit=aupro_limit, test=test, unmasked=unmasked, mask_above=mask_above, seed=seed,
        quiet=quiet,
    )  # fmt: skip
    if images is not None:
        from scoreline.data.anomaly_maps import read_pictures

        pictures = read_pictures(images, list(dict.fromkeys(exhibit.image for exhibit in exhibits)))
    written = write_anomaly_report(results, curves, exhibits, out, pictures=pictures)
    return {**results, "files": [str(path) for path in written]}


def _models(
    maps: str, masks: str | None, compare_to: str | None, names: str | None, images: str | None
) -> tuple[dict[str, Any], Any]:
    """Model name -> where its maps are, and the pictures of the built-in example."""
    from pathlib import Path

    from scoreline.core.errors import InputError

    if maps == "photos":
        if masks is not None or compare_to is not None or names is not None or images is not None:
            mend = "is the built-in example, with masks and models of its own; a folder of that name is ./photos"
            raise InputError("maps", maps, mend)
        return _photos()
    if masks is None:
        raise InputError("masks", None, "give the masks behind the maps: scoreline anomaly MAPS MASKS")
    paths = [maps, *(part.strip() for part in (compare_to or "").split(",") if part.strip())]
    if names is not None:
        chosen = [part.strip() for part in names.split(",") if part.strip()]
        if len(chosen) != len(paths) or len(set(chosen)) != len(chosen):
            raise InputError("names", names, f"give {len(paths)} different names, one a model")
        return dict(zip(chosen, paths)), None
    if len(set(paths)) != len(paths):
        raise InputError("compare-to", compare_to, "names the same maps twice")
    parts = [Path(path).resolve().with_suffix("").parts for path in paths]
    # As much of the end of each path as tells them apart, and no ending that all of them share.
    while len(paths) > 1 and len({part[-1] for part in parts}) == 1 and all(len(part) > 1 for part in parts):
        parts = [part[:-1] for part in parts]
    depth = next((n for n in range(1, 64) if len({part[-n:] for part in parts}) == len(parts)), 64)
    return dict(zip(("/".join(part[-depth:]) for part in parts), paths)), None


def _photos() -> tuple[dict[str, Any], Any]:
    """Three detectors on 100 tiles of photographs, as the claim of AUPIMO has them."""
    import numpy as np

    from scoreline.claims.aupimo import anomaly_maps, photo_tiles
    from scoreline.data.anomaly_maps import AnomalySet

    tiles = photo_tiles(0)
    names = [f"tile-{i:03d}" for i in range(len(tiles.test))]
    masks = list(tiles.masks)
    sets = {arm: AnomalySet(names, list(anomaly_maps(arm, tiles)), masks, 0, 0) for arm in DEMO}
    pictures = {name: np.round(255 * image).astype(np.uint8) for name, image in zip(names, tiles.test)}
    return sets, pictures


def _bounds(text: str) -> tuple[float, float]:
    from scoreline.core.errors import InputError

    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError("fpr-bounds", text, "give two numbers, the lower one first, as 1e-5,1e-4") from None
    return low, high


def show(results: dict[str, Any]) -> None:
    from scoreline.cli.terminal import console
    from scoreline.report.anomaly_report import anomaly_table, headline

    screen = console()
    screen.print(anomaly_table(results))
    counts, (low, high) = results["counts"], results["fpr_bounds"]
    screen.print(f"{counts['normal']} normal and {counts['anomalous']} anomalous images, FPR {low:g} to {high:g}")
    screen.print(headline(results), markup=False, soft_wrap=True)
    for warning in results["warnings"]:
        screen.print(f"note: {warning}", markup=False, soft_wrap=True)
    screen.print(f"report: {results['files'][-1]}", markup=False, soft_wrap=True)
