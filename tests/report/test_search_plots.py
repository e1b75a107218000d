"""The picture of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scoreline.report.search_plots import search_figure, write_search_plot


def results(macs: list[float]) -> dict[str, Any]:
    seen = [{"cost": m, "macs": m, "value": 3.0 - i / 2} for i, m in enumerate(macs)]
    return {
        "settings": {"metric": "fd"},
        "progress": {"random search": [None, 4.0, 2.0], "evolution": [3.0, 2.5, 1.0]},
        "seen": seen, "front": seen[-1:],
        "rows": [
            {"name": name, "mean": m, "low": m - 0.1, "high": m + 0.1}
            for name, m in (("leading", 2.0), ("random search", 1.5), ("evolution", 1.2))
        ],
    }  # fmt: skip


@pytest.mark.parametrize("macs, panels", [([5e6, 5e6, 5e6], 2), ([5e6, 4e6, 6e6], 3)])
def test_panels(macs: list[float], panels: int) -> None:
    axes = search_figure(results(macs)).axes
    assert len(axes) == panels
    first, last = axes[0], axes[-1]
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["random search", "evolution"]
    x, y = first.lines[0].get_data()
    assert list(x) == [1, 2, 3]
    assert np.isnan(y[0])
    assert list(y[1:]) == [4.0, 2.0]
    # The rows stand as in the table, the first on top, each mean on its interval.
    assert [tick.get_text() for tick in last.get_yticklabels()] == ["evolution", "random search", "leading"]
    assert [float(line.get_xdata()[0]) for line in last.lines[1::2]] == [1.2, 1.5, 2.0]
    if panels == 3:
        bottom, top = axes[1].get_ylim()
        assert bottom < 2.0 < top


def test_written_whole(tmp_path: Path) -> None:
    path = write_search_plot(results([1e6, 2e6]), tmp_path / "search.png")
    assert Image.open(path).size[0] > 900
    assert [p.name for p in tmp_path.iterdir()] == ["search.png"]
