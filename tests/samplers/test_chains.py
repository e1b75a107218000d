"""Chains over (image, noise level): stationary laws, emissions, state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.samplers.chains import Chains, Places, accept_probability, kar2, langevin, pick_level
from scoreline.samplers.level_prediction import ExactLevels

SETTINGS = {"eta": 0.05, "rule": "argmax", "metropolis": False, "start_steps": 5, "burn_in": 2, "burn_eta": 0.1}


def chains(model: Any, predictor: Any, count: int = 3, seed: int = 0, **settings: Any) -> Chains:
    given = SimpleNamespace(**{**SETTINGS, "settle": 1, **settings})
    noise = Noise(seed).at(range(count), model.shape, dtype=torch.float64)
    places = Places(predictor.table, model.schedule)
    return Chains(model, None, list(range(count)), np.arange(count), noise, given, predictor, places)


def mixture(schedule: Schedule | None = None) -> Mixture:
    means = torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=torch.float64)
    return Mixture(schedule or EDM(), means, torch.tensor([0.05, 0.2], dtype=torch.float64))


class Fixed:
    """A predictor that always says the same level."""

    def __init__(self, table: list[float], answer: int) -> None:
        self.table, self.answer = np.array(table), answer

    def __call__(self, y: Tensor, cond: Cond | None = None) -> Tensor:
        return torch.nn.functional.one_hot(torch.full((len(y),), self.answer), len(self.table)).double()


@pytest.mark.check(system=8, number=6)
@pytest.mark.parametrize("eta", [0.3, 1.2])
def test_langevin_at_a_fixed_level_has_its_stationary_variance(eta: float) -> None:
    """Variance V/(1 - eta/(4V)), V = c + s^2, with the step of the chain itself; 4 eta for images in [-1, 1]."""
    c, s = 0.5, 1.0
    V, step = c + s * s, eta
    model = Gaussian(EDM(), torch.zeros(400, dtype=torch.float64), c)
    chain = chains(model, Fixed([2.0, s, 0.5], 1), count=2)
    chain.y, chain.at = torch.zeros(2, 400, dtype=torch.float64), torch.tensor([1, 1])
    seen = []
    for turn in range(400):
        chain.sweep(step / 4)
        if turn > 60:
            seen.append(chain.y.square().mean())
    assert torch.stack(seen).mean().item() == pytest.approx(V / (1 - step / (4 * V)), rel=0.02)


@pytest.mark.check(system=8, number=6)
def test_langevin_diverges_from_four_variances_on() -> None:
    """The recursion of the variance, V' = (1 - eta/(2V))^2 V' + eta, read from the step without sampling."""
    V = 0.7
    for eta, bounded in ((3.9 * V, True), (4.1 * V, False)):
        grown, second = torch.ones(1, dtype=torch.float64), 0.0
        factor = float(langevin(grown, -grown / V, eta, torch.zeros(1)))
        spread = float(langevin(0 * grown, 0 * grown, eta, torch.ones(1, dtype=torch.float64))) ** 2
        for _ in range(2000):
            second = factor**2 * second + spread
        assert spread == pytest.approx(eta)
        if bounded:
            assert second == pytest.approx(V / (1 - eta / (4 * V)), rel=1e-6)
        else:
            assert second > 1e3 * V


def test_metropolis_holds_the_variance_where_langevin_alone_does_not() -> None:
    c, s, step = 0.5, 1.0, 2.5
    V = c + s * s
    model = Gaussian(EDM(), torch.zeros(1, dtype=torch.float64), c)
    for metropolis, wanted in ((True, V), (False, V / (1 - step / (4 * V)))):
        chain = chains(model, Fixed([2.0, s, 0.5], 1), count=300, metropolis=metropolis)
        chain.y, chain.at = V**0.5 * Noise(5).at(range(300), (1,), dtype=torch.float64).normal(), torch.ones(300).long()
        seen = []
        for _ in range(150):
            chain.sweep(step / 4)
            seen.append(chain.y.square().mean())
        assert torch.stack(seen[20:]).mean().item() == pytest.approx(wanted, rel=0.05)


def test_the_probability_of_acceptance_is_exact_for_a_gaussian() -> None:
    """Detailed balance p(y) q(y'|y) a(y, y') = p(y') q(y|y') a(y', y), with densities from torch.distributions."""
    V, eta = torch.tensor([0.5, 2.0], dtype=torch.float64), 0.8
    target = torch.distributions.Normal(torch.zeros(2, dtype=torch.float64), V.sqrt())
    y = torch.tensor([[0.3, -1.0], [2.0, 0.1]], dtype=torch.float64)
    z = torch.tensor([[1.0, -0.2], [0.4, 2.0]], dtype=torch.float64)
    ahead = langevin(y, -y / V, eta, z)

    def flow(a: Tensor, b: Tensor) -> Tensor:
        step = torch.distributions.Normal(a - 0.5 * eta * a / V, eta**0.5)
        return (target.log_prob(a) + step.log_prob(b)).sum(1) + accept_probability(a, b, -a / V, -b / V, eta).log()

    assert torch.allclose(flow(y, ahead), flow(ahead, y))
    assert (accept_probability(y, ahead, -y / V, -ahead / V, eta) <= 1).all()


@pytest.mark.check(system=8, number=7)
def test_gibbs_with_drawn_levels_reproduces_the_joint_density() -> None:
    """A mixture on a line: the histogram over (x, sigma) against p(x | sigma), flat in sigma."""
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    model = Mixture(EDM(), means, 0.1, [0.3, 0.7])
    predictor = ExactLevels(model, sigma_min=0.15, sigma_max=0.6, levels=8)
    chain = chains(model, predictor, count=250, rule="sample", eta=0.02, start_steps=10, burn_in=0, settle=60)
    chain.start()
    assert chain.y is not None
    assert chain.at is not None
    edges = torch.linspace(-3, 3, 13, dtype=torch.float64)
    seen = torch.zeros(8, 12, dtype=torch.float64)
    for _ in range(250):
        chain.sweep(0.02)
        cell = torch.bucketize(chain.y[:, 0], edges) - 1
        inside = (cell >= 0) & (cell < 12)
        seen += torch.bincount(chain.at[inside] * 12 + cell[inside], minlength=96).view(8, 12)
    seen /= 250 * 250
    fine = torch.linspace(-3, 3, 12 * 40 + 1, dtype=torch.float64)
    middle = 0.5 * (fine[1:] + fine[:-1])[:, None]
    wanted = torch.stack(
        [model.log_density(middle, float(s)).exp().view(12, 40).mean(1) * 0.5 for s in predictor.table]
    )
    wanted /= 8
    # The chains' levels are flat, and every cell has its share; the inflation by eta is below these tolerances.
    assert (seen.sum(1) - 1 / 8).abs().max() < 0.02
    assert (seen - wanted).abs().max() < 0.005
    assert (seen - wanted).abs().sum() < 0.1


@pytest.mark.check(system=8, number=8)
def test_an_emission_is_the_least_noisy_state_of_its_block_and_leaves_the_chain_alone() -> None:
    model = mixture()
    predictor = ExactLevels(model, levels=100)
    chain, alone = chains(model, predictor, count=20), chains(model, predictor, count=20)
    chain.start()
    alone.start()
    lower = 0
    for _ in range(6):
        assert chain.y is not None
        assert chain.at is not None
        states = [(chain.y, chain.at)]
        y, at = chain.emit(5)
        for _ in range(5):
            alone.sweep(alone.settings.eta)
            states.append((alone.y, alone.at))  # type: ignore[arg-type]
        assert torch.equal(states[-1][0], chain.y), "the chain goes on from its own last state"
        levels = torch.stack([chain.places.levels[place] for _, place in states])
        assert (chain.places.levels[at] <= levels[0]).all()
        assert torch.equal(chain.places.levels[at], levels.amin(0))
        first = levels.argmin(0)  # the first of equal ones
        assert torch.equal(y, torch.stack([states[int(first[i])][0][i] for i in range(20)]))
        lower += int((first > 0).sum())
    assert lower > 20


def test_a_chain_is_the_same_whichever_run_beside_it_and_wherever_it_stopped() -> None:
    model = mixture()
    predictor = ExactLevels(model, levels=100)
    for more in ({}, {"rule": "sample", "metropolis": True}):
        whole = chains(model, predictor, count=5, **more)
        whole.start()
        whole.emit(4)
        stored = whole.state_dict()
        last = whole.emit(3)
        again = chains(model, predictor, count=5, **more)
        again.load_state_dict(stored)
        assert all(torch.equal(a, b) for a, b in zip(last, again.emit(3)))
        few = chains(model, predictor, count=5, **more)
        few.keep([1, 3])
        few.start()
        few.emit(4)
        few.keep([3])
        for a, b in zip(last, few.emit(3)):
            assert torch.allclose(a[[3]].double(), b.double(), atol=1e-10)
    other = chains(model, predictor, count=5, seed=1)
    other.load_state_dict(stored)
    assert not torch.allclose(other.emit(3)[0], last[0])


def test_the_start_is_the_stochastic_heun_run_with_noise_and_burn_in() -> None:
    model = mixture()
    predictor = ExactLevels(model, levels=50)
    chain = chains(model, predictor, start_steps=19, burn_in=10, settle=10)
    chain.start()
    assert chain.nfe == 37 + 20
    assert chain.sweeps == 20
    short = chains(model, predictor, start_steps=19, burn_in=0, settle=0)
    short.start()
    rho = 1 / 7
    levels = [(80.0**rho + i / 18 * (predictor.table[-1] ** rho - 80.0**rho)) ** 7 for i in range(19)]
    run = kar2()(model, short.draws, times=[*levels, 0.0])
    noise = short.draws.derived("start").normal()
    assert short.y is not None
    assert torch.allclose(short.y, run.x + 1.0 * noise), "0.5 for data in [0, 1]"
    assert torch.equal(short.at, predictor(short.y).argmax(1))


def test_burn_in_comes_first_with_its_own_step() -> None:
    model = mixture()
    predictor = ExactLevels(model, levels=50)
    chain = chains(model, predictor, burn_in=2, burn_eta=0.3, settle=3, eta=0.07)
    steps: list[float] = []
    chain.sweep = steps.append  # type: ignore[method-assign]
    chain.start()
    assert steps == [0.3, 0.3, 0.07, 0.07, 0.07]


@pytest.mark.parametrize("schedule", [VP(), Discrete(T=200)])
def test_a_chain_is_the_same_on_every_schedule(schedule: Schedule) -> None:
    """The same walk in y = x/alpha, up to the levels that a table of times does not have."""
    y = torch.tensor([[0.3, -0.4], [1.5, 0.2]], dtype=torch.float64)
    ends = []
    for where in (EDM(), schedule):
        model = mixture(where)
        chain = chains(model, ExactLevels(mixture(EDM()), sigma_max=5.0, levels=30), count=2)
        chain.y, chain.at = y, torch.tensor([10, 20])
        chain.sweep(0.05)
        ends.append(chain.y)
    exact = isinstance(schedule, VP)
    assert torch.allclose(ends[0], ends[1], atol=1e-10 if exact else 0.05)


def test_places_are_levels_that_the_model_knows() -> None:
    schedule = Discrete(T=50)
    places = Places(np.array([1e6, 3.0, 1.0, 1e-6]), schedule)
    assert places.times[0] == 49
    assert places.times[-1] == 0
    assert set(places.times.tolist()) <= set(schedule.known.tolist())  # type: ignore[union-attr]
    assert torch.allclose(places.levels, torch.as_tensor(np.exp(-schedule.lam(places.times.numpy()))))
    edm = Places(np.array([1000.0, 1.0]), EDM())
    assert edm.levels.tolist() == pytest.approx([80.0, 1.0])
    assert edm.times.tolist() == pytest.approx([80.0, 1.0])
    vp = Places(np.array([2.0]), VP())
    assert float(VP().sigma(float(vp.times[0])) / VP().alpha(float(vp.times[0]))) == pytest.approx(2.0)
    assert float(vp.alphas[0]) == pytest.approx(VP().alpha(float(vp.times[0])))


def test_levels_are_the_likeliest_or_drawn() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).expand(6, -1)
    assert pick_level(logits, None).tolist() == [1] * 6
    uniform = torch.tensor([0.0, 0.1, 0.21, 0.69, 0.71, 1.0], dtype=torch.float64)
    assert pick_level(logits, uniform).tolist() == [0, 0, 1, 1, 2, 2]
