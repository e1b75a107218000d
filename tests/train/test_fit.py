"""The loop, seen through fit()."""

from __future__ import annotations

import math
import time

import pytest
import torch
from small_methods import Dropped, Pair, Prototypes, Regression, Student, halving, points, same, seeded, weights
from torch import nn

from scoreline.core.errors import InputError, NonFiniteError
from scoreline.core.method import Update
from scoreline.core.noise import Noise, derive
from scoreline.data.images import Batch
from scoreline.train import fit
from scoreline.train.loop import Loop
from scoreline.train.lr import Constant
from scoreline.train.order import Order

NAN = float("nan")


def test_least_squares_finds_the_truth() -> None:
    trained = fit(Regression(lr=0.1), points(), steps=300, batch_size=16)
    assert trained.result().weight.tolist()[0] == pytest.approx([1.0, -2.0, 0.5], abs=1e-3)
    assert trained.counts == {"loss": 300}
    assert trained.step == 300
    assert not trained.method.training


def test_alternating_updates_are_those_of_a_loop_written_by_hand() -> None:
    x, y = points()
    trained = fit(Pair(clip=0.05), (x, y), steps=9, batch_size=16, seed=4)
    by_hand = Pair()
    critic = torch.optim.Adam(by_hand.critic.parameters(), lr=2e-3, betas=(0.5, 0.9))
    generator = torch.optim.Adam(by_hand.generator.parameters(), lr=1e-2)
    order = Order(len(x), 16, 4)
    made = 0
    for step in range(9):
        rows = order.positions(step)
        # 48 images make three batches of 16 an epoch, so that no image comes twice in one.
        fake = by_hand.generator(Noise(derive(4, "train", step)).at(rows, (3,)).normal())
        real = by_hand.critic(x[torch.from_numpy(rows)])
        loss = nn.functional.softplus(-real).mean() + nn.functional.softplus(by_hand.critic(fake.detach())).mean()
        critic.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(by_hand.critic.parameters(), 0.05)
        assert norm > 0.05
        critic.step()
        if step % 2 == 0:
            generator.zero_grad()
            nn.functional.softplus(-by_hand.critic(fake)).mean().backward()
            generator.param_groups[0]["lr"] = halving(made)
            generator.step()
            made += 1
    for name, value in weights(by_hand).items():
        torch.testing.assert_close(trained.method.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    assert trained.counts == {"critic": 9, "generator": 5}


def test_only_an_updates_own_parameters_take_gradients_while_its_loss_is_made() -> None:
    method = Pair()
    fit(method, points(), steps=1, batch_size=8)
    assert method.flags == [("critic", True, False), ("generator", False, True)]
    assert all(p.requires_grad and p.grad is None for p in method.parameters())


class Judged(Pair):
    """The critic's answer is made before the updates, with gradients on everywhere."""

    def prepare(self, batch: Batch, step: int) -> torch.Tensor:
        return self.critic(super().prepare(batch, step))

    def critic_loss(self, batch: Batch, judged: torch.Tensor, step: int) -> torch.Tensor:
        return self.critic(batch.image).mean()

    def generator_loss(self, batch: Batch, judged: torch.Tensor, step: int) -> torch.Tensor:
        return judged.mean()


def test_a_shared_graph_leaves_no_gradients_in_other_networks() -> None:
    method = Judged()
    method.updates = method.updates[1:]
    start = method.generator.weight.detach().clone()
    fit(method, points(), steps=1, batch_size=8)
    assert all(p.grad is None for p in method.critic.parameters())
    assert not torch.equal(method.generator.weight, start)


def test_losses_carry_the_names_of_updates_and_entries() -> None:
    seen = []
    trained = fit(
        Pair(), points(), steps=2, batch_size=8, on_step=lambda step, losses: seen.append((step, set(losses)))
    )  # type: ignore[func-returns-value]
    assert seen == [(0, {"critic", "critic/real", "generator"}), (1, {"critic", "critic/real"})]
    assert trained.losses.keys() == {"critic", "critic/real"}


def descent() -> Regression:
    """Plain gradient descent, which unlike Adam sees the scale of a gradient."""
    return Regression(optimizer=torch.optim.SGD, lr=0.05)


@pytest.mark.parametrize("make", [descent, Pair])
def test_accumulated_parts_give_the_big_batch(make: type) -> None:
    whole = fit(make(), points(), steps=12, batch_size=24, seed=1)
    parts = fit(make(), points(), steps=12, batch_size=24, seed=1, accumulate=4)
    for name, value in weights(whole.method).items():
        torch.testing.assert_close(parts.method.state_dict()[name], value, rtol=0, atol=1e-6)
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)


def test_clip_value_bounds_every_entry() -> None:
    method = Regression(optimizer=torch.optim.SGD, lr=1.0, clip_value=0.01)
    before = method.net.weight.detach().clone()
    fit(method, points(), steps=1, batch_size=48)
    moved = method.net.weight.detach() - before
    assert moved.abs().tolist()[0] == pytest.approx([0.01] * 3, abs=1e-7)


def test_updates_of_one_module_set_share_optimizer_and_counter() -> None:
    method = Regression()
    rate = Constant(1e-2)
    method.updates = [Update(method.net, method.error, lr=rate, name="a"), Update(method.net, method.error, lr=rate)]
    assert fit(method, points(), steps=3, batch_size=4).counts == {"a": 6, "loss": 6}
    method.updates = [Update(method.net, method.error, lr=rate), Update(method.net, method.error, lr=0.5)]
    assert fit(method, points(), steps=3, batch_size=4).counts == {"loss": 3, "loss-2": 3}


def test_after_update_keeps_what_is_no_gradient() -> None:
    method = Prototypes()
    fit(method, points(), steps=1, batch_size=48)
    assert method.prototype.item() == pytest.approx(0.1 * method.seen.item())


def test_frozen_modules_stay_as_they_are_and_in_evaluation_mode() -> None:
    teacher = seeded(lambda: nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.9)))
    before, modes = weights(teacher), []
    method = Student(teacher)
    fit(
        method, points(), steps=5, batch_size=4, on_step=lambda *_: modes.append((teacher[1].training, method.training))
    )  # type: ignore[func-returns-value]
    assert modes == [(False, True)] * 5
    assert all(torch.equal(value, before[name]) for name, value in weights(teacher).items())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_the_average_is_of_the_steps_that_moved_its_module() -> None:
    path: list[float] = []
    method = Pair()

    def note(step: int, losses: object) -> None:
        if step % 2 == 0:
            path.append(method.generator.weight[0, 0].item())

    start = method.generator.weight[0, 0].item()
    trained = fit(method, points(), steps=7, batch_size=8, ema={"a": 0.5}, on_step=note)
    expected = start
    for value in path:
        expected = 0.5 * expected + 0.5 * value
    assert trained.averages is not None
    assert (trained.averages.n, trained.averages.images) == (4, 7 * 8)
    live = method.generator.weight[0, 0].item()
    with trained.averages.applied("a"):
        assert method.generator.weight[0, 0].item() == pytest.approx(expected, abs=1e-6)
    assert method.generator.weight[0, 0].item() == live


def test_result_holds_the_first_average_the_named_one_or_none() -> None:
    trained = fit(Regression(lr=0.1), points(), steps=20, batch_size=8, ema=[0.9, 0.5])
    live = trained.method.net.weight.detach().clone()
    slow = trained.result().weight.detach().clone()
    fast = trained.result("0.5").weight.detach().clone()
    assert torch.equal(trained.result(None).weight, live)
    assert (slow - live).abs().max() > (fast - live).abs().max() > 0
    with pytest.raises(InputError, match="kept none"):
        fit(Regression(), points(), steps=0, batch_size=8).result("0.5")


def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = fit(Dropped(), points(), steps=6, batch_size=12, seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert same(first.method, fit(Dropped(), points(), steps=6, batch_size=12, seed=2).method)
    assert not same(first.method, fit(Dropped(), points(), steps=6, batch_size=12, seed=3).method)


def test_dropout_draws_anew_in_each_step() -> None:
    method, masks = Regression(), []
    drop = nn.Dropout(0.5)
    method.error = lambda batch, shared, step: masks.append(drop(torch.ones(32))) or method.net(batch.image).mean()  # type: ignore[assignment, func-returns-value]
    method.updates = [Update(method.net, method.error)]
    fit(method, points(), steps=4, batch_size=4)
    assert len({tuple(mask.tolist()) for mask in masks}) == 4


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_a_non_finite_loss_stops_at_its_step(bad: float) -> None:
    method = Regression(poison={5: bad})
    with pytest.raises(NonFiniteError, match="loss at step 5 in update 'loss'"):
        fit(method, points(), steps=9, batch_size=8)
    assert method.steps[-1] == 5
    assert same(method, fit(Regression(), points(), steps=5, batch_size=8).method)


class Rooted(Regression):
    """Its loss is finite in step 3, its gradient is not: the derivative of the root at 0."""

    def error(self, batch: object, shared: None, step: int) -> torch.Tensor:
        loss = super().error(batch, shared, step)  # type: ignore[arg-type]
        return loss + (0 * self.net.weight.sum()).abs().sqrt() if step == 3 else loss


def test_a_non_finite_gradient_stops_at_its_step() -> None:
    method = Rooted()
    with pytest.raises(NonFiniteError, match="gradient at step 3 in update 'loss'"):
        fit(method, points(), steps=9, batch_size=8)
    assert same(method, fit(Regression(), points(), steps=3, batch_size=8).method)


def test_skips_are_counted_and_printed_and_change_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    method = Dropped(dropout=0.0)
    plain = method.error
    method.error = lambda batch, shared, step: plain(batch, shared, step) * (NAN if step in (2, 3) else 1)  # type: ignore[method-assign]
    method.updates = [Update(method.net, method.error, lr=1e-2)]
    states: list[dict] = []
    trained = fit(
        method,
        points(),
        steps=6,
        batch_size=8,
        skip_nonfinite=2,
        ema=0.9,
        on_step=lambda *_: states.append(weights(method)),  # type: ignore[func-returns-value]
    )
    assert trained.skipped == 2
    assert trained.counts == {"loss": 4}
    assert trained.averages is not None
    assert trained.averages.n == 4
    assert "skipped 1 of at most 2: non-finite loss at step 2 in update 'loss'" in capsys.readouterr().err
    # The running statistics, which the forward pass of a skipped step has moved, too.
    for skipped in (2, 3):
        moving = {name: value for name, value in states[skipped].items() if "num_batches" not in name}
        assert all(torch.equal(value, states[1][name]) for name, value in moving.items())
    with pytest.raises(NonFiniteError, match="step 3"):
        fit(method, points(), steps=6, batch_size=8, skip_nonfinite=1)


def test_a_non_finite_gradient_is_held_until_it_is_looked_at() -> None:
    method = Rooted()
    loop = Loop(method, points(), batch_size=8, check_every=6)
    for step in range(5):
        loop.turn(step)
    with pytest.raises(NonFiniteError, match="step 3"):
        loop.check()
    assert same(method, fit(Regression(), points(), steps=3, batch_size=8).method)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_looked_at_late_a_non_finite_step_still_changes_nothing(optimizer: type) -> None:
    method = Regression(poison={3: NAN}, optimizer=optimizer)
    loop = Loop(method, points(), batch_size=8, check_every=5)
    for step in range(4):
        loop.turn(step)
    with pytest.raises(NonFiniteError, match="step 3 in update 'loss'"):
        loop.turn(4)
    assert method.steps == [0, 1, 2, 3, 4]
    assert same(method, fit(Regression(optimizer=optimizer), points(), steps=3, batch_size=8).method)


def test_half_precision_scales_its_loss_until_gradients_fit() -> None:
    method = Regression(optimizer=torch.optim.SGD, lr=0.05)
    loop = Loop(method, points(), batch_size=16, autocast=torch.float16)
    loop.scale = 2.0**24
    for step in range(60):
        loop.turn(step)
    assert loop.scale < 2.0**24
    assert 40 < loop.groups[0].count < 60
    assert method.net.weight.tolist()[0] == pytest.approx([1.0, -2.0, 0.5], abs=0.05)
    with pytest.raises(InputError, match=r"precision 'fp16'.*use bf16 or float32"):
        fit(Regression(), points(), steps=1, batch_size=4, precision="fp16")


def test_bfloat16_trains_float32_weights() -> None:
    method, types = Regression(lr=0.1), []
    method.net.register_forward_hook(lambda module, given, out: types.append(out.dtype))
    fit(method, points(), steps=100, batch_size=16, precision="bf16")
    assert set(types) == {torch.bfloat16}
    assert method.net.weight.dtype == torch.float32
    assert method.net.weight.tolist()[0] == pytest.approx([1.0, -2.0, 0.5], abs=0.1)


def test_it_starts_in_under_a_millisecond() -> None:
    method, data = Regression(), points()
    times = []
    for _ in range(30):
        began = time.perf_counter()
        fit(method, data, steps=0, batch_size=8, ema=0.9)
        times.append(time.perf_counter() - began)
    assert min(times) < 1e-3


def test_on_step_may_end_the_training() -> None:
    assert fit(Regression(), points(), steps=50, batch_size=4, on_step=lambda step, losses: step == 3).step == 4


class Lost(Regression):
    def error(self, batch: object, shared: None, step: int) -> torch.Tensor:
        return torch.zeros(())


class Wide(Regression):
    def error(self, batch: object, shared: None, step: int) -> torch.Tensor:
        return self.net(batch.image)  # type: ignore[attr-defined]


def outside() -> Regression:
    method = Regression()
    method.updates = [Update(nn.Linear(1, 1), method.error)]
    return method


def own_teacher() -> Student:
    method = Student(nn.Linear(3, 1))
    method.updates = [Update(method.teacher, method.follow)]
    return method


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Lost, "does not depend on its parameters"),
        (Wide, "must be one number"),
        (outside, "no attribute of the method"),
        (own_teacher, "frozen"),
        (lambda: Regression(settings={"beta": (0.1, 0.2)}), "did you mean 'betas'"),
        (lambda: Regression(optimizer=torch.optim.LBFGS), "LBFGS"),
    ],
)
def test_methods_that_cannot_be_trained_are_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(make(), points(), steps=1, batch_size=8)  # type: ignore[operator]


@pytest.mark.parametrize(
    "wrong",
    [{"steps": -1}, {"batch_size": 0}, {"accumulate": 0}, {"accumulate": 3}, {"ema": 2.0}, {"precision": "fp8"}],
)
def test_wrong_arguments_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        fit(Regression(), points(), **({"steps": 1, "batch_size": 8} | wrong))
