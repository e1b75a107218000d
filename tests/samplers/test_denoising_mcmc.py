"""Denoising MCMC as a sampler: integrators, cost, numbers of images, conditions, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule, Time
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Discrete, Flow
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.denoising_mcmc import ChainSample, DenoisingMCMC, integrator, levels_from
from scoreline.samplers.heun import Heun
from scoreline.samplers.level_prediction import ExactLevels

MEANS = torch.tensor([[-1.0, 0.4, 0.3], [0.8, 1.0, -0.5], [0.2, -1.2, 0.9]], dtype=torch.float64)
VARIANCES = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)
SHORT: dict[str, Any] = {"start_steps": 4, "burn_in": 1, "settle": 1, "emissions": 10, "chains": 3}


def mixture(schedule: Schedule | None = None, **more: Any) -> Mixture:
    return Mixture(schedule or EDM(), MEANS, VARIANCES, **more)


def draws(indices: Any, shape: tuple[int, ...] = (3,), seed: int = 0) -> Any:
    return Noise(seed).at(indices, shape, dtype=torch.float64)


class Asked(Denoiser):
    """Counts evaluations times images."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.schedule, self.shape = inner, inner.schedule, inner.shape
        self.images = 0

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        self.images += len(x)
        return self.inner(x, t, cond)


# --- the integrators ---


@pytest.mark.check(system=8, number=3)
@pytest.mark.parametrize("N", [2, 3, 5])
def test_kar1_visits_its_levels_at_its_cost(N: int) -> None:
    """N - 1 levels from the image's own to sigma_min, then 0: 2(N-1) - 1 evaluations."""
    start = torch.tensor([3.0, 0.7], dtype=torch.float64)
    times = levels_from(start, 0.02, N - 1, "karras", EDM())
    assert times.shape == (N, 2)
    assert (times[-1] == 0).all()
    for image, s in enumerate(start.tolist()):
        i = np.arange(N - 1) / max(N - 2, 1)
        wanted = (s ** (1 / 7) + i * (0.02 ** (1 / 7) - s ** (1 / 7))) ** 7
        assert times[:-1, image].tolist() == pytest.approx(wanted.tolist())
    model = Asked(mixture())
    x = MEANS[:2] + start[:, None] * draws([0, 1]).normal()
    sample = DenoisingMCMC(of="kar1")(model, draws([0, 1]), times=times, x=x)
    assert sample.nfe == model.images / 2 == 2 * (N - 1) - 1
    if N == 2:
        s = start[:, None]
        assert torch.allclose(sample.x, x + s**2 * mixture().score(x, start))
        assert torch.allclose(sample.x, mixture()(x, start).mean)


@pytest.mark.check(system=8, number=4)
def test_kar1_converges_to_the_flow_of_a_gaussian_at_second_order() -> None:
    c, m = 0.3, torch.tensor([0.5, -0.2], dtype=torch.float64)
    sigma = torch.tensor([2.0, 0.9], dtype=torch.float64)
    x = draws([0, 1], (2,)).normal() * sigma[:, None] + m
    exact = m + (c / (c + sigma[:, None] ** 2)).sqrt() * (x - m)
    errors = []
    for N in (20, 40, 80):
        times = levels_from(sigma, 1e-3, N, "karras", EDM(t_min=1e-4))
        run = DenoisingMCMC(of="kar1")(Gaussian(EDM(t_min=1e-4), m, c), draws([0, 1], (2,)), times=times, x=x)
        errors.append((run.x - exact).abs().max().item())
    assert errors[2] < 1e-3
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.15)


@pytest.mark.check(system=8, number=5)
def test_kar2_without_churn_is_kar1() -> None:
    assert isinstance(integrator("kar2"), Heun)
    churned = integrator("kar2")
    assert (churned.s_churn, churned.s_min, churned.s_max, churned.s_noise) == (80.0, 0.1, 2.0, 1.007)  # type: ignore[attr-defined]
    still = Heun(s_churn=0.0, s_min=0.1, s_max=2.0, s_noise=1.007)
    runs = [DenoisingMCMC(of=of, steps=4, **SHORT)(mixture(), draws(range(6))).x for of in ("kar1", still, "kar2")]
    assert torch.equal(runs[0], runs[1])
    assert (runs[0] - runs[2]).abs().max() > 1e-3


@pytest.mark.check(system=8, number=9)
@pytest.mark.parametrize("of", ["kar1", "kar2", "ddim", "euler", "ancestral", "rk45", "reverse-diffusion", "pc"])
@pytest.mark.parametrize("schedule", [EDM(), VP(), Discrete()], ids=["edm", "vp", "discrete"])
def test_images_with_levels_of_their_own_equal_runs_one_by_one(of: str, schedule: Schedule) -> None:
    sampler = DenoisingMCMC(of=of, steps=3, **SHORT)
    whole = sampler(mixture(schedule), draws(range(12)))
    assert isinstance(whole, ChainSample)
    assert whole.levels is not None
    assert len(whole.levels.unique()) > 6
    assert whole.times.shape == (4, 12)
    for i in (0, 5, 11):
        alone = sampler(mixture(schedule), draws([i]))
        assert (alone.x[0] - whole.x[i]).abs().max() < 1e-10
        assert alone.nfe == whole.nfe


def test_every_integrator_brings_the_chains_images_to_the_data() -> None:
    """A hand-over at the image's own level: all deterministic ones agree on the image of the same emission."""
    images = {}
    for of in ("kar1", "ddim", "euler", "rk45"):
        steps = 12 if of == "rk45" else 60
        sampler = DenoisingMCMC(of=of, steps=steps, n_skip=3, tweedie=0.0, **SHORT)
        images[of] = sampler(mixture(), draws(range(9))).x
    for of in ("ddim", "euler", "rk45"):
        assert (images[of] - images["kar1"]).abs().max() < 0.05, of


@pytest.mark.parametrize("grid", ["karras", "logsnr", "time"])
def test_grids_go_from_the_images_level_to_the_lowest(grid: str) -> None:
    start = torch.tensor([2.0, 0.01], dtype=torch.float64)
    for schedule in (EDM(), VP()):
        times = levels_from(start, 0.05, 5, grid, schedule)
        levels = schedule.sigma(times[:-1]) / schedule.alpha(times[:-1])
        assert levels[0].tolist() == pytest.approx([2.0, max(0.01, float(np.exp(-schedule.lam(schedule.t_min))))])
        assert levels[-1, 0].item() == pytest.approx(0.05)
        gaps = -times[:-1, 0].diff() if grid == "time" else -levels[:, 0].log().diff()
        assert (gaps > 0).all()
        if grid != "karras":
            assert torch.allclose(gaps, gaps[:1])
        assert times[:-1, 1].diff().abs().max() < 1e-12, "a start below the lowest level stays there"
    one = levels_from(2.0, 0.05, 5, grid, EDM())
    assert isinstance(one, np.ndarray)
    assert one.tolist() == pytest.approx(levels_from(start[:1], 0.05, 5, grid, EDM())[:, 0].tolist())


@pytest.mark.parametrize("schedule", [EDM(), VP()])
def test_the_integrator_ends_at_sigma_min_which_is_that_of_data_in_0_1(schedule: Schedule) -> None:
    sample = DenoisingMCMC(steps=3, sigma_min=0.07, **SHORT)(mixture(schedule), draws(range(12)))
    assert isinstance(sample, ChainSample)
    assert sample.levels is not None
    last = schedule.sigma(sample.times[-2]) / schedule.alpha(sample.times[-2])
    assert torch.allclose(last, sample.levels.clamp(max=0.14))
    assert (sample.levels > 0.14).any()
    nominal = DenoisingMCMC(steps=3).times(schedule)
    assert float(schedule.sigma(nominal[-2]) / schedule.alpha(nominal[-2])) == pytest.approx(0.02)


def test_the_last_step_is_tweedies_formula() -> None:
    model, e = mixture(VP()), 2 * 0.1
    plain = DenoisingMCMC(steps=2, n_skip=2, tweedie=0.0, **SHORT)(model, draws(range(4)))
    ended = DenoisingMCMC(steps=2, n_skip=2, tweedie=0.1, **SHORT)(model, draws(range(4)))
    edm = mixture(EDM())
    assert torch.allclose(ended.x, plain.x + e**2 * edm.score(plain.x, e))
    assert ended.nfe == pytest.approx(plain.nfe + 1)


# --- cost ---


@pytest.mark.parametrize("more", [{}, {"metropolis": True}, {"n_skip": 5}, {"of": "kar1"}, {"tweedie": 0.0}])
def test_the_cost_of_a_chains_whole_life_is_what_is_counted(more: dict) -> None:
    settings = {**SHORT, **more}
    sampler = DenoisingMCMC(steps=3, **settings)
    model = Asked(mixture())
    count = settings["chains"] * settings["emissions"]
    sample = sampler(model, draws(range(count)))
    assert isinstance(sample, ChainSample)
    assert sample.nfe == pytest.approx(model.images / count)
    assert sample.spent == pytest.approx(sample.nfe)
    assert sampler.cost(3) - 1 < sample.nfe <= sampler.cost(3) == sample.nfe_max
    assert sample.startup == pytest.approx(sampler.startup() / settings["emissions"])
    own = {"ddim": 3, "kar1": 5}[settings.get("of", "ddim")]
    sweeps = settings.get("n_skip", own) * (1 + settings.get("metropolis", False))
    assert sample.sweeps == sweeps
    assert sample.nfe == pytest.approx(sample.startup + sweeps + own + (settings.get("tweedie", 1) > 0))


def test_the_papers_cost() -> None:
    """37 + 20 at the start; n_skip 4 with KAR1 at N = 4 and the Tweedie step is "10 evaluations"."""
    sampler = DenoisingMCMC(of="kar1", n_skip=4, steps=3)
    assert sampler.startup() == 57
    assert sampler.cost(3) == 4 + 5 + 1 + 2  # 57/50 rounded up
    assert DenoisingMCMC(of="kar1", n_skip=4, steps=3, emissions=10**6).cost(3) == 11
    assert DenoisingMCMC(of="kar1", steps=3, emissions=57).cost(3) == 5 + 5 + 1 + 1


def test_a_call_that_does_not_end_its_chains_says_what_it_spent() -> None:
    model = Asked(mixture())
    sample = DenoisingMCMC(steps=2, **SHORT)(model, draws([0, 3, 7]))
    assert isinstance(sample, ChainSample)
    assert sample.spent == pytest.approx(model.images / 3)
    assert sample.spent > sample.nfe


@pytest.mark.parametrize("budget", [5, 9, 12, 20])
def test_a_budget_buys_the_largest_run_whose_shared_cost_is_not_above_it(budget: int) -> None:
    sampler = DenoisingMCMC(nfe=budget)
    steps = sampler.plan()
    assert sampler.cost(steps) <= budget < sampler.cost(steps + 1)
    guided = DenoisingMCMC(nfe=2 * budget)
    assert guided.plan(2) == steps
    with pytest.raises(InputError, match="at least"):
        DenoisingMCMC(nfe=3).plan()


# --- numbers, conditions ---


def test_images_are_emissions_of_chains_and_chains_begin_anew() -> None:
    """Image i of C chains is emission i // C of chain i mod C; after E emissions the chain is another one."""
    settings = {**SHORT, "emissions": 4}
    sampler = DenoisingMCMC(steps=2, **settings)
    model = mixture()
    first = sampler(model, draws([2 + 3 * 3])).spent - 5  # the last of chain 2's first life: 2 sweeps, 2 steps, Tweedie
    startup = sampler.startup()
    assert first + 5 == startup + 4 * 2 + 3
    assert sampler(model, draws([2 + 4 * 3])).spent == startup + 2 + 3, "the first of its next one"
    assert sampler(model, draws([2 + 5 * 3])).spent == 2 + 3, "and the second goes on from there"
    x = sampler(model, draws([0, 1, 2, 12, 13, 14])).x
    assert torch.pdist(x).min() > 1e-3


def test_a_chain_belongs_to_its_condition() -> None:
    labels = torch.tensor([0, 1, 2])
    model = mixture(labels=labels, num_classes=3)
    sampler = DenoisingMCMC(steps=30, n_skip=3, **SHORT)
    asked = torch.arange(30) % 3
    whole = sampler(model.given(Cond(labels=asked)), draws(range(30)))
    near = (whole.x[:, None] - MEANS).square().sum(-1).argmin(1)
    assert (near == asked).float().mean() > 0.9
    # The same pictures where the batch is cut or asks in another order, also for a chain of several classes.
    mixed = torch.tensor([0, 0, 1, 2, 1])
    numbers = [0, 3, 6, 9, 13]
    some = sampler(model.given(Cond(labels=mixed)), draws(numbers)).x
    for row in range(5):
        alone = sampler(model.given(Cond(labels=mixed[[row]])), draws([numbers[row]])).x[0]
        assert (alone - some[row]).abs().max() < 1e-10
    assert (some[1] - whole.x[3]).abs().max() < 1e-10


def test_guidance_and_conditions_inside_views_reach_the_chains() -> None:
    model = mixture(labels=torch.tensor([0, 1, 2]), num_classes=3)
    cond = Cond(labels=torch.tensor([1, 1, 2, 0]))
    sampler = DenoisingMCMC(steps=2, **SHORT)
    plain = sampler(model.given(cond), draws(range(4)))
    inside = sampler(Asked(model.given(cond)), draws(range(4)))
    assert torch.allclose(plain.x, inside.x, atol=1e-12)
    guided = sampler(ClassifierFree(model, 1.0).given(cond), draws(range(4)))
    assert torch.allclose(plain.x, guided.x, atol=1e-8)
    assert guided.nfe == 2 * plain.nfe


def test_flow_models_start_below_the_level_without_signal() -> None:
    """Chains start by Heun in each schedule's own time, so that only the laws agree: all images lie in the mixture."""
    runs = {}
    for schedule in (Flow(), EDM(t_max=100.0)):
        sample = DenoisingMCMC(of="ddim", steps=8, **{**SHORT, "start_steps": 18})(mixture(schedule), draws(range(30)))
        exact = mixture(EDM())
        runs[type(schedule).__name__] = exact.log_density(sample.x, 0.05)
    assert all(bool((found > -12).all()) for found in runs.values())
    assert abs(float(runs["Flow"].mean() - runs["EDM"].mean())) < 1.0


def test_a_trajectory_starts_at_the_emission_and_ends_with_the_image() -> None:
    sample = DenoisingMCMC(steps=3, **SHORT)(mixture(), draws(range(3)), trajectory=True)
    assert isinstance(sample, ChainSample)
    assert sample.trajectory is not None
    assert len(sample.trajectory) == 4
    assert sample.trajectory[-1] is sample.x
    assert torch.equal(sample.times[0], sample.levels)


def test_more_chains_are_more_diverse_than_one() -> None:
    """Emissions of one chain are correlated, and the correlation falls with n_skip."""

    def lag(n_skip: int) -> float:
        sampler = DenoisingMCMC(steps=10, n_skip=n_skip, eta=0.2, **{**SHORT, "chains": 25, "emissions": 10})
        x = sampler(mixture(), draws(range(250))).x.view(10, 25, 3)[2:]
        x = x - x.mean((0, 1))
        return float((x[1:] * x[:-1]).mean() / x.square().mean())

    assert lag(1) > lag(16) + 0.1
    assert lag(1) > 0.3


# --- refusals ---


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"of": "heunn"}, "did you mean 'heun'"),
        ({"of": "dpm-solver++2m"}, "levels of their own"),
        ({"of": "denoising-mcmc"}, "cannot be the chain itself"),
        ({"rule": "armax"}, "did you mean 'argmax'"),
        ({"grid": "leading"}, "grid of levels"),
        ({"eta": 0.0}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"n_skip": 0}, "n_skip"),
        ({"chains": 0}, "chains"),
        ({"emissions": 0}, "emissions"),
        ({"burn_in": -1}, "burn_in"),
        ({"tweedie": -0.1}, "tweedie"),
        ({"sigma_min": 0.0}, "sigma_min"),
    ],
)
def test_bad_settings_are_refused(bad: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        DenoisingMCMC(**bad)


def test_an_adaptive_integrator_is_refused() -> None:
    with pytest.raises(InputError, match="levels of their own"):
        DenoisingMCMC(of=lookup("sampler", "rk45")(rtol=1e-3))
    assert DenoisingMCMC(of=DDIM(eta=0.5)).cost(2) == 7


def test_a_model_without_a_level_predictor_is_refused_with_the_mend() -> None:
    torch.manual_seed(0)
    model = Preconditioned(MLP(in_shape=(1, 8, 8), width=16), EDM())
    for call in (
        lambda s: s.calibrated(model),
        lambda s: s(model, Noise(0).at([0], (1, 8, 8))),
    ):
        with pytest.raises(InputError, match="scoreline calibrate MODEL --for denoising-mcmc"):
            call(DenoisingMCMC(steps=2))


def test_a_held_predictor_is_used_and_no_setting() -> None:
    class Top(nn.Module):
        table = np.array([2.0, 1.0])

        def forward(self, y: Tensor, cond: Cond | None = None) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(y), -1)

    sampler = DenoisingMCMC(steps=2, **SHORT)
    sample = sampler.holding(Top())(mixture(), draws(range(3)))
    assert isinstance(sample, ChainSample)
    assert sample.levels is not None
    assert sample.levels.tolist() == [2.0] * 3
    assert sampler._predictor is None
    assert isinstance(sampler.calibrated(mixture())._predictor, ExactLevels)
