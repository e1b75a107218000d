"""Maps and masks from folders and array files: every format, names that match, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data.anomaly_maps import read_anomaly_set, read_pictures

SCORES = np.random.default_rng(0).random((3, 6, 8)).astype(np.float32)
TRUTH = np.zeros((3, 6, 8), dtype=bool)
TRUTH[1, 2:4, 1:5] = TRUTH[2, 0, 0] = True
NAMES = ["bad/001", "bad/002", "good/000"]


def write(folder: Path, suffix: str, arrays: np.ndarray, names=NAMES, end: str = "") -> Path:
    for name, array in zip(names, arrays):
        file = folder / f"{name}{end}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(file, array)
        elif suffix == ".npz":
            np.savez_compressed(file, scores=array)
        else:
            Image.fromarray(array).save(file)
    return folder


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    return write(tmp_path / "masks", ".png", TRUTH[[1, 2, 0]].astype(np.uint8) * 255)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tiff", ".tif"])
def test_float_formats_keep_every_bit(tmp_path: Path, masks: Path, suffix: str) -> None:
    found = read_anomaly_set(write(tmp_path / "maps", suffix, SCORES), masks)
    assert found.names == NAMES
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(found.maps, SCORES))
    assert [int(m.sum()) for m in found.masks] == [8, 1, 0]
    assert (found.resized, found.unmasked) == (0, 0)


@pytest.mark.parametrize("dtype, most", [(np.uint8, 255), (np.uint16, 65535)])
def test_grey_pictures_are_scores_between_0_and_1(tmp_path: Path, masks: Path, dtype: type, most: int) -> None:
    whole = (SCORES * most).round().astype(dtype)
    whole[0, 0, :2] = 0, most
    found = read_anomaly_set(write(tmp_path / "maps", ".png", whole), masks)
    np.testing.assert_allclose(np.stack([m.numpy() for m in found.maps]), whole / most, rtol=1e-6)
    assert found.maps[0][0, :2].tolist() == [0.0, 1.0]


def test_one_array_holds_all_images(tmp_path: Path) -> None:
    np.save(tmp_path / "maps.npy", SCORES.astype(np.float64)[:, None])
    np.savez(tmp_path / "masks.npz", TRUTH)
    found = read_anomaly_set(tmp_path / "maps.npy", tmp_path / "masks.npz")
    assert found.names == ["000000", "000001", "000002"]
    assert found.maps[0].dtype == torch.float64
    assert [int(m.sum()) for m in found.masks] == [0, 8, 1]


def test_masks_may_carry_their_word_and_normal_images_may_have_none(tmp_path: Path) -> None:
    maps = write(tmp_path / "maps", ".npy", SCORES)
    truth = write(tmp_path / "truth", ".png", TRUTH[1:].astype(np.uint8), names=NAMES[:2], end="_mask")
    with pytest.raises(InputError, match=r"1 images have none, the first is 'good/000'; .* --unmasked normal"):
        read_anomaly_set(maps, truth)
    found = read_anomaly_set(maps, truth, unmasked="normal")
    assert found.unmasked == 1
    assert [int(m.sum()) for m in found.masks] == [8, 1, 0]


def test_every_kind_of_mask_picture(tmp_path: Path) -> None:
    maps = write(tmp_path / "maps", ".npy", np.repeat(SCORES, 3, axis=0), names=list("abcdefgh"))
    truth = TRUTH[1]
    folder = tmp_path / "masks"
    folder.mkdir()
    Image.fromarray(truth).save(folder / "a.png")  # 1 bit
    Image.fromarray(truth.astype(np.uint8)).save(folder / "b.bmp")  # 0 and 1
    Image.fromarray(np.repeat(truth[..., None] * np.uint8(200), 3, axis=2)).save(folder / "c.png")
    Image.fromarray(truth.astype(np.uint16) * 7).save(folder / "d.tiff")
    red = np.zeros((6, 8, 4), dtype=np.uint8)
    red[truth, 0], red[..., 3] = 255, 255
    Image.fromarray(red).save(folder / "e.png")
    Image.fromarray(truth.astype(np.uint8) * 255).convert("P").save(folder / "f.gif")
    np.save(folder / "g.npy", truth.astype(np.float32))
    np.save(folder / "h.npy", np.zeros((6, 8), dtype=bool))
    found = read_anomaly_set(maps, folder)
    for mask in found.masks[:7]:
        assert np.array_equal(mask.numpy(), truth)
    assert not found.masks[7].any()


def test_masks_of_many_values_need_a_level(tmp_path: Path) -> None:
    maps = write(tmp_path / "maps", ".npy", SCORES)
    grades = np.zeros((3, 6, 8), dtype=np.uint8)
    grades[0, 0, :3] = 3, 128, 255
    masks = write(tmp_path / "masks", ".png", grades)
    with pytest.raises(InputError, match=r"'bad/001' \[0, 3, 128, 255\]: .*--mask-above"):
        read_anomaly_set(maps, masks)
    assert [int(read_anomaly_set(maps, masks, mask_above=v).masks[0].sum()) for v in (0, 3, 127, 255)] == [3, 2, 2, 0]


def test_small_maps_are_enlarged_and_masks_never_shrunk(tmp_path: Path, masks: Path) -> None:
    small = SCORES[:, ::2, ::2]
    found = read_anomaly_set(write(tmp_path / "maps", ".npy", small), masks)
    assert found.resized == 3
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(small[:1])[None], size=(6, 8), mode="bilinear", align_corners=False
    )
    assert torch.equal(found.maps[0], expected[0, 0])
    with pytest.raises(InputError, match="map is larger"):
        read_anomaly_set(write(tmp_path / "large", ".npy", SCORES.repeat(2, axis=1)), masks)


def test_sizes_may_differ_from_image_to_image(tmp_path: Path) -> None:
    maps = write(tmp_path / "maps", ".npy", [SCORES[0], SCORES[1, :4], SCORES[2].astype(np.float64)])
    masks = write(tmp_path / "masks", ".npy", [TRUTH[1], TRUTH[1, :4], TRUTH[0]])
    found = read_anomaly_set(maps, masks)
    assert [tuple(m.shape) for m in found.maps] == [(6, 8), (4, 8), (6, 8)]
    assert {m.dtype for m in found.maps} == {torch.float64}


# what is refused


def test_names_that_do_not_match(tmp_path: Path, masks: Path) -> None:
    maps = write(tmp_path / "maps", ".npy", SCORES[:2], names=NAMES[:2])
    with pytest.raises(InputError, match=r"1 have no map in .*the first is 'good/000'"):
        read_anomaly_set(maps, masks, unmasked="normal")


@pytest.mark.parametrize(
    "array, words",
    [
        (np.full((6, 8), np.nan, dtype=np.float32), "NaN"),
        (np.ones((6, 8), dtype=np.int64), "store floats"),
        (np.random.default_rng(0).random((6, 8, 3)), "coloured"),
        (np.ones(8), r"needs shape \(H, W\)"),
        (np.ones((0, 8)), "needs shape|needs"),
    ],
)
def test_maps_that_are_none(tmp_path: Path, masks: Path, array: np.ndarray, words: str) -> None:
    maps = write(tmp_path / "maps", ".npy", SCORES)
    np.save(maps / "bad/001.npy", array)
    with pytest.raises(InputError, match=f"map of 'bad/001'.*({words})"):
        read_anomaly_set(maps, masks)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tiff", ".png"])
@pytest.mark.parametrize("part", [0.0, 0.4, 0.8])
def test_broken_files_are_named(tmp_path: Path, masks: Path, suffix: str, part: float) -> None:
    maps = write(tmp_path / "maps", suffix, SCORES if suffix != ".png" else (SCORES * 255).astype(np.uint8))
    file = maps / f"bad/002{suffix}"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ArtefactError, match=r"002"):
        read_anomaly_set(maps, masks)


def test_pickles_are_never_read(tmp_path: Path, masks: Path) -> None:
    maps = write(tmp_path / "maps", ".npy", SCORES)
    np.save(maps / "bad/001.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtefactError, match="pickled objects"):
        read_anomaly_set(maps, masks)


def test_places_without_maps(tmp_path: Path, masks: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match="holds no maps"):
        read_anomaly_set(tmp_path / "empty", masks)
    with pytest.raises(ArtefactError, match="no such folder or file of maps"):
        read_anomaly_set(tmp_path / "nowhere", masks)
    with pytest.raises(InputError, match="is one picture"):
        read_anomaly_set(masks / "bad/001.png", masks)
    np.save(tmp_path / "flat.npy", SCORES[0, 0])
    with pytest.raises(InputError, match=r"needs shape \(N, H, W\)"):
        read_anomaly_set(tmp_path / "flat.npy", masks)
    np.savez(tmp_path / "two.npz", a=SCORES, b=SCORES)
    with pytest.raises(InputError, match="holds one array"):
        read_anomaly_set(tmp_path / "two.npz", masks)
    maps = write(tmp_path / "maps", ".npy", SCORES)
    write(tmp_path / "maps", ".tiff", SCORES[:1])
    with pytest.raises(InputError, match="same name with another suffix"):
        read_anomaly_set(maps, masks)


def test_pictures_are_found_by_the_names_of_the_maps(tmp_path: Path) -> None:
    write(tmp_path / "pictures", ".png", (SCORES * 255).astype(np.uint8))
    found = read_pictures(tmp_path / "pictures", ["bad/002"])
    assert found["bad/002"].shape == (6, 8, 3)
    with pytest.raises(InputError, match="no picture 'bad/009'"):
        read_pictures(tmp_path / "pictures", ["bad/002", "bad/009"])
    with pytest.raises(ArtefactError, match="no such folder"):
        read_pictures(tmp_path / "nowhere", [])
