"""Recipes: a whole training from a small file, and every way in which the file can be wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from scoreline.core.artefact import read_header
from scoreline.core.cond import Cond
from scoreline.core.errors import ArtefactError, InputError, NonFiniteError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.nn.autoencoder import KLAutoencoder
from scoreline.samplers.ddim import DDIM
from scoreline.train.recipe import is_student_recipe, make_method, presets, read_recipe, recipe_file, train

RECIPE: dict[str, Any] = {
    "data": {"source": "digits", "split": "train"},
    "model": {
        "kind": "denoiser",
        "name": "preconditioned",
        "args": {
            "kind": "eps",
            "schedule": {"kind": "schedule", "name": "discrete", "args": {"T": 100}},
            "net": {
                "kind": "network",
                "name": "mlp",
                "args": {"in_shape": [1, 8, 8], "width": 16, "depth": 1, "num_classes": 10},
            },
        },
    },
    "method": "denoising",
    "settings": {"p_uncond": 0.2, "lr": {"constant": {"lr": 0.002}}},
    "steps": 8,
    "batch_size": 16,
    "seed": 3,
    "ema": 0.9,
}
QUIET: dict[str, Any] = {"device": "cpu", "quiet": True}


def changed(**changes: Any) -> dict[str, Any]:
    """The recipe with keys replaced; None removes one."""
    recipe = copy.deepcopy(RECIPE) | changes
    return {key: value for key, value in recipe.items() if value is not None}


def written(folder: Path, recipe: Any = None, name: str = "tiny.yaml") -> str:
    path = folder / name
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe or RECIPE), encoding="utf-8")
    return str(path)


def same(a: Path, b: Path) -> bool:
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_every_preset_resolves():
    assert {"digits", "digits-eps", "digits-net", "digits-autoencoder"} <= set(presets())
    for name in presets():
        if is_student_recipe(recipe_file(name)):
            continue  # see tests/fewstep/test_recipe.py
        recipe = read_recipe(name)
        if recipe["data"]["source"] != "digits":
            make_method(recipe)
            continue
        plan = train(name, None, {}, device="cpu", dry_run=True)["resolved"]["plan"]
        assert plan["steps"] == recipe["steps"]
        assert plan["parameters"] > 10_000


def test_dry_run_prints_the_run_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = written(tmp_path)
    resolved = train(config, str(tmp_path / "out"), {"batch_size": 32, "lr": 0.5}, dry_run=True, **QUIET)["resolved"]
    json.dumps(resolved)
    assert resolved["plan"]["steps"] == 8
    assert resolved["plan"]["images"] == 256
    assert resolved["config"]["batch_size"] == 32
    assert resolved["config"]["seed"] == 3
    assert resolved["config"]["data"]["count"] == 1297
    assert "0.5" in resolved["config"]["updates"][0]["lr"]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_run_leaves_a_model_that_loads_and_samples(tmp_path):
    result = train(written(tmp_path), str(tmp_path / "out"), {}, command="scoreline train tiny.yaml", **QUIET)
    assert result["steps"] == 8
    assert result["model"] == str(tmp_path / "out/model.safetensors")
    assert 0 < result["losses"]["loss"] < 10
    card = read_header(result["model"])["card"]
    assert card == {
        "command": "scoreline train tiny.yaml", "data": "digits", "split": "train", "steps": 8, "batch_size": 16,
        "seed": 3,
    }  # fmt: skip
    model = load(result["model"])
    assert (model.shape, model.num_classes, model.training) == ((1, 8, 8), 10, False)
    draws = Noise(0).at(range(3), (1, 8, 8))
    images = DDIM(steps=4)(model.given(Cond(labels=torch.tensor([0, 5, 10]))), draws).x
    assert images.shape == (3, 1, 8, 8)
    assert torch.isfinite(images).all()
    # The averages are what is left: neither the start nor the last weights.
    start = make_method(RECIPE).denoiser.state_dict()
    last = train(written(tmp_path, changed(ema=None), "last.yaml"), str(tmp_path / "last"), {}, **QUIET)
    left, unaveraged = model.state_dict(), load(last["model"]).state_dict()
    moved = [name for name in start if not torch.equal(start[name], unaveraged[name])]
    assert len(moved) > 5
    assert all(not torch.equal(left[name], start[name]) for name in moved)
    assert all(not torch.equal(left[name], unaveraged[name]) for name in moved)


def test_settings_reach_the_method():
    method = make_method(changed(settings={"p_uncond": 0.25, "weight": "min-snr", "lr": {"cosine": {"lr": 0.5}}}))
    assert (method.p_uncond, method.weight) == (0.25, "min-snr")
    lr = method.updates[0].lr
    assert [round(lr(n), 6) for n in (0, 4, 8)] == [0.5, 0.25, 0.0]  # over the recipe's 8 steps
    assert make_method(changed(settings={"lr": 0.125})).updates[0].lr == 0.125
    assert make_method(changed(settings=None)).p_uncond == 0.1


def test_the_seed_decides_the_start():
    a, b, c = (make_method(changed(seed=s)).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    make_method(RECIPE)
    assert torch.equal(torch.rand(1), first)


def test_overrides(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((20, 8, 8, 1), dtype=np.uint8))
    unlabelled = changed()
    unlabelled["model"]["args"]["net"]["args"]["num_classes"] = None
    config = written(tmp_path, unlabelled)
    changes = {"steps": 2, "batch_size": 5, "seed": 9, "data": str(tmp_path / "images.npy"), "lr": 0.25}
    result = train(config, str(tmp_path / "out"), changes, **QUIET)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert result["steps"] == 2
    assert record["config"]["data"]["count"] == 20
    assert (record["config"]["batch_size"], record["config"]["seed"]) == (5, 9)
    assert "0.25" in record["config"]["updates"][0]["lr"]
    assert read_header(result["model"])["card"]["data"] == str(tmp_path / "images.npy")
    for settings in (None, {"lr": 0.5}):
        bare = written(tmp_path, unlabelled | {"settings": settings}, "bare.yaml")
        resolved = train(bare, None, {"lr": 0.25}, dry_run=True, **QUIET)["resolved"]
        assert resolved["config"]["updates"][0]["lr"] == 0.25


def test_fewer_steps_than_the_warm_up():
    lr = train("digits", None, {"steps": 20}, device="cpu", dry_run=True)["resolved"]["config"]["updates"][0]["lr"]
    assert "warmup=2" in lr
    assert "steps=20" in lr
    lr = train("digits", None, {"steps": 200}, device="cpu", dry_run=True)["resolved"]["config"]["updates"][0]["lr"]
    assert "warmup=100" in lr


def test_gone_on_it_ends_with_the_same_bits(tmp_path):
    config = written(tmp_path)
    straight, cut, longer = (tmp_path / name for name in ("straight", "cut", "longer"))
    train(config, str(straight), {}, checkpoint_every=3, **QUIET)
    train(config, str(cut), {}, checkpoint_every=3, **QUIET)
    (cut / "checkpoints/000000008.safetensors").unlink()
    (cut / "model.safetensors").unlink()
    assert train(config, str(cut), {}, checkpoint_every=3, **QUIET)["steps"] == 8
    assert same(straight, cut)
    train(config, str(longer), {"steps": 5}, **QUIET)
    assert not same(straight, longer)
    train(config, str(longer), {}, **QUIET)
    assert same(straight, longer)
    # Finished: nothing moves.
    assert train(config, str(longer), {}, **QUIET)["losses"] == {}
    assert same(straight, longer)
    with pytest.raises(ArtefactError, match="holds another run"):
        train(config, str(longer), {"seed": 4}, **QUIET)
    with pytest.raises(ArtefactError, match="step 8 already"):
        train(config, str(longer), {"steps": 7}, **QUIET)
    assert same(straight, longer)


def test_sample_grids_and_where_the_run_lives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = written(tmp_path, changed(steps=4, sample_every=2))
    straight = train(written(tmp_path, changed(steps=4), "plain.yaml"), None, {}, **QUIET)
    assert straight["folder"] == "runs/plain"
    train(config, None, {}, **QUIET)
    pictures = sorted((tmp_path / "runs/tiny/samples").iterdir())
    assert [p.name for p in pictures] == ["000000002.png", "000000004.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    assert same(tmp_path / "runs/tiny", tmp_path / "runs/plain")  # looking changes nothing


def test_a_nonfinite_loss_names_its_step_and_keeps_the_checkpoint(tmp_path):
    config = written(tmp_path, changed(settings={"lr": {"step": {"lr": 1e30, "milestones": []}}}, ema=None))
    with pytest.raises(NonFiniteError, match=r"non-finite (loss|gradient) at step 1 in update 'loss'.*learning rate"):
        train(config, str(tmp_path / "out"), {}, **QUIET)
    assert not (tmp_path / "out/model.safetensors").exists()
    assert [p.name for p in (tmp_path / "out/checkpoints").iterdir()] == ["000000000.safetensors"]
    with pytest.raises(NonFiniteError, match="non-finite"):
        train(config, str(tmp_path / "two"), {}, skip_nonfinite=2, **QUIET)


def test_autoencoders_and_classifiers_train_by_the_same_file(tmp_path):
    args = {"in_shape": [1, 8, 8], "base_channels": 8, "channel_mult": [1, 2], "middle_attention": False}
    recipe = changed(
        model={"kind": "network", "name": "kl-autoencoder", "args": args}, method="kl-autoencoding", steps=2,
        settings={"kl_weight": 1e-4, "lr": 0.001}, sample_every=1,
    )  # fmt: skip
    result = train(written(tmp_path, recipe), str(tmp_path / "ae"), {}, **QUIET)
    assert {"loss", "loss/l1", "loss/kl"} == set(result["losses"])
    assert isinstance(load(result["model"], kind="network"), KLAutoencoder)
    with pytest.raises(ArtefactError, match="not a denoiser"):
        load(result["model"])
    net = {"kind": "encoder", "name": "digits", "args": {"width": 4, "dim": 8}}
    recipe = changed(model=net, method="classification", settings={"noise": 0.1}, steps=2)
    result = train(written(tmp_path, recipe, "net.yaml"), str(tmp_path / "net"), {}, **QUIET)
    assert load(result["model"], kind="encoder").dim == 8


def test_a_number_with_an_exponent_is_a_number(tmp_path):
    text = yaml.safe_dump(changed(settings={"lr": {"constant": {"lr": "LR"}}})).replace("LR", "2e-3")
    assert yaml.safe_load(text)["settings"]["lr"]["constant"]["lr"] == "2e-3"  # YAML 1.1
    assert read_recipe(written(tmp_path, text))["settings"]["lr"]["constant"]["lr"] == 0.002


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"setings": {}}, "key of tiny.yaml 'setings': did you mean 'settings'"),
        ({"steps": None}, "lacks steps"),
        ({"steps": None, "data": None}, "lacks data, steps"),
        ({"steps": "many"}, "steps of tiny.yaml 'many': give a whole number"),
        ({"batch_size": 2.5}, "batch_size of tiny.yaml"),
        ({"seed": True}, "seed of tiny.yaml"),
        ({"steps": 0}, "steps 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"ema": 1.5}, "ema|decay"),
        ({"data": "digits"}, "data of tiny.yaml 'digits': give a mapping"),
        ({"data": {"source": "digit"}}, "did you mean 'digits'"),
        ({"data": {"source": "digits", "spilt": "train"}}, "did you mean 'split'"),
        ({"data": {"split": "train"}}, "setting of data.*source"),
        ({"model": "unet"}, "model of tiny.yaml"),
        ({"model": {}}, "model of tiny.yaml"),
        ({"settings": 3}, "settings of tiny.yaml 3: give a mapping"),
        ({"model": {"kind": "network", "name": "unett", "args": {}}}, "did you mean 'unet'"),
        ({"model": {"kind": "network", "name": "mlp", "args": {"in_shape": [1, 8, 8], "widht": 8}}}, "'width'"),
        ({"model": {"kind": "network", "name": "mlp", "args": {"in_shape": [1, 8, 8]}}}, "MLP.*Preconditioned"),
        ({"method": "denoise"}, "did you mean 'denoising'"),
        ({"settings": {"p_uncod": 0.1}}, "setting of method denoising 'p_uncod': did you mean 'p_uncond'"),
        ({"settings": {"denoiser": 1}}, "setting of method denoising 'denoiser'"),
        ({"settings": {"p_uncond": "x"}}, "setting of method denoising"),
        ({"settings": {"lr": "fast"}}, "lr 'fast': give a number, or one rule"),
        ({"settings": {"lr": {"cosin": {"lr": 1.0}}}}, "did you mean 'cosine'"),
        ({"settings": {"lr": {"cosine": {"lr": 1.0, "warm": 2}}}}, "did you mean 'warmup'"),
        ({"settings": {"lr": {"cosine": {"warmup": 2}}}}, "setting of lr rule cosine.*lr"),
        ({"settings": {"lr": {"cosine": 0.1}}}, "lr rule cosine 0.1"),
        ({"settings": {"lr": {"cosine": {"lr": 1}, "linear": {"lr": 1}}}}, "one rule"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises((InputError, ArtefactError), match=message) as error:
        train(written(tmp_path, changed(**changes)), str(tmp_path / "out"), {}, **QUIET)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_fit_the_data_are_refused(tmp_path):
    for field, wrong, message in (
        ("in_shape", [3, 8, 8], r"data \(1, 8, 8\): the model takes images of shape \(3, 8, 8\)"),
        ("num_classes", 7, "has 10 classes, and the model is one of 7"),
    ):
        recipe = changed()
        recipe["model"]["args"]["net"]["args"][field] = wrong
        with pytest.raises(InputError, match=message):
            train(written(tmp_path, recipe), str(tmp_path / "out"), {}, dry_run=True, **QUIET)
    np.save(tmp_path / "images.npy", np.zeros((20, 8, 8, 1), dtype=np.uint8))
    with pytest.raises(InputError, match="has no labels, and the model is one of 10 classes"):
        train(written(tmp_path), str(tmp_path / "out"), {"data": str(tmp_path / "images.npy")}, **QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{data: [", "a: b: c", "- 1\n- 2\n", "", "\x00", "just words"])
def test_corrupt_yaml(tmp_path, text):
    with pytest.raises(ArtefactError, match=r"tiny\.yaml") as error:
        read_recipe(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ArtefactError, match="no such file"):
        read_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="preset 'digts': did you mean 'digits'"):
        read_recipe("digts")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_recipe(str(tmp_path / "folder.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"data: \xff\xfe\n")
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_recipe(str(tmp_path / "latin.yaml"))


def test_presets_for_cuda_say_so_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = written(tmp_path, changed(requires="cuda", steps=11))
    with pytest.raises(InputError, match="sized for a CUDA device"):
        train(config, str(tmp_path / "out"), {}, **QUIET)
    assert not (tmp_path / "out").exists()
    assert train(config, None, {}, dry_run=True, **QUIET)["resolved"]["plan"]["steps"] == 11
    assert train(config, str(tmp_path / "out"), {"steps": 1}, **QUIET)["steps"] == 1
