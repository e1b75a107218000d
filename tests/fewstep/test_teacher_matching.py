"""Teacher score matching: its loss by hand, what its minimiser sees, and a smaller network that learns an exact
teacher."""

from __future__ import annotations

import copy

import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP
from scoreline.fewstep.teacher_matching import TeacherMatching, tsm_loss, tsm_weight
from scoreline.nn.mlp import MLP
from scoreline.train import fit


def model(seed: int = 0, width: int = 16, classes: int | None = 3) -> Preconditioned:
    torch.manual_seed(seed)
    net = MLP(in_shape=(2,), width=width, depth=1, num_classes=classes)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Preconditioned(net, EDM())


X, Z = (torch.randn(5, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
T = torch.tensor([0.01, 0.3, 1.0, 5.0, 40.0]).double()
COND = Cond(labels=torch.tensor([0, 1, 2, 0, 1]))


@pytest.mark.check(system=30, number=3)
def test_a_copy_has_no_loss_and_the_clean_image_does_not_matter() -> None:
    teacher = model()
    x_t = EDM().marginal(X, T, Z)
    assert tsm_loss(copy.deepcopy(teacher), teacher, x_t, T, COND).item() == 0
    other = model(1)
    assert tsm_loss(other, teacher, x_t, T, COND).item() > 0
    # Two clean images that give one x_t: the same batch of draws by other ways, the same loss and gradient.
    method = TeacherMatching(other, teacher)
    slopes = []
    for x in (X, X + 0.7):
        noise = (x_t - x) / T[:, None].float()
        again = EDM().marginal(x, T, noise)
        loss = method.loss(None, (again, T, COND, COND), 0)
        found = torch.autograd.grad(loss, list(other.net.parameters()), allow_unused=True)
        slopes.append(torch.cat([g.flatten() for g in found if g is not None]))
    assert torch.allclose(*slopes, rtol=1e-3, atol=1e-3 * float(slopes[0].abs().max()))


def test_the_loss_by_hand() -> None:
    a, b = Gaussian(EDM(), torch.zeros(2).double(), 1.0), Gaussian(EDM(), torch.ones(2).double(), 1.0)
    # Answers differ by T^2/(1 + T^2) in each of two entries.
    apart = 2 * (T**2 / (1 + T**2)) ** 2
    weight = (T**2 + 0.25) / (0.5 * T) ** 2
    assert tsm_loss(a, b, X.double(), T).item() == pytest.approx(float((weight * apart).mean()), rel=1e-9)
    assert torch.allclose(torch.as_tensor(tsm_weight(T, EDM())), weight)
    assert tsm_weight(1.0, EDM(), 0.75) == pytest.approx((1 + 0.5625) / 0.5625)
    t, schedule = 0.3, VP()
    s = schedule.sigma(t) / schedule.alpha(t)
    assert tsm_weight(t, schedule) == pytest.approx((s**2 + 0.25) / (0.5 * s) ** 2)
    half = tsm_loss(a, b, X.double(), T, sigma_data=1.0).item()
    assert half == pytest.approx(float(((T**2 + 1) / T**2 * apart).mean()), rel=1e-9)


def test_levels_are_lognormal_and_labels_stay() -> None:
    method = TeacherMatching(model(1), model())
    index = torch.arange(4000)
    draws = Noise(0).at(index, (2,))
    x_t, t, cond, told = method.prepare(Batch(torch.zeros(4000, 2), index % 3, index, draws=draws), 0)
    assert t.log().mean() == pytest.approx(-1.2, abs=0.06)
    assert t.log().std() == pytest.approx(1.2, abs=0.06)
    assert (x_t / t[:, None]).std().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(cond.labels, index % 3)
    assert torch.equal(told.labels, index % 3)
    # The weight is the student's own: sd = 0.75 here.
    wide = TeacherMatching(Preconditioned(model(1).net, EDM(), sigma_data=0.75), model())
    loss = wide.loss(None, (x_t, t, cond, told), 0)
    assert loss.item() == tsm_loss(wide.student, wide.teacher, x_t, t, cond, told, sigma_data=0.75).item()
    assert loss.item() != tsm_loss(wide.student, wide.teacher, x_t, t, cond, told).item()


def test_a_small_network_learns_an_exact_teacher() -> None:
    teacher = Gaussian(EDM(), torch.tensor([1.0, -0.5]), torch.tensor([0.3, 0.1]))
    torch.manual_seed(0)
    method = TeacherMatching(Preconditioned(MLP(in_shape=(2,), width=16, depth=1), EDM()), teacher, lr=1e-2)
    x_t = EDM().marginal(X, T, Z)
    before = tsm_loss(method.student, teacher, x_t, T).item()
    # Clean images of another mean: the teacher's answers are learned, not the images.
    data = torch.randn(512, 2, generator=torch.Generator().manual_seed(2)) * 0.5
    made = fit(method, data, steps=150, batch_size=64, seed=0, ema=0.9).result()
    assert tsm_loss(made.denoiser, teacher, x_t, T).item() < 0.05 * before
    assert made.denoiser(torch.zeros(1, 2), 3.0).mean.flatten().tolist() == pytest.approx([0.97, -0.5], abs=0.25)


def test_it_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="positive"):
        TeacherMatching(model(1), model(), std=0.0)
    with pytest.raises(InputError, match="classes"):
        TeacherMatching(model(1, classes=4), model())
    small = TeacherMatching.student_of(model(), MLP(in_shape=(2,), width=4, num_classes=3))
    assert type(small) is Preconditioned
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model().parameters())
    assert TeacherMatching(small, model()).frozen()[0] is not small
