"""Artefacts: whole, named, unpickled, and refused in every broken form."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scoreline.core import artefact
from scoreline.core.artefact import (
    build,
    describe,
    fingerprint,
    load_artefact,
    read_header,
    recorded,
    save_artefact,
)
from scoreline.core.errors import ArtefactError, InputError, ScorelineError
from scoreline.core.names import TABLE


@recorded
class Small(nn.Module):
    """A module whose arguments decide its shape."""

    def __init__(self, width: int, *, scale: float = 1.0, sizes: list[int] | None = None, part: Any = None) -> None:
        super().__init__()
        self.width, self.scale, self.part = width, scale, part
        self.weight = nn.Parameter(torch.arange(float(width)))
        self.register_buffer("exact", torch.tensor([math.pi], dtype=torch.float64))
        self.register_buffer("count", torch.tensor(3))


@pytest.fixture(autouse=True)
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {**TABLE, "testing": {"small": "somewhere:Small"}}
    monkeypatch.setattr(artefact, "TABLE", table)
    monkeypatch.setattr(artefact, "kind_and_name", lambda cls: ("testing", "small"))
    monkeypatch.setattr(artefact, "lookup", lambda kind, name: {("testing", "small"): Small}[(kind, name)])


def test_description_holds_every_argument_and_builds_again() -> None:
    small = Small(3, sizes=[1, 2], part=Small(2, scale=math.inf))
    text = json.dumps(describe(small))
    again = build(json.loads(text))
    assert describe(again) == describe(small)
    assert describe(small)["args"]["scale"] == 1.0
    assert again.part.scale == math.inf
    assert again.width == 3
    assert isinstance(again.part, Small)


def test_a_description_is_json_that_others_can_read() -> None:
    """Infinity and NaN are no JSON; a strict reader would refuse the header."""
    json.loads(json.dumps(describe(Small(1, scale=math.inf))), parse_constant=lambda name: pytest.fail(name))


def test_describe_refuses_what_a_header_cannot_hold() -> None:
    with pytest.raises(InputError, match="Tensor"):
        describe(Small(1, part=torch.ones(1)))
    with pytest.raises(InputError, match="not recorded"):
        describe(nn.Linear(1, 1))


def test_wrong_arguments_name_the_nearest() -> None:
    with pytest.raises(InputError, match="argument of Small 'widht': did you mean 'width'"):
        Small(widht=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="width"):
        Small()  # type: ignore[call-arg]


def test_a_subclass_records_its_own_arguments() -> None:
    @recorded
    class Wider(Small):
        def __init__(self, extra: int) -> None:
            super().__init__(extra + 1)

    assert Wider(4)._arguments == {"extra": 4}
    assert Wider(4).width == 5


@pytest.mark.parametrize("description", [None, [], {}, {"kind": "testing", "name": "small"}, "small"])
def test_build_refuses_what_is_no_description(description: Any) -> None:
    with pytest.raises(ArtefactError, match="kind, name and args"):
        build(description)


def test_round_trip(tmp_path: Path) -> None:
    small = Small(5, scale=0.5)
    with torch.no_grad():
        small.weight.mul_(0.1)
    path = tmp_path / "small.safetensors"
    mark = save_artefact(path, small, card={"data": "digits"}, belongs_to="abc")
    again, header = load_artefact(path, kind="testing", belongs_to="abc")
    assert torch.equal(again.weight, small.weight)
    assert torch.equal(again.exact, small.exact)
    assert again.exact.dtype == torch.float64
    assert again.count.item() == 3
    assert not again.training
    assert header["fingerprint"] == mark
    assert header["card"] == {"data": "digits"}
    assert read_header(path) == header
    assert os.listdir(tmp_path) == ["small.safetensors"]


def test_half_precision_storage(tmp_path: Path) -> None:
    small = Small(5)
    with torch.no_grad():
        small.weight.mul_(0.1)
    path = tmp_path / "small.safetensors"
    save_artefact(path, small, dtype=torch.float16)
    again, _ = load_artefact(path)
    assert again.weight.dtype == torch.float32
    assert torch.equal(again.weight, small.weight.half().float())
    assert again.count.dtype == torch.int64


def test_a_fingerprint_sees_every_part() -> None:
    base: tuple[dict, dict] = ({"a": 1}, {"w": torch.ones(2, 3), "b": torch.zeros(1)})
    marks = [
        fingerprint(*base),
        fingerprint({"a": 2}, base[1]),
        fingerprint(base[0], {**base[1], "b": torch.full((1,), 1e-30)}),
        fingerprint(base[0], {**base[1], "w": torch.ones(3, 2)}),
        fingerprint(base[0], {**base[1], "w": torch.ones(2, 3, dtype=torch.float64)}),
        fingerprint(base[0], {"v": base[1]["w"], "b": base[1]["b"]}),
        fingerprint(base[0], {"w": base[1]["w"]}),
    ]
    assert len(set(marks)) == len(marks)
    assert all(len(mark) == 64 for mark in marks)
    assert fingerprint(base[0], dict(reversed(base[1].items()))) == marks[0]
    fingerprint({}, {"empty": torch.zeros(0), "bool": torch.ones(2, dtype=torch.bool), "bf": torch.ones(2).bfloat16()})


@pytest.mark.parametrize("kept", [0, 4, 40, 0.5, -1])
def test_truncated_files_are_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "small.safetensors"
    save_artefact(path, Small(50))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ArtefactError, match="not a readable"):
        load_artefact(path)


def test_one_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_artefact(path, Small(50))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtefactError, match="fingerprint"):
        load_artefact(path)


def _file(path: Path, text: str | None) -> Path:
    save_file({"weight": torch.ones(1)}, path, None if text is None else {"scoreline": text})
    return path


@pytest.mark.parametrize(
    "text",
    [
        None, "", "{", "[]", "null", "3", '"a"', "{}", '{"format": "scoreline/999"}', '{"format": "scoreline/1"}',
        '{"format": "scoreline/1", "kind": "testing", "name": "small"}',
        '{"format": "scoreline/1", "kind": "testing", "name": "small", "args": {}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [read_header, load_artefact])
def test_broken_headers_are_refused_as_artefact_errors(tmp_path: Path, text: str | None, read: Callable) -> None:
    path = _file(tmp_path / "x.safetensors", text)
    with pytest.raises(ArtefactError, match=r"x\.safetensors"):
        read(path)


def test_other_kinds_owners_and_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.safetensors"
    save_artefact(path, Small(4), belongs_to="abc")
    with pytest.raises(ArtefactError, match="not a sampler"):
        load_artefact(path, kind="sampler")
    with pytest.raises(ArtefactError, match="another model"):
        load_artefact(path, belongs_to="abd")
    with pytest.raises(ArtefactError, match="no such file"):
        load_artefact(tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match=r"\.safetensors"):
        save_artefact(tmp_path / "small.pt", Small(4))
    for tensors in ({"weight": torch.ones(4)}, {**Small(4).state_dict(), "more": torch.ones(1)}, Small(5).state_dict()):
        description = {"kind": "testing", "name": "small", "args": {"width": 4}}
        header = {"format": "scoreline/1", **description, "fingerprint": fingerprint(description, tensors)}
        save_file(tensors, path, {"scoreline": json.dumps(header)})
        with pytest.raises(ArtefactError, match="does not fit"):
            load_artefact(path)


def test_a_calibration_without_an_owner_is_not_taken_for_any_model(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_artefact(path, Small(4))
    with pytest.raises(ArtefactError, match="another model"):
        load_artefact(path, belongs_to="abc")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.safetensors"
    save_artefact(path, Small(4))
    before = path.read_bytes()
    import safetensors.torch

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises((ScorelineError, OSError)):
        save_artefact(path, Small(5))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["small.safetensors"]


def test_shared_and_strided_tensors_are_stored(tmp_path: Path) -> None:
    small = Small(4)
    small.weight = nn.Parameter(torch.arange(8.0)[::2])
    path = tmp_path / "small.safetensors"
    save_artefact(path, small)
    assert load_artefact(path)[0].weight.tolist() == [0.0, 2.0, 4.0, 6.0]
