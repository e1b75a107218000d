"""`import scoreline` is quick, and offers its names when they are asked for."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import scoreline

ROOT = Path(__file__).resolve().parents[1]


def test_importing_scoreline_imports_no_torch() -> None:
    code = "import sys, scoreline; dir(scoreline); print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", scoreline.__all__)
def test_every_name_leads_to_the_thing_of_that_name(name: str) -> None:
    found = getattr(scoreline, name)
    assert name == "__version__" or found.__name__ == name
    assert name in dir(scoreline)


def test_the_names_for_readers_and_for_type_checkers_are_the_same() -> None:
    assert set(scoreline._HOMES) | {"__version__"} == set(scoreline.__all__)
    text = (ROOT / "src/scoreline/__init__.py").read_text()
    for name, home in scoreline._HOMES.items():
        line = next(line for line in text.splitlines() if line.startswith(f"    from {home} import "))
        assert name in line.split("import ")[1].split(", ")


def test_a_misspelt_name_fails() -> None:
    with pytest.raises(AttributeError, match="'Huen'"):
        _ = scoreline.Huen


def test_every_pin_of_the_constraints_satisfies_the_requirements() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    assert not any("+" in version for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["dev"], *extras["docs"], *extras["bench"]]:
        wanted = Requirement(line)
        assert pins[canonicalize_name(wanted.name)] in wanted.specifier, line
