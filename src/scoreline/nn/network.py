"""What every network of ours has in common: a call, the same call under a plan, and the condition "nothing known"."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.nn.embeddings import check_inputs, null_cond
from scoreline.nn.plan import Plan, Tracer, check_plan

__all__ = ["Network"]


class Network(nn.Module):
    """A network y = f(x, t, cond) whose inside can be tapped, dropped and scaled by a :class:`~scoreline.nn.plan.Plan`.

    Attributes:
        in_shape: (C, H, W) or (D,) of one input.
        out_channels: channels of the output.
        num_classes: number of classes, None for an unconditional network.
        second_time: whether it takes two times.
        accepts: the conditions it takes.
        num_layers: number of layers that a plan can drop.
        num_attention_maps: number of attention maps that can be tapped.
        joints: its skip joints, deepest first.
        taps: names of the features that can be tapped.
    """

    in_shape: tuple[int, ...]
    out_channels: int
    num_classes: int | None
    second_time: bool
    accepts: frozenset[str]
    num_layers: int
    num_attention_maps: int
    joints: tuple[object, ...] = ()
    taps: tuple[str, ...]

    def null(self, cond: Cond | None) -> Cond:
        """`cond` with labels, tokens and vector replaced by "nothing known"."""
        return null_cond(cond, self.num_classes)

    def check(self, plan: Plan) -> None:
        """Refuse a plan that names layers, joints or taps that this network does not have.

        Raises:
            InputError: with the valid range.
        """
        check_plan(plan, self.num_layers, len(self.joints), self.taps)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The output, (B, out_channels, H, W), or (B, out_channels) for points.

        Args:
            x: (B, *in_shape), scaled as the caller's preconditioning wants.
            t: (B,) or (1,) time input; with `second_time` (B, 2) or (1, 2).
            cond: the conditions that the network `accepts`.

        Raises:
            InputError: a shape does not fit, a condition is missing or not taken.
        """
        out = self._run(x, t, self._checked(x, t, cond), None)
        assert out is not None
        return out

    def trace(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, plan: Plan | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The output under a plan (None when the plan stops before it) and the tapped features by name.

        Args:
            x: as for :meth:`forward`.
            t: as for :meth:`forward`.
            cond: as for :meth:`forward`.
            plan: what to drop, scale and tap; None or an empty plan gives :meth:`forward` to the last bit.

        Raises:
            InputError: as for :meth:`forward`, or the plan does not fit this network.
        """
        if plan is None:
            return self(x, t, cond), {}
        self.check(plan)
        tracer = Tracer(plan)
        return self._run(x, t, self._checked(x, t, cond), tracer), tracer.taps

    def _checked(self, x: Tensor, t: Tensor, cond: Cond | None) -> Cond:
        name = f"this {type(self).__name__}"
        return check_inputs(name, x, t, cond, self.in_shape, self.accepts, 2 if self.second_time else 1)

    @abstractmethod
    def _run(self, x: Tensor, t: Tensor, cond: Cond, tracer: Tracer | None) -> Tensor | None:
        """The output for checked inputs; None when the tracer is done before it."""
