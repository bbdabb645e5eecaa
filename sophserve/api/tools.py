"""Tools that a request offers the model, and how its answer is taken apart into reasoning, content and tool calls."""

from __future__ import annotations

import secrets
import string
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from sophserve.api.body import checked
from sophserve.api.requests import ChatRequest
from sophserve.api.serving import Serving
from sophserve.errors import RequestError
from sophserve.sampling import SamplingParams, StructuredOutput
from sophserve.text.answer import AnswerParser
from sophserve.text.reasoning import CLOSE, OPEN, ReasoningParser, reasons
from sophserve.text.tool_formats import TOOL_PARSERS, tool_parser_of
from sophserve.text.tool_grammar import ToolGrammar

# Enough tokens of a prompt's end to hold a mark and the blanks around it, even letter by letter.
_TAIL = 24
_CHOICE = "tool_choice"


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
    """Which tools there are, and whether the model must call one. forced: the tools of which it must. Raises
    RequestError for what cannot be served."""

    def __init__(self, serving: Serving, body: ChatRequest) -> None:
        self.functions = {tool.function.name: tool.function for tool in _tools(body)}
        if isinstance(body.tool_choice, dict) and body.tool_choice.get("type") == "allowed_tools":
            self.choice: Choice = self._allow(body.tool_choice)
        else:
            self.choice = _choice(body, self.functions)
        self.parallel = body.parallel_tool_calls is not False
        self.parser = _tool_parser(serving) if self.functions and self.choice != "none" else None
        if self.functions and self.choice != "none" and self.parser is None:
            raise RequestError(
                "tools are not supported: the chat template shows no format of tool calls that is known here; start "
                "the server with --tool-call-parser NAME, or set tool_choice to none",
                "tools",
            )

    @property
    def forced(self) -> list[Function]:
        """The tools of which the model must call one; empty where it is free."""
        if isinstance(self.choice, Function):
            return [self.choice]
        return list(self.functions.values()) if self.choice == "required" else []

    def _allow(self, choice: dict[str, Any]) -> Literal["auto", "required"]:
        """Leave only the tools that may be called; the model is shown them all, so that its prompt stays the same."""
        allowed = checked({_CHOICE: choice}, _WithChoice).tool_choice.allowed_tools
        names = [tool.function.name for tool in allowed.tools]
        if unknown := [name for name in names if name not in self.functions]:
            raise RequestError(f"{_CHOICE} allows {unknown[0]!r}, which is not among tools", _CHOICE)
        if not names:
            raise RequestError(f"{_CHOICE} allows no tool; name one, or set it to none", _CHOICE)
        self.functions = {name: self.functions[name] for name in names}
        return allowed.mode

    def call_id(self, prefix: str = "call_") -> str:
        """A new id of a tool call. Mistral's templates want nine letters and digits."""
        if self.parser == "mistral":
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return f"{prefix}{uuid4().hex}"


class AnswerFormat:
    """How the model writes its answer to one prompt. thinking: whether the answer begins with reasoning - for certain
    True, for certain False, or None where the model decides."""

    def __init__(self, serving: Serving, body: ChatRequest, use: ToolUse, prompt: list[int]) -> None:
        self._use = use
        self.call_id = use.call_id
        self._tokenizer = serving.tokenizer
        self._template = serving.chat_template.source(with_tools=True)
        self._reasoning = _reasoning_parser(serving)
        self.thinking = self._thinks(prompt, bool(body.continue_final_message)) if self._reasoning else False

    def parser(self) -> AnswerParser:
        """A new parser, for one answer."""
        reasoning = None if self.thinking is False else ReasoningParser(bool(self.thinking))
        tools = TOOL_PARSERS[self._use.parser](self._use.functions) if self._use.parser else None
        return AnswerParser(reasoning, tools, self._use.parallel)

    def asked(self, params: SamplingParams) -> SamplingParams:
        """params that have the model call tools where it must, and keep to a form only behind its reasoning. Raises
        RequestError."""
        structured = params.structured
        if forced := self._use.forced:
            if structured:
                raise RequestError(
                    "a form of the answer and a tool_choice that demands calls exclude each other", _CHOICE
                )
            structured = StructuredOutput("lark", self._grammar(forced))
        if structured and self.thinking:
            structured = replace(structured, after=CLOSE)
        return replace(params, structured=structured, shown_token_ids=self._shown_token_ids())

    def _grammar(self, forced: list[Function]) -> str:
        use, schemas = self._use, {}
        for function in forced:
            schemas[function.name] = {"type": "object"} | (function.parameters or {"properties": {}})
        assert use.parser is not None, "tools cannot be used without a parser"
        try:
            grammar = ToolGrammar(use.parser, self._template, self._tokenizer, schemas)
            return grammar.text(several=use.choice == "required" and use.parallel, may_think=self.thinking is None)
        except ValueError as error:
            raise RequestError(f"tools: {error}; change it, or set tool_choice to auto", "tools") from None

    def _shown_token_ids(self) -> list[int]:
        """Special tokens that the parser needs to see."""
        marks = [OPEN, CLOSE] if self._reasoning else []
        if self._use.parser:
            parser = TOOL_PARSERS[self._use.parser]
            marks += [*parser.markers, *parser.inner]
        ids = [self._tokenizer.special_id(mark) for mark in marks]
        return [token_id for token_id in ids if token_id is not None]

    def _thinks(self, prompt: list[int], continued: bool) -> bool | None:
        end = self._tokenizer.decode(prompt[-_TAIL:], skip_special_tokens=False).rstrip()
        if end.endswith(OPEN):
            return True
        if end.endswith(CLOSE) or continued:
            return False
        return True if self._reasoning == "deepseek_r1" else None


def _tools(body: ChatRequest) -> list[Tool]:
    if not body.tools:
        return []
    tools = checked({"tools": body.tools}, _Tools).tools
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where, function = f"tools[{index}]", tool.function
        if tool.type != "function":
            raise RequestError(f"{where}.type: must be function, got {tool.type!r}", f"{where}.type")
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
                raise RequestError(f"tool_choice names {name!r}, which is not among tools", _CHOICE)
            return functions[name]
        case "required" | {"type": "function", "function": {"name": str()}}:
            raise RequestError("tool_choice needs tools; give tools or leave it out", _CHOICE)
    raise RequestError(
        'tool_choice must be none, auto, required or {"type": "function", "function": {"name": ...}}', _CHOICE
    )


def _tool_parser(serving: Serving) -> str | None:
    name = serving.config.tool_call_parser
    if name == "auto":
        return tool_parser_of(serving.chat_template.source(with_tools=True))
    return None if name == "none" else name


def _reasoning_parser(serving: Serving) -> str | None:
    name = serving.config.reasoning_parser
    if name == "auto":
        return "qwen3" if reasons(serving.chat_template.source()) else None
    return None if name == "none" else name
