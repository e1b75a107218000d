"""Plans: what to leave out, to scale and to tap in a network, named from outside.

A network numbers its layers (residual and attention parts apart) in forward order, its skip joints from the deepest to
the top, and its attention maps in forward order. A :class:`Plan` names operations on them; ``net.trace(x, t, cond,
plan)`` carries them out and ``net.check(plan)`` refuses a plan that does not fit. Nothing in a network is changed by a
plan, so there is nothing to restore afterwards.

Skipped layers follow AutoDiffusion (Li et al. 2023, arXiv 2309.10438), scaled joints Skip-Tuning (Ma et al. 2024,
arXiv 2402.15170).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from scoreline.core.errors import InputError, unknown_name

__all__ = ["Plan", "Tracer", "check_plan", "linear"]


@dataclass(frozen=True)
class Plan:
    """Operations on the numbered parts of a network.

    Args:
        drop: numbers of the layers that are left out. Of a residual block the shortcut (with its resampling) stays,
            an attention part becomes the identity.
        skip_scale: one factor a skip joint, deepest first, on the encoder feature d_i of concat(u_i, d_i).
        hidden_scale: one factor a skip joint, deepest first, on the decoder feature u_i.
        taps: names of the features to hand back (``net.taps`` lists the valid ones).
        stop: end the pass after the last tap; the output is then None.

    >>> Plan(drop=frozenset({3}), taps=("bottleneck",)) == Plan.from_dict(
    ...     Plan(drop=frozenset({3}), taps=("bottleneck",)).to_dict())
    True
    """

    drop: frozenset[int] = frozenset()
    skip_scale: tuple[float, ...] | None = None
    hidden_scale: tuple[float, ...] | None = None
    taps: tuple[str, ...] = ()
    stop: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.taps, str):
            raise InputError("taps", self.taps, "give a tuple of names")
        # Lists come from JSON and sets from callers; equality and hashing want one form.
        object.__setattr__(self, "drop", frozenset(int(i) for i in self.drop))
        object.__setattr__(self, "taps", tuple(self.taps))
        for name in ("skip_scale", "hidden_scale"):
            factors = getattr(self, name)
            if factors is not None:
                factors = tuple(float(f) for f in factors)
                if not all(map(math.isfinite, factors)):
                    raise InputError(name, factors, "factors must be finite")
                object.__setattr__(self, name, factors)
        if self.stop and not self.taps:
            raise InputError("stop", True, "name at least one tap to stop after")

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values; what is not set is left out."""
        full: dict[str, Any] = {
            "drop": sorted(self.drop) or None,
            "skip_scale": None if self.skip_scale is None else list(self.skip_scale),
            "hidden_scale": None if self.hidden_scale is None else list(self.hidden_scale),
            "taps": list(self.taps) or None,
            "stop": self.stop or None,
        }
        return {key: value for key, value in full.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that :meth:`to_dict` wrote.

        Raises:
            InputError: a key is unknown or a value does not fit.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise unknown_name("plan entry", key, known)
        return cls(**values)


class Tracer:
    """What one pass under a plan has tapped so far, and whether it is over."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.taps: dict[str, Tensor] = {}
        self.done = False
        self._wanted = frozenset(plan.taps)

    def wants(self, name: str) -> bool:
        """Is this feature tapped?"""
        return name in self._wanted

    def keep(self, name: str, value: Tensor) -> bool:
        """Store the feature if it is tapped; True when nothing after it is needed."""
        if name in self._wanted:
            self.taps[name] = value
            self.done = self.plan.stop and len(self.taps) == len(self._wanted)
        return self.done

    def join(self, joint: int, hidden: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides of a skip joint after the plan's factors; tapped as they will be concatenated."""
        if self.plan.hidden_scale is not None and (factor := self.plan.hidden_scale[joint]) != 1.0:
            hidden = hidden * factor
        if self.plan.skip_scale is not None and (factor := self.plan.skip_scale[joint]) != 1.0:
            skip = skip * factor
        self.keep(f"joint.{joint}.hidden", hidden)
        self.keep(f"joint.{joint}.skip", skip)
        return hidden, skip


def check_plan(plan: Plan, layers: int, joints: int, taps: Collection[str]) -> None:
    """Refuse a plan that names what a network does not have.

    Args:
        plan: the plan.
        layers: number of layers that can be dropped.
        joints: number of skip joints.
        taps: names that can be tapped.

    Raises:
        InputError: a layer, a number of factors or a tap does not exist; the valid range is named.
    """
    valid = f"layers are numbered 0 to {layers - 1}" if layers else "this network has no layers to drop"
    for index in sorted(plan.drop):
        if not 0 <= index < layers:
            raise InputError("layer", index, valid)
    for name, factors in (("skip_scale", plan.skip_scale), ("hidden_scale", plan.hidden_scale)):
        if factors is not None and len(factors) != joints:
            mend = f"give {joints} factors, deepest joint first" if joints else "this network has no skip joints"
            raise InputError(name, factors, mend)
    for name in plan.taps:
        if name not in taps:
            raise unknown_name("tap", name, taps)


def linear(bottom: float, top: float, k: int, *, index: str = "inclusive") -> tuple[float, ...]:
    """The linear layer-wise factors of Skip-Tuning: rho_i = rho_bottom + (rho_top - rho_bottom) w_i.

    Args:
        bottom: rho_bottom, the factor of the deepest joint.
        top: rho_top, the factor of the highest resolution.
        k: number of joints.
        index: w_i for i = 0..k-1; the paper leaves the end points open: "inclusive" i / (k - 1), "from-zero" i / k
            (the top stops one step short), "from-one" (i + 1) / k (the deepest starts one step up).

    Returns:
        k factors, deepest joint first.

    Raises:
        InputError: k is not positive or `index` is unknown.

    Reference:
        Ma et al. 2024, The Surprising Effectiveness of Skip-Tuning in Diffusion Sampling, section 3.

    >>> linear(0.5, 1.0, 3)
    (0.5, 0.75, 1.0)
    """
    if k < 1:
        raise InputError("k", k, "give the number of joints, at least 1")
    weights = {
        "inclusive": [i / max(k - 1, 1) for i in range(k)],
        "from-zero": [i / k for i in range(k)],
        "from-one": [(i + 1) / k for i in range(k)],
    }
    if index not in weights:
        raise unknown_name("index", index, weights)
    # w = 1 must give `top` to the last bit.
    return tuple(float(top) if w == 1 else bottom + (top - bottom) * w for w in weights[index])
