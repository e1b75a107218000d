"""Time shift: the rule, where it acts in a step, what it costs, and what it is refused around."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.core.schedule import Time
from scoreline.diffusion.closed_form import Empirical, Gaussian, Mixture
from scoreline.diffusion.schedules import EDM, VE, VP, Cosine, Discrete, Flow, SubVP
from scoreline.evaluate.specs import make_sampler
from scoreline.guidance.epsilon_scaling import ScaledNoise
from scoreline.guidance.time_shift import MODES, TimeShift, sweep
from scoreline.guidance.variance_rule import Table, image_variance, shift_times, state_variance, suggest, transfer
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.ddpm import DDPM
from scoreline.samplers.heun import Heun
from scoreline.samplers.rk45 import RK45

F8 = torch.float64
LINEAR = Discrete(betas="linear")
LEVELS = torch.tensor(1 - LINEAR.abar)
INNER = ("ddim", "ddpm", "euler", "ancestral", "dpm-solver++2m", "heun")


def mixture(schedule: Any = LINEAR, dim: int = 16) -> Mixture:
    generator = torch.Generator().manual_seed(3)
    return Mixture(schedule, torch.randn(5, dim, generator=generator, dtype=F8) * 0.6, 0.02)


def draws(count: int = 4, dim: int = 16, seed: int = 0) -> Any:
    return Noise(seed).at(range(count), (dim,), dtype=F8)


START = draws().normal() * LINEAR.prior()


class Asked(View):
    """Writes down every time it is asked at, one an image."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.times: list[Tensor] = []
        self.states: list[Tensor] = []

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        self.times.append(torch.as_tensor(t, dtype=F8).expand(len(x)).clone())
        self.states.append(x.clone())
        return self.inner(x, t, cond)


# --- the rule ------------------------------------------------------------------------------------------------


@pytest.mark.check(system=26, number=2)
def test_an_exact_variance_finds_its_time_and_others_the_nearer_edge() -> None:
    for center, window in [(500, 40), (300, 41), (700, 200)]:
        half = window // 2
        for tau in (center - half, center - 3, center, center + 7, center + half):
            assert shift_times(LEVELS[tau : tau + 1], center, LEVELS, window=window, cutoff=0).tolist() == [tau]
        far = torch.stack([LEVELS[center - half - 5], LEVELS[center + half + 5]])
        assert shift_times(far, center, LEVELS, window=window, cutoff=0).tolist() == [center - half, center + half]


@pytest.mark.check(system=26, number=3)
def test_at_or_below_the_cutoff_the_center_stays() -> None:
    v = torch.tensor([0.0, 0.3, 1.0, 2.0], dtype=F8)
    for center in (0, 17, 200):
        assert shift_times(v, center, LEVELS, window=80, cutoff=200).tolist() == [center] * 4
    assert shift_times(v, 201, LEVELS, window=80, cutoff=200).tolist() != [201] * 4


@pytest.mark.check(system=26, number=4)
def test_the_variance_is_the_unbiased_one_of_one_state() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[0.5, 0.5], [0.5, 0.5]]])[:, None]
    assert state_variance(x).tolist() == [pytest.approx((4 + 1 + 0 + 9) / 3), 0.0]
    constant = state_variance(torch.full((1, 1, 8, 8), 0.7))
    assert shift_times(constant, 400, LEVELS, window=60, cutoff=0).tolist() == [370]


@pytest.mark.check(system=26, number=5)
def test_pixels_may_be_permuted_and_moved_but_not_scaled() -> None:
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F8) * 0.8
    mixed = x.flatten(1)[:, torch.randperm(192, generator=torch.Generator().manual_seed(1))].view_as(x)

    def chosen(x: Tensor) -> list[int]:
        return shift_times(state_variance(x), 500, LEVELS, window=900, cutoff=0).tolist()

    assert chosen(mixed) == chosen(x) == chosen(x + 5.0)
    assert all(a < b for a, b in zip(chosen(0.9 * x), chosen(x), strict=True))


@pytest.mark.check(system=26, number=6)
def test_pure_noise_has_variance_one_and_takes_the_top_of_the_window() -> None:
    for D, share in ((64, 0.5), (3072, 0.95)):
        noise = Noise(0).at(range(400), (D,)).normal()
        off = state_variance(noise) - 1
        assert abs(float(off.std()) / (2 / D) ** 0.5 - 1) < 0.12
        assert abs(float(off.mean())) < 4 * (2 / D / 400) ** 0.5
        chosen = shift_times(state_variance(noise), 500, LEVELS, window=60, cutoff=0)
        assert (chosen == 530).float().mean() > share
        assert int(chosen.max()) == 530


@pytest.mark.check(system=26, number=9)
def test_the_window_ends_with_the_table() -> None:
    assert shift_times(torch.tensor([0.0, 9.0]), 3, LEVELS, window=40, cutoff=0).tolist() == [0, 23]
    assert shift_times(torch.tensor([0.0, 9.0]), 990, LEVELS, window=40, cutoff=0).tolist() == [970, 999]
    at_the_ends = {"levels": LEVELS, "window": 40, "cutoff": 0}
    assert shift_times(torch.tensor([0.0, 9.0]), 999, **at_the_ends).tolist() == [979, 999]  # type: ignore[arg-type]


def test_the_rule_equals_its_definition_searched_over_the_whole_table() -> None:
    v = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=F8) * 1.2
    for center, window in itertools.product((5, 250, 640, 995), (2, 9, 60, 300)):
        t = torch.arange(1000)
        cost = (v[:, None] - LEVELS).square()
        cost[:, (t < center - window // 2) | (t > center + window // 2)] = torch.inf
        assert torch.equal(shift_times(v, center, LEVELS, window=window, cutoff=0), cost.argmin(1))


@pytest.mark.check(system=26, number=8)
def test_the_transfer_formula_is_ddim() -> None:
    levels = [*range(0, 1000, 111), 1, 2, 998]
    for t in levels:
        model = mixture()
        x = draws().normal() * LINEAR.sigma(float(t)) + LINEAR.alpha(float(t)) * model.means[:4]
        eps = model.eps(x, float(t))
        for s in [s for s in levels if s < t]:
            a, b = LINEAR.abar[t], LINEAR.abar[s]
            exact = np.sqrt(b) * (x - np.sqrt(1 - a) * eps) / np.sqrt(a) + np.sqrt(1 - b) * eps
            assert (transfer(x, eps, a, b) - exact).abs().max() < 1e-10
            single = transfer(x.float(), eps.float(), a, b)
            # In float32, against the size of what enters: from abar = 4e-5 the state is multiplied by 158.
            assert (single - exact).abs().max() < 1e-6 * max(1.0, float(np.sqrt(b / a)))


# --- in a sampler ----------------------------------------------------------------------------------------------


@pytest.mark.check(system=26, number=1)
@pytest.mark.each("schedule", [LINEAR, VP(), EDM(), Flow(t_max=0.999), VE(), SubVP(), Cosine()])
@pytest.mark.parametrize("of", INNER)
def test_without_window_or_above_the_cutoff_it_is_the_inner_sampler_bit_by_bit(of: str, schedule: Any) -> None:
    model, noise = mixture(schedule), draws()
    base = lookup("sampler", of)(steps=7)(model, noise).x
    for settings in ({"window": 0, "cutoff": 0}, {"window": 1, "cutoff": 0}, {"window": 80, "cutoff": 1000}):
        assert torch.equal(TimeShift(of=of, steps=7, **settings)(model, noise).x, base)  # type: ignore[arg-type]
    assert not torch.equal(TimeShift(of=of, steps=7, window=80, cutoff=0)(model, noise).x, base)


@pytest.mark.check(system=26, number=7)
@pytest.mark.parametrize("of", INNER)
def test_it_costs_no_network_calls(of: str) -> None:
    model = mixture()
    base, shifted = lookup("sampler", of)(nfe=9), TimeShift(of=of, nfe=9, window=100, cutoff=0)
    assert shifted(model, draws()).nfe == base(model, draws()).nfe
    assert len(shifted(model, draws()).times) == len(base(model, draws()).times)


@pytest.mark.check(system=26, number=10)
@pytest.mark.parametrize("of", INNER)
def test_an_image_does_not_depend_on_its_batch(of: str) -> None:
    model = mixture()
    sampler = TimeShift(of=of, steps=8, window=120, cutoff=0)
    both = sampler(model, draws(2)).x
    for i in range(2):
        alone = sampler(model, Noise(0).at([i], (16,), dtype=F8)).x[0]
        assert (both[i] - alone).abs().max() < 1e-12


def test_the_printed_algorithm_step_by_step() -> None:
    """Source, both in the network and in abar, is the time nearest to the state's variance; the target stays."""
    model, noise, w, t_c = mixture(), draws(), 120, 250
    asked = Asked(model)
    sampler = TimeShift(window=w, cutoff=t_c, steps=10)
    sample = sampler(asked, noise)
    x, grid, shifted = START, sample.times, 0
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        tau = torch.full((4,), int(t))
        if i > 0 and t > t_c:
            cost = (x.var(1)[:, None] - LEVELS).square()
            outside = (torch.arange(1000) < t - w // 2) | (torch.arange(1000) > t + w // 2)
            tau = cost.masked_fill(outside, torch.inf).argmin(1)
            shifted += int((tau != int(t)).sum())
        assert torch.equal(asked.times[i], tau.double())
        a = torch.tensor(LINEAR.abar)[tau][:, None]
        b = LINEAR.abar[int(s)] if s >= 0 else 1.0
        eps = model.eps(x, tau.double())
        x = np.sqrt(b) * (x - (1 - a).sqrt() * eps) / a.sqrt() + np.sqrt(1 - b) * eps
    assert shifted > 10
    assert (sample.x - x).abs().max() < 1e-9


def test_the_input_alone_is_shifted_when_asked() -> None:
    model, noise = mixture(), draws()
    sampler = TimeShift(window=120, cutoff=250, steps=10, shift="input")
    asked = Asked(model)
    sample = sampler(asked, noise)
    x = START
    for i, (t, s) in enumerate(itertools.pairwise(sample.times)):
        tau = asked.times[i]
        expected = shift_times(x.var(1), int(t), LEVELS, window=120, cutoff=250 if i else 1000)
        assert torch.equal(tau, expected.double())
        eps = model.eps(x, tau)
        a, b = LINEAR.abar[int(t)], LINEAR.abar[int(s)] if s >= 0 else 1.0
        x = np.sqrt(b) * (x - np.sqrt(1 - a) * eps) / np.sqrt(a) + np.sqrt(1 - b) * eps
    assert (sample.x - x).abs().max() < 1e-9


def test_the_released_target_shift() -> None:
    """The network is asked at the grid's times; the target is the one nearest to the CURRENT state's variance."""
    model, noise = mixture(), draws()
    asked = Asked(model)
    sample = TimeShift(mode="official_target", window=120, cutoff=250, steps=10)(asked, noise)
    x = START
    for i, (t, s) in enumerate(itertools.pairwise(sample.times)):
        assert torch.equal(asked.times[i], torch.full((4,), t, dtype=F8))
        v = x.var(1)
        tau = shift_times(v, int(s), LEVELS, window=120, cutoff=250 if i else 1000) if s >= 0 else None
        b = torch.tensor(LINEAR.abar)[tau][:, None] if tau is not None else torch.ones(4, 1, dtype=F8)
        x = transfer(x, model.eps(x, t), LINEAR.abar[int(t)], b)
    assert (sample.x - x).abs().max() < 1e-9


def test_the_released_input_shift_takes_the_whole_window_to_either_side() -> None:
    asked = Asked(mixture())
    TimeShift(mode="official_input", window=60, cutoff=0, steps=10)(asked, draws())
    twice = Asked(mixture())
    TimeShift(shift="input", window=120, cutoff=0, steps=10)(twice, draws())
    assert torch.equal(torch.stack(asked.times), torch.stack(twice.times))


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_takes_the_posterior_of_the_shifted_pair(variance: str) -> None:
    model, noise = mixture(), draws()
    asked = Asked(model)
    sample = TimeShift(of=DDPM(variance=variance), window=400, cutoff=250, steps=10)(asked, noise)
    x, moved = START, 0
    for i, (t, s) in enumerate(itertools.pairwise(sample.times)):
        tau = asked.times[i]
        moved += int((tau != t).sum())
        assert bool((tau > s).all()), "a noisy step goes down"
        a = torch.tensor(LINEAR.abar)[tau.long()][:, None]
        b = LINEAR.abar[int(s)] if s >= 0 else 1.0
        beta = 1 - a / b
        x0 = (x - (1 - a).sqrt() * model.eps(x, tau)) / a.sqrt()
        mean = np.sqrt(b) * beta / (1 - a) * x0 + (a / b).sqrt() * (1 - b) / (1 - a) * x
        std = (beta * (1 - b) / (1 - a) if variance == "small" else beta).sqrt() if s >= 0 else 0.0
        x = mean + std * noise.normal(i + 1)
    assert moved > 10
    assert (sample.x - x).abs().max() < 1e-9


def test_the_same_image_in_the_coordinates_of_another_schedule() -> None:
    """At equal lambda the rule chooses the same levels, so the whole run is the same up to the scale of x."""
    times = np.array([850.0, 700.0, 500.0, 400.0, 300.0, 200.0, 50.0])
    lam, noise = LINEAR.lam(times), draws()
    y = noise.normal() * 1.02
    ends = {}
    # For an image of 16 entries of which none is far out, no variance lies on the edge between two levels.
    for schedule in (LINEAR, EDM(), Flow(), VE(), SubVP()):
        model = mixture(LINEAR).on(schedule, extrapolate=True) if schedule is not LINEAR else mixture()
        own = schedule.time(lam)
        norms = np.sqrt(schedule.alpha(own) ** 2 + schedule.sigma(own) ** 2)
        for settings in ({}, {"shift": "input"}, {"mode": "official_target"}, {"of": DDPM(variance="small")}):
            sampler = TimeShift(window=200, cutoff=100, **settings)  # type: ignore[arg-type]
            end = sampler(model, noise, times=own, x=y * norms[0]).x / norms[-1]
            first = ends.setdefault(repr(settings), end)
            assert (end - first).abs().max() < 2e-3, (schedule, settings)
    plain = DDIM()(mixture(), noise, times=times, x=y).x
    assert (ends["{}"] - plain).abs().max() > 0.05


def test_continuous_times_map_to_the_table_by_the_nearest_index() -> None:
    table = Table.of(VP())
    index = np.arange(20, 1000, 7)
    # The linear table is VP's beta(t) at t = (i + 1)/1000.
    assert np.abs(table.times[index] - (index + 1) / 1000).max() < 5e-3
    for schedule in (VP(), EDM(), LINEAR, Flow()):
        table = Table.of(schedule)
        inside = np.flatnonzero(np.diff(table.times) > 0)[5:-5]
        assert (table.entry(table.times[inside]) == inside).all()
        assert table.entry(schedule.clean) in (-1, 0)
        assert table.entry(float(table.times[500] + 0.4 * (table.times[501] - table.times[500]))) == 500
        assert table.entry(float(table.times[500] + 0.6 * (table.times[501] - table.times[500]))) == 501
    assert Table.of(LINEAR).entry(-1.0) == -1


def test_a_calibrated_rule_finds_the_time_of_noised_data() -> None:
    """Against 1 - abar (1 - var x0) noised data are found at their own time; against 1 - abar too late a time is."""
    data = Noise(1).at(range(300), (256,), dtype=F8).normal() * 0.7
    v0 = image_variance(data)
    assert abs(v0 - 0.49) < 0.01
    t = 400
    x = LINEAR.marginal(data, float(t), Noise(2).at(range(300), (256,), dtype=F8).normal())
    found = {
        v: shift_times(state_variance(x), t, torch.tensor(Table.of(LINEAR, v).levels), window=1000, cutoff=0)
        for v in (0.0, v0)
    }
    assert abs(float(found[v0].double().median()) - t) < 25
    assert float(found[0.0].double().median()) > t + 50
    assert (torch.tensor(Table.of(LINEAR).levels) - LEVELS).abs().max() < 1e-12


def test_a_trace_shows_the_chosen_times_and_what_chose_them() -> None:
    model, noise = mixture(), draws()
    for mode in MODES:
        sampler = TimeShift(mode=mode, window=100, cutoff=300, steps=10)
        asked = Asked(model)
        trace = sampler.trace(asked, noise)
        assert torch.equal(trace.x, sampler(model, noise).x)
        assert trace.chosen.shape == (10, 4)
        assert trace.variance.shape == (11, 4)
        assert torch.allclose(trace.variance[0], START.var(1))
        if mode == "official_target":
            assert trace.chosen[0].tolist() == [trace.times[1]] * 4
            assert bool((trace.chosen[1:4] != torch.tensor(trace.times[2:5])[:, None]).any())
        else:
            assert torch.equal(trace.chosen, torch.stack(asked.times))


def test_it_pulls_the_variance_of_biased_samples_back() -> None:
    """Noise estimates that are 5 % too large blow up; with shifted times the error is smaller."""
    model = ScaledNoise(Gaussian(LINEAR, torch.zeros(256, dtype=F8), 0.2), 1 / 1.05)
    noise = Noise(0).at(range(64), (256,), dtype=F8)
    plain = state_variance(DDIM(steps=10)(model, noise).x).mean()
    shifted = state_variance(TimeShift(steps=10, window=80, cutoff=200)(model, noise).x).mean()
    assert plain < 0.9 * 0.2  # too much noise taken away
    assert abs(shifted - 0.2) < abs(plain - 0.2)


def test_window_and_cutoff_are_suggested_by_spacing_and_signal() -> None:
    assert suggest(LINEAR, 10, 0.25) == (40, pytest.approx(300, abs=5))
    assert suggest(LINEAR, 20, 0.25)[0] == 20
    cutoff = suggest(LINEAR, 10, 0.56)[1]
    assert LINEAR.abar[cutoff] * 0.56 > 0.1 >= LINEAR.abar[cutoff + 1] * 0.56
    assert suggest(VP(), 10, 0.25)[1] == pytest.approx(300, abs=5)
    assert suggest(LINEAR, 10, 0.0) == (40, 0)


def test_a_sweep_scores_every_setting_and_puts_the_best_first() -> None:
    model, noise = mixture(), draws(8)
    rows = sweep(model, noise, lambda x: float(x.square().mean()), steps=6, windows=(40, 200), cutoffs=(0, 300))
    assert len(rows) == 5
    assert [row["score"] for row in rows] == sorted(row["score"] for row in rows)
    plain = next(row for row in rows if row["window"] == 0)
    assert plain["score"] == float(DDIM(steps=6)(model, noise).x.square().mean())
    best = rows[0]
    again = TimeShift(window=int(best["window"]), cutoff=int(best["cutoff"]), steps=6)(model, noise).x
    assert best["score"] == float(again.square().mean())


# --- refusals --------------------------------------------------------------------------------------------------


class _Adaptive(Sampler):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class _Calibrated(Sampler):
    def calibrated(self, denoiser: Denoiser) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"of": "dddim"}, "did you mean 'ddim'"),
        ({"of": TimeShift()}, "shifted already"),
        ({"of": _Adaptive()}, "fixed grid"),
        ({"of": RK45(rtol=1e-3)}, "fixed grid"),
        ({"of": "pc"}, "without one"),
        ({"of": _Calibrated()}, "calibration"),
        ({"of": "dpm-solver++2m", "mode": "official_target"}, "official_input or paper"),
        ({"of": "dpm-solver++2m", "shift": "both"}, "use shift=input"),
        ({"of": Heun(), "shift": "both"}, "use shift=input"),
        ({"mode": "official_input", "shift": "both"}, "leave shift out"),
        ({"mode": "official_target", "shift": "input"}, "leave shift out"),
        ({"mode": "papr"}, "did you mean 'paper'"),
        ({"shift": "inptu"}, "did you mean 'input'"),
        ({"window": -1}, "0 or more"),
        ({"cutoff": -1}, "0 or more"),
        ({"variance": 1.0}, r"\[0, 1\)"),
        ({"variance": -0.1}, r"\[0, 1\)"),
    ],
)
def test_what_is_not_sound_is_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        TimeShift(**settings)


def test_an_image_of_one_entry_is_refused() -> None:
    model = Gaussian(LINEAR, torch.zeros(1, dtype=F8), 0.2)
    with pytest.raises(InputError, match="single entry"):
        TimeShift(steps=5)(model, Noise(0).at(range(2), (1,), dtype=F8))


def test_every_sampler_of_the_table_is_taken_or_refused_with_a_reason() -> None:
    model, refused = mixture(), {}
    for name in names("sampler"):
        try:
            sampler = TimeShift(of=name, steps=8, window=80, cutoff=0)
        except InputError as error:
            refused[name] = error.mend
            continue
        assert torch.isfinite(sampler(model, draws()).x).all(), name
    assert {"time-shift", "dpm-solver-v3", "pc"} <= refused.keys()
    assert not {"ddim", "ddpm", "dpm-solver++2m", "heun"} & refused.keys()
    assert all(len(reason) > 20 for reason in refused.values())


def test_it_is_typed_on_the_command_line() -> None:
    sampler = make_sampler("time-shift:of=dpm-solver++2m:window=30:cutoff=300:variance=0.5", nfe=10)
    assert isinstance(sampler, TimeShift)
    assert (sampler.window, sampler.cutoff, sampler.shift, sampler.variance) == (30, 300, "input", 0.5)
    with pytest.raises(InputError, match="whole number"):
        make_sampler("time-shift:window=3.5", nfe=10)


def test_data_with_much_variance_within_an_image_are_told_by_the_suggestion() -> None:
    """The closer the data's own variance is to 1, the later the rule may begin."""
    cutoffs = [suggest(LINEAR, 10, v)[1] for v in (0.05, 0.25, 0.56, 0.9)]
    assert cutoffs == sorted(set(cutoffs))
    assert image_variance(Empirical(LINEAR, torch.eye(4)).means) == pytest.approx(0.25)
