"""Reading pickled checkpoints without running them: tensors, plain containers and constructor arguments come out.

A pickle is a program; the ordinary reader carries out whatever it names. Here every name is looked up in a closed list
of harmless stand-ins: tensors are put together by our own functions, classes of networks become inert records of
their state, and anything else ends the reading before it is called. EDM's pickles carry the Python source of their
classes beside the state (the persistent classes of NVIDIA's code); that source is read over as text and dropped.

Files of `torch.save` go through torch's own reader with `weights_only=True`.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.core.errors import ArtefactError

__all__ = ["Record", "read_checkpoint", "read_pickle", "tensors_of"]

# What torch.save wrote first before it wrote zip files.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Record:
    """An object of a class that is not ours to make: where it came from, its arguments, its state.

    Attributes:
        origin: name of the class.
        args: what it was called with.
        state: its attributes.
    """

    origin: str = ""

    def __new__(cls, *args: Any, **keywords: Any) -> Record:
        made = super().__new__(cls)
        made.__dict__["args"], made.__dict__["state"] = args, {}
        return made

    def __init__(self, *args: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state if isinstance(state, Mapping) else {"": state}

    def __hash__(self) -> int:
        return id(self)

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of its constructor, as persistent classes store them."""
        return dict(self.__dict__["state"].get("_init_kwargs") or {})


class _Dict(dict):
    """A dictionary with attributes (EasyDict), without them."""

    def __setstate__(self, state: Any) -> None:
        pass


def _persistent(meta: Any) -> Record:
    """A persistent object without its class: the embedded source in `meta` is not looked at."""
    if not isinstance(meta, Mapping) or not isinstance(meta.get("class_name"), str):
        raise pickle.UnpicklingError("a persistent object without a class name")
    made = _record(meta["class_name"])()
    made.__setstate__(meta.get("state") or {})
    return made


def _record(origin: str) -> type[Record]:
    return type("Record", (Record,), {"origin": origin, "__hash__": Record.__hash__})


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, *more: Any) -> Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor without a storage")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 not in size and not (
        offset >= 0
        and last < storage._untyped_storage.nbytes() // storage.dtype.itemsize
        and min(stride, default=0) >= 0
    ):
        raise pickle.UnpicklingError("a tensor that is larger than its storage")
    return torch.empty((0,), dtype=storage.dtype).set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *more: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter without a tensor")
    return data


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _reconstructed(cls: Any, base: Any, state: Any) -> Any:
    if not (isinstance(cls, type) and issubclass(cls, (Record, _Dict))):
        raise pickle.UnpicklingError("an object of no known class")
    return cls()


_TAKEN: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "collections.OrderedDict": collections.OrderedDict,
    "dnnlib.util.EasyDict": _Dict,
    "copyreg._reconstructor": _reconstructed,
    "_codecs.encode": _encoded,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.object": object,
}
# Classes of layers and arrays: kept as records, never made.
_INERT = ("torch.nn.modules.", "numpy.core.multiarray.", "numpy._core.multiarray.")
_INERT_NAMES = {"numpy.ndarray", "numpy.dtype"}
# Names that pickles of protocols below 3 use.
_PYTHON_2 = {"copy_reg": "copyreg", "__builtin__": "builtins"}


class _Reader(pickle.Unpickler):
    """An unpickler that knows the names above and no others."""

    def find_class(self, module: str, name: str) -> Any:
        module = _PYTHON_2.get(module, module)
        full = f"{module}.{name}"
        if full in _TAKEN:
            return _TAKEN[full]
        dtype = getattr(torch, name, None) if module == "torch" and "." not in name else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if full in _INERT_NAMES or (full.startswith(_INERT) and "." not in name):
            return _record(full)
        raise pickle.UnpicklingError(f"asks for {full}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refers to something outside the file")


def read_pickle(file: io.BufferedIOBase, name: str) -> Any:
    """What a pickle holds, its classes as :class:`Record`.

    Args:
        file: open for reading.
        name: shown in errors.

    Raises:
        ArtefactError: truncated, no pickle, or it asks for more than tensors and plain containers.
    """
    try:
        return _Reader(file).load()
    except RecursionError:
        raise ArtefactError("checkpoint", name, "is nested too deeply") from None
    except MemoryError:
        raise ArtefactError("checkpoint", name, "is damaged: it names a size that cannot be") from None
    except EOFError:
        raise ArtefactError("checkpoint", name, "is truncated; fetch it again") from None
    except Exception as error:  # a damaged pickle can raise anything
        if "asks for" in str(error):
            mend = f"{error}; only tensors, plain containers and constructor arguments are taken, no code is run"
            raise ArtefactError("checkpoint", name, mend) from None
        raise ArtefactError("checkpoint", name, f"is truncated or damaged ({error})") from None


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What a .pkl or .pt file holds, without running anything in it.

    Raises:
        ArtefactError: missing, truncated, of another format, or it asks for more than is taken.
    """
    source, name = Path(path), str(path)
    try:
        head = source.open("rb").read(4)
    except OSError as error:
        raise ArtefactError("checkpoint", name, error.strerror or "cannot be read") from None
    if head[:2] == b"PK":
        if not zipfile.is_zipfile(source):
            raise ArtefactError("checkpoint", name, "is truncated; fetch it again")
        return _of_torch(source, name)
    if head[:1] != b"\x80":
        mend = "is already a .safetensors file" if source.suffix == ".safetensors" else "is neither .pkl nor .pt"
        raise ArtefactError("checkpoint", name, mend)
    with source.open("rb") as file:
        value = read_pickle(file, name)
    return _of_torch(source, name) if value == _LEGACY_MAGIC else value


def _of_torch(source: Path, name: str) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        first = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        if isinstance(error, pickle.UnpicklingError) and first:
            mend = "asks for more than tensors and plain containers; no code of a checkpoint is run"
            raise ArtefactError("checkpoint", name, mend) from None
        raise ArtefactError("checkpoint", name, "is truncated or damaged; fetch it again") from None


def tensors_of(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """The parameters and buffers of a recorded network by their dotted names.

    Args:
        module: a :class:`Record` of a `torch.nn.Module`.
        prefix: put before every name.
    """
    return dict(_walk(module, prefix))


def _walk(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(module, Record):
        return
    state = module.__dict__["state"]
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
    for name, child in (state.get("_modules") or {}).items():
        yield from _walk(child, f"{prefix}{name}.")
