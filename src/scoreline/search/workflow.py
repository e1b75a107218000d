"""What every search with a report does: search, score the finalists again, report with noise that chose nothing.

All searchers of a run see one noise. Of the best of each, some finalists are scored again with noise of their own, so
that the winner is not merely the luckiest; what is reported of the winners and of the baselines was measured with
further seeds. Everything is on disk as it is finished; the same command goes on from there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from scoreline.core.errors import InputError
from scoreline.core.noise import derive
from scoreline.core.sampler import Sampler
from scoreline.evaluate.ledger import Ledger
from scoreline.evaluate.progress import progress
from scoreline.evaluate.specs import asked_labels
from scoreline.search.engine import Genotype, Searcher, genotype_key, parse_workers, search
from scoreline.search.objective import Objective

__all__ = ["FINALISTS", "Workflow", "running_best"]

FINALISTS = 5


class Workflow:
    """A search on a model, up to its report.

    Args:
        model_name: built-in name or path of a denoiser.
        out: folder; a stopped search in it goes on.
        evaluations: candidates of every searcher.
        workers: see :func:`scoreline.search.engine.search`.
        metric, data, features, count, noise, guidance, clip: see :class:`scoreline.search.objective.Objective`. The
            digits are searched on their training split and reported on their test split.
        report_count, report_seeds: images a seed, and seeds, of what is reported.
        labels: classes asked for in turn, as `0,1,7`, or `none`.
        seed: of all draws of the searches.
        quiet: no progress.

    Raises:
        InputError: something is misspelt or does not fit.
    """

    def __init__(
        self, model_name: str, out: str | Path, *, evaluations: int = 500, workers: int | str = 1, metric: str = "fd",
        data: str | None = None, features: str = "auto", count: int = 500, report_count: int = 1000,
        report_seeds: Sequence[int] = (0, 1, 2), noise: str = "fixed", guidance: float | None = None,
        clip: bool = False, labels: str | None = None, seed: int = 0, quiet: bool = False,
    ) -> None:  # fmt: skip
        for thing, value, least in (("evaluations", evaluations, 1), ("report_count", report_count, 2)):
            if value < least:
                raise InputError(thing, value, f"must be {least} or more")
        self.folder, self.evaluations, self.workers = Path(out), evaluations, parse_workers(workers)
        self.report_count, self.report_seeds, self.seed, self.quiet = report_count, list(report_seeds), seed, quiet
        searched = derive(seed, "search")
        bad = [s for s in self.report_seeds if s < 0 or s == searched]
        if bad or not self.report_seeds or len(set(self.report_seeds)) < len(self.report_seeds):
            raise InputError("report_seeds", self.report_seeds, "give distinct numbers from 0 on")
        self.objective = Objective(
            model_name, _unset, metric=metric, data=data, features=features, count=count, noise_seed=searched,
            noise=noise, guidance=guidance, clip=clip,  # type: ignore[arg-type]
        )  # fmt: skip
        self.model = self.objective.denoiser
        self.objective.labels = asked_labels(labels, self.model)
        card = getattr(self.objective.bare, "header", {}).get("card", {})
        digits = metric != "rmse" and (data or card.get("data")) == "digits"
        self.objective.split = "train" if digits else None
        self._judge_split = "test" if digits else None

    def at(self, folder: str | Path) -> Self:
        """The same search in another folder."""
        other = copy.copy(self)
        other.folder, other.objective = Path(folder), copy.copy(self.objective)
        return other

    def settings(self) -> dict[str, Any]:
        """What makes this search the one it is, as plain values."""
        own = {"evaluations": self.evaluations, "seed": self.seed, "report_count": self.report_count}
        return {**own, "report_seeds": self.report_seeds, **self.objective.job()}

    def run(
        self,
        sampler_of: Any,
        searchers: Mapping[str, Searcher],
        baselines: Mapping[str, Genotype],
        settings: Mapping[str, Any],
    ) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
        """Search with each searcher and report.

        Args:
            sampler_of: genotype -> sampler, picklable.
            searchers: by name.
            baselines: what stands beside them, by name.
            settings: further facts that make the search the one it is.

        Returns:
            The evaluations of every searcher as :func:`scoreline.search.engine.search` gives them, and the rows of the
            report: the baselines, then the winner of every searcher, {"name", "genotype", "values", "mean", "low",
            "high", "nfe", "macs", "seconds"}.

        Raises:
            InputError: a baseline does not fit the model, or no candidate of a searcher made finite images.
            ArtefactError: the folder holds another search.
        """
        self.objective.sampler_of = sampler_of
        for genotype in baselines.values():
            self.objective.check(genotype)
        job = {**settings, **self.settings()}
        ledger = Ledger(self.folder / "report.jsonl", job)
        history: dict[str, list[dict[str, Any]]] = {}
        for name, searcher in searchers.items():
            with progress(f"search, {name}", self.evaluations, quiet=self.quiet) as advance:
                history[name] = search(
                    searcher, self.objective, ledger=self.folder / f"{name.replace(' ', '-')}.jsonl", job=job,
                    workers=self.workers, advance=advance,
                )  # fmt: skip
        judge = self.objective.but(split=self._judge_split)
        finalists = {name: _best(rows, name) for name, rows in history.items()}
        arms = dict(baselines)
        total = sum(map(len, finalists.values())) + len(arms) + len(searchers)
        with progress("search, report", total, quiet=self.quiet) as advance:

            def known(kind: str, genotype: Genotype, seeds: Sequence[int]) -> dict[str, Any]:
                key = f"{kind} {genotype_key(genotype)}"
                if key not in ledger:
                    ledger.add(key, **judge.report([genotype], seeds, self.report_count)[0])
                advance(1, kind)
                return {name: value for name, value in ledger[key].items() if name != "key"}

            for name, members in finalists.items():
                again = [known("finalist", one, [derive(self.seed, "finalists")])["mean"] for one in members]
                arms[name] = members[int(np.argmin(again))]
            rows = [
                {"name": name, **known("report", genotype, self.report_seeds), "genotype": genotype}
                for name, genotype in arms.items()
            ]
        return history, rows


def _unset(genotype: Genotype) -> Sampler:
    raise InputError("sampler_of", None, "is not set yet")


def _best(rows: Sequence[dict[str, Any]], name: str) -> list[Genotype]:
    """The finalists of a searcher: its best different genotypes, best first."""
    finite = [row for row in rows if math.isfinite(row["result"]["value"])]
    if not finite:
        raise InputError("space", name, "not one candidate made finite images; try --clip, or a larger --nfe")
    ranked = sorted(finite, key=lambda row: row["result"]["value"])
    return list({genotype_key(row["genotype"]): row["genotype"] for row in ranked}.values())[:FINALISTS]


def running_best(rows: Sequence[dict[str, Any]]) -> list[float | None]:
    """The best value so far after each evaluation; None while there is none."""
    best = np.minimum.accumulate([row["result"]["value"] for row in rows])
    return [float(value) if np.isfinite(value) else None for value in best]
