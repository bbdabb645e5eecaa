"""The jinja2 environment that checkpoints write their chat templates for.

Apart from the rest because jinja2 takes a tenth of a second to import. Globals, filters and tags are those of
https://huggingface.co/docs/transformers/chat_templating_writing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sophserve.text import exact_json

# The variable that says until when a template may run, by time.monotonic().
DEADLINE = "__deadline"
_IN_TIME = "__in_time"


class TooSlow(TemplateError):
    """A template ran for longer than it may."""


def _check_time(context: Context) -> None:
    if time.monotonic() > context.get(DEADLINE, math.inf):
        raise TooSlow("it takes too long")


@pass_context
def _in_time(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _check_time(context)
        yield value


class _CodeGenerator(CodeGenerator):
    """Checks the time at every turn of a loop."""

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        for loop in list(node.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, _IN_TIME, [], [], None, None, lineno=loop.lineno)
        super().visit_Template(node, frame)


class _Environment(ImmutableSandboxedEnvironment):
    """Checks the time at every call too: macros and recursive loops repeat by calling themselves."""

    code_generator_class = _CodeGenerator

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        _check_time(context)
        return super().call(context, function, *args, **kwargs)


class _GenerationTag(Extension):
    """`{% generation %}`, which marks what the model wrote for training; here it only has a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which a prompt is not."""
    return exact_json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def chat_environment() -> ImmutableSandboxedEnvironment:
    """A new environment. Templates cannot change what they are given, nor reach Python's internals, nor run for longer
    than until DEADLINE."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    environment.filters[_IN_TIME] = _in_time
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment
