"""The turn of SiD and SIM: who learns when, from which images and levels, and where gradients go."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.fewstep.sid import SiD
from scoreline.fewstep.through import Through, karras_level, level_of, online_score_loss
from scoreline.nn.mlp import MLP
from scoreline.train import fit


class Plain(Through):
    """A term that pulls the critic's answer to the teacher's."""

    def term(self, m):
        return (m.fake - m.real).square().mean()


def network(schedule=None, seed=0, **settings):
    torch.manual_seed(seed)
    net = MLP(in_shape=(3,), width=8, depth=1, **settings)
    with torch.no_grad():
        net.output.weight.normal_(0, 0.3)
    schedule = EDM() if schedule is None else schedule
    return Preconditioned(net, schedule, kind="edm" if isinstance(schedule, EDM) else "eps")


def batch(count=6, seed=7):
    index = torch.arange(count)
    return Batch(torch.zeros(count, 0), None, index, draws=Noise(seed).at(index, (0,)))


def test_levels_are_those_of_the_paper():
    assert karras_level(np.array([0.0, 1.0])) == pytest.approx([0.002, 80.0])
    middle = (80 ** (1 / 7) + 0.6 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert float(karras_level(torch.tensor(0.4, dtype=torch.float64))) == pytest.approx(middle)
    teacher = network()
    made = Plain(Plain.student_of(teacher), teacher)
    draws = Noise(0).at(range(3000), (3,))
    drawn = made.level(draws, 2)
    assert drawn.max() <= karras_level(0.8) < 24.41
    assert drawn.median() == pytest.approx(middle, rel=0.15)
    assert torch.allclose(drawn, karras_level(0.8 * draws.uniform(part=2)))
    logs = made.critic_level(draws, 6).log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.1)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.1)


def test_levels_on_other_schedules():
    assert level_of(EDM(), 2.5) == pytest.approx(2.5)
    assert level_of(EDM(), 200.0) == 80.0
    table = Discrete(betas="linear")
    assert level_of(table, 2.5) == 440
    assert level_of(table, torch.tensor([2.5, 1e9], dtype=torch.float64)).tolist() == [440, 999]
    t = level_of(VP(), 2.5)
    assert VP().sigma(t) / VP().alpha(t) == pytest.approx(2.5)


def test_a_table_starts_from_its_own_share_of_noise():
    teacher = network(Discrete(betas="linear"))
    made = Plain(Plain.student_of(teacher), teacher)
    turn = made.prepare(batch(), 0)
    assert turn.level == 440
    z = batch().draws.reshaped((3,)).normal()
    assert torch.allclose(turn.x, 0.928596 * z, atol=1e-5)
    for t in (made.level(batch().draws, 2), made.critic_level(batch().draws, 6)):
        assert torch.equal(t, t.round())


@pytest.mark.check(system=20, number=9)
def test_the_generator_is_the_teachers_denoiser_at_first():
    teacher = network()
    made = Plain(Plain.student_of(teacher), teacher)
    turn = made.prepare(batch(), 0)
    z = batch().draws.reshaped((3,)).normal()
    assert torch.equal(turn.x, 2.5 * z)
    x = made.student.answer(turn.x, turn.level, None)
    assert torch.equal(x, teacher(2.5 * z, 2.5).mean)
    made_at_once = made.result().generate(batch().index, Noise(7))
    assert torch.allclose(made_at_once, x.clamp(-1, 1), atol=1e-6)


def test_the_critic_goes_first_on_images_of_its_own_noise():
    teacher = network()
    made = Plain(Plain.student_of(teacher), teacher)
    assert [update.name for update in made.updates] == ["critic", "student"]
    turn = made.prepare(batch(), 0)
    own = batch().draws.reshaped((3,)).normal(part=12)
    assert torch.equal(turn.made, teacher(2.5 * own, 2.5).mean)
    assert not turn.made.requires_grad
    loss = made.critic_loss(batch(), turn, 0)["loss"]
    draws = batch().draws.reshaped((3,))
    sigma = made.critic_level(draws, 6)
    x_t = turn.made + sigma[:, None].float() * draws.normal(part=7)
    expected = online_score_loss(made.critic(x_t, sigma).mean, turn.made, sigma).mean() / 3
    assert torch.allclose(loss, expected, rtol=1e-4)


def test_the_online_loss_has_edms_weight():
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)
    x, fake = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    each = online_score_loss(fake, x, sigma, 0.5)
    assert each.tolist() == pytest.approx([3 * (0.25 + 0.25) / 0.0625, 3 * (4 + 0.25) / 1.0])


@pytest.mark.check(system=20, number=7)
def test_neither_critic_nor_teacher_is_moved_by_the_generators_update():
    teacher = network()
    made = SiD(SiD.student_of(teacher), teacher, lr=1e-2, critic_lr=0.0)
    with torch.no_grad():
        made.critic.net.output.bias.add_(0.1)
    before = [p.clone() for model in (made.teacher, made.critic) for p in model.parameters()]
    start = [p.clone() for p in made.student.parameters()]
    fit(made, None, steps=1, batch_size=6, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, [*made.teacher.parameters(), *made.critic.parameters()]))
    assert not all(torch.equal(a, b) for a, b in zip(start, made.student.parameters()))
    assert all(p.grad is None for p in made.teacher.parameters())


def test_gradients_come_through_both_networks():
    torch.manual_seed(0)
    exact = Gaussian(EDM(), torch.zeros(3), 0.25)
    made = Plain(Plain.student_of(None, network()), exact, network(seed=1))
    x = torch.randn(6, 3, requires_grad=True)
    m = made.match(x, batch().draws.reshaped((3,)), None, None)
    assert torch.autograd.grad(m.real.sum(), x, retain_graph=True)[0].abs().min() > 0
    assert torch.autograd.grad(m.fake.sum(), x)[0].abs().max() > 0


@pytest.mark.parametrize(("settings", "said"), [({"sigma_init": 0.0}, "2.5"), ({"top": 1.5}, "0, 1")])
def test_what_is_refused(settings, said):
    teacher = network()
    with pytest.raises(InputError, match=said):
        Plain(Plain.student_of(teacher), teacher, **settings)
    with pytest.raises(InputError, match="student_of"):
        Plain(teacher, teacher)  # type: ignore[arg-type]
