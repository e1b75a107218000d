"""`scoreline imbalance LABELS [SCORES]`: metrics of two classes under imbalance and annotation errors."""

from __future__ import annotations

from typing import Any, Literal

TAKES_COMMAND = True
EXAMPLE = "scoreline imbalance binormal --false-rate 0.001 --out imbalance"


def run(
    labels: str,
    scores: str | None = None,
    /,
    criterion: str = "f1-then-g-mean",
    threshold: float | None = None,
    miss_rate: float = 0.0,
    false_rate: float = 0.0,
    at_prevalence: float | None = None,
    positive: str | None = None,
    label_column: str | None = None,
    score_column: str | None = None,
    bootstrap: Literal["stratified", "plain"] = "stratified",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    out: str | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Every metric of your labels and scores with an interval, thresholds by every criterion, and which metrics can be
    trusted at this prevalence and this label noise.

    Args:
        labels: a .csv, .npy or .npz file with labels and scores, or with labels alone; binormal draws an example of
            284,807 rows with 492 positives, and annotates it with the error rates given.
        scores: a file with the scores, where they are not in the first one; higher for the positive class.
        criterion: chooses the threshold: f1-then-g-mean, f1, mcc, g-mean, balanced-accuracy, kappa, accuracy or another
            metric
        threshold: predict positive when score >= this, instead.
        miss_rate: share of true positives that the annotator missed (e1), for corrected values.
        false_rate: share of true negatives that the annotator flagged (e0); 0.001 counts where positives are rare.
        at_prevalence: also the values at this share of positives, where rows were rebalanced.
        positive: the positive label as it stands in the file; nothing knows 0/1, false/true and -1/1.
        label_column: column or array of the labels, by name.
        score_column: column or array of the scores, by name.
        bootstrap: stratified keeps the number of positives in every resample, plain draws it too.
        resamples: of the bootstrap.
        level: nominal coverage of the intervals.
        seed: of the bootstrap, and of the example.
        out: folder for imbalance.json, metrics.csv, thresholds.csv and imbalance.png; nothing writes none.
    """
    from scoreline.core.errors import unknown_name
    from scoreline.evaluate.imbalance import examine, example, study
    from scoreline.metrics.threshold_choice import CRITERIA

    if criterion not in CRITERIA:
        raise unknown_name("criterion", criterion, CRITERIA)
    settings: dict[str, Any] = {
        "criterion": criterion, "threshold": threshold, "e1": miss_rate, "e0": false_rate,
        "at_prevalence": at_prevalence, "level": level, "resamples": resamples,
        "stratified": bootstrap == "stratified", "seed": seed,
    }  # fmt: skip
    if labels == "binormal" and scores is None:
        drawn = example(e1=miss_rate, e0=false_rate, seed=seed)
        result = {**examine(*drawn, **settings), "study": study()}
    else:
        from scoreline.data.tables import read_labelled_scores

        if "." not in labels and not _exists(labels):
            raise unknown_name("labels", labels, ["binormal", "a .csv, .npy or .npz file"])
        table = read_labelled_scores(
            labels, scores, label_column=label_column, score_column=score_column, positive=positive
        )
        result = examine(table.scores, table.labels, **settings)
        result["warnings"] = table.notes + result["warnings"]
    result = {"source": labels if scores is None else f"{labels} {scores}", "command": command, **result}
    result["files"] = []
    if out is not None:
        from scoreline.report.imbalance_report import write_imbalance

        result["files"] = [str(path) for path in write_imbalance(result, out)]
    return result


def _exists(path: str) -> bool:
    import os

    return os.path.exists(path)


def show(result: dict[str, Any]) -> None:
    import math

    from rich.table import Table
    from rich.text import Text

    from scoreline.cli.terminal import console
    from scoreline.report.numbers import human_number

    def number(value: float | None, digits: int = 4) -> str:
        return "" if value is None else "none" if value == math.inf else human_number(value, digits)

    def ends(pair: list[float] | None, digits: int = 4) -> str:
        return "" if pair is None else f"{number(pair[0], digits)} to {number(pair[1], digits)}"

    screen = console()
    cells, noise = result["cells"], result["noise"]
    share = f"{result['positives']:,} of {result['rows']:,} rows are annotated positive ({result['prevalence']:.3%})"
    screen.print(share, markup=False)
    if noise is not None:
        text = f"with {noise['miss_rate']:.3g} missed and {noise['false_rate']:.3g} flagged wrongly, "
        text += (
            f"{noise['true_prevalence']:.3%} are positive and {noise['alpha']:.1%} of the annotated positives are true"
        )
        screen.print(text, markup=False)
    by = "as given" if result["threshold_by"] == "given" else f"best by {result['threshold_by']}"
    text = f"threshold {number(result['threshold'])} ({by}): " + ", ".join(
        f"{k.upper()} {v:,}" for k, v in cells.items()
    )
    screen.print(text, markup=False)

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    columns = ["metric", "value", f"{result['level']:.0%} interval"]
    columns += ["corrected", "its interval"] if noise is not None else []
    columns += [f"at {result['at_prevalence']:.3g}"] if result["at_prevalence"] is not None else []
    columns += ["prevalence", "noise", "alarms", "misses"]
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if 0 < i < len(columns) - 4 else "left", no_wrap=True)
    kept = {"value": "value", "ranking": "ranking", "no": "-"}
    for m in result["metrics"]:
        row = [m["name"], number(m["value"]), ends(m["interval"])]
        row += [number(m["corrected"]), ends(m["corrected_interval"])] if noise is not None else []
        row += [number(m["at_prevalence"])] if result["at_prevalence"] is not None else []
        sees = [{True: "seen", False: "-", None: ""}[m[name]] for name in ("sees_false_alarms", "sees_misses")]
        noisy = kept[m["ranking_under_noise"]]
        trusted = m["name"] in result["trusted"]
        table.add_row(*map(Text, [*row, kept[m["other_prevalence"]], noisy, *sees]), style="bold" if trusted else "")
    screen.print()
    screen.print(table)
    text = "prevalence, noise: what stays of the metric when they change; "
    screen.print(text + "alarms, misses: whether it sees more of them here", markup=False)

    choices = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    intervals = any(c["threshold_interval"] is not None for c in result["choices"])
    titles = ["best by", "threshold", *(["its interval"] if intervals else []), "flagged"]
    for i, title in enumerate([*titles, "precision", "recall", "f1", "g-mean", "mcc"]):
        choices.add_column(title, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    for c in result["choices"]:
        shown = [c["criterion"], number(c["threshold"], 3)]
        shown += [ends(c["threshold_interval"], 3)] if intervals else []
        values = [number(c[name], 3) for name in ("precision", "recall", "f1", "g-mean", "mcc")]
        choices.add_row(*map(Text, [*shown, f"{c['predicted_positive']:,}", *values]))
    screen.print()
    screen.print(choices)
    screen.print()
    if result.get("study"):
        study = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        titles = ["chosen by, on annotated labels", "F1 lost", "at worst", "cost lost"]
        for i, title in enumerate(titles):
            study.add_column(title, justify="right" if i else "left", no_wrap=True)
        for row in result["study"]:
            study.add_row(Text(row["criterion"]), *(number(row[name]) for name in ("f1", "worst_f1", "cost")))
        text = (
            "over prevalences of 0.5 to 0.0001, 0 to 0.5 missed and 0 to 0.01 flagged, six classifiers, expected cells:"
        )
        screen.print(text, markup=False)
        screen.print(study)
        screen.print()
    if result["trusted"]:
        text = "trusted to rank models and thresholds here, whatever the even label noise: " + ", ".join(
            result["trusted"]
        )
        screen.print(text, markup=False)
    for warning in result["warnings"]:
        screen.print(f"note: {warning}", markup=False)
    for file in result["files"]:
        screen.print(f"written: {file}", markup=False, soft_wrap=True)
