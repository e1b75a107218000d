"""Names of devices and number types, as a person types them, turned into torch objects."""

from __future__ import annotations

import torch

from scoreline.core.errors import InputError, unknown_name

__all__ = ["DEVICES", "DTYPES", "pick_device", "pick_dtype"]

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float64": torch.float64,
    "fp64": torch.float64,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device behind a name.

    Args:
        name: auto (the first of cuda, mps, cpu that is there), cpu, cuda, cuda:1, ..., or mps.

    Raises:
        InputError: the name is unknown, or this machine has no such device.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    kind, _, number = str(name).partition(":")
    if kind not in DEVICES or kind == "auto" or (number and not number.isdigit()):
        raise unknown_name("device", str(name), DEVICES)
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            reason = "finds no usable GPU" if torch.version.cuda or torch.version.hip else "is a build without CUDA"
            raise InputError("device", str(name), f"the installed torch {reason}; use --device cpu or --device auto")
        if number and int(number) >= count:
            raise InputError("device", str(name), f"this machine has cuda:0 to cuda:{count - 1}")
    if kind == "mps" and not _has_mps():
        raise InputError("device", str(name), "needs a Mac with Metal; use --device cpu or --device auto")
    if kind == "cpu" and number:
        raise InputError("device", str(name), "the CPU has no number; use cpu")
    return torch.device(str(name))


def pick_dtype(name: str | torch.dtype) -> torch.dtype:
    """The floating type behind a name: float32, float64, bf16 or fp16 and their usual other spellings.

    Raises:
        InputError: the name is unknown.

    >>> pick_dtype("bf16")
    torch.bfloat16
    """
    if isinstance(name, torch.dtype):
        if name not in DTYPES.values():
            raise InputError("dtype", str(name), f"use one of {', '.join(DTYPES)}")
        return name
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return DTYPES[name]


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
