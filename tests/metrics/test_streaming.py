"""The torchmetrics classes against their functions: batches, forward, merging, reset, saving, two processes."""

from __future__ import annotations

import pickle
import socket

import pytest
import torch
import torch.multiprocessing as mp

from scoreline import metrics
from scoreline.core.errors import InputError
from scoreline.metrics import (
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecallDensityCoverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    prdc,
)


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


REAL, GENERATED = draw(40, 4, 0), draw(30, 4, 1) + 0.3


def make(name: str):
    """(metric, what its function gives on the whole sets)."""
    if name == "fid":
        return FrechetDistance(4), {"": frechet_distance(REAL, GENERATED)}
    if name == "kid":
        spread = kernel_distance(REAL, GENERATED, subsets=5, subset_size=20)
        return KernelDistance(subsets=5, subset_size=20), {"mean": spread.mean, "std": spread.std}
    if name == "prdc":
        return PrecisionRecallDensityCoverage(), prdc(REAL, GENERATED)._asdict()
    spread = inception_score(GENERATED, splits=3)
    return InceptionScore(splits=3), {"mean": spread.mean, "std": spread.std}


def feed(metric, real: torch.Tensor, generated: torch.Tensor) -> None:
    if isinstance(metric, InceptionScore):
        metric.update(generated)
    else:
        metric.update(real=real, generated=generated)


def check(metric, expected: dict[str, float]) -> None:
    found = metric.compute()
    found = found if isinstance(found, dict) else {"": found}
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-9)
    assert all(v.dtype == torch.float64 for v in found.values())


NAMES = ["fid", "kid", "prdc", "is"]


@pytest.mark.filterwarnings("ignore:.*called before:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_batches_equal_the_function(name: str) -> None:
    metric, expected = make(name)
    for real, generated in zip(REAL.split(8), GENERATED.split(6)):
        feed(metric, real, generated)
    check(metric, expected)
    metric.reset()
    with pytest.raises(InputError):
        metric.compute()
    feed(metric, REAL, GENERATED)
    check(metric, expected)


@pytest.mark.parametrize("name", NAMES)
def test_merging_two_workers_equals_the_function(name: str) -> None:
    (first, expected), (second, _) = make(name), make(name)
    feed(first, REAL[:11], GENERATED[:17])
    feed(second, REAL[11:], GENERATED[17:])
    # torchmetrics puts the incoming state first
    second.merge_state(first)
    check(second, expected)


@pytest.mark.parametrize("name", NAMES)
def test_states_survive_saving(name: str) -> None:
    metric, expected = make(name)
    feed(metric, REAL[:20], GENERATED[:20])
    metric = pickle.loads(pickle.dumps(metric))
    metric.persistent(True)
    other, _ = make(name)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    feed(other, REAL[20:], GENERATED[20:])
    check(other, expected)


def test_forward_gives_the_batch_and_keeps_the_whole() -> None:
    metric = FrechetDistance(4)
    for rows in (slice(0, 20), slice(20, 40)):
        batch = metric(real=REAL[rows], generated=GENERATED[rows])
        assert batch.item() == pytest.approx(frechet_distance(REAL[rows], GENERATED[rows]), rel=1e-9)
    check(metric, {"": frechet_distance(REAL, GENERATED)})


def test_real_side_may_be_kept() -> None:
    metric = FrechetDistance(4, keep_real=True)
    metric.update(real=REAL, generated=GENERATED + 5)
    metric.reset()
    metric.update(generated=GENERATED)
    check(metric, {"": frechet_distance(REAL, GENERATED)})
    assert metric.moments("real").count == 40
    assert metric.moments("generated").count == 30


def test_bad_input_adds_nothing() -> None:
    metric = FrechetDistance(4)
    with pytest.raises(InputError, match="generated"):
        metric.update(real=REAL, generated=GENERATED[:, :3])
    assert metric.moments("real").count == 0
    with pytest.raises(InputError, match="real="):
        metric.update()
    with pytest.raises(InputError, match="NaN"):
        PrecisionRecallDensityCoverage().update(real=REAL * float("nan"))


def _worker(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    rows = (slice(0, 13), slice(13, None))[rank]
    found = {}
    for name in NAMES:
        metric, expected = make(name)
        feed(metric, REAL[rows], GENERATED[rows])
        value = metric.compute()
        found[name] = ({"": value} if torch.is_tensor(value) else value), expected
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other = mp.get_context("spawn").Process(target=_worker, args=(1, port, str(tmp_path)))
    other.start()
    _worker(0, port, str(tmp_path))
    other.join(60)
    assert other.exitcode == 0
    for rank in range(2):
        for found, expected in torch.load(tmp_path / f"{rank}.pt").values():
            assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-9)


def test_everything_exported_exists() -> None:
    assert set(metrics.__all__) <= set(dir(metrics))
    for name in metrics.__all__:
        assert getattr(metrics, name).__name__ == name
    with pytest.raises(AttributeError, match="frechet"):
        _ = metrics.frechet_distence


def test_functions_do_not_import_torchmetrics() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from scoreline.metrics import frechet_distance, prdc, kernel_distance, fid_infinity\n"
        "heavy = {'torchmetrics', 'scipy', 'sklearn', 'matplotlib', 'datasets', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
