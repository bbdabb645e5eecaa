"""Grammars over tokenizers of several kinds: what may come next, and what is refused."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sophserve.errors import RequestError
from sophserve.grammar.check import MAX_CHARACTERS, GrammarCheck
from sophserve.grammar.compiler import AnswerGrammar, GrammarCompiler
from sophserve.grammar.masks import as_mask, bits
from sophserve.sampling import StructuredOutput, Thought
from sophserve.text.tokenizer import Tokenizer

END = 2
SIZE = 530  # the model's vocabulary is larger than the tokenizer's
MAYBE = Thought("<think>", "</think>")


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint: Callable[..., Path]) -> Tokenizer:
    return Tokenizer.from_directory(make_checkpoint("qwen2"))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, SIZE, [END, 0, 10**6])


@pytest.mark.parametrize("size", [100, 512, 530])
def test_masks_have_the_size_of_the_model_s_vocabulary(tokenizer: Tokenizer, size: int) -> None:
    assert tokenizer.vocab_size == 512
    grammar = AnswerGrammar(GrammarCompiler(tokenizer, size, [END]), StructuredOutput("regex", "[a-z]"), [END])
    [letter] = tokenizer.encode("a")
    for output in ([], [letter]):
        mask = grammar.mask(output)
        assert len(mask) == -(-size // 32) * 4
        assert max(allowed(mask)) < min(size, 512)


def allowed(mask: bytes) -> list[int]:
    number = int.from_bytes(mask, "little")
    return [index for index in range(len(mask) * 8) if number >> index & 1]


def walk(compiler: GrammarCompiler, kind: Any, value: str, seed: int = 0, most: int = 2000) -> str:
    """A random answer."""
    grammar = AnswerGrammar(compiler, StructuredOutput(kind, value), [END, 0])
    generator = random.Random(seed)
    output: list[int] = []
    while len(output) < most:
        choices = allowed(grammar.mask(output))
        # A quotation mark now and then, for strings to end.
        quotes = [index for index in choices if compiler.vocabulary.tokens[index] == b'"']
        output.append(generator.choice(quotes if quotes and generator.random() < 0.2 else choices))
        if output[-1] in (END, 0):
            return b"".join(compiler.vocabulary.tokens[index] for index in output[:-1]).decode()
    raise AssertionError(compiler.vocabulary.tokens[output[-1]])


def schema(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("kind", "value", "pattern"),
    [
        ("regex", r"\d{3}-\d{4}", r"[0-9]{3}-[0-9]{4}"),
        ("regex", "^(?i)yes|no$", "(?i)yes|no"),
        ("regex", "a/b\n[/x]c?", "a/b\n[/x]c?"),
        ("choice", '["red", "green\\n/\\"", "Straße 🙂", ""]', 'red|green\n/"|Straße 🙂|'),
        ("lark", 'start: "x" n ("," n)*\nn: /[0-9]{1,2}/', "x[0-9]{1,2}(,[0-9]{1,2})*"),
        ("lark", 'root ::= "x" n\nn ::= [0-9] | "y"', "x([0-9]|y)"),  # GBNF
    ],
)
def test_answers_fit(compiler: GrammarCompiler, kind: str, value: str, pattern: str, seed: int) -> None:
    assert re.fullmatch(pattern, walk(compiler, kind, value, seed))


@pytest.mark.parametrize("seed", range(10))
def test_any_object(compiler: GrammarCompiler, seed: int) -> None:
    assert isinstance(json.loads(walk(compiler, "json_object", "", seed, 10**5)), dict)


def test_several_tokens_lead_where_they_lead_one_by_one(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    form = StructuredOutput("regex", "[a-z]+[0-9]{3}")
    output = tokenizer.encode("<think>so</think>\n\nabc12", add_special_tokens=False)
    alone = AnswerGrammar(compiler, form, [END], MAYBE)
    masks = [alone.mask(output[:count]) for count in range(len(output) + 1)]
    for step in (2, 3, 5, len(output)):
        together = AnswerGrammar(compiler, form, [END], MAYBE)
        assert all(together.mask(output[:count]) == masks[count] for count in range(0, len(output) + 1, step))


def test_special_tokens_are_text_in_an_answer(compiler: GrammarCompiler) -> None:
    value = "a<|im_end|>b<|<|im_start|>"
    assert walk(compiler, "choice", json.dumps([value])) == value
    assert json.loads(walk(compiler, "json_schema", json.dumps({"const": value}))) == value


def test_forced_text_is_tokenized_as_ever(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = AnswerGrammar(compiler, StructuredOutput("choice", '["The quick brown fox"]'), [END])
    output: list[int] = []
    while (mask := allowed(grammar.mask(output))) != [0, END]:
        [token] = mask
        output.append(token)
    assert output == tokenizer.encode("The quick brown fox")


def test_blanks_are_bounded(compiler: GrammarCompiler) -> None:
    grammar = AnswerGrammar(compiler, StructuredOutput("json_schema", json.dumps(schema(a={"type": "null"}))), [END])
    blanks = {index for index, text in enumerate(compiler.vocabulary.tokens) if text and not text.strip()}
    output: list[int] = []
    run = longest = 0
    while END not in (choices := allowed(grammar.mask(output))):
        blank = [index for index in choices if index in blanks]
        output.append((blank or choices)[0])
        run = run + len(compiler.vocabulary.tokens[output[-1]]) if blank else 0
        longest = max(longest, run)
        assert len(output) < 300
    assert 1 <= longest <= 25
    assert json.loads(b"".join(compiler.vocabulary.tokens[index] for index in output)) == {"a": None}


def test_pretty_json_is_possible(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    value = {"a": [1, {"b": [True, {"c": "d"}]}]}
    for indent in (None, 1, 2, 4, "\t"):
        text = json.dumps(value, indent=indent)
        matcher = compiler.compile(StructuredOutput("json_object"))
        assert matcher.consume_tokens(tokenizer.encode(text)) and matcher.is_accepting(), text


def test_stop_tokens_of_the_request_end_an_answer(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = AnswerGrammar(compiler, StructuredOutput("regex", "ab?"), [END, 77])
    assert 77 not in allowed(grammar.mask([]))
    output = tokenizer.encode("a")
    assert {77, END} <= set(allowed(grammar.mask(output)))
    assert 77 in allowed(grammar.mask([*output, 77]))  # a step that was under way


UNSUPPORTED: list[tuple[Any, str, str]] = [
    ("json_schema", "{", "cannot be read"),
    ("json_schema", "[]", "object"),
    ("json_schema", '{"type": "foo"}', "Invalid type: foo"),
    ("json_schema", '{"not": {"type": "string"}}', 'Unimplemented keys: ["not"]'),
    ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ("json_schema", '{"type": "string", "pattern": "(?=a)b"}', "look-around"),
    ("json_schema", '{"type": "string", "format": "shoe-size"}', "shoe-size"),
    ("json_schema", '{"$ref": "#/nowhere"}', "/nowhere"),
    ("json_schema", '{"$ref": "http://127.0.0.1:9/x"}', "http://127.0.0.1:9/x"),
    ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 4}', "minimum"),
    ("json_schema", '{"enum": []}', "empty"),
    ("json_schema", '{"a": 1}' + " " * MAX_CHARACTERS, "characters"),
    ("regex", "(a", "unclosed"),
    ("regex", "a(?!b)", "look-around"),
    ("regex", r"[^\s\S]", "nothing fits"),
    ("choice", "[]", "at least one"),
    ("choice", "[1]", "at least one"),
    ("choice", "x", "cannot be read"),
    ("lark", "", "cannot"),
    ("lark", 'start: "a', "lexer error"),
    ("lark", "start: start", "cannot be applied"),
    ("lark", "start: unknown", "unknown"),
]


@pytest.fixture
async def check(make_checkpoint: Callable[..., Path]) -> AsyncIterator[GrammarCheck]:
    check = GrammarCheck(make_checkpoint("qwen2"), SIZE)
    yield check
    await check.close()


async def test_what_cannot_be_applied_is_refused(check: GrammarCheck) -> None:
    for kind, value, words in UNSUPPORTED:
        with pytest.raises(RequestError, match=re.escape(words)) as caught:
            await check.check(StructuredOutput(kind, value))
        assert "\n" not in str(caught.value) and "verbose" not in str(caught.value)


async def test_good_grammars_are_announced_once(make_checkpoint: Callable[..., Path]) -> None:
    announced: list[StructuredOutput] = []
    check = GrammarCheck(make_checkpoint("qwen2"), SIZE, announced.append)
    good = StructuredOutput("regex", "a")
    for _ in range(2):
        await check.check(good)
        with pytest.raises(RequestError):
            await check.check(StructuredOutput("regex", "("))
    assert announced == [StructuredOutput("json_object"), good]
    await check.close()


TOO_COMPLEX: list[tuple[Any, str]] = [
    # States by the hundred million.
    ("json_schema", '{"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}'),
    ("regex", "((a{1000}){1000}){1000}"),
    ("regex", "(" * 50_000 + "a" + ")" * 50_000),
    ("lark", "start: " + "(" * 50_000 + '"a"' + ")" * 50_000),
    ("json_schema", '{"items":' * 20_000 + "{}" + "}" * 20_000),
    ("json_schema", '{"$ref": "#"}'),
]


async def test_what_is_too_complex_harms_nobody(check: GrammarCheck) -> None:
    for kind, value in TOO_COMPLEX:
        with pytest.raises(RequestError):
            await check.check(StructuredOutput(kind, value))
        await check.check(StructuredOutput("regex", f"{len(value)}"))


async def test_a_client_that_goes_away_while_its_grammar_is_tried_out(check: GrammarCheck) -> None:
    tasks = [asyncio.create_task(check.check(StructuredOutput("regex", f"a{number}"))) for number in range(6)]
    await asyncio.sleep(0.3)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[1::2] == [None] * 3
    with pytest.raises(RequestError, match="unclosed"):
        await check.check(StructuredOutput("regex", "("))


def test_a_model_without_an_end(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="eos_token_id"):
        GrammarCompiler(tokenizer, SIZE, [])


def test_masks_as_numbers() -> None:
    assert bits([]) == 0 and bits([0, 9, 64]) == 1 | 1 << 9 | 1 << 64
    assert as_mask(1 << 64, 65) == bytes([0] * 8 + [1, 0, 0, 0])


def test_json_schemas_hold(compiler: GrammarCompiler) -> None:
    nested = schema(
        a={"type": "array", "items": {"type": "number", "minimum": -1, "maximum": 1}, "minItems": 1, "maxItems": 4},
        b={"anyOf": [{"type": "string", "pattern": "^[A-Z]{2,4}$"}, {"$ref": "#/$defs/c"}]},
    ) | {"$defs": {"c": schema(x={"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 99})}}
    for seed in range(20):
        jsonschema.validate(json.loads(walk(compiler, "json_schema", json.dumps(nested), seed)), nested)
