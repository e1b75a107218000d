"""`scoreline likelihood MODEL DATA`: bits per dimension of every image."""

from __future__ import annotations

from typing import Any, Literal

TAKES_QUIET = True
EXAMPLE = "scoreline likelihood digits digits --count 50 --repeats 1 --out likelihood"


def run(
    model: str,
    data: str,
    split: str | None = None,
    count: int | None = None,
    levels: int | None = None,
    bins: Literal["paper", "centred"] = "paper",
    repeats: int = 5,
    divergence: Literal["rademacher", "gaussian", "exact"] = "rademacher",
    probes: int = 1,
    rtol: float = 1e-5,
    labels: str | None = None,
    batch_size: int = 100,
    noise_seed: int = 0,
    out: str = "likelihood",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Exact likelihood of images under a model, by its probability-flow ODE: bits per dimension of each image, their
    mean and an interval. Run again, the same command goes on where it stopped.

    Args:
        model: built-in name (see `scoreline models`) or path of a .safetensors artefact.
        data: digits, a folder of pictures, or a .npy, .npz or .parquet file.
        split: part of the data set; nothing takes all, of the digits the test part.
        count: the first so many images; nothing takes all.
        levels: values that a pixel can take, 256 for 8 bits; 0 takes pixels as continuous and gives densities; nothing
            takes 17 for the digits, else 256.
        bins: where a level's bin lies; paper spreads all bins over [-1, 1], centred puts them around the values.
        repeats: dequantisations to average over, each with its own probes.
        divergence: how the divergence is taken; exact costs a backward pass a dimension.
        probes: random vectors an estimate of the divergence.
        rtol: tolerance of the integration.
        labels: none asks a class-conditional model without a class; nothing with each image's own.
        batch_size: images a batch.
        noise_seed: seed of dequantisation and probes.
        out: folder for likelihood.json and likelihood.csv.
        device: where to run; auto takes CUDA where there is one. MPS has no float64, which this needs.
    """
    from scoreline.evaluate.likelihood import likelihood

    return likelihood(
        model, data, out, split=split, count=count, levels=levels, bins=bins, repeats=repeats, divergence=divergence,
        probes=probes, rtol=rtol, labels=labels, batch_size=batch_size, noise_seed=noise_seed, device=device,
        quiet=quiet,
    )  # fmt: skip


def show(result: dict[str, Any]) -> None:
    settings, count = result["settings"], result["dataset"]["count"]
    levels = settings["levels"]
    spread = "" if result["low"] is None else f"  [{result['low']:.3f}, {result['high']:.3f}]"
    unit = "bits per dimension" if levels else "bits per dimension of the density (may be negative)"
    print(f"{result['bits_per_dim']:.3f}{spread} {unit}, mean over {count} images")
    if levels:
        times = "once" if settings["repeats"] == 1 else f"{settings['repeats']} times"
        print(f"pixels of {levels} levels, dequantised {times}: offset {result['offset']:+.3f} bits, included")
    print(f"log p = {result['nats']:.2f} nats over {result['dims']} dimensions; {settings['divergence']} divergence")
    print(f"{result['nfe']:.0f} network evaluations an image (most {result['nfe_max']}), each with its gradient")
    print(f"each image: {result['files'][1]}")
