"""`scoreline translate MODEL --source FOLDER --out FOLDER`: a folder in, a folder out, and a table of scores."""

from __future__ import annotations

from typing import Any, Literal

EXAMPLE = "scoreline translate translator/model.safetensors --source s1 --target s2 --steps 1,4 --out made"


def run(
    model: str,
    *,
    source: str,
    out: str = "translated",
    target: str | None = None,
    steps: str | None = None,
    sampler: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> dict[str, Any]:
    """Make an image from each picture of a folder, under the same name.

    Args:
        model: built-in name or path of a model that is told an image, such as `scoreline distill sar-to-optical` makes.
        source: folder of the pictures it is told.
        out: folder of the pictures it makes.
        target: folder of true pictures under the same names, for PSNR, SSIM, Frechet distance and colour shift.
        steps: step counts, as 4 or 1,2,4; several go to a subfolder each; nothing takes the model's first.
        sampler: name with settings; nothing takes a student's own, else heun.
        seed: of the noise.
        batch_size: pictures a batch.
        device: where to run; auto takes CUDA or MPS where there is one.
    """
    from scoreline.cli.compare import numbers
    from scoreline.evaluate.translation import translate_folder

    return translate_folder(
        model, source, out, target=target, sampler=sampler, steps=None if steps is None else numbers(steps, "steps"),
        seed=seed, batch_size=batch_size, device=device,
    )  # fmt: skip


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from scoreline.report.numbers import human_number

    print(f"{result['count']} pictures in {result['out']}")
    table = Table(box=None, pad_edge=False)
    for name in result["rows"][0]:
        table.add_column(name, justify="left" if name == "sampler" else "right")
    for row in result["rows"]:
        table.add_row(*(value if isinstance(value, str) else human_number(value) for value in row.values()))
    Console().print(table)
