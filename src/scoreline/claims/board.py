"""Which claims there are, what was measured of each, and how a result reads."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoreline.claims.engine import RESULTS, Claim, stored_result
from scoreline.core.errors import InputError
from scoreline.core.systems import SYSTEMS, source_hash, sources, system

__all__ = ["board", "find_claim", "result_page", "written"]


def written() -> list[str]:
    """Numbers of the systems whose claim is written."""
    return [row.id for row in SYSTEMS if sources(row.claim)]


def find_claim(id: str | int) -> Claim:
    """The claim of a system, by number or short name.

    Raises:
        InputError: there is no such system, or its claim is not written yet.
    """
    row = system(id)
    if not sources(row.claim):
        raise InputError("claim", row.id, f"is not written yet; known: {', '.join(written())}")
    return importlib.import_module(row.claim).CLAIM


def board(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """One record a written claim: id, name, paper, verdict (None before it is measured), arms, seeds, scale, stale.

    `stale` says that the source of the system or the rule changed after the claim was measured.
    """
    records = []
    for row in SYSTEMS:
        result = stored_result(row.id, folder)
        if result is None and not sources(row.claim):
            continue
        record: dict[str, Any] = {"id": row.id, "name": row.name, "paper": row.paper, "verdict": None}
        if result is not None:
            now = {"source_hash": source_hash([row.module, *row.parts]), "rule_hash": source_hash([row.claim])}
            record |= {key: result[key] for key in ("verdict", "scale", "reasons", "finished")}
            record |= {"arms": len(result["arms"]), "seeds": len(result["seeds"])}
            record["stale"] = any(result[key] != value for key, value in now.items())
        records.append(record)
    return records


def result_page(result: Mapping[str, Any]) -> str:
    """A result as Markdown, for the page of its system."""
    words = {True: "yes", False: "no", None: "cannot tell"}
    machine = result["machine"]
    lines = [f"**{result['verdict'].capitalize()}.** {result['statement']}", ""]
    lines += [
        f"Measured with `{result['command'] or 'scoreline claims ' + result['id']}` "
        f"(scale {result['scale']}, {len(result['seeds'])} seeds, {result['finished'][:10]}, "
        f"{machine['processor']}, threads: {machine['threads']}, torch {machine['torch']}).",
        "",
        "| what the paper promises | seen | numbers |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {part['says']} | {words[part['holds']]} | {part['seen']} |" for part in result["parts"]]
    lines += ["", *(f"- {text}" for text in result["findings"])]
    columns = list(dict.fromkeys(name for arm in result["summary"].values() for name in arm))
    lines += ["", "Mean and standard deviation over seeds:", ""]
    lines += [f"| arm | {' | '.join(name.replace('_', ' ') for name in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for arm, numbers in result["summary"].items():
        cells = [_cell(numbers.get(name)) for name in columns]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    if result["shrunk"]:
        lines += ["", "Made smaller than the paper:", "", *(f"- {text}" for text in result["shrunk"])]
    return "\n".join(lines) + "\n"


def _cell(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "–"
    return f"{spread['mean']:.4g}" + (f" ± {spread['std']:.2g}" if spread["std"] else "")
