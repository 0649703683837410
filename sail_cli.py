"""The command `sail`: a table of sub-commands, each a typed function in its own package.

Options and help come from the function's signature and docstring. A sub-command is imported when it is called, so
`sail --help` answers at once.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import TYPE_CHECKING

from sail_encoder import __version__
from sail_encoder.commands.arguments import (
    ArgumentReader,
    call,
    is_switch,
    options_of,
    parameters_of,
    suggest,
    takes_many,
)
from sail_encoder.io.errors import UserError, in_one_line

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        function: Where it is, as `module:name`.
        summary: The first line of its docstring.
        positional: Arguments that are given without a flag; a list takes all that follow.
        synonyms: Spellings of 0.1.0, and the names that the options have now.
        presets: Folder of shipped configuration files; one that is named like the first argument is read.
    """

    function: str
    summary: str
    positional: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    presets: str = ""


COMMANDS = {
    "extract": Command(
        "sail_encoder.commands.extract:extract",
        "Extracts features of images to .npy files.",
        ("source",),
        {"dtype": "store_dtype"},
    ),
    "probe": Command(
        "evals.commands.probe:probe",
        "Fits probes on features of labelled images, and reports what they reach.",
        ("data",),
        {"dtype": "store_dtype"},
    ),
    "sweep": Command(
        "evals.commands.sweep:sweep",
        "Probes every layer, from one pass over the images, and names the best.",
        ("data",),
    ),
    "compare": Command(
        "evals.commands.compare:compare",
        "Compares backbones on the same images: probes, a dense head, speed and pictures.",
        ("data",),
        presets="compare",
    ),
    "chat": Command("sail_encoder.commands.chat:chat", "Answers questions about images.", ("image", "prompt")),
    "segment train": Command(
        "evals.commands.segment_train:train",
        "Trains a segmentation head on a frozen backbone, or a Pixel-SAIL, and scores it.",
        ("data",),
    ),
    "segment eval": Command(
        "evals.commands.segment_eval:evaluate", "Scores a segmentation head, or a Pixel-SAIL, on a data set.", ("data",)
    ),
    "segment predict": Command(
        "evals.commands.segment_predict:predict", "Writes label maps of images, and overlays.", ("source",)
    ),
    "segment refer": Command(
        "sail_encoder.commands.refer:refer", "Writes masks of what an expression refers to.", ("image", "expression")
    ),
    "info": Command("sail_encoder.commands.info:info", "Describes a checkpoint.", ("model",)),
    "convert": Command(
        "sail_encoder.commands.convert:convert",
        "Writes a published checkpoint in the format of transformers' Auto classes.",
        ("model", "out"),
        {"dtype": "precision"},
    ),
    "pca": Command(
        "sail_encoder.commands.pca:pca",
        "Draws the principal components of features, for images, layers and models on one sheet.",
        ("images",),
        {"image": "images", "model": "models", "layer": "layers"},
    ),
    "similarity": Command(
        "sail_encoder.commands.similarity:similarity",
        "Draws how similar the patches of an image, or of others, are to chosen patches.",
        ("image",),
    ),
    "match": Command(
        "sail_encoder.commands.match:match",
        "Draws which patches of two images are each the other's nearest.",
        ("first", "second"),
    ),
    "doctor": Command(
        "sail_encoder.commands.doctor:doctor", "Checks this machine and says what to do about what is missing."
    ),
    "demo": Command(
        "evals.commands.demo:demo",
        "Extracts and draws features of two photographs, or serves a page to look at features.",
    ),
    "estimate": Command(
        "sail_encoder.commands.estimate:estimate",
        "Estimates time, FLOPs and disk space for extracting features.",
        ("source",),
        synonyms={"dtype": "store_dtype"},
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"sail {__version__}")
        return 0
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    group = arguments[0] if arguments and arguments[0] in groups else ""
    words = 2 if group else 1
    if len(arguments) < words or arguments[words - 1] in ("-h", "--help"):
        print(_overview(group))
        return 0
    name, rest = " ".join(arguments[:words]), arguments[words:]
    if name not in COMMANDS:
        return _complain(f"no command '{name}'{suggest(name, COMMANDS)}; sail --help lists all")
    try:
        return _run(name, rest)
    except (UserError, OSError) as error:
        return _complain(in_one_line(error))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _complain(_report(error, arguments))


def _run(name: str, arguments: list[str]) -> int:
    command = COMMANDS[name]
    module, function_name = command.function.split(":")
    function: Callable[..., int] = getattr(importlib.import_module(module), function_name)
    if {"-h", "--help"} & set(arguments):
        _build_parser(name, function, command).parse_args(["--help"])
    reader = ArgumentReader(function, command.positional, command.synonyms, command.presets)
    try:
        values = reader.read(arguments)
    except UserError as error:
        raise UserError(f"{error}; sail {name} --help lists all options") from None
    if reader.print_config:
        parser = _build_parser(name, function, command)
        parser.set_defaults(values)
        parser.parse_args([reader.print_config])
    return call(function, values)


def _build_parser(name: str, function: Callable[..., int], command: Command) -> "ArgumentParser":
    """Parser that writes the help of a command, or a configuration, and ends the process then."""
    from jsonargparse import ArgumentParser

    parameters = parameters_of(function)
    words = (f"{word.upper()}..." if takes_many(parameters[word]) else word.upper() for word in command.positional)
    parser = ArgumentParser(
        prog=f"sail {name}", usage=" ".join(["sail", name, *words, "[options]"]), epilog=_about_options(parameters)
    )
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    options = options_of(function)
    if isinstance(options, type):
        parser.description = (inspect.getdoc(function) or "").partition("\n\nReturns:")[0]
        parser.add_class_arguments(options, as_positional=False)
    else:
        parser.add_function_arguments(options, as_positional=False)
    return parser


def _about_options(parameters: Mapping[str, Parameter]) -> str:
    switch = next((name for name, parameter in parameters.items() if is_switch(parameter)), None)
    needless = f"; what is true or false needs no value: --{switch}, --no-{switch}" if switch else ""
    return f"Options may be written with - for _{needless}."


def _overview(group: str = "") -> str:
    """All commands, or those of which `group` is the first word."""
    shown = {name: command for name, command in COMMANDS.items() if not group or name.split()[0] == group}
    width = max(map(len, shown))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in shown.items()]
    return "\n".join(["usage: sail COMMAND ...", "", *rows, "", "sail COMMAND --help tells more."])


def _report(error: Exception, arguments: list[str]) -> str:
    from sail_encoder.commands.crash import save_report

    return save_report(error, arguments)


def _complain(message: str) -> int:
    print(f"sail: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
