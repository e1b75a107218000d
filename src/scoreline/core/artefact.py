"""Artefacts: single .safetensors files whose header says, as JSON, what they are.

The header names a class by (kind, short name) from the table in `scoreline.core.names`, with its constructor arguments;
no class path is ever taken from a file and nothing is unpickled.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import scoreline
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.files import atomic_path
from scoreline.core.names import TABLE, kind_and_name, lookup

__all__ = ["build", "describe", "fingerprint", "load_artefact", "read_header", "recorded", "save_artefact"]

C = TypeVar("C", bound=type)
FORMAT = "scoreline/1"


def recorded(cls: C) -> C:
    """Class decorator: remember the constructor's arguments, so that the object can be described in a header."""
    original = getattr(cls, "__init__")  # noqa: B009 (mypy warns of instances' __init__)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is cls:
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError as error:
                raise _signature_error(cls, signature, kwargs, error) from None
            bound.apply_defaults()
            object.__setattr__(self, "_arguments", dict(list(bound.arguments.items())[1:]))
        original(self, *args, **kwargs)

    setattr(cls, "__init__", init)  # noqa: B010
    return cls


def _signature_error(cls: type, signature: inspect.Signature, given: Mapping[str, Any], error: TypeError) -> Exception:
    known = [name for name in signature.parameters if name != "self"]
    from scoreline.core.errors import unknown_name

    for name in given:
        if name not in known:
            return unknown_name(f"argument of {cls.__name__}", name, known)
    return InputError(cls.__name__, None, str(error))


def describe(obj: Any) -> dict[str, Any]:
    """The JSON description {kind, name, args} from which `build` makes the object again.

    Raises:
        InputError: the class is not in the table of names or was not recorded.
    """
    kind, name = kind_and_name(type(obj))
    if not hasattr(obj, "_arguments"):
        raise InputError("class", type(obj).__name__, "its constructor arguments were not recorded")
    return {"kind": kind, "name": name, "args": {key: _plain(value) for key, value in obj._arguments.items()}}


def _plain(value: Any) -> Any:
    if hasattr(value, "_arguments"):
        return describe(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON knows no infinity
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError("argument", type(value).__name__, "only plain values and recorded objects fit into a header")


def build(description: Mapping[str, Any]) -> Any:
    """The object that a description stands for.

    Raises:
        InputError: an unknown kind, name or argument.
    """
    if not isinstance(description, Mapping) or not {"kind", "name", "args"} <= description.keys():
        raise ArtefactError("description", description, "needs kind, name and args")
    cls = lookup(description["kind"], description["name"])
    return cls(**{key: _unplain(value) for key, value in description["args"].items()})


def _unplain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if {"kind", "name", "args"} <= value.keys() and value["kind"] in TABLE:
            return build(value)
        if value.keys() == {"float"}:
            return float(value["float"])
        return {k: _unplain(v) for k, v in value.items()}
    return [_unplain(v) for v in value] if isinstance(value, list) else value


def fingerprint(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a description and the bytes of all tensors, in the order of their names; hex, 64 characters."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def save_artefact(
    path: str | os.PathLike[str],
    obj: nn.Module,
    *,
    card: Mapping[str, Any] | None = None,
    belongs_to: str | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write a module with its description; the file appears whole or not at all.

    Args:
        path: target, ending in .safetensors.
        obj: a module whose class stands in the table of names.
        card: what a reader should know: command, data, score, licence.
        belongs_to: fingerprint of the model that a calibration or delta is for.
        dtype: store floating-point tensors in this type (float16 halves the file); None keeps theirs.

    Returns:
        The fingerprint of what was written.
    """
    from safetensors.torch import save_file

    target = Path(path)
    if target.suffix != ".safetensors":
        raise InputError("artefact path", str(path), "must end in .safetensors")
    tensors = {k: v.detach().cpu().contiguous() for k, v in obj.state_dict().items()}
    if dtype is not None:
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    description = describe(obj)
    mark = fingerprint(description, tensors)
    header = {
        "format": FORMAT,
        "version": scoreline.__version__,
        **description,
        "fingerprint": mark,
        "belongs_to": belongs_to,
        "card": dict(card or {}),
    }
    with atomic_path(target) as temporary:
        # Cloned so that tensors that share memory are stored each on its own.
        save_file({k: v.clone() for k, v in tensors.items()}, temporary, {"scoreline": json.dumps(header)})
    return mark


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of an artefact, without its tensors.

    Raises:
        ArtefactError: the file is missing, truncated, no safetensors file, or was not written by scoreline.
    """
    from safetensors import SafetensorError, safe_open

    target = Path(path)
    if not target.is_file():
        raise ArtefactError("artefact", str(path), "no such file")
    try:
        with safe_open(target, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError("artefact", str(path), f"not a readable safetensors file ({error})") from None
    try:
        header = json.loads(metadata["scoreline"])
        whole = {"format", "kind", "name", "args", "fingerprint"} <= header.keys() and isinstance(header["args"], dict)
        if not whole or not isinstance(header["kind"], str) or not isinstance(header["name"], str):
            raise ValueError("fields are missing")
    except (KeyError, ValueError, AttributeError, TypeError):
        raise ArtefactError("artefact", str(path), "holds no scoreline header; was it written by scoreline?") from None
    if header.get("format") != FORMAT:
        raise ArtefactError("artefact", str(path), f"has format {header.get('format')!r}, not {FORMAT!r}")
    return header


def load_artefact(
    path: str | os.PathLike[str], *, kind: str | None = None, belongs_to: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """Read an artefact whole: every tensor must fit, none may be missing.

    Args:
        path: the file.
        kind: refuse anything that is not of this kind.
        belongs_to: refuse a calibration or delta of another model than the one with this fingerprint.

    Returns:
        (object in eval mode with float32 weights, header).

    Raises:
        ArtefactError: see `read_header`; or the kind, owner, tensors or fingerprint do not match.
    """
    from safetensors.torch import load_file

    header = read_header(path)
    if kind is not None and header["kind"] != kind:
        raise ArtefactError("artefact", str(path), f"its kind is {header['kind']} ({header['name']}), not a {kind}")
    if belongs_to is not None and header.get("belongs_to") != belongs_to:
        raise ArtefactError("artefact", str(path), "was made for another model; make one for this model")
    tensors = load_file(path)
    description = {key: header[key] for key in ("kind", "name", "args")}
    if fingerprint(description, tensors) != header["fingerprint"]:
        raise ArtefactError("artefact", str(path), "its content does not match its fingerprint; fetch or make it again")
    obj = build(description)
    state = {k: v.float() if v.is_floating_point() and v.dtype != torch.float64 else v for k, v in tensors.items()}
    expected = obj.state_dict()
    wrong = sorted(state.keys() ^ expected.keys()) or [k for k in state if state[k].shape != expected[k].shape]
    if wrong:
        raise ArtefactError("artefact", str(path), f"tensor {wrong[0]!r} does not fit the network of its header")
    obj.load_state_dict(state)
    return obj.eval(), header
