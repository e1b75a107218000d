"""load: names, paths and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scoreline.core import load as module
from scoreline.core.artefact import save_artefact
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.load import load, looks_like_path, model_cards, model_path, shipped_models
from scoreline.core.names import TABLE
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.nn.mlp import MLP


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    model = Preconditioned(MLP(in_shape=(2,), width=8, depth=1), EDM(t_max=10.0), sigma_data=0.7)
    save_artefact(path, model.double(), card={"note": "small"})
    return path


def test_a_file_comes_back_ready_to_use(small, monkeypatch):
    model = load(small)
    assert not model.training
    assert (model.schedule.t_max, model.sigma_data) == (10.0, 0.7)
    assert model.header["card"] == {"note": "small"}
    assert (model.header["kind"], model.header["name"]) == ("denoiser", "preconditioned")
    x = torch.ones(1, 2, dtype=torch.float64)
    assert torch.equal(load(str(small))(x, 1.0).mean, model(x, 1.0).mean)
    monkeypatch.chdir(small.parent)
    assert load("small.safetensors").header == model.header
    monkeypatch.setenv("HOME", str(small.parent))
    assert load("~/small.safetensors").header == model.header


def test_the_kind_is_checked(small):
    assert load(small, kind=None).header["kind"] == "denoiser"
    with pytest.raises(ArtefactError, match="not a network"):
        load(small, kind="network")


def test_built_in_names_stand_for_files_of_the_package():
    assert shipped_models().keys() == TABLE["model"].keys()
    for name, path in shipped_models().items():
        assert model_path(name) == path
        assert path.parent.name == "models"
        assert path.suffix == ".safetensors"
    assert load("digits-net", kind="encoder").num_classes == 10
    with pytest.raises(ArtefactError, match="not a denoiser"):
        load("digits-net")


def test_cards_leave_out_what_is_missing(tmp_path, small, monkeypatch):
    monkeypatch.setattr(module, "_MODELS", tmp_path)
    monkeypatch.setitem(TABLE, "model", {"here": "small.safetensors", "gone": "gone.safetensors"})
    model_cards.cache_clear()
    try:
        assert list(model_cards()) == ["here"]
        assert model_cards()["here"]["card"] == {"note": "small"}
        with pytest.raises(ArtefactError, match="no such file"):
            load("gone")
    finally:
        model_cards.cache_clear()


def test_names_and_paths_are_told_apart():
    for path in ("a/b", "./x", "../x", "~/x", "x.safetensors", "x.pt", ".x"):
        assert looks_like_path(path)
    for name in ("digits", "hf", "digits-eps", "edm.model"):
        assert not looks_like_path(name)


def test_unknown_names():
    with pytest.raises(InputError, match=r"did you mean 'digits'.*as a path, e.g. \./digts\.safetensors"):
        load("digts")
    with pytest.raises(InputError, match="hub models"):
        load("hf:owner/name")


def test_folders_are_read_by_the_bridge_of_the_table(tmp_path, monkeypatch):
    folder = tmp_path / "pipe"
    folder.mkdir()
    with pytest.raises(ArtefactError, match=r"holds no model_index\.json"):
        load(folder)
    (folder / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"a folder is given as a path: \./pipe"):
        load("pipe")
    monkeypatch.setattr(module, "lookup", lambda *names: lambda path: (names, path))
    assert load("./pipe") == (("bridge", "diffusers-pipeline"), Path("pipe"))
    assert load(folder, kind=None)[1] == folder
    with pytest.raises(ArtefactError, match="a pipeline, that is a denoiser"):
        load(folder, kind="encoder")


def test_broken_files(tmp_path, small):
    with pytest.raises(ArtefactError, match="no such file"):
        load(tmp_path / "none.safetensors")
    whole = small.read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("words", b"not a model at all")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match=name):
            load(path)
    flipped = bytearray(whole)
    flipped[-3] ^= 0x10
    (tmp_path / "flipped.safetensors").write_bytes(bytes(flipped))
    with pytest.raises(ArtefactError, match="fingerprint"):
        load(tmp_path / "flipped.safetensors")
