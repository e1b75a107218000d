"""`scoreline sample MODEL`: images, as PNGs in folders of a thousand or as one .npz."""

from __future__ import annotations

from typing import Any, Literal

TAKES_QUIET = True
EXAMPLE = "scoreline sample digits --sampler heun --nfe 9 --seeds 0:64 --out images"


def run(
    model: str,
    sampler: str | None = None,
    nfe: int | None = None,
    steps: int | None = None,
    seeds: str | None = None,
    noise_seed: int = 0,
    out: str = "images",
    labels: str | None = None,
    text: str | None = None,
    from_latents: str | None = None,
    guidance: float | None = None,
    guidance_weight: float | None = None,
    clip: bool = False,
    batch_size: int = 250,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    dtype: Literal["float32", "float64"] = "float32",
    quiet: bool = False,
) -> dict[str, Any]:
    """Make images of a model; image i is the same picture in any batch. Run again, what is there is kept.

    Args:
        model: built-in name (see `scoreline models`) or path of a .safetensors artefact.
        sampler: name, with settings as ddim:eta=1:grid=leading; nothing takes a student's own sampler, else heun.
        nfe: budget of network evaluations per image; give this or steps; nothing takes the first step count that a
            student was made for, else 35; adaptive samplers (rk45:rtol=1e-5) take neither.
        steps: number of noise levels, instead of nfe.
        seeds: image numbers, as 0:64 (0 to 63) or 3,5,8; nothing takes 0:64, or all latents.
        noise_seed: seed of the noise source that the numbers index.
        out: folder for PNGs named by number in folders of a thousand, or a file ending in .npz (arr_0, uint8 NHWC).
        labels: classes to ask for, as 0,1,7; none for no class; nothing for all in turn.
        text: caption to make images of, for models that take text; several with | between them are taken in turn; none
            for no caption.
        from_latents: file of latents to decode instead of noise, from `scoreline edit MODEL --task encode`; seeds count
            its rows, and nothing for labels takes the class that they were encoded with.
        guidance: strength s of classifier-free guidance; it doubles the evaluations.
        guidance_weight: strength w that a guidance-distilled student takes as an input, w = s - 1 and 0 unguided;
            nothing takes the student's own. Other models refuse it, and such students refuse guidance.
        clip: keep the predicted clean image in [-1, 1].
        batch_size: images a batch; the pictures do not depend on it.
        device: where to run; auto takes CUDA or MPS where there is one.
        dtype: precision of the sampler's state.
    """
    from scoreline.cli.compare import numbers
    from scoreline.evaluate.sampling import sample_to

    return sample_to(
        out, model, sampler, None if seeds is None else numbers(seeds, "seeds"), nfe=nfe, steps=steps,
        noise_seed=noise_seed, labels=labels, text=text, latents=from_latents, guidance=guidance,
        guidance_weight=guidance_weight, clip=clip, batch_size=batch_size, device=device, dtype=dtype, quiet=quiet,
    )  # fmt: skip


def show(result: dict[str, Any]) -> None:
    count, made = result["count"], result["made"]
    there = "" if made == count else "all were there already" if made == 0 else f"{count - made} were there already"
    spent = f"{result['nfe']:g} network evaluations each" if made else ""
    told = "" if result["guidance_weight"] is None else f"guidance weight {result['guidance_weight']:g}"
    print(f"{count} images in {result['out']} ({', '.join(part for part in (spent, told, there) if part)})")
