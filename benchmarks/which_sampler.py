"""The tables and the plot of the page "Which sampler should I use", from what bench_solvers.py measured.

python benchmarks/bench_solvers.py --images 100 --json benchmarks/results/solvers.json
python benchmarks/which_sampler.py [--record FILE] [--page FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import markdown, placed, save

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
SIDES = {"ours": "", "theirs": " (diffusers)"}
# What the plot shows: few enough lines to be told apart.
DRAWN = ("ddim", "heun", "dpm-solver++2m", "unipc", "deis:family=log-rho:degree=2", "dpm-solver-v3", "pndm")


def errors(model: Mapping[str, Any], budgets: Sequence[int]) -> str:
    """A row a sampler: median error at every budget, the best in bold; those that never ran are left out."""
    found = {
        name + mark: [at[str(nfe)].get("rmse") for nfe in budgets]
        for side, mark in SIDES.items()
        for name, at in model[side].items()
    }
    found = {name: row for name, row in found.items() if any(value is not None for value in row)}
    best = [min((row[i] for row in found.values() if row[i] is not None), default=None) for i in range(len(budgets))]
    rows = []
    for name, row in sorted(found.items(), key=lambda item: item[1][-1] or float("inf")):
        cells = ["-" if v is None else f"**{v:.2g}**" if v == b else f"{v:.2g}" for v, b in zip(row, best)]
        rows.append([name if " (diffusers)" in name else f"`{name}`", *cells])
    return markdown(["sampler", *(f"NFE {nfe}" for nfe in budgets)], rows)


def ratios(models: Mapping[str, Any], budgets: Sequence[int]) -> str:
    """Our best against theirs, a row a model and budget."""
    rows = []
    for name, model in models.items():
        for nfe in budgets:
            row = model["ratios"].get(str(nfe))
            if row is not None:
                rows.append([name, nfe, f"`{row['ours']}`", row["theirs"], f"{row['ratio']:.2f}"])
    return markdown(["model", "NFE", "our best", "diffusers' best", "ratio of errors"], rows)


def searched(models: Mapping[str, Any], budgets: Sequence[int]) -> str:
    """What was searched for a model and a budget, beside the best of the others there."""
    rows = []
    for name, model in models.items():
        for plan, at in model["apart"].items():
            for nfe in budgets:
                value = at[str(nfe)].get("rmse")
                if value is not None:
                    best = [min(v[str(nfe)].get("rmse", float("inf")) for v in model[s].values()) for s in SIDES]
                    rows.append([name, nfe, f"`{plan}`", *(f"{v:.2g}" for v in (value, *best))])
    return markdown(["model", "NFE", "searched", "its error", "our best unsearched", "diffusers' best"], rows)


def frechet(model: Mapping[str, Any], budgets: Sequence[int]) -> str:
    """Frechet distances with intervals of the samplers that the plot shows."""
    rows = []
    for name in DRAWN:
        cells = []
        for nfe in budgets:
            at = model["ours"].get(name, {}).get(str(nfe), {})
            low, high = at.get("interval", (0, 0))
            cells.append(f"{at['frechet']:.2g} [{max(low, 0):.2g}, {high:.2g}]" if "frechet" in at else "-")
        rows.append([f"`{name}`", *cells])
    return markdown(["sampler", *(f"NFE {nfe}" for nfe in budgets)], rows)


def plot(record: Mapping[str, Any], file: Path) -> None:
    """Median error against evaluations, a panel a model; the band holds half of the images."""
    import matplotlib.pyplot as plt

    models, budgets = record["models"], record["budgets"]
    figure, axes = plt.subplots(1, len(models), figsize=(4.2 * len(models), 3.8), squeeze=False, layout="constrained")
    for ax, (name, model) in zip(axes[0], models.items()):
        for colour, arm in enumerate(DRAWN):
            at = model["ours"].get(arm, {})
            known = [(nfe, at[str(nfe)]) for nfe in budgets if "rmse" in at.get(str(nfe), {})]
            if not known:
                continue
            x = [nfe for nfe, _ in known]
            ax.plot(x, [v["rmse"] for _, v in known], "o-", color=f"C{colour}", markersize=4, linewidth=1.5, label=arm)
            low, high = zip(*(v["quartiles"] for _, v in known))
            ax.fill_between(x, low, high, color=f"C{colour}", alpha=0.1, linewidth=0)
        ax.set(title=name, yscale="log", xlabel="network evaluations per image", xticks=budgets)
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("median RMSE to the converged ODE")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--record", type=Path, default=HERE / "results/solvers.json", metavar="FILE")
    made.add_argument("--page", type=Path, default=DOCS / "which-sampler.md", metavar="FILE")
    made.add_argument("--plot", type=Path, default=DOCS / "_static/which-sampler.png", metavar="FILE")
    chosen = made.parse_args(argv)
    record = json.loads(chosen.record.read_text(encoding="utf-8"))
    models, budgets = record["models"], record["budgets"]
    texts = {f"errors-{name}": errors(model, budgets) for name, model in models.items()}
    texts |= {"ratios": ratios(models, budgets), "frechet": frechet(models["digits"], budgets)}
    texts["searched"] = searched(models, budgets)
    save(chosen.page, placed(chosen.page.read_text(encoding="utf-8"), "solvers", texts))
    plot(record, chosen.plot)


if __name__ == "__main__":
    main()
