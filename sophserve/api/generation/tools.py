"""Tools that a request offers the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sophserve.api.generation.request_bodies import ChatRequest
from sophserve.api.generation.served_model import ServedModel
from sophserve.api.http.body import checked
from sophserve.errors import RequestError
from sophserve.plugins import Registered, reasoning_parsers, tool_parsers
from sophserve.text.parsers import chosen
from sophserve.text.tool_parser import ToolParser

TOOL_CHOICE = "tool_choice"


class Function(msgspec.Struct):
    """What the model may call. parameters: the JSON schema of its arguments."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """One entry of `tools`."""

    type: str
    function: Function


class _Tools(msgspec.Struct):
    tools: list[Tool]


class _Name(msgspec.Struct):
    name: str


class _Allowed(msgspec.Struct):
    type: str
    function: _Name


class _AllowedTools(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: list[_Allowed]


class _Choice(msgspec.Struct):
    allowed_tools: _AllowedTools


class _WithChoice(msgspec.Struct):
    tool_choice: _Choice


Choice = Function | Literal["none", "auto", "required"]


class ToolUse:
    """Which tools there are, and whether the model must call one. limited: it was shown tools that it may not call.
    Raises RequestError for what cannot be served."""

    def __init__(self, served: ServedModel, body: ChatRequest) -> None:
        self.limited = False
        self.functions = {tool.function.name: tool.function for tool in _tools(body)}
        if isinstance(body.tool_choice, dict) and body.tool_choice.get("type") == "allowed_tools":
            self.choice: Choice = self._allow(body.tool_choice)
        else:
            self.choice = _choice(body, self.functions)
        self.parallel = body.parallel_tool_calls is not False
        self.parser: type[ToolParser] | None = None
        if not self.functions or self.choice == "none":
            return
        if not (found := tool_parser(served)):
            raise RequestError(
                "tools are not supported: the chat template shows no format of tool calls that is known here; start "
                "the server with --tool-call-parser NAME, or set tool_choice to none",
                "tools",
            )
        self.parser = found.value

    @property
    def forced(self) -> list[Function]:
        """The tools of which the model must call one; empty where it is free."""
        if isinstance(self.choice, Function):
            return [self.choice]
        return list(self.functions.values()) if self.choice == "required" else []

    def _allow(self, choice: dict[str, Any]) -> Literal["auto", "required"]:
        """Leave only the tools that may be called; the model is shown them all, so that its prompt stays the same."""
        allowed = checked({TOOL_CHOICE: choice}, _WithChoice).tool_choice.allowed_tools
        names = [tool.function.name for tool in allowed.tools]
        if unknown := [name for name in names if name not in self.functions]:
            raise RequestError(f"{TOOL_CHOICE} allows {unknown[0]!r}, which is not among tools", TOOL_CHOICE)
        if not names:
            raise RequestError(f"{TOOL_CHOICE} allows no tool; name one, or set it to none", TOOL_CHOICE)
        self.functions = {name: self.functions[name] for name in names}
        self.limited = True
        return allowed.mode


def tool_parser(served: ServedModel) -> Registered | None:
    """How the model writes tool calls; None where that is not known."""
    return chosen(served.config.tool_call_parser, tool_parsers(), served.chat_template.source(with_tools=True))


def reasoning_parser(served: ServedModel) -> Registered | None:
    """How the model marks its reasoning; None if it does not."""
    return chosen(served.config.reasoning_parser, reasoning_parsers(), served.chat_template.source())


def _tools(body: ChatRequest) -> list[Tool]:
    if not body.tools:
        return []
    for index, given in enumerate(body.tools):
        kind = given.get("type", "function")
        if isinstance(kind, str) and kind != "function":
            where = f"tools[{index}].type"
            raise RequestError(
                f"{where}: tools of type {kind[:64]!r} are not supported; describe it as a function", where
            )
    tools = checked({"tools": body.tools}, _Tools).tools
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where, function = f"tools[{index}]", tool.function
        if function.name in names:
            raise RequestError(f"{where}.function.name: {function.name!r} is there already", f"{where}.function.name")
        names.add(function.name)
        if (function.parameters or {}).get("type", "object") != "object":
            where += ".function.parameters"
            raise RequestError(f"{where}: must be a JSON schema of type object", where)
    return tools


def _choice(body: ChatRequest, functions: dict[str, Function]) -> Choice:
    match body.tool_choice:
        case None | "auto":
            return "auto"
        case "none":
            return "none"
        case "required" if functions:
            return "required"
        case {"type": "function", "function": {"name": str(name)}} if functions:
            if name not in functions:
                raise RequestError(f"tool_choice names {name!r}, which is not among tools", TOOL_CHOICE)
            return functions[name]
        case "required" | {"type": "function", "function": {"name": str()}}:
            raise RequestError("tool_choice needs tools; give tools or leave it out", TOOL_CHOICE)
    raise RequestError(
        'tool_choice must be none, auto, required or {"type": "function", "function": {"name": ...}}', TOOL_CHOICE
    )
