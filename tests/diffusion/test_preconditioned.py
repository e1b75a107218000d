"""Networks as denoisers: every kind, built from the exact answer of a Gaussian, says the same without cancellation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scoreline.core.denoiser import Posterior
from scoreline.core.errors import InputError
from scoreline.core.schedule import Schedule, spread
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import KINDS, Preconditioned, edm_scalings, edm_weight
from scoreline.diffusion.schedules import EDM, VE, VP, Cosine, Discrete, Flow, SubVP

F8 = torch.float64
FITS = [
    ("edm", EDM()), ("edm", VP()), ("edm", VE()), ("edm", Discrete()), ("eps", VP()), ("eps", Discrete()),
    ("eps", EDM()), ("eps", SubVP()), ("v", VP()), ("v", Cosine()), ("v", Discrete()), ("x0", VP()), ("x0", EDM()),
    ("flow", Flow()),
]  # fmt: skip
fits = pytest.mark.parametrize("kind, schedule", FITS, ids=lambda v: v if isinstance(v, str) else type(v).__name__)


class Exact(nn.Module):
    """The float32 raw output of a perfect network of the given kind on Gaussian data, worked out in float64."""

    def __init__(self, kind: str, schedule: Schedule, mean: float, variance: float, extra: bool = False) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.kind, self.schedule, self.m, self.v, self.extra = kind, schedule, mean, variance, extra
        self.in_shape, self.num_classes = (1, 2, 2), None
        self.told: Any = None
        self.given: Any = None
        self.x = self.t = torch.zeros(0)

    def trace(self, x: Tensor, t: Tensor, cond: Any, plan: Any) -> tuple[Tensor | None, dict]:
        self.told, self.given = t, x
        raw = self.raw(self.x.double(), self.t).to(x.dtype)
        if plan == "stop":
            return None, {"tap": x}
        return torch.cat([raw, raw * 0 + 0.25], 1) if self.extra else raw, {}

    def check(self, plan: Any) -> None:
        pass

    def raw(self, x: Tensor, t: Any) -> Tensor:
        a, s = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        total = a**2 * self.v + s**2
        centred = x - a * self.m
        mean, eps = self.m + a * self.v / total * centred, s / total * centred
        if self.kind == "edm":
            # F = (mean - c_skip y)/c_out with the y terms merged by hand.
            level, sd2 = s / a, 0.25
            gain = self.v / (self.v + level**2) - sd2 / (sd2 + level**2)
            slope = (self.v - sd2) * level**2 / ((self.v + level**2) * (sd2 + level**2))
            assert np.allclose(np.asarray(gain), np.asarray(slope), atol=1e-9)
            rest = self.m * level**2 / (self.v + level**2)
            return (slope * x / a + rest) / (level * sd2**0.5 / (level**2 + sd2) ** 0.5)
        return {"eps": eps, "x0": mean, "v": a * eps - s * mean, "flow": eps - mean}[self.kind]


def ask(kind: str, schedule: Schedule, x: Tensor, t: Any, **more: Any) -> tuple[Posterior, Preconditioned, Exact]:
    net = Exact(kind, schedule, 0.3, 0.2, extra=more.get("learned_variance", False))
    model = Preconditioned(net, schedule, kind=kind, **more)
    net.x, net.t = x, t
    return model(x, t), model, net


def near_both_ends(schedule: Schedule) -> list[float]:
    ts = [schedule.t_min, schedule.t_max * 0.999, 0.5 * (schedule.t_min + schedule.t_max)]
    return [float(schedule.snap(t)) if schedule.known is not None else t for t in ts]


def velocity(post: Posterior, schedule: Schedule, t: float) -> Tensor:
    da, ds = schedule.rates(t)
    return post.combine(0.0, da, ds)


@fits
def test_every_kind_reproduces_the_exact_denoiser_in_double(kind: str, schedule: Schedule) -> None:
    torch.manual_seed(0)
    exact = Gaussian(schedule, torch.full((1, 2, 2), 0.3, dtype=F8), 0.2)
    for t in near_both_ends(schedule):
        x = schedule.marginal(torch.randn(3, 1, 2, 2, dtype=F8), t, torch.randn(3, 1, 2, 2, dtype=F8))
        net = Exact(kind, schedule, 0.3, 0.2).double()
        model = Preconditioned(net, schedule, kind=kind)
        net.x, net.t = x, t
        post, truth = model(x, t), exact(x, t)
        for name in ("mean", "eps", "score"):
            mine, theirs = getattr(post, name), getattr(truth, name)
            assert (mine - theirs).abs().max() < 1e-7 * (1 + theirs.abs().max()), (name, t)
        assert torch.allclose(velocity(post, schedule, t), velocity(truth, schedule, t), rtol=1e-6, atol=1e-7)


@fits
def test_float32_answers_keep_their_digits_near_both_ends(kind: str, schedule: Schedule) -> None:
    """Each kind is good where its own answer says it: no digit is lost by going through x_0 and back."""
    torch.manual_seed(0)
    exact = Gaussian(schedule, torch.full((1, 2, 2), 0.3, dtype=F8), 0.2)
    for t in near_both_ends(schedule):
        x = schedule.marginal(torch.randn(3, 1, 2, 2), t, torch.randn(3, 1, 2, 2))
        post, _, _ = ask(kind, schedule, x, t)
        truth = exact(x.double(), t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        # What a relative error of 1e-6 in the raw output and in x means for each answer.
        level = sigma / alpha
        mean_scale = {"eps": 1 + level, "edm": 1.0 + 0.0 * level}.get(kind, 1.0)
        eps_scale = {"x0": 1 + 1 / level, "eps": 1.0, "edm": 1.0 + 1.0 / (1 + level)}.get(kind, 2.0)
        top = 1 + float(x.abs().max()) / max(sigma, alpha)
        assert (post.mean - truth.mean).abs().max() < 2e-6 * mean_scale * top, t
        assert (post.eps - truth.eps).abs().max() < 2e-6 * eps_scale * top, t
        assert (post.score * sigma + truth.eps).abs().max() < 2e-6 * eps_scale * top, t
        assert post.mean.dtype == post.eps.dtype == torch.float32


@fits
def test_combine_equals_its_parts(kind: str, schedule: Schedule) -> None:
    torch.manual_seed(1)
    for t in near_both_ends(schedule):
        x = torch.randn(3, 1, 2, 2, dtype=F8)
        post, _, _ = ask(kind, schedule, x, t)
        pairs = torch.tensor([0.3, -1.2, 2.0], dtype=F8).view(-1, 1, 1, 1)
        for a, b, c in ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.4, -0.7, 1.3), (pairs, pairs**2, -pairs)):
            expected = a * x + b * post.mean + c * post.eps
            scale = 1 + (b * post.mean).abs().max() if isinstance(b, Tensor) else 1 + abs(b) * post.mean.abs().max()
            assert (post.combine(a, b, c) - expected).abs().max() < 1e-12 * scale * 100


@fits
def test_mean_and_eps_explain_the_image(kind: str, schedule: Schedule) -> None:
    """x = alpha mean + sigma eps, for any raw output, per image too."""
    torch.manual_seed(2)
    net = Exact(kind, schedule, 0.0, 1.0)
    net.raw = lambda x, t: torch.sin(3 * x)  # type: ignore[method-assign]
    model = Preconditioned(net, schedule, kind=kind)
    x = torch.randn(3, 1, 2, 2, dtype=F8)
    net.x = x
    times = torch.tensor(near_both_ends(schedule), dtype=F8)
    post = model(x, times)
    alpha, sigma = spread(schedule.alpha(times), x), spread(schedule.sigma(times), x)
    scale = (alpha * post.mean).abs() + (sigma * post.eps).abs() + 1
    assert ((alpha * post.mean + sigma * post.eps - x) / scale).abs().max() < 1e-11
    for i, t in enumerate(times.tolist()):
        net.x = x[i : i + 1]
        one = model(x[i : i + 1], t)
        assert torch.allclose(one.mean, post.mean[i : i + 1], rtol=1e-9)
        assert torch.allclose(one.eps, post.eps[i : i + 1], rtol=1e-9)


@pytest.mark.check(system=22, number=6)
@given(sigma=st.floats(1e-3, 1e3), sd=st.floats(0.05, 5.0))
def test_edm_identities(sigma: float, sd: float) -> None:
    c_skip, c_out, c_in, c_noise = edm_scalings(sigma, sd)
    assert c_skip + (c_out / sd) ** 2 == pytest.approx(1, rel=1e-12)
    assert c_in**2 * (sigma**2 + sd**2) == pytest.approx(1, rel=1e-12)
    assert edm_weight(sigma, sd) == pytest.approx(1 / c_out**2, rel=1e-12)
    assert c_noise == pytest.approx(np.log(sigma) / 4)
    tensors = edm_scalings(torch.tensor([sigma], dtype=F8), sd)
    assert [float(c[0]) for c in tensors] == pytest.approx([c_skip, c_out, c_in, c_noise], rel=1e-12)


def test_what_the_network_is_told() -> None:
    x = torch.randn(2, 1, 2, 2)
    for kind, schedule, more, t, expected in (
        ("edm", EDM(), {}, 2.0, np.log(2.0) / 4),
        ("edm", VP(), {}, 0.5, np.log(VP().sigma(0.5) / VP().alpha(0.5)) / 4),
        ("eps", Discrete(), {}, 640.0, 640.0),
        ("eps", VP(), {"time_input": "999t"}, 0.5, 499.5),
        ("flow", Flow(), {}, 0.25, 250.0),
        ("v", VP(), {"time_input": "ln-sigma/4"}, 0.5, np.log(VP().sigma(0.5) / VP().alpha(0.5)) / 4),
    ):
        _, _, net = ask(kind, schedule, x, t, **more)
        assert float(net.told.reshape(-1)[0]) == pytest.approx(expected, rel=1e-6)
        assert net.told.dtype == net.given.dtype == torch.float32
        _, _, net = ask(kind, schedule, x, torch.tensor([t, t], dtype=F8), **more)
        assert net.told.tolist() == pytest.approx([expected] * 2, rel=1e-6)
    _, _, net = ask("edm", VP(), x, 0.5)
    alpha, sigma = VP().alpha(0.5), VP().sigma(0.5)
    assert torch.allclose(net.given, x / alpha / ((sigma / alpha) ** 2 + 0.25) ** 0.5)
    _, _, net = ask("eps", VP(), x, 0.5)
    assert torch.equal(net.given, x)


def test_learned_variance_is_the_second_half() -> None:
    x = torch.randn(2, 1, 2, 2)
    post, _, _ = ask("eps", VP(), x, 0.5, learned_variance=True)
    plain, _, _ = ask("eps", VP(), x, 0.5)
    assert plain.mix is None
    assert post.mix is not None
    assert torch.equal(post.mix, torch.full_like(x, 0.25))
    assert torch.equal(post.mean, plain.mean)


@pytest.mark.parametrize("learned", [False, True])
def test_a_plan_that_stops_early_leaves_the_taps(learned: bool) -> None:
    x = torch.randn(2, 1, 2, 2)
    _, model, _ = ask("eps", VP(), x, 0.5, learned_variance=learned)
    post = model.under("stop")(x, 0.5)
    assert set(post.taps) == {"tap"}
    assert post.mean.shape == x.shape
    assert model(x, 0.5).taps == {}


@fits
def test_a_target_is_what_a_perfect_answer_would_be(kind: str, schedule: Schedule) -> None:
    """A network that answers `target` makes the denoiser say x_0 and the noise."""
    torch.manual_seed(4)
    x0, noise = torch.randn(3, 1, 2, 2, dtype=F8), torch.randn(3, 1, 2, 2, dtype=F8)
    t = torch.tensor(near_both_ends(schedule), dtype=F8)
    x = schedule.marginal(x0, t, noise)
    net = Exact(kind, schedule, 0.0, 1.0).double()
    model = Preconditioned(net, schedule, kind=kind)
    net.raw = lambda x_, t_: model.target(x0, x, t, noise)  # type: ignore[method-assign]
    post = model(x, t)
    assert torch.allclose(post.mean, x0, atol=1e-7)
    assert torch.allclose(post.eps, noise, atol=1e-7)


def test_kinds_that_do_not_fit_are_refused() -> None:
    net = Exact("v", VP(), 0.0, 1.0)
    for kind, schedule in (("v", EDM()), ("v", SubVP()), ("v", Flow()), ("flow", VP()), ("flow", EDM())):
        with pytest.raises(InputError, match="kind"):
            Preconditioned(net, schedule, kind=kind)
    with pytest.raises(InputError, match="did you mean 'eps'"):
        Preconditioned(net, VP(), kind="epss")
    with pytest.raises(InputError, match="time_input"):
        Preconditioned(net, VP(), time_input="sigma")
    assert set(KINDS) == {kind for kind, _ in FITS}


def test_eps_is_refused_where_no_signal_is_left() -> None:
    zero = Discrete(zero_terminal_snr=True)
    net = Exact("eps", zero, 0.0, 1.0)
    with pytest.raises(InputError, match="eps says nothing"):
        Preconditioned(net, zero, kind="eps").check([999.0, 100.0])
    Preconditioned(net, zero, kind="eps").check([998.0, 100.0])
    for kind in ("v", "x0"):
        Preconditioned(Exact(kind, zero, 0.0, 1.0), zero, kind=kind).check([999.0, 100.0])


@pytest.mark.parametrize("kind, schedule", [("v", Discrete(zero_terminal_snr=True)), ("x0", Flow()), ("flow", Flow())])
def test_models_that_answer_without_signal(kind: str, schedule: Schedule) -> None:
    x = torch.randn(2, 1, 2, 2, dtype=F8)
    post, _, _ = ask(kind, schedule, x, schedule.t_max)
    assert torch.allclose(post.mean, torch.full_like(x, 0.3), atol=1e-6)
    assert torch.allclose(post.eps, x, atol=1e-6)


@pytest.mark.parametrize("schedule", [Flow(), Discrete(zero_terminal_snr=True)])
def test_edm_where_no_signal_is_left_is_refused_or_answered(schedule: Schedule) -> None:
    """sigma/alpha is infinite there: a clear refusal before work, or the right answer; never a division by zero."""
    model = Preconditioned(Exact("edm", schedule, 0.3, 0.2), schedule, kind="edm")
    with pytest.raises(InputError):
        model.check([schedule.t_max, schedule.t_min])
