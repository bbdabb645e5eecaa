"""What a chat template takes, found by rendering short conversations and looking for their words."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, NamedTuple

from sophserve.errors import RequestError
from sophserve.text.call_history import CallForms, with_short_ids
from sophserve.text.turns import Message, Order, is_image, modern, text_of, text_part

_WORD = "probe of a template"
_TOOL = "probe_of_a_template"
_ROLES = ("system", "user", "assistant", "tool")
# How many further roles are remembered: clients name them.
_MOST_ROLES = 64


class TemplateTooSlow(RequestError):
    """A template ran for longer than it may, so that nothing is known of what it takes."""


class _Forms(NamedTuple):
    """In which forms a role's content comes out whole: a text, a list of one part, a list of several."""

    text: bool
    one_part: bool
    parts: bool


class TemplateHabits:
    """Those of one template. source: its text. render: makes a prompt of messages and tools, or raises RequestError.
    placeholder: what stands for an image in its prompts. instead: what to write where it has nothing for an image."""

    def __init__(
        self,
        source: str,
        render: Callable[[list[Message], list[Any]], str],
        placeholder: str | None = None,
        instead: Callable[[], str] = str,
    ) -> None:
        self._source = source
        self._render = render
        self._placeholder = placeholder
        self._instead = instead
        self._forms = lru_cache(_MOST_ROLES)(self._find_forms)
        self._shows_images = lru_cache(_MOST_ROLES)(self._find_images)

    @cached_property
    def _calls(self) -> CallForms:
        return CallForms.found(self._render)

    def learn(self) -> None:
        """Find out now what is otherwise found out when it is needed."""
        self.fitted([self._said(role, "x") for role in _ROLES])
        self.left_out([self._called("f1") | {"name": "x", "content": "x"}])
        _ = self.shows_tools
        if self._placeholder:
            self.fitted([{"role": role, "content": [{"type": "image"}, text_part("x")]} for role in _ROLES])

    def fitted(self, messages: list[Message]) -> tuple[list[Message], list[Any]]:
        """Messages, as `modern` makes them, in the roles, the order and the forms that the template takes; and what
        their images have under "image", in the order in which they will come out. Raises RequestError for a role that
        it would leave out, and for content that is no text where it takes only text."""
        if any("tool_call_id" in message or message.get("tool_calls") for message in messages):
            messages = messages if self._calls.long_ids else with_short_ids(messages)
        for index, message in enumerate(messages):
            if isinstance(calls := message.get("tool_calls"), list):
                messages[index] = message | {"tool_calls": self._calls.fitted(calls)}
            self._check(message, f"messages[{index}].content")
            messages[index] = messages[index] | {"role": self._role(message["role"], index)}
        ordered = self._order.fitted(messages)
        return list(map(self._shaped, ordered)), [part.get("image") for part in chain(*map(_images, ordered))]

    def left_out(self, messages: list[Message]) -> list[str]:
        """The fields of fitted messages that do not come out."""
        called = [message for message in messages if message.get("tool_calls")]
        return [
            *["messages.name"] * (any(map(_is_named, messages)) and not self._shows_names),
            *["messages.tool_calls"] * (bool(called) and not self._shows_calls),
            *["messages.content beside tool_calls"] * (any(map(_says, called)) and not self._shows_text_with_calls),
        ]

    @cached_property
    def shows_tools(self) -> bool:
        """Whether tools come out, or the template has a word of its own on them."""
        function = {"name": _TOOL, "description": _WORD, "parameters": {"type": "object", "properties": {}}}
        try:
            return _TOOL in self._render(
                modern([self._said("user", "x")]), [{"type": "function", "function": function}]
            )
        except TemplateTooSlow:
            raise
        except RequestError:
            return True

    @cached_property
    def _shows_names(self) -> bool:
        return self._prints([self._said("user", "x") | {"name": _WORD}], [_WORD])

    @cached_property
    def _shows_calls(self) -> bool:
        return self._prints([self._said("user", "x"), self._called("f1")], ["f1"])

    @cached_property
    def _shows_text_with_calls(self) -> bool:
        said = self._called("f1") | {"content": self._said("assistant", _WORD)["content"]}
        return self._prints([self._said("user", "x"), said], [_WORD])

    def _role(self, role: str, index: int) -> str:
        """OpenAI calls developer what templates call system, apart from those that know both."""
        if role in _ROLES:
            return role
        if role == "developer" and not (f"'{role}'" in self._source or f'"{role}"' in self._source):
            return "system"
        forms = self._forms(role)
        if not any(forms) and not self._refuses([self._said("user", "x"), self._said(role, "x")]):
            raise RequestError(
                f"messages[{index}].role: the chat template leaves out what the role {role[:64]!r} says; give another",
                f"messages[{index}].role",
            )
        return role

    def _refuses(self, messages: list[Message]) -> bool:
        """Whether the template has its own word on them."""
        try:
            self._render(modern(messages), [])
        except TemplateTooSlow:
            raise
        except RequestError:
            return True
        return False

    def _check(self, message: Message, path: str) -> None:
        content = message.get("content")
        if not isinstance(content, list) or self._forms(message["role"]).parts:
            return
        for part in content:
            if self._placeholder and is_image(part):
                continue
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                kind = part.get("type", "unknown") if isinstance(part, dict) else type(part).__name__
                raise RequestError(f"{path} has a part of type {kind}; this model takes only text", "messages")

    def _shaped(self, message: Message) -> Message:
        role, content = message["role"], message.get("content")
        forms = self._forms(role)
        if isinstance(content, list):
            if self._placeholder and _images(message):
                if self._shows_images(role):
                    return message | {"content": [{"type": "image"} if is_image(part) else part for part in content]}
                content = [text_part(self._instead()) if is_image(part) else part for part in content]
            if forms.parts:
                return message | {"content": content}
            content = text_of(content, role)
        if not isinstance(content, str):
            return message
        return message | {"content": [text_part(content)] if forms.one_part and not forms.text else content}

    def _find_forms(self, role: str) -> _Forms:
        words = [f"{_WORD} {number}" for number in range(2)]
        parts = list(map(text_part, words))
        return _Forms(
            self._comes_out(role, _WORD, [_WORD]),
            self._comes_out(role, parts[:1], words[:1]),
            self._comes_out(role, parts, words),
        )

    @cached_property
    def written_image(self) -> str | None:
        """What it writes for an image between two texts; None if it writes nothing there."""
        before, after = (f"{_WORD} {number}" for number in range(2))
        content = [text_part(before), {"type": "image"}, text_part(after)]
        try:
            text = self._render(modern([{"role": "user", "content": content}]), [])
        except TemplateTooSlow:
            raise
        except RequestError:
            return None
        between = text.partition(before)[2].partition(after)[0]
        return between if after in text and (self._placeholder or _WORD) in between else None

    def _find_images(self, role: str) -> bool:
        """Whether an image comes out among texts."""
        words = [f"{_WORD} {number}" for number in range(2)]
        content = [text_part(words[0]), {"type": "image"}, text_part(words[1])]
        return self._comes_out(role, content, [*words, self._placeholder or _WORD])

    def _comes_out(self, role: str, content: Any, words: list[str]) -> bool:
        message: Message = {"role": role, "content": content}
        match role:
            case "user":
                conversations = [[message]]
            case "system":
                conversations = [[message, self._said("user", "x")]]
            case "assistant":
                conversations = [[self._said("user", "x"), message, self._said("user", "x")]]
            case "tool":
                message["tool_call_id"] = _identity(0)
                conversations = [[self._said("user", "x"), self._called("f1"), message]]
            case _:
                user = self._said("user", "x")
                conversations = [[message], [message, user], [user, message], [user, message, user]]
        listed = isinstance(content, list)
        return any(self._prints(conversation, words, listed) for conversation in conversations)

    def _prints(self, messages: list[Message], words: list[str], listed: bool = False) -> bool:
        """Whether all the words come out. listed: not as they stand in a list that is printed as it is."""
        try:
            text = self._render(modern(messages), [])
        except TemplateTooSlow:
            raise
        except RequestError:
            return False
        dumps = (f"{quote}text{quote}:" in text or f"[{quote}{words[0]}" in text for quote in "'\"")
        as_list = listed and any(dumps)
        return all(word in text for word in words) and not as_list

    @cached_property
    def _order(self) -> Order:
        if not self._takes("user"):  # nothing can be learned from what it prints
            return Order()
        system = self._takes("system user")
        tools = self._takes("user call tool assistant")
        return Order(
            system=system,
            system_alone=self._takes("system"),
            systems=self._takes("system system user"),
            late_system=self._takes("user assistant system user")
            and self._takes("user system assistant")
            and (not system or self._takes("system user assistant system")),
            users=self._takes("user user"),
            assistants=self._takes("user assistant assistant user"),
            assistant_first=self._takes("assistant user") and (not system or self._takes("system assistant user")),
            user_after_tool=not tools or self._takes("user call tool user"),
            empty_assistant=self._takes("user call tool empty user"),
            calls_together=not tools or self._takes("user calls tool tool"),
            results=tools or not self._refuses(self._turns("user call tool assistant")[0]),
        )

    def _takes(self, turns: str) -> bool:
        """Whether a conversation of such turns comes out whole, apart from calls, which some templates do not show."""
        return self._prints(*self._turns(turns))

    def _turns(self, turns: str) -> tuple[list[Message], list[str]]:
        """A conversation, and the words that are said in it."""
        messages: list[Message] = []
        words = []
        for number, turn in enumerate(turns.split()):
            word = f"{_WORD} {number};"
            match turn:
                case "call" | "calls":
                    messages.append(self._called(*["f1", "f2"][: 2 if turn == "calls" else 1]))
                    continue
                case "empty":
                    messages.append(self._said("assistant", ""))
                    continue
                case "tool":
                    earlier = sum(message["role"] == "tool" for message in messages)
                    messages.append(self._said("tool", word) | {"tool_call_id": _identity(earlier)})
                case _:
                    messages.append(self._said(turn, word))
            words.append(word)
        return messages, words

    def _said(self, role: str, text: str) -> Message:
        """A message in the form that the template takes for its role."""
        forms = self._forms(role)
        content = [text_part(text)] if forms.one_part and not forms.text else text
        return {"role": role, "content": content}

    def _called(self, *names: str) -> Message:
        functions = [{"name": name, "arguments": self._calls.arguments({})} for name in names]
        calls = [
            {"id": _identity(number), "type": "function", "function": function}
            for number, function in enumerate(functions)
        ]
        return self._said("assistant", "") | {"tool_calls": calls}


def _is_named(message: Message) -> bool:
    """The name of a function whose result it is says nothing that the call does not."""
    return "name" in message and message["role"] != "tool"


def _images(message: Message) -> list[Any]:
    content = message.get("content")
    return list(filter(is_image, content)) if isinstance(content, list) else []


def _says(message: Message) -> bool:
    content = message.get("content")
    return any(part.get("text") for part in content) if isinstance(content, list) else bool(content)


def _identity(number: int) -> str:
    """Of a call: nine letters and digits, which some templates demand."""
    return f"probe{number:04d}"
