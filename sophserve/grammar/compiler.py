"""Structured output: the tokens that may come next, over llguidance (https://github.com/guidance-ai/llguidance).

Each grammar is tried out first (sophserve.grammar.check); then the worker compiles it and follows the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from, regex_to_lark

from sophserve.checkpoint import end_token_ids as end_token_ids_of
from sophserve.errors import RequestError
from sophserve.grammar.dead_ends import MOST_PLACES, dead_end
from sophserve.grammar.number_bound import DIGITS, FOLLOWING, MOST_DIGITS, NumberBound, digits_behind
from sophserve.grammar.patterns import merged_lark, merged_schema, schemas_in
from sophserve.sampling import StructuredOutput
from sophserve.text.tokenizer import Tokenizer

_LIMITS = LLParserLimits(max_grammar_size=100_000, max_lexer_states=50_000, verbose_errors=False)
# A space, or a new line with its indentation. Unbounded, a model that likes blanks would never end.
_JSON_OPTIONS: Any = {"whitespace_pattern": r" |\n {0,24}|\n\t{0,6}", "whitespace_flexible": True, "lenient": False}
_WITHOUT_BLANKS: Any = {"whitespace_flexible": False, "lenient": False}


class Vocabulary:
    """What llguidance asks of a tokenizer: the bytes of every token, and the tokens of a text that is forced."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, size: int, end_token_ids: list[int]) -> None:
        self.eos_token_id = end_token_ids[0]
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(index) for index in range(size)]
        self.special_token_ids = sorted(index for index in tokenizer.special_ids if index < size)
        self._tokenizer = tokenizer
        specials = sorted(tokenizer.token_text(index) for index in self.special_token_ids)
        self._special = re.compile("|".join(re.escape(text) for text in specials if len(text) > 1) or r"(?!)")

    def __call__(self, text: bytes | str) -> list[int]:
        """Token ids whose bytes are exactly the text's, special tokens not among them."""
        text = text.decode() if isinstance(text, bytes) else text
        if special := self._special.search(text):
            middle = special.start() + 1
            return self(text[:middle]) + self(text[middle:])
        wanted = text.encode()
        # SentencePiece puts a space before a text; behind a new line it does not.
        for start in (b"", b"\n", b" \n"):
            ids = self._tokenizer.encode(start.decode().strip(" ") + text, add_special_tokens=False)
            while start and ids:
                start = start.removeprefix(self._bytes(ids.pop(0)))
            if b"".join(map(self._bytes, ids)) == wanted:
                return ids
        return self._longest_first(wanted)

    def _bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id] if token_id < len(self.tokens) else b""

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        ids = {text: index for index, text in reversed(list(enumerate(self.tokens)))}
        for index in self.special_token_ids:
            if ids.get(self.tokens[index]) == index:
                del ids[self.tokens[index]]
        return ids

    def _longest_first(self, text: bytes) -> list[int]:
        found = []
        longest = max(map(len, self._ids))
        while text:
            length = next((n for n in range(longest, 0, -1) if text[:n] in self._ids), None)
            if length is None:
                break
            found.append(self._ids[text[:length]])
            text = text[length:]
        return found


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
        special = bits(self.vocabulary.special_token_ids) | bits(ends)
        self.numbers = NumberBound(self._beginning(DIGITS), self._beginning(FOLLOWING) | special)

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

    def try_out(self, structured: StructuredOutput, count: int) -> None:
        """Follow the grammar for as many tokens, and look for dead ends. Raises RequestError for what does not work."""
        grammar = AnswerGrammar(self, msgspec.structs.replace(structured, after=None), [])
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

    def _beginning(self, first: bytes) -> int:
        """The mask of the tokens that begin with one of these bytes."""
        return bits(index for index, text in enumerate(self.vocabulary.tokens) if text and text[0] in first)


class AnswerGrammar:
    """Follows one answer and tells the tokens that may come next."""

    def __init__(
        self,
        compiler: GrammarCompiler,
        structured: StructuredOutput,
        end_token_ids: Sequence[int],
        matcher: LLMatcher | None = None,
    ) -> None:
        """matcher: what compiler.compile gave for the grammar, this answer's own; None compiles it."""
        self._compiler = compiler
        self._matcher = matcher or compiler.compile(structured)
        self._awaited = (structured.after or "").encode()
        self._seen = b""
        self._ends = frozenset(end_token_ids)
        self._has_numbers = structured.kind in ("json_object", "json_schema") or "%json" in structured.value
        self._digits = 0  # that the answer ends in
        self._taken = 0
        self._complete = False

    def mask(self, output: Sequence[int]) -> bytes:
        """Bits, the lowest first, of the tokens that may follow the answer so far. Raises RequestError when that takes
        more than the limits allow."""
        for token_id in output[self._taken :]:
            self._take(token_id)
        self._taken = len(output)
        size = self._compiler.vocab_size
        if self._awaited:
            # An answer that ended before the text came would escape the constraint.
            return as_mask((1 << size) - 1 & ~bits(self._ends), size)
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
        if self._complete:
            return
        if self._awaited:
            self._await(token_id)
        elif token_id in self._ends and self._matcher.is_accepting():
            self._complete = True
        else:
            self._digits = digits_behind(self._digits, self._compiler.vocabulary.tokens[token_id])
            self._matcher.consume_token(token_id)

    def _await(self, token_id: int) -> None:
        self._seen += self._compiler.vocabulary.tokens[token_id]
        _, found, rest = self._seen.partition(self._awaited)
        if not found:
            self._seen = self._seen[-len(self._awaited) :]
            return
        self._awaited = b""
        if rest:  # the token holds the beginning of the constrained part, or blanks before it
            ids = self._compiler.tokens.tokenize_bytes(rest)
            if self._matcher.try_consume_tokens(ids) < len(ids):
                self._matcher.reset()


def bits(token_ids: Iterable[int]) -> int:
    """A number with these bits set."""
    marked = bytearray(max(token_ids := list(token_ids), default=0) // 8 + 1)
    for token_id in token_ids:
        marked[token_id >> 3] |= 1 << (token_id & 7)
    return int.from_bytes(marked, "little")


def as_mask(mask: int, vocab_size: int) -> bytes:
    """The number's bits as whole 32-bit words."""
    return mask.to_bytes(-(-vocab_size // 32) * 4, "little")


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
