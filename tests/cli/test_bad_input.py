"""Damaged models, full disks, folders that cannot be written: one line, the right exit code, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scoreline.core.artefact import fingerprint, read_header

SAMPLE = ("--nfe", "5", "--seeds", "0:3", "--out", "made")
COMPARE = (
    "--samplers", "ddim", "--nfe", "4", "--count", "8", "--pairs", "4", "--seeds", "0", "--features", "pixels",
    "--out", "made",
)  # fmt: skip


def rewrite(source: str, target: Path, *, header: Any = None, tensors: dict[str, torch.Tensor] | None = None) -> str:
    """A copy of an artefact with another header or other tensors, its fingerprint made to fit."""
    head = read_header(source) if header is None else header
    found = load_file(source) if tensors is None else tensors
    if isinstance(head, dict) and {"kind", "name", "args"} <= head.keys():
        head["fingerprint"] = fingerprint({key: head[key] for key in ("kind", "name", "args")}, found)
    save_file(found, target, {"scoreline": head if isinstance(head, str) else json.dumps(head)})
    return f"./{target.name}"


def everywhere(scoreline: Any, model: str, tmp_path: Path, *words: str, codes: tuple[int, ...] = (1,)) -> None:
    """The model is refused by every verb that takes one, and nothing is written."""
    for command in (["sample", model, *SAMPLE], ["compare", model, *COMPARE]):
        answer = scoreline(*command)
        assert answer.code in codes, answer.err
        answer.fails(answer.code, Path(model).name, *words)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("part", [0, 0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_model(scoreline: Any, tiny: str, tmp_path: Path, part: float) -> None:
    whole = Path(tiny).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(part * len(whole))])
    everywhere(scoreline, "./cut.safetensors", tmp_path)


@pytest.mark.parametrize("at", [0, 7, 8, 9, 200, 0.5, -1])
def test_a_flipped_byte(scoreline: Any, tiny: str, tmp_path: Path, at: float) -> None:
    data = bytearray(Path(tiny).read_bytes())
    position = int(at * len(data)) if isinstance(at, float) else at
    data[position] ^= 0x15
    (tmp_path / "flipped.safetensors").write_bytes(bytes(data))
    everywhere(scoreline, "./flipped.safetensors", tmp_path)


def test_something_else_under_the_name_of_a_model(scoreline: Any, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello " * 100)
    everywhere(scoreline, "./text.safetensors", tmp_path, "not a readable safetensors file")
    torch.save({"a": torch.zeros(3)}, tmp_path / "pickle.pt")
    everywhere(scoreline, "./pickle.pt", tmp_path)
    save_file({"a": torch.zeros(3)}, tmp_path / "plain.safetensors")
    everywhere(scoreline, "./plain.safetensors", tmp_path, "was it written by scoreline?")
    (tmp_path / "folder.safetensors").mkdir()
    everywhere(scoreline, "./folder.safetensors", tmp_path)


@pytest.mark.parametrize("header", ["", "{", "[]", "3", "null", '"text"', "{}", '{"format": "scoreline/1"}'])
def test_a_header_that_is_no_description(scoreline: Any, tiny: str, tmp_path: Path, header: str) -> None:
    everywhere(scoreline, rewrite(tiny, tmp_path / "bad.safetensors", header=header), tmp_path)
    scoreline("models", "./bad.safetensors").fails(1, "bad.safetensors")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"format": "scoreline/99"}, "scoreline/99"),
        ({"name": "preconditionned"}, "preconditionned"),
        ({"name": "os:system"}, "os:system"),
        ({"kind": "encoder", "name": "digits", "args": {}}, "not a denoiser"),
        ({"kind": "weapon"}, "not a denoiser"),
        ({"name": ["a"]}, ""),
        ({"kind": 3}, ""),
        ({"args": {}}, ""),
        ({"args": []}, ""),
        ({"args": {"nett": 3}}, "nett"),
    ],
)
def test_a_header_of_something_else(
    scoreline: Any, tiny: str, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = rewrite(tiny, tmp_path / "other.safetensors", header={**read_header(tiny), **change})
    # A name that this version lacks is in the file, not in what the user typed: a failure.
    for command in (["sample", path, *SAMPLE], ["compare", path, *COMPARE]):
        answer = scoreline(*command)
        answer.fails(answer.code, words)
        assert answer.code in (1, 2)
    assert not (tmp_path / "made").exists()


def test_tensors_that_do_not_fit(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    tensors = load_file(tiny)
    name = sorted(tensors)[0]
    lacking = {key: value for key, value in tensors.items() if key != name}
    for wrong, named in (
        (lacking, name),
        ({**tensors, "extra": torch.zeros(2)}, "extra"),
        ({**tensors, name: torch.zeros(7)}, name),
    ):
        path = rewrite(tiny, tmp_path / "wrong.safetensors", tensors=wrong)
        everywhere(scoreline, path, tmp_path, f"tensor '{named}' does not fit")


def test_weights_that_are_not_those_of_the_fingerprint(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    header, tensors = read_header(tiny), load_file(tiny)
    tensors[sorted(tensors)[0]] += 1
    save_file(tensors, tmp_path / "changed.safetensors", {"scoreline": json.dumps(header)})
    everywhere(scoreline, "./changed.safetensors", tmp_path, "fingerprint")


def test_a_model_of_another_class(scoreline: Any, tmp_path: Path) -> None:
    everywhere(scoreline, "digits-net", tmp_path, "its kind is encoder", codes=(1,))


@pytest.mark.parametrize(
    "model, code, words",
    [
        ("digitz", 2, "did you mean 'digits'?"),
        ("tiny", 2, "./tiny.safetensors"),
        ("hf:someone/something", 2, "hub models"),
        ("./none.safetensors", 1, "no such file"),
        ("", 2, "model ''"),
    ],
)
def test_a_model_that_is_not_there(scoreline: Any, tmp_path: Path, model: str, code: int, words: str) -> None:
    scoreline("sample", model, *SAMPLE).fails(code, words)
    scoreline("compare", model, *COMPARE).fails(code, words)
    assert not (tmp_path / "made").exists()


def commands(tiny: str) -> dict[str, list[str]]:
    return {
        "sample": ["sample", tiny, *SAMPLE],
        "compare": ["compare", tiny, *COMPARE],
        "train": ["train", "digits-net", "--steps", "4", "--batch-size", "4", "--out", "made"],
        "score": ["score", "--real", "digits", "--generated", "digits", "--features", "pixels", "--metrics", "fd",
                  "--save-statistics", "made/s.npz", "--out", "made"],
        "data": ["data", "digits", "--out", "made/grid.png"],
    }  # fmt: skip


@pytest.mark.parametrize("verb", ["sample", "compare", "train", "score", "data"])
def test_a_file_where_a_folder_should_be(scoreline: Any, tiny: str, tmp_path: Path, verb: str) -> None:
    (tmp_path / "made").write_text("mine")
    scoreline(*commands(tiny)[verb]).fails(1, "made")
    assert (tmp_path / "made").read_text() == "mine"


@pytest.mark.parametrize("verb", ["sample", "compare", "train", "score", "data"])
def test_a_folder_that_may_not_be_written(
    scoreline: Any, tiny: str, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever runs tests as root may write everywhere, so the refusal is played.
    real = os.mkdir

    def refused(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).name == "made" or "made" in Path(path).parts[-2:]:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", refused)
    answer = scoreline(*commands(tiny)[verb])
    answer.fails(1, "made")
    assert "ermission denied" in answer.err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("verb", ["sample", "compare", "train", "score", "data"])
@pytest.mark.parametrize("successes", [0, 2])
def test_a_full_disk(
    scoreline: Any, tiny: str, tmp_path: Path, verb: str, successes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if successes and verb in ("score", "data"):
        successes = 0
    left = [successes]
    real = os.replace

    def full(source: Any, target: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        answer = scoreline(*commands(tiny)[verb])
    answer.fails(1, "made", "disk is full")
    assert not list(tmp_path.rglob(".*"))  # nothing half-written
    for file in (tmp_path / "made").rglob("*.json"):
        json.loads(file.read_text())
    # With space again, the same command goes on.
    again = scoreline(*commands(tiny)[verb])
    assert again.code == 0, again.err


def test_a_full_disk_at_the_ledger(scoreline: Any, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoreline.report.write_report", lambda results, folder: [Path(folder) / "report.html"])

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        scoreline("compare", tiny, *COMPARE).fails(1, "ledger", "No space left on device")
    assert scoreline("compare", tiny, *COMPARE).code == 0


def test_ctrl_c_leaves_nothing_half_written(
    scoreline: Any, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, real = [3], os.replace

    def pressed(source: Any, target: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", pressed)
        scoreline("sample", tiny, *SAMPLE).fails(1, "stopped; the same command goes on from here")
    assert not list(tmp_path.rglob(".*"))
    assert len(list((tmp_path / "made").rglob("*.png"))) == 2
    assert "2 were there already" in scoreline("sample", tiny, *SAMPLE).out


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe"])
def test_damaged_records_of_a_run(scoreline: Any, tiny: str, tmp_path: Path, damage: bytes) -> None:
    for verb, record in (("sample", "sample.json"), ("compare", "ledger.job.json")):
        folder = tmp_path / "made"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / record).write_bytes(damage)
        scoreline(*commands(tiny)[verb]).fails(1, "made")


def test_a_damaged_store_of_the_converged_images(
    scoreline: Any, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreline.report.write_report", lambda results, folder: [Path(folder) / "report.html"])
    assert scoreline("compare", tiny, *COMPARE).code == 0
    stored = tmp_path / "made/converged/seed-0.npy"
    whole = stored.read_bytes()
    for damage in (b"", whole[:50], whole[:-9]):
        stored.write_bytes(damage)
        scoreline("compare", tiny, *COMPARE).fails(1, "seed-0.npy", "delete it")
    np.save(stored, np.zeros((2, 1, 8, 8), np.float32))
    scoreline("compare", tiny, *COMPARE).fails(1, "seed-0.npy", "delete it")


def test_a_damaged_ledger(scoreline: Any, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoreline.report.write_report", lambda results, folder: [Path(folder) / "report.html"])
    scoreline("compare", tiny, *COMPARE)
    ledger = tmp_path / "made/ledger.jsonl"
    ledger.write_bytes(b"nonsense\n" + ledger.read_bytes())
    scoreline("compare", tiny, *COMPARE).fails(1, "ledger.jsonl", "line 1 is damaged")
