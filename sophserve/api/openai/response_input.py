"""The body of /v1/responses, and its tools as chat completions have them."""

from __future__ import annotations

from typing import Any

import msgspec

from sophserve.api.generation.request_bodies import OutputFormat
from sophserve.api.generation.served_model import ServedModel
from sophserve.api.generation.tools import tool_parser
from sophserve.api.http.body import checked
from sophserve.api.openai.response_items import Item


class TextOptions(msgspec.Struct):
    """format: the form that the text must have. verbosity has no effect."""

    format: OutputFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    """effort: how much the model is to think, for templates that know of it."""

    effort: str | None = None
    summary: str | None = None


class _Named(msgspec.Struct):
    id: str


class InputRequest(msgspec.Struct, kw_only=True):
    """The fields that the prompt is made of. prompt names what OpenAI's servers keep."""

    input: str | list[Item]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    conversation: str | _Named | None = None

    @property
    def conversation_id(self) -> str | None:
        """Whose items come before the input."""
        return self.conversation.id if isinstance(self.conversation, _Named) else self.conversation


class _AllowedTools(msgspec.Struct):
    tools: list[dict[str, Any]]
    mode: str = "auto"


class _WithAllowedTools(msgspec.Struct):
    tool_choice: _AllowedTools


class InputTokensRequest(InputRequest, kw_only=True):
    """The body of /v1/responses/input_tokens. No prompt has more or fewer tokens for text, truncation or
    personality."""

    input: str | list[Item] | None = None  # type: ignore[assignment]
    text: TextOptions | None = None
    truncation: str | None = None
    personality: str | None = None


class ResponsesRequest(InputRequest, kw_only=True):
    """The whole body: OpenAI's, and further fields of chat completions."""

    background: bool | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    stream: bool | None = None
    temperature: float | None = None
    text: TextOptions | None = None
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    timeout: float | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the logprobs of the answer's tokens are to be shown."""
        return self.top_logprobs is not None or "message.output_text.logprobs" in (self.include or [])


def offered_types(served: ServedModel) -> tuple[str, ...]:
    """The types of tools that are shown to the model. One that can call no tools is told nothing of custom ones, which
    clients offer to every model; its functions are refused."""
    return ("function", "custom") if tool_parser(served) else ("function",)


def function_tools(
    body: InputRequest, types: tuple[str, ...]
) -> tuple[list[dict[str, Any]], str | dict[str, Any] | None]:
    """tools of these types and tool_choice as chat completions have them. The others, which only OpenAI's servers can
    run, are left out: clients send them to every server."""
    tools = [
        {"type": "function", "function": _function(tool)} for tool in body.tools or [] if tool.get("type") in types
    ]
    choice = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") in types:
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        given = checked({"tool_choice": choice}, _WithAllowedTools).tool_choice
        names = [tool.get("name") for tool in given.tools if tool.get("type") in types]
        allowed = [{"type": "function", "function": {"name": name}} for name in names]
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": given.mode, "tools": allowed}}
    return tools, choice


def custom_names(tools: list[dict[str, Any]] | None) -> frozenset[str]:
    """The tools that take a text instead of arguments."""
    return frozenset(str(tool.get("name")) for tool in tools or [] if tool.get("type") == "custom")


def only_described(tools: list[dict[str, Any]] | None) -> list[str]:
    """Fields of tools whose demand the model is told, but not held to."""
    wanted = [(_syntax(tool), f"tools[{index}].format") for index, tool in enumerate(tools or [])]
    return [path for syntax, path in wanted if syntax not in (None, "regex")]


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    """A custom tool is a function of one text."""
    if tool["type"] == "function":
        return {name: value for name, value in tool.items() if name != "type"}
    text: dict[str, Any] = {"type": "string"}
    function = {name: tool[name] for name in ("name", "description") if tool.get(name) is not None}
    if syntax := _syntax(tool):
        definition = str(tool["format"].get("definition"))
        told = f"The input fits this grammar ({syntax}):\n{definition}"
        function["description"] = "\n\n".join(filter(None, [function.get("description"), told]))
        if syntax == "regex":
            text["pattern"] = f"^(?:{definition})$"
            function["strict"] = True
    schema = {"type": "object", "properties": {"input": text}, "required": ["input"], "additionalProperties": False}
    return function | {"parameters": schema}


def _syntax(tool: dict[str, Any]) -> str | None:
    """That of the grammar for what a custom tool takes."""
    form = tool.get("format") if tool.get("type") == "custom" else None
    return str(form.get("syntax")) if isinstance(form, dict) and form.get("type") == "grammar" else None
