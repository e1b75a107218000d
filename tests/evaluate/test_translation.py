"""Translation: a recipe in two stages, folder in and folder out, scores by hand, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from scoreline.cli import main
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.data import load_images, to_uint8
from scoreline.data.paired import load_paired
from scoreline.evaluate.translation import translation_scores
from scoreline.fewstep.distill import distill
from scoreline.fewstep.maps import LatentConsistency
from scoreline.fewstep.recipe import make_method, make_student, read_recipe
from scoreline.fewstep.sar_to_optical import AdversarialConsistency
from scoreline.metrics.image_quality import ssim
from scoreline.train import fit
from scoreline.train.recipe import check_images


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("translator")
    recipe = read_recipe("sar-to-optical", preset="digits", changes={"steps": 2, "batch_size": 8})
    answer = distill(recipe, folder, device="cpu", quiet=True)
    assert Path(answer["picture"]).is_file()
    return answer["model"]


def folders(root: Path, count: int = 3) -> None:
    batch = load_paired("digits", split="test", paired="sar-like").batch(range(count))
    for name, images in (("s1", batch.extras["source"]), ("s2", batch.image)):
        (root / name / "a").mkdir(parents=True)
        for k, pixels in enumerate(to_uint8(images)):
            Image.fromarray(pixels[0].numpy()).save(root / name / "a" / f"{k}.png")


def test_a_folder_in_and_a_folder_out(student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = load(student)
    assert isinstance(model, LatentConsistency)
    assert "stand-in" in model.header["card"]["paired"]
    folders(tmp_path)
    order = ["translate", student, "--source", str(tmp_path / "s1"), "--out", str(tmp_path / "out")]
    more = ["--target", str(tmp_path / "s2"), "--steps", "1,4", "--device", "cpu"]
    assert main([*order, *more, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["nfe"] for row in rows] == [1, 4]
    assert all({"psnr", "ssim", "fd-pixel", "colour shift", "seconds per image"} <= row.keys() for row in rows)
    made = Image.open(tmp_path / "out/4-steps/a/2.png")
    assert made.size == (8, 8)
    assert main([*order, "--device", "cpu"]) == 0
    assert "3 pictures" in capsys.readouterr().out
    assert (tmp_path / "out/a/0.png").is_file()
    assert main([*order[:-1], str(tmp_path / "s1")]) == 2
    assert main(["translate", "digits", *order[2:]]) == 2
    assert "is not told an image" in capsys.readouterr().err
    (tmp_path / "s2/a/1.png").unlink()
    assert main([*order, *more]) == 2
    assert "a/1.png" in capsys.readouterr().err


def test_scores_by_hand():
    target = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    scores = translation_scores(target + 0.1, target)
    assert scores["psnr"] == pytest.approx(10 * math.log10(4 / 0.01), rel=1e-4)
    assert scores["fd-pixel"] == pytest.approx(64 * 0.01, rel=1e-3)
    assert scores["colour shift"] == pytest.approx(0.1, rel=1e-4)
    assert scores["ssim"] == pytest.approx(ssim(target, target + 0.1, data_range=2.0, border="reflect"))
    assert translation_scores(target, target)["ssim"] == pytest.approx(1)
    large = torch.zeros(2, 1, 40, 40)
    with pytest.warns(UserWarning, match="rank deficient"):
        assert "fd-pixel-32" in translation_scores(large, large)
    with pytest.raises(InputError):
        translation_scores(target[:1], target[:1])


def test_the_recipe_for_radar_takes_a_step(tmp_path: Path):
    for k in range(2):
        for side, mode in (("s1", "L"), ("s2", "RGB")):
            path = tmp_path / "sen12/ROIs1_spring" / f"{side}_1" / f"ROIs1_spring_{side}_1_p{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (256, 256), 40 * k if mode == "L" else (90, 40 * k, 7)).save(path)
    recipe = read_recipe("sar-to-optical", preset="sen12")
    assert recipe.requires == "cuda"
    translator, distilled = recipe.stages
    assert distilled["settings"]["lr"]["cosine"] == {"lr": 8e-6, "warmup": 500}
    recipe = read_recipe("sar-to-optical", preset="sen12", changes={"steps": 1, "batch_size": 2})
    translator = recipe.stages[0]
    # The paper's channels make one step take minutes here; the pictures stay as large as they are.
    net = translator.given["student"]["args"]["net"]["args"]
    assert (net["base_channels"], net["channel_mult"]) == (128, [1, 1, 2, 2, 4, 4])
    net |= {"base_channels": 4, "num_blocks": 1}
    data = load_paired(tmp_path / "sen12", **{k: v for k, v in translator["data"].items() if k != "source"})
    method = make_method(translator, make_student(translator, None, {}), None)
    check_images(method, data)
    model = fit(method, data, steps=1, batch_size=2).result()
    method = make_method(recipe.stages[1], AdversarialConsistency.student_of(model), model)
    assert fit(method, data, steps=1, batch_size=2).step == 1


def test_data_without_a_source_and_a_teacher_that_has_no_place_are_refused():
    with pytest.raises(InputError, match="learns without one"):
        read_recipe("sar-to-optical", preset="digits", teacher="digits")
    recipe = read_recipe("sar-to-optical", preset="digits", changes={"steps": 2, "data": "cifar10"})
    assert recipe.stages[0]["data"] == {"source": "cifar10"}
    stage = read_recipe("sar-to-optical", preset="digits").stages[0]
    method = make_method(stage, make_student(stage, None, {}), None)
    with pytest.raises(InputError, match="paired"):
        check_images(method, load_images("digits"))
