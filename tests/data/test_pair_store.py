"""Pairs of noise and image: in memory and in a folder they give the same batches; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.noise import Noise
from scoreline.data.pair_store import FORMAT, Pairs, PairStore
from scoreline.data.transforms import to_uint8
from scoreline.train.order import Feed

COUNT, SHAPE = 7, (1, 4, 4)
Z = Noise(5).at(range(COUNT), SHAPE).normal()
X = Noise(6).at(range(COUNT), SHAPE).normal().clamp(-1, 1)
LABEL = torch.arange(COUNT) % 3


def stored(folder: Path, **changes: Any) -> Path:
    """A finished store of 7 pairs in shards of 3, written by hand."""
    header = {
        "format": FORMAT, "count": COUNT, "shape": list(SHAPE), "num_classes": 3, "shard_size": 3, "dtype": "float32",
        "noise": "stored", "seed": 5, "flips": False, "teacher": {"name": "some", "fingerprint": "abc"}, "files": {},
    } | changes  # fmt: skip
    folder.mkdir()
    image = to_uint8(X) if header["dtype"] == "uint8" else X
    parts = {"image": image, "label": LABEL} | ({"noise": Z} if header["noise"] == "stored" else {})
    for name, whole in parts.items():
        for number, part in enumerate(whole.split(3)):
            np.save(folder / f"{name}-{number:05d}.npy", part.numpy())
    (folder / "pairs.json").write_text(json.dumps(header))
    return folder


def test_a_store_gives_the_batches_of_the_pairs_in_memory(tmp_path: Path) -> None:
    whole, store = Pairs(Z, X, LABEL), PairStore(stored(tmp_path / "a"))
    places = np.array([6, 0, 3, 2, 3])
    for pairs in (whole, store):
        batch = pairs.batch(places)
        assert torch.equal(batch.image, X[places])
        assert torch.equal(batch.extras["noise"], Z[places])
        assert batch.label is not None
        assert torch.equal(batch.label, LABEL[places])
        assert batch.index.tolist() == places.tolist()
        assert (len(pairs), pairs.shape, pairs.num_classes) == (COUNT, SHAPE, 3)
    feed = Feed(store, batch_size=4, seed=0, device=torch.device("cpu"))
    batch = feed.piece(1, 0)
    assert batch.draws is not None
    assert torch.equal(batch.extras["noise"], Z[batch.index])
    assert batch.draws.normal().shape == (4, *SHAPE)
    # Files are mapped, not read.
    assert all(isinstance(part, np.memmap) for shard in store._shards for part in shard.values())


def test_noise_kept_as_a_seed_and_images_as_bytes(tmp_path: Path) -> None:
    store = PairStore(stored(tmp_path / "a", noise="seed", dtype="uint8"))
    batch = store.batch(np.array([4, 1]))
    assert torch.equal(batch.extras["noise"], Z[[4, 1]])
    assert batch.image.dtype == torch.float32
    assert (batch.image - X[[4, 1]]).abs().max() <= 0.5 / 127.5 + 1e-6


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_one_coin_a_batch_flips_noise_and_image_together(tmp_path: Path, kind: str) -> None:
    flipped = Pairs(Z, X, flips=True) if kind == "memory" else PairStore(stored(tmp_path / "a"), flips=True)
    tossed = []
    for start in range(40):
        places = np.random.default_rng(start).permutation(COUNT)[:4]
        batch = flipped.batch(places)
        straight = torch.equal(batch.image, X[places])
        assert straight or torch.equal(batch.image, X[places].flip(-1))
        assert torch.equal(batch.extras["noise"], Z[places] if straight else Z[places].flip(-1))
        assert torch.equal(flipped.batch(places).image, batch.image)
        tossed.append(straight)
    assert 8 < sum(tossed) < 32
    told = PairStore(stored(tmp_path / "b", flips=True))
    assert told.flips
    assert told.fingerprint != PairStore(tmp_path / "b", flips=False).fingerprint


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("no-header", "has no pairs.json"),
        ("unfinished", "is not finished"),
        ("other-format", "damaged, or of another version"),
        ("missing", "image-00001.npy is missing"),
        ("truncated", "noise-00001.npy cannot be read"),
        ("other-shape", "label-00002.npy holds"),
    ],
)
def test_a_damaged_store_is_refused_when_opened(tmp_path: Path, damage: str, words: str) -> None:
    folder = stored(tmp_path / "a", **({"files": None} if damage == "unfinished" else {}))
    if damage == "no-header":
        (folder / "pairs.json").unlink()
    if damage == "other-format":
        (folder / "pairs.json").write_text('{"format": "scoreline/pairs/0"}')
    if damage == "missing":
        (folder / "image-00001.npy").unlink()
    if damage == "truncated":
        path = folder / "noise-00001.npy"
        path.write_bytes(path.read_bytes()[:-20])
    if damage == "other-shape":
        np.save(folder / "label-00002.npy", np.zeros(2))
    with pytest.raises(ArtefactError, match=words):
        PairStore(folder)


def test_pairs_of_another_teacher_or_shape_are_refused(tmp_path: Path) -> None:
    folder = stored(tmp_path / "a")
    assert PairStore(folder, teacher="abc", shape=SHAPE).header["seed"] == 5
    with pytest.raises(ArtefactError, match="holds pairs of another teacher"):
        PairStore(folder, teacher="abd")
    with pytest.raises(ArtefactError, match=r"holds pairs of shape \(1, 4, 4\), not \(1, 8, 8\)"):
        PairStore(folder, shape=(1, 8, 8))
    with pytest.raises(InputError, match="positions 0 to 6"):
        PairStore(folder).batch(np.array([7]))


def test_pairs_in_memory_refuse_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="need one shape"):
        Pairs(Z, X[:3])
    with pytest.raises(InputError, match="one whole number for each of 7"):
        Pairs(Z, X, LABEL[:2])
    with pytest.raises(InputError, match="only pictures can be seen in the mirror"):
        Pairs(Z.flatten(1), X.flatten(1), flips=True)
    assert Pairs(Z, X).fingerprint != Pairs(X, Z).fingerprint
    assert Pairs(Z, X, LABEL, num_classes=10).num_classes == 10
