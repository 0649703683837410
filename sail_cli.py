"""The command `sail`: a table of sub-commands, each a typed function in its own package.

jsonargparse builds flags and help from the function's signature and docstring. A sub-command is imported when it is
called, so `sail --help` answers at once.
"""

import difflib
import importlib
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Union, get_args, get_origin

from sail_encoder.errors import UserError, in_one_line

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        function: Where it is, as `module:name`.
        summary: The first line of its docstring.
        positional: Arguments that are given without a flag; a list takes all that follow.
    """

    function: str
    summary: str
    positional: tuple[str, ...] = ()


COMMANDS = {
    "extract": Command(
        "sail_encoder.extraction.command:extract", "Extracts features of images to .npy files.", ("source",)
    ),
    "probe": Command(
        "evals.probe:probe", "Fits probes on features of labelled images, and reports what they reach.", ("data",)
    ),
    "sweep": Command(
        "evals.sweep:sweep", "Probes every layer, from one pass over the images, and names the best.", ("data",)
    ),
    "chat": Command("sail_encoder.chat.command:chat", "Answers questions about images.", ("image", "prompt")),
    "segment train": Command(
        "evals.segmentation.train:train",
        "Trains a segmentation head on a frozen backbone, and scores it.",
        ("data",),
    ),
    "segment eval": Command(
        "evals.segmentation.evaluate:evaluate", "Scores a segmentation head on a data set.", ("data",)
    ),
    "segment predict": Command(
        "evals.segmentation.predict:predict", "Writes label maps of images, and overlays.", ("source",)
    ),
    "info": Command("sail_encoder.info:info", "Describes a checkpoint.", ("model",)),
    "convert": Command(
        "sail_encoder.models.sail.convert:convert", "Writes a SAIL checkpoint in the native format.", ("model", "out")
    ),
    "pca": Command(
        "sail_encoder.visualize:pca", "Draws the principal components of an image's features beside it.", ("image",)
    ),
    "similarity": Command(
        "sail_encoder.visualize:similarity", "Draws how similar the patches of an image are to one of them.", ("image",)
    ),
    "doctor": Command("sail_encoder.doctor:doctor", "Checks this machine and says what to do about what is missing."),
    "demo": Command("sail_encoder.demo:demo", "Extracts features of two photographs, and draws them."),
    "estimate": Command(
        "sail_encoder.estimate:estimate", "Estimates time, FLOPs and disk space for extracting features."
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    group = arguments[0] if arguments and arguments[0] in groups else ""
    words = 2 if group else 1
    if len(arguments) < words or arguments[words - 1] in ("-h", "--help"):
        print(_overview(group))
        return 0
    name, rest = " ".join(arguments[:words]), arguments[words:]
    if name not in COMMANDS:
        return _complain(f"no command '{name}'{_suggest(name, COMMANDS)}; sail --help lists all")
    try:
        return _run(name, rest)
    except (UserError, OSError) as error:
        return _complain(in_one_line(error))
    except KeyboardInterrupt:
        return 130


def _run(name: str, arguments: list[str]) -> int:
    command = COMMANDS[name]
    module, function_name = command.function.split(":")
    function: Callable[..., int] = getattr(importlib.import_module(module), function_name)
    parser = _build_parser(name, function, command)
    flags, words = _sort_arguments(arguments, command, function)
    values = parser.parse_args(flags)
    values.pop("config", None)
    # A word such as `null` or `~` that is given without a flag is a word, not the absence of one.
    taken = {name: word for name, word in words.items() if values[name] is None}
    return function(**{**values.as_dict(), **taken})


def _build_parser(name: str, function: Callable[..., int], command: Command) -> "ArgumentParser":
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(f"{_explain(message, function)}; sail {name} --help lists all options")

    words = (f"{word.upper()}..." if _takes_many(word, function) else word.upper() for word in command.positional)
    parser = Parser(prog=f"sail {name}", usage=" ".join(["sail", name, *words, "[options]"]))
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    parser.add_function_arguments(function, as_positional=False)
    return parser


def _sort_arguments(
    arguments: list[str], command: Command, function: Callable[..., int]
) -> tuple[list[str], dict[str, str]]:
    """Brings arguments into the form `--name=value`, which also lets a value begin with a minus.

    Returns:
        All arguments in that form, and by their names those that were given without a flag and stand alone.
    """
    flags, free, words = [], [], {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            free.append(argument)
        elif "=" in argument or argument in ("--help", "--print_config"):
            flags.append(argument)
        else:
            value = next(rest, None)
            if value is None:
                raise UserError(f"{argument} needs a value")
            flags.append(f"{argument}={value}")
    if "-h" in free:
        return ["--help"], {}
    for name in command.positional:
        if free and _takes_many(name, function):
            flags.append(f"--{name}={json.dumps(free)}")
            free = []
        elif free:
            words[name] = free.pop(0)
            flags.append(f"--{name}={words[name]}")
    if free:
        raise UserError(f"'{free[0]}' is one argument too many; options are given as --name value")
    return flags, words


def _takes_many(name: str, function: Callable[..., int]) -> bool:
    return "list" in str(inspect.signature(function).parameters[name].annotation)


def _explain(message: str, function: Callable[..., int]) -> str:
    """Turns jsonargparse's messages into one sentence that names the value and what is allowed."""
    parameters = inspect.signature(function).parameters
    if unknown := re.search(r"(?:unrecognized arguments: --|Option ')([^\s='.]+)", message):
        return f"no option --{unknown[1]}{_suggest(unknown[1], parameters)}"
    if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
        return f"--{missing[1].replace(', ', ' and --')} is missing"
    wrong = re.match(r'Parser key "(\w+)":.*value: (.*)', message, re.DOTALL)
    if wrong and wrong[1] in parameters:
        return f"--{wrong[1]} cannot be {wrong[2]}; allowed is {_allowed(parameters[wrong[1]].annotation)}"
    return message


def _allowed(annotation: Any) -> str:
    """What a type allows, in words."""
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if isinstance(annotation, types.UnionType) or get_origin(annotation) is Union:
        return " or ".join(_allowed(choice) for choice in get_args(annotation))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(annotation, str(annotation))


def _overview(group: str = "") -> str:
    """All commands, or those of which `group` is the first word."""
    shown = {name: command for name, command in COMMANDS.items() if not group or name.split()[0] == group}
    width = max(map(len, shown))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in shown.items()]
    return "\n".join(["usage: sail COMMAND ...", "", *rows, "", "sail COMMAND --help tells more."])


def _suggest(word: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean '{nearest[0]}'?" if nearest else ""


def _complain(message: str) -> int:
    print(f"sail: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
