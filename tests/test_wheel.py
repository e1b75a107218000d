"""The wheel holds all it needs: built, installed outside the checkout, and used from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Fewer images and seeds than the defaults: this is about what the wheel holds, not about scores.
QUICK = ["--count", "64", "--pairs", "16", "--seeds", "0"]


def run(*command: str | Path, cwd: Path) -> str:
    # Nothing of the checkout may help: neither its source nor the settings of this run.
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", copy, cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, that finds scoreline's dependencies where this test found them."""
    place = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(place, with_pip=False)
    python = place / "bin/python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=place,
    )
    # A plain path in a .pth file adds that folder and does not read the .pth files in it, so that an editable
    # scoreline of this environment stays out of sight.
    lib = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (lib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("scoreline/")}
    package = ROOT / "src/scoreline"
    wanted = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".pyc"}
    assert {str(p.relative_to(package.parent)) for p in wanted if not p.name.startswith(".")} == held


def test_the_environment_uses_the_wheel_and_its_facts(installed: Path, tmp_path: Path) -> None:
    code = (
        "import scoreline; from scoreline.core.systems import facts; print(scoreline.__file__, len(facts()['systems']))"
    )
    file, count = run(installed / "bin/python", "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(installed)
    assert count == "48"


def test_the_installed_command_compares_samplers_from_another_folder(installed: Path, tmp_path: Path) -> None:
    command = ["compare", "digits", "--samplers", "heun,ddim", "--nfe", "10", "--out", "result", *QUICK]
    run(installed / "bin/scoreline", *command, cwd=tmp_path)
    for name in ("results.json", "results.csv", "report.html"):
        assert (tmp_path / "result" / name).stat().st_size > 0
