"""MSD: its checks on partitions, routing and gradients, and the routed model beside its students."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
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
from scoreline.data import from_arrays
from scoreline.data.images import Batch
from scoreline.data.pair_store import Pairs
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP
from scoreline.evaluate.specs import labels_for
from scoreline.fewstep.diff_instruct import DMD
from scoreline.fewstep.dmd2 import DMD2
from scoreline.fewstep.matching import matching_direction
from scoreline.fewstep.mean_map import MeanMap, mean_map
from scoreline.fewstep.msd import (
    ClassRouter,
    QuadrantRouter,
    Routed,
    check_shares,
    clustered_shares,
    consecutive_shares,
    dm_gradient,
    interleaved_shares,
    of_classes,
    quadrants,
    random_shares,
    within_share_scatter,
)
from scoreline.nn.mlp import MLP
from scoreline.samplers.generator import Sampled
from scoreline.samplers.heun import Heun
from scoreline.samplers.jumps import Jumps
from scoreline.train import fit

ANGLES = torch.arange(8).double() * torch.pi / 4
ELLIPSE = torch.stack([2 * ANGLES.cos(), ANGLES.sin()], 1)


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


@pytest.mark.check(system=30, number=1)
def test_consecutive_classes_go_to_one_student() -> None:
    shares = consecutive_shares(1000, 4)
    assert [len(share) for share in shares] == [250] * 4
    router = ClassRouter(shares)
    assert router(Cond(labels=torch.tensor([0, 249, 250, 999]))).tolist() == [0, 0, 1, 3]
    assert sorted(y for share in shares for y in share) == list(range(1000))
    assert router.table.tolist() == [y // 250 for y in range(1000)]


@pytest.mark.parametrize("students", [1, 3, 4, 10])
def test_every_partition_of_classes_is_one(students: int) -> None:
    points = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    for shares in (
        consecutive_shares(10, students), interleaved_shares(10, students), random_shares(10, students, 1),
        clustered_shares(points, students),
    ):  # fmt: skip
        table = check_shares(shares, 10)
        sizes = np.bincount(table, minlength=students)
        assert sizes.max() - sizes.min() <= 1
        assert all(share == sorted(share) for share in shares)
    assert random_shares(10, 3, 1) == random_shares(10, 3, 1) != random_shares(10, 3, 2)


def test_clusters_keep_together_what_lies_together_and_stay_even() -> None:
    points = torch.tensor([[0.0], [10.0], [0.1], [10.1], [0.2], [0.3]])
    assert clustered_shares(points, 2) == [[0, 2, 4], [1, 3, 5]]  # even: one of the four must go with the pair
    points = torch.tensor([[0.0], [10.0], [0.1], [10.1], [0.2]])
    assert clustered_shares(points, 2) == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ([[0, 1], [3]], "classes 2: are left out"),
        ([[0, 1], [1, 2, 3]], "class 1: stands in shares 0 and 1"),
        ([[0, 1], [2, 3, 4]], "the classes are 0 to 3"),
        ([[0, 1, 2, 3], []], "share 1: is empty"),
        ([[0, 1, 2, -1], [3]], "class -1"),
    ],
    ids=["left", "twice", "unknown", "empty", "negative"],
)
def test_what_is_no_partition_is_refused(shares: list[list[int]], words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_shares(shares, 4)
    assert words.replace(": ", "': ") in str(caught.value) or words in str(caught.value)


def test_more_students_than_classes_are_refused() -> None:
    for make in (consecutive_shares, interleaved_shares, random_shares):
        with pytest.raises(InputError, match="1 to 4"):
            make(4, 5)
        with pytest.raises(InputError, match="1 to 4"):
            make(4, 0)
    with pytest.raises(InputError, match="embeddings"):
        clustered_shares(torch.full((4, 2), torch.nan), 2)


@pytest.mark.check(system=30, number=8)
def test_scatter_within_shares_falls_where_neighbours_stay_together() -> None:
    falling = [within_share_scatter(ELLIPSE, consecutive_shares(8, k)) for k in (1, 2, 4, 8)]
    assert falling[0] == pytest.approx(2.5)
    assert falling[-1] == 0
    assert all(a > b for a, b in pairwise(falling))
    dealt = [within_share_scatter(ELLIPSE, interleaved_shares(8, k)) for k in (1, 2, 4, 8)]
    assert dealt == pytest.approx([2.5, 2.5, 2.5, 0])
    # Two neighbours 45 degrees apart lie |m_a - m_b|^2/4 from their mean each.
    pairs = (ELLIPSE[::2] - ELLIPSE[1::2]).square().sum(1).mean() / 4
    assert falling[2] == pytest.approx(float(pairs))
    points = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    nested = [within_share_scatter(points, consecutive_shares(8, k)) for k in (1, 2, 4, 8)]
    assert all(a >= b for a, b in pairwise(nested))


def test_quadrants_of_texts() -> None:
    rows = torch.randn(401, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 3, 1, 1, 1, 1]) + 2
    for nested in (False, True):
        router = quadrants(rows, nested=nested)
        number = router(Cond(vector=rows))
        sizes = torch.bincount(number, minlength=4)
        # Halves of the first component to a prompt; quarters where the second medians are those of the halves.
        assert abs(int(sizes[2:].sum()) - 200) <= 1
        assert (sizes - 100).abs().max() <= (1 if nested else 25)
        # The axes are the two widest directions here, their largest entries positive.
        expected = 2 * (rows[:, 0] > rows[:, 0].median()).long() + (rows[:, 1] > rows[:, 1].median()).long()
        assert (number == expected).float().mean() > (0.85 if nested else 0.9)
        assert (router.axes.diagonal() > 0.9).all()
    tokens = rows[:, None].expand(-1, 3, -1).clone()
    mask = torch.tensor([True, True, False]).expand(401, 3)
    tokens[:, 0] += 1
    tokens[:, 1] -= 1
    tokens[:, 2] = 99
    assert torch.equal(router(Cond(tokens=tokens, mask=mask)), number)
    assert torch.equal(router(Cond(tokens=rows[:, None])), number)
    for cond, word in ((None, "vector or tokens"), (Cond(vector=rows[:, :3]), "embeddings of 6")):
        with pytest.raises(InputError, match=word):
            router(cond)
    for bad in (rows[:3], torch.arange(12.0)[:, None] * torch.ones(2), torch.full((6, 2), torch.nan)):
        with pytest.raises(InputError, match="embeddings"):
            quadrants(bad)
    with pytest.raises(InputError, match="two directions"):
        QuadrantRouter([0.0, 0.0], [[1.0, 0.0]], [0.0, 0.0, 0.0])


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


def test_images_of_a_share_keep_labels_and_numbers() -> None:
    pixels = np.zeros((6, 8, 8), dtype=np.uint8)
    images = from_arrays(pixels, labels=[0, 1, 2, 0, 1, 2], num_classes=4)
    kept = of_classes(images, [0, 2])
    assert kept.index.tolist() == [0, 2, 3, 5]
    assert kept.labels.tolist() == [0, 2, 0, 2]
    assert kept.num_classes == 4
    with pytest.raises(InputError, match="no image of them"):
        of_classes(images, [3])
    with pytest.raises(InputError, match="no class for each"):
        of_classes(images.relabel(None), [0])


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
