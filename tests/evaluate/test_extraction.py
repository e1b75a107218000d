"""One pass: fixed chunks, a kill survived, bounded memory, workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.moments import Moments
from scoreline.data import load_images
from scoreline.evaluate import extraction
from scoreline.evaluate.extraction import Network, Taken, extract, sampled_rows, take_features, work_folder, work_key
from scoreline.evaluate.processes import Processes
from scoreline.evaluate.protocols import digits_net
from scoreline.evaluate.rows import FeatureFile
from scoreline.nn.features import Pixels

DIGITS = load_images("digits", split="test")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "CHUNK", 40)
    monkeypatch.setattr(extraction, "SAMPLE", 90)
    monkeypatch.setattr(extraction, "_SAVE_EVERY", 3)


def both(keep: bool = True) -> list[Network]:
    return [Network(digits_net(), {"hidden-64": keep, "logits": True}), Network(Pixels((1, 8, 8)), {"1x8x8": False})]


def run(folder: Path, networks: list[Network] | None = None, **changed: Any) -> dict[str, Taken]:
    settings: dict[str, Any] = {"name": "real", "batch_size": 16, "workers": 0, "team": Processes()}
    settings |= {"advance": lambda n, text: None} | changed
    return extract(DIGITS, both() if networks is None else networks, folder, **settings)


def test_one_pass_gives_every_tap_what_it_needs(tmp_path: Path) -> None:
    advanced: list[int] = []
    found = run(tmp_path, advance=lambda n, text: advanced.append(n))
    assert list(found) == ["0.hidden-64", "0.logits", "1.1x8x8"]
    assert sum(advanced) == 500
    x = DIGITS.batch(range(500)).image
    with torch.no_grad():
        features = digits_net().features(x)
        logits = digits_net()(x)
    for name, wanted in (("0.hidden-64", features), ("0.logits", logits), ("1.1x8x8", x.flatten(1))):
        taken, whole = found[name], Moments.of(wanted)
        assert taken.count == 500
        torch.testing.assert_close(taken.moments.mean, whole.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(taken.moments.cov(), whole.cov(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(taken.sample, wanted[sampled_rows(500, 90)], rtol=1e-4, atol=1e-5)
    assert found["1.1x8x8"].rows is None
    torch.testing.assert_close(found["0.logits"].all_rows(), logits, rtol=1e-4, atol=1e-4)
    # pixels go through no network: their sums are those of all images at once, to the last digits of float64
    torch.testing.assert_close(found["1.1x8x8"].moments.cov(), Moments.of(x.flatten(1)).cov(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_chunks_do_not_depend_on_the_batch_size(tmp_path: Path, batch_size: int) -> None:
    pixels = [Network(Pixels((1, 8, 8)), {"1x8x8": True})]
    one, two = run(tmp_path / "a", pixels)["0.1x8x8"], run(tmp_path / "b", pixels, batch_size=batch_size)["0.1x8x8"]
    assert torch.equal(one.moments.scatter, two.moments.scatter)
    assert torch.equal(one.all_rows(), two.all_rows())


def test_workers_change_nothing(tmp_path: Path) -> None:
    one, two = run(tmp_path / "a"), run(tmp_path / "b", workers=2)
    for name in one:
        assert torch.equal(one[name].moments.scatter, two[name].moments.scatter)
        assert torch.equal(one[name].sample, two[name].sample)


def in_a_child(work: Callable[[], object]) -> int:
    """The exit status of a forked process that does something."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(3)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("after", [1, 9, 17, 30])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    whole = run(tmp_path / "whole")
    calls = [0]

    def activations(self: Pixels, prepared: Tensor, names: list[str]) -> dict[str, Tensor]:
        calls[0] += 1
        if calls[0] == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return dict.fromkeys(names, prepared.flatten(1))

    monkeypatch.setattr(Pixels, "activations", activations)
    assert os.WTERMSIG(in_a_child(lambda: run(tmp_path / "killed"))) == signal.SIGKILL
    assert calls[0] == 0
    calls[0] = 1000
    found = run(tmp_path / "killed")
    # 38 batches in all (13 chunks of 40, batches of 16, 16, 8, the last of 16 and 4); whole chunks are not done again
    finished = (after - 1) // 3
    assert calls[0] - 1000 == 38 - 3 * finished
    for name, taken in found.items():
        assert torch.equal(taken.moments.mean, whole[name].moments.mean)
        assert torch.equal(taken.moments.scatter, whole[name].moments.scatter)
        assert torch.equal(taken.sample, whole[name].sample)
    assert torch.equal(found["0.hidden-64"].all_rows(), whole["0.hidden-64"].all_rows())


def test_chunks_in_the_saved_state_leave_the_disk(tmp_path: Path) -> None:
    run(tmp_path, both(keep=False))
    # 13 chunks: 12 are in the state, which is written every third
    assert [path.name for path in (tmp_path / "chunks").iterdir()] == ["00000012.safetensors"]
    assert not (tmp_path / "rows-0.hidden-64.raw").exists()


def test_two_processes_make_the_number_of_one(tmp_path: Path) -> None:
    """The second process works first, so that the first finds its chunks; barriers are left out."""

    class Alone(Processes):
        def barrier(self) -> None: ...

        def agreed(self, decide: Callable[[], Any]) -> Any:
            return decide()

    whole = run(tmp_path / "one")
    assert run(tmp_path / "two", team=Alone(1, 2)) == {}
    with pytest.raises(ArtefactError, match="same folder"):
        run(tmp_path / "apart", team=Alone(0, 2))
    found = run(tmp_path / "two", team=Alone(0, 2))
    for name in whole:
        assert torch.equal(found[name].moments.scatter, whole[name].moments.scatter)
        assert torch.equal(found[name].sample, whole[name].sample)


def test_features_that_are_not_finite_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pixels, "activations", lambda self, x, names: {names[0]: x.flatten(1) * float("inf")})
    with pytest.raises(InputError, match="real 'not finite'"):
        run(tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.jpg")
    whole = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(whole[: len(whole) - 60])
    images, networks = load_images(str(folder)), [Network(Pixels((3, 40, 40)), {"3x40x40": False})]
    with pytest.raises(ArtefactError, match=r"3\.jpg.*truncated") as caught:
        extract(
            images, networks, tmp_path / "work", name="real", batch_size=2, workers=workers, team=Processes(),
            advance=lambda n, text: None,
        )  # fmt: skip
    assert "\n" not in str(caught.value)


def test_a_work_folder_is_used_by_one_run_at_a_time_and_taken_up_after_a_kill(tmp_path: Path) -> None:
    def used() -> str:
        with work_folder(tmp_path, "key") as folder:
            return folder.name

    def killed() -> None:
        with work_folder(tmp_path, "key") as folder:
            (folder / "left").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(in_a_child(killed)) == signal.SIGKILL
    with work_folder(tmp_path, "key") as folder:
        assert (folder / "left").exists()
        assert (folder.name, used(), used()) == ("key", "key-1", "key-1")
    assert used() == "key"


def test_a_damaged_work_file_is_named(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(ArtefactError, match="damaged"):
        run(tmp_path)


def test_whatever_may_change_a_bit_has_a_work_folder_of_its_own() -> None:
    keys = {
        work_key("a", both(), 16), work_key("b", both(), 16), work_key("a", both(), 32), work_key("a", both(False), 16),
        work_key("a", both()[:1], 16), work_key("a", both(), 16, True),
    }  # fmt: skip
    assert len(keys) == 6
    assert work_key("a", both(), 16) in keys


def test_sampled_rows_are_the_same_for_ever() -> None:
    assert sampled_rows(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert sampled_rows(20, 5).tolist() == [4, 5, 7, 13, 19]


def resident() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


@pytest.mark.parametrize("count", [20_000, 200_000])
def test_memory_does_not_grow_with_the_number_of_stored_features(tmp_path: Path, count: int) -> None:
    """Ten times the rows (102 MB as float64) in the same memory."""
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (count, 64))
    for start in range(0, count, 10_000):
        x[start : start + 10_000] = np.random.default_rng(start).normal(size=(10_000, 64))
    del x
    before, highest = resident(), 0

    def advance(n: int, text: str) -> None:
        nonlocal highest
        highest = max(highest, resident())

    file = FeatureFile(tmp_path / "x.npy", 128, count, 64, np.dtype("<f4"))
    taken = take_features(file, "real", advance, Processes())
    assert taken is not None
    assert taken.count == count
    # a chunk is 32 MB in float32; conversions and checks hold some copies of it and of its parts
    assert highest - before < 90e6
