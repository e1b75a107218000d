"""`scoreline calibrate`: estimates, stores where samplers look, goes on after a stop, refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from scoreline.core.artefact import read_header
from scoreline.core.load import load
from scoreline.evaluate import calibration
from scoreline.evaluate.calibration import model_samples, settings_of
from scoreline.samplers import statistics_estimation

SMALL = ("--for", "dpm-solver-v3", "--samples", "12", "--nodes", "6", "--batch-size", "5")


def test_the_statistics_are_found_by_compare_and_sample(scoreline: Any, tiny: str, own_cache: Path) -> None:
    refused = scoreline("sample", tiny, "--sampler", "dpm-solver-v3", "--nfe", "5", "--seeds", "0:3")
    refused.fails(2, "scoreline calibrate MODEL --for dpm-solver-v3")
    assert not Path("images").exists()
    answer = scoreline("calibrate", tiny, *SMALL)
    assert answer.code == 0, answer.err
    assert "7 levels of 1x8x8, lambda -4.38 to 6.21" in answer.out
    assert "--samplers dpm-solver-v3" in answer.out
    (file,) = (own_cache / "calibrations").iterdir()  # nothing unfinished is left
    assert str(file) in answer.out.replace("\n", "")
    card = read_header(file)["card"]
    assert card["command"] == f"scoreline calibrate {tiny} " + " ".join(SMALL)
    assert (card["data"], card["split"], card["samples"], card["nodes"]) == ("digits", "train", 12, 6)
    assert scoreline("sample", tiny, "--sampler", "dpm-solver-v3", "--nfe", "5", "--seeds", "0:3").code == 0
    guided = ("--guidance", "2", "--out", "guided")
    assert scoreline("sample", tiny, "--sampler", "dpm-solver-v3", "--nfe", "10", "--seeds", "0:3", *guided).code == 0


def test_a_file_of_ones_own(scoreline: Any, tiny: str, unconditional: str, tmp_path: Path) -> None:
    answer = scoreline("calibrate", tiny, *SMALL, "--out", "mine.safetensors", "--json")
    assert answer.json["file"] == "mine.safetensors"
    spec = "dpm-solver-v3:statistics=mine.safetensors"
    assert scoreline("sample", tiny, "--sampler", spec, "--nfe", "5", "--seeds", "0:3").code == 0
    other = scoreline("sample", unconditional, "--sampler", spec, "--nfe", "5", "--seeds", "0:3", "--out", "no")
    other.fails(2, "made for another model", "scoreline calibrate MODEL --for dpm-solver-v3")
    assert not (tmp_path / "no").exists()


def test_a_stopped_run_goes_on_to_the_same_file(
    scoreline: Any, tiny: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scoreline("calibrate", tiny, *SMALL, "--out", "whole.safetensors").code == 0
    monkeypatch.setattr(statistics_estimation, "SECONDS", 0.0)
    moments, calls = statistics_estimation.moments, 0

    def stop(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return moments(*args, **kwargs)

    monkeypatch.setattr(statistics_estimation, "moments", stop)
    scoreline("calibrate", tiny, *SMALL).fails(1, "stopped; the same command goes on from here")
    calls = 10
    answer = scoreline("calibrate", tiny, *SMALL, "--json")
    assert calls == 10 + 21 - 9  # 3 batches at 7 nodes, 9 of them done before
    whole, again = load_file("whole.safetensors"), load_file(answer.json["file"])
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert len(list((own_cache / "calibrations").iterdir())) == 1


def test_samples_of_the_model_stand_for_its_data(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    answer = scoreline("calibrate", tiny, *SMALL, "--data", "samples", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["data"] == "samples"
    model = load(tiny)
    images = model_samples(model, 7, tmp_path / "s", seed=0, batch_size=3)
    assert images.shape == (1, 8, 8)
    batch = images.batch(range(7))
    assert batch.label is not None
    assert batch.label.tolist() == [0, 1, 2, 3, 4, 5, 6]
    whole = model_samples(model, 7, tmp_path / "t", seed=0, batch_size=7).batch(range(7))
    torch.testing.assert_close(batch.image, whole.image, rtol=0, atol=1e-4)
    assert len(list((tmp_path / "s").iterdir())) == 3


def test_a_classifier_of_levels_is_trained_on_few_samples_of_the_model(
    scoreline: Any, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown many noised images, for which the model makes a limited number of clean ones."""
    asked, make = [], calibration.model_samples

    def counted(model: Any, count: int, *rest: Any, **settings: Any) -> Any:
        asked.append(count)
        return make(model, count, *rest, **settings)

    monkeypatch.setattr(calibration, "MOST_SAMPLES", 6)
    monkeypatch.setattr(calibration, "model_samples", counted)
    command = ["--for", "denoising-mcmc", "--samples", "40", "--batch-size", "20", "--levels", "12", "--json"]
    answer = scoreline("calibrate", tiny, *command, "--data", "samples")
    assert answer.code == 0, answer.err
    assert asked == [6]
    answer = scoreline("sample", tiny, "--sampler", "denoising-mcmc", "--nfe", "9", "--seeds", "0:2", "--out", "made")
    assert answer.code == 0, answer.err
    assert len(list(Path("made").rglob("*.png"))) == 2


def test_refusals(scoreline: Any, tiny: str, tmp_path: Path, own_cache: Path) -> None:
    scoreline("calibrate", tiny).fails(2, "--for")
    scoreline("calibrate", tiny, "--for", "dpm-solver-v2").fails(2, "did you mean 'dpm-solver-v3'")
    scoreline("calibrate", "digit", "--for", "dpm-solver-v3").fails(2, "did you mean 'digits'")
    scoreline("calibrate", tiny, *SMALL, "--node", "4").fails(2, "--nodes")
    scoreline("calibrate", tiny, *SMALL, "--levels", "4").fails(2, "levels", "none of dpm-solver-v3", "nodes")
    scoreline("calibrate", tiny, *SMALL, "--out", "x.npz").fails(2, ".safetensors")
    scoreline("calibrate", tiny, *SMALL, "--data", "digts").fails(2, "did you mean 'digits'")
    scoreline("calibrate", tiny, *SMALL, "--data", "samples", "--split", "train").fails(2, "no splits")
    scoreline("calibrate", tiny, "--for", "dpm-solver-v3", "--samples", "0").fails(2, "samples 0")
    scoreline("calibrate", tiny, "--for", "dpm-solver-v3", "--samples", "8", "--nodes", "2").fails(2, "nodes 2")
    assert list(tmp_path.iterdir()) == []
    assert not (own_cache / "calibrations").exists()


def test_images_of_another_shape(scoreline: Any, colour: str) -> None:
    scoreline("calibrate", colour, *SMALL, "--data", "digits").fails(2, "image shape", "(3, 8, 8)")


def test_a_model_whose_card_names_no_data(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    head = read_header(tiny)
    head["card"] = {}
    save_file(load_file(tiny), tmp_path / "bare.safetensors", {"scoreline": json.dumps(head)})
    scoreline("calibrate", "./bare.safetensors", *SMALL).fails(2, "--data samples")


def test_settings_are_those_of_the_method() -> None:
    assert settings_of("dpm-solver-v3") == ["nodes", "diagonal"]
