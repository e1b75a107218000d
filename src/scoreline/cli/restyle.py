"""`scoreline restyle MODEL --encoder ENCODER`: pictures to noise under one class, back under another."""

from __future__ import annotations

from typing import Any, Literal

EXAMPLE = "scoreline restyle digits --encoder digits --images 0:6 --labels 3,8 --steps 32 --out restyled"


def run(
    model: str,
    *,
    encoder: str,
    data: str = "digits",
    split: str | None = None,
    images: str = "0:6",
    labels: str | None = None,
    source_weight: float = 0.0,
    target_weight: float | None = None,
    steps: int | None = None,
    out: str = "restyled",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> dict[str, Any]:
    """Encode labelled pictures to their noise and decode it as other classes, each way with a strength of its own.

    Args:
        model: built-in name or path of the conditional model or student that decodes.
        encoder: built-in name or path of what encodes: a student of the way up, such as `scoreline distill
            guided-distillation-encode` makes, or any conditional model in many steps.
        data: digits, a folder, a .npz, .npy or .parquet file, with labels.
        split: train, test, ...; nothing reads all.
        images: their numbers in the data, as 0:6 (0 to 5) or 3,5,8.
        labels: classes to decode as, as 3,8; nothing takes all.
        source_weight: guidance weight w of the encoding, for a student that takes one; 0 is unguided.
        target_weight: guidance weight w of the decoding; nothing takes the student's own.
        steps: steps each way; nothing takes those that the student was made for.
        out: folder for restyled.png and samples/*.png.
        device: where to run; auto takes CUDA or MPS where there is one.
    """
    from scoreline.cli.compare import numbers
    from scoreline.fewstep.restyling import restyle_to

    return restyle_to(
        out, model, encoder, data=data, split=split, images=numbers(images, "images"), labels=labels,
        source_weight=source_weight, target_weight=target_weight, steps=steps, device=device,
    )  # fmt: skip


def show(result: dict[str, Any]) -> None:
    print(f"{result['count']} pictures in {result['out']}/samples ({result['steps']} steps each way)")
    print(f"all beside the originals: {result['picture']}")
