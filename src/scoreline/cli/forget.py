"""`scoreline forget MODEL --classes 0 --override 1`: a one-step generator that no longer makes some classes, or what a
word in captions names."""

from __future__ import annotations

from typing import Any, Literal

TAKES_COMMAND = TAKES_QUIET = True
EXAMPLE = "scoreline forget digits --classes 0 --override 1 --out forgotten"


def run(
    model: str,
    *,
    classes: str | None = None,
    concept: str | None = None,
    override: str = "random",
    out: str | None = None,
    preset: Literal["digits", "cifar10", "stl10"] = "digits",
    weight: float | None = None,
    distil_steps: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    judge: str | None = None,
    data: str | None = None,
    features: str = "auto",
    sampler: str | None = None,
    nfe: int | None = None,
    count: int = 2000,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    dtype: Literal["float32", "bf16"] = "float32",
    accumulate: int = 1,
    checkpoint_every: int = 500,
    sample_every: int | None = None,
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Make a model forget classes without any data, as a generator of one step, and measure what it kept. The same
    command again goes on from the last checkpoint.

    Args:
        model: class-conditional, or one that reads captions; built-in name or path.
        classes: what to forget, as 0 or 0,3.
        concept: what to forget of a model that reads captions: a word or several that captions name, as zero.
        override: what requests for them shall give: a class, or one for each, as 1 or 1,2; random draws from the kept
            classes; argmax and sampled ask the judge what comes closest. For a concept, other words in its place, as
            one.
        out: folder of the run; nothing takes runs/forget.
        preset: settings to start from; digits takes minutes on a laptop, the others a GPU.
        weight: of the forgotten requests in both losses, the knob between forgetting and keeping; nothing takes the
            preset's, 0.01.
        distil_steps: steps in which the model is first distilled without forgetting.
        steps: training steps instead of the preset's.
        batch_size: images a step, instead of the preset's.
        lr: learning rate of the generator instead of the preset's.
        seed: seed instead of the preset's.
        judge: classifier that says what images show, built-in name or path; nothing takes the one of digits.
        data: real images of the kept classes; nothing takes the data set in the model's card.
        features: feature network of the Frechet distance.
        sampler: of the model before; nothing takes its own, or heun.
        nfe: network evaluations an image, before; nothing takes 35.
        count: images of each model that are judged.
        device: where to run; auto takes CUDA or MPS where there is one.
        dtype: precision of the training.
        accumulate: parts into which a batch is cut, to save memory.
        checkpoint_every: steps between checkpoints.
        sample_every: steps between sample grids; nothing draws none.
    """
    from scoreline.core.errors import InputError
    from scoreline.fewstep.forget import forget
    from scoreline.report.forgetting_report import write_forgetting_report

    changes = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
    folder = out or "runs/forget"
    if (classes is None) == (concept is None):
        raise InputError("classes", classes, "give --classes 0, or --concept zero of a model that reads captions")
    if concept is not None and override == "random":
        raise InputError("override", override, "give the words that shall stand in the concept's place")
    gone: list[int] | str = concept if concept is not None else _numbers(str(classes), "classes")
    result = forget(
        model, gone, override if concept is not None else _override(override), folder, preset=preset, weight=weight,
        distil_steps=distil_steps, changes={key: value for key, value in changes.items() if value is not None},
        judge=judge, data=data, features=features, sampler=sampler, nfe=nfe, count=count, device=device,
        precision=dtype, accumulate=accumulate, checkpoint_every=checkpoint_every, sample_every=sample_every,
        command=command, quiet=quiet,
    )  # fmt: skip
    result["files"] = [str(path) for path in write_forgetting_report(result, folder)]
    return result


def _numbers(text: str, thing: str) -> list[int]:
    from scoreline.core.errors import InputError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(thing, text, "are numbers, as 0 or 0,3")
    return [int(part) for part in parts]


def _override(text: str) -> int | list[int] | str:
    if not text[:1].isdigit() and not text.startswith("-"):
        return text
    numbers = _numbers(text, "override")
    return numbers[0] if len(numbers) == 1 else numbers


def show(result: dict[str, Any]) -> None:
    from scoreline.cli.terminal import console
    from scoreline.report.forgetting_report import forgetting_table, headline

    screen = console()
    screen.print(headline(result), markup=False)
    screen.print(forgetting_table(result))
    for warning in result["warnings"]:
        screen.print(f"note: {warning}", markup=False)
    screen.print(f"student: {result['student']}", markup=False, soft_wrap=True)
    report = next(path for path in result["files"] if path.endswith("report.html"))
    screen.print(f"report: {report}", markup=False, soft_wrap=True)
