"""Hook specifications and the plugin manager (https://pluggy.readthedocs.io).

A plugin is a module behind an entry point. It implements any of the hooks below:

    from sophserve.plugins import hookimpl

    @hookimpl
    def register_architectures(register):
        register("MyModelForCausalLM", MyModelForCausalLM)

Entry points of group `sophserve` are loaded where the model runs. The parsers of answers work in the server process,
which does without torch: they have entry points of group `sophserve.text`. A command is an entry point of group
`sophserve.commands`, which is loaded when it is called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from sophserve.errors import ConfigError

PROJECT = "sophserve"
TEXT = "sophserve.text"
COMMANDS = "sophserve.commands"
log = logging.getLogger(__name__)
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[[str, Any], None]


class Hooks:
    """Everything that a plugin can add."""

    @hookspec
    def register_architectures(self, register: Register) -> None:
        """Call `register(name, model_class)` for each name of config.json's `architectures` that the plugin serves."""

    @hookspec
    def register_quantizations(self, register: Register) -> None:
        """Call `register(quant_method, scheme_class)` for each on-disk format that the plugin reads."""

    @hookspec
    def register_tool_parsers(self, register: Register) -> None:
        """Call `register(name, parser_class)` for each format of tool calls, a sophserve.text.tool_parser.ToolParser.
        Group sophserve.text."""

    @hookspec
    def register_reasoning_parsers(self, register: Register) -> None:
        """Call `register(name, parser_class)` for each way to mark reasoning, a
        sophserve.text.reasoning.ReasoningParser. Group sophserve.text."""

    @hookspec
    def register_image_processors(self, register: Register) -> None:
        """Call `register(name, processor_class)` for each name of config.json's `architectures` whose images the plugin
        processes, a sophserve.media.processor.ImageProcessor. Group sophserve.text."""

    @hookspec
    def register_devices(self, register: Register) -> None:
        """Call `register(name, device_class)` for each kind of device that the plugin drives."""


@dataclass(frozen=True)
class Registered:
    """One thing that a plugin registered: its name, the object and the distribution that it came from."""

    name: str
    value: Any
    distribution: str


@dataclass
class Plugins:
    """Those of one group that could be loaded, each under the distribution that it came from."""

    manager: pluggy.PluginManager
    distributions: dict[Any, str]


# Plugins that failed to load, and why, in words.
_broken: list[str] = []


@cache
def plugins_of(group: str = PROJECT) -> Plugins:
    """Every installed plugin of a group. One that does not load is left out; see `left_out`."""
    found = Plugins(pluggy.PluginManager(PROJECT), {})
    found.manager.add_hookspecs(Hooks)
    for entry in entry_points(group=group):
        try:
            plugin = entry.load()
            found.manager.register(plugin, entry.name)
            found.distributions[plugin] = distribution(entry)
            found.manager.check_pending()
        except Exception as error:
            found.manager.set_blocked(entry.name)
            if found.manager.has_plugin(entry.name):
                found.manager.unregister(name=entry.name)
            _leave_out(f"{entry.name} of {distribution(entry)}", error)
    return found


def _leave_out(plugin: str, error: Exception) -> None:
    _broken.append(f"{plugin} ({type(error).__name__}: {error})")
    log.warning("the plugin %s failed to load and is left out; repair or uninstall it", _broken[-1])


def left_out() -> str:
    """The end of a sentence about something that no plugin provides: those that may, but failed to load."""
    return f"; left out, since they failed to load: {', '.join(_broken)}" if _broken else ""


def distribution(entry: EntryPoint) -> str:
    """The name of the package that an entry point is from."""
    return entry.dist.name if entry.dist else "unknown"


@cache
def _collect(hook: str, group: str = PROJECT) -> dict[str, Registered]:
    plugins = plugins_of(group)
    found: dict[str, Registered] = {}
    for implementation in getattr(plugins.manager.hook, hook).get_hookimpls():
        source = plugins.distributions[implementation.plugin]
        mine: list[tuple[str, Any]] = []

        def register(name: str, value: Any, mine: list[tuple[str, Any]] = mine) -> None:
            mine.append((name, value))

        try:
            implementation.function(register)
        except Exception as error:
            _leave_out(f"{implementation.plugin_name} of {source}", error)
            continue
        for name, value in mine:
            if name in found:
                raise ConfigError(
                    f"{name} is registered by both {found[name].distribution} and {source}; uninstall one"
                )
            found[name] = Registered(name, value, source)
    return dict(sorted(found.items()))


@cache
def commands() -> dict[str, EntryPoint]:
    """The commands `sophserve NAME` by name; each is a function of its arguments that returns the exit code."""
    found = sorted(entry_points(group=COMMANDS), key=lambda entry: distribution(entry) == PROJECT)
    return {entry.name: entry for entry in found}  # what comes with sophserve is last, and keeps its names


def load_command(name: str) -> Callable[[Sequence[str]], int]:
    """The function of a command. Raises ConfigError for one that does not load."""
    entry = commands()[name]
    try:
        function: Callable[[Sequence[str]], int] = entry.load()
    except Exception as error:
        raise ConfigError(
            f"the command {name} of {distribution(entry)} failed to load: {type(error).__name__}: {error}; repair or "
            "uninstall it",
            help="plugin",
        ) from error
    return function


architectures = partial(_collect, "register_architectures")
"""Model classes by the name in config.json's `architectures`."""
quantizations = partial(_collect, "register_quantizations")
"""Quantization schemes by `quant_method`."""
devices = partial(_collect, "register_devices")
"""Device classes by name."""
tool_parsers = partial(_collect, "register_tool_parsers", TEXT)
"""Parsers of tool calls by name."""
reasoning_parsers = partial(_collect, "register_reasoning_parsers", TEXT)
"""Parsers of reasoning by name."""
image_processors = partial(_collect, "register_image_processors", TEXT)
"""Image processors by the name in config.json's `architectures`."""
