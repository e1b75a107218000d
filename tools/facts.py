"""Gather what is true about the 48 systems into `src/scoreline/facts.json`, or check that it still is.

    python tools/facts.py gather RECORD     write the file (`make facts`)
    python tools/facts.py check RECORD      compare the file with the tree (`make test`)

RECORD is what `pytest --facts RECORD` wrote. A system is in one of four states:
    works        every numbered check has a passing test, none skipped; the stored claim covers all its arms and three
                 seeds on the present source; the docs page stands, names import paths that exist, and its command ran
    stale        the same, but the source or the claim's rule changed after the claim was measured
    incomplete   something is there; `missing` says what is not
    planned      nothing is there yet
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from scoreline.core.errors import ArtefactError, ScorelineError  # noqa: E402
from scoreline.core.files import read_json, write_json  # noqa: E402
from scoreline.core.systems import FACTS, METRIC_CHECKS, SYSTEMS, System, source_hash, sources  # noqa: E402

SEEDS = 3


def checked(record: dict[str, Any], system: int, count: int) -> dict[str, Any]:
    """How the numbered checks of a system stand.

    Args:
        record: {test id: {"marks": [...], "outcome": "passed" | "failed" | "skipped"}}.
        system: its number, 0 for the shared metrics.
        count: how many checks it has.

    Returns:
        {"of": count, "passed": numbers with a test, all of whose tests passed; "tests": {number: test functions}}.
    """
    functions: dict[int, set[str]] = {}
    broken: set[int] = set()
    for test, entry in record.items():
        for kind, *where in entry["marks"]:
            if kind != "check" or where[0] != system:
                continue
            number = where[1]
            if not 1 <= number <= count:
                raise ArtefactError(test, None, f"is marked as check {number} of system {system}, which has {count}")
            functions.setdefault(number, set()).add(test.split("[")[0])
            if entry["outcome"] != "passed":
                broken.add(number)
    passed = sorted(set(functions) - broken)
    return {"of": count, "passed": passed, "tests": {str(n): sorted(functions[n]) for n in sorted(functions)}}


def page_facts(text: str) -> dict[str, Any]:
    """The import paths and the command of a docs page.

    Import paths are the names in backticks that start with `scoreline.`, under the heading "Formulas"; the command is
    the first line after `$ ` in the first `console` block. `% ci: ...` under that block holds further options, with
    which the tests run it in seconds.
    """
    section = re.search(r"^## Formulas\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    paths = re.findall(r"`(scoreline(?:\.\w+)+)`", section.group(1)) if section else []
    block = re.search(r"^```console\n(.*?)^```\n+(?:% ci: ([^\n]*))?", text, re.M | re.S)
    lines = block.group(1).replace("\\\n", " ").splitlines() if block else []
    command = next((" ".join(line[2:].split()) for line in lines if line.startswith("$ ")), None)
    return {"paths": sorted(set(paths)), "command": command, "ci": block.group(2) if block else None}


def resolves(path: str) -> bool:
    """Whether an import path, of a module or of something in it, leads somewhere."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def claim_facts(row: System, folder: Path) -> tuple[dict[str, Any] | None, list[str], bool]:
    """The stored claim of a system, what it lacks, and whether it was measured on the present source.

    A result stores `arms`, `seeds`, `runs` ([{"arm": ..., "seed": ...}, ...]), `verdict`, and two fingerprints made by
    `scoreline.core.systems.source_hash`: `source_hash` of the system's modules and `rule_hash` of its claim.
    """
    file = folder / f"{row.id}.json"
    if not file.exists():
        return None, ["claim: not measured"], True
    result = read_json(file)
    lacking = [key for key in ("arms", "seeds", "runs", "verdict", "source_hash", "rule_hash") if key not in result]
    if lacking:
        raise ArtefactError(str(file), None, f"lacks {', '.join(lacking)}")
    arms, ran = list(result["arms"]), [(run["arm"], run["seed"]) for run in result["runs"]]
    missing = []
    for arm in arms or [None]:
        seeds = {seed for name, seed in ran if name == arm}
        if len(seeds) < SEEDS:
            missing.append(f"claim: arm {arm!r} has {len(seeds)} of {SEEDS} seeds")
    fresh = result["source_hash"] == source_hash([row.module, *row.parts])
    fresh = fresh and result["rule_hash"] == source_hash([row.claim])
    return {"verdict": result["verdict"], "arms": arms, "seeds": sorted({seed for _, seed in ran})}, missing, fresh


def page_of(row: System, record: dict[str, Any], root: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The docs page of a system and what it lacks."""
    file = root / row.page
    if not file.exists():
        return None, ["docs: no page"]
    found = page_facts(file.read_text(encoding="utf-8"))
    missing = [f"docs: `{path}` does not exist" for path in found["paths"] if not resolves(path)]
    if not any(path.startswith(f"{row.module}.") for path in found["paths"]):
        missing.append(f"docs: names no function of {row.module} under Formulas")
    if found["command"] is None:
        missing.append("docs: no command")
    else:
        ended = [entry["outcome"] for entry in record.values() if ["page", int(row.id)] in entry["marks"]]
        if not ended or set(ended) != {"passed"}:
            missing.append("docs: the command did not run in the tests")
    return {"page": row.page, **found}, missing


def facts_of(row: System, record: dict[str, Any], root: Path) -> dict[str, Any]:
    """The record of one system."""
    module = bool(sources(row.module))
    checks = checked(record, int(row.id), row.checks)
    claim, claim_missing, fresh = claim_facts(row, root / "src/scoreline/claims/results")
    page, page_missing = page_of(row, record, root)
    missing = [] if module else [f"module: no {row.module}"]
    untested = [n for n in range(1, row.checks + 1) if n not in checks["passed"]]
    if untested:
        missing.append(f"checks: no passing test of {', '.join(map(str, untested))}")
    missing += claim_missing + page_missing
    if not (module or checks["tests"] or claim or page):
        state = "planned"
    elif missing:
        state = "incomplete"
    else:
        state = "works" if fresh else "stale"
    if not fresh:
        missing.append("claim: measured on another state of the source")
    return {
        "id": row.id,
        "name": row.name,
        "paper": row.paper,
        "module": row.module,
        "tests": sum(any(m[0] == "check" and m[1] == int(row.id) for m in e["marks"]) for e in record.values()),
        "checks": checks,
        "claim": claim,
        "page": page,
        "state": state,
        "missing": missing,
    }


def gather(record: dict[str, Any], root: Path = ROOT) -> dict[str, Any]:
    """All facts, from a record of tests and the tree at `root`."""
    return {
        "metrics": checked(record, 0, METRIC_CHECKS),
        "systems": [facts_of(row, record, root) for row in SYSTEMS],
    }


def differences(stored: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """In words, what stands in the file and is no longer so."""
    out = [] if stored.get("metrics") == found["metrics"] else ["shared metrics: checks"]
    before = {record["id"]: record for record in stored.get("systems", [])}
    for record in found["systems"]:
        old = before.pop(record["id"], {})
        changed = [key for key in record if old.get(key) != record[key]]
        if changed or set(old) - set(record):
            state = f" ({old.get('state')} -> {record['state']})" if old.get("state") != record["state"] else ""
            out.append(f"{record['id']} {record['name']}: {', '.join(changed) or 'fields'}{state}")
    return out + [f"{id}: no such system" for id in before]


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["gather", "check"])
    parser.add_argument("record", type=Path, help="what `pytest --facts` wrote")
    given = parser.parse_args(None if arguments is None else list(arguments))
    try:
        found = gather(read_json(given.record))
        if given.action == "gather":
            write_json(FACTS, found)
            states = [record["state"] for record in found["systems"]]
            print(", ".join(f"{states.count(s)} {s}" for s in ("works", "stale", "incomplete", "planned")))
            return 0
        changed = differences(read_json(FACTS) if FACTS.exists() else {}, found)
    except ScorelineError as error:
        print(f"facts: {error}", file=sys.stderr)
        return error.exit_code
    if changed:
        print(f"{FACTS.relative_to(ROOT)} differs from the tree:", *changed, sep="\n  ", file=sys.stderr)
        print("Run `make facts`, read the difference, and commit it.", file=sys.stderr)
        return 1
    print("facts.json agrees with the tree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
