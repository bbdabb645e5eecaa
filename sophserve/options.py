"""The options of the command line: those of EngineConfig and ServerConfig, and how every command reads its own."""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar

import msgspec

from sophserve.checkpoint import SHIPPED
from sophserve.config import Count, EngineConfig, JsonObject, ServerConfig, option, read_count, read_object
from sophserve.errors import ConfigError
from sophserve.other_servers import NEEDLESS, SAME, answer, answer_command
from sophserve.plugins import commands

C = TypeVar("C", bound=msgspec.Struct)
_CONFIGS: dict[str, type[msgspec.Struct]] = {"model and engine": EngineConfig, "server": ServerConfig}


def parse(argv: Sequence[str]) -> tuple[EngineConfig, ServerConfig]:
    """The configuration that a command line asks for, over that of its --config file. Raises ConfigError."""
    parser = CommandParser("", "Serve a large language model over the OpenAI API.")
    if not {"-h", "--help"}.isdisjoint(argv):
        parser.usage = f"sophserve --model MODEL [option ...]\n       sophserve {{{','.join(commands())}}} [option ...]"
    parser.add_argument("positional", nargs="?", metavar="MODEL", help="the same as --model")
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version and exit")
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of these options; the command line wins")
    for title, config in _CONFIGS.items():
        group = parser.add_argument_group(title)
        for field in msgspec.structs.fields(config):
            _add_option(group, field)
    if argv and not argv[0].startswith("-"):
        parser.check_model(argv[0])
    given = vars(parser.parse_args(argv))
    model = given.pop("positional", None)
    if model is not None:
        if "model" in given:
            parser.error(f"the model is given twice: {model} and --model {given['model']}")
        given["model"] = model
    file = given.pop("config", None)
    values = (_read_file(file) if file is not None else {}) | given
    if "model" not in values:
        raise ConfigError("--model is required: a directory with a checkpoint, a Hub id, or demo")
    return convert(EngineConfig, values, file), convert(ServerConfig, values, file)


def add_options(
    parser: argparse.ArgumentParser, title: str, config: type[msgspec.Struct], names: Sequence[str]
) -> None:
    """Give a command a group of options, by the names of a config's fields."""
    group = parser.add_argument_group(title)
    fields = {field.name: field for field in msgspec.structs.fields(config)}
    for name in names:
        _add_option(group, fields[name])


def add_engine_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Give a command some of the server's options, by the names of EngineConfig's fields."""
    add_options(parser, "as the server's", EngineConfig, names)


def add_server_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """As add_engine_options, by the names of ServerConfig's fields."""
    add_options(parser, "as the server's, for its API", ServerConfig, names)


def server_config(values: dict[str, Any]) -> ServerConfig:
    """The configuration with these options, by the names of ServerConfig's fields. Raises ConfigError."""
    return convert(ServerConfig, values, None)


def engine_config(values: dict[str, Any]) -> EngineConfig:
    """The configuration with these options, by the names of EngineConfig's fields. Raises ConfigError."""
    values = {name: value for name, value in values.items() if option(name) not in NEEDLESS}
    for name in values:
        if name not in EngineConfig.__struct_fields__:
            hint = did_you_mean(name, EngineConfig.__struct_fields__)
            raise ConfigError(answer(option(name)) or f"there is no option {name}{hint}")
    return convert(EngineConfig, values, None)


def convert(config: type[C], values: dict[str, Any], file: str | None = None) -> C:
    """A config of the kind of EngineConfig with those of the values that it has. file: where they are from. Raises
    ConfigError."""
    about = {field.name: typing.get_args(field.type)[1] for field in msgspec.structs.fields(config)}
    given = {name: values[name] for name in about if name in values}
    for name, value in given.items():
        if isinstance(value, str) and isinstance(about[name], Count):
            given[name] = read_count(value)
        elif isinstance(value, str) and isinstance(about[name], JsonObject):
            given[name] = read_object(value)
    try:
        return msgspec.convert(given, config)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`").replace("_", "-")
        place = f"{file}: {name}" if file is not None else option(name)
        raise ConfigError(f"{place}: {problem[0].lower()}{problem[1:]}") from None


def _read_file(path: str) -> dict[str, Any]:
    import tomllib

    try:
        options = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read --config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--config {path} is not a TOML file: {error}") from None
    known = [name for config in _CONFIGS.values() for name in config.__struct_fields__]
    for key in options:
        if key.replace("-", "_") not in known:
            if reason := answer(option(key)):
                raise ConfigError(f"{path}: {reason}")
            names = [name.replace("_", "-") for name in known]
            raise ConfigError(f"{path} has the unknown option {key!r}{did_you_mean(key, names)}")
    return {key.replace("-", "_"): value for key, value in options.items()}


def did_you_mean(name: str, names: Sequence[str], least: float = 0.6) -> str:
    """`; did you mean X?` for the closest of names, or nothing. least: how alike they must be, of 1."""
    import difflib

    close = difflib.get_close_matches(name, names, 1, least)
    return f"; did you mean {close[0]}?" if close else ""


class _ShowVersion(argparse.Action):
    """Looks the version up only when it is shown."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from sophserve.version import VERSION

        print(f"sophserve {VERSION}")
        parser.exit()


class CommandParser(argparse.ArgumentParser):
    """A command's options, under the name `sophserve COMMAND`: absent ones stay absent; an error is one line."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"sophserve {command}".rstrip(),
            description=description,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but other servers' names are known, and an unknown option is answered with a close one."""
        found, extra = self.parse_known_args(self._translated(args), namespace)
        if extra:
            self._refuse(extra[0].partition("=")[0])
        return found

    def _translated(self, args: Sequence[str]) -> list[str]:
        """The command line with the names of its own options. argparse takes no value that begins with a dash, so that
        whatever does is a name."""
        own, translated = self._option_string_actions, []
        for argument in args:
            name, equals, value = argument.partition("=")
            if name.startswith("--"):
                name = name.replace("_", "-")
            if name.startswith("-") and name not in own:
                if SAME.get(name) in own:
                    name = SAME[name]
                elif name in NEEDLESS:
                    print(f"{self.prog}: {name} changes nothing: {NEEDLESS[name]}", file=sys.stderr)
                    continue
                elif reason := answer(name):
                    self.error(reason)
            translated.append(name + equals + value if name.startswith("-") else argument)
        return translated

    def check_model(self, word: str) -> None:
        """Exit if what stands where a model may stand is a command, of sophserve or another server."""
        if Path(word).exists() or word in SHIPPED:
            return
        if reason := answer_command(word):
            self.error(reason)
        if "/" not in word and (hint := did_you_mean(word, list(commands()))):
            self.error(f"there is no model or command {word!r}{hint}")

    def _refuse(self, argument: str) -> NoReturn:
        if not argument.startswith("-"):
            hint = did_you_mean(argument, list(commands()))
            self.error(f"unexpected argument {argument!r}{hint or '; a model is given as --model X'}")
        # Short names that look alike have nothing in common.
        hint = did_you_mean(argument, list(self._option_string_actions), 0.75) if argument.startswith("--") else ""
        self.error(f"unknown option {argument}{hint or '; see sophserve --help'}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _add_option(group: argparse._ArgumentGroup, field: msgspec.structs.FieldInfo) -> None:
    kind, text = typing.get_args(field.type)
    if NoneType in typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    name = option(field.encode_name)
    if kind is bool:
        add_switch(group, name, f"{text} (default: {'on' if field.default else 'off'})")
    elif typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        read_choice = {str(choice): choice for choice in choices}
        kind = lambda text: read_choice.get(text, text)  # noqa: E731
        group.add_argument(name, type=kind, choices=choices, help=f"{text} (default: {field.default})")
    elif typing.get_origin(kind) is list:
        group.add_argument(name, nargs="+", action="extend", metavar="TEXT", help=text)
    elif isinstance(text, JsonObject):
        group.add_argument(name, type=json_object, metavar="JSON", help=text)
    else:
        read = count if isinstance(text, Count) else kind
        if field.default not in (None, msgspec.NODEFAULT):
            text += f" (default: {field.default})"
        group.add_argument(name, type=read, metavar="TEXT" if kind is str else "N", help=text)


def count(text: str) -> int:
    """read_count, for argparse."""
    try:
        return read_count(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def json_object(text: str) -> dict[str, Any]:
    """read_object, for argparse."""
    try:
        return read_object(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_switch(group: argparse._ActionsContainer, name: str, text: str) -> None:
    """An option that also takes true or false after it, and its `--no-` form."""
    group.add_argument(name, nargs="?", const=True, type=_switch, metavar="true|false", help=text)
    destination = name[2:].replace("-", "_")
    group.add_argument("--no-" + name[2:], dest=destination, action="store_const", const=False, help=argparse.SUPPRESS)


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"
