"""`scoreline compare MODEL`: the main job."""

from __future__ import annotations

from typing import Any, Literal

TAKES_COMMAND = TAKES_QUIET = True
EXAMPLE = "scoreline compare digits --samplers heun,ddim --nfe 5,10,20 --out demo"


def numbers(text: str, thing: str) -> list[int]:
    """`5,10,20` or `0:3` as a list of whole numbers."""
    from scoreline.core.errors import InputError

    values: list[int] = []
    for part in str(text).split(","):
        low, colon, high = part.partition(":")
        try:
            values += range(int(low), int(high)) if colon else [int(low)]
        except ValueError:
            raise InputError(thing, text, "give whole numbers as 5,10,20 or a range as 0:64") from None
    if not values:
        raise InputError(thing, text, "is empty")
    return values


def run(
    model: str,
    samplers: str = "heun,ddim,dpm-solver++2m,dpm-solver++3m",
    nfe: str = "5,10,20",
    out: str = "compare",
    seeds: str = "0,1,2",
    count: int = 500,
    pairs: int = 128,
    batch_size: int = 500,
    guidance: float | None = None,
    clip: bool = False,
    labels: str | None = None,
    data: str | None = None,
    features: Literal["auto", "digits", "inception-2015", "pixels"] = "auto",
    students: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Sample one model several ways at several costs, its students beside it, score each, and write a report.

    Args:
        model: built-in name (see `scoreline models`) or path of a .safetensors artefact.
        samplers: names, separated by commas; settings follow a name as ddim:eta=1:grid=leading.
        nfe: budgets of network evaluations per image, separated by commas.
        out: folder for the report; run again, the same command goes on where it stopped.
        seeds: seeds, separated by commas or as a range 0:3; each makes one set of images, for the error bars.
        count: images a seed.
        pairs: how many of them are compared with the converged ODE, image by image.
        batch_size: images a batch.
        guidance: strength s of classifier-free guidance; 1 or nothing for none. It doubles the evaluations.
        clip: keep the predicted clean image in [-1, 1].
        labels: classes to ask for, as 0,1,7; none for no class; nothing for all in turn.
        data: reference data set; nothing takes the one in the model's card.
        features: feature network; auto takes digits for 8x8 grey images and inception-2015 elsewhere.
        students: paths of students of the model, separated by commas; each is sampled in its own way at every budget
            that it was made for, from the same noise.
        device: where to sample; auto takes CUDA or MPS where there is one.
    """
    from scoreline.core.errors import InputError
    from scoreline.evaluate.compare import compare
    from scoreline.report import write_report

    names = [name.strip() for name in samplers.split(",") if name.strip()]
    if not names:
        raise InputError("samplers", samplers, "give at least one")
    results = compare(
        model, names, numbers(nfe, "nfe"), out, seeds=numbers(seeds, "seeds"), count=count, pairs=pairs,
        batch_size=batch_size, guidance=guidance, clip=clip, labels=labels, data=data, features=features,
        students=[path.strip() for path in (students or "").split(",") if path.strip()], device=device,
        command=command, quiet=quiet,
    )  # fmt: skip
    results["files"] = [str(path) for path in write_report(results, out)]
    return results


def show(results: dict[str, Any]) -> None:
    from scoreline.cli.terminal import console
    from scoreline.report import text_table

    screen = console()
    screen.print(text_table(results))
    for warning in results["warnings"]:
        screen.print(f"note: {warning}", markup=False)
    report = next(path for path in results["files"] if path.endswith("report.html"))
    screen.print(f"report: {report}", markup=False, soft_wrap=True)
