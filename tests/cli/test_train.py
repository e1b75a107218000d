"""`scoreline train`: the verb; what training does is tested in tests/train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scoreline.core.artefact import read_header
from scoreline.core.load import load

RECIPE: dict[str, Any] = {
    "data": {"source": "digits", "split": "train"},
    "model": {
        "kind": "denoiser",
        "name": "preconditioned",
        "args": {
            "kind": "edm",
            "sigma_data": 0.75,
            "schedule": {"kind": "schedule", "name": "edm", "args": {}},
            "net": {
                "kind": "network",
                "name": "mlp",
                "args": {"in_shape": [1, 8, 8], "width": 16, "depth": 1, "num_classes": 10},
            },
        },
    },
    "method": "denoising",
    "settings": {"lr": 0.01},
    "steps": 20,
    "batch_size": 16,
    "ema": 0.9,
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    return "small.yaml"


def test_a_run_and_what_it_leaves(scoreline: Any, config: str, tmp_path: Path) -> None:
    answer = scoreline("train", config, "--steps", 12, "--out", "run", "--sample-every", 6, "--json")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    assert (answer.json["steps"], answer.json["model"]) == (12, "run/model.safetensors")
    card = read_header(tmp_path / "run/model.safetensors")["card"]
    assert card["command"] == "scoreline train small.yaml --steps 12 --out run --sample-every 6 --json"
    assert (card["data"], card["split"], card["steps"], card["batch_size"]) == ("digits", "train", 12, 16)
    assert (tmp_path / "run/samples/000000006.png").is_file()
    assert "loss" in (tmp_path / "run/log.csv").read_text().splitlines()[0]
    assert json.loads((tmp_path / "run/run.json").read_text())["config"]["batch_size"] == 16
    made = scoreline("sample", "./run/model.safetensors", "--nfe", 5, "--seeds", "0:2", "--out", "made")
    assert made.code == 0


def test_the_same_command_again_and_more_steps(scoreline: Any, config: str, tmp_path: Path) -> None:
    def weights() -> dict[str, Any]:
        return {k: v.clone() for k, v in load("./run/model.safetensors").state_dict().items()}

    text = scoreline("train", config, "--steps", 6, "--out", "run").out
    assert text.startswith("6 steps, ")
    assert text.endswith(": run/model.safetensors\n")
    first = weights()
    scoreline("train", config, "--steps", 6, "--out", "run")
    assert all((weights()[k] == v).all() for k, v in first.items())
    assert scoreline("train", config, "--steps", 8, "--out", "run", "--json").json["steps"] == 8
    assert any((weights()[k] != v).any() for k, v in first.items())


def test_the_folder_of_another_run_is_refused(scoreline: Any, config: str) -> None:
    scoreline("train", config, "--steps", 4, "--out", "run")
    scoreline("train", config, "--steps", 4, "--out", "run", "--lr", 0.1).fails(1, "run", "another run")
    scoreline("train", config, "--steps", 4, "--out", "run", "--batch-size", 8).fails(1, "batch_size is 16 there")
    scoreline("train", config, "--steps", 2, "--out", "run").fails(1, "step 4 already")


def test_a_dry_run_prints_the_resolved_run_and_writes_nothing(scoreline: Any, config: str, tmp_path: Path) -> None:
    options = ["--steps", 7, "--batch-size", 8, "--lr", 0.5, "--seed", 3, "--dry-run"]
    answer = scoreline("train", config, *options)
    found = json.loads(answer.out)
    assert (found["plan"]["steps"], found["plan"]["images"]) == (7, 56)
    assert (found["config"]["batch_size"], found["config"]["seed"]) == (8, 3)
    assert found["config"]["updates"][0]["lr"] == 0.5
    assert found["plan"]["parameters"] > 0
    assert scoreline("train", config, *options, "--json").json == {"resolved": found}
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


@pytest.mark.parametrize("preset", ["digits", "digits-eps", "digits-net"])
def test_the_presets_resolve(scoreline: Any, preset: str) -> None:
    assert scoreline("train", preset, "--dry-run", "--json").json["resolved"]["plan"]["steps"] >= 1000


@pytest.mark.parametrize(
    "text, code, words",
    [
        ("data: [", 1, ["cannot be read"]),
        ("a: b: c", 1, ["cannot be read"]),
        ("", 1, ["mapping"]),
        ("- 1\n- 2", 1, ["mapping"]),
        ("\x00\x01", 1, ["cannot be read"]),
        ("!!python/object/apply:os.system ['true']", 1, ["cannot be read"]),
        ("steps: 3", 2, ["lacks batch_size, data, method, model"]),
    ],
)
def test_broken_yaml(scoreline: Any, tmp_path: Path, text: str, code: int, words: list[str]) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    scoreline("train", "broken.yaml", "--out", "run").fails(code, "broken.yaml", *words)
    assert not (tmp_path / "run").exists()


def changed(path: str, value: Any) -> dict[str, Any]:
    recipe = json.loads(json.dumps(RECIPE))
    *parents, last = path.split(".")
    place = recipe
    for parent in parents:
        place = place[parent]
    place[last] = value
    return recipe


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("stepz", 3, "did you mean 'steps'?"),
        ("steps", 0, "steps 0"),
        ("steps", "many", "steps"),
        ("batch_size", 0, "batch_size"),
        ("batch_size", None, "batch_size"),
        ("seed", "a", "seed"),
        ("method", "denosing", "did you mean 'denoising'?"),
        ("settings.lrr", 0.1, "did you mean 'lr'?"),
        ("settings.lr", {"cosin": {"lr": 0.1}}, "did you mean 'cosine'?"),
        ("settings.lr", {"cosine": {"lr": 0.1, "warmupp": 3}}, "warmup"),
        ("settings.lr", {}, "lr"),
        ("settings.lr", "fast", "lr"),
        ("settings", [1], "settings"),
        ("data", "digits", "data"),
        ("data.source", "digitz", "did you mean 'digits'?"),
        ("data.splt", "train", "split"),
        ("data.split", "tran", "did you mean 'train'?"),
        ("model", "unet", "model"),
        ("model.name", "precondition", "did you mean 'preconditioned'?"),
        ("model.args.sigma_dat", 0.5, "did you mean 'sigma_data'?"),
        ("model.args.net.name", "mpl", "did you mean 'mlp'?"),
        ("model.args.net.args.widht", 3, "did you mean 'width'?"),
        ("model.args.net.args.in_shape", [1, 16, 16], "16"),
        ("model.args.net.args.num_classes", 3, "classes"),
        ("ema", 2.0, "ema"),
    ],
)
def test_configs_with_a_mistake(scoreline: Any, tmp_path: Path, path: str, value: Any, words: str) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(changed(path, value)))
    answer = scoreline("train", "c.yaml", "--out", "run")
    answer.fails(answer.code, words)
    assert answer.code in (1, 2)
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    "options, code, words",
    [
        (["digitz"], 2, "preset 'digitz': did you mean 'digits'?"),
        (["./none.yaml"], 1, "no such file"),
        (["digits", "--steps", "0"], 2, "steps"),
        (["digits", "--batch-size", "-1"], 2, "batch_size -1"),
        (["digits", "--dtype", "fp61"], 2, "did you mean 'fp16'?"),
        (["digits", "--dtype", "fp16", "--device", "cpu"], 2, "fp16"),
        (["digits", "--checkpoint-every", "0"], 2, "checkpoint_every 0"),
        (["digits", "--accumulate", "0"], 2, "accumulate 0"),
        (["digits", "--lr", "-1"], 2, "lr -1"),
        (["digits", "--lr", "inf"], 2, "'inf' is no finite number"),
        (["digits", "--data", "digitz"], 2, "did you mean 'digits'?"),
    ],
)
def test_refusals(scoreline: Any, tmp_path: Path, options: list[str], code: int, words: str) -> None:
    scoreline("train", *options, "--out", "run").fails(code, words)
    assert not (tmp_path / "run").exists()
