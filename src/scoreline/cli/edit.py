"""`scoreline edit MODEL`: images filled in, coloured, made of a class, joined or encoded, beside the originals."""

from __future__ import annotations

from typing import Any, Literal

TAKES_QUIET = True
EXAMPLE = "scoreline edit digits --task inpaint --mask left-half --images 0:6 --count 6 --out edited"


def run(
    model: str,
    *,
    task: Literal["inpaint", "colourise", "classify", "interpolate", "encode"],
    data: str = "digits",
    split: str | None = None,
    images: str = "0:6",
    mask: str | None = None,
    count: int = 6,
    sampler: str | None = None,
    nfe: int | None = None,
    steps: int | None = None,
    labels: str | None = None,
    classifier: str | None = None,
    scale: float = 1.0,
    noise_seed: int = 0,
    out: str = "edited",
    batch_size: int = 250,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Edit images with an unconditional model: fill in what a mask hides, colour grey images, ask for a class by the
    gradient of a classifier, walk between two images, or encode images to latents, which `scoreline sample
    --from-latents` decodes. Run again, what is there is kept.

    Args:
        model: built-in name (see `scoreline models`) or path of a .safetensors artefact; asked without its classes.
        task: what is done; encode writes OUT/latents.safetensors and shows what they decode to.
        data: digits, a folder, a .npz, .npy or .parquet file: the images that are edited (not for classify).
        split: train, test, ...; nothing reads all.
        images: their numbers in the data, as 0:6 (0 to 5) or 3,5,8; interpolate joins them in pairs.
        mask: for inpaint, what is known: left-half, right-half, top-half, bottom-half, box:LEFT,TOP,RIGHT,BOTTOM,
            hole:LEFT,TOP,RIGHT,BOTTOM (known outside), or a PNG of the images' size, white where known.
        count: samples of each image or class; for interpolate images on the way, both ends included; encode
            has one of each.
        sampler: name, with settings as pc:snr=0.2; nothing takes pc, and for interpolate and encode rk45:rtol=1e-4.
        nfe: budget of network evaluations per sample; give this or steps; nothing takes 200.
        steps: number of noise levels, instead of nfe.
        labels: for classify the classes asked for, as 0,1,7 (nothing asks for all); else one class for all images.
        classifier: for classify: name or path of a classifier of noisy images (nothing takes digits-noisy-classifier).
        scale: for classify: factor on the classifier's gradient.
        noise_seed: seed of the noise source.
        out: folder for samples/*.png and edit.png, where all stand beside the originals.
        batch_size: samples a batch; the pictures do not depend on it.
        device: where to run; auto takes CUDA or MPS where there is one.
    """
    from scoreline.cli.compare import numbers
    from scoreline.evaluate.editing import edit

    return edit(
        out, model, task, data=data, split=split, images=numbers(images, "images"), mask=mask, count=count,
        spec=sampler, nfe=nfe, steps=steps, labels=labels, classifier=classifier, scale=scale, noise_seed=noise_seed,
        batch_size=batch_size, device=device, quiet=quiet,
    )  # fmt: skip


def show(result: dict[str, Any]) -> None:
    made, count = result["made"], result["count"]
    there = "" if made == count else ", all were there already" if made == 0 else f", {count - made} were there already"
    spent = f" ({result['nfe']:g} network evaluations each{there})" if result["nfe"] else there
    print(f"{count} pictures in {result['out']}/samples{spent}; all beside the originals: {result['picture']}")
    if result["latents"]:
        print(f"latents: {result['latents']}")
    for name, value in result["told"].items():
        print(f"{name}: {value:.3g}")
