"""Tiny methods, one for each thing that a training must get right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.method import Method, Update
from scoreline.data.images import Batch

TRUTH = torch.tensor([[1.0], [-2.0], [0.5]])


def points(count: int = 48, seed: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return x, x @ TRUTH


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class Regression(Method):
    """Least squares; `poison` maps a step to what its loss is multiplied with."""

    def __init__(self, poison: dict[int, float] | None = None, **update: Any) -> None:
        super().__init__()
        self.net = seeded(lambda: nn.Linear(3, 1))
        self.poison = poison or {}
        self.steps: list[int] = []
        self.updates = [Update(self.net, self.error, **({"lr": 1e-2} | update))]

    def error(self, batch: Batch, shared: None, step: int) -> Tensor:
        self.steps.append(step)
        return (self.net(batch.image) - batch.label).square().mean() * self.poison.get(step, 1.0)

    def averaged(self) -> nn.Module:
        return self.net

    def result(self) -> nn.Module:
        return self.net


class Dropped(Regression):
    """Dropout, batch normalisation and a noisy target: all that a resumed run could get wrong."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        layers = lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 1))  # noqa: E731
        self.net = seeded(layers)
        self.updates = [Update(self.net, self.error, lr=1e-2)]

    def error(self, batch: Batch, shared: None, step: int) -> Tensor:
        noisy = batch.image + 0.1 * batch.draws.normal()
        return (self.net(noisy) - batch.label).square().mean()


class Pair(Method):
    """A generator of points and a critic; the generator moves every second step."""

    def __init__(self, clip: float | None = None) -> None:
        super().__init__()
        self.generator = seeded(lambda: nn.Linear(3, 3), 1)
        self.critic = seeded(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), 2)
        self.updates = [
            Update(self.critic, self.critic_loss, lr=2e-3, name="critic", settings={"betas": (0.5, 0.9)}, clip=clip),
            Update(self.generator, self.generator_loss, every=2, lr=halving, name="generator"),
        ]
        self.flags: list[tuple[str, bool, bool]] = []

    def prepare(self, batch: Batch, step: int) -> Tensor:
        return self.generator(batch.draws.normal())

    def critic_loss(self, batch: Batch, fake: Tensor, step: int) -> dict[str, Tensor]:
        self._note("critic")
        real, made = self.critic(batch.image), self.critic(fake.detach())
        loss = nn.functional.softplus(-real).mean() + nn.functional.softplus(made).mean()
        return {"loss": loss, "real": real.mean()}

    def generator_loss(self, batch: Batch, fake: Tensor, step: int) -> Tensor:
        self._note("generator")
        return nn.functional.softplus(-self.critic(fake)).mean()

    def _note(self, name: str) -> None:
        self.flags.append((name, self.critic[0].weight.requires_grad, self.generator.weight.requires_grad))

    def averaged(self) -> nn.Module:
        return self.generator


def halving(n: int) -> float:
    return 1e-2 * 0.9**n


class Prototypes(Regression):
    """Keeps a moving mean of its outputs by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prototype", torch.zeros(1))
        self.seen = torch.zeros(1)

    def error(self, batch: Batch, shared: None, step: int) -> Tensor:
        out = self.net(batch.image)
        self.seen = out.detach().mean(0)
        return (out - batch.label).square().mean() + 0.1 * (out.mean() - self.prototype).square().sum()

    def after_update(self, step: int) -> None:
        self.prototype.lerp_(self.seen, 0.1)


class Student(Method):
    """Follows a frozen teacher."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self.net = seeded(lambda: nn.Linear(3, 1), 5)
        self.updates = [Update(self.net, self.follow, lr=1e-2)]

    def frozen(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    def follow(self, batch: Batch, shared: None, step: int) -> Tensor:
        return (self.net(batch.image) - self.teacher(batch.image)).square().mean()

    def averaged(self) -> nn.Module:
        return self.net

    def result(self) -> nn.Module:
        return self.net


def weights(method: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in method.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
