"""Recipes with a partition: students trained apart and joined, one of all shares like the recipe itself, resumed to the
bit; what does not fit is refused before work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scoreline.core.artefact import read_header, save_artefact
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.evaluate.specs import labels_for
from scoreline.fewstep.class_shares import ClassRouter, consecutive_shares
from scoreline.fewstep.distill import distill
from scoreline.fewstep.msd import Routed
from scoreline.fewstep.partitioned import account, join_students, share_recipe, shares_of
from scoreline.fewstep.recipe import Recipe, make_method, make_student, read_recipe, staged_recipes
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.nn.unet_presets import unet_preset
from scoreline.samplers.generator import Sampled
from scoreline.samplers.jumps import Jumps
from scoreline.train import fit

BASE: dict[str, Any] = {
    "data": {"source": "digits", "split": "train"},
    "method": "dmd2",
    "settings": {"ratio": 2, "lr": 0.01, "critic_lr": 0.01, "gan_weight": 0.0},
    "steps": 3,
    "batch_size": 4,
    "ema": 0.5,
}
SMALLER = {"kind": "network", "name": "mlp", "args": {"in_shape": [1, 8, 8], "width": 8, "depth": 1, "num_classes": 10}}
RUN: dict[str, Any] = {"device": "cpu", "quiet": True}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written_model(tmp_path_factory.mktemp("models") / "tiny.safetensors", 0)


def written_model(path: Path, seed: int, classes: int | None = 10) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLP(in_shape=(1, 8, 8), width=16, depth=1, num_classes=classes)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    save_artefact(path, Preconditioned(net, EDM(), sigma_data=0.75), card={"data": "digits"})
    return str(path)


def recipe(folder: Path, teacher: str, partition: dict[str, Any] | None, **changes: Any) -> Recipe:
    given = copy.deepcopy(BASE) | ({} if partition is None else {"partition": partition}) | changes
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return read_recipe(str(path), teacher=teacher)


def mark(path: Path) -> str:
    found: str = read_header(path)["fingerprint"]
    return found


@pytest.mark.check(system=30, number=2)
def test_one_share_of_all_classes_is_the_recipe_without_a_partition(tiny: str, tmp_path: Path) -> None:
    distill(recipe(tmp_path, tiny, None), tmp_path / "base", **RUN)
    distill(recipe(tmp_path, tiny, {"students": 1}), tmp_path / "one", **RUN)
    assert mark(tmp_path / "one/share-0/model.safetensors") == mark(tmp_path / "base/model.safetensors")
    routed, plain = (load(tmp_path / name / "model.safetensors") for name in ("one", "base"))
    images = [
        Sampled(m, Jumps(steps=1)).generate(range(10), Noise(0), labels_for(range(10), 10)) for m in (routed, plain)
    ]
    assert torch.equal(*images)


def test_students_are_trained_apart_joined_and_accounted_for(tiny: str, tmp_path: Path) -> None:
    partition = {"students": 2, "by": "consecutive"}
    whole = distill(recipe(tmp_path, tiny, partition), tmp_path / "whole", **RUN)
    assert whole["missing"] == []
    assert [stage["name"] for stage in whole["stages"]] == ["share 0, dmd2", "share 1, dmd2"]
    assert (tmp_path / "whole/steps.png").is_file()
    card = read_header(tmp_path / "whole/model.safetensors")["card"]
    shares = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert card["partition"] == {"students": 2, "by": "consecutive", "shares": shares}
    assert (card["method"], card["base"], card["data"]) == ("msd", "dmd2", "digits")
    assert card["sampling"] == {"sampler": "jumps", "steps": [1]}
    students = [read_header(tmp_path / f"whole/share-{k}/model.safetensors") for k in range(2)]
    assert [one["card"]["classes"] for one in students] == shares
    assert students[0]["card"]["seed"] == card["seed"] == 0
    assert students[1]["card"]["seed"] != 0
    assert students[0]["fingerprint"] != students[1]["fingerprint"]
    # On turn 0 and 2 of 3 the student makes images, forward and back; teacher and critic look; the critic learns.
    assert card["training_evaluations"] == 2 * students[0]["card"]["training_evaluations"] > 0
    assert card["training_seconds"] == pytest.approx(sum(one["card"]["training_seconds"] for one in students), abs=2e-3)
    size = sum(p.numel() for p in load(tmp_path / "whole/share-0/model.safetensors").parameters())
    assert (card["parameters"], card["parameters_per_image"], card["students"]) == (2 * size, size, 2)
    assert card["storage_bytes"] == pytest.approx(4 * 2 * size, abs=64)

    # One after the other, as two machines would, stopped once: the same bits.
    apart = tmp_path / "apart"
    first = distill(recipe(tmp_path, tiny, partition), apart, share=1, **RUN)
    assert first["missing"] == [0]
    assert not (apart / "model.safetensors").exists()
    short = recipe(tmp_path, tiny, partition, steps=2)
    assert distill(short, apart, share=0, **RUN)["missing"] == []
    last = distill(recipe(tmp_path, tiny, partition), apart, share=0, **RUN)
    assert last["missing"] == []
    assert mark(apart / "model.safetensors") == mark(tmp_path / "whole/model.safetensors")

    # Students of another teacher, and of other shares, are not joined.
    other = written_model(tmp_path / "other.safetensors", 5)
    with pytest.raises(ArtefactError, match="another teacher"):
        distill(recipe(tmp_path, other, partition), apart, **RUN)
    with pytest.raises(ArtefactError, match=r"for the classes \[0, 1, 2, 3, 4\]"):
        distill(recipe(tmp_path, tiny, {"students": 2, "by": "interleaved"}), apart, **RUN)
    distill(recipe(tmp_path, other, partition), tmp_path / "foreign", share=1, **RUN)
    paths = [str(apart / "share-0/model.safetensors"), str(tmp_path / "foreign/share-1/model.safetensors")]
    with pytest.raises(ArtefactError, match="another teacher"):
        join_students(paths, shares)
    with pytest.raises(InputError, match="among 2"):
        join_students(paths[:1], shares)
    with pytest.raises(ArtefactError, match="for the classes"):
        join_students([paths[0], paths[0]], shares)


def test_a_smaller_student_first_learns_its_teacher_and_pairs_are_shared(tiny: str, tmp_path: Path) -> None:
    stages = {
        "tsm": {"method": "teacher-matching", "student": {"init": "fresh", "net": SMALLER}, "settings": {"lr": 0.01}},
        "dm": {"student": {"from": "tsm"}},
    }
    made = distill(
        recipe(tmp_path, tiny, {"shares": [[0, 1, 2, 3, 4, 5, 6], [8, 7, 9]]}, stages=stages), tmp_path / "s", **RUN
    )
    assert [stage["name"] for stage in made["stages"]] == ["share 0, tsm", "share 0, dm", "share 1, tsm", "share 1, dm"]
    card = read_header(made["model"])["card"]
    assert [row["stage"] for row in card["stages"]] == ["tsm", "dm"]
    assert card["training_evaluations"] == sum(row["training_evaluations"] for row in card["stages"])
    assert card["parameters_per_image"] < sum(p.numel() for p in load(tiny).parameters())
    assert card["partition"]["by"] == "shares"

    pairs = {"count": 8, "sampler": "heun", "nfe": 3}
    plain = {key: value for key, value in BASE.items() if key != "data"} | {
        "pairs": pairs,
        "partition": {"students": 2},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(plain))
    again = distill(read_recipe(str(tmp_path / "p.yaml"), teacher=tiny), tmp_path / "p", **RUN)
    assert len(list((tmp_path / "p").rglob("pairs.json"))) == 1  # made once, of all classes, for all
    card = read_header(again["model"])["card"]
    assert (card["pairs"]["count"], card["pair_evaluations"]) == (8, 24)

    flow = {"method": "flow-distillation", "student": {"init": "teacher"}, "settings": {}}
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(plain | flow))
    with pytest.raises(InputError, match="no share could be kept"):
        distill(read_recipe(str(tmp_path / "f.yaml"), teacher=tiny), tmp_path / "f", **RUN)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        ({"students": 11}, ["students 11", "1 to 10"]),
        ({"students": 2, "by": "consecutiv"}, ["did you mean 'consecutive'"]),
        ({"student": 2}, ["did you mean 'students'"]),
        ({"by": "random"}, ["students: K"]),
        ({"students": 2, "seed": 0.5}, ["whole seed"]),
        ({"shares": [[0, 1, 2], [4, 5, 6, 7, 8, 9]]}, ["classes 3", "left out"]),
        ({"shares": [[0, 1, 2]], "students": 1}, ["nothing beside"]),
        ({"shares": [0, 1, 2]}, ["lists of classes"]),
    ],
    ids=["many", "by", "key", "count", "seed", "left-out", "both", "form"],
)
def test_a_partition_that_is_wrong_is_refused_before_work(
    tiny: str, tmp_path: Path, partition: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        distill(recipe(tmp_path, tiny, partition), tmp_path / "x", **RUN)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "x").exists()


def test_what_does_not_fit_a_partition_is_refused_before_work(tiny: str, tmp_path: Path) -> None:
    two = {"students": 2}
    for share in (2, -1):
        with pytest.raises(InputError, match="0 to 1"):
            distill(recipe(tmp_path, tiny, two), tmp_path / "x", share=share, **RUN)
    with pytest.raises(InputError, match="belong to a recipe with a partition"):
        distill(recipe(tmp_path, tiny, None), tmp_path / "x", share=0, **RUN)
    with pytest.raises(InputError, match="1 or more"):
        distill(recipe(tmp_path, tiny, two), tmp_path / "x", processes=0, **RUN)
    with pytest.raises(InputError, match="partition says which"):
        distill(recipe(tmp_path, tiny, two, settings={"classes": [0]}), tmp_path / "x", **RUN)
    bare = written_model(tmp_path / "bare.safetensors", 0, None)
    with pytest.raises(InputError, match="no classes"):
        distill(recipe(tmp_path, bare, two), tmp_path / "x", **RUN)
    alone = Recipe("none", recipe(tmp_path, tiny, two).stages, None, None, two)
    with pytest.raises(InputError, match="--teacher MODEL"):
        distill(alone, tmp_path / "x", **RUN)
    assert not (tmp_path / "x").exists()


def test_partitions_by_name() -> None:
    data = BASE["data"]
    assert shares_of({"students": 3, "by": "interleaved"}, 10) == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert shares_of({"students": 2}, 10) == consecutive_shares(10, 2)
    assert shares_of({"students": 2, "by": "random", "seed": 1}, 10) != shares_of({"students": 2, "by": "random"}, 10)
    found = shares_of({"students": 5, "by": "clusters"}, 10, data)
    assert sorted(y for share in found for y in share) == list(range(10))
    assert {len(share) for share in found} == {2}
    with pytest.raises(InputError, match="the recipe has none"):
        shares_of({"students": 5, "by": "clusters"}, 10)
    assert "msd" in staged_recipes()
    assert not any(name.startswith("msd-") for name in staged_recipes())


def test_what_is_kept_of_a_stage(tiny: str, tmp_path: Path) -> None:
    whole = recipe(tmp_path, tiny, {"students": 2}, seed=3)
    kept = [share_recipe(whole, [[0, 1], [2]], k).stages[0] for k in range(2)]
    assert [stage["settings"]["classes"] for stage in kept] == [[0, 1], [2]]
    assert [stage["data"]["classes"] for stage in kept] == [[0, 1], [2]]
    assert kept[0].seed == 3 != kept[1].seed
    assert "classes" not in whole.stages[0]["data"]


def test_accounts_add_up() -> None:
    students = [Preconditioned(MLP(in_shape=(2,), width=8, depth=1, num_classes=2), EDM()) for _ in range(2)]
    cards = [
        {"stages": [{"stage": "a", "training_seconds": 1.0, "training_evaluations": 10, "pair_evaluations": 7},
                    {"stage": "b", "training_seconds": 2.0 + k, "training_evaluations": 20}]}
        for k in range(2)
    ]  # fmt: skip
    told = account(Routed(students, ClassRouter([[0], [1]])), cards)
    assert told["training_seconds"] == 1 + 1 + 2 + 3
    assert told["training_evaluations"] == 60
    assert told["pair_evaluations"] == 7  # made once, for all
    assert told["stages"][1] == {"stage": "b", "training_seconds": 5.0, "training_evaluations": 40}


@pytest.mark.parametrize("preset", ["imagenet64", "imagenet64-small"])
def test_full_presets_are_built_and_take_a_step(preset: str) -> None:
    """On thinner networks of the same form; the published ones take minutes here."""
    recipe = read_recipe("msd", preset=preset, teacher="digits")
    assert recipe.requires == "cuda"
    shares = shares_of(recipe.partition or {}, 1000)
    assert [len(share) for share in shares] == [250] * 4
    torch.manual_seed(0)
    thin: dict[str, Any] = {"base_channels": 16, "num_blocks": 1, "attention": (8,)}
    model = Preconditioned(UNet(**unet_preset("adm-imagenet64", num_classes=1000, **thin)), EDM())
    torch.nn.init.normal_(model.net.output.weight, std=0.1)  # else teacher and student both answer nothing
    stages = share_recipe(recipe, shares, 3).stages
    smaller = stages[0]["method"] == "teacher-matching"
    stage = stages[0] if smaller else stages[-1]
    if smaller:
        stage["student"]["net"]["args"] |= thin
    stage.given["student"] = stage["student"] if smaller else {"init": "teacher"}  # in place of the stage before
    method: Any = make_method(stage, make_student(stage, model, {}), model)
    before = [p.clone() for p in method.parameters()]
    data = (torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor([750, 999]))
    fit(method, data, steps=1, batch_size=2)
    assert any(not torch.equal(p, q) for p, q in zip(before, method.parameters()))
    assert [one["settings"].get("gan_weight", 0) for one in stages] == [0] * (len(stages) - 1) + [3e-3]
    if not smaller:
        assert method.classes == list(range(750, 1000))
        assert (method.gan_weight, method.critic_gan_weight, method.updates[0].every) == (3e-3, 1e-2, 5)
        assert [update.lr for update in method.updates] == [5e-7, 5e-7]


@pytest.mark.slow
def test_parallel_students_end_with_the_bits_of_one_after_the_other(tiny: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what a worker has
    try:
        for name, processes in (("one", 1), ("two", 2)):
            distill(recipe(tmp_path, tiny, {"students": 2}), tmp_path / name, processes=processes, **RUN)
    finally:
        torch.set_num_threads(threads)
    assert mark(tmp_path / "one/model.safetensors") == mark(tmp_path / "two/model.safetensors")
