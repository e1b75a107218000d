"""The benchmark of solvers runs, finds the samplers by itself, and chooses on one noise what it reports on another."""

from __future__ import annotations

import json

import pytest
import torch

from scoreline.core.artefact import describe
from scoreline.core.names import names
from scoreline.guidance.planned import RunPlan, write_plan
from scoreline.samplers.ddim import DDIM


@pytest.fixture
def bench(script):
    """The script."""
    return script("bench_solvers")


def test_it_runs(bench, capsys, tmp_path):
    file = tmp_path / "solvers.json"
    result = bench.main(["--quick", "--json", str(file)])
    out = capsys.readouterr().out
    assert json.loads(file.read_text())["models"].keys() == {"mixture"}
    for name, summary in result["models"].items():
        assert summary["ours"].keys() == set(bench.QUICK)
        assert summary["theirs"].keys() == {"DDIM", "UniPC(2)"}
        row = summary["ratios"][5]
        assert f"{name} at 5: ours {row['ours']}, theirs {row['theirs']}, ratio {row['ratio']:.2f} (aim 0.7)" in out
        # The same method at the same levels from the same noise: the two libraries agree.
        ours, theirs = summary["ours"]["ddim"][5], summary["theirs"]["DDIM"][5]
        assert ours["rmse"] == pytest.approx(theirs["rmse"], rel=0.02)
        assert ours["grid"] == theirs["grid"]
        assert summary["ours"]["heun"][5]["nfe"] == 5
        low, high = ours["interval"]
        assert low <= ours["frechet"] <= high
        assert 0 < summary["ours"]["dpm-solver++2m"][5]["rmse"] < ours["rmse"]


@pytest.mark.parametrize("name", ["digits", "digits-eps"])
def test_shipped_models_are_subjects(bench, name):
    subject = bench.digits(name)
    images, nfe = subject.images(DDIM(steps=2, grid=subject.grids[-1]), 0, 11)
    assert nfe == 2
    assert images.abs().max() <= 1
    assert subject.features(images).shape == (11, subject.real.dim)
    assert (subject.grids[-1] == "trailing") == (name == "digits-eps")


def test_every_deterministic_sampler_takes_part(bench):
    arms, left = bench.ours(quick=False)
    assert {"ddim", "euler", "heun", "dpm-solver++2m", "dpm-solver++3m"} <= arms.keys()
    assert {"ddpm", "ancestral"} <= left.keys()
    assert {spec.partition(":")[0] for spec in [*arms, *left]} == set(names("sampler"))
    assert not [spec for spec in bench.VARIANTS if spec in left], "a variant that does not exist any more"


def test_the_grid_is_chosen_on_the_other_noise(bench):
    """A sampler that is good on grid `time` with the images of noise A only: `time` is taken, and B tells the truth."""
    subject = bench.mixture()

    class Lucky(DDIM):
        def __call__(self, denoiser, noise, **more):
            sample = super().__call__(denoiser, noise, **more)
            if noise.seed == bench.SEED_A and self.grid == "time":
                exact = bench.exact(denoiser)(denoiser, noise)
                sample.x = exact.x.to(sample.x)
            return sample

    found = bench.measure(
        subject, {"lucky": lambda nfe, grid: Lucky(nfe=nfe, grid=grid)}, [5], (3, 24), lambda *a: None
    )
    row = found["lucky"][5]
    assert row["grid"] == "time"
    assert row["chosen_on"]["time"] < 1e-2 < row["rmse"]
    assert set(row["chosen_on"]) == set(subject.grids)


def test_what_cannot_run_is_said(bench):
    arms = {"2m": lambda nfe, grid: bench.make_sampler(f"dpm-solver++2m:grid={grid}", nfe=nfe)}
    found = bench.measure(bench.mixture(), arms, [2], (2, 20), lambda *a: None)
    assert "at least 3" in found["2m"][2]["reason"]
    assert bench.best(found, 2) is None


def test_the_same_noise_for_everybody(bench):
    subject = bench.mixture()
    a, _ = subject.images(DDIM(steps=3), 1, 4)
    b, _ = subject.images(DDIM(steps=3), 1, 2)
    assert torch.allclose(a[:2], b, atol=1e-5)


def test_searched_plans_stand_apart(bench, tmp_path):
    subject = bench.mixture()
    plan = RunPlan((0.9, 0.5, 0.2, 0.05), (), describe(subject.model.schedule))
    write_plan(tmp_path / "mixture-steps-4.json", plan, card={"sampler": "ddim"})
    arms = bench.planned_arms("mixture", tmp_path)
    assert list(arms) == ["planned:of=ddim"]
    assert not bench.planned_arms("digits", tmp_path)
    found = bench.measure(subject, arms, [4, 5], (2, 12), lambda *a: None, ("plan",))["planned:of=ddim"]
    assert found[4]["grid"] == "plan"
    assert found[4]["nfe"] == 4
    assert "searched for 4" in found[5]["reason"]


def test_the_plans_of_the_repository_fit_their_models(bench):
    for name in ("digits", "digits-eps"):
        model, arms = bench.load_model(name), bench.planned_arms(name, bench.PLANS)
        assert {key.partition(":")[0] for key in arms} == {"planned", "usf"}
        for make in arms.values():
            assert bench.check_fit(make(5, "plan"), model) == 5


def test_the_exact_ode_goes_down_to_the_cleanest_level(bench):
    schedule = bench.load_model("digits-eps").schedule
    sampler = bench.exact(bench.load_model("digits-eps"))
    assert sampler.times(schedule)[-2] == schedule.t_min
