"""What a comparison found, in plain sentences that say no more than its numbers do.

A sampler is called best at a budget by its mean; every other one whose interval over seeds overlaps is named or counted
beside it, and where a single seed leaves no interval, that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scoreline.report.numbers import finite, human_count, human_number

__all__ = ["Verdict", "answer", "blur_warning", "interval", "main_score", "marks", "mean", "verdicts", "TOLERANCE"]

TOLERANCE = 0.1
"""An arm is "as good as" the converged ODE when its score lies within this share of that one's."""

SMALL = 8
"""Pictures of at most this side reward blur in Frechet distances, as measured on digits."""


@dataclass(frozen=True)
class Verdict:
    """Who is best at one budget by one score.

    Attributes:
        budget: network evaluations allowed per image.
        best: index of the arm with the best mean.
        tied: indices of the arms of this budget whose interval overlaps with the best one's, or whose mean equals it.
    """

    budget: int
    best: int
    tied: tuple[int, ...]


def mean(arm: dict[str, Any], score: str) -> float | None:
    """The mean of a score over seeds, or None when it was not measured or is not finite."""
    return finite((arm["scores"].get(score) or {}).get("mean"))


def _values(arm: dict[str, Any], score: str) -> list[Any]:
    return (arm["scores"].get(score) or {}).get("values") or []


def interval(arm: dict[str, Any], score: str) -> tuple[float, float] | None:
    """The interval of a score over seeds, or None when there is none (a single seed, a missing value)."""
    found = arm["scores"].get(score) or {}
    low, high = finite(found.get("low")), finite(found.get("high"))
    seeds = [value for value in found.get("values", ()) if finite(value) is not None]
    return None if low is None or high is None or len(seeds) < 2 or mean(arm, score) is None else (low, high)


def verdicts(results: dict[str, Any], score: str) -> list[Verdict]:
    """Who is best at each budget.

    Args:
        results: what `scoreline compare` stores.
        score: name of one of its scores.

    Returns:
        One verdict a budget, rising; budgets without a finite score are left out.
    """
    arms = results["arms"]
    sign = -1.0 if results["scores"][score]["higher_is_better"] else 1.0
    found = []
    for budget in sorted({arm["budget"] for arm in arms}):
        means = {i: m for i, arm in enumerate(arms) if arm["budget"] == budget and (m := mean(arm, score)) is not None}
        if means:
            best = min(means, key=lambda i: sign * means[i])
            tied = tuple(i for i in means if i != best and _overlap(arms[i], arms[best], score))
            found.append(Verdict(budget, best, tied))
    return found


def marks(results: dict[str, Any]) -> dict[tuple[str, int], str]:
    """(score, index of an arm) -> "best" at its budget, or "tied" with it; an arm alone at its budget beats nobody."""
    arms, found = results["arms"], {}
    for score in results["scores"]:
        for verdict in verdicts(results, score):
            if sum(arm["budget"] == verdict.budget and mean(arm, score) is not None for arm in arms) > 1:
                found[score, verdict.best] = "best"
                found.update({(score, i): "tied" for i in verdict.tied})
    return found


def _overlap(one: dict[str, Any], other: dict[str, Any], score: str) -> bool:
    first, second = interval(one, score), interval(other, score)
    if first is None or second is None:
        return mean(one, score) == mean(other, score)
    return first[0] <= second[1] and second[0] <= first[1]


def main_score(results: dict[str, Any]) -> str | None:
    """The score that a comparison is judged by first: the distance to the converged ODE where it was measured."""
    return "ode-rmse" if "ode-rmse" in results["scores"] else next(iter(results["scores"]), None)


def answer(results: dict[str, Any], names: Sequence[str]) -> list[str]:
    """The answer of a comparison: one sentence that says who is best, then what it costs to be as good as converged.

    Args:
        results: what `scoreline compare` stores.
        names: name of each arm's curve, as :func:`scoreline.report.series_names` gives them.

    Returns:
        At least one sentence; the first stands alone as the headline.
    """
    score = main_score(results)
    if score is None:
        return ["Nothing was scored; the table holds what sampling cost."]
    found = verdicts(results, score)
    if not found:
        return [f"No sampler reached a finite value of {_inside(results['scores'][score]['title'])}."]
    if len(set(names)) == 1:
        sentences = [_alone(results, score, found, names[0])]
    else:
        sentences = [_headline(results, score, found, names)]
    sentences += [sentence for other in results["scores"] if (sentence := _cheapest(results, other, names)) is not None]
    unmeasured = [name for arm, name in zip(results["arms"], names) if not _values(arm, score)]
    # A sampler that draws noise has no one image at the end of the ODE to be compared with.
    apart = list(dict.fromkeys(unmeasured)) if score == "ode-rmse" else []
    if apart:
        verb = "draws noise and has" if len(apart) == 1 else "draw noise and have"
        sentences.append(f"{_listed(apart)} {verb} no such distance: the Fréchet distances judge alone.")
    failed = [
        f"{name} with {arm['budget']}"
        for arm, name in zip(results["arms"], names)
        if mean(arm, score) is None and name not in apart
    ]
    if failed:
        shown = _listed(failed[:5] + ([f"{len(failed) - 5} others"] if len(failed) > 5 else []))
        sentences.append(f"No finite {_title(results, score)} came from {shown}.")
    if len(results.get("seeds", ())) == 1:
        sentences.append("Only one seed was run, so there are no intervals, and small differences may be chance.")
    return sentences


def _headline(results: dict[str, Any], score: str, found: list[Verdict], names: Sequence[str]) -> str:
    verb = "comes closest to the converged ODE" if score == "ode-rmse" else f"has the best {_title(results, score)}"
    groups: list[tuple[str, list[Verdict]]] = []
    for verdict in found:
        if groups and groups[-1][0] == names[verdict.best]:
            groups[-1][1].append(verdict)
        else:
            groups.append((names[verdict.best], [verdict]))
    if len(groups) == 1 and len(found) > 1:
        budgets = _listed([verdict.budget for verdict in found])
        return f"At every budget ({budgets} network evaluations per image), {groups[0][0]} {verb}{_ties(found, names)}."
    parts: list[str] = []
    for name, group in groups:
        budgets, ties = _listed([verdict.budget for verdict in group]), _ties(group, names)
        if parts:
            parts.append(f"with {budgets}, {name} does{ties}")
        else:
            unit = "network evaluation" if budgets == "1" else "network evaluations"
            parts.append(f"With at most {budgets} {unit} per image, {name} {verb}{ties}")
    return "; ".join(parts) + "."


def _ties(group: Sequence[Verdict], names: Sequence[str]) -> str:
    """Whose intervals overlap with the best one's, said once where it is the same at every budget of the group."""
    others = {verdict.budget: tuple(sorted(names[i] for i in verdict.tied)) for verdict in group}
    if not any(others.values()):
        return ""
    if len(set(others.values())) == 1:
        return f" (its interval overlaps with {_those(group[0].tied, names)})"
    said: dict[str, list[int]] = {}
    for verdict in group:
        if verdict.tied:
            said.setdefault(_those(verdict.tied, names), []).append(verdict.budget)
    return f" (its interval overlaps {'; '.join(f'at {_listed(at)} with {text}' for text, at in said.items())})"


def _those(tied: Sequence[int], names: Sequence[str]) -> str:
    if len(tied) > 3:
        return f"those of {len(tied)} others"
    return f"{'that' if len(tied) == 1 else 'those'} of {_listed(sorted(names[i] for i in tied))}"


def _alone(results: dict[str, Any], score: str, found: list[Verdict], name: str) -> str:
    first, last = results["arms"][found[0].best], results["arms"][found[-1].best]
    title = _inside(results["scores"][score]["title"])
    if len(found) == 1:
        return f"{name} with {human_count(first['nfe'])} network evaluations per image: {title} {_value(first, score)}."
    return (
        f"{name} was measured alone: {title} goes from {_value(first, score)} with {human_count(first['nfe'])} network "
        f"evaluations per image to {_value(last, score)} with {human_count(last['nfe'])}."
    )


def _cheapest(results: dict[str, Any], score: str, names: Sequence[str]) -> str | None:
    """How many evaluations it takes to come within the tolerance of the converged ODE's own score."""
    about, arms = results["scores"][score], results["arms"]
    converged = finite(about.get("converged"))
    means = {i: m for i, arm in enumerate(arms) if (m := mean(arm, score)) is not None and finite(arm["nfe"])}
    if not converged or not means:
        return None
    band = TOLERANCE * abs(converged)
    title, goal = _title(results, score), f"within {TOLERANCE:.0%} of the converged ODE's {human_number(converged)}"
    near = [i for i in means if abs(means[i] - converged) <= band]
    if not near:
        i = min(means, key=lambda i: abs(means[i] - converged))
        spent = f"{human_count(arms[i]['nfe'])} evaluations"
        return (
            f"By {title}, no sampler comes {goal}; the nearest is {names[i]} with {spent} ({_value(arms[i], score)})."
        )
    least = min(arms[i]["nfe"] for i in near)
    chosen = min((i for i in near if arms[i]["nfe"] == least), key=lambda i: abs(means[i] - converged))
    sentence = f"By {title}, {names[chosen]} with {human_count(least)} evaluations ({_value(arms[chosen], score)}) "
    sentence += f"is the cheapest {goal}"
    others = [names[i] for i in near if arms[i]["nfe"] == least and i != chosen]
    if others:
        sentence += f", and {_listed(others) if len(others) <= 3 else f'{len(others)} others'} at the same cost too"
    ends = interval(arms[chosen], score)
    if ends and (ends[0] < converged - band or ends[1] > converged + band):
        sentence += f"; the interval of {names[chosen]} reaches beyond that band"
    return sentence + "."


def blur_warning(results: dict[str, Any]) -> str | None:
    """The sentence that keeps a reader from judging solvers by Frechet distance alone, where one was measured."""
    frechet = [score for score in results["scores"] if score.startswith(("fid", "fd-"))]
    if not frechet or "ode-rmse" not in results["scores"]:
        return None
    height, width = (results["model"].get("shape") or [0, 0, 0])[-2:]
    if 0 < max(height, width) <= SMALL:
        return (
            f"Beware: at {height}×{width} pixels Fréchet distances reward blur, so solvers are judged first by their "
            "distance to the converged ODE; a Fréchet distance below that of the converged ODE is no improvement."
        )
    return (
        "A Fréchet distance compares sets of pictures and can favour a solver's error, so solvers are judged first by "
        "their distance to the converged ODE."
    )


def _value(arm: dict[str, Any], score: str) -> str:
    ends = interval(arm, score)
    shown = human_number(mean(arm, score))
    return f"{shown}, {human_number(ends[0])} to {human_number(ends[1])} over seeds" if ends else shown


def _title(results: dict[str, Any], score: str) -> str:
    return _inside(results["scores"][score]["title"])


def _inside(title: str) -> str:
    """A title inside a sentence: "Distance to ..." starts small there, "FID@digits" does not."""
    return title[:1].lower() + title[1:] if title[1:2].islower() else title


def _listed(items: Sequence[object]) -> str:
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
