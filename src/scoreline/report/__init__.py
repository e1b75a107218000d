"""Tables, plots and the one-page html report."""

from scoreline.report.answer import Verdict, answer, verdicts
from scoreline.report.compare_report import write_report
from scoreline.report.numbers import human_bytes, human_count, human_number, human_seconds
from scoreline.report.plots import Level, Panel, Series, curve_figure, themed_svg
from scoreline.report.tables import csv_text, series_names, text_table

__all__ = [
    "write_report",
    "text_table",
    "csv_text",
    "series_names",
    "answer",
    "verdicts",
    "Verdict",
    "curve_figure",
    "themed_svg",
    "Panel",
    "Series",
    "Level",
    "human_number",
    "human_count",
    "human_bytes",
    "human_seconds",
]
