"""Pairs of a teacher: by number, the same bytes whoever makes them and however often they were stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.artefact import save_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data.pair_store import PairStore
from scoreline.evaluate.pairs import plan_pairs, write_pairs
from scoreline.fewstep.maps import ConsistencyFunction
from scoreline.samplers.heun import Heun

SMALL: dict[str, Any] = {"count": 7, "shard_size": 3, "batch_size": 2, "nfe": 3, "device": "cpu"}


def made(folder: Path, model: str, *, processes: int = 1, **changes: Any) -> dict[str, Any]:
    return write_pairs(folder, plan_pairs(model, **SMALL | changes), processes=processes, quiet=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_pair_is_where_the_sampler_takes_its_noise(tiny: str, tmp_path: Path) -> None:
    result = made(tmp_path / "a", tiny, seed=4, labels="1,5")
    assert (result["made"], result["shards"], result["nfe"]) == (7, 3, 3)
    store = PairStore(tmp_path / "a", teacher=load(tiny).header["fingerprint"])
    batch = store.batch(np.array([6, 1]))
    draws = Noise(4).at([6, 1], (1, 8, 8))
    assert torch.equal(batch.extras["noise"], draws.normal())
    assert batch.label is not None
    assert batch.label.tolist() == [1, 5]
    teacher = load(tiny)
    x = Heun(nfe=3)(teacher.given(Cond(labels=torch.tensor([1, 5]))), draws).x
    assert torch.allclose(batch.image, x, rtol=0, atol=1e-5 * x.abs().max().item())
    # It starts from the noise times the prior's size, and images are neither clamped nor rounded.
    assert batch.image.abs().max() > 1


def test_noise_as_a_seed_bytes_and_flips(tiny: str, tmp_path: Path) -> None:
    made(tmp_path / "a", tiny)
    made(tmp_path / "b", tiny, noise="seed", dtype="uint8", flips=True)
    assert not list((tmp_path / "b").glob("noise-*"))
    places = np.arange(7)
    whole, small = PairStore(tmp_path / "a").batch(places), PairStore(tmp_path / "b", flips=False).batch(places)
    assert torch.equal(whole.extras["noise"], small.extras["noise"])
    assert torch.allclose(whole.image.clamp(-1, 1), small.image, atol=0.5 / 127.5 + 1e-6)
    assert PairStore(tmp_path / "b").flips


KILLED = """
import os, signal, sys
real, left = os.replace, int(sys.argv[1])
def replace(source, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)  # with the unfinished file still there
    real(source, target)
os.replace = replace
from scoreline.cli import main
main(sys.argv[2:])
"""


def test_killed_or_made_by_two_processes_it_ends_with_the_same_bytes(tiny: str, tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", tiny)
    command = ["pairs", tiny, "--count", "7", "--shard-size", "3", "--batch-size", "2", "--nfe", "3", "--device", "cpu"]
    words = [sys.executable, "-c", KILLED, "6", *command, "--out", str(tmp_path / "killed")]
    assert subprocess.run(words, check=False).returncode == -9
    left = content(tmp_path / "killed")
    assert "image-00000.npy" in left
    assert "image-00001.npy" not in left
    with pytest.raises(ArtefactError, match="is not finished"):
        PairStore(tmp_path / "killed")
    again = made(tmp_path / "killed", tiny, processes=2)
    assert (again["made"], whole["made"]) == (4, 7)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    # A lost shard is made again, and what is there stays.
    (tmp_path / "killed" / "image-00001.npy").unlink()
    assert made(tmp_path / "killed", tiny)["made"] == 3
    assert made(tmp_path / "killed", tiny)["made"] == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_folder_of_other_pairs_is_refused(tiny: str, tmp_path: Path) -> None:
    made(tmp_path / "a", tiny)
    with pytest.raises(ArtefactError, match=r"holds other pairs .budget, seed, solver differ"):
        made(tmp_path / "a", tiny, seed=1, nfe=5)
    with pytest.raises(ArtefactError, match="pairs of another teacher"):
        made(tmp_path / "a", "digits")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "text").touch()
    with pytest.raises(ArtefactError, match="was not written by scoreline pairs"):
        made(tmp_path / "b", tiny)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "count 0: must be 1 or more"),
        ({"sampler": "ancestral"}, "adds noise"),
        ({"sampler": "huen"}, "did you mean 'heun'"),
        ({"sampler": "jumps", "nfe": 1}, "jumps needs a flow map"),
        ({"nfe": 1}, "needs at least 3"),
        ({"dtype": "float16"}, "did you mean 'float32'"),
        ({"labels": "10"}, "labels are numbers from 0 to 9"),
        ({"seed": -1}, "must be 0 or more"),
    ],
    ids=lambda value: value.split(":")[0].replace(" ", "-") if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_work(tiny: str, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(tmp_path / "a", tiny, **changes)
    assert not (tmp_path / "a").exists()


def test_a_single_jump_makes_pairs_and_two_do_not(tiny: str, tmp_path: Path) -> None:
    teacher: Any = load(tiny)
    path = str(tmp_path / "student.safetensors")
    save_artefact(path, ConsistencyFunction(teacher.net, teacher.schedule, sigma_data=0.75))
    assert made(tmp_path / "a", path, sampler="jumps", nfe=1)["nfe"] == 1
    with pytest.raises(InputError, match="adds noise"):
        made(tmp_path / "b", path, sampler="jumps", nfe=2)
