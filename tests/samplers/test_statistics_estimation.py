"""DPM-Solver-v3's statistics against closed forms and against the paper's two passes; sums that survive a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoreline.samplers.statistics_estimation as estimation
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import ArtefactError, InputError, NonFiniteError
from scoreline.core.names import lookup
from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule, Time
from scoreline.data import from_arrays
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Discrete, Flow
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet
from scoreline.samplers.statistics_estimation import estimate, jvp, lam_range, moments, statistics_of

F8 = torch.float64
MEAN, VARIANCE = torch.tensor([0.4, -0.3, 0.1], dtype=F8), torch.tensor([0.5, 0.1, 1.0], dtype=F8)
MEANS = torch.tensor([[-1.0, 0.4, 0.3], [0.8, 1.0, -0.5], [0.2, -1.2, 0.9]], dtype=F8)
VARIANCES = torch.tensor([0.05, 0.1, 0.2], dtype=F8)


def gaussian(schedule: Schedule) -> tuple[Gaussian, Tensor]:
    points = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=F8)
    return Gaussian(schedule, MEAN, VARIANCE), MEAN + VARIANCE.sqrt() * points


def mixture(schedule: Schedule) -> tuple[Mixture, Tensor]:
    points = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=F8)
    x0 = MEANS.repeat(100, 1) + VARIANCES.repeat(100)[:, None].sqrt() * points
    return Mixture(schedule, MEANS, VARIANCES), x0


@pytest.mark.check(system=25, number=2)
@pytest.mark.check(system=25, number=4)
@pytest.mark.parametrize("name", ["vp", "cosine", "subvp", "ve", "edm", "flow", "discrete"])
def test_a_gaussian_has_statistics_in_closed_form_on_every_schedule(name: str) -> None:
    """l = sigma^2/(alpha^2 c + sigma^2); f = -m l has no spread, so s = 0 and b = f' = -m dl/dlambda."""
    model, x0 = gaussian(lookup("schedule", name)())
    found = estimate(model, (x0, None), samples=8, nodes=30, low=-1.0, high=1.5)
    ratio = VARIANCE * torch.exp(2 * torch.as_tensor(found.lam))[:, None]
    l = 1 / (1 + ratio)  # noqa: E741
    torch.testing.assert_close(found.l, l, rtol=0, atol=1e-6)
    assert not found.s.any()
    # Differences between the nodes stand for dl/dlambda.
    torch.testing.assert_close(found.b, 2 * MEAN * ratio * l * l, rtol=0, atol=8e-3)
    assert found.b.abs().max() > 0.1


@pytest.mark.check(system=25, number=3)
def test_points_without_spread_have_l_one_and_unit_variance_has_sigma_squared() -> None:
    x0 = torch.zeros(20, 3, dtype=F8)
    bare = estimate(Gaussian(VP(), MEAN, 0.0), (x0 + MEAN, None), samples=20, nodes=10)
    torch.testing.assert_close(bare.l, torch.ones_like(bare.l))
    unit = estimate(Gaussian(VP(), MEAN, 1.0), (x0, None), samples=20, nodes=10)
    sigma = VP().sigma(VP().time(unit.lam))
    torch.testing.assert_close(unit.l, torch.as_tensor(sigma**2)[:, None].expand(-1, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [EDM(), VP(), Flow(), Discrete()], ids=lambda s: type(s).__name__)
def test_the_sums_give_what_the_papers_two_passes_give(schedule: Schedule) -> None:
    """First l at all nodes, from whole Jacobians; then f and f' point by point, the derivative of the prediction along
    the ODE by a central difference, and the regression of one on the other."""
    model, x0 = mixture(schedule)
    found = estimate(model, (x0, None), samples=300, nodes=8, low=-1.0, high=2.0, diagonal="exact", seed=3)
    noise = Noise(3).at(range(300), (3,), dtype=F8).normal()

    def mean(y: Tensor, lam: float) -> Tensor:
        t = float(schedule.time(lam))
        return model(float(schedule.alpha(t)) * y, t).mean

    ys = [x0 + np.exp(-lam) * noise for lam in found.lam]
    jacobians = [torch.func.jacrev(lambda y, lam=lam: mean(y, lam).sum(0))(y) for y, lam in zip(ys, found.lam)]
    l = torch.stack([1 - j.diagonal(dim1=0, dim2=2).mean(0) for j in jacobians])  # noqa: E741
    tolerance = 2e-3 if schedule.known is not None else 1e-9  # between the entries of a table
    torch.testing.assert_close(found.l, l, rtol=0, atol=tolerance)
    slope, d = torch.gradient(l, spacing=3 / 8, dim=0, edge_order=2)[0], 1e-4
    for i in (0, 3, 8):
        lam, y = found.lam[i], ys[i]
        D = mean(y, lam)
        along = (mean(y + d * (D - y), lam + d) - mean(y - d * (D - y), lam - d)) / (2 * d)
        f, f_ = (1 - l[i]) * y - D, (1 - l[i]) * (D - y) - slope[i] * y - along
        for k in range(3):
            s, b = np.polyfit(f[:, k].numpy(), f_[:, k].numpy(), 1)
            assert float(found.s[i, k]) == pytest.approx(s, abs=50 * tolerance + 1e-5)
            assert float(found.b[i, k]) == pytest.approx(b, abs=50 * tolerance + 1e-5)


@pytest.mark.check(system=25, number=8)
def test_the_probed_diagonal_is_unbiased() -> None:
    """Of one point: the mean over 4096 probes within 4 standard errors of the exact diagonal, whose errors are known:
    the variance of v_i (J v)_i is the sum of the squares of the other entries of the row."""
    model, x0 = mixture(EDM())
    lam, count = -0.4, 4096
    noise = torch.tensor([[0.3, -0.8, 0.5]], dtype=F8)
    probe = torch.sign(Noise(1).at(range(count), (3,), dtype=F8).normal())
    point = x0[:1].expand(count, -1)
    probed = moments(model, lam, point, noise.expand(count, -1), probe=probe)[0] / count
    exact = moments(model, lam, x0[:1], noise)[0]
    level = float(np.exp(-lam))
    J = torch.func.jacrev(lambda x: model(x[None], level).mean[0])(x0[0] + level * noise[0])
    torch.testing.assert_close(exact, J.diagonal())
    error = ((J - J.diagonal().diag()) ** 2).sum(1).sqrt() / count**0.5
    assert (error > 1e-4).all()
    assert ((probed - exact).abs() < 4 * error).all()


def test_probes_come_near_the_exact_diagonal() -> None:
    model, x0 = mixture(EDM())
    exact, probed = (estimate(model, (x0, None), samples=300, nodes=4, diagonal=d) for d in ("exact", "probe"))
    assert (probed.l - exact.l).abs().max() < 0.05
    twice = estimate(model, (x0, None), samples=150, probes=2, nodes=4)
    assert torch.equal(twice.l, probed.l)


def test_batches_of_any_size_give_the_same() -> None:
    model, x0 = mixture(VP())
    whole = estimate(model, (x0, None), samples=9, nodes=4, batch_size=9)
    parts = estimate(model, (x0, None), samples=9, nodes=4, batch_size=4)
    for name in ("l", "s", "b"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-10)
    other = estimate(model, (x0, None), samples=9, nodes=4, seed=1)
    assert (other.l - whole.l).abs().max() > 1e-5


class Stopped(Exception):
    pass


def test_a_killed_estimation_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimation, "SECONDS", 0.0)
    model, x0 = mixture(EDM())
    kind = {"samples": 30, "nodes": 6, "batch_size": 11}
    whole = estimate(model, (x0, None), **kind)
    told: list[int] = []

    def stop(n: int, text: str) -> None:
        told.append(n)
        if len(told) == 9:
            raise Stopped

    with pytest.raises(Stopped):
        estimate(model, (x0, None), folder=tmp_path, advance=stop, **kind)
    rest: list[int] = []
    again = estimate(model, (x0, None), folder=tmp_path, advance=lambda n, text: rest.append(n), **kind)
    assert len(rest) == 21 - 9
    assert sum(rest) == 30 - sum(told) + sum(told)  # what was done before counts as told at once
    for name in ("l", "s", "b"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    with pytest.raises(ArtefactError, match="they differ in samples, seed"):
        estimate(model, (x0, None), folder=tmp_path, **{**kind, "samples": 20}, seed=1)
    file = tmp_path / "sums.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ArtefactError, match="damaged; delete"):
        estimate(model, (x0, None), folder=tmp_path, **kind)


def tiny(classes: int | None) -> Preconditioned:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(in_shape=(1, 4, 4), width=16, depth=1, num_classes=classes)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
    return Preconditioned(net, EDM(), sigma_data=0.7).eval()


def test_labels_of_the_images_are_the_conditions() -> None:
    model, images = tiny(3), torch.rand(12, 1, 4, 4) * 2 - 1
    labels = torch.arange(12) % 3
    kind = {"samples": 12, "nodes": 5}
    given = estimate(model, from_arrays(images, labels), **kind)
    pair = estimate(model, (images, labels), **kind)
    assert torch.equal(given.l, pair.l)
    assert torch.equal(given.b, pair.b)
    none, missing = estimate(model, (images, None), **kind), estimate(model, (images, labels * 0 - 1), **kind)
    assert torch.equal(none.b, missing.b)
    assert (none.b - given.b).abs().max() > 1e-4
    with pytest.raises(InputError, match="classes 0 to 2"):
        estimate(model, (images, labels + 5), **kind)


def test_derivatives_of_a_network_with_attention() -> None:
    """Forward-mode products through a U-Net, in all that it consists of, against a difference."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(in_shape=(1, 4, 4), base_channels=8, channel_mult=(1,), num_blocks=1, attention=(4,))
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2)
    model = Preconditioned(net.double(), EDM()).eval()
    x, v = (Noise(s).at([0, 1], (1, 4, 4), dtype=F8).normal() for s in (0, 1))
    t, w = torch.tensor([0.7, 0.7], dtype=F8), torch.tensor([0.3, 0.3], dtype=F8)
    value, tangent = jvp(lambda x, t: model(x, t).mean, (x, t), (v, w))
    with torch.no_grad():
        torch.testing.assert_close(value, model(x, t).mean)
        d = 1e-5
        difference = (model(x + d * v, t + d * w).mean - model(x - d * v, t - d * w).mean) / (2 * d)
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-6)
    assert not tangent.requires_grad


class NoForwardMode(torch.autograd.Function):
    """x^2 with a backward that can itself be differentiated, and no forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


def test_backward_mode_twice_where_forward_mode_is_missing() -> None:
    x, v = torch.tensor([1.0, 3.0]), torch.tensor([0.5, -1.0])
    value, tangent = jvp(NoForwardMode.apply, (x,), (v,))
    assert value.tolist() == [1.0, 9.0]
    assert tangent.tolist() == [1.0, -6.0]


def test_a_fixed_l_of_a_gaussian_leaves_s_and_b_exact() -> None:
    """With l = 1, f = -E[x_0|x] is affine in y, and so is f' in f: s = f'_y/f_y."""
    model, x0 = gaussian(EDM())
    found = estimate(model, (x0, None), samples=20, nodes=10, low=-2.0, high=2.0, fixed_l=1.0)
    assert (found.l == 1).all()
    level2 = torch.exp(-2 * torch.as_tensor(found.lam))[:, None]
    k = VARIANCE / (VARIANCE + level2)  # D = m + k (y - m),  y' = D - y,  k' = 2 k (1 - k)
    torch.testing.assert_close(found.s, 2 * (1 - k) + k - 1, rtol=1e-6, atol=1e-6)


class Broken(Denoiser):
    def __init__(self) -> None:
        super().__init__()
        self.schedule, self.shape = EDM(), (2,)

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        return Posterior.of_mean(x, x / 0, 1.0, 1.0)


def test_bad_input_is_refused_before_any_work(tmp_path: Path) -> None:
    model, x0 = gaussian(EDM())
    for bad in (
        {"samples": 1}, {"samples": 2.5}, {"batch_size": 0}, {"nodes": 3}, {"probes": 0}, {"diagonal": "exat"},
        {"low": 3.0, "high": 1.0},
    ):  # fmt: skip
        with pytest.raises(InputError):
            estimate(model, (x0, None), folder=tmp_path / "none", **bad)
    with pytest.raises(InputError, match="the model's is"):
        estimate(model, (x0[:, :2], None), samples=4)
    with pytest.raises(InputError, match="at least 2"):
        estimate(model, (x0[:1], None), samples=4)
    assert not (tmp_path / "none").exists()
    with pytest.raises(NonFiniteError, match="not finite"):
        estimate(Broken(), (x0[:, :2].float(), None), samples=4, nodes=4)


def test_ranges() -> None:
    assert lam_range(EDM(t_min=0.01, t_max=50.0)) == pytest.approx((-np.log(50), -np.log(0.01)))
    assert lam_range(Flow())[0] == -7.0  # no signal is left at its noisiest level


def test_statistics_of_sums_guards_against_no_spread() -> None:
    """Sums of points that are all alike."""
    sums = torch.zeros(5, 9, 1, dtype=F8)
    y, D, D_ = 0.5, 0.2, -0.1
    for row, value in enumerate((0.3, y, D, D_, y * y, y * D, D * D, y * D_, D * D_)):
        sums[:, row] = 4 * value
    found = statistics_of(sums, 4, 0.0, 1.0)
    assert found.l.flatten().tolist() == pytest.approx([0.7] * 5)
    assert not found.s.any()
    assert found.b.flatten().tolist() == pytest.approx([0.3 * (D - y) - D_] * 5)
