"""The command line: `scoreline VERB ...`. Nothing here imports torch; a verb imports what it needs when it runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["VERBS", "main"]

VERBS = {
    "compare": "sample one model several ways at several costs, score each, write a report",
    "sample": "make images of a model, as PNGs or .npz",
    "score": "Frechet distance and its kin of two sets of images",
    "train": "train a model from a preset or a config file; resumes when run again",
    "data": "summary and picture grid of a data set",
    "models": "the models that come with scoreline",
    "systems": "the 48 systems and their state",
    "claims": "re-measure what a paper promises",
}

_HELP = """scoreline makes image generators fast and proves that they are still good.

Try first:
  scoreline compare digits --samplers heun,ddim --nfe 5,10,20 --out demo   then open demo/report.html
  scoreline sample digits --sampler heun --nfe 9 --seeds 0:64 --out images
  scoreline models

usage: scoreline VERB [options]      scoreline VERB --help shows a verb's options

{verbs}

options of every verb:
  --json      print the result as JSON
  --debug     show the traceback of an error
  --version   (without a verb) print the version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 1 when something failed, or 2 when what was asked for is wrong.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {name:<9} {text}" for name, text in VERBS.items())
        print(_HELP.format(verbs=verbs), end="")
        return 0
    if args[0] == "--version":
        from scoreline import __version__

        print(f"scoreline {__version__}")
        return 0
    debug = "--debug" in args
    try:
        return _run(args[0], [arg for arg in args[1:] if arg != "--debug"], args)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); what is left to write goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        if debug:
            raise
        return _fail("stopped; the same command goes on where it was", 1)
    except Exception as error:
        if debug:
            raise
        from scoreline.core.errors import ScorelineError

        if isinstance(error, ScorelineError):
            return _fail(str(error), error.exit_code)
        if isinstance(error, OSError):
            return _fail(f"{error.filename or 'file'}: {error.strerror or error}", 1)
        return _fail(f"{type(error).__name__}: {error} (a bug in scoreline? run again with --debug)", 1)


def _fail(message: str, code: int) -> int:
    print(f"scoreline: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _run(verb: str, args: list[str], typed: list[str]) -> int:
    from scoreline.core.errors import unknown_name

    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS)
    module = importlib.import_module(f"scoreline.cli.{verb}")
    settings = _parse(verb, module.run, args)
    as_json = settings.pop("json", False)
    if getattr(module, "TAKES_COMMAND", False):
        settings["command"] = " ".join(["scoreline", *typed])
    if getattr(module, "TAKES_QUIET", False):
        settings["quiet"] = as_json
    result = module.run(**settings)
    if as_json:
        import json

        print(json.dumps(result, indent=1, default=str))
    else:
        module.show(result)
    return int(getattr(module, "exit_code", lambda result: 0)(result))


def _parse(verb: str, function: Any, args: list[str]) -> dict[str, Any]:
    from jsonargparse import ArgumentParser

    from scoreline.core.errors import InputError, unknown_name

    parser = ArgumentParser(prog=f"scoreline {verb}", exit_on_error=False, description=VERBS[verb], default_env=False)
    # What main() knows by itself is no option of a verb.
    hidden: set[str | int] = {"command", "quiet"}
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=hidden)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = [option for action in parser._actions for option in action.option_strings]
    for arg in args:
        name = arg.split("=", 1)[0]
        if name.startswith("--") and name != "--" and name not in options and name.split(".")[0] not in options:
            raise unknown_name(f"option of scoreline {verb}", name, options)
    try:
        values = parser.parse_args(args)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        text = lines[0] if lines else type(error).__name__
        raise InputError(f"scoreline {verb}", None, f"{text} (see scoreline {verb} --help)") from None
    settings = values.as_dict()
    settings.pop("debug", None)
    return settings
