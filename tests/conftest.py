"""What all tests share: quiet surroundings, cases asked in one test, and the record of which checks were tested.

`@pytest.mark.each(name, values)` is written like `@pytest.mark.parametrize` and makes one test of all values, which
asks every one of them and names those that failed: a short case costs more to collect and report than to run.

`pytest --facts FILE` writes which tests carry `check` or `page` marks and how they ended; `tools/facts.py` reads it.
The marks travel as user properties of the reports, so that the record is the same under xdist.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch or matplotlib.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Nothing is left in the cache of whoever runs the tests, and nothing that lies there changes them.
os.environ["SCORELINE_CACHE"] = tempfile.mkdtemp(prefix="scoreline-tests-")
# Tests start processes in other folders, where a relative path would lead nowhere.
if os.environ.get("PYTHONPATH"):
    os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, os.environ["PYTHONPATH"].split(os.pathsep)))

import hypothesis
import pytest

# The same examples on every machine and every day; a failing one is then anybody's to repeat.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--facts", metavar="FILE", help="write the outcome of every test marked `check` or `page` to FILE")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--facts")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)), "facts-recorder")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["SCORELINE_CACHE"], ignore_errors=True)


def pytest_itemcollected(item: pytest.Item) -> None:
    marks = [read(item, mark) for mark in marks_of(item)]
    if marks:
        item.user_properties.append(("facts", marks))


def marks_of(item: pytest.Item) -> Iterator[pytest.Mark]:
    yield from item.iter_markers("check")
    yield from item.iter_markers("page")


def read(item: pytest.Item, mark: pytest.Mark) -> list:
    """["check", system, number] or ["page", system], or a clear refusal."""
    wanted = {"check": ("system", "number"), "page": ("system",)}[mark.name]
    known = {"system": range(49), "number": range(1, 100)}
    if mark.args or sorted(mark.kwargs) != sorted(wanted) or any(mark.kwargs[k] not in known[k] for k in wanted):
        shown = ", ".join(f"{name}=..." for name in wanted)
        raise pytest.UsageError(
            f"{item.nodeid}: write the mark as @pytest.mark.{mark.name}({shown}), with valid numbers"
        )
    if mark.name == "check" and item.get_closest_marker("slow"):
        raise pytest.UsageError(f"{item.nodeid}: a check must run in `make test`; it cannot be marked slow")
    return [mark.name, *(mark.kwargs[k] for k in wanted)]


class Recorder:
    """Collects the marked tests of a run, from the reports that reach the main process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: dict[str, dict] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        marks = dict(report.user_properties).get("facts")
        if not marks:
            return
        test = self.tests.setdefault(report.nodeid, {"marks": marks, "outcome": "passed"})
        # Set-up, call and tear-down report one by one: only three clean passes are a pass.
        if report.outcome != "passed" or hasattr(report, "wasxfail"):
            test["outcome"] = "failed" if report.failed else "skipped"

    def pytest_sessionfinish(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(dict(sorted(self.tests.items())), indent=1) + "\n", encoding="utf-8")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names that are the same in every process: not the address of an object, which pytest-xdist would trip over."""
    return type(val).__name__ if " at 0x" in repr(val) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for mark in metafunc.definition.iter_markers("each"):
        metafunc.parametrize(mark.args[0], [[None] * len(names_of(mark))], ids=["each"])


def names_of(mark: pytest.Mark) -> list[str]:
    """The arguments that a mark `each` gives values to."""
    return [name.strip() for name in mark.args[0].split(",")]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test marked `each` with all its values, and with all pairs of values if it has two such marks."""
    marks = list(pyfuncitem.iter_markers("each"))
    if not marks:
        return None
    kept = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    failed: dict[str, BaseException] = {}
    for values in itertools.product(*(mark.args[1] for mark in marks)):
        given: dict[str, object] = {}
        for mark, value in zip(marks, values):
            names = names_of(mark)
            given |= dict(zip(names, value if len(names) > 1 else [value]))
        try:
            pyfuncitem.obj(**{**kept, **given})
        # A skipped value would be a case that nobody asks and nobody sees: it fails too.
        except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:
            failed[", ".join(f"{name}={str(value)[:80]}" for name, value in given.items())] = error
    if failed:
        said = [f"{where}: {type(error).__name__}: {error}" for where, error in failed.items()]
        # All of them in the first line: it is the one that the summary of a run shows.
        what = f"{pyfuncitem.name} failed with {'; '.join(failed)}\n" + "\n".join(said)
        raise AssertionError(what) from next(iter(failed.values()))
    return True
