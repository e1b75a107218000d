"""What every component contributed: the report object, and the arithmetic from distances to contributions.

Shapley's values are linear in the utilities, so the error of a contribution is the spread of the contributions of
single seed sets, or of joint resamples of all coalitions' images, never a sum of the errors of its terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from scoreline.core.score import Interval, Protocol
from scoreline.explain.shapley import (
    Shapley,
    banzhaf,
    interaction,
    leave_one_out,
    merged,
    owen,
    shapley,
    single_gain,
)

__all__ = ["MATERIAL", "NOT_A_VERDICT", "Attribution", "Component", "Estimate", "divide"]

NOT_A_VERDICT = (
    "A contribution is a share of measured similarity, not a verdict: it mixes style, content and layout, depends on "
    "the stand-ins, and says nothing about law."
)

MATERIAL = 0.1
"""A component is material when its contribution is above 2 sd and above this part of v(N) - v(empty)."""


LEVEL = 0.95


@dataclass(frozen=True)
class Component:
    """One player: a part of the workflow that somebody is answerable for.

    Args:
        name: as the report shows it.
        present: what it is, in words.
        absent: the neutral stand-in that takes its place.
    """

    name: str
    present: str = ""
    absent: str = ""


@dataclass(frozen=True)
class Estimate:
    """A number with its error; None: not known.

    Args:
        mean: over seed sets.
        sd: of one seed set.
        se: of the mean.
        half: half of the 95 % interval, by Student's t over seed sets or 1.96 se of a bootstrap.
    """

    mean: float
    sd: float | None = None
    se: float | None = None
    half: float | None = None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean over seed sets, given the artwork."""
        if self.half is None:
            return None
        return Interval(self.mean - self.half, self.mean + self.half, LEVEL, "mean of seed sets or bootstrap")

    def to_dict(self) -> dict[str, float | None]:
        """Plain values, ready for JSON."""
        low, high = (None, None) if self.half is None else (self.mean - self.half, self.mean + self.half)
        return {"mean": self.mean, "sd": self.sd, "se": self.se, "low": low, "high": high}


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What each component contributed, by one utility.

    Args:
        name: of the utility, with its features ("fd-digits").
        components: the players, bit i of a mask stands for components[i].
        method: "exact" or "permutation".
        spread: where sd and se come from.
        protocol: network, counts and reference.
        distance: F by mask. value: v by mask, v(empty) = 0.
        phi: Shapley values. by_seed: the same, one row a seed set.
        leave_one_out, single: v(N) - v(N - i) and v({i}). banzhaf: None where not all coalitions are known.
        interaction: (n, n), mean over seed sets, None likewise.
        owen, owners: Owen values of the components and Shapley values of their owners as merged players, if any.
        residual: |sum phi - v(N)| relative to the largest utility.
        warnings: what a reader has to know.
    """

    name: str
    components: tuple[Component, ...]
    method: str
    spread: str
    protocol: Protocol
    seeds: tuple[int, ...]
    distance: dict[int, Estimate]
    value: dict[int, Estimate]
    phi: tuple[Estimate, ...]
    by_seed: tuple[tuple[float, ...], ...]
    leave_one_out: tuple[Estimate, ...]
    single: tuple[Estimate, ...]
    banzhaf: tuple[Estimate, ...] | None
    interaction: tuple[tuple[float, ...], ...] | None
    owen: tuple[Estimate, ...] | None
    owners: dict[str, Estimate]
    residual: float
    warnings: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """v(N) - v(empty): what all components reach together."""
        return self.value[2 ** len(self.components) - 1].mean - self.value[0].mean

    @property
    def share(self) -> tuple[float, ...] | None:
        """phi_i / sum phi, or None when a contribution is negative: nothing is clipped."""
        whole = math.fsum(estimate.mean for estimate in self.phi)
        if whole <= 0 or any(estimate.mean < 0 for estimate in self.phi):
            return None
        return tuple(estimate.mean / whole for estimate in self.phi)

    @property
    def material(self) -> tuple[bool, ...] | None:
        """Whether phi_i > 2 sd and phi_i > 10 % of v(N) - v(empty); None where no sd is known."""
        if any(estimate.sd is None for estimate in self.phi):
            return None
        least = MATERIAL * self.total
        return tuple(e.mean > 2 * (e.sd or 0.0) and e.mean > least for e in self.phi)

    @property
    def order(self) -> list[int]:
        """Components from the largest to the smallest contribution."""
        return sorted(range(len(self.phi)), key=lambda i: (-self.phi[i].mean, i))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        names = [component.name for component in self.components]
        share, material = self.share, self.material
        return {
            "name": self.name,
            "method": self.method,
            "spread": self.spread,
            "components": [vars(component) for component in self.components],
            "protocol": self.protocol.to_dict(),
            "seeds": list(self.seeds),
            "total": self.total,
            "contributions": [
                {
                    "component": name,
                    "phi": self.phi[i].to_dict(),
                    "share": share[i] if share else None,
                    "material": material[i] if material else None,
                    "leave_one_out": self.leave_one_out[i].to_dict(),
                    "single": self.single[i].to_dict(),
                    "banzhaf": self.banzhaf[i].to_dict() if self.banzhaf else None,
                    "owen": self.owen[i].to_dict() if self.owen else None,
                    "by_seed": [row[i] for row in self.by_seed],
                }
                for i, name in enumerate(names)
            ],
            "owners": {owner: estimate.to_dict() for owner, estimate in self.owners.items()},
            "interaction": [list(row) for row in self.interaction] if self.interaction else None,
            "coalitions": [
                {
                    "mask": mask,
                    "active": [name for i, name in enumerate(names) if mask >> i & 1],
                    "distance": self.distance[mask].to_dict(),
                    "value": self.value[mask].to_dict(),
                }
                for mask in sorted(self.distance)
            ],
            "residual": self.residual,
            "warnings": list(self.warnings),
            "meaning": NOT_A_VERDICT,
        }


def divide(
    name: str,
    components: Sequence[Component],
    seeds: Sequence[int],
    distances: Sequence[Mapping[int, float]],
    resampled: Sequence[Mapping[int, float]] = (),
    *,
    owners: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    protocol: Protocol,
    warnings: Sequence[str] = (),
) -> Attribution:
    """Divide the fall of a distance among the components.

    v(S) = F(empty) - F(S) in each seed set, phi the Shapley values of v, mean and spread over seed sets.

    Args:
        name: of the utility.
        components: the players.
        seeds: the seed sets.
        distances: F by mask, one mapping a seed set; all masks, or those that the sampled orders visit.
        resampled: F by mask, each the mean over seed sets of one joint resample; where given, they give the errors.
        owners: owner -> places of its components, a partition; needs all masks.
        samples: orders of the permutation method; None counts all coalitions.
        protocol, warnings: for the record.

    Reference: Zhou et al. 2023, 2311.12847.
    """
    n, k = len(components), len(seeds)
    masks, exact = sorted(distances[0]), samples is None
    tables, copies = [_gains(table) for table in distances], [_gains(table) for table in resampled]

    def divided(gains: Mapping[int, float]) -> Shapley:
        if samples is None:
            return shapley(_table(gains, n), n)
        return shapley(gains, n, method="permutation", samples=samples)

    def estimates(part: Callable[[Mapping[int, float]], Tensor]) -> tuple[Estimate, ...]:
        """What `part` makes of the gains, mean over seed sets, with errors."""
        rows = torch.stack([part(table) for table in tables])
        return _estimates(rows, torch.stack([part(table) for table in copies]) if copies else None)

    def everywhere(part: Callable[[list[float]], Tensor]) -> tuple[Estimate, ...] | None:
        return estimates(lambda gains: part(_table(gains, n))) if exact else None

    by_seed = [divided(table) for table in tables]
    phi = estimates(lambda gains: divided(gains).values)
    spread = f"sd over {k} seed sets" if k > 1 else "unknown: one seed set and no bootstrap"
    if copies:
        spread = f"{len(copies)} joint bootstrap resamples of the images of all coalitions"
    if samples is not None:
        # All seed sets use the same orders, so that the error of sampling them does not fall with more seed sets.
        normal = NormalDist().inv_cdf((1 + LEVEL) / 2)
        sampling = torch.stack([found.error for found in by_seed]).mean(0).tolist()
        phi = tuple(
            Estimate(e.mean, e.sd, math.hypot(e.se or 0.0, s), math.hypot(e.half or 0.0, normal * s))
            for e, s in zip(phi, sampling)
        )
        spread += f"; se with that of {samples} sampled orders"
    groups = list((owners or {}).values())
    among = everywhere(lambda v: shapley(merged(v, n, groups), len(groups)).values) if groups else None
    pairs = torch.stack([interaction(_table(t, n), n) for t in tables]).mean(0).tolist() if exact else None
    table = _estimates(torch.tensor([[d[mask] for mask in masks] for d in distances], dtype=torch.float64),
                       torch.tensor([[d[mask] for mask in masks] for d in resampled], dtype=torch.float64)
                       if resampled else None)  # fmt: skip
    gains = estimates(lambda v: torch.tensor([v[mask] for mask in masks], dtype=torch.float64))
    return Attribution(
        name=name,
        components=tuple(components),
        method="exact" if exact else "permutation",
        spread=spread,
        protocol=protocol,
        seeds=tuple(seeds),
        distance=dict(zip(masks, table)),
        value=dict(zip(masks, gains)),
        phi=phi,
        by_seed=tuple(tuple(found.values.tolist()) for found in by_seed),
        leave_one_out=estimates(lambda v: leave_one_out(v, n)),
        single=estimates(lambda v: single_gain(v, n)),
        banzhaf=everywhere(lambda v: banzhaf(v, n)),
        interaction=tuple(map(tuple, pairs)) if pairs else None,
        owen=everywhere(lambda v: owen(v, n, groups)) if groups else None,
        owners=dict(zip(owners or {}, among or ())),
        residual=max(found.residual for found in by_seed),
        warnings=tuple(warnings),
    )


def _gains(distance: Mapping[int, float]) -> dict[int, float]:
    """v(S) = F(empty) - F(S): the nearer, the more."""
    return {mask: distance[0] - found for mask, found in distance.items()}


def _table(gains: Mapping[int, float], n: int) -> list[float]:
    return [gains[mask] for mask in range(2**n)]


def _estimates(rows: Tensor, copies: Tensor | None) -> tuple[Estimate, ...]:
    """Column means of (seed sets, m) with their errors; `copies` are resamples (resamples, m) of those means."""
    k = len(rows)
    means = rows.mean(0).tolist()
    if copies is not None:
        se = copies.std(0)
        sd, factor = se * math.sqrt(k), NormalDist().inv_cdf((1 + LEVEL) / 2)
    elif k > 1:
        from scipy.special import stdtrit

        sd = rows.std(0)
        se, factor = sd / math.sqrt(k), float(stdtrit(k - 1, (1 + LEVEL) / 2))
    else:
        return tuple(Estimate(mean) for mean in means)
    return tuple(Estimate(*four) for four in zip(means, sd.tolist(), se.tolist(), (factor * se).tolist()))
