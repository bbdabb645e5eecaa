"""Which parsers read a model's answers: those that the server was told, or those that its chat template asks for."""

from __future__ import annotations

from sophserve.config import ServerConfig
from sophserve.errors import ConfigError
from sophserve.plugins import PROJECT, Registered, left_out, reasoning_parsers, tool_parsers


def check_parsers(config: ServerConfig) -> None:
    """Raise ConfigError for a parser that no plugin has registered."""
    for option, name, registered in (
        ("--tool-call-parser", config.tool_call_parser, tool_parsers),
        ("--reasoning-parser", config.reasoning_parser, reasoning_parsers),
    ):
        if name not in ("auto", "none") and name not in registered():
            known = ", ".join(["auto", "none", *registered()])
            raise ConfigError(f"{option} {name} is not installed; there are {known}{left_out()}")


def chosen(name: str, registered: dict[str, Registered], template: str) -> Registered | None:
    """The parser of that name; for auto one whose marks the template shows, those of further packages first."""
    if name != "auto":
        return registered.get(name)
    fitting = [entry for entry in registered.values() if entry.value.reads(template)]
    return min(fitting, key=lambda entry: entry.distribution == PROJECT, default=None)
