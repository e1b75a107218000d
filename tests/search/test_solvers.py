"""`--space solver`: from a model to a plan file that `usf` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data import load_images
from scoreline.evaluate.specs import check_fit, labels_for, make_sampler
from scoreline.search.solvers import mean_image, search_solvers
from scoreline.search.workflow import Workflow


def workflow(folder: Path, **settings: Any) -> Workflow:
    given: dict[str, Any] = {
        "evaluations": 6,
        "metric": "fd",
        "features": "pixels",
        "count": 4,
        "report_count": 4,
        "report_seeds": (0, 1),
        "quiet": True,
    }
    return Workflow("digits", folder, **given | settings)


def test_from_a_model_to_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scoreline.search.solvers as module
    import scoreline.search.workflow as workflow_module

    monkeypatch.setattr(module, "PUBLISHED", ("ddim",))
    monkeypatch.setattr(module, "BASELINES", ("unipc-2",))
    monkeypatch.setattr(workflow_module, "FINALISTS", 2)
    results = search_solvers(workflow(tmp_path), nfe=3, command="scoreline search")
    names = [row["name"] for row in results["rows"]]
    assert names == ["unipc-2", "best published", "random search", "s3"]
    assert all(row["nfe"] == 3 for row in results["rows"])
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == json.loads(json.dumps(results["rows"]))
    sampler = make_sampler(f"usf:plan={tmp_path / 'plan.json'}", nfe=5)
    model = load("digits")
    assert check_fit(sampler, model) == 3
    sample = sampler(model.given(labels_for(range(2), 10)), Noise(0).at(range(2), model.shape))
    assert torch.isfinite(sample.x).all()
    assert sample.nfe == 3
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["plans"][0]["held_out"]["values"] == results["rows"][-1]["values"]
    assert plan["search"]["network_evaluations"] == 6 * 3 * 4
    assert plan["belongs_to"] == model.header["fingerprint"]
    # The same command finds everything there.
    again = search_solvers(workflow(tmp_path), nfe=3, command="scoreline search")
    assert again["rows"] == results["rows"]


def test_the_mean_image_is_of_the_training_split(tmp_path: Path) -> None:
    mean = mean_image(workflow(tmp_path))
    train = load_images("digits", split="train")
    exact = train.batch(range(len(train))).image.mean(0)
    assert (torch.tensor(mean) - exact).abs().max() < 1e-5


def test_too_small_a_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 2"):
        search_solvers(workflow(tmp_path), nfe=1)
    with pytest.raises(InputError, match="at least 4"):
        search_solvers(workflow(tmp_path, guidance=2.0), nfe=3)
    assert not (tmp_path / "plan.json").exists()
