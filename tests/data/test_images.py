from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data import Images, from_arrays
from scoreline.data.pixels import ArrayPixels

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 3, 6, 5), dtype=np.uint8)
LABELS = [i % 4 for i in range(30)]


@pytest.fixture
def images() -> Images:
    return from_arrays(
        PIXELS, LABELS, name="test", extras={"group": np.arange(30) * 2, "caption": [f"c{i}" for i in range(30)]}
    )


def test_a_batch_holds_what_was_asked_for(images: Images) -> None:
    batch = images.batch([4, 2, 4])
    assert torch.equal(batch.image, torch.from_numpy(PIXELS[[4, 2, 4]]) / 127.5 - 1)
    assert batch.image.dtype == torch.float32
    assert batch.label is not None
    assert (batch.label.dtype, batch.label.tolist()) == (torch.int64, [0, 2, 0])
    assert (batch.index.dtype, batch.index.tolist()) == (torch.int64, [4, 2, 4])
    assert batch.extras["group"].tolist() == [8, 4, 8]
    assert batch.extras["caption"] == ("c4", "c2", "c4")
    assert len(batch) == 3
    batch.image.zero_()  # a batch shares no memory with the set
    assert torch.equal(images.batch([4]).image[0], torch.from_numpy(PIXELS[4]) / 127.5 - 1)


def test_a_batch_moves_between_devices(images: Images) -> None:
    batch = dataclasses.replace(images.batch([1, 2]), draws=Noise(0).at([1, 2], (2,)))
    there = batch.to("meta")
    assert {there.image.device.type, there.index.device.type, there.extras["group"].device.type} == {"meta"}
    assert there.extras["caption"] == ("c1", "c2")
    assert there.draws is not None
    assert there.draws.device.type == "meta"
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.image = batch.image  # type: ignore[misc]
    assert from_arrays(PIXELS).batch([0]).to("cpu").label is None


@pytest.mark.parametrize("batch_size", [1, 7, 30, 64])
def test_batches_cover_the_set_in_order(images: Images, batch_size: int) -> None:
    parts = list(images.batches(batch_size))
    assert torch.equal(torch.cat([part.image for part in parts]), images.batch(range(30)).image)
    assert torch.cat([part.index for part in parts]).tolist() == list(range(30))
    assert all(len(part) == batch_size for part in parts[:-1])


def test_subset_and_relabel_keep_the_original_index(images: Images) -> None:
    part = images.subset([20, 10, 5]).subset(torch.tensor([2, 0]))
    batch = part.relabel([1, -1], num_classes=3).batch([0, 1])
    assert batch.index.tolist() == [5, 20]
    assert batch.label is not None
    assert batch.label.tolist() == [1, -1]
    assert batch.extras["caption"] == ("c5", "c20")
    assert torch.equal(batch.image, images.batch([5, 20]).image)
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0]  # relabelling made a new set
    bare = images.relabel(None)
    assert (bare.num_classes, bare.class_names, bare.batch([0]).label) == (None, None, None)


def test_split_is_stratified_and_complete(images: Images) -> None:
    rest, part = images.split(0.4)
    assert (len(rest), len(part)) == (18, 12)
    assert sorted([*rest.index, *part.index]) == list(range(30))
    assert part.labels is not None
    assert np.bincount(part.labels).tolist() == [3, 3, 3, 3]
    again, other = images.split(12), images.split(12, seed=1)
    assert list(again[1].index) == list(part.index)
    assert list(other[1].index) != list(part.index)
    assert len(images.split(1)[1]) == 1
    for bad in (0, 30, 0.0, 1.0, 1.5, -1, True and 31):
        with pytest.raises(InputError, match="part"):
            images.split(bad)


def test_classes(images: Images) -> None:
    assert (images.num_classes, images.class_names) == (4, ["0", "1", "2", "3"])
    named = from_arrays(PIXELS, LABELS, class_names=["a", "b", "c", "d", "e"])
    assert named.num_classes == 5
    assert named.describe()["classes"] == {"a": 8, "b": 8, "c": 7, "d": 7, "e": 0}
    many = from_arrays(PIXELS, np.tile([0, 1, -1], (30, 1)))
    assert many.num_classes == 3
    assert many.batch([0, 1]).label.shape == (2, 3)  # type: ignore[union-attr]


def test_bad_labels_and_extras_are_refused() -> None:
    with pytest.raises(InputError, match="label 4: labels are 0 to 3"):
        from_arrays(PIXELS, [*LABELS[:-1], 4], num_classes=4)
    with pytest.raises(InputError, match="label -2"):
        from_arrays(PIXELS, [*LABELS[:-1], -2])
    with pytest.raises(InputError, match="30 images"):
        from_arrays(PIXELS, LABELS[:-1])
    with pytest.raises(InputError, match="integer"):
        from_arrays(PIXELS, np.linspace(0, 1, 30))
    with pytest.raises(InputError, match="as many names"):
        from_arrays(PIXELS, LABELS, num_classes=4, class_names=["a", "b", "c"])
    with pytest.raises(InputError, match="classes were given"):
        from_arrays(PIXELS, num_classes=4)
    with pytest.raises(InputError, match="known extras: mask"):
        from_arrays(PIXELS, extras={"masks": np.zeros(30)})
    with pytest.raises(InputError, match="30 images"):
        from_arrays(PIXELS, extras={"group": np.zeros(29)})


@pytest.mark.parametrize("indices", [[30], [-1], [[1]], [0.5], [True, False], np.ones(30, dtype=bool)])
def test_bad_positions_are_refused(images: Images, indices: object) -> None:
    for call in (images.batch, images.subset):
        with pytest.raises(InputError, match="position"):
            call(indices)  # type: ignore[arg-type]


def test_empty_sets_are_refused(images: Images) -> None:
    with pytest.raises(InputError, match="no images"):
        images.subset([])
    with pytest.raises(InputError, match="no images"):
        Images(ArrayPixels(np.zeros((0, 1, 2, 2), dtype=np.uint8)), name="none")
    with pytest.raises(InputError, match="batch_size 0"):
        next(images.batches(0))


def test_one_image_is_a_set() -> None:
    one = from_arrays(PIXELS[:1], [0])
    assert (len(one), one.num_classes) == (1, 1)
    assert one.describe()["count"] == 1


def test_the_fingerprint_depends_on_content_only(images: Images) -> None:
    base = from_arrays(PIXELS, LABELS).fingerprint
    assert from_arrays(PIXELS.transpose(0, 2, 3, 1), LABELS, name="other").fingerprint == base
    assert images.subset(range(30)).relabel(LABELS).fingerprint == images.fingerprint
    changed = PIXELS.copy()
    changed[17, 2, 5, 4] ^= 1
    others = [
        from_arrays(changed, LABELS),
        from_arrays(PIXELS, [*LABELS[:-1], 0]),
        from_arrays(PIXELS),
        images,
        from_arrays(PIXELS, LABELS).subset(range(29)),
        from_arrays(PIXELS, LABELS).subset([1, 0, *range(2, 30)]),
        from_arrays(PIXELS, LABELS, size=4),
        from_arrays(PIXELS, LABELS, size=5),
        from_arrays(PIXELS, LABELS, channels=1),
        from_arrays(torch.from_numpy(PIXELS) / 127.5 - 1, LABELS),
        from_arrays(PIXELS, LABELS, extras={"caption": [f"d{i}" for i in range(30)]}),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_a_known_fingerprint_is_not_handed_on_to_other_sets(images: Images) -> None:
    base = images.fingerprint
    assert images.subset([0, 1]).fingerprint != base
    assert images.relabel(None).fingerprint != base


def test_fingerprints_are_the_same_on_every_machine() -> None:
    grid = np.arange(120, dtype=np.uint8).reshape(2, 3, 4, 5)
    assert from_arrays(grid, [1, 0]).fingerprint == "f8184f233b2e0bf93859bbca90c816186de2acb579a307cd97a33de7c96d999d"
    ramp = (np.arange(40) / 40).astype(np.float32).reshape(2, 4, 5)
    assert from_arrays(ramp).fingerprint == "b6494bb82113887937660c784489beaf343e965fcb15e69442bd1d85d9aca7ff"


def test_big_endian_floats_have_the_same_fingerprint() -> None:
    x = PIXELS.astype(np.float32) / 255
    assert from_arrays(x.astype(">f4")).fingerprint == from_arrays(x).fingerprint


def test_describe(images: Images) -> None:
    said = images.describe()
    x = images.batch(range(30)).image.double()
    assert (said["count"], said["shape"], said["num_classes"], said["missing_labels"]) == (30, [3, 6, 5], 4, 0)
    assert said["classes"] == {"0": 8, "1": 8, "2": 7, "3": 7}
    assert said["range"] == [x.min().item(), x.max().item()]
    torch.testing.assert_close(torch.tensor(said["mean"]).double(), x.mean(dim=(0, 2, 3)), atol=1e-7, rtol=0)
    torch.testing.assert_close(
        torch.tensor(said["std"]).double(), x.std(dim=(0, 2, 3), correction=0), atol=1e-7, rtol=0
    )
    assert said["fingerprint"] == images.fingerprint
    assert said["skipped"] == []


def test_images_travel_to_worker_processes(images: Images) -> None:
    other = pickle.loads(pickle.dumps(images.subset([3, 9])))
    assert torch.equal(other.batch([1]).image, images.batch([9]).image)
    assert other.fingerprint == images.subset([3, 9]).fingerprint
