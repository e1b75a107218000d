"""Sphinx settings; at each build the list of systems and the claims board are written from facts.json."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "src"))
sys.path.insert(0, str(DOCS.parent / "tools"))

import pages  # noqa: E402
import scoreline  # noqa: E402

project = "scoreline"
author = "the scoreline authors"
copyright = author
version = release = scoreline.__version__

# Formulas are written in plain characters: they read anywhere, and no page loads a script from the web.
extensions = ["myst_nb"]
source_suffix = {".md": "myst-nb"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Notebooks are stored with their output; building the pages runs nothing.
nb_execution_mode = "off"

html_theme = "furo"
html_title = "scoreline"
html_static_path = ["_static"]

pages.write(DOCS)
