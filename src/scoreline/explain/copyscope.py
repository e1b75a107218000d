"""CopyScope (Zhou, Gao, Wang & Wei 2023, arXiv 2311.12847): which part of a workflow makes its images so similar?

The components of an image workflow are the players of a game. A coalition S makes images with its components active and
the others replaced by neutral stand-ins, from the same seeds; F(S) is their Frechet distance to a set of artwork, and

    v(S) = F(empty) - F(S)

what the coalition gains in similarity. Shapley's value divides v(N) among the components. Only the abstract's outline
is the paper's for certain (components, Frechet distance, Shapley); v, the error bars, the rule for "material", the
unbiased utilities and the comparators are choices made here.

A share of similarity is not a verdict: the distance mixes style, content and layout, and the stand-ins define it.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scoreline.core.encoder import Encoder, check_images
from scoreline.core.errors import InputError, NonFiniteError, unknown_name
from scoreline.core.moments import Moments
from scoreline.core.noise import derive
from scoreline.core.pairwise import distance_blocks
from scoreline.core.score import Protocol
from scoreline.evaluate.protocols import features_of
from scoreline.explain.attribution import Attribution, Component, divide
from scoreline.explain.coalitions import Coalitions, Make
from scoreline.explain.shapley import EXACT_UP_TO, orders, visited
from scoreline.metrics import cmmd, frechet_distance, polynomial_mmd

__all__ = ["UTILITIES", "CopyScope", "feature_distance"]


def feature_distance(real: Tensor, generated: Tensor) -> float:
    """Mean Euclidean distance over all pairs of a reference and a generated feature vector.

    The utility for a single reference image, where a Frechet distance has no covariance to compare.

    Args:
        real: (N, d), N >= 1.
        generated: (M, d).

    >>> feature_distance(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    3.0
    """
    total = sum(float(block.sqrt().sum()) for _, block in distance_blocks(generated, real))
    return total / (len(real) * len(generated))


UTILITIES: dict[str, tuple[Callable[[Any, Tensor], float], int, str]] = {
    "fd": (frechet_distance, 2, "Frechet distance"),
    "kid": (polynomial_mmd, 2, "kernel distance, unbiased"),
    "cmmd": (cmmd, 1, "Gaussian-kernel distance of unit features"),
    "feature-distance": (feature_distance, 1, "mean distance of pairs of images"),
}
"""Distances whose fall is a utility: the function, the fewest reference images, what it is."""


class CopyScope:
    """Attribution of similarity to the components of a workflow.

    phi_i = sum_{S without i} |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)),  v(S) = F(empty) - F(S)

    Args:
        components: the players, or their names.
        make: make(active, noise) -> (N, C, H, W) images in [-1, 1] of the workflow with these components active; the
            same noise source is passed to every coalition of a seed set, and every coalition gives as many images.
        reference: (M, C, H, W) the artwork.
        encoders: feature networks by a short name ("digits", "pixels"), at least one.
        utilities: of `UTILITIES`, each measured on every encoder's features.
        seeds: seed sets; two or more give error bars.
        bootstrap: joint resamples of the images of all coalitions, which then give the error bars; 0 for none.
        owners: owner -> names of its components, for Owen values and merged players; components not named own
            themselves.
        same: a text by coalition; those of equal text give equal images and are made once.

    Raises:
        InputError: names that repeat or are unknown, a reference too small or without spread for a utility.

    Reference: Zhou et al. 2023, 2311.12847; Shapley 1953.
    """

    def __init__(
        self,
        components: Sequence[Component | str],
        make: Make,
        reference: Tensor,
        encoders: Mapping[str, Encoder],
        *,
        utilities: Sequence[str] = ("fd",),
        seeds: Sequence[int] = (0, 1, 2),
        bootstrap: int = 0,
        owners: Mapping[str, Sequence[str]] | None = None,
        same: Callable[[frozenset[str]], str] | None = None,
    ) -> None:
        players = tuple(c if isinstance(c, Component) else Component(c) for c in components)
        self.components = players
        names = [component.name for component in players]
        if not names or len(set(names)) < len(names) or not all(names):
            raise InputError("components", names, "give at least one, each with a name of its own")
        if not encoders:
            raise InputError("encoders", None, "give at least one feature network")
        for utility in utilities:
            if utility not in UTILITIES:
                raise unknown_name("utility", utility, UTILITIES)
        if not utilities or len(set(utilities)) < len(utilities):
            raise InputError("utilities", list(utilities), "give at least one, each once")
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise InputError("seed sets", list(seeds), "give distinct numbers from 0 on")
        if bootstrap < 0 or bootstrap == 1:
            raise InputError("bootstrap", bootstrap, "0 for none, or at least 2 resamples")
        self.utilities, self.seeds, self.bootstrap = tuple(utilities), tuple(seeds), bootstrap
        self.owners = _groups(owners, names)
        check_images(reference)
        self.reference = {short: features_of(encoder, reference) for short, encoder in encoders.items()}
        for utility in utilities:
            least = UTILITIES[utility][1]
            if len(reference) < least:
                mend = f"needs at least {least} reference images; for a single one use feature-distance"
                raise InputError("utility", utility, mend)
            for short, features in self.reference.items():
                if utility == "fd" and not bool((features != features[0]).any()):
                    mend = f"the reference images are the same to {short}, without spread; use feature-distance"
                    raise InputError("utility", utility, mend)
        self.image_shape = tuple(reference.shape[1:])
        self.coalitions = Coalitions(names, make, encoders, same)

    def run(
        self,
        folder: str | Path | None = None,
        *,
        method: Literal["auto", "exact", "permutation"] = "auto",
        samples: int | None = None,
        workers: int = 1,
        job: Mapping[str, Any] | None = None,
        advance: Callable[[int, str], None] = lambda n, text: None,
    ) -> dict[str, Attribution]:
        """Make the coalitions, measure them and divide the gain.

        Args:
            folder: keeps features, pictures and a ledger; a run that was stopped goes on there, to the same numbers.
            method: "exact" (all coalitions), "permutation" (sampled antithetic orders, the same for all seed sets) or
                "auto": exact up to 12 components.
            samples: orders of the permutation method; None takes 200 n.
            workers: processes that make coalitions.
            job: what else makes this run the one it is: a folder with another job is refused.
            advance: told of every (coalition, seed set) that is done.

        Returns:
            The attribution by utility and features, "fd-digits" say, in the order of the utilities.

        Raises:
            InputError, ArtefactError, NonFiniteError: see :class:`scoreline.explain.coalitions.Coalitions`.
        """
        if method not in ("auto", "exact", "permutation"):
            raise unknown_name("method", method, ["auto", "exact", "permutation"])
        if workers < 1:
            raise InputError("workers", workers, "must be 1 or more")
        exact = method == "exact" or (method == "auto" and self.exact)
        masks = self.masks(exact, samples)
        # Only what the images depend on: more seed sets, other utilities and networks may be asked for later.
        whole = {"components": list(self.coalitions.components), **(job or {})}
        found: dict[str, Attribution] = {}
        with self.coalitions.made(masks, self.seeds, folder, whole, workers=workers, advance=advance):
            for utility in self.utilities:
                for short in self.coalitions.encoders:
                    attribution = self._divide(utility, short, masks, samples, exact)
                    found[attribution.name] = attribution
        return found

    @property
    def exact(self) -> bool:
        """Whether all coalitions are few enough to be made."""
        return len(self.components) <= EXACT_UP_TO

    def masks(self, exact: bool, samples: int | None) -> list[int]:
        """The coalitions that will be asked for."""
        n = len(self.components)
        if exact:
            return list(range(2**n))
        ends = {0, 2**n - 1, *(1 << i for i in range(n)), *((2**n - 1) ^ 1 << i for i in range(n))}
        return sorted(ends | set(visited(orders(n, samples))))

    def _divide(self, utility: str, short: str, masks: Sequence[int], samples: int | None, exact: bool) -> Attribution:
        """Distances of all units by one utility on one network's features, and what follows from them."""
        function, _, what = UTILITIES[utility]
        reference, units = self.reference[short], self.coalitions.units
        # Moments of the reference are taken once where the distance would take them each time.
        against: Any = Moments.of(reference) if utility == "fd" and len(reference) > reference.shape[1] else reference

        def distance(features: Tensor, mask: int) -> float:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of few images; said once, in words that fit
                found = function(against, features)
            if not math.isfinite(found):
                raise NonFiniteError(f"{utility} of coalition {self.coalitions.name(mask)}", found)
            return found

        known: dict[str, float] = {}

        def stored(mask: int, seed: int) -> float:
            digest = units[mask, seed].digest
            if digest not in known:  # equal images have the very same distance, and so exactly nothing between them
                known[digest] = distance(self.coalitions.features(digest, short), mask)
            return known[digest]

        count = next(iter(units.values())).count
        named: dict[str, Any] = dict(self.coalitions.encoders[short].protocol)
        protocol = Protocol(
            metric={"fd": "frechet-distance"}.get(utility, utility), **named, reference="artwork",
            reference_fingerprint=_fingerprint(reference), reference_count=len(reference), generated_count=count,
            image="x".join(map(str, self.image_shape)), extra=(("utility", "F(empty) - F(S)"), ("distance", what)),
            method={"fd": "symmetric", "kid": "unbiased", "cmmd": "biased"}.get(utility, ""),
        )  # fmt: skip
        return divide(
            "fd-pixel" if (utility, short) == ("fd", "pixels") else f"{utility}-{short}",
            self.components,
            self.seeds,
            [{mask: stored(mask, seed) for mask in masks} for seed in self.seeds],
            [self._resampled(number, short, masks, distance) for number in range(self.bootstrap)],
            owners=self.owners,
            samples=None if exact else samples or 200 * len(self.components),
            protocol=protocol,
            warnings=_notes(utility, count, len(reference), reference.shape[1]),
        )

    def _resampled(
        self, number: int, short: str, masks: Sequence[int], distance: Callable[[Tensor, int], float]
    ) -> dict[int, float]:
        """Distances, mean over seed sets, of images drawn with replacement: the same places in every coalition."""
        total = dict.fromkeys(masks, 0.0)
        for seed in self.seeds:
            known: dict[str, float] = {}
            generator = torch.Generator().manual_seed(derive(seed, "copyscope", "bootstrap", number) % 2**63)
            count = self.coalitions.units[masks[0], seed].count
            places = torch.randint(count, (count,), generator=generator)
            for mask in masks:
                digest = self.coalitions.units[mask, seed].digest
                if digest not in known:
                    known[digest] = distance(self.coalitions.features(digest, short)[places], mask)
                total[mask] += known[digest] / len(self.seeds)
        return total


def _notes(utility: str, count: int, references: int, dim: int) -> list[str]:
    """What a reader of a distance of so few images has to know."""
    notes = [f"{count} images a coalition are few; 500 or more are advised"] if count < 500 else []
    if utility == "fd":
        few = [f"{n} {side}" for n, side in ((count, "generated"), (references, "reference")) if n <= dim]
        if few:
            notes.append(f"fewer images ({', '.join(few)}) than features ({dim}): the covariance is rank-deficient")
        notes.append(
            "a Frechet distance of few images is too high, and more so for coalitions of diverse images; the unbiased "
            "kid is free of that"
        )
    return notes


def _groups(owners: Mapping[str, Sequence[str]] | None, names: Sequence[str]) -> dict[str, list[int]]:
    """Owner -> places of its components; those that nobody was named for own themselves."""
    if not owners:
        return {}
    groups: dict[str, list[int]] = {}
    taken: set[str] = set()
    for owner, parts in owners.items():
        for part in parts:
            if part not in names:
                raise unknown_name(f"component of {owner}", part, names)
            if part in taken:
                raise InputError("component", part, "has one owner")
            taken.add(part)
        if parts:
            groups[owner] = [names.index(part) for part in parts]
    for i, name in enumerate(names):
        if name not in taken:
            if name in groups:
                raise InputError("owner", name, "is also the name of a component of nobody; choose another name")
            groups[name] = [i]
    return groups


def _fingerprint(features: Tensor) -> str:
    return hashlib.sha256(features.float().contiguous().numpy().tobytes()).hexdigest()
