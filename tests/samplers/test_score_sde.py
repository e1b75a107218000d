"""Predictors and correctors of score SDE: their formulas, marginals, and what is released."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.schedules import EDM, VE, VP, Discrete, Flow, SubVP
from scoreline.samplers.ancestral import Ancestral
from scoreline.samplers.ddpm import DDPM
from scoreline.samplers.euler import Euler
from scoreline.samplers.rk45 import RK45
from scoreline.samplers.score_sde import PC, EulerMaruyama, ReverseDiffusion, langevin_step

every_schedule = pytest.mark.parametrize("name", names("schedule"))
X = torch.tensor([[0.5, -0.3], [1.0, 0.2]], dtype=torch.float64)


def mixture(schedule: Any) -> Mixture:
    means = torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=torch.float64)
    return Mixture(schedule, means, torch.tensor([0.05, 0.2], dtype=torch.float64))


def draws(count: int = 2) -> Any:
    return Noise(3).at(range(count), (2,), dtype=torch.float64)


def one_step(sampler: Sampler, schedule: Any, t: float, s: float, x: torch.Tensor = X) -> torch.Tensor:
    """One step of a run of three, so that it is not the last one."""
    times = [t, s, 0.5 * (s + max(schedule.clean, 0.0)), schedule.clean]
    run = sampler(mixture(schedule), draws(len(x)), times=times, x=x, trajectory=True)
    assert run.trajectory is not None
    return run.trajectory[1]


TIMES = [(VP(), 0.6, 0.5), (SubVP(), 0.6, 0.5), (VE(), 0.6, 0.5), (EDM(), 2.0, 1.5), (Flow(), 0.6, 0.5)]
every_time = pytest.mark.parametrize("schedule, t, s", TIMES, ids=lambda v: type(v).__name__)


@every_time
def test_euler_maruyama_is_its_formula(schedule: Any, t: float, s: float) -> None:
    f, g2 = schedule.drift(t)
    h = s - t
    score = mixture(schedule).score(X, t)
    wanted = X + (f * X - g2 * score) * h + math.sqrt(g2 * -h) * draws().normal(1)
    assert torch.allclose(one_step(EulerMaruyama(), schedule, t, s), wanted, atol=1e-10)


@every_time
def test_reverse_diffusion_is_its_formula(schedule: Any, t: float, s: float) -> None:
    a = schedule.alpha(t) / schedule.alpha(s)
    G2 = schedule.sigma(t) ** 2 - (a * schedule.sigma(s)) ** 2
    score = mixture(schedule).score(X, t)
    wanted = X - (a - 1) * X + G2 * score + math.sqrt(G2) * draws().normal(1)
    assert torch.allclose(one_step(ReverseDiffusion(), schedule, t, s), wanted, atol=1e-10)
    ode = X - (a - 1) * X + 0.5 * G2 * score
    assert torch.allclose(one_step(ReverseDiffusion(ode=True), schedule, t, s), ode, atol=1e-10)


@every_time
def test_a_corrected_level_is_corrected_first_and_then_left(schedule: Any, t: float, s: float) -> None:
    model, r = mixture(schedule), 0.3
    a = schedule.alpha(t) / schedule.alpha(s)
    x = X
    for part in (1, 2):
        g, z = model.score(x, t), draws().normal(1, part)
        e = 2 * a**2 * (r * z.norm(dim=1) / g.norm(dim=1)) ** 2
        x = x + e[:, None] * g + (2 * e[:, None]).sqrt() * z
    wanted = one_step(ReverseDiffusion(), schedule, t, s, x)
    assert torch.allclose(one_step(PC(snr=r, corrector_steps=2), schedule, t, s), wanted, atol=1e-10)


@every_time
def test_annealed_steps_follow_the_noise_level(schedule: Any, t: float, s: float) -> None:
    a = schedule.alpha(t) / schedule.alpha(s)
    e = 2 * a**2 * (0.2 * schedule.sigma(t)) ** 2
    x = X + e * mixture(schedule).score(X, t) + math.sqrt(2 * e) * draws().normal(1, 1)
    wanted = one_step(ReverseDiffusion(), schedule, t, s, x)
    assert torch.allclose(one_step(PC(corrector="annealed", snr=0.2), schedule, t, s), wanted, atol=1e-10)
    # Without a predictor the level is left without moving.
    alone = PC(predictor="none", corrector="annealed", snr=0.2)
    assert torch.allclose(one_step(alone, schedule, t, s), x, atol=1e-10)


@every_schedule
@pytest.mark.parametrize("predictor", ["euler-maruyama", "reverse-diffusion", "ancestral", "none"])
def test_the_last_step_removes_the_noise(name: str, predictor: str) -> None:
    schedule = lookup("schedule", name)()
    model = mixture(schedule)
    t = schedule.t_min if schedule.known is None else 0.0
    runs = [PC(predictor=predictor, corrector_steps=n, denoise=True) for n in ([1] if predictor == "none" else [0])]
    times = [t, schedule.clean]
    end = runs[0](model, draws(), times=times, x=X).x
    if predictor != "none":
        alpha = float(schedule.alpha(t))
        clean = model(X, t).mean
        # Reverse diffusion turns its drift round, (2 - a) in place of 1/a; the others give E[x_0|x_t] itself.
        rough = abs((2 - alpha) - 1 / alpha) * X.abs().max() + (1 / alpha - 1) * float(schedule.sigma(t))
        assert (end - clean).abs().max() <= (rough if predictor == "reverse-diffusion" else 0) + 1e-9
        noisy = PC(predictor=predictor, corrector_steps=0, denoise=False)(model, draws(), times=times, x=X).x
        wanted = end + float(schedule.sigma(t)) * draws().normal(1)
        exploding = predictor == "ancestral" and alpha == 1
        assert torch.allclose(noisy, end if exploding else wanted, atol=1e-10)


@pytest.mark.check(system=15, number=6)
def test_ancestral_vp_is_ddpm_with_the_large_variance_and_ancestral_ve_is_ancestral() -> None:
    table = Discrete()
    a = PC(predictor="ancestral", corrector_steps=0, steps=40)(mixture(table), draws()).x
    assert torch.allclose(a, DDPM(variance="large", steps=40)(mixture(table), draws()).x, atol=1e-9)
    ve = VE()
    b = PC(predictor="ancestral", corrector_steps=0, steps=40)(mixture(ve), draws()).x
    assert torch.allclose(b, Ancestral(steps=40)(mixture(ve), draws()).x, atol=1e-9)
    # As printed, on neighbouring entries: (x + beta score)/sqrt(1 - beta) and sqrt(beta).
    beta = float(table.betas[300])
    x = (X + beta * mixture(table).score(X, 300.0)) / math.sqrt(1 - beta) + math.sqrt(beta) * draws().normal(1)
    run = PC(predictor="ancestral", corrector_steps=0)(
        mixture(table), draws(), times=[300.0, 299.0, 298.0], x=X, trajectory=True
    )
    assert run.trajectory is not None
    assert torch.allclose(run.trajectory[1], x, atol=1e-10)


def moments(sampler: Sampler, schedule: Any, m: float, v: float, steps: int) -> tuple[float, float]:
    """Mean and variance that a run makes of data N(m, v), without sampling: every step is linear in x."""
    times = np.append(np.linspace(1.0, schedule.t_min, steps), schedule.clean)
    mean, variance = 0.0, float(schedule.prior()) ** 2
    for row in sampler.coefficients(schedule, times):
        alpha, sigma = float(schedule.alpha(row.t)), float(schedule.sigma(row.t))
        total = alpha**2 * v + sigma**2
        by_mean, by_eps = alpha * v / total, sigma / total
        gain = row.a + row.b * by_mean + row.c * by_eps
        shift = row.b * (m - by_mean * alpha * m) - row.c * by_eps * alpha * m
        mean, variance = gain * mean + shift, gain**2 * variance + getattr(row, "std", 0.0) ** 2
    return mean, variance


@pytest.mark.check(system=15, number=6)
@pytest.mark.parametrize("schedule", [VP(), VE(), SubVP()], ids=lambda s: type(s).__name__)
def test_reverse_diffusion_and_the_ode_agree_in_their_marginals(schedule: Any) -> None:
    """Of N(m, v) both make N(m, v); the distance between the two falls as 1/N."""
    m, v = 0.6, 0.3
    ode = moments(Euler(), schedule, m, v, 20_000)
    assert ode == pytest.approx((m, v), abs=0.02)
    for sampler in (ReverseDiffusion(), EulerMaruyama(), PC(predictor="ancestral", corrector_steps=0)):
        errors = [abs(moments(sampler, schedule, m, v, steps)[1] - v) for steps in (300, 1200)]
        assert errors[1] < 0.03
        assert errors[0] > 3 * errors[1] or errors[0] < 1e-3
        assert moments(sampler, schedule, m, v, 1200)[0] == pytest.approx(m, abs=0.01)


@pytest.mark.check(system=15, number=7)
def test_snr_is_the_ratio_of_signal_to_noise_of_a_corrector_step() -> None:
    """|sqrt(2 e) z| / |e score| = 1/(r a): of each image, or of the means over the batch."""
    generator = torch.Generator().manual_seed(0)
    score, z = (torch.randn(64, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    score = score * torch.linspace(0.5, 3, 64)[:, None, None, None]

    def norms(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).norm(dim=1)

    for r, shrink in ((0.16, 1.0), (0.075, 0.9)):
        e = langevin_step(score, z, r, shrink)
        ratio = norms((2 * e).sqrt() * z) / norms(e * score)
        assert torch.allclose(ratio, torch.tensor(1 / (r * math.sqrt(shrink)), dtype=torch.float64))
        e = langevin_step(score, z, r, shrink, norm="batch")
        assert e.dim() == 0
        means = norms((2 * e).sqrt() * z).mean() / norms(e * score).mean()
        assert means == pytest.approx(1 / (r * math.sqrt(shrink)))


@pytest.mark.parametrize("schedule", [VP(), VE(sigma_max=10.0)], ids=lambda s: type(s).__name__)
def test_a_corrector_brings_a_wrong_marginal_nearer(schedule: Any) -> None:
    """Langevin steps at one level leave its marginal alone and pull a wrong one towards it."""
    model = Gaussian(schedule, torch.zeros(64, dtype=torch.float64), 0.5)
    t, s = 0.3, 0.299
    total = float(schedule.alpha(t) ** 2 * 0.5 + schedule.sigma(t) ** 2)
    noise = Noise(0).at(range(100), (64,), dtype=torch.float64)
    right = math.sqrt(total) * noise.normal()
    sampler = PC(predictor="none", corrector_steps=40, snr=0.16)
    end = sampler(model, noise, times=[t, s], x=2 * right).x
    assert float(end.var()) < 2 * total
    assert float(sampler(model, noise, times=[t, s], x=right).x.var()) == pytest.approx(total, rel=0.15)


def test_batch_norms_share_one_step_and_image_norms_do_not() -> None:
    model = mixture(VE())
    both = PC(steps=6, norm="batch")(model, draws(2)).x
    assert (PC(steps=6, norm="batch")(model, draws(1)).x[0] - both[0]).abs().max() > 1e-3
    both = PC(steps=6)(model, draws(2)).x
    assert (PC(steps=6)(model, draws(1)).x[0] - both[0]).abs().max() < 1e-10


# --- as released --------------------------------------------------------------------------------------------

RELEASED = [VP(), SubVP(), VE()]


@pytest.mark.parametrize("schedule", RELEASED, ids=lambda s: type(s).__name__)
def test_released_euler_steps_are_one_over_n(schedule: Any) -> None:
    sampler = EulerMaruyama(variant="released", steps=25)
    model, times = mixture(schedule), sampler.times(schedule)
    run = sampler(model, draws(), x=X, trajectory=True)
    assert run.trajectory is not None
    for i in (0, 24):
        x, t = run.trajectory[i], float(times[i])
        f, g2 = schedule.drift(t)
        mean = x + (f * x - g2 * model.score(x, t)) * -0.04
        noise = draws().normal(i + 1) * math.sqrt(g2 * 0.04) * (i < 24)
        assert torch.allclose(run.trajectory[i + 1], mean + noise, atol=1e-8)


def test_released_reverse_diffusion_reads_a_table_of_as_many_entries_as_steps() -> None:
    vp = VP()
    sampler = ReverseDiffusion(variant="released", steps=50)
    times = sampler.times(vp)
    run = sampler(mixture(vp), draws(), x=X, trajectory=True)
    beta = np.linspace(0.1 / 50, 20 / 50, 50)[int(np.float32(times[7]) * np.float32(49))]
    assert run.trajectory is not None
    x, t = run.trajectory[7], float(times[7])
    mean = x - (math.sqrt(1 - beta) - 1) * x + beta * mixture(vp).score(x, t)
    assert torch.allclose(run.trajectory[8], mean + math.sqrt(beta) * draws().normal(8), atol=1e-10)


@pytest.mark.parametrize("schedule", [VP(), VE()], ids=lambda s: type(s).__name__)
def test_released_ancestral_steps(schedule: Any) -> None:
    sampler = PC(predictor="ancestral", corrector_steps=0, variant="released", steps=50)
    times, model = sampler.times(schedule), mixture(schedule)
    run = sampler(model, draws(), x=X, trajectory=True)
    assert run.trajectory is not None
    x, t = run.trajectory[7], float(times[7])
    index = int(np.float32(t) * np.float32(49))
    z, score = draws().normal(8), model.score(x, t)
    if isinstance(schedule, VP):
        beta = np.linspace(0.1 / 50, 20 / 50, 50)[index]
        wanted = (x + beta * score) / math.sqrt(1 - beta) + math.sqrt(beta) * z
        assert torch.allclose(run.trajectory[8], wanted, atol=1e-10)
    else:
        sigmas = 0.01 * 5000 ** np.linspace(0, 1, 50)
        G2 = sigmas[index] ** 2 - sigmas[index - 1] ** 2
        mean = x + G2 * score
        std = (run.trajectory[8] - mean) / z
        assert std.std() < 1e-6 * std.mean()
        assert float(std.mean()) == pytest.approx(sigmas[index - 1] * math.sqrt(G2) / sigmas[index], rel=0.1)


@pytest.mark.parametrize("kind", ["paper", "released"])
@pytest.mark.parametrize("schedule", [SubVP(), VP(), VE(sigma_max=5.0)], ids=lambda s: type(s).__name__)
def test_predictor_corrector_draws_from_the_data(schedule: Any, kind: str) -> None:
    """Also sub-VP, where the released corrector has no table and fails."""
    means = torch.stack([torch.full((32,), -0.5), torch.full((32,), 0.7)]).double()
    model = Mixture(schedule, means, torch.tensor([0.05, 0.2], dtype=torch.float64))
    noise = Noise(0).at(range(60), (32,), dtype=torch.float64)
    x = PC(steps=100, snr=0.1, variant=kind)(model, noise).x
    exact = RK45(rtol=1e-4)(model, noise).x
    for found in (x, exact):
        distance = (found[:, None] - means).square().mean(2)
        share = distance.argmin(1).double().mean()
        assert 0.2 < share < 0.8
        for k, v in enumerate((0.05, 0.2)):
            assert float(distance[distance.argmin(1) == k, k].mean()) == pytest.approx(v, rel=0.3)


@pytest.mark.parametrize("predictor", ["reverse-diffusion", "euler-maruyama"])
def test_a_released_table_of_too_few_entries_is_refused(predictor: str) -> None:
    """beta_max/N would not be below 1."""
    with pytest.raises(InputError, match="more than 20"):
        PC(predictor=predictor, variant="released", steps=20)(mixture(VP()), draws())


# --- cost and refusals --------------------------------------------------------------------------------------


def test_correctors_are_counted() -> None:
    for settings, cost in (
        ({}, 20), ({"corrector_steps": 0}, 10), ({"corrector_steps": 3}, 40), ({"predictor": "none"}, 11),
    ):  # fmt: skip
        sampler = PC(steps=10, **settings)  # type: ignore[arg-type]
        assert sampler.cost(10) == cost == sampler(mixture(VP()), draws()).nfe


BAD = [
    ({"predictor": "reverse"}, "did you mean 'reverse-diffusion'"),
    ({"corrector": "langevine"}, "did you mean 'langevin'"),
    ({"corrector_steps": -1}, "corrector_steps -1"),
    ({"predictor": "none", "corrector_steps": 0}, "corrector_steps 0"),
    ({"snr": 0.0}, "snr 0.0"),
    ({"snr": math.nan}, "snr nan"),
    ({"norm": "batches"}, "did you mean 'batch'"),
    ({"variant": "release"}, "did you mean 'released'"),
]


@pytest.mark.parametrize("settings, words", BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PC(**settings)


@pytest.mark.parametrize("make", [EulerMaruyama, ReverseDiffusion, PC])
def test_the_released_form_knows_only_its_own_schedules(make: Any) -> None:
    for schedule in (EDM(), Discrete(), Flow()):
        with pytest.raises(InputError, match="variant=paper"):
            make(variant="released", steps=25)(mixture(schedule), draws())
    with pytest.raises(InputError, match="one list of times"):
        make(variant="released")(mixture(VP()), draws(), times=torch.tensor([[0.9, 0.8], [0.4, 0.3]]))


def test_euler_maruyama_needs_some_signal() -> None:
    with pytest.raises(InputError, match="sigma/alpha"):
        EulerMaruyama(steps=5)(mixture(Flow()), draws())
