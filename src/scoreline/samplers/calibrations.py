"""Where the calibrations of a model lie, and how they are found.

Some samplers need something estimated on the model beforehand (DPM-Solver-v3's statistics, the level predictor of
denoising MCMC). Each such thing is an artefact of kind "calibration" that belongs to one model: its file is named by
its own short name and by the fingerprint of that model. Those of the shipped models come with the package; others lie
in the cache folder, where `scoreline calibrate` puts them.

The class of a calibration is a module with a classmethod
    calibrate(denoiser, images, *, samples, batch_size, seed, folder, advance, ...settings) -> Self
which goes on in `folder` where it was stopped, and calls `advance(n, text)` with n that add up to `samples`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoreline.core.artefact import describe, fingerprint, load_artefact, read_header, save_artefact
from scoreline.core.denoiser import Denoiser, View
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.files import cache_folder
from scoreline.core.names import lookup
from scoreline.diffusion.latent import Latent

__all__ = ["SHIPPED", "calibration_path", "find", "fingerprint_of", "open_calibration", "plain_model", "save"]

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "calibrations"


def plain_model(denoiser: Denoiser) -> Denoiser:
    """The model inside its views: guidance, thresholding and other coordinates keep the inner one's calibrations."""
    while isinstance(denoiser, View) and not isinstance(denoiser, Latent):
        denoiser = denoiser.inner
    return denoiser


def fingerprint_of(denoiser: Denoiser) -> str:
    """The mark by which a model's calibrations are known, hex, 64 characters.

    A loaded model has one in its header; any other is known by its description (its class and schedule where it has
    none) and its weights. Views have the inner model's.
    """
    model = plain_model(denoiser)
    header = getattr(model, "header", None)
    if header is not None:
        return str(header["fingerprint"])
    try:
        description = describe(model)
    except InputError:
        description = {"class": type(model).__name__, "schedule": describe(model.schedule)}
    return fingerprint(description, model.state_dict())


def calibration_path(name: str, denoiser: Denoiser, folder: str | os.PathLike[str] | None = None) -> Path:
    """The file of a model's calibration in `folder`; None takes the cache folder."""
    lookup("calibration", name)
    place = Path(folder) if folder is not None else cache_folder() / "calibrations"
    return place / f"{name}-{fingerprint_of(denoiser)[:16]}.safetensors"


def find(name: str, denoiser: Denoiser, path: str | os.PathLike[str] | None = None) -> Any:
    """The calibration of a model.

    Args:
        name: short name of the calibration, as "dpm-solver-v3".
        denoiser: the model, or a view of it.
        path: a file; None looks among those that were made here, then among those of the package.

    Returns:
        The object, in eval mode; the same one for every call, not to be changed.

    Raises:
        InputError: there is none for this model, or the file holds another model's; the mend names the command.
        ArtefactError: the file is missing, damaged or something else.
    """
    if path is not None:
        return open_calibration(name, denoiser, path)
    for folder in (None, SHIPPED):
        file = calibration_path(name, denoiser, folder)
        if file.is_file():
            return open_calibration(name, denoiser, file)
    raise InputError(name, None, f"nothing was estimated on this model yet; run {_command(name)}")


def open_calibration(name: str, denoiser: Denoiser, path: str | os.PathLike[str]) -> Any:
    """The calibration in a file, refused unless it is of this kind and belongs to the model; see :func:`find`."""
    header = read_header(path)
    if (header["kind"], header["name"]) != ("calibration", name):
        raise ArtefactError("calibration", str(path), f"holds {header['kind']} {header['name']}, not {name}")
    mark = fingerprint_of(denoiser)
    if header.get("belongs_to") != mark:
        mend = f"was made for another model; make one for this model with {_command(name)}"
        raise InputError("calibration", str(path), mend)
    stat = os.stat(path)
    return _load(str(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=16)
def _load(path: str, mtime: int, size: int) -> Any:
    # A sampler asks anew for every batch; the time and size stand for the content.
    return load_artefact(path, kind="calibration")[0]


def save(
    name: str,
    denoiser: Denoiser,
    calibration: nn.Module,
    *,
    card: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the calibration of a model where :func:`find` looks for it, or to a file of one's own.

    Args:
        name: short name of the calibration.
        denoiser: the model it was made on, or a view of it.
        calibration: of the class that the table of names has for it.
        card: what a reader should know: the command, the data, how many samples.
        out: file ending in .safetensors; None takes the cache folder.

    Returns:
        The file.

    Raises:
        InputError: a calibration of another class, or a path that is no .safetensors file.
    """
    if not isinstance(calibration, lookup("calibration", name)):
        raise InputError("calibration", type(calibration).__name__, f"is none of {name}")
    path = Path(out) if out is not None else calibration_path(name, denoiser)
    save_artefact(path, calibration, card=card, belongs_to=fingerprint_of(denoiser), dtype=dtype)
    return path


def _command(name: str) -> str:
    return f"`scoreline calibrate MODEL --for {name}`"
