"""Arguments of a command, as values of the parameters of its function.

Options and words are named here, so that a mistake is known to concern one of them; jsonargparse turns the text of each
into a value of its type.
"""

import difflib
import inspect
import reprlib
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from inspect import Parameter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Union, get_args, get_origin

from sail_encoder.io.errors import UserError
from sail_encoder.io.files import read_text

SHIPPED = Path(__file__).parents[1] / "configs"
"""Folder of the configuration files that ship with the package; in a clone a link to `configs`."""

_DEEPEST = 20
"""Lists and mappings of a configuration file within each other at most."""

_SHOWN = 80
"""Characters of a wrong value that a message repeats at most."""


class ArgumentReader:
    """Reader of the arguments of a command.

    Args:
        function: Its parameters are the options, or the fields of the dataclass that it takes.
        positional: Those that are also given by a word without an option; a list takes all words that are left.
        synonyms: Spellings of 0.1.0, and the names that the options have now.
        presets: Folder of shipped configuration files; without `--config` the one that is named like the first word
            is read, if there is one.

    Attributes:
        print_config: The option `--print_config` where it was given: the values are then only shown, and may lack some.
    """

    def __init__(
        self,
        function: Callable[..., int],
        positional: Sequence[str] = (),
        synonyms: Mapping[str, str] = MappingProxyType({}),
        presets: str = "",
    ) -> None:
        self.parameters = parameters_of(function)
        self.positional = positional
        self.synonyms = synonyms
        self.presets = presets
        self.print_config = ""
        self._has_config = False
        self._from_files: dict[str, Any] = {}
        self._options: dict[str, Any] = {}
        self._words: list[str] = []

    def read(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The values that are given; an option counts more than a configuration file, wherever it stands.

        Raises:
            UserError: If there is no such option, one has a value that its type does not allow, or one is missing.
        """
        rest = deque(arguments)
        while rest:
            argument = rest.popleft()
            if argument == "--":
                self._words += rest
                break
            if _is_option(argument):
                self._read_option(argument, rest)
            else:
                self._words.append(argument)
        values = {**self._from_files, **self._options, **self._place_words()}
        if self.presets and not self._has_config:
            values = {**self._preset(values), **values}
        for name, value in values.items():
            if any("\0" in text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)):
                raise UserError(f"--{name} cannot hold a NUL character")
        if not self.print_config:
            self._require_all(values)
        return values

    def _read_option(self, argument: str, rest: deque[str]) -> None:
        option, separator, text = argument.partition("=")
        # A single hyphen names no option, so that its name is looked for, but never found.
        name = _name_of(option) if option.startswith("--") else ""
        name = _current(name, self.synonyms)
        if name == "print_config":
            self.print_config = f"--{name}{separator}{text}"
        elif name == "config":
            path = text if separator else _next_value(option, rest)
            self._has_config = True
            found = find_config(path, self.parameters)
            self._from_files |= read_config(found, self.parameters, self.synonyms)
        elif name in self.parameters:
            if not separator:
                text = self._next_switch(name, rest) if self._is_switch(name) else _next_value(option, rest)
            value = convert(name, text, self.parameters[name].annotation)
            # A list may be given piece by piece; of other options the last counts.
            is_further = isinstance(value, list) and name in self._options
            self._options[name] = [*self._options[name], *value] if is_further else value
        elif name.startswith("no_") and self._is_switch(name.removeprefix("no_")):
            if separator:
                raise UserError(f"{option} takes no value")
            self._options[name.removeprefix("no_")] = False
        else:
            raise UserError(f"no option {option}{suggest(option, self.parameters)}")

    def _preset(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the shipped file that is named like the first positional argument."""
        name = str(values.get(self.positional[0], ""))
        shipped = {path.stem: path for path in (SHIPPED / self.presets).glob("*.yaml")}
        if name not in shipped:
            return {}
        print(f"settings are those of configs/{self.presets}/{name}.yaml, unless they are given", file=sys.stderr)
        return read_config(shipped[name], self.parameters, self.synonyms)

    def _is_switch(self, name: str) -> bool:
        return name in self.parameters and is_switch(self.parameters[name])

    def _next_switch(self, name: str, rest: deque[str]) -> str:
        """The value of an option that needs none: the next argument where it is one, or where no word can stand."""
        if not rest or _is_option(rest[0]):
            return "true"
        try:
            convert(name, rest[0], self.parameters[name].annotation)
        except UserError:
            if len(self._words) < len(self.positional):
                return "true"
        return rest.popleft()

    def _place_words(self) -> dict[str, Any]:
        """Words by the parameters that they stand for, taken as they are: `null` is a word too."""
        words = self._words
        placed: dict[str, Any] = {}
        for name in self.positional:
            if words and name not in self._options:
                many = takes_many(self.parameters[name])
                placed[name], words = (words, []) if many else (words[0], words[1:])
        if words:
            raise UserError(f"'{words[0]}' is one argument too many; options are given as --name value")
        return placed

    def _require_all(self, values: Mapping[str, Any]) -> None:
        required = [name for name, parameter in self.parameters.items() if parameter.default is Parameter.empty]
        missing = [name if name in self.positional else f"--{name}" for name in required if name not in values]
        if missing:
            raise UserError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")


def find_config(name: str, parameters: Mapping[str, Parameter]) -> Path:
    """Finds a configuration file: one that is there, or one that ships with the package.

    Args:
        name: A path, or the name of a shipped file, such as `digits` or `probe/digits`.
        parameters: Of the command; of several shipped files with that name, the one that is for it is taken.

    Raises:
        UserError: If there is no such file, or more than one.
    """
    if Path(name).exists() or name.endswith((".yaml", ".yml", ".json")):
        return Path(name)
    shipped = {str(path.relative_to(SHIPPED).with_suffix("")): path for path in sorted(SHIPPED.rglob("*.yaml"))}
    found = [path for known, path in shipped.items() if name in (known, path.stem)]
    if len(found) > 1:
        found = [path for path in found if {_name_of(key) for key in _load_yaml(path)} <= parameters.keys()]
    if len(found) != 1:
        near = suggest(name, [*(path.stem for path in shipped.values()), *shipped])
        raise UserError(f"no configuration file {name}{near}; shipped are {', '.join(shipped)}")
    return found[0]


def read_config(
    path: Path, parameters: Mapping[str, Parameter], synonyms: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Reads options from a YAML file.

    Raises:
        UserError: If it is none, or holds an option that there is not or a value that its type does not allow.
    """
    if not path.exists():
        raise UserError(f"no configuration file {path}")
    values = {}
    try:
        for key, (value, written) in _load_yaml(path).items():
            name = _current(_name_of(key), synonyms)
            if name not in parameters:
                raise UserError(f"no option --{key}{suggest(key, parameters)}")
            annotation = parameters[name].annotation
            values[name] = convert(name, _as_typed(value, written, annotation), annotation)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return values


def _load_yaml(path: Path) -> dict[str, tuple[Any, Any]]:
    """For each key of a YAML file its value, and the same with every scalar as it is written."""
    import yaml
    from jsonargparse import get_loader

    try:
        text = read_text(path)
        _check_events(yaml.parse(text))
        values, written = get_loader("yaml")(text), yaml.load(text, yaml.BaseLoader)
    except UserError:
        raise
    # A number or a date that is written like one and is none is a ValueError.
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"this is not YAML ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError("there are no options in it; write lines such as 'out: runs/first'")
    return {str(key): (value, written.get(str(key), str(value))) for key, value in values.items()}


def _check_events(events: Iterable[Any]) -> None:
    """Refuses what is a few bytes and takes minutes or gigabytes: aliases of aliases, and thousands of brackets.

    Events come while a file is read, so that this ends where the first of them is.
    """
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise UserError("aliases (*name) are not read; write the value itself")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise UserError(f"its values are nested more than {_DEEPEST} deep; no option is")


def _as_typed(value: Any, written: Any, annotation: Any) -> Any:
    """Value of a YAML file as an option would be given it: to a text, -1 is no number and [0, 11] no list."""
    choices = _choices(annotation)
    if isinstance(value, (bool, int, float)) or (isinstance(value, list) and list[str] in choices):
        return written
    if isinstance(value, list) and not any(get_origin(choice) in (list, tuple) for choice in choices):
        return ",".join(map(str, written))
    return value


def convert(name: str, value: Any, annotation: Any) -> Any:
    """The value of an option.

    Args:
        name: Name of the option.
        value: The text that was given, or a structure as YAML has it.
        annotation: Its type.

    Raises:
        UserError: If the type does not allow it.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    if value is None and type(None) in _choices(annotation):
        return None
    # One piece of a list is written as it is.
    if isinstance(value, str) and list[str] in _choices(annotation) and value[:1] != "[" and value != "null":
        return [value]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=Any if annotation is Parameter.empty else annotation)
    try:
        if isinstance(value, str):
            return parser.parse_args([f"--value={value}"]).value
        if value is not None:
            return parser.parse_object({"value": value}).value
    except ArgumentError:
        pass
    shown = value if isinstance(value, str) else "null" if value is None else reprlib.repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    raise UserError(f"--{name} cannot be {shown}; allowed is {_allowed(annotation)}")


def options_of(function: Callable[..., int]) -> Callable[..., Any]:
    """The dataclass that holds the options of a command where its function takes one, or else the function itself."""
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    alone = parameters[0].annotation if len(parameters) == 1 else None
    return alone if isinstance(alone, type) and is_dataclass(alone) else function


def parameters_of(function: Callable[..., int]) -> Mapping[str, Parameter]:
    """The options of a command by name, with their types."""
    return inspect.signature(options_of(function), eval_str=True).parameters


def call(function: Callable[..., int], values: Mapping[str, Any]) -> int:
    """Runs a command with these options, and returns its exit status.

    Where a dataclass holds them that has a `from_given`, they go there, so that it knows which were given.
    """
    options = options_of(function)
    return function(**values) if options is function else function(getattr(options, "from_given", options)(**values))


def takes_many(parameter: Parameter) -> bool:
    """Tells whether a parameter is a list."""
    return any(get_origin(choice) is list for choice in _choices(parameter.annotation))


def is_switch(parameter: Parameter) -> bool:
    """Tells whether a parameter is true or false, so that its option needs no value."""
    return set(_choices(parameter.annotation)) <= {bool, type(None)}


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint at the name that was probably meant, empty if none is near."""
    wanted, names = _name_of(word), list(known)
    beginnings = [name for name in names if name.startswith(wanted)] if wanted else []
    nearest = [*beginnings, *difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)]
    return f", did you mean '{nearest[0]}'?" if nearest else ""


def _is_option(argument: str) -> bool:
    """Tells whether an argument is an option; a number below zero is a value, and so is what is longer than a name."""
    return argument.startswith("--") or (argument.startswith("-") and argument[1:2].isalpha())


def _next_value(option: str, rest: deque[str]) -> str:
    if not rest or rest[0].startswith("--"):
        raise UserError(f"{option} needs a value")
    return rest.popleft()


def _name_of(option: str) -> str:
    """Name of the parameter that an option is for."""
    return option.lstrip("-").replace("-", "_")


def _current(name: str, synonyms: Mapping[str, str]) -> str:
    """Name that an option has now; of an earlier one it is said."""
    if name not in synonyms:
        return name
    print(f"--{name} is now --{synonyms[name]}; the old spelling works in this release only", file=sys.stderr)
    return synonyms[name]


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    is_union = isinstance(annotation, types.UnionType) or get_origin(annotation) is Union
    return get_args(annotation) if is_union else (annotation,)


def _allowed(annotation: Any) -> str:
    """Values that a type allows, in words."""
    choices = _choices(annotation)
    if len(choices) > 1:
        return " or ".join(map(_allowed, choices))
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if origin is tuple and Ellipsis not in get_args(annotation):
        return f"[{', '.join(map(_allowed, get_args(annotation)))}]"
    if origin in (list, tuple):
        return f"a list of {_allowed(get_args(annotation)[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return "names with values, as in {name: value}" if origin is dict else names.get(annotation, str(annotation))
