"""The objective: what it scores, what it counts, and which noise it uses."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.cost import count_macs
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Empirical, Gaussian
from scoreline.diffusion.schedules import Discrete
from scoreline.evaluate import compare
from scoreline.evaluate.compare import converged, model_macs, rmse_per_image
from scoreline.evaluate.protocols import features_of, pick_encoder
from scoreline.evaluate.specs import guided, labels_for
from scoreline.metrics import frechet_distance
from scoreline.nn.plan import Plan
from scoreline.samplers.ddim import DDIM
from scoreline.search.costs import layer_costs, layer_count
from scoreline.search.objective import Objective
from scoreline.search.steps import planned_of

FIVE = {"steps": [0, 200, 400, 600, 800]}


def ddim(genotype: dict[str, Any]) -> Sampler:
    return DDIM(steps=int(genotype["n"]))


@pytest.fixture(scope="module")
def exact() -> Empirical:
    digits = load_images("digits")
    return Empirical(Discrete(), digits.batch(range(0, len(digits), 9)).image)


def made(model: Any, seed: int, count: int, steps: int) -> torch.Tensor:
    given = model.given(labels_for(range(count), model.num_classes))
    sample = DDIM(steps=steps)(given, Noise(seed).at(range(count), model.shape))
    return model.decode(sample.x).clamp(-1, 1)


def test_the_frechet_distance_of_what_is_sampled(exact: Empirical) -> None:
    objective = Objective(exact, ddim, data="digits", split="train", features="pixels", count=90, batch_size=40,
                          noise_seed=3, clip=True)  # fmt: skip
    found = objective({"n": 5})
    reference = load_images("digits", split="train")
    encoder = pick_encoder("pixels", reference)
    view = guided(exact, None, clip=True)
    images = torch.cat([made(view, 3, 90, 5)])
    real = features_of(encoder, reference.batch(range(len(reference))).image)
    assert found["value"] == pytest.approx(frechet_distance(real, features_of(encoder, images)), rel=1e-4)
    assert found["nfe"] == 5
    assert found["seconds"] > 0
    # The same again, whatever ran in between, and after a trip to another process.
    objective({"n": 3})
    again = pickle.loads(pickle.dumps(objective))({"n": 5})
    assert (again["value"], again["macs"]) == (found["value"], found["macs"])


def test_the_distance_to_the_converged_ode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "REFERENCE_STEPS", 10)
    objective = Objective("digits-eps", ddim, metric="rmse", count=2, noise_seed=2)
    model = load("digits-eps")
    expected = rmse_per_image(made(model, 2, 2, 4), converged(model, 2, 2, None, 2)).median()
    assert objective({"n": 4})["value"] == pytest.approx(float(expected), rel=1e-4)
    assert objective({"n": 8})["value"] < objective({"n": 4})["value"]


def test_fixed_and_fresh_noise(exact: Empirical) -> None:
    common = {"data": "digits", "features": "pixels", "count": 80}
    fixed, fresh = Objective(exact, ddim, **common), Objective(exact, ddim, **common, noise="fresh")  # type: ignore[arg-type]
    a, b = (one._images(one.sampler_of({"n": 2}), 0, 2)[0] for one in (fixed, fresh))
    assert torch.equal(a, b)
    assert fixed({"n": 4})["value"] == fixed.measured({"n": 4}, 0, 80)["value"]
    assert fresh({"n": 4})["value"] != fixed({"n": 4})["value"]
    assert fresh({"n": 4})["value"] == fresh({"n": 4})["value"]  # a pure function of the genotype
    other = fresh.but(noise_seed=1)
    assert other({"n": 4})["value"] != fresh({"n": 4})["value"]


def test_statistics_in_a_file_are_as_good_as_their_images(exact: Empirical, tmp_path: Path) -> None:
    train = load_images("digits", split="train").batch(range(1297)).image.flatten(1).double().numpy()
    path = tmp_path / "stats.npz"
    np.savez(path, mu=train.mean(0), sigma=np.cov(train, rowvar=False))
    from_file = Objective(exact, ddim, data=str(path), features="pixels", count=80)({"n": 4})["value"]
    from_images = Objective(exact, ddim, data="digits", split="train", features="pixels", count=80)({"n": 4})["value"]
    assert from_file == pytest.approx(from_images, rel=1e-6)
    with pytest.raises(InputError, match="serve fd alone"):
        Objective(exact, ddim, metric="kid", data=str(path))
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(InputError, match="5 features"):
        Objective(exact, ddim, data=str(wrong), features="pixels", count=20)({"n": 4})


def test_kernel_distances(exact: Empirical) -> None:
    objective = Objective(exact, ddim, metric="kid", data="digits", features="pixels", count=100)
    assert objective({"n": 20})["value"] < objective({"n": 2})["value"]


def test_multiply_accumulates_are_those_of_the_run() -> None:
    model = load("digits-eps")
    planned = planned_of(model, "ddim")
    objective = Objective("digits-eps", planned, features="pixels", count=4)
    assert objective(FIVE)["macs"] == 5 * model_macs(model)
    pruned = {**FIVE, "drop": [[], [0, 3], [], [2], []]}
    sampler, draws = planned(pruned), Noise(0).at([0], model.shape)
    expected = count_macs(lambda: sampler(model.given(labels_for([0], 10)), draws))
    found = objective(pruned)
    assert found["macs"] == expected < 5 * model_macs(model)
    assert found["nfe"] == 5
    assert objective(FIVE)["macs"] == 5 * model_macs(model)
    # Guidance runs the network on a doubled batch.
    both = Objective("digits-eps", planned, features="pixels", count=4, guidance=2.0)(FIVE)
    assert both["nfe"] == 10
    assert both["macs"] == pytest.approx(10 * model_macs(model), rel=0.01)  # the time is embedded once for both


def test_layer_costs_add_up() -> None:
    model = load("digits-eps")
    layers = layer_count(model)
    assert layers == model.net.num_layers > 5
    full, saved = layer_costs(model, "macs")
    assert full == model_macs(model)
    some = frozenset([0, 2, layers - 1])
    x, cond = torch.zeros(1, *model.shape), labels_for([0], 10)
    pruned = count_macs(model.under(Plan(drop=some)), x, 500.0, cond)
    assert full - sum(saved[i] for i in some) == pruned
    assert layer_costs(model, "layers") == (layers, (1.0,) * layers)
    seconds, each = layer_costs(model, "seconds", batch=2, repeats=1)
    assert seconds > 0
    assert len(each) == layers
    assert all(0 <= one < 2 * seconds for one in each)
    with pytest.raises(InputError, match="no layers"):
        layer_costs(Gaussian(Discrete(), torch.zeros(2), 1.0), "macs")
    with pytest.raises(InputError, match="did you mean 'seconds'"):
        layer_costs(model, "second")


def test_the_report_has_its_own_noise(exact: Empirical) -> None:
    objective = Objective(exact, ddim, data="digits", features="pixels", count=40, noise_seed=7)
    rows = objective.report([{"n": 3}, {"n": 9}], [1, 2, 3], 60)
    assert len(rows) == 2
    for n, row in zip((3, 9), rows):
        assert row["values"] == [objective.measured({"n": n}, seed, 60)["value"] for seed in (1, 2, 3)]
        assert row["mean"] == pytest.approx(np.mean(row["values"]))
        half = 4.3027 * np.std(row["values"], ddof=1) / math.sqrt(3)
        assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-3)
        assert row["nfe"] == n
    with pytest.raises(InputError, match="too good"):
        objective.report([{"n": 3}], [1, 7], 60)
    for seeds in ([], [1, 1]):
        with pytest.raises(InputError, match="distinct"):
            objective.report([{"n": 3}], seeds, 60)


def test_images_that_are_not_finite_are_never_chosen() -> None:
    class Broken(Gaussian):
        def posterior(self, x: Any, t: Any, cond: Any) -> Any:
            return super().posterior(x * math.nan, t, cond)

    model = Broken(Discrete(), torch.zeros(1, 8, 8), 1.0)
    assert Objective(model, ddim, data="digits", features="pixels", count=20)({"n": 3})["value"] == math.inf


def test_bad_settings(exact: Empirical) -> None:
    for settings, words in (
        ({"metric": "fid"}, "metric 'fid'"), ({"count": 1}, "count"), ({"batch_size": 0}, "batch_size"),
        ({"noise": "frsh"}, "did you mean 'fresh'"), ({"metric": "rmse", "noise": "fresh"}, "same noise"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            Objective(exact, ddim, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names no data set"):
        Objective(exact, ddim, count=20)({"n": 3})
