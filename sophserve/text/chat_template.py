"""Messages to the prompt that a chat model was trained on."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sophserve.checkpoint import read_json
from sophserve.errors import CheckpointError, ConfigError, RequestError
from sophserve.text.template_habits import TemplateHabits, TemplateTooSlow
from sophserve.text.tokenizer import Tokenizer
from sophserve.text.turns import Message, modern

if TYPE_CHECKING:
    from jinja2 import Template

_CONTINUE_MARK = "\ue0fecontinue here\ue0fe"
# That rendering may take: templates are programs.
MOST_SECONDS = 5.0


class Rendered(NamedTuple):
    """A conversation as a template renders it. left_out: the fields of messages that it has no place for. continued:
    the text that the prompt ends with, for the model to go on with it; empty for a new message. images: what the
    parts of type image have under "image", in the order of their placeholders."""

    prompt: str
    left_out: list[str]
    continued: str
    images: list[Any]


class ChatTemplate:
    """The chat templates of one checkpoint, in jinja2 (https://jinja.palletsprojects.com), run in a sandbox.

    templates: sources by name. "tool_use" is taken for requests with tools, if there is one, "default" for all
    others; none at all makes render refuse. special_tokens: further variables, such as `{"bos_token": "<s>"}`.
    placeholder: what stands for an image in a prompt of a model that sees.
    Raises CheckpointError for a template that does not compile.
    """

    def __init__(
        self, templates: dict[str, str], special_tokens: dict[str, str], placeholder: str | None = None
    ) -> None:
        self._sources = templates
        self._placeholder = placeholder
        self._templates = {name: _compile(name, source) for name, source in templates.items()}
        self._special_tokens = special_tokens

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        tokenizer: Tokenizer,
        override: Path | str | None = None,
        placeholder: str | None = None,
        usual: str | None = None,
    ) -> ChatTemplate:
        """The template in the file override, or those of a checkpoint, or the usual one. Raises CheckpointError and
        ConfigError.

        A checkpoint has them in chat_template.jinja (and additional_chat_templates/NAME.jinja) or in
        tokenizer_config.json. A chat_template.json is the one of a model that sees more than text; it is taken
        unless there are tools, which only the tokenizer's template knows.
        """
        if override is not None:
            try:
                templates = {"default": Path(override).read_text(encoding="utf-8")}
            except (OSError, ValueError) as error:
                raise ConfigError(f"cannot read the chat template {override} (--chat-template): {error}") from None
            return cls(templates, tokenizer.special_tokens, placeholder)._learned()
        config = directory / "tokenizer_config.json"
        templates = _from_files(directory) or _from_config(config, tokenizer.config.get("chat_template"))
        path = directory / "chat_template.json"
        if path.exists() and not (directory / "chat_template.jinja").exists():
            found = _from_config(path, read_json(path).get("chat_template"))
            if "default" in templates and "default" in found:
                templates = {"tool_use": templates["default"]} | templates
            templates |= found
        if usual is not None:
            templates = {"default": usual} | templates
        return cls(templates, tokenizer.special_tokens, placeholder)._learned()

    def render(self, messages: list[Message], /, **options: Any) -> str:
        """The prompt alone of what `rendered` makes."""
        return self.rendered(messages, **options).prompt

    def rendered(
        self,
        messages: list[Message],
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> Rendered:
        """The prompt, special tokens included: encode it with add_special_tokens=False.

        messages, tools and documents are as in an OpenAI request, but that an image is a part of type image; roles, an
        order of turns or forms of content that the template does not take are changed to those that it does.
        continue_final_message leaves the last message open, for the model to go on with it. kwargs are further
        variables of the template. Raises RequestError.
        """
        if not messages:
            raise RequestError("messages must hold at least one message", "messages")
        template = self._choose(bool(tools))
        habits = self._habits[template]
        prepared, images = habits.fitted(modern(messages))
        left_out = habits.left_out(prepared)
        final_text = ""
        if continue_final_message:
            if add_generation_prompt:
                raise RequestError(
                    "continue_final_message leaves no place for a new message; set add_generation_prompt to false",
                    "add_generation_prompt",
                )
            prepared[-1], final_text = _mark_end(prepared[-1])
        variables = {
            "messages": prepared,
            "tools": tools or None,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        text = _render(template, self._special_tokens | kwargs | variables)
        text = _cut_at_mark(text, final_text) if continue_final_message else text
        return Rendered(text, left_out, final_text, images)

    @property
    def shows_tools(self) -> bool:
        """Whether the template for requests with tools shows them to the model."""
        return self._habits[self._choose(with_tools=True)].shows_tools

    def source(self, with_tools: bool = False) -> str:
        """The text of the template for requests with or without tools, empty where there is none."""
        return self._sources.get(self._name(with_tools), "")

    def _name(self, with_tools: bool) -> str:
        return "tool_use" if with_tools and "tool_use" in self._templates else "default"

    def _choose(self, with_tools: bool) -> Template:
        name = self._name(with_tools)
        if name not in self._templates:
            named = f" named default, only {', '.join(self._templates)}" if self._templates else ""
            raise RequestError(
                f"this model has no chat template{named}; start the server with --chat-template FILE, "
                "or send a prompt to /v1/completions instead"
            )
        return self._templates[name]

    @cached_property
    def _habits(self) -> dict[Template, TemplateHabits]:
        return {
            template: TemplateHabits(
                self._sources[name], partial(self._probe, template), self._placeholder, lambda: self._written_image
            )
            for name, template in self._templates.items()
        }

    @cached_property
    def _written_image(self) -> str:
        """What stands for an image where a template itself has nothing for it."""
        found = (self._habits[template].written_image for _, template in sorted(self._templates.items()))
        return next(filter(None, found), self._placeholder or "")

    def _learned(self) -> ChatTemplate:
        """Itself, once it knows the habits of its templates, which the first request need not wait for then."""
        for habits in self._habits.values():
            with suppress(TemplateTooSlow):  # which its requests will be told
                habits.learn()
        return self

    def _probe(self, template: Template, messages: list[Message], tools: list[Any] | None = None) -> str:
        variables = {"messages": messages, "tools": tools or None, "documents": None, "add_generation_prompt": True}
        tokens = {"bos_token": "", "eos_token": ""} | self._special_tokens
        return _render(template, tokens | variables)


def _from_files(directory: Path) -> dict[str, str]:
    paths = {path.stem: path for path in (directory / "additional_chat_templates").glob("*.jinja")}
    if (directory / "chat_template.jinja").exists():
        paths["default"] = directory / "chat_template.jinja"
    try:
        return {name: path.read_text(encoding="utf-8") for name, path in sorted(paths.items())}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read a chat template in {directory}: {error}") from None


def _from_config(path: Path, value: Any) -> dict[str, str]:
    named = [{"name": "default", "template": value}] if isinstance(value, str) else value or []
    try:
        templates = {entry["name"]: entry["template"] for entry in named}
    except (KeyError, TypeError):
        templates = {"": None}
    if not all(isinstance(part, str) for entry in templates.items() for part in entry):
        raise CheckpointError(
            f"chat_template in {path} must be a text, or a list of objects with a name and a template"
        )
    return templates


def _compile(name: str, source: str) -> Template:
    from jinja2 import TemplateSyntaxError

    from sophserve.text.jinja_environment import chat_environment

    try:
        return chat_environment().from_string(source)
    except TemplateSyntaxError as error:
        raise CheckpointError(
            f"the {name} chat template does not compile: {error.message} (line {error.lineno}); "
            "repair it, or give another with --chat-template FILE"
        ) from None


def _render(template: Template, variables: dict[str, Any]) -> str:
    from jinja2 import TemplateError

    from sophserve.text.jinja_environment import DEADLINE, TooSlow

    try:
        return template.render({**variables, DEADLINE: time.monotonic() + MOST_SECONDS})
    except TooSlow:
        raise TemplateTooSlow(
            f"the chat template took longer than {MOST_SECONDS:g} s; send fewer or shorter messages",
            "messages",
        ) from None
    except TemplateError as error:
        raise RequestError(f"the chat template refused the messages: {error}", "messages") from None
    except Exception as error:  # a template is a program: whatever it does wrong with these messages
        raise RequestError(
            f"the chat template cannot render the messages: {type(error).__name__}: {error}", "messages"
        ) from None


def _mark_end(message: Message) -> tuple[Message, str]:
    """The message with a mark behind its last text, and that text."""
    content = message.get("content")
    # The space tells afterwards whether the template strips messages: then the prompt must not end with one either.
    mark = _CONTINUE_MARK + " "
    if isinstance(content, str):
        return message | {"content": content + mark}, content
    parts = content if isinstance(content, list) else []
    for index, part in list(enumerate(parts))[-1:]:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            marked = part | {"text": part["text"] + mark}
            return message | {"content": [*parts[:index], marked, *parts[index + 1 :]]}, part["text"]
    raise RequestError("continue_final_message needs a last message with text at its end", "messages")


def _cut_at_mark(text: str, final_text: str) -> str:
    end = text.rfind(_CONTINUE_MARK)
    if end < 0 or final_text.strip() not in text:
        raise RequestError(
            "continue_final_message cannot be used here: the chat template does not print the last message as it is",
            "continue_final_message",
        )
    strips = not text.startswith(_CONTINUE_MARK + " ", end)
    # Where nothing is said yet, what stands before the mark is the template's own.
    return text[:end].rstrip() if strips and final_text.strip() else text[:end]
