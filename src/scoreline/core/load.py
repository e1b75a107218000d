"""`load`: a model by its built-in name or its path; no source is guessed."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from scoreline.core.artefact import load_artefact, read_header
from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.core.names import TABLE, lookup

__all__ = ["load", "looks_like_path", "model_path", "shipped_models"]

_MODELS = Path(__file__).resolve().parent.parent / "models"


def shipped_models() -> dict[str, Path]:
    """Built-in models: short name -> file."""
    return {name: _MODELS / file for name, file in sorted(TABLE["model"].items())}


def looks_like_path(name: str) -> bool:
    """Whether a name is meant as a path: it has a separator, a suffix, or starts with . or ~."""
    return "/" in name or os.sep in name or name.startswith((".", "~")) or Path(name).suffix in {".safetensors", ".pt"}


def model_path(name: str) -> Path:
    """The file behind a built-in name or a path.

    Raises:
        InputError: an unknown name; the nearest known one is suggested.
    """
    models = shipped_models()
    if name in models:
        return models[name]
    if name.startswith("hf:"):
        raise InputError("model", name, "hub models cannot be loaded by this version; give a built-in name or a path")
    if looks_like_path(name):
        return Path(name).expanduser()
    if (Path(name) / "model_index.json").is_file():
        raise InputError("model", name, f"a folder is given as a path: ./{name}")
    error = unknown_name("model", name, models)
    raise InputError("model", name, f"{error.mend}; a file is given as a path, e.g. ./{name}.safetensors")


def load(name: str | os.PathLike[str], *, kind: str | None = "denoiser") -> Any:
    """A model, ready to use: eval mode, float32, on CPU.

    Args:
        name: a built-in name (`scoreline models` lists them), the path of an artefact, or that of a pipeline folder of
            diffusers.
        kind: what must be inside; None takes anything.

    Returns:
        The object, with its file's header as attribute `header`.

    Raises:
        InputError: the name is unknown.
        ArtefactError: the file is missing, damaged or of another kind.
    """
    path = model_path(os.fspath(name))
    if path.is_dir():
        return _load_folder(path, kind)
    obj, header = load_artefact(path, kind=kind)
    object.__setattr__(obj, "header", header)
    return obj


def _load_folder(path: Path, kind: str | None) -> Any:
    """A folder in a format of others; the table says who reads it, so that core imports none of them."""
    if not (path / "model_index.json").is_file():
        raise ArtefactError("folder", str(path), "holds no model_index.json; only pipelines of diffusers are folders")
    if kind not in (None, "denoiser"):
        raise ArtefactError("folder", str(path), f"is a pipeline, that is a denoiser, not a {kind}")
    return lookup("bridge", "diffusers-pipeline")(path)


@functools.cache
def model_cards() -> dict[str, dict[str, Any]]:
    """Headers of the built-in models by name; a missing file is left out."""
    return {name: read_header(path) for name, path in shipped_models().items() if path.is_file()}
