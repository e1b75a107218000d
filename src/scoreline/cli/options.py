"""The options of a verb, read from the signature and the docstring of its `run`: one place says what exists and means.

Parameters without a default are arguments by position, as are positional-only ones; all others are options, required
where they are keyword-only and have no default. `Literal` gives the choices, `bool` a flag.
"""

from __future__ import annotations

import argparse
import inspect
import math
import re
import typing
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, NoReturn

from scoreline.core.errors import InputError, unknown_name

__all__ = ["parse"]

# What main() knows by itself is no option of a verb.
_HIDDEN = {"command", "quiet"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse prints two lines and exits; here every refusal is one line and goes the same way.
        message = message.removeprefix("argument ")
        raise InputError(self.prog, None, f"{message} (see {self.prog} --help)")


class _Formatter(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # A command that is broken over lines cannot be copied.
        return text if text.startswith("example: ") else super()._fill_text(text, width, indent)


def parse(verb: str, function: Callable[..., Any], args: Sequence[str], example: str = "") -> dict[str, Any]:
    """The arguments of a call of `function`, from what the user typed.

    Args:
        verb: what comes after `scoreline`.
        function: the verb's `run`, its docstring with an Args section.
        args: what was typed behind the verb.
        example: shown at the end of the help.

    Returns:
        Parameter name -> value, and "json" and "debug".

    Raises:
        InputError: an unknown option, a value that does not fit, or something is missing.
        SystemExit: after --help was printed.
    """
    parser = _parser(verb, function, example)
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    words = []
    for arg in args:
        name, equals, value = arg.partition("=")
        if name.startswith("--") and name != "--":
            # People type dashes; the underscores of Python are understood too.
            name = name.replace("_", "-")
            if name not in options:
                raise unknown_name(f"option of scoreline {verb}", name, options)
        words.append(f"{name}{equals}{value}")
    return vars(parser.parse_args(words))


def _parser(verb: str, function: Callable[..., Any], example: str) -> argparse.ArgumentParser:
    about, texts = _described(function)
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    parser = _Parser(
        prog=f"scoreline {verb}", description=about, allow_abbrev=False, add_help=False,
        formatter_class=_Formatter, epilog=f"example: {example}" if example else None,
    )  # fmt: skip
    places = parser.add_argument_group("arguments")
    options = parser.add_argument_group("options")
    usage = []
    for name, parameter in parameters.items():
        if name in _HIDDEN:
            continue
        required = parameter.default is parameter.empty
        kind = parameter.kind
        by_place = kind is parameter.POSITIONAL_ONLY or (required and kind is not parameter.KEYWORD_ONLY)
        text = texts[name].removesuffix(".").replace("%", "%%")
        if not required and parameter.default is not None and parameter.default is not False:
            text += f" (default: {parameter.default})"
        settings: dict[str, Any] = {"help": text}
        if hints[name] is bool:
            settings["action"] = "store_true"
        else:
            settings["type"], settings["metavar"] = _type(hints[name])
            if not required:
                settings["default"] = parameter.default
        if by_place:
            settings["metavar"] = name.upper()
            places.add_argument(name, nargs=None if required else "?", **settings)
            usage.append(name.upper() if required else f"[{name.upper()}]")
        else:
            # An option may be called like a word of Python: its parameter then ends in an underscore.
            option = f"--{name.rstrip('_').replace('_', '-')}"
            options.add_argument(option, dest=name, required=required, **settings)
            usage += [f"{option} {settings['metavar']}"] if required else []
    options.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    options.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options.add_argument("-h", "--help", action="help", help="show this and stop")
    parser.usage = " ".join([parser.prog, *usage, "[options]"])
    return parser


def _described(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """(what the function does, parameter -> its text), from a docstring with an Args section."""
    about, _, rest = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
    listed = rest.partition("\n\n")[0]
    texts = {}
    for name, text in re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", listed, flags=re.MULTILINE):
        texts[name] = " ".join(text.split())
    return " ".join(about.split()), texts


def _type(hint: Any) -> tuple[Callable[[str], Any], str]:
    """(reader of a typed word, what the help shows for it) of an annotation; None is what an option left out gives."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        known = typing.get_args(hint)
        return _choice(known), "|".join(known)
    readers: dict[Any, tuple[Callable[[str], Any], str]] = {
        int: (_whole, "N"), float: (_real, "X"), str: (str, "TEXT"),
    }  # fmt: skip
    return readers[hint]


def _choice(known: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(str(unknown_name("value", text, known)))
        return text

    return read


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value
