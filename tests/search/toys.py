"""A searcher and evaluations that workers can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Climber:
    """Random integers near the best so far: what it asks depends on everything it was told."""

    def __init__(self, seed: int = 0, generations: int = 4, size: int = 6) -> None:
        self.rng = np.random.default_rng(seed)
        self.left, self.size = generations, size
        self.best, self.told = (float("inf"), 0), []  # type: ignore[var-annotated]

    def ask(self) -> list[dict[str, Any]]:
        self.left -= 1
        if self.left < 0:
            return []
        return [{"x": int(self.best[1] + self.rng.integers(-40, 40))} for _ in range(self.size)]

    def tell(self, genotypes: list[dict[str, Any]], results: list[dict[str, float]]) -> None:
        self.told.append([r["value"] for r in results])
        for genotype, result in zip(genotypes, results, strict=True):
            self.best = min(self.best, (result["value"], genotype["x"]))


@dataclass
class Bowl:
    """(x - 17)^2; counts its calls in a folder, may be slow, may die at its n-th call, may wait until so many processes
    have called."""

    folder: str
    pause: float = 0.0
    dies_at: int | None = None
    always: bool = False
    meet: int = 1
    log: list[int] = field(default_factory=list)

    def calls(self) -> int:
        return len(list(Path(self.folder).glob("call-*")))

    def callers(self) -> set[str]:
        """The processes that called."""
        return {path.name.split("-")[2] for path in Path(self.folder).glob("call-*")}

    def __call__(self, genotype: Mapping[str, Any]) -> dict[str, float]:
        n = self.calls()
        (Path(self.folder) / f"call-{n:04d}-{os.getpid()}-{time.monotonic_ns()}").write_text(str(genotype["x"]))
        if self.dies_at is not None and (n == self.dies_at or self.always):
            os.kill(os.getpid(), signal.SIGKILL)
        until = time.monotonic() + 20
        while len(self.callers()) < self.meet and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(self.pause)
        return {"value": float((genotype["x"] - 17) ** 2), "threads": float(torch.get_num_threads())}


def refuses(genotype: Mapping[str, Any]) -> dict[str, float]:
    """An evaluation with a mistake in it."""
    raise ValueError(f"cannot evaluate {genotype['x']}")


def strange(genotype: Mapping[str, Any]) -> dict[str, float]:
    """Not a number for odd genotypes."""
    return {"value": float("nan") if genotype["x"] % 2 else float(genotype["x"]), "nfe": 4.0}
