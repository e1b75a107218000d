"""The pages of the documentation that are made from facts.json: the list of systems and the claims board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scoreline.core.files import atomic_path
from scoreline.core.systems import SYSTEMS, facts

STATES = {
    "works": "every check is tested, the claim is measured on the present source, the page's command runs in the tests",
    "stale": "the same, but the source changed after the claim was measured",
    "incomplete": "something is there; what is not is named",
    "planned": "nothing is there yet",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def named(record: dict[str, Any], to_root: str = "") -> str:
    """The name of a system, linked to its page where there is one."""
    page = record["page"]
    return f"[{record['name']}]({to_root}{page['page'].removeprefix('docs/')})" if page else record["name"]


def paper(record: dict[str, Any]) -> str:
    number = record["paper"].removeprefix("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number})"


def systems_page(records: list[dict[str, Any]]) -> str:
    """docs/systems/index.md."""
    counted = [f"{sum(r['state'] == s for r in records)} {s}" for s in STATES]
    meaning = "\n".join(f"- **{state}**: {text}" for state, text in STATES.items())
    rows = [[r["id"], named(r, "../"), r["state"], paper(r), f"`{inside(r)}`", checks(r), verdict(r)] for r in records]
    head = ["id", "system", "state", "arXiv", "module in scoreline", "checks", "claim"]
    return (
        f"# The 48 systems\n\n{', '.join(counted)}. The same list: `scoreline systems`, with `--json` for programs.\n\n"
        f"{meaning}\n\n{table(head, rows)}\n\n```{{toctree}}\n:hidden:\n:glob:\n\n[0-9]*\n```\n"
    )


def inside(record: dict[str, Any]) -> str:
    """Where in scoreline the module is."""
    return record["module"].removeprefix("scoreline.")


def checks(record: dict[str, Any]) -> str:
    return f"{len(record['checks']['passed'])} of {record['checks']['of']}"


def verdict(record: dict[str, Any]) -> str:
    return record["claim"]["verdict"] if record["claim"] else "–"


def claims_page(records: list[dict[str, Any]]) -> str:
    """docs/claims.md."""
    rows = [
        [r["id"], named(r), r["claim"]["verdict"], str(len(r["claim"]["arms"])), str(len(r["claim"]["seeds"])), age(r)]
        for r in records
        if r["claim"]
    ]
    board = table(["id", "system", "verdict", "arms", "seeds", "source"], rows) if rows else "No claim is measured yet."
    return (
        "# Claims\n\nWhat the papers promise, measured again, small but honestly: at least three seeds, equal budgets, "
        "and a verdict rule that was written down before the result. A claim that does not hold is shown as such.\n\n"
        f"{board}\n"
    )


def age(record: dict[str, Any]) -> str:
    return (
        "changed since" if any("another state of the source" in reason for reason in record["missing"]) else "present"
    )


def claim_section(text: str, result: dict[str, Any] | None) -> str:
    """A system's page with the numbers of the stored result under its last heading, "Measured"."""
    from scoreline.claims.board import result_page

    head = text.partition("\n## Measured\n")[0].rstrip("\n")
    return f"{head}\n\n## Measured\n\n{result_page(result)}" if result else f"{head}\n"


def measured_pages(docs: Path) -> dict[str, str]:
    """The pages of systems whose claim is stored, as they should be."""
    from scoreline.claims.engine import stored_result

    pages = {}
    for row in SYSTEMS:
        page, result = docs.parent / row.page, stored_result(row.id)
        if result is not None and page.exists():
            pages[row.page.removeprefix("docs/")] = claim_section(page.read_text(encoding="utf-8"), result)
    return pages


def write(docs: Path) -> None:
    """Write the generated pages, and the claims on the systems' own; one that would not change is left alone."""
    records = facts()["systems"]
    made = {"systems/index.md": systems_page(records), "claims.md": claims_page(records), **measured_pages(docs)}
    for name, text in made.items():
        page = docs / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            with atomic_path(page) as temporary:
                temporary.write_text(text, encoding="utf-8")
