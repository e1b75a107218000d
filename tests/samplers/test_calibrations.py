"""Where calibrations lie, whose they are, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from scoreline.core.artefact import load_artefact, read_header, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.load import load, shipped_models
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.guidance.thresholding import Thresholded
from scoreline.nn.mlp import MLP
from scoreline.samplers.calibrations import SHIPPED, calibration_path, find, fingerprint_of, open_calibration, save
from scoreline.samplers.model_statistics import ModelStatistics, data_prediction


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibrations"


def model(seed: int = 0) -> Preconditioned:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLP(in_shape=(1, 4, 4), width=8, depth=1, num_classes=3)
        torch.nn.init.normal_(next(net.parameters()))
    return Preconditioned(net, EDM())


def test_the_fingerprint_of_a_model_is_that_of_its_file(tmp_path: Path) -> None:
    made = model()
    mark = save_artefact(tmp_path / "m.safetensors", made)
    assert fingerprint_of(made) == mark == fingerprint_of(load(tmp_path / "m.safetensors"))
    assert fingerprint_of(model(1)) != mark


def test_closed_forms_have_one_too() -> None:
    mean = torch.zeros(3)
    marks = {fingerprint_of(Gaussian(s, mean, v)) for s in (EDM(), VP()) for v in (0.5, 1.0)}
    assert len(marks) == 4
    assert fingerprint_of(Gaussian(EDM(), mean, 0.5)) in marks


def test_views_have_that_of_the_model_inside() -> None:
    made = model()
    labels = Cond(labels=torch.tensor([0, 1]))
    for view in (
        ClassifierFree(made, 2.0), Thresholded(made), Thresholded(ClassifierFree(made, 3.0)), made.given(labels),
        made.on(VP()),
    ):  # fmt: skip
        assert fingerprint_of(view) == fingerprint_of(made)


def test_what_was_saved_is_found_by_its_model_alone(cache: Path) -> None:
    made = model()
    path = save("dpm-solver-v3", made, data_prediction(nodes=7, low=-4, high=4), card={"command": "by hand"})
    assert path == calibration_path("dpm-solver-v3", made)
    assert path.parent == cache
    assert path.name == f"dpm-solver-v3-{fingerprint_of(made)[:16]}.safetensors"
    found = find("dpm-solver-v3", ClassifierFree(made, 2.0))
    assert isinstance(found, ModelStatistics)
    assert (found.nodes, found.low, found.high) == (7, -4.0, 4.0)
    assert found.l.tolist() == [1.0] * 8
    assert find("dpm-solver-v3", made) is found  # a file is read once
    header = read_header(path)
    assert header["belongs_to"] == fingerprint_of(made)
    assert header["card"] == {"command": "by hand"}
    with pytest.raises(InputError, match="scoreline calibrate MODEL --for dpm-solver-v3"):
        find("dpm-solver-v3", model(1))
    save("dpm-solver-v3", made, data_prediction(nodes=9, low=-4, high=4))
    assert find("dpm-solver-v3", made).nodes == 9


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    made, other = model(), model(1)
    path = save("dpm-solver-v3", made, data_prediction(), out=tmp_path / "mine.safetensors")
    assert find("dpm-solver-v3", made, path).nodes == 2
    with pytest.raises(InputError, match=r"mine.safetensors.*another model.*--for dpm-solver-v3"):
        find("dpm-solver-v3", other, path)
    # The name of the file proves nothing.
    there = calibration_path("dpm-solver-v3", other)
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="another model"):
        find("dpm-solver-v3", other)


def test_files_that_are_no_calibration_are_refused(tmp_path: Path) -> None:
    made = model()
    save_artefact(tmp_path / "model.safetensors", made)
    with pytest.raises(ArtefactError, match="holds denoiser preconditioned, not dpm-solver-v3"):
        open_calibration("dpm-solver-v3", made, tmp_path / "model.safetensors")
    with pytest.raises(ArtefactError, match="no such file"):
        open_calibration("dpm-solver-v3", made, tmp_path / "none.safetensors")
    path = save("dpm-solver-v3", made, data_prediction())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ArtefactError):
        find("dpm-solver-v3", made)


def test_bad_input_when_saving(tmp_path: Path) -> None:
    made = model()
    with pytest.raises(InputError, match="did you mean 'dpm-solver-v3'"):
        save("dpm-solver-v4", made, data_prediction())
    with pytest.raises(InputError, match="is none of dpm-solver-v3"):
        save("dpm-solver-v3", made, copy.deepcopy(made))
    with pytest.raises(InputError, match="must end in"):
        save("dpm-solver-v3", made, data_prediction(), out=tmp_path / "x.npz")
    assert list(tmp_path.glob("*.npz")) == []


def test_the_shipped_models_have_their_statistics() -> None:
    for name in ("digits", "digits-eps"):
        found = find("dpm-solver-v3", load(name))
        assert found.shape == (1, 8, 8)
        assert found.nodes >= 60
        header = read_header(calibration_path("dpm-solver-v3", load(name), SHIPPED))
        assert header["card"]["command"].startswith(f"scoreline calibrate {name} --for dpm-solver-v3")


def test_every_shipped_calibration_belongs_to_a_shipped_model_and_is_small() -> None:
    owners = {read_header(path)["fingerprint"] for path in shipped_models().values()}
    files = sorted(SHIPPED.glob("*.safetensors"))
    assert files
    for file in files:
        made, header = load_artefact(file, kind="calibration")
        assert header["belongs_to"] in owners
        assert file.name.startswith(header["name"])
        assert all(bool(v.isfinite().all()) for v in made.state_dict().values() if v.is_floating_point())
    assert sum(file.stat().st_size for file in files) < 600_000
