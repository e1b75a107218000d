"""Whole scoring runs: stored features, processes, cache, comparison; the options are in tests/cli/test_score.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.files import cache_folder
from scoreline.core.score import Score
from scoreline.data import load_images
from scoreline.evaluate import extraction
from scoreline.evaluate.rows import FeatureFile
from scoreline.evaluate.scoring import score_sets
from scoreline.metrics import frechet_distance, kernel_distance, prdc
from scoreline.nn.features import Pixels


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, np.ndarray]:
    """Features of a real set and of two generators, the second one worse, made from the same noise."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 6))
    sets = {"real": rng.normal(size=(300, 6)), "good": noise + 0.1, "bad": 0.5 * noise + 0.4}
    for name, features in sets.items():
        np.save(tmp_path / f"{name}.npy", features)
    return sets


def by_name(result: dict[str, Any]) -> dict[str, Any]:
    return {score["name"]: score for score in result["scores"]}


def test_every_score_carries_cost_and_protocol_and_unlike_ones_do_not_compare() -> None:
    found = score_sets(
        "digits", "digits", features="pixels", metrics=["fd", "kid"], generated_split="train", quiet=True
    )
    for score in found["scores"]:
        assert score["cost"]["seconds"] > 0
        assert score["protocol"]["reference_fingerprint"]
        assert score["interval"]["low"] < score["value"] < score["interval"]["high"]
    fd, infinity, kid = (Score.from_dict(score) for score in found["scores"])
    for other in (infinity, kid):
        with pytest.raises(InputError, match="not measured alike"):
            fd.compare(other)


def test_nothing_is_opened_for_a_metric_that_is_misspelt() -> None:
    with pytest.raises(InputError, match="did you mean 'prdc'"):
        score_sets("./nowhere", "./nowhere", metrics=["prcd"], quiet=True)


def test_stored_features_give_the_functions_own_numbers(tmp_path: Path, stored: dict[str, np.ndarray]) -> None:
    found = by_name(
        score_sets(
            str(tmp_path / "real.npy"), str(tmp_path / "good.npy"), quiet=True,
            metrics=["fd", "kid", "prdc", "precision-recall", "cmmd"],
        )
    )  # fmt: skip
    r, g = torch.from_numpy(stored["real"]), torch.from_numpy(stored["good"])
    assert found["fd"]["value"] == pytest.approx(frechet_distance(r, g), rel=1e-12)
    assert found["kid"]["value"] == pytest.approx(kernel_distance(r, g, subset_size=300, seed=2020).mean, rel=1e-9)
    assert [found[n]["value"] for n in ("precision", "recall", "density", "coverage")] == list(prdc(r, g))
    assert [found[n]["value"] for n in ("precision-k3", "recall-k3")] == list(prdc(r, g, mode="kynkaanniemi"))[:2]
    assert found["cmmd"]["value"] > 0
    assert found["fd-infinity"]["value"] < found["fd"]["value"]
    for score in found.values():
        assert score["interval"]["low"] < score["value"] < score["interval"]["high"]
        assert score["protocol"]["features"] == "unknown"


def test_packed_features_leave_nothing_behind(tmp_path: Path, stored: dict[str, np.ndarray]) -> None:
    np.savez_compressed(tmp_path / "good.npz", features=stored["good"])
    real = str(tmp_path / "real.npy")
    one, two = (score_sets(real, str(tmp_path / f"good.{kind}"), metrics=["fd"], quiet=True) for kind in ("npy", "npz"))
    assert one["scores"][0]["value"] == two["scores"][0]["value"]
    assert not list(tmp_path.rglob("*.raw"))


def test_stored_features_must_be_finite_and_of_one_width(tmp_path: Path, stored: dict[str, np.ndarray]) -> None:
    real = str(tmp_path / "real.npy")
    for bad in (np.nan, np.inf):
        x = stored["good"].copy()
        x[17, 3] = bad
        np.save(tmp_path / "x.npy", x)
        with pytest.raises(InputError, match=r"generated.*not finite"):
            score_sets(real, str(tmp_path / "x.npy"), quiet=True)
    np.save(tmp_path / "x.npy", stored["good"][:, :5])
    with pytest.raises(InputError, match="real 6, generated 5"):
        score_sets(real, str(tmp_path / "x.npy"), quiet=True)
    np.save(tmp_path / "x.npy", stored["good"][:1])
    with pytest.raises(InputError, match="generated images 1: fd needs at least 2"):
        score_sets(real, str(tmp_path / "x.npy"), quiet=True)
    for metric, count in (("prdc", 6), ("precision-recall", 4), ("fd-infinity", 4), ("kid", 2), ("cmmd", 2)):
        for few, fits in ((count - 1, False), (count, True)):
            np.save(tmp_path / "x.npy", stored["good"][:few])
            if fits:
                assert score_sets(real, str(tmp_path / "x.npy"), metrics=[metric], quiet=True)["scores"]
                continue
            with pytest.raises(InputError, match=f"generated images {few}: {metric} needs at least {count}"):
                score_sets(real, str(tmp_path / "x.npy"), metrics=[metric], quiet=True)
    with pytest.raises(InputError, match="needs images"):
        score_sets(real, real, metrics=["is"], quiet=True)
    with pytest.raises(InputError, match="leave features"):
        score_sets(real, real, features="pixels", quiet=True)


def test_two_generators_are_tested_against_each_other(tmp_path: Path, stored: dict[str, np.ndarray]) -> None:
    real, good, bad = (str(tmp_path / f"{name}.npy") for name in ("real", "good", "bad"))
    found = score_sets(real, good, compare_to=bad, metrics=["fd", "kid", "prdc"], quiet=True)
    rows = {row["name"]: row for row in found["comparison"]}
    assert list(rows) == ["fd", "fd-infinity", "kid", "precision", "recall", "density", "coverage"]
    fd = rows["fd"]
    assert fd["difference"] == pytest.approx(fd["generated"] - fd["compared"])
    assert fd["interval"]["high"] < 0
    assert fd["p_value"] < 0.001
    assert rows["kid"]["p_value"] < 0.001
    assert rows["recall"]["difference"] > 0
    # from the same noise: the difference is known better than either distance
    alone = {score["name"]: score["interval"] for score in found["scores"]}
    same = {row["name"]: row for row in score_sets(real, good, compare_to=good, metrics=["fd", "prdc"], quiet=True)[
        "comparison"]}  # fmt: skip
    assert (same["fd"]["difference"], same["fd"]["p_value"]) == (0, 1)
    assert same["fd"]["interval"]["high"] < 1e-9 < alone["fd"]["high"] - alone["fd"]["low"]
    assert (same["recall"]["difference"], same["recall"]["p_value"]) == (0, 1)


def test_the_test_does_not_cry_wolf(tmp_path: Path) -> None:
    """40 pairs of equal generators, unpaired: p is below 0.05 in a few, and below 0.5 in about half."""
    rng = np.random.default_rng(1)
    small = []
    for i in range(40):
        for name in ("r", "a", "b"):
            np.save(tmp_path / f"{name}.npy", rng.normal(size=(150, 3)))
        real, a, b = (str(tmp_path / f"{name}.npy") for name in "rab")
        small.append(score_sets(real, a, compare_to=b, metrics=["fd"], quiet=True, seed=i)["comparison"][0]["p_value"])
    assert sum(p < 0.05 for p in small) <= 6
    assert 8 <= sum(p < 0.5 for p in small) <= 32


def test_generated_sets_of_unlike_counts_are_refused(tmp_path: Path, stored: dict[str, np.ndarray]) -> None:
    np.save(tmp_path / "few.npy", stored["good"][:50])
    with pytest.raises(InputError, match="400 generated and 50 compared"):
        score_sets(*(str(tmp_path / f"{n}.npy") for n in ("real", "good")), compare_to=str(tmp_path / "few.npy"))


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls, before = [0], Pixels.activations

    def activations(self: Pixels, prepared: torch.Tensor, names: Any) -> dict[str, torch.Tensor]:
        calls[0] += 1
        return before(self, prepared, names)

    monkeypatch.setattr(Pixels, "activations", activations)
    return calls


DIGITS: dict[str, Any] = {"features": "pixels", "metrics": ["fd"], "generated_split": "train", "quiet": True}


def test_statistics_of_the_real_set_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    first = by_name(score_sets("digits", "digits", **DIGITS))["fd-pixel"]
    whole, calls[0] = calls[0], 0
    second = by_name(score_sets("digits", "digits", **DIGITS))["fd-pixel"]
    # 500 real images in chunks of 512, batches of 256
    assert calls[0] == whole - 2
    assert (first["value"], first["interval"]) == (second["value"], second["interval"])
    calls[0] = 0
    same = score_sets("digits", "digits", **DIGITS | {"real_split": "train"})
    # another split is another set; one that is real and generated at once passes once
    assert calls[0] == 6
    assert abs(same["scores"][0]["value"]) < 1e-9
    assert any("same images" in note for note in same["warnings"])
    assert not list((cache_folder() / "work").glob("*/chunks"))


def test_features_of_the_real_set_are_computed_once_for_metrics_that_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    settings = DIGITS | {"metrics": ["fd", "kid", "prdc"]}
    first = score_sets("digits", "digits", **settings)
    whole, calls[0] = calls[0], 0
    second = score_sets("digits", "digits", **settings)
    assert calls[0] == whole - 2
    for a, b in zip(first["scores"], second["scores"], strict=True):
        assert (a["value"], a["interval"]) == (b["value"], b["interval"])
    (rows,) = (cache_folder() / "statistics").glob("*.raw")
    rows.write_bytes(rows.read_bytes()[:-4] + b"abcd")
    calls[0] = 0
    third = score_sets("digits", "digits", **settings)
    # changed rows are not believed
    assert calls[0] == whole
    assert third["scores"][1]["value"] == first["scores"][1]["value"]


def test_nothing_is_kept_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    score_sets("digits", "digits", **DIGITS, cache=False)
    assert not cache_folder().exists()


def test_a_damaged_entry_counts_as_absent() -> None:
    first = by_name(score_sets("digits", "digits", **DIGITS))["fd-pixel"]["value"]
    (entry,) = (cache_folder() / "statistics").iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    assert by_name(score_sets("digits", "digits", **DIGITS))["fd-pixel"]["value"] == first
    assert entry.stat().st_size > 100


def test_a_killed_run_gives_the_same_scores_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "CHUNK", 100)
    settings = DIGITS | {"metrics": ["fd", "prdc"], "batch_size": 50}
    whole = score_sets("digits", "digits", **settings, out=str(tmp_path / "whole"))
    calls = count_calls(monkeypatch)
    counting = Pixels.activations

    def killed(self: Pixels, prepared: torch.Tensor, names: Any) -> dict[str, torch.Tensor]:
        if calls[0] == 21:
            os.kill(os.getpid(), signal.SIGKILL)
        return counting(self, prepared, names)

    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(Pixels, "activations", killed)
        score_sets("digits", "digits", **settings, out=str(tmp_path / "killed"), cache=False)
        os._exit(3)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / "killed" / "results.json").exists()
    again = score_sets("digits", "digits", **settings, out=str(tmp_path / "killed"), cache=False)
    # 10 batches of the real set, done; 26 of the generated one, of which 5 whole chunks were done; 3 for the floor
    assert calls[0] == 26 - 10 + 3
    for a, b in zip(whole["scores"], again["scores"]):
        assert (a["value"], a["interval"]) == (b["value"], b["interval"])
    assert json.loads((tmp_path / "killed" / "results.json").read_text()) == again
    assert not list((tmp_path / "killed" / "work").glob("*/chunks"))


def test_two_processes_give_the_number_of_one(tmp_path: Path, stored: dict[str, np.ndarray]) -> None:
    """Through torchrun, from images and from stored features; the first process alone prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    images = ["--real", "digits", "--generated", "digits", "--generated-split", "train", "--features", "pixels"]
    command = [*launch, "-m", "scoreline", "score", *images, "--metrics", "fd", "--json", "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    one = score_sets("digits", "digits", **DIGITS, cache=False)
    for a, b in zip(one["scores"], json.loads(done.stdout)["scores"], strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-9)
        assert a["interval"]["low"] == pytest.approx(b["interval"]["low"], rel=1e-9)


def test_two_processes_and_stored_features(tmp_path: Path, stored: dict[str, np.ndarray]) -> None:
    """Each reads half of the rows."""
    read, chunks = [], FeatureFile.chunks

    def counted(*share: Any) -> Iterator[torch.Tensor]:
        for chunk in chunks(*share):
            read.append(len(chunk))
            yield chunk

    real, good = str(tmp_path / "real.npy"), str(tmp_path / "good.npy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in (0, 1):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            FeatureFile.chunks = counted
            found = score_sets(real, good, quiet=True)
            (tmp_path / f"{rank}.json").write_text(json.dumps(found))
            (tmp_path / f"{rank}.read").write_text(str(sum(read)))
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    assert json.loads((tmp_path / "1.json").read_text()) == {}
    halves = [int((tmp_path / f"{rank}.read").read_text()) for rank in (0, 1)]
    assert sum(halves) == len(stored["real"]) + len(stored["good"])
    assert abs(halves[0] - halves[1]) <= 2
    one, two = score_sets(real, good, quiet=True), json.loads((tmp_path / "0.json").read_text())
    for a, b in zip(one["scores"], two["scores"], strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-9)


def test_variables_of_torchrun_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(InputError, match="RANK and WORLD_SIZE"):
        score_sets("digits", "digits", **DIGITS)


def test_pictures_that_cannot_be_read_are_counted_or_refused(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(30):
        path = tmp_path / "made" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    (tmp_path / "made" / "07.png").write_bytes(b"")
    settings: dict[str, Any] = {"features": "pixels", "metrics": ["fd"], "quiet": True}
    with pytest.raises(ArtefactError, match=r"07\.png.*--on-bad-image skip"):
        score_sets("digits", str(tmp_path / "made"), **settings)
    found = score_sets("digits", str(tmp_path / "made"), **settings, on_bad_image="skip")
    assert found["sets"]["generated"]["count"] == 29
    assert any("1 bad images were left out, 29 are scored" in note for note in found["warnings"])
    keep = [i for i in range(30) if i != 7]
    x = np.stack([np.asarray(Image.open(tmp_path / "made" / f"{i:02d}.png")) for i in keep]).reshape(29, 64)
    real = load_images("digits", split="test").batch(range(500)).image.flatten(1)
    wanted = frechet_distance(real, torch.from_numpy(x / 127.5 - 1).float())
    assert found["scores"][0]["value"] == pytest.approx(wanted, rel=1e-5)
