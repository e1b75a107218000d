from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import encoded, random_picture

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data import Images, ImageStream, load_images

COUNT = 7
EXPECTED = torch.stack([torch.from_numpy(random_picture(i)).permute(2, 0, 1) for i in range(COUNT)]) / 127.5 - 1


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path: Path, pictures: list[bytes | None] | None = None, **columns: list[Any]) -> Path:
    """A parquet file as plain pyarrow writes it: no word about features."""
    given = [encoded(random_picture(i)) for i in range(COUNT)] if pictures is None else pictures
    table = {"img": [{"bytes": data, "path": None} for data in given], **columns}
    pq.write_table(pa.table(table), path)
    return path


def test_a_plain_parquet_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", label=[2, 0, 1, None, 2, 0, 1], text=[f"t{i}" for i in range(COUNT)])
    images = load_images(path, caption_column="text")
    assert isinstance(images, Images)
    assert (images.shape, images.num_classes, images.class_names) == ((3, 8, 8), 3, ["0", "1", "2"])
    batch = images.batch([3, 0])
    assert torch.equal(batch.image, EXPECTED[[3, 0]])
    assert batch.label is not None
    assert (batch.label.tolist(), batch.index.tolist()) == ([-1, 2], [3, 0])
    assert batch.extras["caption"] == ("t3", "t0")
    other = pickle.loads(pickle.dumps(images))
    assert torch.equal(other.batch([6]).image, EXPECTED[6:])


def test_a_parquet_file_with_features_as_the_hub_has_them(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {
        "image": [{"bytes": encoded(random_picture(i)), "path": None} for i in range(COUNT)],
        "label": [i % 2 for i in range(COUNT)],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    images = load_images(tmp_path / "a.parquet")
    assert images.class_names == ["cat", "dog"]
    assert torch.equal(images.batch(range(COUNT)).image, EXPECTED)
    stream = load_images(tmp_path / "a.parquet", streaming=True)
    assert isinstance(stream, ImageStream)
    assert (stream.shape, stream.num_classes, stream.class_names) == ((3, 8, 8), 2, ["cat", "dog"])
    parts = list(stream.batches(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.image for part in parts]), EXPECTED)
    assert torch.cat([part.index for part in parts]).tolist() == list(range(COUNT))
    assert parts[2].label is not None
    assert parts[2].label.tolist() == [0]


def test_bytes_and_text_labels_and_named_columns(tmp_path: Path) -> None:
    pictures = [encoded(random_picture(i)) for i in range(3)]
    pq.write_table(pa.table({"photo": pictures, "kind": ["b", "a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="none is called img or image; give image_column="):
        load_images(tmp_path / "a.parquet")
    images = load_images(tmp_path / "a.parquet", image_column="photo", label_column="kind")
    assert images.class_names == ["a", "b"]
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]
    with pytest.raises(InputError, match=r"column of a\.parquet 'foto': did you mean 'photo'"):
        load_images(tmp_path / "a.parquet", image_column="foto")
    with pytest.raises(InputError, match="stored as str"):
        load_images(tmp_path / "a.parquet", image_column="kind")
    with pytest.raises(InputError, match="holds bytes; integers"):
        load_images(tmp_path / "a.parquet", image_column="photo", label_column="photo")


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    first = load_images(write(tmp_path / "a.parquet", label=list(range(COUNT))))
    second = load_images(write(tmp_path / "b.parquet", label=list(range(COUNT)), more=list("abcdefg")))
    third = load_images(write(tmp_path / "c.parquet", label=[0, *range(1, COUNT - 1), 0]))
    assert first.fingerprint == second.fingerprint != third.fingerprint


def test_bad_rows_are_named_or_skipped(tmp_path: Path) -> None:
    whole = encoded(random_picture(0))
    path = write(tmp_path / "a.parquet", [whole, whole[:90], None, b"", whole], label=[0, 1, 2, 3, 4])
    with pytest.raises(ArtefactError, match=r"image 2 of a\.parquet: is empty"):
        load_images(path)
    images = load_images(path, on_bad_image="skip")
    assert [name for name, _ in images.skipped] == ["1 of a.parquet", "2 of a.parquet", "3 of a.parquet"]
    assert images.index.tolist() == [0, 4]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 4]


def test_sizes_that_differ(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [encoded(random_picture(0)), encoded(random_picture(0, 9, 8))])
    with pytest.raises(InputError, match=r"0 of a\.parquet is 8 x 8, 1 of a\.parquet is 8 x 9"):
        load_images(path)
    assert load_images(path, size=4).shape == (3, 4, 4)


def test_broken_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.parquet")
    data = path.read_bytes()
    for number, content in enumerate([b"", b"PAR1", data[: len(data) // 2], bytes(200)]):
        broken = tmp_path / f"broken{number}.parquet"
        broken.write_bytes(content)
        for streaming in (False, True):
            with pytest.raises(ArtefactError, match=rf"broken{number}\.parquet: is no parquet file"):
                load_images(broken, streaming=streaming)
    damaged = bytearray(data)  # the footer is whole, the pages are not
    damaged[4:200] = bytes(196)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    with pytest.raises(ArtefactError, match=r"damaged\.parquet: is no parquet file"):
        load_images(tmp_path / "damaged.parquet")
    assert capfd.readouterr().err == ""
    pq.write_table(pa.table({"img": pa.array([], pa.binary())}), tmp_path / "none.parquet")
    with pytest.raises(ArtefactError, match="no rows"):
        load_images(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="without splits"):
        load_images(path, split="train")


def test_hub_splits_must_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["train", "test"])
    with pytest.raises(InputError, match="has train, test; choose one"):
        load_images("cifar10")
    with pytest.raises(InputError, match="hf:owner/name"):
        load_images("hf:cifar10")


def test_a_hub_data_set_and_its_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", label=[i % 3 for i in range(COUNT)])
    local = datasets.load_dataset("parquet", data_files=str(path), split="train")
    answer: list[Any] = [local]

    def load(repository: str, config: str | None, *, split: str, streaming: bool) -> Any:
        assert (repository, config, split, streaming) == ("owner/name", "small", "test", False)
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    monkeypatch.setattr(datasets, "load_dataset", load)
    images = load_images("hf:owner/name", split="test", config="small")
    assert (images.name, len(images)) == ("hf:owner/name:test", COUNT)
    assert torch.equal(images.batch([5]).image, EXPECTED[5:6])
    answer[0] = ConnectionError("Couldn't reach 'owner/name' on the Hub\nmore lines")
    with pytest.raises(ArtefactError, match=r"hf:owner/name: cannot be read .*Couldn't reach.*works offline") as caught:
        load_images("hf:owner/name", split="test", config="small")
    assert "more lines" not in str(caught.value)
    answer[0] = ValueError("Unknown split \"test\". Should be one of ['train'].")
    with pytest.raises(InputError, match="Unknown split"):
        load_images("hf:owner/name", split="test", config="small")


def stream_of(pictures: list[bytes], **options: Any) -> ImageStream:
    return ImageStream(lambda: [(data, i) for i, data in enumerate(pictures)], name="s", **options)


def test_a_stream_refuses_random_access_and_takes_a_part(tmp_path: Path) -> None:
    stream = load_images(write(tmp_path / "a.parquet"), streaming=True)
    assert isinstance(stream, ImageStream)
    for name in ("batch", "subset", "split", "relabel", "fingerprint", "describe", "labels", "index"):
        with pytest.raises(InputError, match=f"read in order only and has no .{name}"):
            getattr(stream, name)
    with pytest.raises(InputError, match="take"):
        len(stream)
    with pytest.raises(AttributeError):
        stream.nonsense  # noqa: B018
    taken = stream.take(5)
    assert torch.equal(taken.batch([4, 1]).image, EXPECTED[[4, 1]])
    assert len(stream.take(100)) == COUNT
    for _ in range(2):  # every pass starts anew
        assert sum(len(batch) for batch in stream.batches(2)) == COUNT
    for call in (lambda: stream.take(0), lambda: next(stream.batches(0))):
        with pytest.raises(InputError, match="1 or more"):
            call()


def test_a_stream_needs_named_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", label=[0] * COUNT)
    with pytest.raises(InputError, match="does not name its classes"):
        load_images(path, streaming=True)


def test_streams_skip_or_name_bad_pictures() -> None:
    whole = encoded(random_picture(0))
    pictures = [b"", whole, whole[:90], encoded(random_picture(1))]
    with pytest.raises(ArtefactError, match="image 0 of s: is empty"):
        stream_of(pictures)
    with pytest.raises(ArtefactError, match="image 1 of s: is broken"):
        list(stream_of([whole, whole[:90]]).batches(1))
    stream = stream_of(pictures, on_bad_image="skip", num_classes=4)
    (batch,) = stream.batches(8)
    assert batch.index.tolist() == [1, 3]
    assert batch.label is not None
    assert batch.label.tolist() == [1, 3]
    assert [name for name, _ in stream.skipped] == ["0 of s", "2 of s"]
    assert sum(len(part) for part in stream.batches(1)) == 2
    assert len(stream.skipped) == 2  # of the latest pass, not of both
    assert stream.take(2).index.tolist() == [1, 3]
    with pytest.raises(ArtefactError, match="no picture that can be read"):
        stream_of([b""], on_bad_image="skip")
    with pytest.raises(ArtefactError, match="it is empty"):
        stream_of([])


def test_streams_hold_one_shape() -> None:
    grey, colour = encoded(random_picture(0, channels=1)), encoded(random_picture(1))
    large = encoded(random_picture(2, 12, 9))
    with pytest.raises(InputError, match="image 1 is coloured"):
        list(stream_of([grey, colour]).batches(2))
    assert next(stream_of([grey, colour], channels=1).batches(2)).image.shape == (2, 1, 8, 8)
    assert next(stream_of([colour, grey]).batches(2)).image.shape == (2, 3, 8, 8)
    with pytest.raises(InputError, match="1 of s is 9 x 12, the first is 8 x 8"):
        list(stream_of([colour, large]).batches(2))
    resized = next(stream_of([colour, large], size=6).batches(2)).image
    assert resized.shape == (2, 3, 6, 6)
