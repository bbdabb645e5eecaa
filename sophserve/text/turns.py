"""Conversations in the words and the order that a chat template takes."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

from sophserve.errors import RequestError
from sophserve.text import exact_json

Message = dict[str, Any]
Rewrite = Callable[[list[Message]], list[Message]]

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
BETWEEN_TURNS = "\n\n"


def modern(messages: list[Message]) -> list[Message]:
    """Copies of the messages in which everything goes by today's names: what OpenAI's API had before there were tools
    (function_call, and the role function that answers it), calls of custom tools, refusals, and reasoning. Raises
    RequestError."""
    renewed: list[Message] = []
    last_call: dict[str, str] = {}  # ids of calls by the function's name
    for index, given in enumerate(messages):
        if not isinstance(given, dict) or not isinstance(given.get("role"), str):
            raise RequestError(f"messages[{index}].role: is missing", f"messages[{index}].role")
        message = {key: value for key, value in given.items() if value is not None}
        if isinstance(call := message.pop("function_call", None), dict) and not message.get("tool_calls"):
            identity = last_call[str(call.get("name"))] = f"call{index:05d}"  # nine characters, as some templates want
            message["tool_calls"] = [{"id": identity, "type": "function", "function": call}]
        if message.get("role") == "function":
            identity = last_call.get(str(message.get("name")), f"call{index:05d}")
            message = {"tool_call_id": identity} | message | {"role": "tool"}
        if isinstance(message.get("tool_calls"), list):
            message["tool_calls"] = list(map(_as_function_call, message["tool_calls"]))
        if isinstance(refusal := message.pop("refusal", None), str):
            message["content"] = together([message.get("content"), refusal])
        reasoning = next((message[name] for name in REASONING_FIELDS if name in message), None)
        if reasoning is not None:
            message = {**message, **dict.fromkeys(REASONING_FIELDS, reasoning)}
        if message["role"] in ("assistant", "tool"):
            message.setdefault("content", "")
        renewed.append(message)
    return renewed


def _as_function_call(call: Any) -> Any:
    """A call of a custom tool, whose input is a text, as that of a function with one argument."""
    if not isinstance(call, dict) or not isinstance(custom := call.get("custom"), dict):
        return call
    arguments = exact_json.dumps({"input": custom.get("input", "")}, ensure_ascii=False)
    function = {"name": custom.get("name"), "arguments": arguments}
    return {"id": call.get("id"), "type": "function", "function": function}


def text_of(parts: list[Any], role: str) -> str | None:
    """Parts of a content as one text; None if one of them is no text. Those of what a tool gave are pieces of it, those
    of a message stand on lines of their own."""
    texts = [text for part in parts if isinstance(part, dict) and isinstance(text := part.get("text"), str)]
    return _joint(role).join(texts) if len(texts) == len(parts) else None


def _joint(role: str) -> str:
    return "" if role == "tool" else "\n"


def together(contents: list[Any], role: str = "") -> Any:
    """Several contents as one."""
    contents = [content for content in contents if content]
    texts = [text_of(content, role) if isinstance(content, list) else content for content in contents]
    if all(isinstance(text, str) for text in texts):
        return BETWEEN_TURNS.join(texts)  # type: ignore[arg-type]
    parts: list[Any] = []
    for content in contents:
        parts += [text_part(BETWEEN_TURNS)] if parts else []
        parts += content if isinstance(content, list) else [text_part(content)]
    return parts


def text_part(text: str) -> dict[str, str]:
    """A part of a content."""
    return {"type": "text", "text": text}


def is_image(part: Any) -> bool:
    """Whether a part of a content stands for an image."""
    return isinstance(part, dict) and part.get("type") == "image"


@dataclass(frozen=True)
class Order:
    """Which orders of turns a chat template takes; the others are changed to ones that it does.

    system: one at the beginning. system_alone: nothing but that. systems: several there. late_system: one further on.
    users, assistants: several in a row. assistant_first: the conversation may begin with one. user_after_tool: no
    assistant between. empty_assistant: one without text there. calls_together: several in one message. results: what
    tools gave is printed at all.
    """

    system: bool = True
    system_alone: bool = True
    systems: bool = True
    late_system: bool = True
    users: bool = True
    assistants: bool = True
    assistant_first: bool = True
    user_after_tool: bool = True
    empty_assistant: bool = True
    calls_together: bool = True
    results: bool = True

    def fitted(self, messages: list[Message]) -> list[Message]:
        """The conversation in an order that is taken. Nothing is left out of it."""
        for taken, rewrite in (
            (self.results, _results_as_users),
            (self.calls_together, _one_call_at_a_time),
            (self.system, _systems_as_users),
            (self.system_alone, _system_alone_as_user),
            (self.systems, _one_system),
            (self.late_system, _late_systems_as_users),
            (self.user_after_tool, self._bridged),
            (self.users, _merged("user")),
            (self.assistants, _merged("assistant")),
            (self.assistant_first, _user_first),
        ):
            if not taken:
                messages = rewrite(messages)
        return messages

    def _bridged(self, messages: list[Message]) -> list[Message]:
        """An empty answer between a tool's result and the user, or where there can be none what the user says behind
        the result."""
        fitted: list[Message] = []
        for role, group in _groups(messages):
            if role == "user" and fitted and fitted[-1]["role"] == "tool":
                if not self.empty_assistant:
                    fitted[-1] = _merge([fitted[-1], *group])
                    continue
                fitted.append({"role": "assistant", "content": ""})
            fitted += group
        return fitted


def _groups(messages: list[Message]) -> Iterator[tuple[str, list[Message]]]:
    """Those of one role that follow each other."""
    return ((role, list(group)) for role, group in groupby(messages, key=itemgetter("role")))


def _leading_systems(messages: list[Message]) -> int:
    return next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))


def _as_users(messages: Iterable[Message]) -> list[Message]:
    return [message | {"role": "user"} if message["role"] == "system" else message for message in messages]


def _systems_as_users(messages: list[Message]) -> list[Message]:
    """The first one belongs to what the user says next, as templates do it that know where to put it."""
    count = _leading_systems(messages)
    if count and count < len(messages) and messages[count]["role"] == "user":
        count += 1
    return [*_merged("user")(_as_users(messages[:count])), *_as_users(messages[count:])]


def _system_alone_as_user(messages: list[Message]) -> list[Message]:
    return _as_users(messages) if _leading_systems(messages) == len(messages) else messages


def _one_system(messages: list[Message]) -> list[Message]:
    count = _leading_systems(messages)
    return [*_merged("system")(messages[:count]), *messages[count:]]


def _late_systems_as_users(messages: list[Message]) -> list[Message]:
    """Where they stand, so that the beginning of a conversation stays what it was."""
    count = _leading_systems(messages)
    return [*messages[:count], *_as_users(messages[count:])]


def _user_first(messages: list[Message]) -> list[Message]:
    count = _leading_systems(messages)
    if messages[count:] and messages[count]["role"] != "user":
        return [*messages[:count], {"role": "user", "content": ""}, *messages[count:]]
    return messages


def _merged(merged: str) -> Rewrite:
    """Turns of that role which follow each other are one."""

    def rewrite(messages: list[Message]) -> list[Message]:
        groups = ([_merge(group)] if role == merged else group for role, group in _groups(messages))
        return list(chain.from_iterable(groups))

    return rewrite


def _merge(messages: list[Message]) -> Message:
    """One message of the first one's role."""
    first, *others = messages
    if not others:
        return first
    merged = dict(ChainMap(*messages))
    merged["content"] = together([message.get("content") for message in messages], first["role"])
    if calls := list(chain.from_iterable(map(_calls, messages))):
        merged["tool_calls"] = calls
    for name in REASONING_FIELDS:
        if thoughts := [message[name] for message in messages if name in message]:
            merged[name] = BETWEEN_TURNS.join(thoughts)
    return merged


def _calls(message: Message) -> list[Any]:
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) else []


def _one_call_at_a_time(messages: list[Message]) -> list[Message]:
    """Calls that were made together one after the other, each with its result."""
    fitted: list[Message] = []
    waiting: list[Message] = []  # calls whose results have not come yet
    for role, group in _groups(messages):
        if role == "tool":
            fitted += _with_results(waiting, group)
        else:
            fitted += waiting
            fitted += chain.from_iterable(map(_each_call, group[:-1]))
        waiting = [] if role == "tool" else _each_call(group[-1])
    return fitted + waiting


def _each_call(message: Message) -> list[Message]:
    first, *others = _calls(message) or [None]
    said = message if first is None else message | {"tool_calls": [first]}
    return [said, *({"role": "assistant", "content": "", "tool_calls": [call]} for call in others)]


def _with_results(calls: list[Message], results: list[Message]) -> Iterator[Message]:
    by_call: dict[Any, list[Message]] = {}
    for result in results:
        by_call.setdefault(result.get("tool_call_id"), []).append(result)
    for said in calls:
        yield said
        for call in _calls(said):
            yield from by_call.pop(call.get("id") if isinstance(call, dict) else None, [])
    yield from chain.from_iterable(by_call.values())


def _results_as_users(messages: list[Message]) -> list[Message]:
    """What tools gave as what the user says, and the calls as what the assistant said."""
    return list(_without_tools(messages))


def _without_tools(messages: Iterable[Message]) -> Iterator[Message]:
    for message in messages:
        if calls := _calls(message):
            functions = [call.get("function", call) if isinstance(call, dict) else call for call in calls]
            told = "\n".join(exact_json.dumps(function, ensure_ascii=False) for function in functions)
            content = together([message.get("content"), told], "assistant")
            yield {key: value for key, value in message.items() if key != "tool_calls"} | {"content": content}
        elif message["role"] == "tool":
            yield {"role": "user", "content": message.get("content", "")}
        else:
            yield message
