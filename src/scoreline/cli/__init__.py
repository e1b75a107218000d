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
    "likelihood": "bits per dimension of images under a model, by its probability-flow ODE",
    "edit": "fill in, colour, ask for a class, interpolate: images changed by a trained model",
    "score": "Frechet distance and its kin of two sets of images",
    "attribute": "what each part of an image workflow contributed to similarity, with a report",
    "anomaly": "AUPIMO, AUPRO and AUROC of anomaly maps, image by image",
    "imbalance": "metrics of two classes under imbalance and label noise, with intervals",
    "train": "train a model from a preset or a config file; resumes when run again",
    "distill": "train a student that makes an image in one to four evaluations; resumes when run again",
    "forget": "make a model forget classes, without data, and measure what it kept; resumes when run again",
    "translate": "a folder of pictures through a model that makes images from images, and its scores",
    "restyle": "labelled pictures to their noise and back as another class",
    "pairs": "pairs of noise and image of a model, for students that learn from them",
    "calibrate": "estimate once what dpm-solver-v3 or denoising-mcmc wants to know of a model",
    "data": "summary and picture grid of a data set",
    "models": "the models that come with scoreline",
    "convert": "a checkpoint of others as a scoreline model, without running its code",
    "systems": "the 48 systems and their state",
    "search": "search the noise levels, layers or solver that suit a budget best; resumes when run again",
    "claims": "re-measure what a paper promises",
}

_RESUMED = {"attribute", "calibrate", "claims", "compare", "distill", "edit", "forget", "likelihood", "pairs", "sample"}
_RESUMED |= {"score", "search", "train"}

_HELP = """scoreline makes image generators fast and proves that they are still good.

Try first:
  scoreline compare digits --samplers heun,ddim --nfe 5,10,20 --out demo   then open demo/report.html
  scoreline sample digits --sampler heun --nfe 9 --seeds 0:64 --out images
  scoreline models

usage: scoreline VERB [options]      scoreline VERB --help shows a verb's options

{verbs}

options of every verb:
  --json      print the result as JSON, and nothing else
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
        verbs = "\n".join(f"  {name:<10} {text}" for name, text in VERBS.items())
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
    except SystemExit as end:
        return int(end.code or 0)
    except KeyboardInterrupt:
        if debug:
            raise
        return _fail("stopped" + ("; the same command goes on from here" if args[0] in _RESUMED else ""), 1)
    except Exception as error:
        if debug:
            raise
        from scoreline.core.errors import ScorelineError

        if isinstance(error, ScorelineError):
            return _fail(str(error), error.exit_code)
        if isinstance(error, OSError):
            return _fail(f"{error.filename or 'file'}: {error.strerror or error}", 1)
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
            return _fail("out of memory; try a smaller --batch-size", 1)
        return _fail(f"{type(error).__name__}: {error} (a bug in scoreline? run again with --debug)", 1)


def _fail(message: str, code: int) -> int:
    print(f"scoreline: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _run(verb: str, args: list[str], typed: list[str]) -> int:
    from scoreline.core.errors import unknown_name

    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS)
    import inspect
    import shlex

    from scoreline.cli.options import parse

    module = importlib.import_module(f"scoreline.cli.{verb}")
    settings = parse(verb, module.run, args, getattr(module, "EXAMPLE", ""))
    as_json = settings.pop("json")
    settings.pop("debug")
    if getattr(module, "TAKES_COMMAND", False):
        settings["command"] = shlex.join(["scoreline", *typed])
    if getattr(module, "TAKES_QUIET", False):
        settings["quiet"] = as_json
    parameters = inspect.signature(module.run).parameters.values()
    placed = [settings.pop(p.name) for p in parameters if p.kind is p.POSITIONAL_ONLY]
    result = module.run(*placed, **settings)
    if as_json:
        import json

        print(json.dumps(_plain(result), indent=1, default=str, allow_nan=False))
    else:
        module.show(result)
    return int(getattr(module, "exit_code", lambda result: 0)(result))


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    import math

    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
