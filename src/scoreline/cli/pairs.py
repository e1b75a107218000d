"""`scoreline pairs MODEL`: pairs of noise and image, the training data of reflow and regression."""

from __future__ import annotations

from typing import Any, Literal

TAKES_QUIET = True
EXAMPLE = "scoreline pairs digits --count 20000 --nfe 35 --out pairs --processes 2"


def run(
    model: str,
    count: int = 20000,
    out: str = "pairs",
    sampler: str = "heun",
    nfe: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    labels: str | None = None,
    guidance: float | None = None,
    clip: bool = False,
    noise: Literal["stored", "seed"] = "stored",
    dtype: Literal["float32", "uint8"] = "float32",
    flips: bool = False,
    shard_size: int = 5000,
    batch_size: int = 250,
    processes: int = 1,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Store pairs (z, x): z standard normal, x where the teacher's ODE takes it. Run again, what is there is kept.

    Args:
        model: built-in name (see `scoreline models`) or path of the teacher.
        count: pairs in all.
        out: folder of the store.
        sampler: a deterministic one, with settings as rk45:rtol=1e-5.
        nfe: budget of network evaluations per pair; nothing takes 35.
        steps: number of noise levels, instead of nfe.
        seed: seed of the noise; pair i is the same in any run.
        labels: classes to ask for, as 0,1,7; none for no class; nothing for all in turn.
        guidance: strength s of classifier-free guidance; it doubles the evaluations.
        clip: keep the predicted clean image in [-1, 1].
        noise: keep the noise, or the seed alone, from which it is made again when read.
        dtype: how images are stored; uint8 takes a quarter of the space and clamps them.
        flips: readers see half of the batches in the mirror, noise and image together.
        shard_size: pairs a file.
        batch_size: pairs a batch.
        processes: processes that make shards at once; the bytes are the same.
        device: where to run; auto takes CUDA or MPS where there is one.
    """
    from scoreline.evaluate.pairs import plan_pairs, write_pairs

    plan = plan_pairs(
        model, count=count, sampler=sampler, nfe=nfe, steps=steps, seed=seed, labels=labels, guidance=guidance,
        clip=clip, noise=noise, dtype=dtype, flips=flips, shard_size=shard_size, batch_size=batch_size, device=device,
    )  # fmt: skip
    return write_pairs(out, plan, processes=processes, quiet=quiet)


def show(result: dict[str, Any]) -> None:
    count, made = result["count"], result["made"]
    there = "" if made == count else ", all were there already" if made == 0 else f", {count - made} were there already"
    print(f"{count} pairs in {result['out']} ({result['nfe']:g} network evaluations each{there})")
