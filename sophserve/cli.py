"""The command line: `sophserve --model X` serves, `sophserve COMMAND` does the rest.

Options come from the fields of EngineConfig and ServerConfig. Imports stay light until the worker runs.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import typing
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, Literal, NoReturn

import msgspec

from sophserve.config import EngineConfig, ServerConfig, option
from sophserve.errors import ConfigError, SophserveError

_CONFIGS = (EngineConfig, ServerConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the process's exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] in _COMMANDS:
            return _COMMANDS[argv[0]](argv[1:])
        return _serve(argv)
    except SophserveError as error:
        print(f"sophserve: error: {error}", file=sys.stderr)
        return 1


def _serve(argv: Sequence[str]) -> int:
    started = time.monotonic()
    engine_config, server_config = parse(argv)
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s",
        level=server_config.log_level.upper(),
        stream=sys.stderr,
    )
    from sophserve.checkpoint import read_config, resolve_model
    from sophserve.engine.engine import Engine

    directory = resolve_model(engine_config.model)
    read_config(directory)
    engine = Engine(engine_config, directory)
    engine.start_worker()
    # The worker takes seconds to start; what the server needs is imported meanwhile.
    from sophserve.api.server import run

    run(engine, server_config, started)
    return 0


def _plugins(argv: Sequence[str]) -> int:
    parser = _Parser("plugins", "List registered architectures, devices and quantizations.")
    parser.parse_args(argv)
    from sophserve import plugins

    kinds = {
        "architectures": plugins.architectures(),
        "devices": plugins.devices(),
        "quantizations": plugins.quantizations(),
    }
    width = max((len(name) for found in kinds.values() for name in found), default=0)
    for kind, found in kinds.items():
        print(f"{kind}:" if found else f"{kind}: none")
        for entry in found.values():
            print(f"  {entry.name:<{width}}  from {entry.distribution}")
    return 0


def _quantize(argv: Sequence[str]) -> int:
    parser = _Parser("quantize", "Write a plain checkpoint quantized, in the method's standard format.")
    parser.add_argument("model", metavar="MODEL", help="a directory with a checkpoint, or a Hub id")
    parser.add_argument("target", metavar="OUT", help="the directory to write, which must be empty or not exist")
    parser.add_argument(
        "--method",
        choices=("gptq", "fp8"),
        default="gptq",
        help="gptq: 4 bits in groups of 128; fp8: float8 in blocks of 128 x 128 (default: gptq)",
    )
    given = parser.parse_args(argv)
    from pathlib import Path

    from tqdm import tqdm

    from sophserve import plugins
    from sophserve.checkpoint import resolve_model

    source, target = resolve_model(given.model), Path(given.target)
    known = plugins.quantizations()
    if given.method not in known:
        raise ConfigError(f"no installed plugin provides {given.method}")
    with tqdm(desc=f"quantizing to {given.method}", unit="B", unit_scale=True) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        known[given.method].value.convert(source, target, on_progress)
    sizes = [sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in (source, target)]
    print(f"{target}: {sizes[1] / 2**20:.0f} MiB of weights, {100 * sizes[1] / sizes[0]:.0f}% of {source}'s")
    return 0


def _cache(argv: Sequence[str]) -> int:
    parser = _Parser("cache", "List or clear the packed weights that are kept of quantized checkpoints.")
    parser.add_argument("action", choices=("list", "clear"))
    parser.add_argument("--model", required=True, metavar="MODEL", help="the checkpoint's directory, or a Hub id")
    parser.add_argument("--reorder-cache-dir", default=None, metavar="DIR", help="as given to the server")
    given = parser.parse_args(argv)
    from sophserve import reorder_cache
    from sophserve.checkpoint import resolve_model

    directory = reorder_cache.cache_directory(resolve_model(given.model), given.reorder_cache_dir)
    found = reorder_cache.entries(directory)
    for path in found:
        size = path.stat().st_size
        if given.action == "clear":
            path.unlink()
        print(f"{size / 2**20:10.1f} MiB  {path}{' removed' if given.action == 'clear' else ''}")
    if not found:
        print(f"{directory} holds nothing")
    return 0


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"plugins": _plugins, "quantize": _quantize, "cache": _cache}


def parse(argv: Sequence[str]) -> tuple[EngineConfig, ServerConfig]:
    """The configuration that a command line asks for, over that of its --config file. Raises ConfigError."""
    parser = _Parser("", "Serve a large language model over the OpenAI API.")
    parser.usage = "sophserve --model MODEL [option ...]\n       sophserve {plugins,quantize,cache} [option ...]"
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version and exit")
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of these options; the command line wins")
    for config in _CONFIGS:
        group = parser.add_argument_group(
            "model and engine" if config is EngineConfig else "server",
        )
        for field in msgspec.structs.fields(config):
            _add_option(group, field)
    given = vars(parser.parse_args(argv))
    file = given.pop("config", None)
    values = (_read_file(file) if file is not None else {}) | given
    if "model" not in values:
        raise ConfigError("--model is required: a directory with a checkpoint, or a Hub id")
    engine, server = (_convert(config, values, file) for config in _CONFIGS)
    return engine, server


def _convert(config: type[Any], values: dict[str, Any], file: str | None) -> Any:
    names = config.__struct_fields__
    try:
        return msgspec.convert({name: values[name] for name in names if name in values}, config)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`").replace("_", "-")
        raise ConfigError(f"{file}: {name}: {problem[0].lower()}{problem[1:]}") from None


def _read_file(path: str) -> dict[str, Any]:
    import tomllib
    from pathlib import Path

    try:
        options = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read --config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--config {path} is not a TOML file: {error}") from None
    known = {name: name for config in _CONFIGS for name in config.__struct_fields__}
    found = {}
    for key, value in options.items():
        name = known.get(key.replace("-", "_"))
        if name is None:
            names = [field.replace("_", "-") for field in known]
            raise ConfigError(f"{path} has the unknown option {key!r}{did_you_mean(key, names)}")
        found[name] = value
    return found


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """`; did you mean X?` for the closest of names, or nothing."""
    import difflib

    close = difflib.get_close_matches(name, names, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


class _ShowVersion(argparse.Action):
    """Looks the version up only when it is shown."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        import sophserve

        print(f"sophserve {sophserve.__version__}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Absent options stay absent; an error is one line."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"sophserve {command}".rstrip(),
            description=description,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, extra = self.parse_known_args(args, namespace)
        if extra:
            self._refuse(extra[0].partition("=")[0])
        return found

    def _refuse(self, argument: str) -> NoReturn:
        if argument.startswith("-"):
            hint = did_you_mean(argument, list(self._option_string_actions))
            self.error(f"unknown option {argument}{hint or '; see sophserve --help'}")
        hint = did_you_mean(argument, list(_COMMANDS))
        self.error(f"unexpected argument {argument!r}{hint or '; a model is given as --model X'}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _add_option(group: argparse._ArgumentGroup, field: msgspec.structs.FieldInfo) -> None:
    kind, meta = typing.get_args(field.type)
    if NoneType in typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    name, text = option(field.encode_name), meta.description
    if kind is bool:
        state = "on" if field.default else "off"
        group.add_argument(
            name, nargs="?", const=True, type=_switch, metavar="true|false", help=f"{text} (default: {state})"
        )
        group.add_argument(
            "--no-" + name[2:], dest=field.name, action="store_const", const=False, help=argparse.SUPPRESS
        )
    elif typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        group.add_argument(name, choices=choices, help=f"{text} (default: {field.default})")
    elif typing.get_origin(kind) is list:
        group.add_argument(name, nargs="+", action="extend", metavar="TEXT", help=text)
    else:
        if field.default not in (None, msgspec.NODEFAULT):
            text += f" (default: {field.default})"
        group.add_argument(name, type=kind, metavar="TEXT" if kind is str else "N", help=text)


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"
