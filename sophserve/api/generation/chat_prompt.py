"""A conversation in the chat template: what a chat request asks the model to continue."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from sophserve.api.generation.content import ContentPart, ImagePart, content_parts
from sophserve.api.generation.prompts import encode_with_images, truncated
from sophserve.api.generation.request_bodies import ChatRequest, Message
from sophserve.api.generation.served_model import ServedModel
from sophserve.api.generation.tools import tool_parser
from sophserve.api.http.body import warn_of
from sophserve.errors import CheckpointError, RequestError
from sophserve.image_prompt import ImagePrompt, cut_prompt, lacks_opening
from sophserve.media.loader import Picture
from sophserve.media.source import ImageSource, image_source
from sophserve.text.chat_template import ChatTemplate

# What templates call whether to think: Qwen's and most others', and DeepSeek's.
_THINKING = ("enable_thinking", "thinking")
_SYSTEM = ("system", "developer")


class ChatPrompt:
    """Made once its messages are checked. `load` its images before it is made into tokens. Raises RequestError, as all
    its methods do. Once it is rendered: left_out, the fields that the template has no place for; continued, the text
    that the answer goes on with, empty for a new message."""

    def __init__(self, served: ServedModel, body: ChatRequest) -> None:
        if not body.messages:
            raise RequestError("messages is empty; give at least one", "messages")
        self._served, self._body = served, body
        self.left_out: list[str] = []
        self.continued = ""
        self._messages: list[dict[str, Any]] = []
        self._sources: list[ImageSource] = []
        self._pictures: list[Picture] = []
        self._order: list[int] = []  # that in which the template has the images
        for index, message in enumerate(body.messages):
            self._add(message, f"messages[{index}]")

    async def load(self) -> None:
        """Fetch and decode its images."""
        if self._served.images and self._sources:
            self._pictures = await self._served.images.load(self._sources)
            self._sources = []

    def tokens(self, bounded: bool = True) -> ImagePrompt:
        """Its token ids. bounded: see encode."""
        served, body = self._served, self._body
        bounded = bounded and body.truncate_prompt_tokens is None
        text = self.text()
        pictures = [self._pictures[number] for number in self._order]
        processor = served.images.processor if served.images else None
        special = bool(body.add_special_tokens) or lacks_opening(text, served.tokenizer, processor)
        prompt = encode_with_images(served, text, pictures, special, bounded)
        most = len(truncated(prompt.ids, body, served.engine.info.max_model_len))
        if most < len(prompt.ids):
            whole, prompt = prompt, cut_prompt(prompt, most, body.truncation_side or "left")
            lost = len(whole.items) - len(prompt.items)
            warn_of("left out by truncate_prompt_tokens", [f"{lost} images"] * bool(lost))
        return prompt

    @property
    def forbids_thinking(self) -> bool:
        """Whether the request says that the model is not to think."""
        kwargs = self._kwargs()
        return any(kwargs.get(name) is False for name in _THINKING)

    def text(self) -> str:
        """What the template makes of the conversation."""
        body = self._body
        continued, prompted = bool(body.continue_final_message), body.add_generation_prompt
        if continued and prompted:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other", "continue_final_message"
            )
        if body.chat_template is not None and not self._served.config.trust_request_chat_template:
            raise RequestError(
                "chat_template is only taken by a server that was started with --trust-request-chat-template; leave it "
                "out",
                "chat_template",
            )
        kwargs = self._kwargs()
        for name in ("tools", "documents", "add_generation_prompt", "continue_final_message"):
            if name in kwargs:
                raise RequestError(f"{name} is a field of the request; move it out of chat_template_kwargs", name)
        template, self.left_out = self._template(), []
        try:
            rendered = template.rendered(
                self._with_tools(template),
                tools=body.tools or None,
                documents=body.documents,
                add_generation_prompt=not continued if prompted is None else prompted,
                continue_final_message=continued,
                **kwargs,
            )
        except RecursionError:
            raise RequestError("messages are nested too deeply", "messages") from None
        self.left_out += rendered.left_out
        self.continued = rendered.continued
        self._order = rendered.images
        return rendered.prompt

    def _with_tools(self, template: ChatTemplate) -> list[dict[str, Any]]:
        """The messages, with one of the system that introduces the tools where the template does not show them."""
        body, messages = self._body, self._messages
        if not body.tools or body.tool_choice == "none" or template.shows_tools:
            return messages
        parser = tool_parser(self._served)
        introduction = parser.value.introduction(body.tools, template.source(with_tools=True)) if parser else ""
        if not introduction:
            self.left_out.append("tools")
            return messages
        place = next((index for index, each in enumerate(messages) if each["role"] not in _SYSTEM), len(messages))
        return [*messages[:place], {"role": "system", "content": introduction}, *messages[place:]]

    def _add(self, message: Message, path: str) -> None:
        """Take a message for the chat template; of an image it only has the number."""
        if message.content is None and message.role not in ("assistant", "function"):
            raise RequestError(f"{path}.content: is missing", f"{path}.content")
        if message.audio:
            raise RequestError(f"{path}.audio: is not supported; send what was said as content", f"{path}.audio")
        fields: dict[str, Any] = msgspec.to_builtins(replace(message, content=None))
        if message.content is not None:
            content = content_parts(message.content, f"{path}.content")
            fields["content"] = content if isinstance(content, str) else list(map(self._part, content))
        self._messages.append(fields)

    def _part(self, part: ContentPart) -> dict[str, Any]:
        if not isinstance(part, ImagePart):
            return {"type": "text", "text": part.text}
        self._sources.append(source_of(part, self._served))
        return {"type": "image", "image": len(self._sources) - 1}

    def _kwargs(self) -> dict[str, Any]:
        """Further variables of the template. How much to think is in the words of those that know of it: most can only
        turn it on or off."""
        effort, given = self._body.reasoning_effort, self._body.chat_template_kwargs or {}
        asked: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
        said = [given[name] for name in _THINKING if name in given]
        if said or asked:
            asked |= dict.fromkeys(_THINKING, said[0] if said else effort != "none")
        return asked | given

    def _template(self) -> ChatTemplate:
        """The request's own chat template, else the server's."""
        served, source = self._served, self._body.chat_template
        if source is None:
            return served.chat_template
        try:
            placeholder = served.images.processor.placeholder if served.images else None
            return ChatTemplate({"default": source}, served.tokenizer.special_tokens, placeholder)
        except CheckpointError as error:
            raise RequestError(f"chat_template: {error}", "chat_template") from None


def source_of(part: ImagePart, served: ServedModel) -> ImageSource:
    """Where an image comes from. Raises RequestError, also where the model sees none."""
    if served.images is None:
        raise RequestError(f"{part.path}: this model sees no images; send text only", part.path)
    return image_source(part.given, part.path, part.detail)
