"""Hook specifications and the plugin manager (https://pluggy.readthedocs.io).

A plugin is a module behind an entry point. It implements any of the hooks below:

    from sophserve.plugins import hookimpl

    @hookimpl
    def register_architectures(register):
        register("MyModelForCausalLM", MyModelForCausalLM)

Entry points of group `sophserve` are loaded where the model runs. The parsers of answers work in the server process,
which does without torch: they have entry points of group `sophserve.text`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pluggy

from sophserve.errors import ConfigError

PROJECT = "sophserve"
TEXT = "sophserve.text"
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
    def register_devices(self, register: Register) -> None:
        """Call `register(name, device_class)` for each kind of device that the plugin drives."""


@dataclass(frozen=True)
class Registered:
    """One thing that a plugin registered: its name, the object and the distribution that it came from."""

    name: str
    value: Any
    distribution: str


@cache
def plugin_manager(group: str = PROJECT) -> pluggy.PluginManager:
    """The manager with every installed plugin of a group loaded. A plugin that does not import raises ConfigError."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    try:
        manager.load_setuptools_entrypoints(group)
        manager.check_pending()
    except Exception as error:
        raise ConfigError(
            f"a sophserve plugin failed to load: {type(error).__name__}: {error}; repair or uninstall it",
            help="plugin",
        ) from error
    return manager


def _collect(hook: str, group: str = PROJECT) -> dict[str, Registered]:
    manager = plugin_manager(group)
    distributions = {plugin: dist.project_name for plugin, dist in manager.list_plugin_distinfo()}
    found: dict[str, Registered] = {}
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        distribution = distributions.get(implementation.plugin, "unknown")

        def register(name: str, value: Any, distribution: str = distribution) -> None:
            if name in found:
                raise ConfigError(
                    f"{name} is registered by both {found[name].distribution} and {distribution}; uninstall one"
                )
            found[name] = Registered(name, value, distribution)

        implementation.function(register)
    return dict(sorted(found.items()))


@cache
def architectures() -> dict[str, Registered]:
    """Model classes by the name in config.json's `architectures`."""
    return _collect("register_architectures")


@cache
def quantizations() -> dict[str, Registered]:
    """Quantization schemes by `quant_method`."""
    return _collect("register_quantizations")


@cache
def devices() -> dict[str, Registered]:
    """Device classes by name."""
    return _collect("register_devices")


@cache
def tool_parsers() -> dict[str, Registered]:
    """Parsers of tool calls by name."""
    return _collect("register_tool_parsers", TEXT)


@cache
def reasoning_parsers() -> dict[str, Registered]:
    """Parsers of reasoning by name."""
    return _collect("register_reasoning_parsers", TEXT)
