"""MSD: its checks on partitions, routing and gradients, and the routed model beside its students."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.artefact import load_artefact, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.cost import evaluations
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.data.pair_store import Pairs
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP
from scoreline.evaluate.specs import labels_for
from scoreline.fewstep.class_shares import ClassRouter, of_classes
from scoreline.fewstep.diff_instruct import DMD
from scoreline.fewstep.dmd2 import DMD2
from scoreline.fewstep.matching import matching_direction
from scoreline.fewstep.mean_map import MeanMap, mean_map
from scoreline.fewstep.msd import Routed, dm_gradient
from scoreline.fewstep.text_shares import quadrants
from scoreline.nn.mlp import MLP
from scoreline.samplers.generator import Sampled
from scoreline.samplers.heun import Heun
from scoreline.samplers.jumps import Jumps
from scoreline.train import fit


def network(seed: int, shape: tuple[int, ...] = (3,), classes: int = 4) -> MLP:
    torch.manual_seed(seed)
    net = MLP(in_shape=shape, width=16, depth=1, num_classes=classes)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def student(seed: int) -> MeanMap:
    return MeanMap(network(seed), EDM())


def teacher() -> Preconditioned:
    return Preconditioned(network(9), EDM())


def routed(shares: list[list[int]] | None = None) -> Routed:
    shares = shares or [[0, 2], [1], [3]]
    return Routed([student(seed) for seed in range(len(shares))], ClassRouter(shares))


def batch(label: Tensor, image: Tensor | None = None) -> Batch:
    index = torch.arange(len(label))
    image = torch.zeros(len(label), 3) if image is None else image
    return Batch(image, label, index, draws=Noise(3).at(index, (3,)))


@pytest.mark.check(system=30, number=5)
def test_each_student_makes_its_share_and_a_request_touches_one() -> None:
    model = routed([[0], [1], [2], [3]])
    nets: dict[str, Any] = {str(k): one.net for k, one in enumerate(model.students)}
    for labels, expected in ((None, [5, 5, 5, 5]), (torch.tensor([2]), [0, 0, 1, 0])):
        cond = labels_for(range(20), 4) if labels is None else Cond(labels=labels)
        with evaluations(nets, calls=True) as counted:
            Sampled(model, Jumps(steps=1)).generate(range(len(cond.labels)), Noise(0), cond)
        made = [sum(len(call.args[0]) for call in counted.calls if call.name == name) for name in nets]
        assert made == expected


@pytest.mark.parametrize("steps", [1, 3])
def test_an_image_is_that_of_its_student(steps: int) -> None:
    model = routed()
    cond = labels_for(range(12), 4)
    sample = Sampled(model, Jumps(steps=steps))
    whole = sample.generate(range(12), Noise(1), cond)
    assert sample.nfe == steps
    for k, share in enumerate([[0, 2], [1], [3]]):
        rows = torch.tensor([i for i in range(12) if i % 4 in share])
        alone = Sampled(model.students[k], Jumps(steps=steps)).generate(rows, Noise(1), cond[rows])
        assert torch.allclose(whole[rows], alone, atol=1e-6)


def test_levels_of_each_image_are_sent_with_it() -> None:
    model, x = routed(), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([0.5, 1.0, 2.0, 3.0]).double(), Cond(labels=torch.tensor([0, 1, 2, 3]))
    whole = model.jump(x, t, 0.0, cond)
    for i in range(4):
        assert torch.allclose(model.jump(x[i : i + 1], float(t[i]), 0.0, cond[i : i + 1])[0], whole[i], atol=1e-6)


def test_students_that_are_denoisers_are_sampled_by_solvers(tmp_path: Path) -> None:
    means = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    exact = Mixture(EDM(), means, 0.1, labels=torch.arange(4))
    parts = [Preconditioned(network(k, (2,)), EDM(), sigma_data=0.5 + k) for k in range(2)]
    model = Routed(parts, ClassRouter([[0, 1], [2, 3]]))
    x, cond = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), labels_for(range(6), 4)
    for t in (0.7, torch.linspace(0.1, 2, 6).double()):
        post = model(x, t, cond)
        for i in range(6):
            alone = parts[i % 4 // 2](x[i : i + 1], t if isinstance(t, float) else t[i : i + 1], cond[i : i + 1])
            for name in ("mean", "eps", "score"):
                assert torch.allclose(getattr(post, name)[i], getattr(alone, name)[0], atol=1e-5)
    alike = Routed([exact, exact], ClassRouter([[0, 1], [2, 3]]))
    draws = Noise(0).at(range(6), (2,))
    ends = [Heun(steps=4)(m.given(cond), draws).x for m in (alike, exact)]
    assert torch.allclose(*ends, atol=1e-5)
    with pytest.raises(InputError, match="does not jump"):
        alike.jump(x, 1.0, 0.0, cond)
    assert model.scored
    assert not routed().scored
    with pytest.raises(InputError, match="not E"):
        routed()(torch.zeros(2, 3), 1.0, labels_for(range(2), 4))


def test_it_is_saved_with_all_its_students(tmp_path: Path) -> None:
    model, cond = routed(), labels_for(range(8), 4)
    model.students[1].begin(20.0)
    with pytest.raises(InputError, match=r"student 1.*same settings"):
        model.levels(1)
    for one in model.students:
        one.begin(20.0)
    save_artefact(tmp_path / "m.safetensors", model)
    again = load_artefact(tmp_path / "m.safetensors", kind="denoiser")[0]
    assert again.levels(1) == [20.0]
    images = [Sampled(m, Jumps(steps=1)).generate(range(8), Noise(0), cond) for m in (model, again)]
    assert torch.equal(*images)
    text = Routed([student(k) for k in range(4)], quadrants(torch.randn(20, 5)))
    save_artefact(tmp_path / "t.safetensors", text)
    assert torch.equal(load_artefact(tmp_path / "t.safetensors")[0].router.axes, text.router.axes)


@pytest.mark.parametrize(
    ("labels", "word"), [(None, "give labels"), ([4], "label 4: has no student"), ([0, -1], "label -1")]
)
def test_what_has_no_student_is_refused(labels: list[int] | None, word: str) -> None:
    cond = None if labels is None else Cond(labels=torch.tensor(labels))
    with pytest.raises(InputError, match=word):
        routed().jump(torch.zeros(2, 3), 1.0, 0.0, cond)


def test_students_that_do_not_fit_are_refused() -> None:
    shares = [[0, 1], [2, 3]]
    other = [
        (student(1), student(2), student(3)),
        (student(1), MeanMap(network(0, (2,)), EDM())),
        (student(1), MeanMap(network(0, classes=5), EDM())),
        (student(1), MeanMap(network(0), EDM(t_max=20.0))),
        (student(1), teacher()),
        (MeanMap(network(0, classes=5), EDM()), MeanMap(network(0, classes=5), EDM())),
    ]
    words = ["among 2", "shape", "num_classes", "form or schedule", "form or schedule", "partition is one of 4"]
    for students, word in zip(other, words, strict=True):
        with pytest.raises(InputError, match=word):
            Routed(students, ClassRouter(shares))
    with pytest.raises(InputError, match="own share"):
        routed().null(Cond(labels=torch.zeros(1).long()))


@pytest.mark.check(system=30, number=4)
def test_the_gradient_by_scores_is_the_direction_times_alpha() -> None:
    schedule, x = VP(), torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    real, fake, noise = x * 0.3 + 0.1, x * 0.8 - 0.2, torch.randn(6, 3).double()
    t = torch.linspace(0.02, 0.98, 6).double()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = schedule.marginal(x, t, noise)
    gradient = dm_gradient(x, x_t, real, fake, alpha, sigma)
    by_hand = (fake - real) / (x - real).abs().mean(1, keepdim=True)
    assert torch.allclose(gradient / alpha[:, None], by_hand, rtol=1e-9)
    assert torch.allclose(gradient / alpha[:, None], matching_direction(x, real, fake), rtol=1e-9)


@pytest.mark.check(system=30, number=6)
def test_a_filter_of_the_pairs_changes_the_regression_and_no_label_that_is_drawn() -> None:
    method = DMD(mean_map(teacher()), teacher(), Preconditioned(network(5), EDM()), classes=[1, 3], distance="squared")
    noise, label = torch.randn(12, 3), torch.arange(12) % 4
    pairs = Pairs(noise, 0.5 * noise, label, num_classes=4)
    kept = of_classes(pairs, [1, 3])
    assert kept.index.tolist() == [i for i in range(12) if i % 4 in (1, 3)]
    assert torch.equal(kept.noise, noise[kept.index])
    assert torch.equal(kept.image, 0.5 * kept.noise)
    assert set(kept.label.tolist()) == {1, 3}
    turns, losses = [], []
    for source in (pairs, kept):
        found = replace(source.batch(np.arange(6)), draws=Noise(3).at(range(6), (3,)))
        turns.append(method.prepare(found, 0))
        losses.append(method.student_loss(found, turns[-1], 0))
    a, b = turns
    assert set(a.labels.tolist()) <= {1, 3}
    assert torch.equal(a.labels, b.labels)
    assert torch.equal(a.x, b.x)
    for name in ("matching", "gap"):
        assert losses[0][name].item() == losses[1][name].item() > 0
    assert losses[0]["regression"] != losses[1]["regression"]
    many = method.labels(batch(torch.zeros(4000).long()))
    assert torch.bincount(many).tolist() == pytest.approx([0, 2000, 0, 2000], abs=150)


@pytest.mark.check(system=30, number=7)
def test_a_step_on_one_student_leaves_the_others_alone() -> None:
    model = routed([[0, 1], [2, 3]])
    owners = [{p.data_ptr() for p in one.parameters()} for one in model.students]
    assert not owners[0] & owners[1]
    before = [[p.clone() for p in one.parameters()] for one in model.students]
    data = (torch.randn(16, 3), torch.arange(16) % 2)
    method = DMD2(model.students[0], teacher(), classes=[0, 1], gan_weight=0.0, lr=1e-2)
    fit(method, data, steps=1, batch_size=8, seed=0)
    changed = [any(not torch.equal(a, b) for a, b in zip(*two)) for two in zip(before, map(params, model.students))]
    assert changed == [True, False]


def params(module: torch.nn.Module) -> list[Tensor]:
    return list(module.parameters())
