"""The restricted reader: nothing in a file is run, whatever the file says."""

from __future__ import annotations

import builtins
import collections
import contextlib
import io
import os
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scoreline.bridges.unpickling import Record, read_checkpoint, read_pickle, tensors_of
from scoreline.core.errors import ArtefactError


def read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data), "file.pkl")


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple:
        return self.function, self.args


@pytest.mark.parametrize("protocol", range(6))
def test_plain_content_comes_out_as_it_went_in(protocol):
    value = {
        "a": [1, 2.5, True, None, "x", b"y\xff", (3, 4), {5}, frozenset({6}), 2j], "b": collections.OrderedDict(z=1),
        "t": torch.arange(6.0).view(2, 3).T, "h": torch.ones(2, dtype=torch.float16), "d": torch.float32,
        "p": nn.Parameter(torch.ones(2)), "s": torch.Size([1, 2]), "e": torch.zeros(0, 3),
    }  # fmt: skip
    got = read(pickle.dumps(value, protocol=protocol))
    assert got["a"] == value["a"]
    assert got["b"] == value["b"]
    for key in "thpe":
        assert torch.equal(got[key], value[key])
        assert got[key].dtype == value[key].dtype
    assert got["t"].stride() == value["t"].stride()
    assert not got["p"].requires_grad
    assert (got["d"], got["s"]) == (torch.float32, torch.Size([1, 2]))


@pytest.mark.parametrize("protocol", range(6))
def test_modules_become_records(protocol):
    module = nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"x": nn.BatchNorm1d(3)}))
    got = read(pickle.dumps(module, protocol=protocol))
    assert isinstance(got, Record)
    assert got.origin == "torch.nn.modules.container.Sequential"
    mine, theirs = tensors_of(got), module.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert tensors_of("no module") == {}


def test_arrays_are_records():
    got = read(pickle.dumps({"a": np.arange(3), "s": np.float64(2), "o": np.array([object], dtype=object)[:0]}))
    assert all(isinstance(v, Record) for v in got.values())


def test_persistent_objects_are_records_and_their_source_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    source = f"open({str(marker)!r}, 'w')"
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": "Net",
            "state": {"_init_kwargs": {"width": 3}, "_parameters": {"w": torch.ones(2)}}}  # fmt: skip
    data = b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + pickle.dumps((meta,), 2)[2:-1] + b"R."
    got = read(data)
    assert (got.origin, got.arguments) == ("Net", {"width": 3})
    assert torch.equal(tensors_of(got)["w"], torch.ones(2))
    assert not marker.exists()
    with pytest.raises(ArtefactError, match="without a class name"):
        read(b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + pickle.dumps(("x",), 2)[2:-1] + b"R.")


HOSTILE = [
    (os.system, "touch MARK"), (subprocess.Popen, ["touch", "MARK"]), (eval, "open('MARK', 'w')"),
    (exec, "open('MARK', 'w')"), (builtins.open, "MARK", "w"), (getattr, {}, "get"), (builtins.__import__, "os"),
    (torch.load, "MARK"), (pickle.loads, b"x"), (torch.hub.load, "a", "b"), (setattr, {}, "a", 1), (type, "X", (), {}),
    (Path, "x"), (np.load, "MARK"), (torch.nn.functional.relu, 3), (print, "x"),
]  # fmt: skip


@pytest.mark.parametrize("call", HOSTILE, ids=lambda call: call[0].__name__)
def test_calls_are_refused_before_they_are_made(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 4):
        data = pickle.dumps({"ema": Call(*call)}, protocol=protocol)
        for payload in (data, data.replace(b"ema", b"net")):
            with pytest.raises(ArtefactError, match=r"asks for .*no code is run"):
                read(payload)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.modules.module\ntorch.os.system", "torch.nn.modules.container\nos.system", "torch\nload",
        "torch\n_C", "torch.nn.modules\n__builtins__", "numpy\nload", "torch.storage\n_load_from_bytes.__globals__",
        "builtins\neval", "__builtin__\neval", "posix\nsystem", "copyreg\n__newobj__", "torch\nfloat32.__class__",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere(name):
    """Dotted names and the modules that modules hold lead nowhere; layers are records, never the classes themselves."""
    module, attribute = name.split("\n")
    text = [b"\x80\x04", b"\x8c", bytes([len(module)]), module.encode(), b"\x8c", bytes([len(attribute)])]
    data = b"".join([*text, attribute.encode(), b"\x93."])
    try:
        got = read(data)
    except ArtefactError as error:
        assert "asks for" in str(error)  # noqa: PT017
    else:
        assert issubclass(got, Record)


def test_a_stored_storage_cannot_smuggle_a_pickle(tmp_path):
    inner = io.BytesIO()
    torch.save(Call(os.system, f"touch {tmp_path}/ran"), inner, _use_new_zipfile_serialization=False)
    data = b"\x80\x02ctorch.storage\n_load_from_bytes\n" + pickle.dumps((inner.getvalue(),), 2)[2:-1] + b"R."
    with pytest.raises(ArtefactError):
        read(data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "size, stride, offset", [((9,), (1,), 0), ((2,), (1,), 7), ((2, 2), (7, 1), 0), ((2,), (-1,), 4)]
)
def test_tensors_stay_inside_their_storage(size, stride, offset):
    storage = torch.arange(8.0).storage()
    call = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, collections.OrderedDict())
    with pytest.raises(ArtefactError, match="larger than its storage"):
        read(pickle.dumps(call))


def test_state_cannot_reach_the_reader():
    """A class of layers that a file names is a fresh record each time: nothing written to it stays."""
    data = pickle.dumps(nn.Linear(1, 1))
    before = dict(vars(Record))
    first, second = read(data), read(data)
    assert type(first) is not type(second)
    assert dict(vars(Record)) == before


def test_files(tmp_path):
    state = {"w": torch.arange(3.0)}
    torch.save(state, tmp_path / "new.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(state))
    for name in ("new.pt", "old.pt", "plain.pkl"):
        assert torch.equal(read_checkpoint(tmp_path / name)["w"], state["w"])

    def refused(content: bytes, words: str, name: str = "x.pt") -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtefactError, match=words):
            read_checkpoint(tmp_path / name)

    with pytest.raises(ArtefactError, match="No such file"):
        read_checkpoint(tmp_path / "none.pkl")
    with pytest.raises(ArtefactError, match="directory"):
        read_checkpoint(tmp_path)
    for name in ("new.pt", "old.pt", "plain.pkl"):
        whole = (tmp_path / name).read_bytes()
        for part in (0.2, 0.5, 0.9):
            refused(whole[: int(len(whole) * part)], "truncated")
    refused(b"", r"neither \.pkl nor \.pt")
    refused(b"hello", r"neither \.pkl nor \.pt")
    refused(b"hello", r"already a \.safetensors", name="x.safetensors")
    torch.save(Call(os.system, "true"), tmp_path / "bad.pt")
    refused((tmp_path / "bad.pt").read_bytes(), "no code of a checkpoint is run")
    torch.save({"a": nn.Linear(1, 1)}, tmp_path / "bad.pt")
    refused((tmp_path / "bad.pt").read_bytes(), "no code of a checkpoint is run")


GOOD = pickle.dumps({"ema": nn.Sequential(nn.Linear(2, 2)), "more": [1, "x", torch.ones(2)]}, protocol=4)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=150)
def test_damaged_bytes_are_an_error_or_harmless(changes):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    with contextlib.suppress(ArtefactError):
        read(bytes(data))


def test_only_the_names_on_the_list_are_ever_looked_up():
    """What the reader of a real network asks for, by the opcodes of the file."""
    asked = {f"{arg}" for op, arg, _ in pickletools.genops(pickle.dumps(nn.Linear(1, 1), 2)) if op.name == "GLOBAL"}
    assert "torch.nn.modules.linear Linear" in asked
    assert "os" not in sys.modules["scoreline.bridges.unpickling"].__dict__["_TAKEN"]
