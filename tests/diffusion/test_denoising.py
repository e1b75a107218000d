"""The denoising Method: its loss against the papers' formulas, what it draws, and that it learns."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.denoising import Denoising, min_snr_weight
from scoreline.diffusion.levels import antithetic, draw_levels
from scoreline.diffusion.preconditioned import Preconditioned, edm_weight
from scoreline.diffusion.schedules import EDM, VE, VP, Discrete, Flow
from scoreline.diffusion.variational import vlb_term
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.train import fit

F8 = torch.float64
SHAPE = (1, 4, 4)


def batch(count: int = 12, *, labels: Tensor | None = None, shape: tuple[int, ...] = SHAPE, first: int = 0) -> Batch:
    index = torch.arange(first, first + count)
    image = torch.randn(400, *shape, generator=torch.Generator().manual_seed(1))[index % 400].clamp(-1, 1)
    return Batch(image, labels, index, draws=Noise(7).at(index, shape))


def moved(net: nn.Module) -> Any:
    """Zero-initialised layers answer 0 whatever they are asked; move them."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for p in net.parameters():
            p.data.add_(0.2 * torch.randn_like(p))
    return net


def model(
    schedule: Any, kind: str, *, learned: bool = False, classes: int | None = None, **more: Any
) -> Preconditioned:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = moved(MLP(in_shape=SHAPE, out_channels=2 if learned else 1, width=24, depth=1, num_classes=classes))
    return Preconditioned(net, schedule, kind=kind, learned_variance=learned, **more)


def losses(method: Denoising, b: Batch) -> dict[str, Tensor]:
    made = method.loss(b, method.prepare(b, 0), 0)
    return {name: value.detach() for name, value in made.items()}


FITS = [("edm", EDM()), ("edm", VP()), ("eps", Discrete(T=50)), ("v", Discrete(T=50)), ("x0", VP()), ("flow", Flow())]
fits = pytest.mark.parametrize("kind, schedule", FITS, ids=lambda v: v if isinstance(v, str) else type(v).__name__)


@fits
def test_x_t_comes_from_each_images_own_draws(kind, schedule):
    method = Denoising(model(schedule, kind))
    b = batch()
    s = method.prepare(b, 0)
    u = b.draws.uniform(step=0, part=1)
    assert torch.equal(s.t, draw_levels(method.levels, u, schedule))
    assert torch.equal(s.noise, b.draws.normal())
    alpha, sigma = schedule.alpha(s.t), schedule.sigma(s.t)
    want = alpha.view(-1, 1, 1, 1) * s.x0.double() + sigma.view(-1, 1, 1, 1) * s.noise.double()
    torch.testing.assert_close(s.x.double(), want, rtol=1e-5, atol=1e-5)
    # Level and noise do not go together.
    big = method.prepare(batch(400), 0)
    order = torch.stack([big.t.argsort().argsort().double(), big.noise.flatten(1).double().square().mean(1)])
    assert abs(float(torch.corrcoef(order)[0, 1])) < 0.15


def test_usual_levels():
    usual = {"edm": (EDM(), "lognormal"), "eps": (Discrete(T=50), "uniform-index"), "v": (VP(), "uniform")}
    for kind, (schedule, name) in usual.items():
        assert Denoising(model(schedule, kind)).levels == name
    assert Denoising(model(Flow(), "flow"), levels="logit-normal").levels == "logit-normal"


@pytest.mark.parametrize("schedule", [EDM(), VE(), VP()], ids=lambda s: type(s).__name__)
def test_edm_loss_is_edms_weighted_loss(schedule):
    """mean of (s^2 + sd^2)/(s sd)^2 |D(x/alpha; s) - x_0|^2, s = sigma/alpha (Karras et al. 2022, eq. 8, table 1)."""
    method = Denoising(model(schedule, "edm", sigma_data=0.7))
    b = batch()
    s = method.prepare(b, 0)
    mean = method.denoiser(s.x, s.t, s.cond).mean
    level = schedule.sigma(s.t) / schedule.alpha(s.t)
    each = edm_weight(level, 0.7) * (mean - s.x0).double().square().flatten(1).mean(1)
    assert float(losses(method, b)["loss"]) == pytest.approx(float(each.detach().mean()), rel=1e-4)


def test_eps_v_and_flow_losses_are_those_of_the_papers():
    for kind, schedule in (("eps", Discrete(T=50)), ("v", Discrete(T=50)), ("x0", Discrete(T=50)), ("flow", Flow())):
        method = Denoising(model(schedule, kind))
        b = batch()
        s = method.prepare(b, 0)
        alpha, sigma = (v.view(-1, 1, 1, 1).float() for v in (schedule.alpha(s.t), schedule.sigma(s.t)))
        want = {"eps": s.noise, "x0": s.x0, "v": alpha * s.noise - sigma * s.x0, "flow": s.noise - s.x0}[kind]
        out = method.denoiser.net(s.x, s.t.float() * (1000 if kind == "flow" else 1), s.cond)
        torch.testing.assert_close(losses(method, b)["loss"], (out - want).square().mean().detach(), rtol=1e-4, atol=0)


def test_min_snr_weights():
    snr = torch.tensor([0.01, 1.0, 5.0, 20.0], dtype=F8)
    torch.testing.assert_close(min_snr_weight(snr, "eps"), torch.tensor([1, 1, 1, 0.25], dtype=F8))
    torch.testing.assert_close(min_snr_weight(snr, "x0"), torch.tensor([0.01, 1, 5, 5], dtype=F8))
    torch.testing.assert_close(min_snr_weight(snr, "v"), torch.tensor([0.01 / 1.01, 0.5, 5 / 6, 5 / 21], dtype=F8))
    # The three are one weight on |x_0 - E x_0|^2: eps errors are sqrt(SNR) larger, v errors sqrt(SNR + 1).
    for kind, factor in (("eps", snr), ("v", snr + 1)):
        torch.testing.assert_close(min_snr_weight(snr, kind, gamma=2.0) * factor, min_snr_weight(snr, "x0", gamma=2.0))
        for value in snr.tolist():
            got = min_snr_weight(value, kind, gamma=2.0)
            assert got == pytest.approx(float(min_snr_weight(torch.tensor(value), kind, gamma=2.0)), rel=1e-6)
    assert min_snr_weight(0.0, "eps") == 1
    assert float(min_snr_weight(torch.zeros(()), "eps")) == 1
    with pytest.raises(InputError, match="min-SNR weights exist"):
        min_snr_weight(1.0, "edm")


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_min_snr_loss(kind):
    schedule = Discrete(T=1000)
    method = Denoising(model(schedule, kind), weight="min-snr")
    b = batch()
    s = method.prepare(b, 0)
    abar = torch.from_numpy(schedule.abar)[s.t.long()]
    snr = abar / (1 - abar)
    error = (method.denoiser(s.x, s.t).mean - s.x0).double().square().flatten(1).mean(1)
    want = (snr.clamp(max=5) * error).mean()  # see test_min_snr_weights
    assert float(losses(method, b)["loss"]) == pytest.approx(float(want.detach()), rel=1e-3)


@pytest.mark.parametrize(
    "kind, schedule, learned",
    [*[(k, s, False) for k, s in FITS], ("eps", Discrete(T=50), True)],
    ids=lambda v: type(v).__name__ if " at 0x" in repr(v) else str(v),
)
def test_a_batch_cut_in_two_has_the_same_loss(kind, schedule, learned):
    labels = torch.arange(12) % 3
    method = Denoising(model(schedule, kind, classes=3, learned=learned), p_uncond=0.4).eval()
    whole = losses(method, batch(12, labels=labels))
    parts = [losses(method, batch(6, labels=labels[i : i + 6], first=i)) for i in (0, 6)]
    for name, value in whole.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2, rtol=1e-5, atol=1e-6)


def test_labels_are_dropped_with_the_stated_frequency():
    labels = torch.arange(400) % 3
    dropped = []
    for p in (0.0, 0.1, 0.5):
        method = Denoising(model(EDM(), "edm", classes=3), p_uncond=p)
        b = batch(400, labels=labels)
        got = method.prepare(b, 0).cond.labels
        assert ((got == labels) | (got == 3)).all()
        dropped.append(got == 3)
    assert not dropped[0].any()
    # 400 coins: 4 standard deviations.
    assert abs(float(dropped[1].float().mean()) - 0.1) < 4 * math.sqrt(0.09 / 400)
    assert abs(float(dropped[2].float().mean()) - 0.5) < 4 * math.sqrt(0.25 / 400)
    assert (dropped[2] | ~dropped[1]).all()  # the same coin for any p
    # Independent of the level drawn for the image.
    t = method.prepare(b, 0).t.log()
    assert abs(float(t[dropped[2]].mean() - t[~dropped[2]].mean())) < 4 * 1.2 * 2 / math.sqrt(400)


def test_missing_labels_become_null():
    labels = torch.tensor([-1, 0, 2, -1])
    method = Denoising(model(EDM(), "edm", classes=3), p_uncond=0.0)
    assert method.prepare(batch(4, labels=labels), 0).cond.labels.tolist() == [3, 0, 2, 3]
    with pytest.raises(InputError, match="class-conditional"):
        method.prepare(batch(4), 0)
    assert Denoising(model(EDM(), "edm")).prepare(batch(4, labels=labels), 0).cond is None


def test_pairs_of_levels():
    schedule = Discrete(T=50)
    method = Denoising(model(schedule, "eps"), pair_levels=True)
    b = batch(8)
    t = draw_levels("uniform-index", b.draws.uniform(step=0, part=1), schedule)
    s = method.prepare(b, 0)
    assert torch.equal(s.t, antithetic(t, 50))
    assert (s.t[:3] + s.t[5:] == 49).all()
    torch.testing.assert_close(s.x, schedule.marginal(s.x0, s.t, s.noise))


def test_hybrid_loss_is_simple_plus_the_scaled_bound():
    """L_simple + (T/1000) L_t: lambda = 0.001 times the T-fold estimate of the bound (Nichol & Dhariwal 2021)."""
    for kind in ("eps", "v"):
        schedule = Discrete(T=200)
        method = Denoising(model(schedule, kind, learned=True)).eval()
        b = batch()
        s = method.prepare(b, 0)
        post = method.denoiser(s.x, s.t)
        bound = vlb_term(schedule, s.x0, s.x, s.t, post.mean, post.mix).mean().detach()
        simple = (post.raw - method.denoiser.target(s.x0, s.x, s.t, s.noise)).square().mean().detach()
        got = losses(method, b)
        torch.testing.assert_close(got["simple"], simple)
        torch.testing.assert_close(got["vlb"], bound)
        torch.testing.assert_close(got["loss"], simple + 0.2 * bound)


def test_the_bound_trains_the_variance_only():
    class Two(nn.Module):
        """Separate parameters for the two channel groups."""

        def __init__(self) -> None:
            super().__init__()
            self.in_shape, self.num_classes = SHAPE, None
            self.mean, self.share = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.2))

        def trace(self, x: Tensor, t: Tensor, cond: Any, plan: Any) -> tuple[Tensor, dict]:
            return torch.cat([self.mean * x, self.share * torch.ones_like(x)], 1), {}

    net = Two()
    method = Denoising(Preconditioned(net, Discrete(T=200), kind="eps", learned_variance=True))
    b = batch()
    made = method.loss(b, method.prepare(b, 0), 0)
    made["loss"].backward()
    whole = net.mean.grad.clone(), net.share.grad.clone()
    s = method.prepare(b, 0)
    net.zero_grad()
    (net.mean * s.x - s.noise).square().mean().backward()
    torch.testing.assert_close(net.mean.grad, whole[0])
    assert net.share.grad is None
    assert float(whole[1]) != 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight": "min_snr"}, "did you mean 'min-snr'"),
        ({"p_uncond": 1.0}, "p_uncond"),
        ({"p_uncond": -0.1}, "p_uncond"),
        ({"levels": "uniform_index"}, "did you mean 'uniform-index'"),
        ({"levels": "uniform-index"}, "no table"),
        ({"weight": "min-snr"}, "min-SNR weights exist"),
        ({"pair_levels": True}, "pair_levels"),
    ],
)
def test_refusals_before_any_work(settings, message):
    with pytest.raises(InputError, match=message):
        Denoising(model(EDM(), "edm"), **settings)


def test_more_refusals_before_any_work():
    for levels in (None, "uniform"):
        with pytest.raises(InputError, match="discrete schedule"):
            Denoising(model(VP(), "eps", learned=True), levels=levels)
    with pytest.raises(InputError, match="no signal"):
        Denoising(model(Discrete(T=50, zero_terminal_snr=True), "eps"))
    Denoising(model(Discrete(T=50, zero_terminal_snr=True), "v"), weight="min-snr")


def test_zero_terminal_snr_trains_a_v_model():
    schedule = Discrete(T=50, zero_terminal_snr=True)
    method = Denoising(model(schedule, "v", learned=True), weight="min-snr")
    b = batch()
    s = dataclasses.replace(method.prepare(b, 0), t=torch.full((12,), 49.0, dtype=F8))
    s = dataclasses.replace(s, x=schedule.marginal(s.x0, s.t, s.noise))
    assert torch.equal(s.x, s.noise)
    method.loss(b, s, 0)["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_a_transform_may_change_the_shape():
    method = Denoising(model(EDM(), "edm"), transform=lambda x, draws: x[..., ::2, ::2].contiguous())
    b = batch(shape=(1, 8, 8))
    s = method.prepare(b, 0)
    assert s.noise.shape == s.x.shape == s.x0.shape == (12, *SHAPE)
    assert torch.equal(s.noise, b.draws.reshaped(SHAPE).normal())
    assert math.isfinite(float(losses(method, b)["loss"]))


@pytest.mark.parametrize("kind, schedule", [("edm", EDM()), ("eps", Discrete(T=100))], ids=["edm", "eps"])
def test_a_small_net_learns_the_exact_denoiser_of_two_points(kind, schedule):
    data = torch.tensor([[0.8, -0.4], [-0.8, 0.4]])
    labels = torch.tensor([0, 1])
    exact = Empirical(schedule, data, labels=labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(in_shape=(2,), width=32, depth=2, num_classes=2)
    scale = {"time_input": "ln-sigma/4"} if kind == "eps" else {}
    method = Denoising(Preconditioned(net, schedule, kind=kind, sigma_data=0.63, **scale), p_uncond=0.5, lr=5e-3)
    rows = torch.arange(64) % 2
    trained = fit(method, (data[rows], labels[rows]), steps=200, batch_size=64, ema=0.97).result()
    assert not trained.training
    t = float(schedule.time(-math.log(0.7)))
    x = schedule.marginal(data[rows], t, torch.randn(64, 2, generator=torch.Generator().manual_seed(3)))
    for cond in (torch.full((64,), 2), rows):
        with torch.no_grad():
            got, want = (m(x, t, Cond(labels=cond)).mean for m in (trained, exact))
        assert float((got - want).square().mean()) < 0.15 * 0.4  # data variance 0.4 a dimension
    # Unconditional and conditional differ where it matters.
    assert float((exact(x, t, Cond(labels=rows)).mean - exact(x, t).mean).square().mean()) > 0.03


def test_result_and_averaged():
    method = Denoising(model(EDM(), "edm"))
    assert method.averaged() is method.denoiser.net
    method.train()
    assert method.result() is method.denoiser
    assert not method.denoiser.training
    unet = UNet(in_shape=(1, 8, 8), base_channels=8, channel_mult=(1,), num_blocks=1, attention=())
    fit(Denoising(Preconditioned(unet, EDM())), torch.zeros(4, 1, 8, 8), steps=1, batch_size=4)
