"""CopyScope on workflows whose contributions are known, its utilities, and runs that are killed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError, NonFiniteError
from scoreline.core.noise import Noise
from scoreline.explain.attribution import Component
from scoreline.explain.copyscope import CopyScope, feature_distance
from scoreline.explain.shapley import shapley
from scoreline.metrics import frechet_distance, polynomial_mmd
from scoreline.nn.features import Pixels

SCRIPT = Path(__file__).with_name("killed.py")
spec = importlib.util.spec_from_file_location("killed_attribution", SCRIPT)
assert spec is not None
assert spec.loader is not None
killed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(killed)
scope: Callable[..., CopyScope] = killed.scope

SHAPE = (1, 2, 2)
PIXELS = {"pixels": Pixels(SHAPE)}
ARTWORK = (0.5 + 0.1 * Noise(7).at(range(50), SHAPE).normal()).clamp(-1, 1)


def shifting(steps: dict[str, float], count: int = 60) -> Callable[[frozenset[str], Noise], Tensor]:
    """Images whose pixels all move by what the active components add."""

    def make(active: frozenset[str], noise: Noise) -> Tensor:
        return 0.1 * noise.at(range(count), SHAPE).normal() + sum(steps[name] for name in active)

    return make


def run(steps: dict[str, float], **settings: Any) -> Any:
    (found,) = CopyScope(list(steps), shifting(steps), ARTWORK, PIXELS, **settings).run().values()
    return found


def test_the_values_are_those_of_distances_computed_by_hand() -> None:
    steps = {"a": 0.3, "b": 0.2}
    make = shifting(steps)
    found = run(steps, seeds=(0, 4))
    by_hand = []
    for seed in (0, 4):
        sets = [make(frozenset(names), Noise(seed)).flatten(1) for names in ((), ("a",), ("b",), ("a", "b"))]
        distances = [frechet_distance(ARTWORK.flatten(1), images) for images in sets]
        by_hand.append(shapley([distances[0] - d for d in distances], 2).values)
    rows = torch.stack(by_hand)
    assert found.by_seed == tuple(tuple(row.tolist()) for row in rows)
    for i in (0, 1):
        assert found.phi[i].mean == pytest.approx(rows[:, i].mean().item(), rel=1e-12)
        assert found.phi[i].sd == pytest.approx(rows[:, i].std().item(), rel=1e-12)
        assert found.phi[i].se == pytest.approx(rows[:, i].std().item() / math.sqrt(2), rel=1e-12)
    # Student's t with one degree of freedom is Cauchy: its 97.5 % quantile is tan(0.475 pi).
    half = rows[:, 0].std().item() / math.sqrt(2) * math.tan(0.475 * math.pi)
    interval = found.phi[0].interval
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=1e-9)
    assert found.phi[0].mean in interval
    assert found.value[0].mean == 0
    assert found.distance[0].mean - found.distance[3].mean == pytest.approx(found.total, rel=1e-12)
    assert found.name == "fd-pixel"


def test_what_moves_towards_the_artwork_is_positive_and_efficiency_holds() -> None:
    found = run({"towards": 0.5, "idle": 0.0, "away": -0.2})
    towards, idle, away = found.phi
    assert towards.mean > 0 > away.mean
    assert idle.mean == idle.sd == 0
    assert math.fsum(e.mean for e in found.phi) == pytest.approx(found.total, rel=1e-9)
    assert found.residual < 1e-12
    assert found.share is None  # a negative contribution is reported, never clipped
    assert found.material == (True, False, False)
    assert found.order == [0, 1, 2]


def test_shares_sum_to_one_where_all_contribute() -> None:
    found = run({"a": 0.3, "b": 0.15})
    assert sum(found.share) == pytest.approx(1)
    assert found.share[0] > found.share[1] > 0
    # The distance is quadratic in the shift, so the two take work from each other.
    assert found.interaction[0][1] < 0


def test_material_needs_both_size_and_certainty() -> None:
    steps = {"large": 0.46, "small": 0.02}
    assert run(steps).material == (True, False)  # certain, but below 10 % of the whole
    assert run(steps, seeds=(0,)).material is None  # no spread, no verdict
    noisy = CopyScope(
        ["a"], lambda active, noise: (0.5 if noise.seed and active else 0.0) + 0.1 * noise.at(range(9), SHAPE).normal(),
        ARTWORK, PIXELS, seeds=(0, 1),
    )  # fmt: skip
    (found,) = noisy.run().values()
    assert found.phi[0].mean > 0.1 * found.total
    assert found.material == (False,)  # large in one seed set, absent in the other


@pytest.mark.check(system=5, number=9)
def test_components_that_are_all_inactive_get_exactly_nothing() -> None:
    calls = []

    def make(active: frozenset[str], noise: Noise) -> Tensor:
        calls.append(active)
        return 0.1 * noise.at(range(30), SHAPE).normal()

    found = CopyScope(["a", "b", "c"], make, ARTWORK, PIXELS, utilities=("fd", "kid")).run(None)
    for attribution in found.values():
        assert [e.mean for e in attribution.phi] == [0.0] * 3
        assert [e.sd for e in attribution.phi] == [0.0] * 3
        assert attribution.total == 0
        assert attribution.material == (False,) * 3
    assert len(calls) == 8 * 3


def test_equal_images_are_encoded_once_and_equal_coalitions_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from scoreline.explain import coalitions

    encoded: list[int] = []
    genuine = coalitions.features_of
    monkeypatch.setattr(coalitions, "features_of", lambda *a, **k: (encoded.append(1), genuine(*a, **k))[1])
    made = []
    plain = shifting({"a": 0.3, "idle": 0.0})

    def make(active: frozenset[str], noise: Noise) -> Tensor:
        made.append(active)
        return plain(active, noise)

    first = CopyScope(["a", "idle"], make, ARTWORK, PIXELS, seeds=(0,)).run()["fd-pixel"]
    assert (len(made), len(encoded)) == (4, 2)
    known = CopyScope(["a", "idle"], make, ARTWORK, PIXELS, seeds=(0,), same=lambda active: str("a" in active))
    assert known.run()["fd-pixel"].phi == first.phi
    assert (len(made), len(encoded)) == (6, 4)


def test_every_coalition_of_a_seed_set_gets_the_same_noise() -> None:
    seen: dict[int, set[float]] = {}

    def make(active: frozenset[str], noise: Noise) -> Tensor:
        x = noise.at(range(10), SHAPE).normal()
        seen.setdefault(noise.seed, set()).add(float(x.sum()))
        return x.clamp(-1, 1) * (1 if active else 0.5)

    CopyScope(["a", "b"], make, ARTWORK, PIXELS, seeds=(3, 5)).run()
    assert sorted(seen) == [3, 5]
    assert all(len(sums) == 1 for sums in seen.values())


@pytest.mark.check(system=5, number=5)
def test_the_sign_is_that_of_similarity() -> None:
    """v = -F and v = F(empty) - F agree, and the nearer component has the larger value."""
    found = run({"near": 0.45, "far": 0.05})
    distance = [found.distance[mask].mean for mask in range(4)]
    negative = shapley([-d for d in distance], 2).values.tolist()
    assert negative == pytest.approx([e.mean for e in found.phi], rel=1e-9)
    assert found.phi[0].mean > found.phi[1].mean > 0


def test_kid_and_the_feature_distance_are_their_formulas() -> None:
    make = shifting({"a": 0.3})
    utilities = ("kid", "feature-distance", "cmmd")
    found = CopyScope(["a"], make, ARTWORK, PIXELS, utilities=utilities, seeds=(0,)).run()
    images = make(frozenset({"a"}), Noise(0)).flatten(1)
    art = ARTWORK.flatten(1)
    assert found["kid-pixels"].distance[1].mean == pytest.approx(polynomial_mmd(art, images))
    assert found["feature-distance-pixels"].distance[1].mean == pytest.approx(torch.cdist(images, art).mean().item())
    assert found["cmmd-pixels"].total > 0
    assert found["kid-pixels"].protocol.method == "unbiased"


def test_a_single_reference_image_has_no_frechet_distance() -> None:
    one, copies = ARTWORK[:1], ARTWORK[:1].expand(30, -1, -1, -1)
    make = shifting({"a": 0.3})
    for reference in (one, copies):
        with pytest.raises(InputError, match="feature-distance"):
            CopyScope(["a"], make, reference, PIXELS)
        found = CopyScope(["a"], make, reference, PIXELS, utilities=["feature-distance"]).run()
        assert found["feature-distance-pixels"].phi[0].mean > 0
    with pytest.raises(InputError, match="kid"):
        CopyScope(["a"], make, one, PIXELS, utilities=["kid"])
    assert feature_distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])) == 5


def test_small_sets_are_never_nan_and_are_warned_of() -> None:
    found = CopyScope(["a"], shifting({"a": 0.3}, count=3), ARTWORK[:2], PIXELS).run()["fd-pixel"]
    assert all(math.isfinite(e.mean) for e in (*found.distance.values(), *found.phi))
    assert any("rank-deficient" in note for note in found.warnings)
    assert any("too high" in note for note in found.warnings)


def test_bootstrap_errors_are_close_to_those_of_new_seeds() -> None:
    steps = {"a": 0.3, "b": 0.1}
    over_seeds = run(steps, seeds=range(24))
    once = run(steps, seeds=(0,), bootstrap=40)
    assert "40 joint bootstrap" in once.spread
    for seen, claimed in zip(over_seeds.phi, once.phi):
        assert claimed.sd == claimed.se == pytest.approx(seen.sd, rel=0.5)
    twice = run(steps, seeds=(0, 1), bootstrap=40)
    assert twice.phi[0].se == pytest.approx(once.phi[0].se / math.sqrt(2), rel=0.4)
    assert twice.phi[0].se == pytest.approx(twice.phi[0].sd / math.sqrt(2))
    assert twice.phi == run(steps, seeds=(0, 1), bootstrap=40).phi  # seeded


def test_the_resamples_are_joint() -> None:
    # An idle component has the same images with and without it, also in every resample.
    found = run({"a": 0.3, "idle": 0.0}, seeds=(0,), bootstrap=10)
    assert found.phi[1].sd == 0
    assert found.phi[0].sd > 0


def test_sampled_orders_agree_with_all_coalitions() -> None:
    steps = {"a": 0.2, "b": 0.1, "c": 0.05, "d": 0.0}
    scope = CopyScope(list(steps), shifting(steps), ARTWORK, PIXELS, seeds=(0,))
    exact, sampled = scope.run()["fd-pixel"], scope.run(method="permutation", samples=200)["fd-pixel"]
    assert (exact.method, sampled.method) == ("exact", "permutation")
    for a, b in zip(exact.phi, sampled.phi):
        assert abs(a.mean - b.mean) <= 5 * (b.se or 0) + 1e-12
        assert b.half == pytest.approx(1.959964 * b.se, rel=1e-6)
        assert a.interval is None  # one seed set, all coalitions: no spread is known
    assert sampled.banzhaf is None
    assert sampled.interaction is None
    assert sampled.leave_one_out == exact.leave_one_out


def test_many_components_need_few_coalitions() -> None:
    steps = {f"part {i}": 0.05 * (i == 0) for i in range(13)}
    scope = CopyScope(list(steps), shifting(steps, count=20), ARTWORK, PIXELS, seeds=(0,))
    found = scope.run(samples=4)["fd-pixel"]
    assert found.method == "permutation"
    assert len(found.distance) < 80
    assert found.phi[0].mean > 0
    assert found.order[0] == 0


def test_owners_are_merged_players_and_share_by_owen() -> None:
    steps = {"a": 0.2, "b": 0.2, "c": 0.1}
    found = run(steps, seeds=(0,), owners={"studio": ["a", "c"]})
    v = [found.value[mask].mean for mask in range(8)]
    alone = shapley([v[0], v[0b101], v[0b010], v[0b111]], 2).values.tolist()
    assert list(found.owners) == ["studio", "b"]
    assert [e.mean for e in found.owners.values()] == pytest.approx(alone)
    assert found.owen[0].mean + found.owen[2].mean == pytest.approx(alone[0])
    with pytest.raises(InputError, match="did you mean 'a'"):
        run(steps, owners={"studio": ["A"]})


def test_the_record_is_plain_and_says_what_it_is_not() -> None:
    component = Component("a", "moves the pixels", "leaves them")
    found = CopyScope([component], shifting({"a": 0.3}), ARTWORK, PIXELS).run()["fd-pixel"]
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert "not a verdict" in record["meaning"]
    assert record["components"] == [{"name": "a", "present": "moves the pixels", "absent": "leaves them"}]
    assert record["contributions"][0]["phi"]["mean"] == found.phi[0].mean
    assert record["coalitions"][1]["active"] == ["a"]
    assert record["protocol"]["generated_count"] == 60
    assert record["protocol"]["reference_count"] == 50


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"components": []}, "at least one"),
        ({"components": ["a", "a"]}, "name of its own"),
        ({"utilities": ["fid"]}, "did you mean 'fd'"),
        ({"utilities": []}, "at least one"),
        ({"seeds": (1, 1)}, "distinct"),
        ({"seeds": ()}, "distinct"),
        ({"bootstrap": 1}, "at least 2"),
        ({"encoders": {}}, "feature network"),
        ({"reference": ARTWORK * 300}, "range"),
    ],
)
def test_refusals(settings: dict[str, Any], word: str) -> None:
    arguments = {"components": ["a"], "reference": ARTWORK, "encoders": PIXELS, **settings}
    make = shifting({"a": 0.3})
    with pytest.raises(InputError, match=word):
        CopyScope(arguments.pop("components"), make, arguments.pop("reference"), arguments.pop("encoders"), **arguments)


@pytest.mark.parametrize(
    "make, error, word",
    [
        (lambda active, noise: torch.full((5, *SHAPE), math.nan), NonFiniteError, "coalition nothing"),
        (lambda active, noise: torch.zeros(5, 4), InputError, "floats in"),
        (lambda active, noise: [1, 2], InputError, "list"),
        (lambda active, noise: torch.randn(5 + len(active), *SHAPE).clamp(-1, 1), InputError, "others gave 5"),
        (lambda active, noise: torch.full((5, *SHAPE), 7.0), InputError, "range"),
    ],
)
def test_coalitions_that_make_no_images_are_refused(make: Any, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        CopyScope(["a"], make, ARTWORK, PIXELS).run()


def test_workers_give_the_numbers_of_one_process(tmp_path: Path) -> None:
    alone = scope().run()["fd-pixel"]
    together = scope().run(tmp_path, workers=2)["fd-pixel"]
    assert alone == together
    assert alone.phi[2].mean == 0


def test_a_folder_keeps_what_was_made_for_further_seeds_and_utilities(tmp_path: Path) -> None:
    first = scope(seeds=(0,)).run(tmp_path)["fd-pixel"]
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    again = scope(seeds=(0, 1), utilities=("fd", "kid")).run(tmp_path)
    assert (tmp_path / "ledger.jsonl").read_text().splitlines()[: len(lines)] == lines
    assert again["fd-pixel"].by_seed[0] == first.by_seed[0]
    assert again == scope(utilities=("fd", "kid")).run()
    assert (tmp_path / "pictures/coalition-110.png").is_file()
    with pytest.raises(ArtefactError, match="another run"):
        scope().run(tmp_path, job={"images": 3})
    with pytest.raises(InputError, match="workers"):
        scope().run(tmp_path, workers=0)


def test_a_lost_features_file_is_made_again(tmp_path: Path) -> None:
    first = scope().run(tmp_path)
    for file in list((tmp_path / "features").iterdir())[:2]:
        file.unlink()
    assert scope().run(tmp_path) == first
    next((tmp_path / "features").iterdir()).write_bytes(b"no array")
    with pytest.raises(ArtefactError, match="cannot be read"):
        scope().run(tmp_path)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, str(SCRIPT), str(tmp_path), "1", "0.5"])
    try:
        wait_for(tmp_path, 1)
        with pytest.raises(ArtefactError, match="in use by another run"):
            scope().run(tmp_path)
    finally:
        other.kill()
        other.wait()
    assert scope().run(tmp_path) == scope().run()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path, workers: int) -> None:
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(tmp_path), str(workers), "0.15"])
    wait_for(tmp_path, 3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len((tmp_path / "ledger.jsonl").read_text().splitlines())
    assert 3 <= done < 16
    told: list[int] = []
    resumed = scope().run(tmp_path, advance=lambda n, text: told.append(n))
    assert told[0] >= done - 1  # a torn last line may have gone
    assert sum(told) == 16
    assert resumed == scope().run()


def wait_for(folder: Path, lines: int) -> None:
    ledger = folder / "ledger.jsonl"
    for _ in range(600):
        if ledger.is_file() and ledger.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.05)
    raise AssertionError("nothing was made")


def test_a_killed_worker_is_one_clear_error(tmp_path: Path) -> None:
    parent = os.getpid()

    def make(active: frozenset[str], noise: Noise) -> Tensor:
        if os.getpid() != parent and len(active) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return shifting({"a": 0.3, "b": 0.1})(active, noise)

    with pytest.raises(ArtefactError, match="goes on from here"):
        CopyScope(["a", "b"], make, ARTWORK, PIXELS).run(tmp_path, workers=2)


def test_an_error_in_a_worker_is_the_error(tmp_path: Path) -> None:
    def make(active: frozenset[str], noise: Noise) -> Tensor:
        raise InputError("weather", "rain", "wait")

    with pytest.raises(InputError, match="weather 'rain': wait"):
        CopyScope(["a", "b"], make, ARTWORK, PIXELS).run(tmp_path, workers=2)
