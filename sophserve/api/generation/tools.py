"""Tools that a request offers the model, and how its answer is taken apart into reasoning, content and tool calls."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from sophserve.api.generation.request_bodies import ChatRequest
from sophserve.api.generation.served_model import Serving
from sophserve.api.http.body import checked
from sophserve.errors import RequestError
from sophserve.plugins import Registered, reasoning_parsers, tool_parsers
from sophserve.sampling import SamplingParams, StructuredOutput
from sophserve.text.answer_events import AnswerParser
from sophserve.text.json_size import check_json
from sophserve.text.parsers import chosen
from sophserve.text.reasoning import ReasoningParser
from sophserve.text.tool_grammar import ToolGrammar
from sophserve.text.tool_parser import ToolParser

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
    """Which tools there are, and whether the model must call one. limited: it was shown tools that it may not call.
    Raises RequestError for what cannot be served."""

    def __init__(self, serving: Serving, body: ChatRequest) -> None:
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
        if not (found := tool_parser(serving)):
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
        allowed = checked({_CHOICE: choice}, _WithChoice).tool_choice.allowed_tools
        names = [tool.function.name for tool in allowed.tools]
        if unknown := [name for name in names if name not in self.functions]:
            raise RequestError(f"{_CHOICE} allows {unknown[0]!r}, which is not among tools", _CHOICE)
        if not names:
            raise RequestError(f"{_CHOICE} allows no tool; name one, or set it to none", _CHOICE)
        self.functions = {name: self.functions[name] for name in names}
        self.limited = True
        return allowed.mode

    def call_id(self, prefix: str = "call_") -> str:
        """A new id of a tool call."""
        return (self.parser or ToolParser).call_id(prefix)


class AnswerFormat:
    """How the model writes its answer to one prompt. thinking: whether the answer begins with reasoning - for certain
    True, for certain False, or None where the model decides."""

    def __init__(self, serving: Serving, body: ChatRequest, use: ToolUse, prompt: list[int]) -> None:
        self._use = use
        self.call_id = use.call_id
        self._tokenizer = serving.tokenizer
        self._template = serving.chat_template.source(with_tools=True)
        found = reasoning_parser(serving)
        self._reasoning: type[ReasoningParser] | None = found.value if found else None
        self.thinking: bool | None = False
        if self._reasoning:
            self.thinking = self._thinks(self._reasoning, prompt, bool(body.continue_final_message))

    def parser(self) -> AnswerParser:
        """A new parser, for one answer."""
        reasoning = self._reasoning(bool(self.thinking)) if self._reasoning and self.thinking is not False else None
        tools = self._use.parser(self._use.functions) if self._use.parser else None
        return AnswerParser(reasoning, tools, self._use.parallel)

    def asked(self, params: SamplingParams) -> SamplingParams:
        """params that have the model call tools as it must, and keep to a form only behind its reasoning. Raises
        RequestError."""
        structured, use = params.structured, self._use
        if use.forced and structured:
            raise RequestError("a form of the answer and a tool_choice that demands calls exclude each other", _CHOICE)
        if use.parser:
            try:
                structured = self._with_calls(use.parser, structured)
            except RecursionError:
                raise RequestError("tools: a schema is nested too deeply", "tools") from None
            except ValueError as error:
                raise RequestError(f"tools: {error}; change it, or {self._way_out(structured)}", "tools") from None
        if structured and self.thinking and self._reasoning:
            structured = replace(structured, after=self._reasoning.closing)
        return replace(params, structured=structured, shown_token_ids=self._shown_token_ids())

    def _with_calls(self, parser: type[ToolParser], structured: StructuredOutput | None) -> StructuredOutput | None:
        """A form that calls have to fit as well, where there is a demand on either. Raises ValueError."""
        use = self._use
        functions = use.forced or list(use.functions.values())
        schemas = {function.name: _schema(function) for function in functions}
        strict = None if use.forced else [function.name for function in functions if function.strict]
        thinking = self._reasoning if self.thinking is None else None
        grammar = ToolGrammar(parser, self._template, self._tokenizer, schemas, strict, thinking)
        if use.forced:
            return StructuredOutput("lark", grammar.demanded(use.choice == "required" and use.parallel))
        if structured and structured.kind in ("json_object", "json_schema"):
            check_json(structured.value.encode())
            schema = json.loads(structured.value or '{"type": "object"}')
            if not isinstance(schema, dict | bool):
                raise ValueError("the form of the answer is no JSON schema, which is an object or a boolean")
            return StructuredOutput("lark", grammar.or_json(use.parallel, schema))
        if not structured and (strict or use.limited):
            return StructuredOutput("lark", grammar.free(use.parallel))
        return structured

    def _way_out(self, structured: StructuredOutput | None) -> str:
        if self._use.forced:
            return "set tool_choice to auto"
        return "leave out the form of the answer" if structured else "leave out strict and allowed_tools"

    def _shown_token_ids(self) -> list[int]:
        """Special tokens that the parser needs to see."""
        marks = [self._reasoning.opening, self._reasoning.closing] if self._reasoning else []
        if self._use.parser:
            marks += [*self._use.parser.markers, *self._use.parser.inner]
        ids = [self._tokenizer.special_id(mark) for mark in marks]
        return [token_id for token_id in ids if token_id is not None]

    def _thinks(self, reasoning: type[ReasoningParser], prompt: list[int], continued: bool) -> bool | None:
        end = self._tokenizer.decode(prompt[-_TAIL:], skip_special_tokens=False).rstrip()
        if end.endswith(reasoning.opening):
            return True
        if end.endswith(reasoning.closing) or continued:
            return False
        return True if reasoning.always else None


def tool_parser(serving: Serving) -> Registered | None:
    """How the model writes tool calls; None where that is not known."""
    return chosen(serving.config.tool_call_parser, tool_parsers(), serving.chat_template.source(with_tools=True))


def reasoning_parser(serving: Serving) -> Registered | None:
    """How the model marks its reasoning; None if it does not."""
    return chosen(serving.config.reasoning_parser, reasoning_parsers(), serving.chat_template.source())


def _schema(function: Function) -> dict[str, Any]:
    return {"type": "object"} | (function.parameters or {"properties": {}})


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
                raise RequestError(f"tool_choice names {name!r}, which is not among tools", _CHOICE)
            return functions[name]
        case "required" | {"type": "function", "function": {"name": str()}}:
            raise RequestError("tool_choice needs tools; give tools or leave it out", _CHOICE)
    raise RequestError(
        'tool_choice must be none, auto, required or {"type": "function", "function": {"name": ...}}', _CHOICE
    )
