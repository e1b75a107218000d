"""What a search minimises: the images of a sampler on a model, scored, with what they cost.

An :class:`Objective` is a pure function of the genotype, small enough to be sent to other processes: it names the model
and the data, and every process opens them once. The noise is the same for all genotypes (common random numbers) or
fresh for each (a function of the genotype). Either way the best value of a search is too good, because it was chosen
for it: what is reported is measured again, by :meth:`Objective.report`, with noise that the search never saw.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.cost import count_macs
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.load import load
from scoreline.core.moments import Moments
from scoreline.core.noise import Noise, derive
from scoreline.core.sampler import Sampler
from scoreline.core.schedule import Time
from scoreline.data import load_images
from scoreline.evaluate.compare import converged, rmse_per_image
from scoreline.evaluate.protocols import FrechetProtocol, features_of, pick_encoder
from scoreline.evaluate.specs import check_fit, guided, labels_for
from scoreline.evaluate.statistics import read_statistics
from scoreline.metrics import frechet_distance_from_statistics, kernel_distance
from scoreline.metrics.intervals import mean_interval
from scoreline.search.engine import Genotype, Result, genotype_key

__all__ = ["METRICS", "Objective"]

METRICS = ("fd", "kid", "rmse")


class Objective:
    """genotype -> {"value", "nfe", "macs", "seconds"}: quality of a sampler's images, and their cost an image.

    Args:
        model: built-in name or path, or the denoiser itself.
        sampler_of: genotype -> sampler; picklable.
        metric: "fd": Frechet distance of features; "kid": kernel distance of features; "rmse": median root mean square
            difference of an image to the converged ODE at the same noise. Smaller is better for all.
        data: reference data set, or an .npz file with mean and covariance of features ("fd" only); None takes the data
            of the model's card. Not used by "rmse".
        split: of the data set, None for all of it.
        features: feature network, see `scoreline.evaluate.protocols.pick_encoder`; with statistics name it.
        count: images an evaluation.
        noise_seed: of the noise.
        noise: "fixed": the same for every genotype; "fresh": each its own.
        guidance, clip: as in `scoreline sample`.
        labels: classes asked for in turn, None for all.
        batch_size: images a batch.

    Raises:
        InputError: an unknown metric, or one that cannot be measured so.
    """

    def __init__(
        self,
        model: str | Denoiser,
        sampler_of: Callable[[Genotype], Sampler],
        *,
        metric: str = "fd",
        data: str | None = None,
        split: str | None = None,
        features: str = "auto",
        count: int = 500,
        noise_seed: int = 0,
        noise: Literal["fixed", "fresh"] = "fixed",
        guidance: float | None = None,
        clip: bool = False,
        labels: Sequence[int] | None = None,
        batch_size: int = 500,
    ) -> None:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        if noise not in ("fixed", "fresh"):
            raise unknown_name("noise", noise, ("fixed", "fresh"))
        for thing, value, least in (("count", count, 2), ("batch_size", batch_size, 1)):
            if value < least:
                raise InputError(thing, value, f"must be {least} or more")
        if metric == "rmse" and noise == "fresh":
            raise InputError("noise", noise, "the distance to the ODE is compared at the same noise; use fixed")
        if metric == "kid" and data is not None and data.endswith(".npz"):
            raise InputError("metric", metric, "needs images or features; mean and covariance serve fd alone")
        self.model, self.sampler_of, self.metric, self.data, self.split = model, sampler_of, metric, data, split
        self.features, self.count, self.noise_seed, self.noise = features, count, noise_seed, noise
        self.guidance, self.clip, self.batch_size = guidance, clip, batch_size
        self.labels = None if labels is None else list(labels)
        self._opened: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # What was opened here is opened again there.
        return {**vars(self), "_opened": {}}

    def job(self) -> dict[str, Any]:
        """What makes two objectives the same one, as plain values."""
        model = self.model if isinstance(self.model, str) else type(self.model).__name__
        kept = ("metric", "data", "split", "features", "count", "noise_seed", "noise", "guidance", "clip", "labels")
        fingerprint = getattr(self.denoiser, "header", {}).get("fingerprint")
        return {"model": model, "fingerprint": fingerprint, **{name: getattr(self, name) for name in kept}}

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._opened:
            self._opened[name] = make()
        return self._opened[name]

    @property
    def bare(self) -> Denoiser:
        """The model as it was given."""
        return self._once("bare", lambda: load(self.model) if isinstance(self.model, str) else self.model)

    @property
    def denoiser(self) -> Denoiser:
        """The model, with guidance and clipping."""

        def make() -> Denoiser:
            view = guided(self.bare, self.guidance, clip=self.clip)
            if view is not self.bare and hasattr(self.bare, "header"):
                object.__setattr__(view, "header", self.bare.header)
            return view

        return self._once("denoiser", make)

    def check(self, genotype: Genotype) -> int:
        """The evaluations that a genotype's images cost; what its sampler would refuse is refused here."""
        return check_fit(self.sampler_of(genotype), self.denoiser)

    def __call__(self, genotype: Genotype) -> Result:
        seed = derive(self.noise_seed, genotype_key(genotype)) if self.noise == "fresh" else self.noise_seed
        return self.measured(genotype, seed, self.count)

    def measured(self, genotype: Genotype, seed: int, count: int) -> Result:
        """The score of `count` images from the noise of `seed`, and their cost."""
        images, cost = self._images(self.sampler_of(genotype), seed, count)
        if not bool(torch.isfinite(images).all()):
            return {"value": math.inf, **cost}
        return {"value": self._score(images, seed, count), **cost}

    def report(self, genotypes: Sequence[Genotype], seeds: Sequence[int], count: int) -> list[dict[str, Any]]:
        """What may be said of some genotypes: scores with noise that the search did not see.

        Args:
            genotypes: which.
            seeds: of the noise; the search's own is refused.
            count: images a seed.

        Returns:
            For each genotype {"values", "mean", "low", "high", "nfe", "macs", "seconds"}: one value a seed, their mean
            and its 95 % t-interval.

        Raises:
            InputError: a seed that the search used, or no seed at all.
        """
        if not seeds or len(set(seeds)) < len(seeds):
            raise InputError("seeds", list(seeds), "give distinct seeds, at least one")
        if self.noise_seed in seeds and self.noise == "fixed":
            mend = "is the noise that the search chose by; what it found looks too good there"
            raise InputError("seed", self.noise_seed, mend)
        rows = []
        for genotype in genotypes:
            found = [self.measured(genotype, seed, count) for seed in seeds]
            values = [one["value"] for one in found]
            mean = sum(values) / len(values)
            interval = mean_interval(values, method="t") if len(values) > 1 and math.isfinite(mean) else None
            rows.append({
                "values": values, "mean": mean,
                "low": mean if interval is None else interval.low, "high": mean if interval is None else interval.high,
                "nfe": found[0]["nfe"], "macs": found[0]["macs"],
                "seconds": sorted(one["seconds"] for one in found)[len(found) // 2],
            })  # fmt: skip
        return rows

    def _given(self, indices: range) -> Denoiser:
        return self.denoiser.given(labels_for(indices, self.denoiser.num_classes, self.labels))

    def _images(self, sampler: Sampler, seed: int, count: int) -> tuple[Tensor, Result]:
        """Images and what one of them cost: evaluations, multiply-accumulates, seconds of sampling."""
        images, nfe, seconds, macs = [], 0.0, 0.0, 0.0
        prices = self._once("prices", dict)
        for start in range(0, count, self.batch_size):
            indices = range(start, min(start + self.batch_size, count))
            draws = Noise(seed).at(indices, self.denoiser.shape)
            priced = _Priced(self._given(indices), self._given(range(1)), prices)
            began = time.perf_counter()
            sample = sampler(priced, draws)
            seconds += time.perf_counter() - began - priced.bill["counting"]
            nfe, macs = sample.nfe, priced.bill["macs"]
            images.append(self.denoiser.decode(sample.x.float()).clamp(-1, 1))
        return torch.cat(images), {"nfe": nfe, "macs": macs, "seconds": seconds / count}

    def _score(self, images: Tensor, seed: int, count: int) -> float:
        if self.metric == "rmse":
            exact = self._once(f"converged {seed} {count}", lambda: self._converged(seed, count))
            return float(rmse_per_image(images, exact).median())
        with warnings.catch_warnings():
            # That the images may be few for the features is known, and the same for all.
            warnings.filterwarnings("ignore", "(generated|real): ", UserWarning)
            if self.data is not None and self.data.endswith(".npz"):
                return self._against_statistics(images)
            protocol = self._once("protocol", self._protocol)
            found = features_of(protocol.encoder, images, batch_size=self.batch_size)
            if self.metric == "fd":
                return protocol.distance(found)
            real = self._once("real features", lambda: self._real_features(protocol))
            size = min(len(found), len(real), 1000)
            return kernel_distance(real, found, subsets=20, subset_size=size, seed=0).mean

    def _converged(self, seed: int, count: int) -> Tensor:
        return converged(self.denoiser, seed, count, self.labels, self.batch_size)

    def _source(self) -> str:
        source = self.data or getattr(self.bare, "header", {}).get("card", {}).get("data")
        if source is None:
            raise InputError("data", None, "the model's card names no data set; give data, or an .npz with statistics")
        return source

    def _protocol(self) -> FrechetProtocol:
        images = load_images(self._source(), split=self.split)
        return FrechetProtocol(pick_encoder(self.features, images), images, split=self.split or "")

    def _real_features(self, protocol: FrechetProtocol) -> Tensor:
        images = protocol.reference
        parts = [features_of(protocol.encoder, batch.image) for batch in images.batches(self.batch_size)]
        return torch.cat(parts)

    def _against_statistics(self, images: Tensor) -> float:
        assert self.data is not None
        path = self.data
        statistics = self._once("statistics", lambda: read_statistics(path))

        def network() -> Any:
            reference = _Shaped(tuple(images.shape[1:]))
            encoder = pick_encoder(self.features, reference)  # type: ignore[arg-type]
            if encoder.dim != len(statistics.mean):
                mend = f"are of {len(statistics.mean)} features; {encoder.protocol['features']} has {encoder.dim}"
                raise InputError("statistics", path, mend)
            return encoder

        encoder = self._once("encoder", network)
        moments = Moments.of(features_of(encoder, images, batch_size=self.batch_size))
        return frechet_distance_from_statistics(statistics.mean, statistics.cov, moments.mean, moments.cov())

    def but(self, **changes: Any) -> Objective:
        """The same objective with other settings, on the same opened model."""
        other = copy.copy(self)
        kept = {name: self._opened[name] for name in ("bare", "denoiser") if name in self._opened}
        other.__dict__.update(changes, _opened=kept)
        return other


class _Shaped:
    """What the choice of a feature network needs to know of images: their shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


class _Priced(View):
    """A model that adds up what its calls cost an image; what a call under a plan costs is counted once.

    Args:
        inner: the model, with the conditions of a batch.
        single: the model, with those of one image.
        prices: multiply-accumulates of a call by the plans it is under, shared by all views.
    """

    def __init__(self, inner: Denoiser, single: Denoiser, prices: dict[tuple[str, ...], float]) -> None:
        super().__init__(inner)
        self.single = single
        self.prices = prices
        self.plans: tuple[str, ...] = ()
        self.bill = {"macs": 0.0, "counting": 0.0}

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        if self.plans not in self.prices:
            began = time.perf_counter()
            self.prices[self.plans] = float(
                count_macs(self.single, x[:1], t[:1] if isinstance(t, Tensor) and t.dim() else t)
            )
            self.bill["counting"] += time.perf_counter() - began
        self.bill["macs"] += self.prices[self.plans]
        return self.inner(x, t, cond)

    def under(self, plan: Any) -> Self:
        view = super().under(plan)
        view.single = self.single.under(plan)
        view.plans = (*self.plans, repr(plan))
        return view
