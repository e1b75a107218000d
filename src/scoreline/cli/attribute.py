"""`scoreline attribute WORKFLOW`: what each part of an image workflow contributed to similarity."""

from __future__ import annotations

from typing import Any, Literal

TAKES_COMMAND = TAKES_QUIET = True
EXAMPLE = "scoreline attribute threes --out whose"


def run(
    workflow: str,
    out: str = "attribute",
    images: int | None = None,
    seed_sets: str | None = None,
    utility: str | None = None,
    features: str | None = None,
    bootstrap: int | None = None,
    method: Literal["auto", "exact", "permutation"] = "auto",
    samples: int | None = None,
    workers: int = 1,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Divide the similarity of a workflow's images to an artwork among its components (CopyScope), with a report.

    Args:
        workflow: name of a shipped workflow (threes), or path of a .yaml or .json file.
        out: folder for the report; run again, the same command goes on where it stopped.
        images: images a coalition, instead of the file's.
        seed_sets: seeds, separated by commas or as a range 0:3; each makes all coalitions once, for the error bars.
        utility: of fd, kid, cmmd, feature-distance, separated by commas; the first is the headline.
        features: feature networks, of auto, digits, inception-2015, pixels, separated by commas.
        bootstrap: joint resamples of the images for the error bars; nothing takes 100 where there is one seed set.
        method: exact makes all coalitions, permutation those of sampled orders; auto is exact up to 12 components.
        samples: orders of the permutation method, an even number; nothing takes 200 a component.
        workers: processes that make coalitions side by side.
        device: where models run; auto takes CUDA or MPS where there is one.
    """
    from scoreline.cli.compare import numbers
    from scoreline.explain.attribute import attribute
    from scoreline.report.attribution_report import write_attribution

    def listed(text: str | None) -> list[str] | None:
        return None if text is None else [part.strip() for part in text.split(",") if part.strip()]

    results = attribute(
        workflow, out, images=images, seed_sets=None if seed_sets is None else numbers(seed_sets, "seed sets"),
        utilities=listed(utility), features=listed(features), bootstrap=bootstrap, method=method, samples=samples,
        workers=workers, device=device, command=command, quiet=quiet,
    )  # fmt: skip
    results["files"] = [str(path) for path in write_attribution(results, out)]
    return results


def show(results: dict[str, Any]) -> None:
    from scoreline.cli.terminal import console
    from scoreline.report.attribution_report import contribution_table, said

    screen = console()
    for attribution in results["attributions"]:
        screen.print(contribution_table(attribution))
    screen.print(said(results["attributions"][0]), markup=False, soft_wrap=True)
    notes = [note for attribution in results["attributions"] for note in attribution["warnings"]]
    for note in dict.fromkeys(notes):
        screen.print(f"note: {note}", markup=False, soft_wrap=True)
    screen.print(results["attributions"][0]["meaning"], markup=False, soft_wrap=True)
    report = next(path for path in results["files"] if path.endswith("report.html"))
    screen.print(f"report: {report}", markup=False, soft_wrap=True)
