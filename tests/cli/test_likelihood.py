"""`scoreline likelihood`: bits per dimension of every image, resumable, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.artefact import save_artefact
from scoreline.core.cond import Cond
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data import load_images
from scoreline.diffusion.likelihood import bits_per_dim, dequantised, log_likelihood
from scoreline.evaluate import likelihood as module

QUICK = ("--count", 6, "--repeats", 2, "--batch-size", 4, "--rtol", 1e-3)


def test_every_image_its_mean_and_an_interval(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    answer = scoreline("likelihood", tiny, "digits", *QUICK, "--json")
    assert answer.code == 0, answer.err
    found = answer.json
    assert found == json.loads((tmp_path / "likelihood" / "likelihood.json").read_text())
    each = [image["bits_per_dim"] for image in found["images"]]
    assert len(each) == 6
    assert found["bits_per_dim"] == pytest.approx(np.mean(each))
    assert found["low"] < found["bits_per_dim"] < found["high"]
    assert found["offset"] == pytest.approx(math.log2(17 / 2))
    rows = list(csv.DictReader((tmp_path / "likelihood" / "likelihood.csv").open()))
    assert [float(row["bits_per_dim"]) for row in rows] == each
    assert [int(row["index"]) for row in rows] == load_images("digits", split="test").index[:6].tolist()
    # From the parts by hand: the first image, its own label, two dequantisations.
    model, batch = load(tiny), load_images("digits", split="test").batch(range(6))
    wanted = []
    for repeat in range(2):
        draws = Noise(0).at(batch.index, (1, 8, 8)).derived("likelihood", repeat)
        x = dequantised(batch.image, 17, draws.uniform(shape=(1, 8, 8)))
        solved = log_likelihood(model.given(Cond(labels=batch.label)), x, draws=draws, rtol=1e-3)
        wanted.append(bits_per_dim(solved.log_p, 64, 2 / 17))
    # Another batch size rounds its sums differently.
    assert np.allclose(each, torch.stack(wanted).mean(0).numpy(), atol=1e-3)


def test_what_people_see(scoreline: Any, tiny: str) -> None:
    answer = scoreline("likelihood", tiny, "digits", "--count", 2, "--repeats", 1, "--rtol", 1e-2)
    first, second, *_, last = answer.out.splitlines()
    assert "bits per dimension, mean over 2 images" in first
    assert second == "pixels of 17 levels, dequantised once: offset +3.087 bits, included"
    assert last == "each image: likelihood/likelihood.csv"
    density = scoreline(
        "likelihood", tiny, "digits", "--count", 2, "--levels", 0, "--divergence", "exact", "--rtol", 1e-2, "--out", "d"
    )
    assert "of the density (may be negative)" in density.out
    assert "dequantised" not in density.out


KILLED = """
import os, signal, sys
from scoreline.evaluate.ledger import Ledger
real, left = Ledger.add, int(sys.argv[1])
def add(self, key, **values):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, key, **values)
Ledger.add = add
from scoreline.cli import main
main(sys.argv[2:])
"""


def test_a_killed_run_goes_on_to_the_same_result(scoreline: Any, tiny: str, tmp_path: Path) -> None:
    words = ["likelihood", tiny, "digits", *(str(w) for w in QUICK), "--batch-size", "2"]
    whole = scoreline(*words, "--out", "whole", "--json")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, "3", *words, "--out", "killed"], cwd=tmp_path, env=environment, check=False
    )
    assert run.returncode == -9
    assert not (tmp_path / "killed" / "likelihood.json").exists()
    assert len((tmp_path / "killed" / "ledger.jsonl").read_text().splitlines()) == 3
    measured = []
    original = module._measured

    def watched(*arguments: Any) -> Any:
        measured.append(arguments[2])
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_measured", watched)
        again = scoreline(*words, "--out", "killed", "--json")
    assert len(measured) == 3  # of six batches
    assert [i["log_p"] for i in again.json["images"]] == pytest.approx(
        [i["log_p"] for i in whole.json["images"]], rel=1e-9
    )
    assert again.json["bits_per_dim"] == pytest.approx(whole.json["bits_per_dim"], rel=1e-9)


def test_labels_none_and_an_unconditional_model(scoreline: Any, tiny: str, unconditional: str) -> None:
    own = scoreline("likelihood", tiny, "digits", *QUICK, "--out", "a", "--json").json
    none = scoreline("likelihood", tiny, "digits", *QUICK, "--labels", "none", "--out", "b", "--json").json
    assert own["bits_per_dim"] != none["bits_per_dim"]
    plain = scoreline("likelihood", unconditional, "digits", *QUICK, "--out", "c", "--json")
    assert plain.code == 0, plain.err


BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "a misspelt model": (("digit", "digits"), "did you mean 'digits'"),
    "a misspelt data set": (("digits", "digit"), "did you mean 'digits'"),
    "a misspelt option": (("digits", "digits", "--repeat", 2), "did you mean '--repeats'"),
    "a misspelt divergence": (("digits", "digits", "--divergence", "exakt"), "did you mean 'exact'"),
    "other levels": (("digits", "digits", "--levels", 12), "levels 12"),
    "one level": (("digits", "digits", "--levels", 1), "levels 1"),
    "no repeats": (("digits", "digits", "--repeats", 0), "repeats 0"),
    "no tolerance": (("digits", "digits", "--rtol", 0), "rtol 0"),
    "too many images": (("digits", "digits", "--count", 501), "holds 500 images"),
    "labels other than none": (("digits", "digits", "--labels", 3), "labels '3'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(case: str, scoreline: Any, tmp_path: Path) -> None:
    words, said = BAD[case]
    scoreline("likelihood", *words).fails(2, said)
    assert not (tmp_path / "likelihood").exists()


def test_images_of_another_shape_are_refused(scoreline: Any, colour: str, unconditional: str) -> None:
    scoreline("likelihood", colour, "digits").fails(2, "images of shape (1, 8, 8)")
    scoreline("likelihood", unconditional, "digits", "--labels", "none").fails(2, "has no classes")


def test_a_folder_of_another_run_is_refused(scoreline: Any, tiny: str) -> None:
    assert scoreline("likelihood", tiny, "digits", *QUICK).code == 0
    scoreline("likelihood", tiny, "digits", *QUICK, "--noise-seed", 1).fails(1, "holds another run", "noise_seed")


def test_a_model_of_nothing_is_reported(scoreline: Any, tmp_path: Path) -> None:
    from scoreline.diffusion.preconditioned import Preconditioned
    from scoreline.diffusion.schedules import EDM
    from scoreline.nn.mlp import MLP

    net = MLP(in_shape=(1, 8, 8), width=16, depth=1)
    torch.nn.init.constant_(next(net.parameters()), math.nan)
    save_artefact(tmp_path / "nan.safetensors", Preconditioned(net, EDM()), card={})
    scoreline("likelihood", "./nan.safetensors", "digits", *QUICK).fails(1, "not finite")
