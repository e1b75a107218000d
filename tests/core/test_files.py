from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.files import atomic_path, read_json, sweep, write_json


def test_the_file_appears_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "a.npz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".npz"
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"half")
        assert not target.exists()
        temporary.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"
    assert os.listdir(target.parent) == ["a.npz"]


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert caught.value is error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left (os error 28)")],
)
def test_full_disk_is_one_clear_error(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(ArtefactError, match=r"weights\.bin: the disk is full"), atomic_path(tmp_path / "weights.bin"):
        raise error
    assert os.listdir(tmp_path) == []


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="not a folder"), atomic_path(tmp_path / "file" / "a.txt"):
        pass
    with pytest.raises(ArtefactError, match="folder of that name"), atomic_path(tmp_path):
        pass
    with pytest.raises(ArtefactError, match="too long"), atomic_path(tmp_path / ("a" * 300)) as temporary:
        temporary.write_text("")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permission bits do not stop root, so the refusal of the system is played.
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ArtefactError, match="permission denied"), atomic_path(tmp_path / "x" / "a.txt"):
        pass


def test_an_error_about_another_file_is_not_blamed_on_this_one(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_path(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else.txt")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(value=json_values)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_that_cannot_be_stored_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    for value in (float("nan"), {"b": float("inf")}, {"c": object()}):
        with pytest.raises(InputError, match="cannot be stored"):
            write_json(path, value)
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"[" * 100_000, b"nonsense"])
def test_corrupt_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"a\.json: is no valid JSON"):
        read_json(path)


def test_missing_json_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_json(tmp_path)


def test_sweep_removes_unfinished_files_only(tmp_path: Path) -> None:
    (tmp_path / "inner/deep").mkdir(parents=True)
    kept = [
        tmp_path / "a.png",
        tmp_path / ".hidden",
        tmp_path / ".tmpfile",
        tmp_path / "tmp123abc",
        tmp_path / "inner/b.partial.png",
    ]
    gone = [tmp_path / ".1f.partial.json", tmp_path / "inner/.2e.partial", tmp_path / "inner/.tmp5foQon"]
    for path in kept + gone:
        path.write_text("x")
    sweep(tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)
    sweep(tmp_path / "not there")
