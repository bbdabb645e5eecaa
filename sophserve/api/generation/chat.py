"""The one way of a chat request, whichever API it came by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from sophserve.api.generation.call_form import CallForm
from sophserve.api.generation.chat_prompt import ChatPrompt
from sophserve.api.generation.content import content_parts, image_parts
from sophserve.api.generation.params import fitted, sampling_params
from sophserve.api.generation.request_bodies import ChatRequest
from sophserve.api.generation.run import Generation
from sophserve.api.generation.served_model import ServedModel
from sophserve.api.generation.structured_output import check_structured
from sophserve.api.generation.tools import ToolUse, reasoning_parser
from sophserve.api.http.body import NOT_IN_PROMPT, NOT_KEPT, warn_of
from sophserve.api.http.request_record import name_request
from sophserve.errors import RequestError
from sophserve.image_prompt import ImagePrompt
from sophserve.sampling import SamplingParams, StructuredOutput, Thought
from sophserve.text.answer_events import AnswerParser, Event
from sophserve.text.detokenizer import decode_in_slices
from sophserve.text.reasoning import ReasoningParser
from sophserve.text.thought import ThoughtSplitter
from sophserve.text.tool_parser import ToolParser

# Enough tokens of a prompt's end to hold a mark and the blanks around it, even letter by letter.
_TAIL = 24
# Of a character, each of which may be a token.
_MOST_BYTES = 4
# Characters of a token in a prediction, beyond which its end is left out.
_LONGEST_TOKEN = 16


class Chat:
    """A chat request. Made from its body, once all is checked that can be checked before there is a prompt; then
    `generation` binds it to its prompt.

    params: what the engine is asked for. max_tokens: a longest answer that is cut to what fits into the context. Raises
    RequestError.
    """

    def __init__(self, served: ServedModel, body: ChatRequest, max_tokens: int | None = None) -> None:
        defaults = {"max_tokens": None} | served.sampling_defaults
        if max_tokens is not None:
            defaults["max_tokens"] = max_tokens
        self.body = body
        self.params = sampling_params(body, defaults, _logprobs(body), body.prompt_logprobs)
        self._calls: CallForm | None = None
        # How the answer begins: without reasoning, within it, or as the model decides; and within one that has begun.
        self._thought: Thought | None = None
        self._begun = False
        self._served = served
        self._use = ToolUse(served, body)
        self._prompt = ChatPrompt(served, body)
        found = reasoning_parser(served)
        self._reasoning: type[ReasoningParser] | None = found.value if found else None

    async def generation(self, prefix: str) -> Generation:
        """What the engine is asked for, under an id with this prefix. Raises RequestError."""
        body = self.body
        identity = name_request(prefix, body.request_id)
        await self._prompt.load()
        prompt = await self._served.texts.run(self._bind)
        warn_of(NOT_IN_PROMPT, self._prompt.left_out)
        await self._check_form()
        salt = body.cache_salt or ""
        return Generation(identity, [prompt.ids], [self.params], body.priority or 0, salt, [prompt.items])

    def parser(self) -> AnswerParser:
        """A new parser, for one answer."""
        thought = self._thought
        reasoning = self._reasoning(thought.inside, self._begun) if self._reasoning and thought else None
        tools = partial(self._use.parser, self._use.functions) if self._use.parser else None
        return AnswerParser(reasoning, tools, self._use.parallel)

    def call_id(self, prefix: str = "call_") -> str:
        """A new id of a tool call. prefix: what it begins with, where the format leaves that free."""
        return (self._use.parser or ToolParser).call_id(prefix)

    def _bind(self) -> ImagePrompt:
        """Make the prompt, and fit all that depends on it."""
        engine, body = self._served.engine, self.body
        prompt = self._prompt.tokens()
        params = fitted(self.params, body, prompt.ids, engine.info.max_model_len)
        structured, shown = self._form(params), self._shown_token_ids()
        if self._reasoning:
            self._thought = self._thought_of(self._reasoning, prompt.ids, bool(structured))
        self.params = replace(
            params,
            structured=structured,
            thought=self._thought,
            shown_token_ids=shown,
            begins_text=not body.continue_final_message,
            prediction=self._predicted(),
        )
        engine.check(prompt.ids, self.params, prompt.items)
        return prompt

    def _predicted(self) -> list[int]:
        """The tokens of the prediction, as many as an answer may have. Raises RequestError."""
        given = self.body.prediction
        if given is None:
            return []
        if given.type != "content":
            raise RequestError(f"prediction.type must be content, got {given.type[:64]!r}", "prediction.type")
        parts = content_parts(given.content, "prediction.content")
        if not isinstance(parts, str):
            if image_parts(parts):
                raise RequestError("prediction.content: an answer has no images; send text", "prediction.content")
            parts = "".join(part.text or "" for part in parts)
        most = self._served.engine.info.max_model_len
        return self._served.tokenizer.encode(parts[: _LONGEST_TOKEN * most], False)[:most]

    async def _check_form(self) -> None:
        """Raise RequestError for a form that cannot be kept to, and tell what is left open of others."""
        check = partial(check_structured, self._served.engine, self.body)
        try:
            await check(self.params.structured)
        except RequestError as error:
            if not self._calls:
                raise
            self.params = replace(self.params, structured=await self._calls.loosened(check, error))
        if self._calls:
            warn_of(NOT_KEPT, list(self._calls.not_kept))

    def _form(self, params: SamplingParams) -> StructuredOutput | None:
        """Has the model call tools as it must. Raises RequestError."""
        structured = params.structured
        if self._use.parser:
            calls = CallForm(self._served, self._use, self._use.parser, structured)
            if calls.needed:
                self._calls, structured = calls, calls.grammar()
        return structured

    def _shown_token_ids(self) -> list[int]:
        """Special tokens that the parser needs to see."""
        marks = [self._reasoning.opening, self._reasoning.closing] if self._reasoning else []
        if self._use.parser:
            marks += [*self._use.parser.markers, *self._use.parser.inner]
        ids = [self._served.tokenizer.special_id(mark) for mark in marks]
        return [token_id for token_id in ids if token_id is not None]

    def _thought_of(self, reasoning: type[ReasoningParser], prompt: list[int], formed: bool) -> Thought | None:
        """How the answer may begin with reasoning, by where the prompt ends. formed: it is kept to a form, which begins
        at once where the request forbids to think."""
        continued, opening, closing = self._prompt.continued.strip(), reasoning.opening, reasoning.closing
        tail = prompt[-_TAIL - _MOST_BYTES * len(self._prompt.continued) :]
        end = decode_in_slices(self._served.tokenizer, tail, skip_special_tokens=False).rstrip()
        end = end.removesuffix(continued).rstrip()
        inside = end.endswith(opening)
        if continued:
            before = ThoughtSplitter(opening, closing, inside)
            before.push(continued)
            self._begun = not continued.endswith(opening)
            return Thought(opening, closing, inside=True) if before.place == "inside" else None
        forbidden = formed and self._prompt.forbids_thinking and not reasoning.always
        if not inside and (end.endswith(closing) or forbidden):
            return None
        return Thought(opening, closing, inside or reasoning.always)


def parsed(parser: AnswerParser, text: str, finish_reason: str | None) -> list[Event]:
    """What more text adds to an answer, and its end if there is a reason for it."""
    return parser.feed(text) + (parser.finish(cut=finish_reason != "stop") if finish_reason else [])


async def prompt_length(served: ServedModel, make: Callable[[], ChatRequest]) -> int:
    """How many tokens the prompt of a chat request has, even of one that is too long. Raises RequestError."""

    def checked() -> ChatPrompt:
        body = make()
        ToolUse(served, body)
        return ChatPrompt(served, body)

    prompt = await served.texts.run(checked)
    await prompt.load()
    return len((await served.texts.run(partial(prompt.tokens, bounded=False))).ids)


def _logprobs(body: ChatRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
    return None
