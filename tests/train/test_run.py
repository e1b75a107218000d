from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_methods import Dropped, Pair, Prototypes, Regression, Student, points, same, seeded, weights
from torch import nn

from scoreline.core.errors import ArtefactError, InputError, NonFiniteError
from scoreline.train import fit, resolve, run, stage
from scoreline.train.ema import HalfLife, PowerFunction, WarmUpDecay
from scoreline.train.lr import Cosine

HERE = Path(__file__).parent
SETTINGS: dict = {"batch_size": 12, "device": "cpu", "quiet": True, "log_every": 5, "checkpoint_every": 4}
AVERAGES = [0.9, WarmUpDecay(0.99), HalfLife(100.0), PowerFunction(0.1)]


def script(*command: str) -> str:
    surroundings = os.environ | {"PYTHONPATH": f"{HERE.parents[1] / 'src'}:{HERE}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=surroundings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)
        ]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    seen = json.loads(script(str(HERE / "killed.py"), str(tmp_path)))
    assert seen["status"] == 0
    stood = [tuple(place) for place in seen["stood"]]
    assert len(stood) >= 7
    assert sum(name == "teacher" for name, _ in stood) >= 3
    assert sum(name == "student" for name, _ in stood) >= 3
    assert seen["equal"] == {"teacher": True, "student": True}
    assert seen["killed"] == seen["straight"]
    assert seen["leftovers"] == []
    assert not seen["accelerate"]


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    script(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(HERE / "two_processes.py"),
        str(tmp_path),
    )
    for name, method, more in (("regression", Regression(), {"ema": 0.9}), ("pair", Pair(clip=0.05), {})):
        alone = run(method, points(), tmp_path / "alone" / name, steps=15, **SETTINGS, **more)
        first, second = (load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in (0, 1))
        for key, value in weights(alone.method).items():
            assert torch.equal(first[key], second[key])
            torch.testing.assert_close(first[key], value, rtol=0, atol=1e-5)
        for here, there in zip(rows(tmp_path / "alone" / name), rows(tmp_path / name), strict=True):
            assert {k: float(v) for k, v in here.items() if v} == pytest.approx(
                {k: float(v) for k, v in there.items() if v}, abs=1e-4
            )
    first, second = (load_file(tmp_path / f"statistics-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    for rank in (0, 1):
        assert "non-finite loss at step 4" in (tmp_path / f"poison-{rank}.txt").read_text()
    assert names(tmp_path / "poison") == ["000000000.safetensors", "000000004.safetensors"]


@pytest.mark.parametrize("make", [Dropped, Pair, Prototypes])
def test_stopped_and_gone_on_with_it_equals_fit(make: type, tmp_path: Path) -> None:
    whole = fit(make(), points(), steps=23, batch_size=12, ema=AVERAGES)
    for stop in (1, 9, 10, 22, None):
        trained = run(make(), points(), tmp_path, steps=23, stop_at=stop, ema=AVERAGES, **SETTINGS)
    assert same(whole.method, trained.method)
    assert (trained.counts, trained.step) == (whole.counts, 23)
    assert whole.averages is not None
    assert trained.averages is not None
    for key, value in whole.averages.tensors().items():
        assert torch.equal(trained.averages.tensors()[key], value)


def test_the_log_has_means_and_is_the_same_after_stops(tmp_path: Path) -> None:
    losses: list[float] = []
    fit(Regression(), points(), steps=13, batch_size=12, on_step=lambda step, seen: losses.append(float(seen["loss"])))  # type: ignore[func-returns-value]
    for stop in (3, 7, None):
        run(Regression(), points(), tmp_path, steps=13, stop_at=stop, **SETTINGS)
    log = rows(tmp_path)
    assert [row["step"] for row in log] == ["5", "10", "13"]
    assert [row["images"] for row in log] == ["60", "120", "156"]
    assert float(log[1]["loss"]) == pytest.approx(sum(losses[5:10]) / 5, rel=1e-5)
    assert float(log[2]["loss"]) == pytest.approx(sum(losses[10:]) / 3, rel=1e-5)


def test_a_finished_run_returns_at_once_and_goes_on_when_more_is_asked(tmp_path: Path) -> None:
    run(Regression(), points(), tmp_path, steps=8, **SETTINGS)
    again = Regression()
    run(again, points(), tmp_path, steps=8, **SETTINGS)
    assert again.steps == []
    more = run(again, points(), tmp_path, steps=11, **SETTINGS)
    assert again.steps == [8, 9, 10]
    assert same(more.method, fit(Regression(), points(), steps=11, batch_size=12).method)
    with pytest.raises(ArtefactError, match="at step 11 already"):
        run(Regression(), points(), tmp_path, steps=9, **SETTINGS)


def test_the_folder_of_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    run(Regression(), points(), tmp_path, steps=2, config={"preset": "a"}, **SETTINGS)
    changed = SETTINGS | {"batch_size": 6}
    with pytest.raises(ArtefactError, match=r"batch_size is 12 there, 6 here; given.preset is 'a' there, 'b' here"):
        run(Regression(), points(), tmp_path, steps=2, config={"preset": "b"}, **changed)
    with pytest.raises(ArtefactError, match=r"updates\[0\].lr is 0.01 there, 'Cosine"):
        run(Regression(lr=Cosine(0.1, 9)), points(), tmp_path, steps=2, config={"preset": "a"}, **SETTINGS)
    with pytest.raises(ArtefactError, match=r"data\.fingerprint"):
        run(Regression(), points(seed=9), tmp_path, steps=2, config={"preset": "a"}, **SETTINGS)


def test_a_frozen_teacher_is_not_saved_and_must_be_the_same(tmp_path: Path) -> None:
    teacher = seeded(lambda: nn.Linear(3, 1), 1)
    run(Student(teacher), points(), tmp_path, steps=6, stop_at=3, **SETTINGS)
    with safe_open(tmp_path / "checkpoints" / "000000003.safetensors", framework="pt") as file:
        kept = [name for name in file.keys() if name.startswith("method/")]  # noqa: SIM118
    assert sorted(kept) == ["method/net.bias", "method/net.weight"]
    with pytest.raises(ArtefactError, match=r"frozen.teacher is .* there"):
        run(Student(seeded(lambda: nn.Linear(3, 1), 2)), points(), tmp_path, steps=6, **SETTINGS)
    assert run(Student(teacher), points(), tmp_path, steps=6, **SETTINGS).step == 6


@pytest.mark.parametrize("harm", ["cut", "changed", "empty"])
def test_a_broken_checkpoint_gives_way_to_the_one_before(
    harm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Dropped(), points(), tmp_path, steps=14, stop_at=9, **SETTINGS)
    assert names(tmp_path) == ["000000008.safetensors", "000000009.safetensors"]
    newest = tmp_path / "checkpoints" / "000000009.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes({"cut": bytes(content[:-100]), "changed": bytes(content), "empty": b""}[harm])
    trained = run(Dropped(), points(), tmp_path, steps=14, **SETTINGS)
    assert "000000009.safetensors" in (said := capsys.readouterr().err)
    assert "the one before" in said
    assert same(trained.method, fit(Dropped(), points(), steps=14, batch_size=12).method)
    assert names(tmp_path) == ["000000009.broken", "000000012.safetensors", "000000014.safetensors"]
    for path in (tmp_path / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"nothing")
    with pytest.raises(ArtefactError, match="no whole checkpoint"):
        run(Dropped(), points(), tmp_path, steps=14, **SETTINGS)


def test_a_non_finite_loss_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="step 6"):
        run(Regression(poison={6: float("nan")}), points(), tmp_path, steps=9, **SETTINGS)
    assert names(tmp_path) == ["000000000.safetensors", "000000004.safetensors"]
    assert run(Regression(), points(), tmp_path, steps=9, **SETTINGS).step == 9


class Interrupted(Regression):
    def error(self, batch: object, shared: None, step: int) -> torch.Tensor:
        if step == 6:
            signal.raise_signal(signal.SIGINT)
        return super().error(batch, shared, step)  # type: ignore[arg-type]


def test_ctrl_c_saves_and_the_same_call_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    loud = SETTINGS | {"quiet": False}
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(), points(), tmp_path, steps=12, **loud)
    assert signal.getsignal(signal.SIGINT) is before
    assert names(tmp_path)[-1] == "000000007.safetensors"
    assert "stopped after step 7; the same command goes on from there" in (said := capsys.readouterr().err)
    assert "step 5/12  loss " in said
    assert "images/s" in said
    # The class has another name, which is another run; it says so rather than going on.
    with pytest.raises(ArtefactError, match="method is 'Interrupted' there, 'Regression' here"):
        run(Regression(), points(), tmp_path, steps=12, **loud)
    trained = run(Interrupted(), points(), tmp_path, steps=12, **loud)
    assert same(trained.method, fit(Regression(), points(), steps=12, batch_size=12).method)


def test_a_full_disk_is_one_clear_error_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(Regression(), points(), tmp_path, steps=12, stop_at=4, **SETTINGS)

    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(ArtefactError, match="disk is full"):
            run(Regression(), points(), tmp_path, steps=12, **SETTINGS)
    assert names(tmp_path) == ["000000000.safetensors", "000000004.safetensors"]
    trained = run(Regression(), points(), tmp_path, steps=12, **SETTINGS)
    assert same(trained.method, fit(Regression(), points(), steps=12, batch_size=12).method)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="not a folder"):
        run(Regression(), points(), tmp_path / "file" / "run", steps=1, **SETTINGS)


def test_samples_are_drawn_with_the_average_and_leave_the_training_as_it_was(tmp_path: Path) -> None:
    seen = []

    def sample(method: nn.Module, step: int, path: Path) -> None:
        torch.rand(step)
        seen.append((step, path.name, method.training, method.net.state_dict()["0.weight"].clone()))

    trained = run(Dropped(), points(), tmp_path, steps=10, ema=0.9, sample_every=4, sample=sample, **SETTINGS)
    whole = fit(Dropped(), points(), steps=10, batch_size=12, ema=0.9)
    assert same(trained.method, whole.method)
    assert [entry[:3] for entry in seen] == [(n, f"{n:09d}.png", False) for n in (4, 8, 10)]
    assert torch.equal(seen[-1][3], whole.result()[0].weight)


def test_checkpoints_can_be_made_by_the_clock(tmp_path: Path) -> None:
    settings = SETTINGS | {"checkpoint_every": 1000}
    run(Regression(), points(), tmp_path, steps=5, stop_at=5, checkpoint_seconds=0.0, **settings)
    assert names(tmp_path) == ["000000004.safetensors", "000000005.safetensors"]


def test_a_dry_run_says_what_would_happen_and_makes_nothing(tmp_path: Path) -> None:
    told = resolve(Pair(clip=1.0), points(), steps=100, batch_size=12, device="cpu", ema=0.999)
    assert json.loads(json.dumps(told)) == told
    assert told["plan"]["epochs"] == 25.0
    assert told["plan"]["images"] == 1200
    assert told["plan"]["device"] == "cpu"
    assert told["plan"]["parameters"] == told["plan"]["trainable"] == 12 + 32 + 9
    critic, generator = told["config"]["updates"]
    assert (critic["parameters"], critic["clip"], critic["settings"]) == (41, 1.0, {"betas": [0.5, 0.9]})
    assert (generator["every"], generator["lr"]) == (2, "small_methods.halving")
    assert told["config"]["data"]["count"] == 48
    assert len(told["config"]["data"]["fingerprint"]) == 64
    run(Pair(clip=1.0), points(), tmp_path, steps=100, stop_at=1, ema=0.999, **SETTINGS)
    assert json.loads((tmp_path / "run.json").read_text()) == told
    with pytest.raises(InputError, match="multiple of processes x accumulate = 10"):
        resolve(Pair(), points(), steps=1, batch_size=12, accumulate=5, world=2, device="cpu")


def test_a_stage_is_made_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoreline.core.artefact import recorded
    from scoreline.core.names import TABLE

    @recorded
    class Line(nn.Linear):
        def __init__(self, size: int) -> None:
            super().__init__(size, 1)

    Line.__module__, Line.__qualname__ = "stage_test", "Line"
    monkeypatch.setitem(sys.modules, "stage_test", type(sys)("stage_test"))
    monkeypatch.setattr(sys.modules["stage_test"], "Line", Line, raising=False)
    monkeypatch.setitem(TABLE["network"], "line", "stage_test:Line")
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(Line(3))
        return made[-1]

    first = stage(tmp_path / "one.safetensors", make)
    second = stage(tmp_path / "one.safetensors", make)
    assert len(made) == 1
    assert first is not made[0]
    assert same(first, made[0])
    assert same(second, made[0])
    assert not second.training


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"log_every": 0}, {"sample_every": 3}, {"device": "cud"}])
def test_wrong_arguments_are_refused_before_anything_is_written(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run(Regression(), points(), tmp_path / "run", **(SETTINGS | {"steps": 3} | wrong))
    assert not (tmp_path / "run").exists()
