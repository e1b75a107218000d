"""From features to scores: every metric of `scoreline score` with its interval, and two generators against each other.

Intervals say how far another draw of as many images would move the value. Frechet distances: linearised bootstrap
(`frechet_influence`). The others: the spread of the metric over random halves of at most 1000 images a set
(`scoreline.metrics.intervals`), scaled by sqrt(n / N) to the full count, so that 50,000 images cost no more than 1000.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from scoreline.core.score import Interval, Protocol, Score
from scoreline.evaluate.extraction import Taken
from scoreline.evaluate.protocols import frechet_name
from scoreline.metrics import (
    cmmd,
    fid_infinity,
    frechet_distance,
    frechet_distance_from_statistics,
    inception_score,
    kernel_distance,
    polynomial_mmd,
    prdc,
)
from scoreline.metrics.frechet import Method
from scoreline.metrics.frechet_influence import Gaussian, influence_functions, resampled_interval, resampled_means
from scoreline.metrics.intervals import metric_intervals, normal_p, replicates, spread_interval

__all__ = ["Known", "Measured", "Scorer", "compare_measured"]

LEVEL = 0.95
FEWEST = 20
"""Images a set below which no interval is given."""
RESAMPLES = 2000
KID_SEED = 2020
"""The seed of the subsets in torch-fidelity."""
_ROWS = 1000
_HALVES = 40
PRDC = ("precision", "recall", "density", "coverage")
_SHARES = ("precision", "recall", "coverage", "precision-k3", "recall-k3")
_ANY = (-math.inf, math.inf)
PRDC_MODES = {"prdc": "prdc", "precision-recall": "kynkaanniemi"}


@dataclass(frozen=True)
class Known:
    """What is known of one set at one tap: what a pass took, or a stored mean and covariance.

    Args:
        taken: from images or stored features.
        stored: mean and covariance from a file.
        count: images, None where the file does not say.
    """

    taken: Taken | None
    stored: tuple[Tensor, Tensor] | None = None
    count: int | None = None

    @property
    def gaussian(self) -> Gaussian:
        """Mean and covariance."""
        if self.taken is not None:
            moments = self.taken.moments
            return Gaussian(moments.mean, moments.cov(), self.taken.sample if self.few else None)
        assert self.stored is not None
        return Gaussian(*self.stored)

    @property
    def few(self) -> bool:
        """Whether there are at most as many images as dimensions, and their rows are at hand."""
        taken = self.taken
        return taken is not None and len(taken.sample) == taken.count <= taken.moments.dim

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.taken.moments.dim if self.taken is not None else len(self.gaussian.mean)

    @property
    def sample(self) -> Tensor | None:
        """The rows that intervals are estimated from, None where there are none or too few."""
        return self.taken.sample if self.taken is not None and self.taken.count >= FEWEST else None

    def rows(self) -> Tensor:
        """All rows."""
        assert self.taken is not None
        return self.taken.all_rows()


@dataclass
class Measured:
    """A score and what a comparison with another generator's needs.

    Args:
        score: the score.
        metric: its name among the metrics.
        influences: (values, count) of the real and the generated sample, for Frechet distances.
        function: the metric of two samples of rows, for the others.
        sets: those samples: real and generated, or generated alone.
    """

    score: Score
    metric: str
    influences: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    function: Callable[..., Sequence[float]] | None = None
    sets: tuple[Known, ...] = ()
    part: int = 0


@dataclass
class Scorer:
    """Scores of one generated set, metric by metric.

    Args:
        real, generated: tap -> what is known; taps are "features", "sfid" and "logits".
        base: protocol of the Frechet distance on "features", with reference and counts.
        root: how Frechet distances take the root.
        kid_mode: how KID draws its subsets.
        taps: the network's own names of the taps, for the protocols.
        seed: of intervals and of the sizes of fd-infinity.
    """

    real: Mapping[str, Known]
    generated: Mapping[str, Known]
    base: Protocol
    root: Method = "symmetric"
    kid_mode: str = "torch-fidelity"
    taps: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    notes: list[str] = field(default_factory=list)

    def measure(self, metrics: Sequence[str]) -> list[Measured]:
        """All scores of some metrics, in their order."""
        found: list[Measured] = []
        for metric in metrics:
            if metric in ("fd", "sfid"):
                found.append(self._frechet(metric))
            elif metric == "fd-infinity":
                found.append(self._infinity(found))
            elif metric in PRDC_MODES:
                found += self._prdc(metric)
            elif metric == "is":
                found.append(self._inception_score())
            else:
                found.append(self._kid() if metric == "kid" else self._cmmd())
        if "fd" in metrics and "fd-infinity" not in metrics:
            name = next(m.score.name for m in found if m.metric == "fd")
            self.notes.append(
                f"{name}: of N = {self.generated['features'].count or 'unknown'} generated and "
                f"{self.real['features'].count or 'unknown'} real images, and above its limit by about c/N: compare it "
                "at equal N only; fd-infinity among the metrics tells by how much"
            )
        return found

    def _frechet(self, metric: str) -> Measured:
        tap = "features" if metric == "fd" else metric
        real, generated = self.real[tap], self.generated[tap]
        protocol = self.base if metric == "fd" else self.base.replace(tap=self.taps["sfid"])
        name = frechet_name(protocol) if metric == "fd" else "sfid"
        if real.taken is not None and generated.taken is not None:
            sides = [k.taken.sample if k.few else k.taken.moments for k in (real, generated) if k.taken is not None]
            value = frechet_distance(*sides, method=self.root)
        else:
            a, b = real.gaussian, generated.gaussian
            value = frechet_distance_from_statistics(a.mean, a.cov, b.mean, b.cov, method=self.root)
        for side, known in (("real", real), ("generated", generated)):
            if known.count is not None and known.count <= known.dim and known.taken is None:
                self.notes.append(f"{name}: {known.count} {side} images in {known.dim} dimensions: rank deficient, "
                                  "and the distance strongly biased upwards")  # fmt: skip
        influences = {}
        samples = {"real": real.sample, "generated": generated.sample}
        if any(sample is not None for sample in samples.values()):
            of = influence_functions(real.gaussian, generated.gaussian)
            for side, sample in samples.items():
                if sample is not None:
                    known = real if side == "real" else generated
                    assert known.taken is not None
                    influences[side] = (getattr(of, side)(sample), known.taken.count)
        interval = None
        if influences:
            interval = resampled_interval(value, _draws(influences, self.seed), LEVEL, self.seed)
            if len(influences) == 1:
                self.notes.append(f"{name}: the interval is for the draw of the {next(iter(influences))} images alone; "
                                  "the other side has no rows to resample")  # fmt: skip
        else:
            self.notes.append(f"{name}: no interval: mean and covariance alone, or fewer than {FEWEST} images a set")
        score = Score(name, value, protocol, higher_is_better=False, interval=interval)
        return Measured(score, metric, influences)

    def _infinity(self, found: Sequence[Measured]) -> Measured:
        real, generated = self.real["features"], self.generated["features"]
        assert real.taken is not None
        rows = generated.rows()
        smallest = min(5000, max(len(rows) // 10, 2))
        reference = real.taken.sample if real.few else real.taken.moments
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few images, which is said for the whole sets
            line = fid_infinity(reference, rows, smallest=smallest, seed=self.seed, method=self.root)
        protocol = self.base.replace(
            method=f"extrapolated, {self.base.method}", estimator_seed=self.seed, extra=(("smallest", smallest),)
        )
        distance = next((m for m in found if m.metric == "fd"), None) or self._frechet("fd")
        interval = distance.score.interval
        if interval is not None:
            # of the line and of the draw of images, which are taken for independent
            half = math.hypot(line.interval.high - line.value, (interval.high - interval.low) / 2)
            how = f"line through {len(line.sizes)} sizes, and {interval.method}"
            interval = Interval(line.value - half, line.value + half, LEVEL, how)
        score = Score("fd-infinity", line.value, protocol, higher_is_better=False, interval=interval)
        share = line.slope / len(rows)
        self.notes.append(
            f"{distance.score.name}: about {share:.3g} of {distance.score.value:.4g} is the bias c/N of "
            f"N = {len(rows)} generated images (fd-infinity is without it; that of the {real.count} real ones stays)"
        )
        return Measured(score, "fd-infinity", distance.influences)

    def _kid(self) -> Measured:
        real, generated = self.real["features"], self.generated["features"]
        x, y = real.rows(), generated.rows()
        size = min(1000, len(x), len(y))
        kid_mode: Any = self.kid_mode
        # a subset that is the whole of both sets gives the same value every time
        subsets = 1 if size == len(x) == len(y) else 100
        spread = kernel_distance(x, y, mode=kid_mode, subsets=subsets, subset_size=size, seed=KID_SEED)
        protocol = self.base.replace(
            metric="kid", method=f"unbiased, {self.kid_mode}", subsets=subsets, subset_size=size, ddof=None,
            estimator_seed=KID_SEED,
        )  # fmt: skip
        return self._spread("kid", ["kid"], [spread.mean], [protocol], False,
                            lambda a, b: (polynomial_mmd(a, b),), (real, generated))[0]  # fmt: skip

    def _cmmd(self) -> Measured:
        real, generated = self.real["features"], self.generated["features"]
        protocol = self.base.replace(metric="cmmd", method="biased", scale=1000.0, ddof=None, extra=(("sigma", 10.0),))
        value = cmmd(real.rows(), generated.rows())
        return self._spread("cmmd", ["cmmd"], [value], [protocol], False,
                            lambda a, b: (cmmd(a, b),), (real, generated))[0]  # fmt: skip

    def _prdc(self, metric: str) -> list[Measured]:
        mode: Any = PRDC_MODES[metric]
        real, generated = self.real["features"], self.generated["features"]
        k, strict = (5, True) if mode == "prdc" else (3, False)
        names = PRDC if mode == "prdc" else PRDC[:2]

        def shares(a: Tensor, b: Tensor) -> list[float]:
            found = prdc(a, b, mode=mode)
            return [getattr(found, name) for name in names]

        values = shares(real.rows(), generated.rows())
        protocols = [self.base.replace(metric=name, k=k, strict=strict, method=mode, ddof=None) for name in names]
        shown = list(names) if mode == "prdc" else [f"{name}-k3" for name in names]
        return self._spread(metric, shown, values, protocols, True, shares, (real, generated))

    def _inception_score(self) -> Measured:
        logits = self.generated["logits"]
        value = inception_score(logits.rows()).mean
        protocol = self.base.replace(
            metric="inception-score", tap=self.taps["logits"], method="10 splits", estimator_seed=2020, ddof=None,
            reference="none", reference_split="", reference_fingerprint="", reference_count=None,
        )  # fmt: skip
        return self._spread("is", ["is"], [value], [protocol], True,
                            lambda a: (inception_score(a, splits=1, seed=None).mean,), (logits,))[0]  # fmt: skip

    def _spread(
        self, metric: str, names: Sequence[str], values: Sequence[float], protocols: Sequence[Protocol], higher: bool,
        function: Callable[..., Sequence[float]], sets: tuple[Known, ...],
    ) -> list[Measured]:  # fmt: skip
        """Scores whose intervals come from halves of a sample."""
        intervals: list[Interval | None] = [None] * len(names)
        if all(known.sample is not None for known in sets):
            parts, scale = sampled(sets, self.seed)
            found = metric_intervals(function, *parts, level=LEVEL, resamples=_HALVES, seed=self.seed)
            intervals = [
                _scaled(value, interval, scale, len(parts[0]), (0.0, 1.0) if name in _SHARES else _ANY)
                for name, value, (_, interval) in zip(names, values, found)
            ]
        else:
            self.notes.append(f"{metric}: no interval: fewer than {FEWEST} images a set")
        return [
            Measured(Score(*one[:3], higher, one[3]), metric, function=function, sets=sets, part=i)
            for i, one in enumerate(zip(names, values, protocols, intervals))
        ]


def _draws(influences: Mapping[str, tuple[Tensor, int]], seed: int) -> Tensor:
    """Deviations of a distance when every side is resampled on its own."""
    sides = [resampled_means(*influences[side], RESAMPLES, 2 * seed + i)
             for i, side in enumerate(("real", "generated")) if side in influences]  # fmt: skip
    return torch.stack(sides).sum(0)


def sampled(sets: Sequence[Known], seed: int) -> tuple[list[Tensor], float]:
    """At most 1000 rows of each set, the same places in sets of one size, and sqrt(n / N) of the worst of them."""
    parts, scale = [], 0.0
    for known in sets:
        assert known.taken is not None
        rows = known.taken.sample
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:_ROWS]
        parts.append(rows[order])
        scale = max(scale, math.sqrt(len(order) / known.taken.count))
    return parts, scale


def _scaled(value: float, interval: Interval, scale: float, rows: int, bounds: tuple[float, float]) -> Interval:
    """The interval's width, scaled from a sample to all images, around their value and inside the metric's range."""
    half = (interval.high - interval.low) / 2 * scale
    low, high = max(value - half, bounds[0]), min(value + half, bounds[1])
    how = interval.method if scale == 1 else f"{interval.method}, of {rows} images, scaled to all"
    return Interval(low, high, interval.level, how)


def _difference_draws(a: Measured, b: Measured, seed: int) -> tuple[Tensor, float, int]:
    """Differences of every number of a metric over halves drawn for both generators alike: (halves, numbers),
    what scales their spread to all images, and how many rows were used.
    """
    function = a.function
    assert function is not None
    (x, y), scale = sampled([a.sets[-1], b.sets[-1]], seed)
    sides: list[tuple[Tensor, ...]] = [(x, y)]
    if len(a.sets) == 2:
        (real,), other = sampled(a.sets[:1], seed)
        sides, scale = [(real,), (x, y)], max(scale, other)

    def difference(*parts: Tensor) -> list[float]:
        shared, ours, theirs = parts[:-2], parts[-2], parts[-1]
        return [float(p) - float(q) for p, q in zip(function(*shared, ours), function(*shared, theirs))]

    return replicates(difference, sides, "halves", _HALVES, seed), scale, len(x)


def compare_measured(ours: Sequence[Measured], theirs: Sequence[Measured], seed: int) -> list[dict[str, Any]]:
    """Every score of one generator less that of another, with an interval and a paired two-sided test.

    Both saw the same real images, and image i of both is one pair, so that what they share cancels: the reference, and
    the noise where both were made from the same seeds. In sets that are not paired the order carries nothing, and the
    test is only less sharp.

    Args:
        ours, theirs: of the same metrics against the same real set.
        seed: of the resampling.

    Returns:
        One dictionary a score: name, generated, compared, difference, interval, p_value.

    Raises:
        InputError: two scores were not measured alike.
    """
    found = []
    for a, b in zip(ours, theirs, strict=True):
        difference = a.score.compare(b.score)
        interval: Interval | None = None
        if a.influences and a.influences.keys() == b.influences.keys():
            values = {side: (a.influences[side][0] - b.influences[side][0], a.influences[side][1])
                      for side in a.influences}  # fmt: skip
            interval = resampled_interval(difference, _draws(values, seed), LEVEL, seed)
        elif a.function is not None and all(k.sample is not None for k in (*a.sets, *b.sets)):
            if a.part == 0:
                draws, scale, rows = _difference_draws(a, b, seed)
            how = f"paired spread over halves of the images, {_HALVES} resamples, seed {seed}"
            whole = spread_interval(difference, draws[:, a.part], LEVEL, "halves", how)
            interval = _scaled(difference, whole, scale, rows, _ANY)
        p_value = None
        if interval is not None:
            error = (interval.high - interval.low) / 2 / NormalDist().inv_cdf((1 + LEVEL) / 2)
            p_value = normal_p(difference, error)
        found.append({
            "name": a.score.name, "generated": a.score.value, "compared": b.score.value, "difference": difference,
            "interval": None if interval is None else vars(interval), "p_value": p_value,
            "higher_is_better": a.score.higher_is_better,
        })  # fmt: skip
    return found
