"""The sampler that runs a solver schedule: counts, correctors, analytic first steps, plans from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.artefact import build, describe
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP
from scoreline.nn.unet import UNet
from scoreline.samplers.calibrations import save
from scoreline.samplers.model_statistics import ModelStatistics
from scoreline.samplers.solver_schedule import SolverSchedule, Step, write_plans
from scoreline.samplers.usf import USF

F8 = torch.float64
MEANS = torch.tensor([[-1.0, 0.4, 0.3], [0.8, 1.0, -0.5], [0.2, -1.2, 0.9]], dtype=F8)


def mixture(schedule: Any) -> Mixture:
    return Mixture(schedule, MEANS, torch.tensor([0.05, 0.1, 0.2], dtype=F8))


class Asked(Denoiser):
    """Remembers the times at which it was asked."""

    def __init__(self, inner: Denoiser, evaluations: int = 1) -> None:
        super().__init__()
        self.inner, self.schedule, self.shape, self.evaluations = inner, inner.schedule, inner.shape, evaluations
        self.at: list[float] = []

    def posterior(self, x: Tensor, t: Any, cond: Cond | None) -> Posterior:
        self.at.append(t)
        return self.inner(x, t, cond)


def file_of(plan: SolverSchedule | list[SolverSchedule], schedule: Any, **more: Any) -> dict[str, Any]:
    """The content of a plan file, without the file."""
    plans = plan if isinstance(plan, list) else [plan]
    return {
        "format": "scoreline/1", "kind": "solver-schedules", "schedule": describe(schedule), "mean": None,
        "plans": [{"plan": p.to_dict()} for p in plans], **more,
    }  # fmt: skip


def draws(count: int = 4) -> Any:
    return Noise(0).at(range(count), (3,), dtype=F8)


def random_plan(rng: np.random.Generator, schedule: Any) -> SolverSchedule:
    """Any feasible decisions, singlestep start points and implicit correctors among them."""
    count = int(rng.integers(1, 9))
    lam = np.sort(rng.uniform(-3.5, 2.5, count))
    steps = []
    for i in range(count):
        order = int(rng.integers(1, min(i + 1, 4) + 1))
        start = -int(rng.integers(1, i + 2))
        others = [p for p in range(-1, -i - 2, -1) if p != start]
        points = [rng.permutation(others)[: int(rng.integers(k, len(others) + 1))] for k in range(1, order)]
        last = i == count - 1
        steps.append(
            Step(
                str(rng.choice(["noise", "data"])),
                1 if last else order,
                start,
                () if last else tuple(map(tuple, points)),
                [None, "linear", "unipc-bh1", "-0.5exp"][rng.integers(4)],
                float(rng.normal(0, 0.1)),
                corrector=None if last else [None, "pseudo", "implicit"][rng.integers(3)],
            )
        )
    times = [*(float(t) for t in schedule.time(lam)), schedule.clean]
    return SolverSchedule(tuple(times), tuple(steps), afs=[None, "zero", "average"][rng.integers(3)])


@pytest.mark.check(system=18, number=7)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_evaluations_are_what_is_counted(variant: str) -> None:
    rng = np.random.default_rng(0)
    for number in range(100):
        schedule = (EDM(), VP())[number % 2]
        plan = random_plan(rng, schedule)
        model = Asked(mixture(schedule))
        sampler = USF(plan=file_of(plan, schedule, mean=[0.0, 0.1, 0.2]), variant=variant)
        sample = sampler(model, draws(1))
        assert sample.nfe == len(model.at) == plan.nfe(variant=variant) == sampler.cost(len(plan.steps))
        assert sum(t == plan.times[0] for t in model.at) == (plan.afs is None)
        assert torch.isfinite(sample.x).all()


@pytest.mark.check(system=18, number=9)
def test_analytic_first_step_is_a_step_with_the_noise_itself() -> None:
    """On VP sigma_T is 1 to 2e-5, so eps is x_T; the network is not asked at T."""
    schedule = VP()
    times = (1.0, 0.6, 0.2)
    for kind in ("noise", "data"):
        plan = SolverSchedule(times, (Step(kind), Step("data")), afs="zero")
        model = Asked(mixture(schedule))
        run = USF(plan=file_of(plan, schedule))(model, draws(), trajectory=True)
        assert run.trajectory is not None
        x = run.trajectory[0]
        alpha, sigma = schedule.alpha(np.array(times)), schedule.sigma(np.array(times))
        eps = x / sigma[0]
        assert (x - eps).abs().max() < 1e-4
        # x_0 = 0, so that what is left is the noise at the next level.
        step = alpha[1] / alpha[0] * x + (sigma[1] - alpha[1] * sigma[0] / alpha[0]) * eps
        assert (run.trajectory[1] - sigma[1] * eps).abs().max() < 1e-10
        assert (run.trajectory[1] - step).abs().max() < 1e-9
        assert model.at == [0.6]


def test_released_analytic_first_step() -> None:
    """The released code takes eps = x/sigma, but makes x_0 from eps = x."""
    schedule = EDM()
    for kind, clean in (("noise", 0.0), ("data", 1 - 80.0)):
        plan = SolverSchedule((80.0, 10.0, 0.0), (Step(kind), Step("data")), afs="zero")
        path = USF(plan=file_of(plan, schedule), variant="released")(
            mixture(schedule), draws(), trajectory=True
        ).trajectory
        assert path is not None
        eps = path[0] / 80
        wanted = path[0] + (10 - 80) * eps if kind == "noise" else path[0] / 8 + (1 - 1 / 8) * clean * path[0]
        assert (path[1] - wanted).abs().max() < 1e-9 * path[1].abs().max()


def test_average_first_step_starts_from_the_mean_image() -> None:
    schedule = EDM()
    plan = SolverSchedule((80.0, 10.0, 0.0), (Step("data"), Step("data")), afs="average")
    run = USF(plan=file_of(plan, schedule, mean=[0.5, -0.5, 2.0]))(mixture(schedule), draws(), trajectory=True)
    assert run.trajectory is not None
    x = run.trajectory[0]
    wanted = x / 8 + (1 - 1 / 8) * torch.tensor([0.5, -0.5, 2.0], dtype=F8)
    assert (run.trajectory[1] - wanted).abs().max() < 1e-12
    assert run.nfe == 1
    with pytest.raises(InputError, match="mean image"):
        USF(plan=file_of(plan, schedule))


@pytest.mark.check(system=18, number=10)
@pytest.mark.parametrize("like", ["dpm-solver++2m", "deis-2", "unipc-2"])
def test_identical_decisions_at_all_steps_are_the_uniform_path(like: str) -> None:
    """Decisions written out by hand, step by step, against the published solver of that name."""
    schedule, count = EDM(), 7
    times = USF(like=like, steps=count).times(schedule)
    kind = "noise" if like == "deis-2" else "data"
    top, scaling = {"dpm-solver++2m": (2, "dpmsolver-2"), "deis-2": (3, None), "unipc-2": (2, "unipc-bh2")}[like]
    steps = []
    for i in range(count):
        order = 1 if i == count - 1 else min(i + 1, top)
        extra = (-2, -3, -4)[: order - 1]
        corrector = "pseudo" if like == "unipc-2" and i < count - 1 else None
        steps.append(
            Step(
                kind,
                order,
                -1,
                (extra,) * (order - 1),
                scaling if order == 2 else None,
                corrector=corrector,
                corrector_scaling="unipc-bh2" if corrector and order == 1 else None,
            )
        )
    hand = USF(plan=file_of(SolverSchedule(tuple(times), tuple(steps)), schedule))
    same = USF(like=like, steps=count)
    assert (hand(mixture(schedule), draws()).x - same(mixture(schedule), draws()).x).abs().max() < 1e-12


def test_an_implicit_corrector_asks_again_at_the_corrected_point() -> None:
    """Written out: DDIM to x', F' = network(x'), the trapezoid in lambda to x'', then on from network(x'')."""
    schedule, model = EDM(), mixture(EDM())
    plan = SolverSchedule((5.0, 2.0, 0.0), (Step("data", corrector="implicit"), Step("data")))
    run = USF(plan=file_of(plan, schedule))(model, draws())
    x = draws().normal() * 5.0
    h = np.log(5.0 / 2.0)
    D = model(x, 5.0).mean
    predicted = 0.4 * x + 0.6 * D
    slope = (model(predicted, 2.0).mean - D) / h
    corrected = predicted + (np.exp(-h) - 1 + h) * slope
    assert (run.x - model(corrected, 2.0).mean).abs().max() < 1e-12
    pseudo = SolverSchedule((5.0, 2.0, 0.0), (Step("data", corrector="pseudo"), Step("noise")))
    run = USF(plan=file_of(pseudo, schedule))(model, draws())
    # The answer is kept, the state is replaced: noise prediction to the clean end is x'' - sigma eps(x').
    assert (run.x - (corrected - 2.0 * model(predicted, 2.0).eps)).abs().max() < 1e-12


def test_a_plan_brings_its_times_and_chooses_by_budget(tmp_path: Path) -> None:
    schedule = EDM()
    plans = [SolverSchedule((80.0, *np.geomspace(10, 0.1, n - 1), 0.0), (Step(),) * n) for n in (3, 5)]
    file = tmp_path / "plans.json"
    write_plans(file, [{"plan": p} for p in plans], schedule)
    model = mixture(schedule)
    for budget, steps in ((3, 3), (4, 3), (5, 5), (20, 5)):
        sample = USF(plan=str(file), nfe=budget)(model, draws())
        assert sample.nfe == steps
        assert tuple(sample.times) == plans[steps == 5].times
    assert USF(plan=str(file), steps=5)(model, draws()).nfe == 5
    assert USF(plan=str(file), nfe=7)(Asked(model, 2), draws()).nfe == 6
    with pytest.raises(InputError, match="cheapest plan needs 3"):
        USF(plan=str(file), nfe=2)(model, draws())
    with pytest.raises(InputError, match="3, 5 steps"):
        USF(plan=str(file), steps=4)(model, draws())
    with pytest.raises(InputError, match="3, 5 evaluations; say which"):
        USF(plan=str(file))(model, draws())


def test_a_description_holds_the_plan_itself(tmp_path: Path) -> None:
    schedule, file = EDM(), tmp_path / "plan.json"
    write_plans(file, [{"plan": SolverSchedule((80.0, 1.0, 0.0), (Step(), Step("noise")))}], schedule)
    sampler = USF(plan=str(file), nfe=2)
    again = build(json.loads(json.dumps(describe(sampler))))
    file.unlink()
    assert torch.equal(again(mixture(schedule), draws()).x, sampler(mixture(schedule), draws()).x)


def test_what_does_not_fit_is_refused_before_any_evaluation() -> None:
    plan = file_of(SolverSchedule((80.0, 1.0, 0.0), (Step(), Step("data", 2, -1, ((-2,),)))), EDM())
    model = Asked(mixture(EDM()))
    with pytest.raises(InputError, match="only be of order 1"):
        USF(plan=plan)(model, draws())
    with pytest.raises(InputError, match="another noise schedule"):
        USF(plan=plan)(Asked(mixture(VP())), draws())
    with pytest.raises(InputError, match="another noise schedule"):
        USF(plan=plan)(Asked(mixture(EDM(t_max=90.0))), draws())
    with pytest.raises(InputError, match="needs 3 of them"):
        USF(plan=plan)(model, draws(), times=[80.0, 5.0, 1.0, 0.5])
    with pytest.raises(InputError, match="give one of them"):
        USF(plan=plan, like="ddim")
    with pytest.raises(InputError, match="brings its own times"):
        USF(plan=plan, grid="karras")
    assert model.at == []


def test_ems_predictions_use_the_statistics_of_the_model(tmp_path: Path) -> None:
    """With l = 1, s = b = 0 an ems plan runs as its data twin; without statistics it is refused and the mend named."""
    schedule = EDM()
    model = Asked(mixture(schedule))
    times = (20.0, 6.0, 2.0, 0.5, 0.0)

    def plan(kind: str) -> dict[str, Any]:
        steps = (
            Step(kind, corrector="pseudo"), Step(kind, 2, -1, ((-2,),)), Step(kind, 2, -1, ((-2, -3),)), Step("data")
        )  # fmt: skip
        return file_of(SolverSchedule(times, steps), schedule)

    with pytest.raises(InputError, match="scoreline calibrate"):
        USF(plan=plan("ems"))(model, draws())
    assert model.at == []
    statistics = ModelStatistics(shape=(3,), nodes=20, low=-5.0, high=3.0).double()
    statistics.l.fill_(1.0)
    data = USF(plan=plan("data"))(mixture(schedule), draws()).x
    ems = USF(plan=plan("ems")).using(statistics)(mixture(schedule), draws())
    assert (ems.x - data).abs().max() < 1e-9
    assert ems.nfe == 4
    save("dpm-solver-v3", model.inner, statistics)
    found = USF(plan=plan("ems"))(mixture(schedule), draws())
    assert torch.equal(found.x, ems.x)
    statistics.l.fill_(0.4)
    assert (USF(plan=plan("ems")).using(statistics)(mixture(schedule), draws()).x - data).abs().max() > 1e-3


def test_skip_coefficients_are_passed_as_a_plan() -> None:
    torch.manual_seed(0)
    net = UNet(in_shape=(1, 8, 8), base_channels=8, channel_mult=(1, 2), num_blocks=1, attention=())
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model = Preconditioned(net, EDM(), kind="edm").eval()
    joints = len(net.joints)
    steps = (Step(), Step("data", 2, -1, ((-2,),)), Step())
    runs = {}
    for name, skips in (("none", None), ("ones", (1.0,) * joints), ("less", (0.5,) * joints), ("bad", (0.5,))):
        plan = SolverSchedule((80.0, 5.0, 0.5, 0.0), steps, skips=skips)
        noise = Noise(0).at(range(2), (1, 8, 8))
        if name == "bad":
            with pytest.raises(InputError, match="factors"):
                USF(plan=file_of(plan, EDM()))(model, noise)
        else:
            runs[name] = USF(plan=file_of(plan, EDM()))(model, noise).x
    assert torch.equal(runs["none"], runs["ones"])
    assert (runs["none"] - runs["less"]).abs().max() > 1e-4
