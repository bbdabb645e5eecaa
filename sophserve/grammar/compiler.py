"""Structured output: the tokens that may come next, over llguidance (https://github.com/guidance-ai/llguidance).

Each grammar is tried out first (sophserve.grammar.check); then the worker compiles it and follows the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from, regex_to_lark

from sophserve.checkpoint import end_token_ids as end_token_ids_of
from sophserve.errors import RequestError
from sophserve.grammar.dead_ends import MOST_PLACES, dead_end
from sophserve.grammar.masks import as_mask, bits
from sophserve.grammar.number_bound import DIGITS, FOLLOWING, MOST_DIGITS, NumberBound, digits_behind
from sophserve.grammar.patterns import merged_lark, merged_schema, schemas_in
from sophserve.grammar.thought_tokens import MOST_BLANKS, ThoughtTokens
from sophserve.grammar.vocabulary import Vocabulary
from sophserve.sampling import StructuredOutput, Thought
from sophserve.text.thought import ThoughtSplitter
from sophserve.text.tokenizer import Tokenizer

_LIMITS = LLParserLimits(max_grammar_size=100_000, max_lexer_states=50_000, verbose_errors=False)
# A space, or a new line with its indentation. Unbounded, a model that likes blanks would never end.
_JSON_OPTIONS: Any = {"whitespace_pattern": r" |\n {0,24}|\n\t{0,6}", "whitespace_flexible": True, "lenient": False}
_WITHOUT_BLANKS: Any = {"whitespace_flexible": False, "lenient": False}


class GrammarCompiler:
    """Compiles grammars over one tokenizer. It takes half a second to make for a vocabulary of 150000: make it when
    it is first needed, and not in the event loop.

    vocab_size is the model's, which may differ from the tokenizer's. end_token_ids may follow a complete answer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_token_ids: Iterable[int]) -> None:
        ends = [index for index in dict.fromkeys(end_token_ids) if index < vocab_size]
        if not ends:
            raise RequestError(
                "structured output needs a token that ends the answer, and this model has none (eos_token_id in "
                "generation_config.json or config.json)"
            )
        self.vocab_size = vocab_size
        self.vocabulary = Vocabulary(tokenizer, vocab_size, ends)
        self.tokens = LLTokenizer(self.vocabulary, n_vocab=vocab_size, eos_token=ends)  # type: ignore[arg-type]
        self.end_token_ids = frozenset(ends)
        digits, following = (bits(self.vocabulary.beginning_with(first)) for first in (DIGITS, FOLLOWING))
        special = bits(self.vocabulary.special_token_ids) | bits(ends)
        self.numbers = NumberBound(digits, following | special)
        self._thoughts: dict[tuple[str, str], ThoughtTokens] = {}

    @classmethod
    def from_directory(cls, directory: Path, vocab_size: int) -> GrammarCompiler:
        """Over the tokenizer of a checkpoint."""
        tokenizer = Tokenizer.from_directory(directory)
        return cls(tokenizer, vocab_size, end_token_ids_of(directory, tokenizer.eos_id))

    def compile(self, structured: StructuredOutput) -> LLMatcher:
        """A matcher at the beginning of the grammar. Raises RequestError for a grammar that cannot be applied."""
        matcher = LLMatcher(self.tokens, _grammar(structured), log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # finds out whether there is a way to begin at all
        if matcher.is_error():
            raise RequestError(f"the {structured.kind} cannot be applied: {_reason(matcher)}")
        return matcher

    def thought_tokens(self, thought: Thought) -> ThoughtTokens:
        """What the marks of a thought are to this vocabulary."""
        marks = thought.opening, thought.closing
        if marks not in self._thoughts:
            self._thoughts[marks] = ThoughtTokens(self.vocabulary, thought)
        return self._thoughts[marks]

    def try_out(self, structured: StructuredOutput, count: int) -> None:
        """Follow the grammar for as many tokens, and look for dead ends. Raises RequestError for what does not work."""
        grammar = AnswerGrammar(self, structured, [])
        output: list[int] = []
        for _ in range(count):
            mask = int.from_bytes(grammar.mask(output), "little")
            first = (mask & -mask).bit_length() - 1
            if first in self.end_token_ids:
                break
            output.append(first)
        explored = _explored(structured)
        for grammar_text in explored:
            found = dead_end(grammar_text, _LIMITS, MOST_PLACES // len(explored))
            if found is not None:
                text = found.decode(errors="replace")
                raise RequestError(f"the {structured.kind} cannot be applied: nothing fits it behind {text!r}")


class AnswerGrammar:
    """Follows one answer and tells the tokens that may come next. The grammar begins behind the thought, if there is
    one, and the few blanks that may follow it."""

    def __init__(
        self,
        compiler: GrammarCompiler,
        structured: StructuredOutput,
        end_token_ids: Sequence[int],
        thought: Thought | None = None,
        matcher: LLMatcher | None = None,
    ) -> None:
        """matcher: what compiler.compile gave for the grammar, this answer's own; None compiles it."""
        self._compiler = compiler
        self._matcher = matcher or compiler.compile(structured)
        self._ends = frozenset(end_token_ids)
        self._has_numbers = structured.kind in ("json_object", "json_schema") or "%json" in structured.value
        self._digits = 0  # that the answer ends in
        self._taken = 0
        self._complete = False
        self._thought: ThoughtSplitter[bytes] | None = None  # until the grammar alone decides
        if thought:
            self._marks = marks = compiler.thought_tokens(thought)
            self._thought = ThoughtSplitter(marks.opening, marks.closing, thought.inside)
        self._fits = True  # what may still become a thought's opening mark, as an answer without a thought
        self._blanks = MOST_BLANKS

    def mask(self, output: Sequence[int]) -> bytes:
        """Bits, the lowest first, of the tokens that may follow the answer so far. Raises RequestError when that takes
        more than the limits allow."""
        self._follow(output)
        return self._mask()

    def masks(self, output: Sequence[int], drafts: Sequence[int]) -> Iterator[bytes]:
        """mask(output), then those behind each of the drafts as long as they fit. Raises as that does, where it comes
        to it."""
        mask = self.mask(output)
        yield mask
        if drafts:
            ahead = copy(self)
            ahead._matcher, ahead._thought = self._matcher.deep_copy(), copy(self._thought)
            for token_id in drafts:
                if not mask[token_id >> 3] >> (token_id & 7) & 1:
                    break
                ahead._take(token_id)
                mask = ahead._mask()
                yield mask

    def fitting(self, output: Sequence[int], drafts: Sequence[int]) -> int:
        """How many of the drafts may follow the answer so far, as far as the grammar can tell at once."""
        self._follow(output)
        if self._thought is not None:
            return len(drafts)
        return 0 if self._complete or self._matcher.is_error() else self._matcher.validate_tokens(list(drafts))

    def _follow(self, output: Sequence[int]) -> None:
        for token_id in output[self._taken :]:
            self._take(token_id)
        self._taken = len(output)

    def _mask(self) -> bytes:
        if self._thought is None:
            return self._answer_mask()
        size = self._compiler.vocab_size
        match self._thought.place:
            case "before":
                mask = int.from_bytes(self._answer_mask(), "little") if self._fits else 0
                mask |= self._marks.that_open(self._thought.tail.lstrip())
            case "inside":
                # An answer that ended within the thought would escape the grammar, as would a token that ends the
                # thought and goes on with something else.
                beyond = self._marks.that_go_beyond(self._thought.tail)
                unfit = [token_id for token_id, rest in beyond if not self._takes(rest)]
                mask = (1 << size) - 1 & ~bits(self._ends) & ~bits(unfit)
            case _:
                mask = int.from_bytes(self._answer_mask(), "little") | self._marks.blanks[self._blanks]
        return as_mask(mask, size)

    def _answer_mask(self) -> bytes:
        """What may follow by the grammar."""
        size = self._compiler.vocab_size
        mask = self._matcher.compute_bitmask()[: -(-size // 32) * 4]  # it may have room for one token more
        if self._matcher.is_error():
            raise RequestError(f"the grammar cannot be followed any further: {_reason(self._matcher)}")
        if self._has_numbers and self._digits >= MOST_DIGITS:
            mask = as_mask(self._compiler.numbers.ended(int.from_bytes(mask, "little")), size)
        more = self._ends - self._compiler.end_token_ids
        if more and self._matcher.is_accepting():
            mask = as_mask(int.from_bytes(mask, "little") | bits(more), size)
        return mask

    def _take(self, token_id: int) -> None:
        if self._thought:
            self._take_thought(self._thought, token_id)
        elif self._complete:
            return
        elif token_id in self._ends and self._matcher.is_accepting():
            self._complete = True
        else:
            self._digits = digits_behind(self._digits, self._compiler.vocabulary.tokens[token_id])
            self._matcher.consume_token(token_id)

    def _take_thought(self, thought: ThoughtSplitter[bytes], token_id: int) -> None:
        """Take a token that may belong to the thought, or to the blanks behind it."""
        text, before = self._compiler.vocabulary.tokens[token_id], thought.place
        if before == "closed":
            if self._marks.blanks[self._blanks] >> token_id & 1:
                self._blanks -= len(text)
            else:
                self._thought = None
                self._take(token_id)
            return
        said, rest = thought.push(text)
        if thought.place == "before":
            self._fits = self._fits and self._matcher.try_consume_tokens([token_id]) == 1
        elif not said:  # nor was there a thought
            self._thought = None
            self._take(token_id)
        elif before == "before":
            self._matcher.reset()
        if rest and said:
            self._thought = None
            self._digits = digits_behind(0, rest)
            self._matcher.consume_tokens(self._tokens(rest))

    def _takes(self, text: bytes) -> bool:
        """Whether the answer may begin so."""
        ids = self._tokens(text)
        return self._matcher.validate_tokens(ids) == len(ids)

    def _tokens(self, text: bytes) -> list[int]:
        ids: list[int] = self._compiler.tokens.tokenize_bytes(text)
        return ids


def _grammar(structured: StructuredOutput, blanks: bool = True) -> str:
    """In llguidance's own words. blanks: whether a JSON text may have them. Raises RequestError for what is not even
    well-formed."""
    value = structured.value
    options = _JSON_OPTIONS if blanks else _WITHOUT_BLANKS
    try:
        match structured.kind:
            case "json_object":
                return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=options)
            case "json_schema":
                return LLMatcher.grammar_from_json_schema(merged_schema(value), overrides=options)
            case "regex":
                return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(value, 'd')}/")
            case "choice":
                return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, _choices(value))))
            case "lark":
                return grammar_from("grammar", merged_lark(value))
    except ValueError as error:
        raise RequestError(f"the {structured.kind} cannot be read: {error}") from None


def _explored(structured: StructuredOutput) -> list[str]:
    """In what dead ends are looked for: the grammar, or the schemas in it where it has special tokens."""
    match structured.kind:
        case "lark" if "<[" in structured.value:
            schemas = map(json.dumps, schemas_in(merged_lark(structured.value)))
            return [LLMatcher.grammar_from_json_schema(each, overrides=_WITHOUT_BLANKS) for each in schemas]
        case "lark" | "json_schema":
            return [_grammar(structured, blanks=False)]
    return []  # those of one lexeme have none


def _choices(value: str) -> list[str]:
    choices = json.loads(value)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError("it must be a list of at least one text")
    return choices


def _reason(matcher: LLMatcher) -> str:
    words = matcher.get_error().replace("<non-verbose/>", "").replace("NoExtensionBias", "nothing fits it").split()
    return " ".join(words)
