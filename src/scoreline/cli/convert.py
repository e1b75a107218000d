"""`scoreline convert FILE --to OUT.safetensors`: a checkpoint of others as a model of ours."""

from __future__ import annotations

from typing import Any, Literal

EXAMPLE = "scoreline convert edm-cifar10-32x32-cond-vp.pkl --to edm-cifar10.safetensors"


def run(
    file: str,
    *,
    to: str,
    from_: Literal["auto", "edm", "consistency", "consistency-teacher", "guided-diffusion"] = "auto",
    size: int | None = None,
    head_channels: int = 64,
    betas: Literal["linear", "cosine"] = "linear",
) -> dict[str, Any]:
    """Convert a checkpoint of EDM, OpenAI's consistency models or guided diffusion. No code in the file is run.

    Args:
        file: a .pkl of EDM or a .pt state dict of OpenAI.
        to: the .safetensors file to write.
        from_: whose file it is; auto looks at it, as far as it tells.
        size: side of the images in pixels; a .pt file does not tell.
        head_channels: channels of an attention head; a .pt file does not tell.
        betas: noise table of a guided-diffusion model; linear at 128 pixels and more, cosine at 64.
    """
    from scoreline.bridges.convert import convert

    layout = None if from_ == "auto" else from_
    return convert(file, to, layout=layout, size=size, head_channels=head_channels, betas=betas)


def show(result: dict[str, Any]) -> None:
    shape = " x ".join(map(str, result["shape"]))
    classes = f", {result['num_classes']} classes" if result["num_classes"] else ""
    count = f"{result['parameters']:,} parameters"
    print(f"{result['file']}: {result['network']} ({result['layout']}), {shape}{classes}, {count}")
    print(f"fingerprint {result['fingerprint'][:16]}; try: scoreline sample {result['file']} --sampler heun --nfe 35")
