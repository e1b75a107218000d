from __future__ import annotations

import pytest
import torch

from scoreline.core.device import pick_device, pick_dtype
from scoreline.core.errors import InputError


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == pick_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="cuda:0 to cuda:1"):
        pick_device("cuda:2")


def test_what_is_not_there_is_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"device 'cuda'.*use --device cpu"):
        pick_device("cuda")
    with pytest.raises(InputError, match="Mac"):
        pick_device("mps")
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        pick_device("cudaa")
    with pytest.raises(InputError, match="device"):
        pick_device("cpu:1")


def test_dtypes_by_name() -> None:
    assert pick_dtype("float64") is torch.float64
    assert pick_dtype("fp16") is pick_dtype(torch.float16) is torch.float16
    with pytest.raises(InputError, match="did you mean 'float32'"):
        pick_dtype("floatt32")
    with pytest.raises(InputError, match="dtype"):
        pick_dtype(torch.int64)
