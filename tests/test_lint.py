"""Rules of the house that no linter knows, and proof that the layer list bites."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src/scoreline"
FILES = sorted(PACKAGE.rglob("*.py"))

# A file is read in one go; about 400 lines, with some room for the last formula.
LONGEST = 450


def rooms() -> list[str]:
    """The layer list, from the first room to the last."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [name.strip("()") for name in reversed(layers)]


def test_the_layer_list_is_the_one_of_the_architecture_page() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    listed = [line.split()[1].strip("`/") for line in text.splitlines() if line.startswith("| `") and "/`" in line]
    planned = [
        line.split()[1].strip("`/") for line in text.splitlines() if line.startswith("| `") and "| *planned*" in line
    ]
    built = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert [name for name in listed if name in rooms()] == rooms()
    assert built <= set(rooms())
    assert not built & set(planned)


AGAINST_THE_ORDER = {
    "core.a_sampler": "from scoreline.samplers.ddim import DDIM",
    "data.a_later_room": "from scoreline import metrics",
    "core.a_late_import": "def late():\n    import scoreline.cli",
    "core.a_library": "import scipy",
}


def test_an_import_against_the_order_of_the_rooms_is_refused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    command = [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"]
    for name, line in AGAINST_THE_ORDER.items():
        (tmp_path / "src/scoreline" / (name.replace(".", "/") + ".py")).write_text(line + "\n")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    for name in AGAINST_THE_ORDER:
        assert f"scoreline.{name}" in done.stdout


# Who may unpickle, and what.
PICKLING = {
    "search/engine.py": "calls, sent to its own worker processes and never stored",
    "bridges/unpickling.py": "files of others, by a reader that knows a closed list of harmless names",
}


@pytest.mark.each("file", FILES)
def test_the_rules_of_a_file(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert not tree.body or ast.get_docstring(tree), "say what the file is and which paper it follows"
    assert len(text.splitlines()) <= LONGEST
    found = list(broken(tree))
    if file.relative_to(PACKAGE).as_posix() in PICKLING:
        found = [text for text in found if "pickling library" not in text]
    assert found == []


def broken(tree: ast.Module) -> Iterator[str]:
    """What a file does that no file here does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if {name.split(".")[0] for name in names} & {"pickle", "cPickle", "dill", "cloudpickle", "joblib"}:
                yield f"line {node.lineno}: imports a pickling library"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save"):
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if ast.unparse(node.func) == "torch.save" or not safe:
                yield f"line {node.lineno}: {ast.unparse(node.func)} would pickle"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: a bare except hides Ctrl-C"
    # Inner functions may pass arguments through; what a caller sees names every one of them.
    for owner in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and node.args.kwarg and node.args.kwarg.arg == "kwargs":
                yield f"line {node.lineno}: {node.name} takes open **kwargs"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n    torch.load(x)",
        "torch.load(x, weights_only=False)",
        "torch.save(x, y)",
        "try:\n    f()\nexcept:\n    pass",
        "def f(**kwargs): ...",
        "class A:\n    def f(self, **kwargs): ...",
    ],
)
def test_each_rule_bites(text: str) -> None:
    assert len(list(broken(ast.parse(text)))) == 1


def test_what_the_rules_allow() -> None:
    allowed = "torch.load(x, weights_only=True)\n\ndef f():\n    def g(**kwargs): ...\n\ndef h(**columns): ...\n"
    assert list(broken(ast.parse(allowed))) == []


def test_every_room_has_an_order_and_a_type_marker_ships() -> None:
    assert len(rooms()) == len(set(rooms())) == 20
    assert rooms()[0] == "core"
    assert rooms()[-1] == "cli"
    assert (PACKAGE / "py.typed").exists()
