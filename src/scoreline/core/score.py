"""A number together with everything that decides what it may be compared with.

A Frechet distance means nothing without the feature network and its weights, the resize rule, the quantisation, the
file format, the reference and its count, the number of generated images and the estimator: each moves it by more than
the usual gap between papers. `Protocol` holds them; `Score` refuses to be compared across unlike ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from scoreline.core.errors import InputError, unknown_name

__all__ = ["Interval", "Protocol", "Score"]

Plain = str | int | float | bool | None


@dataclass(frozen=True)
class Interval:
    """An interval for a value.

    Args:
        low, high: its ends, low <= high.
        level: the nominal coverage, in (0, 1).
        method: how it was made, in words.
    """

    low: float
    high: float
    level: float
    method: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise InputError("interval", (self.low, self.high), "two finite ends, the lower one first")
        if not 0 < self.level < 1:
            raise InputError("level", self.level, "a level lies between 0 and 1, for instance 0.95")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a score depends on besides the images it judges; two scores compare only when all of it agrees.

    Empty text, "none" and None mean "does not apply". The fields are final: what a later metric needs goes to `extra`.

    Args:
        metric: "fid", "kid", "is", "precision", "psnr", "auroc", ...
        version: version of the metric's definition here; raised when a number would change.
        variant: "paper" or "released" where the two differ.
        features: name of the feature network ("inception-2015", "pixels", ...).
        tap: which of its outputs ("2048", "logits", ...).
        weights: SHA-256 of its weights.
        resize: the resize rule in front of the network ("tf1", "pytorch", "clean", "torchmetrics", "none").
        quantisation: "uint8-round", "uint8-truncate" or "none".
        precision: arithmetic of the feature network ("float32").
        file_format: what the images went through: "memory", "png", "jpeg-75", ...
        preprocessing: crop, flip and resize before the metric saw the images, both sets alike.
        image: shape of the images that were judged, "3x32x32".
        conditions: how labels or prompts of the generated images were drawn ("labels-uniform", "prompts:<hash>").
        reference: name of the reference data set.
        reference_split: its split.
        reference_fingerprint: its fingerprint.
        reference_count: how many reference images.
        generated_count: how many generated images.
        method: the estimator ("symmetric", "unbiased", "kynkaanniemi", "extrapolated", ...).
        ddof: of the covariances.
        k: neighbours.
        strict: whether "inside the ball" is < (True) or <= (False).
        subsets, subset_size: how many subsets of what size were averaged.
        estimator_seed: seed of the estimator's own draws (subsets, shuffles); not the seed of the images.
        scale: the factor the value was multiplied with (KID x 1000).
        extra: further (name, value) pairs, kept sorted.
    """

    metric: str
    version: str = "1"
    variant: str = ""
    features: str = "none"
    tap: str = ""
    weights: str = "none"
    resize: str = "none"
    quantisation: str = "none"
    precision: str = "float32"
    file_format: str = "memory"
    preprocessing: str = "none"
    image: str = ""
    conditions: str = "none"
    reference: str = "none"
    reference_split: str = ""
    reference_fingerprint: str = ""
    reference_count: int | None = None
    generated_count: int | None = None
    method: str = ""
    ddof: int | None = None
    k: int | None = None
    strict: bool | None = None
    subsets: int | None = None
    subset_size: int | None = None
    estimator_seed: int | None = None
    scale: float = 1.0
    extra: tuple[tuple[str, Plain], ...] = ()

    def __post_init__(self) -> None:
        if not self.metric:
            raise InputError("metric", self.metric, "a protocol names its metric")
        if self.variant not in ("", "paper", "released"):
            raise unknown_name("variant", self.variant, ["paper", "released"])
        for name in ("reference_count", "generated_count"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(name, count, "counts are at least 1")
        pairs = sorted(((str(name), value) for name, value in self.extra), key=lambda pair: pair[0])
        if len({name for name, _ in pairs}) < len(pairs):
            raise InputError("extra", [name for name, _ in pairs], "each name stands once")
        for name, value in pairs:
            if not isinstance(value, str | int | float | bool | None):
                raise InputError(f"extra {name}", value, "a protocol holds plain values: text, numbers, booleans")
        object.__setattr__(self, "extra", tuple(pairs))

    def differences(self, other: Protocol) -> dict[str, tuple[Any, Any]]:
        """The fields that differ, as name -> (mine, theirs); pairs of `extra` as "extra.name"."""
        found = {
            f.name: (mine, theirs)
            for f in fields(self)
            if f.name != "extra" and (mine := getattr(self, f.name)) != (theirs := getattr(other, f.name))
        }
        mine, theirs = dict(self.extra), dict(other.extra)
        for name in sorted(mine.keys() | theirs.keys()):
            if name not in mine or name not in theirs or mine[name] != theirs[name]:
                found[f"extra.{name}"] = (mine.get(name, "not set"), theirs.get(name, "not set"))
        return found

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name this protocol: equal protocols, equal digits."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def replace(self, **changes: Any) -> Protocol:
        """A copy with some fields changed.

        Raises:
            InputError: a name that is no field.
        """
        _known(changes, Protocol, "protocol field")
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON; `extra` as a dictionary."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"extra": dict(self.extra)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: a name that is no field, or no metric.
        """
        _known(values, cls, "protocol field")
        if "metric" not in values:
            raise InputError("protocol", sorted(values), "the metric is missing")
        return cls(**{**values, "extra": tuple(dict(values.get("extra", {})).items())})

    def __str__(self) -> str:
        """The fields that are set, in one line."""
        shown = [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if f.name not in ("metric", "extra") and getattr(self, f.name) not in (None, "", "none")
        ]
        return " ".join([self.metric, *shown, *(f"{name}={value}" for name, value in self.extra)])


@dataclass(frozen=True)
class Score:
    """A value with its interval, protocol and cost.

    Args:
        name: what the score is called in tables ("fid@digits").
        value: the number; infinite is allowed (the PSNR of equal images), NaN is not.
        protocol: what it depends on.
        higher_is_better: which way is up.
        interval: an interval for the value, or None.
        cost: what it took: nfe, seconds, macs, peak_memory_bytes, machine, ...; not part of any comparison.
    """

    name: str
    value: float
    protocol: Protocol
    higher_is_better: bool
    interval: Interval | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if math.isnan(self.value):
            raise InputError(f"score {self.name}", self.value, "a score is a number; NaN cannot be compared or stored")
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "cost", dict(self.cost))

    def compare(self, other: Score) -> float:
        """self.value - other.value, if the two may be compared.

        Raises:
            InputError: name, direction or protocol differ; the fields that differ are listed with both values.
        """
        differing: dict[str, tuple[Any, Any]] = {}
        if self.name != other.name:
            differing["name"] = (self.name, other.name)
        if self.higher_is_better != other.higher_is_better:
            differing["higher_is_better"] = (self.higher_is_better, other.higher_is_better)
        differing |= self.protocol.differences(other.protocol)
        if differing:
            listed = "; ".join(f"{name}: {mine!r} against {theirs!r}" for name, (mine, theirs) in differing.items())
            raise InputError(f"scores {self.name} and {other.name} were not measured alike", None, listed)
        return 0.0 if self.value == other.value else self.value - other.value

    def __sub__(self, other: Score) -> float:
        return self.compare(other)

    def __lt__(self, other: Score) -> bool:
        return self.compare(other) < 0

    def __gt__(self, other: Score) -> bool:
        return self.compare(other) > 0

    def better_than(self, other: Score) -> bool:
        """Whether this score is strictly better, the right way round.

        Raises:
            InputError: the two may not be compared.
        """
        difference = self.compare(other)
        return difference > 0 if self.higher_is_better else difference < 0

    def __str__(self) -> str:
        shown = f"{self.name} {self.value:.4g}"
        return shown if self.interval is None else f"{shown} [{self.interval.low:.4g}, {self.interval.high:.4g}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON; an infinite value as the text "inf" or "-inf"."""
        return {
            "name": self.name,
            "value": self.value if math.isfinite(self.value) else str(self.value),
            "higher_is_better": self.higher_is_better,
            "interval": None if self.interval is None else asdict(self.interval),
            "protocol": self.protocol.to_dict(),
            "cost": dict(self.cost),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Score:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: a field is missing or unknown.
        """
        _known(values, cls, "score field")
        missing = sorted({"name", "value", "protocol", "higher_is_better"} - values.keys())
        if missing:
            raise InputError("score", missing, "these fields are missing")
        interval = values.get("interval")
        if interval is not None:
            _known(interval, Interval, "interval field")
            interval = Interval(**interval)
        return cls(
            values["name"],
            float(values["value"]),
            Protocol.from_dict(values["protocol"]),
            values["higher_is_better"],
            interval,
            values.get("cost", {}),
        )

    def to_json(self) -> str:
        """One JSON object, keys sorted."""
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Score:
        """The inverse of :meth:`to_json`.

        Raises:
            InputError: the text is no JSON object, or a field is missing or unknown.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError("score", text[:40], f"not JSON: {error}") from None
        if not isinstance(values, dict):
            raise InputError("score", text[:40], "not a JSON object")
        return cls.from_dict(values)


def _known(values: Mapping[str, Any], cls: type, kind: str) -> None:
    names = [f.name for f in fields(cls)]
    for name in values:
        if name not in names:
            raise unknown_name(kind, name, names)
