"""What all verbs share: options, exit codes, one line an error, --json, --debug, Ctrl-C, a reader that goes away."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any, Literal

import pytest

from scoreline.cli import VERBS, main
from scoreline.cli.options import parse
from scoreline.core.errors import InputError


def verb_function(
    place: str,
    maybe: int | None = None,
    /,
    *,
    needed: str,
    batch_size: int = 4,
    rate: float | None = None,
    fast: bool = False,
    mode: Literal["plain", "fancy"] = "plain",
    command: str = "",
) -> dict[str, Any]:
    """Do something.

    Args:
        place: where 100 % of it goes.
        maybe: how often.
        needed: what is needed, in words that
            go on in a second line.
        batch_size: images a batch.
        rate: speed.
        fast: hurry.
        mode: how.
    """
    return {}


def test_arguments_are_read_by_their_types() -> None:
    typed = ["here", "3", "--needed", "x", "--batch-size=7", "--rate", "-0.001", "--fast", "--mode", "fancy", "--json"]
    wanted = {"place": "here", "maybe": 3, "needed": "x", "batch_size": 7, "rate": -1e-3, "fast": True, "mode": "fancy"}
    assert parse("v", verb_function, typed) == {**wanted, "json": True, "debug": False}


def test_defaults_and_underscores() -> None:
    found = parse("v", verb_function, ["here", "--needed", "x", "--batch_size", "5"])
    wanted = {
        "place": "here",
        "maybe": None,
        "needed": "x",
        "batch_size": 5,
        "rate": None,
        "fast": False,
        "mode": "plain",
    }
    assert found == {**wanted, "json": False, "debug": False}


@pytest.mark.parametrize(
    "typed, words",
    [
        (["a"], "--needed"),
        (["--needed", "x"], "PLACE"),
        (["a", "x", "--needed", "x"], "'x' is no whole number"),
        (["a", "--needed", "x", "--batch-size", "1.5"], "'1.5' is no whole number"),
        (["a", "--needed", "x", "--rate", "nan"], "'nan' is no finite number"),
        (["a", "--needed", "x", "--rate", "much"], "'much' is no number"),
        (["a", "--needed", "x", "--mode", "fancier"], "did you mean 'fancy'?"),
        (["a", "--needed", "x", "--bach-size", "1"], "did you mean '--batch-size'?"),
        (["a", "--needed", "x", "--batch", "1"], "--batch-size"),  # no guessing from the first letters
        (["a", "--needed", "x", "--fast=yes"], "--fast"),
        (["a", "--needed"], "--needed"),
        (["a", "1", "2", "--needed", "x"], "2"),
        (["a", "--needed", "x", "--command", "x"], "--command"),
    ],
)
def test_wrong_arguments_are_named(typed: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse("v", verb_function, typed)
    assert words in str(caught.value)


def test_help_shows_each_option_with_its_meaning_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(
            "v", verb_function, ["--help"], "scoreline v here --needed a-long-word --batch-size 4 --rate 0.001 --fast"
        )
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: scoreline v PLACE [MAYBE] --needed TEXT [options]" in text
    for words in (
        "--batch-size N images a batch (default: 4)", "where 100 % of it goes", "--fast hurry --mode plain|fancy",
        "what is needed, in words that go on in a second line", "--json", "--debug",
        "example: scoreline v here --needed a-long-word --batch-size 4 --rate 0.001 --fast",
    ):  # fmt: skip
        assert words in text
    assert "_" not in text
    assert "--command" not in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_for_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: scoreline {verb}" in text
    function = importlib.import_module(f"scoreline.cli.{verb}").run
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in ("command", "quiet"):
            # A parameter called like a word of Python ends in an underscore.
            shown = name.upper() if parameter.kind is parameter.POSITIONAL_ONLY else name.rstrip("_").replace("_", "-")
            assert shown in text or name.upper() in text
    # Defaults of None are explained in words; nobody should meet Python's own.
    for noise in ("None", "null", "type:", "_"):
        assert noise not in text.replace("arr_0", "").replace("_mask", "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_all_verbs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in VERBS)
    assert "Try first:" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from scoreline import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"scoreline {__version__}\n"


def test_misspelt_verb(scoreline: Any) -> None:
    scoreline("compaer").fails(2, "verb 'compaer': did you mean 'compare'?")


def test_a_bug_is_one_line_too_and_debug_shows_it(scoreline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("scoreline.core.systems.facts", broken)
    answer = scoreline("systems")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == (
        "scoreline: error: ZeroDivisionError: two lines (a bug in scoreline? run again with --debug)\n"
    )
    with pytest.raises(ZeroDivisionError):
        main(["systems", "--debug"])


def test_debug_raises_refusals(scoreline: Any) -> None:
    with pytest.raises(InputError):
        main(["systems", "99", "--debug"])


@pytest.mark.parametrize(
    "error, words",
    [
        (MemoryError(), "out of memory; try a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (PermissionError(13, "Permission denied", "a/b"), "a/b: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_errors_of_the_machine(error: Exception, words: str, scoreline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise error

    monkeypatch.setattr("scoreline.core.systems.facts", broken)
    scoreline("systems").fails(1, words)


@pytest.mark.parametrize("verb, goes_on", [("systems", False), ("compare", True)])
def test_ctrl_c_is_one_line(verb: str, goes_on: bool, scoreline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"scoreline.cli.{verb}"), "run", stopped)
    monkeypatch.setattr("scoreline.cli.options.parse", lambda *a: {"json": False, "debug": False})
    answer = scoreline(verb)
    answer.fails(1, "stopped")
    assert ("goes on" in answer.err) == goes_on


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m scoreline systems --json | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    first, code = done.stdout.split()
    assert first == "["
    assert code in ("0", "1")
    assert done.stderr == ""
