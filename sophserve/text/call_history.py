"""Calls that were made earlier, by any model, as a chat template takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any, NamedTuple

from sophserve.errors import RequestError
from sophserve.json_size import check_json
from sophserve.text import exact_json

Message = dict[str, Any]

_SHORT = re.compile(r"[a-zA-Z0-9]{9}")
_LONG_ID = "call_of_another_server"
_SHORT_ID = "probe0001"


class CallForms(NamedTuple):
    """What a template takes. objects, texts: arguments as the one, as the other. long_ids: any ids, not only those of
    nine letters and digits."""

    objects: bool
    texts: bool
    long_ids: bool

    @classmethod
    def found(cls, render: Callable[[list[Message], list[Any]], str]) -> CallForms:
        """Those of a template, which is tried. render: makes a prompt of messages and tools, or raises RequestError."""

        def rendered(arguments: Any, identity: str = _SHORT_ID, tools: bool = False) -> str | None:
            function = {"name": "probe", "arguments": arguments}
            messages: list[Message] = [
                {"role": "user", "content": "probe"},
                {"role": "assistant", "content": "", "tool_calls": [_call(identity, function)]},
                {"role": "tool", "content": "result", "tool_call_id": identity, "name": "probe"},
            ]
            offered = {"type": "function", "function": {"name": "probe", "description": "", "parameters": {}}}
            try:
                return render(messages if tools else messages[:2], [offered] if tools else [])
            except RequestError:
                return None

        value = "probe of arguments"
        written = exact_json.dumps({"a": value})
        as_object, as_text = rendered({"a": value}), rendered(written)
        objects = as_object is not None and f"'{value}'" not in as_object
        # Where neither works it is not the arguments that the template refuses.
        objects = objects or as_text is None or f"'{value}'" in as_text
        arguments: Any = {"a": value} if objects else written
        long_ids = rendered(arguments, _LONG_ID, tools=True) is not None
        long_ids = long_ids or rendered(arguments, _SHORT_ID, tools=True) is None
        return cls(objects, as_text is not None and value in as_text, long_ids)

    def arguments(self, given: Any) -> Any:
        """Arguments in the form that is taken; those that are no object are left as they are, or left out."""
        value = _object(given)
        if value is None:
            return given if self.texts else {}
        if self.objects:
            return value
        return given if given and isinstance(given, str) else exact_json.dumps(value, ensure_ascii=False)

    def fitted(self, calls: list[Any]) -> list[Any]:
        """Calls with such arguments, and their names first, as models write them."""
        return list(map(self._fitted, calls))

    def _fitted(self, call: Any) -> Any:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            return call
        named = {"name": function["name"]} if "name" in function else {}
        return call | {"function": named | function | {"arguments": self.arguments(function.get("arguments"))}}


def with_short_ids(messages: list[Message]) -> list[Message]:
    """The messages with ids of nine letters and digits, the same for each call and its result. They depend on the old
    ones only, so that the prompt of a conversation goes on as it began."""
    given = [identity for message in messages for identity in _ids(message)]
    short = {identity: identity for identity in given if _SHORT.fullmatch(identity)}
    taken = set(short)
    for identity in given:
        count = 0
        while identity not in short:
            wanted = sha256(f"{count}{identity}".encode(errors="surrogatepass")).hexdigest()[:9]
            if wanted not in taken:
                short[identity] = wanted
                taken.add(wanted)
            count += 1
    return [_renamed(message, short) for message in messages]


def _renamed(message: Message, ids: dict[str, str]) -> Message:
    def new(owner: Any, key: str) -> Any:
        old = owner.get(key) if isinstance(owner, dict) else None
        return owner | {key: ids[old]} if isinstance(old, str) else owner

    message = new(message, "tool_call_id")
    if isinstance(calls := message.get("tool_calls"), list):
        message = message | {"tool_calls": [new(call, "id") for call in calls]}
    return message


def _ids(message: Message) -> Iterable[str]:
    calls = message.get("tool_calls")
    found = [call.get("id") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return (identity for identity in [*found, message.get("tool_call_id")] if isinstance(identity, str))


def _call(identity: str, function: Any) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": function}


def _object(arguments: Any) -> dict[str, Any] | None:
    """Arguments as an object, which clients send as its text; None where they are none."""
    if arguments is None:
        return {}
    if isinstance(arguments, str):
        try:
            check_json(arguments.encode())
            arguments = exact_json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            return None
    return arguments if isinstance(arguments, dict) else None
