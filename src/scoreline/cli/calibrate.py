"""`scoreline calibrate MODEL --for NAME`: estimate once what a sampler wants to know of a model."""

from __future__ import annotations

from typing import Any, Literal

TAKES_QUIET = TAKES_COMMAND = True
EXAMPLE = "scoreline calibrate digits --for dpm-solver-v3 --samples 1024 --nodes 120"


def run(
    model: str,
    /,
    *,
    for_: str,
    data: str | None = None,
    split: str | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    nodes: int | None = None,
    diagonal: Literal["probe", "exact"] | None = None,
    levels: int | None = None,
    seed: int = 0,
    out: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Estimate once what a sampler wants to know of a model beforehand; the sampler then finds it. A stopped run goes
    on when the same command is given again.

    Args:
        model: built-in name (see `scoreline models`) or path of a .safetensors artefact.
        for_: the sampler, dpm-solver-v3 or denoising-mcmc.
        data: clean images, as for `scoreline data`, or samples for images that the model makes itself; nothing takes
            the data set in the model's card.
        split: of the data set; nothing takes that of the card, or of digits the training split.
        samples: how many noised images; nothing takes the method's own number (dpm-solver-v3: 1024 a level).
        batch_size: images a batch; nothing takes the method's own.
        nodes: dpm-solver-v3, intervals between the levels at which the model is asked; nothing takes 120.
        diagonal: dpm-solver-v3, derivatives by random probes or one by one; nothing takes probe.
        levels: denoising-mcmc, entries of the table of levels.
        seed: of noise and probes.
        out: a file of your own, ending in .safetensors; nothing puts it where the sampler looks for it.
        device: where to run; auto takes CUDA or MPS where there is one.
    """
    from scoreline.evaluate.calibration import calibrate

    own = {"nodes": nodes, "diagonal": diagonal, "levels": levels}
    return calibrate(
        model, for_, data=data, split=split, samples=samples, batch_size=batch_size, seed=seed,
        settings={key: value for key, value in own.items() if value is not None}, out=out, device=device,
        command=command, quiet=quiet,
    )  # fmt: skip


def show(result: dict[str, Any]) -> None:
    if result["found"]:
        print(result["found"])
    print(f"stored in {result['file']}")
    use = f"{result['for']}:statistics={result['file']}" if result["given_out"] else result["for"]
    if not result["given_out"] or result["for"] == "dpm-solver-v3":
        print(f"use it: scoreline compare {result['name']} --samplers {use} --nfe 5,10,20")
