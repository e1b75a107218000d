"""Parameters that move together: one optimizer and one counter for each set of modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.method import Method, Update

__all__ = ["Group", "group_updates"]


class Group:
    """The parameters of an update, their optimizer and the number of updates they have had.

    Args:
        update: gives optimizer, learning rate and settings.
        parameters: what moves.
        others: every other trainable parameter of the method.
    """

    def __init__(self, update: Update, parameters: list[nn.Parameter], others: list[nn.Parameter]) -> None:
        self.parameters, self.others, self.lr = parameters, others, update.lr
        self.count = 0
        if issubclass(update.optimizer, torch.optim.LBFGS):
            raise InputError("optimizer", "LBFGS", "evaluates its loss several times a step; use a first-order one")
        known = _settings(update.optimizer)  # type: ignore[arg-type]
        for name in update.settings:
            if name not in known:
                raise unknown_name(f"setting of {update.optimizer.__name__}", name, known)
        settings = {"lr": self.rate(), **update.settings}
        # The fused kernels are several times faster on small networks, and can be held by a flag on the device.
        fusable = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
        if "fused" in known and fusable and not {"fused", "foreach", "capturable", "differentiable"} & settings.keys():
            settings["fused"] = True
        self.fused = bool(settings.get("fused"))
        self.optimizer = update.optimizer(parameters, **settings)
        self.clear()

    def rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.lr(self.count)) if callable(self.lr) else float(self.lr)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside the block no other parameter of the method takes gradients; graphs still pass through them."""
        for parameter in self.others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self.others:
                parameter.requires_grad_(True)

    def gradients(self) -> list[Tensor]:
        """The gradients there are; parameters that the loss did not reach have none and stay."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def mean_over_processes(self, values: Tensor, world: int) -> Tensor:
        """Replace gradients by their mean over processes, in one message; returns the means of `values` (K,).

        A parameter without a gradient here but with one elsewhere counts as zero here.
        """
        parameters = self.parameters
        present = torch.tensor([float(p.grad is not None) for p in parameters], device=values.device)
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([*[g.reshape(-1) for g in grads], present.to(grads[0]), values.to(grads[0])])
        torch.distributed.all_reduce(flat)
        *means, present, values = flat.split([*[g.numel() for g in grads], len(parameters), len(values)])
        for parameter, mean, reached in zip(parameters, means, present.tolist()):
            parameter.grad = (mean / world).view_as(parameter).to(parameter) if reached else None
        return values / world

    @staticmethod
    def nonfinite(gradients: list[Tensor], unscale: float) -> Tensor:
        """Multiply gradients by `unscale` in place; returns 1 on the device where any is not finite, else 0."""
        found = torch.zeros((), device=gradients[0].device) if gradients else torch.zeros(())
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for gradient in gradients:
            by_type.setdefault(gradient.dtype, []).append(gradient)
        factor = torch.full((), unscale, device=found.device)
        for same in by_type.values():
            if same[0].device.type in ("cpu", "cuda"):
                torch._amp_foreach_non_finite_check_and_unscale_(same, found, factor)
            else:
                torch._foreach_mul_(same, unscale)
                found = torch.maximum(found, torch.stack([(~g.isfinite()).any() for g in same]).any().to(found))
        return found

    @staticmethod
    def clip(gradients: list[Tensor], update: Update) -> None:
        """Clip by the norm over all parameters, by value, or not at all, as the update says."""
        if not gradients:
            return
        if update.clip is not None:
            norm = torch.stack([n.float() for n in torch._foreach_norm(gradients)]).norm()
            torch._foreach_mul_(gradients, (update.clip / (norm + 1e-6)).clamp(max=1.0))
        if update.clip_value is not None:
            torch._foreach_clamp_min_(gradients, -update.clip_value)
            torch._foreach_clamp_max_(gradients, update.clip_value)

    def step(self, held: Tensor | None = None) -> None:
        """One optimizer step at the present learning rate; where `held` is set on the device, nothing moves."""
        if callable(self.lr):
            rate = self.rate()
            for settings in self.optimizer.param_groups:
                settings["lr"] = rate
        if held is not None:
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.found_inf = held  # type: ignore[attr-defined]
        self.optimizer.step()
        self.count += 1
        self.clear()


@cache
def _settings(optimizer: Callable[..., torch.optim.Optimizer]) -> frozenset[str]:
    return frozenset(inspect.signature(optimizer).parameters) - {"params"}


def group_updates(method: Method) -> tuple[list[tuple[str, Update, Group]], list[Group]]:
    """The updates of a method with unique names and their groups.

    Updates of the same modules with the same optimizer, learning rate and settings share one group.

    Raises:
        InputError: an update moves parameters that the method does not hold, or that it calls frozen.
    """
    if not getattr(method, "updates", None):
        raise InputError("method", type(method).__name__, "has no updates; set self.updates = [Update(...)]")
    trainable = {id(p): p for p in method.parameters() if p.requires_grad}
    frozen = {id(p) for module in method.frozen() for p in module.parameters()}
    found: list[tuple[tuple, Group]] = []
    named: list[tuple[str, Update, Group]] = []
    for update in method.updates:
        parameters = update.parameters()
        if any(id(p) in frozen for p in parameters) or not parameters:
            raise InputError("update", update.name, "moves a module that frozen() names; a module is one or the other")
        if any(id(p) not in trainable for p in parameters):
            raise InputError("update", update.name, "moves a module that is no attribute of the method")
        own = {id(p) for p in parameters}
        key = (own, update.optimizer, update.lr, dict(update.settings))
        group = next((group for other, group in found if other == key), None)
        if group is None:
            group = Group(update, parameters, [p for i, p in trainable.items() if i not in own])
            found.append((key, group))
        taken = [name for name, _, _ in named]
        same = sum(name == update.name or name.startswith(f"{update.name}-") for name in taken)
        named.append((f"{update.name}-{same + 1}" if update.name in taken else update.name, update, group))
    return named, [group for _, group in found]
