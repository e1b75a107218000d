"""Checkpoints of others as models of ours: EDM's pickles, OpenAI's consistency models and guided diffusion.

The files are read without running anything in them (`bridges/unpickling.py`); what they hold is numbers and the
arguments of constructors. The numbers go into our U-Net by name, every tensor to its place and none left over; channels
of queries, keys and values are put into our order. The result is a .safetensors file with its card.

Layouts:
    edm                  Karras et al. 2022: SongUNet (DDPM++, NCSN++) or DhariwalUNet (ADM) in the EDM, VP, VE or
                         iDDPM preconditioning
    consistency          Song et al. 2023: ADM in the scalings of a consistency function
    consistency-teacher  the EDM model beside it
    guided-diffusion     Dhariwal and Nichol 2021: ADM that predicts noise and a variance on a table of betas
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scoreline.bridges.edm_checkpoints import of_edm
from scoreline.bridges.openai_checkpoints import of_openai
from scoreline.bridges.unpickling import Record, read_checkpoint
from scoreline.core.artefact import save_artefact
from scoreline.core.errors import ArtefactError, InputError, unknown_name

__all__ = ["LAYOUTS", "convert"]

LAYOUTS = ("edm", "consistency", "consistency-teacher", "guided-diffusion")


def convert(
    path: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    layout: str | None = None,
    size: int | None = None,
    head_channels: int = 64,
    betas: str = "linear",
) -> dict[str, Any]:
    """Write a checkpoint of others as a model of ours.

    Args:
        path: a .pkl of EDM or a .pt of OpenAI.
        to: the .safetensors file to write.
        layout: one of :data:`LAYOUTS`; None looks at the file, as far as it tells.
        size: side of the images; needed for .pt files.
        head_channels: channels of an attention head in .pt files.
        betas: the table of a guided-diffusion model, "linear" or "cosine".

    Returns:
        What was written: file, fingerprint, shape, classes, parameters, and the card.

    Raises:
        ArtefactError: the file is missing, truncated or hostile, or its tensors do not fit.
        InputError: an unknown layout, or one that the file is not of.
    """
    source, target = Path(path), Path(to)
    if target.suffix != ".safetensors":
        raise InputError("to", str(to), "must end in .safetensors")
    if layout is not None and layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if size is not None and size < 1:
        raise InputError("size", size, "must be a positive number of pixels")
    value = read_checkpoint(source)
    layout = layout or _guess(value, str(path))
    if layout == "edm":
        model, card = of_edm(value, str(path))
    else:
        model, card = of_openai(value, str(path), layout, size, head_channels, betas)
    card = {"converted_from": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest(), **card}
    with torch.no_grad():
        mark = save_artefact(target, model.eval(), card=card)
    return {
        "file": str(target), "fingerprint": mark, "shape": list(model.shape), "num_classes": model.num_classes,
        "parameters": sum(p.numel() for p in model.parameters()), **card,
    }  # fmt: skip


def _guess(value: Any, name: str) -> str:
    """The layout of a file, where the file tells."""
    if isinstance(value, Record) or (isinstance(value, Mapping) and isinstance(value.get("ema"), Record)):
        return "edm"
    if isinstance(value, Mapping) and "time_embed.0.weight" in value:
        if value["out.2.weight"].shape[0] != value["input_blocks.0.0.weight"].shape[1]:
            return "guided-diffusion"
        mend = "consistency models and their teachers look alike; say --from consistency or consistency-teacher"
        raise InputError("layout", None, mend)
    raise ArtefactError("checkpoint", name, f"is of no known layout; known: {', '.join(LAYOUTS)}")
