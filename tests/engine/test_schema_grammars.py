"""Grammars of JSON schemas: what they keep a model that says anything to, and that they end."""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sophserve.errors import RequestError
from sophserve.grammar.check import GrammarCheck
from sophserve.grammar.compiler import AnswerGrammar, GrammarCompiler
from sophserve.grammar.number_bound import MOST_DIGITS
from sophserve.sampling import StructuredOutput
from sophserve.text.json_schema import prepared
from sophserve.text.tokenizer import Tokenizer

END = 2
Schema = dict[str, Any]
BIT: Schema = {"enum": [0, 1]}


@pytest.fixture(scope="module")
def compiler(make_checkpoint: Callable[..., Path]) -> GrammarCompiler:
    return GrammarCompiler(Tokenizer.from_directory(make_checkpoint("qwen2")), 512, [END])


@pytest.fixture
async def check(make_checkpoint: Callable[..., Path]) -> AsyncIterator[GrammarCheck]:
    check = GrammarCheck(make_checkpoint("qwen2"), 512)
    yield check
    await check.close()


def allowed(mask: bytes) -> list[int]:
    number = int.from_bytes(mask, "little")
    return [index for index in range(len(mask) * 8) if number >> index & 1]


def said(compiler: GrammarCompiler, kind: Any, value: str, choose: Callable[[list[int]], int], most: int = 3000) -> str:
    """An answer whose tokens are chosen like that."""
    grammar = AnswerGrammar(compiler, StructuredOutput(kind, value), [END])
    output: list[int] = []
    while len(output) < most:
        token_id = choose(allowed(grammar.mask(output)))
        if token_id == END:
            return b"".join(compiler.vocabulary.tokens[index] for index in output).decode()
        output.append(token_id)
    raise AssertionError(b"".join(compiler.vocabulary.tokens[index] for index in output)[-300:])


def random_answers(compiler: GrammarCompiler, schema: Any, count: int) -> Iterator[Any]:
    """Values of a prepared schema, made at random. Texts and lists end soon."""
    ends = {index for index, text in enumerate(compiler.vocabulary.tokens) if text in (b'"', b"]", b"}")}
    for seed in range(count):
        generator = random.Random(seed)

        def choose(choices: list[int], generator: random.Random = generator) -> int:
            ending = [index for index in choices if index in ends]
            return generator.choice(ending if ending and generator.random() < 0.3 else choices)

        yield json.loads(said(compiler, "json_schema", json.dumps(schema), choose))


def members(value: Any) -> set[str]:
    """The names of all members in a value."""
    if isinstance(value, list):
        return set().union(*map(members, value))
    return set(value).union(*map(members, value.values())) if isinstance(value, dict) else set()


NODE: Schema = {
    "type": "object",
    "properties": {"i": BIT, "n": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}},
}
ENDLESS: Schema = {"type": "object", "properties": {"e": {"$ref": "#/$defs/e"}}, "required": ["e"]}
SHARED: Schema = {"type": "object", "properties": {"x": BIT}, "required": ["x"]}
# Schemas that do not forbid further members, and the members that may be there.
OPEN: list[tuple[Schema, str]] = [
    ({"type": "object", "properties": {"a": BIT}, "required": ["a"]}, "a"),
    ({"properties": {"a": BIT}, "type": ["object", "null"]}, "a"),
    ({"type": "object", "properties": {}}, ""),
    ({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": BIT}}}}, "ab"),
    ({"type": "array", "maxItems": 2, "items": {"type": "object", "properties": {"a": BIT}, "required": ["a"]}}, "a"),
    ({"type": "array", "prefixItems": [SHARED], "items": False, "minItems": 1}, "x"),
    ({"$ref": "#/$defs/n", "$defs": {"n": NODE}}, "in"),
    ({"$ref": "#/definitions/s", "definitions": {"s": SHARED}}, "x"),
    ({"$ref": "#/components/schemas/s~1", "components": {"schemas": {"s/": SHARED}}}, "x"),
    ({"allOf": [SHARED, {"properties": {"y": BIT}}], "properties": {"z": BIT}}, "xyz"),
    ({"allOf": [{"$ref": "#/$defs/s"}], "properties": {"z": BIT}, "$defs": {"s": SHARED}}, "xz"),
    ({"$ref": "#/$defs/s", "properties": {"z": BIT}, "$defs": {"s": SHARED}}, "xz"),
    (
        {
            "type": "object",
            "properties": {"p": {"$ref": "#/$defs/s", "properties": {"z": BIT}}, "q": {"$ref": "#/$defs/s"}},
            "$defs": {"s": SHARED},
        },
        "pqxz",
    ),
    (
        {
            "type": "object",
            "properties": {"k": BIT},
            "anyOf": [
                {"properties": {"a": BIT}, "required": ["a"]},
                {"properties": {"b": {"type": "null"}}, "required": ["b"]},
            ],
        },
        "kab",
    ),
    (
        {
            "type": "object",
            "properties": {"a": BIT, "b": BIT},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        "ab",
    ),
    ({"oneOf": [{"type": "object", "properties": {"a": BIT}, "required": ["a"]}, {"type": "null"}]}, "a"),
    ({"type": "object", "properties": {"a": BIT}, "required": ["a", "b"], "allOf": [{"properties": {"b": BIT}}]}, "ab"),
    ({"type": "object", "properties": {"a": BIT}, "patternProperties": {"^b$": BIT}}, "ab"),
    ({"allOf": [{"properties": {"a": BIT}}, {"type": "object", "patternProperties": {"^b$": BIT}}]}, "ab"),
    ({"type": "object", "allOf": [SHARED], "unevaluatedProperties": False}, "x"),
    ({"type": "object", "properties": {"a": BIT}, "enum": [{"a": 1, "b": 2}]}, "ab"),
    ({"allOf": [SHARED | {"unevaluatedProperties": False}, {"properties": {"y": BIT}}]}, "x"),
    # What would never end is left out where it may be.
    ({"type": "object", "properties": {"i": BIT, "e": {"$ref": "#/$defs/e"}}, "$defs": {"e": ENDLESS}}, "i"),
]


@pytest.mark.parametrize(("schema", "names"), OPEN)
def test_nothing_but_declared_members(compiler: GrammarCompiler, schema: Schema, names: str) -> None:
    """pydantic and others do not forbid further members; a model that may add some adds them without end (vLLM's
    xgrammar and llama.cpp's converter do not invite them either)."""
    ready, not_kept, _ = prepared(schema)
    assert not not_kept
    for value in random_answers(compiler, ready, 12):
        jsonschema.validate(value, schema, jsonschema.Draft202012Validator)
        assert members(value) <= set(names)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "required": ["a"]},
        {"type": "object", "properties": {"a": BIT}, "additionalProperties": {"type": "null"}},
        {"type": "object", "properties": {"a": BIT}, "unevaluatedProperties": True},
        {"type": "object", "properties": {"a": BIT}, "required": ["a"], "minProperties": 2},
        {"allOf": [{"properties": {"a": BIT}}, {"type": "object", "additionalProperties": True}]},
        {"$ref": "#/$defs/o", "properties": {"a": BIT}, "$defs": {"o": {"additionalProperties": {}}}},
    ],
)
def test_members_that_are_let_in(compiler: GrammarCompiler, schema: Schema) -> None:
    ready, *_ = prepared(schema)
    matcher = compiler.compile(StructuredOutput("json_schema", json.dumps(ready)))
    for token_id in compiler.tokens.tokenize_str('{"a":1,"other":null}'):
        assert matcher.consume_token(token_id), ready
    assert matcher.is_accepting()


def test_schemas_are_not_copied_without_end() -> None:
    """Each definition stands beside twice as many sets of members as the one before."""
    definitions: dict[str, Any] = {"d40": {"type": "object"}}
    for index in range(40):
        ways = [{"$ref": f"#/$defs/d{index + 1}", "properties": {f"{way}{index}": {}}} for way in "ab"]
        definitions[f"d{index}"] = {"anyOf": ways}
    with pytest.raises(ValueError, match="too many places"):
        prepared({"$ref": "#/$defs/d0", "$defs": definitions})


NEVER_ENDING: list[Schema] = [
    {"$ref": "#"},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}},
    {
        "type": "object",
        "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 2}]}},
        "required": ["a"],
    },
]


@pytest.mark.parametrize("schema", NEVER_ENDING)
def test_schemas_whose_values_never_end(schema: Schema) -> None:
    """They would be followed until the tokens are used up."""
    with pytest.raises(ValueError, match="ever ends"):
        prepared(schema)
    if "properties" in schema:
        assert prepared(schema | {"required": []})


@pytest.mark.parametrize("schema", [True, False, None, 1, "x", [{}], {"type": 1, "allOf": {}, "enum": 2, "$ref": 3}])
def test_what_is_no_schema_stays(schema: Any) -> None:
    """It is the grammar that refuses it."""
    assert prepared(schema) == (schema, [], [])


def test_formats(compiler: GrammarCompiler) -> None:
    """In JSON Schema 2020-12 a format is an annotation; those that are kept to here have an end."""
    for name in ("password", "int32", "shoe-size", "uri-reference", "binary"):
        ready, not_kept, _ = prepared({"properties": {"a": {"type": "string", "format": name, "maxLength": 3}}})
        assert not_kept == [f"format {name} of #/properties/a"] and "format" not in json.dumps(ready)
    for name in ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"):
        ready, not_kept, _ = prepared({"type": "string", "format": name})
        assert ready["format"] == name and not not_kept
        texts = compiler.vocabulary.tokens

        def longest(choices: list[int], texts: list[bytes] = texts) -> int:
            return max(choices, key=lambda index: (texts[index] != b'"', index != END, texts[index].isdigit(), index))

        assert 3 < len(said(compiler, "json_schema", json.dumps(ready), longest)) < 2060


NUMBERS = [
    {"type": "number"},
    {"type": "integer"},
    {"type": "number", "minimum": 7},
    {"type": "integer", "maximum": -7},
    {"type": "number", "minimum": 0.5, "maximum": 0.75},
    {"type": "integer", "multipleOf": 7},
]


@pytest.mark.parametrize("schema", NUMBERS)
def test_numbers_end(compiler: GrammarCompiler, schema: Schema) -> None:
    """A model that likes digits ends its numbers (vLLM#52011), alone, as members, in calls."""
    digits = {index for index, text in enumerate(compiler.vocabulary.tokens) if text[:1].isdigit()}

    points = {index for index, text in enumerate(compiler.vocabulary.tokens) if text in (b".", b"e")}

    def choose(choices: list[int]) -> int:
        return max(choices, key=lambda index: (index in digits, index in points, index != END))

    for kind, value in (
        ("json_schema", json.dumps(schema)),
        ("json_schema", json.dumps({"type": "array", "items": schema, "minItems": 2, "maxItems": 2})),
        ("lark", f"start: json\njson: %json {json.dumps(schema)}"),
    ):
        text = said(compiler, kind, value, choose, 500)
        jsonschema.validate(json.loads(text), {"type": "array", "items": schema} if text[0] == "[" else schema)
        assert max(map(len, re.findall("[0-9]+", text))) <= MOST_DIGITS + 6


def test_long_rows_of_digits_that_are_no_numbers(compiler: GrammarCompiler) -> None:
    """What the schema or the client's own expression asks for may have them."""
    long = "7" * 64
    for kind, value, text in (
        ("json_schema", '{"type": "string"}', f'"{long}"'),
        ("json_schema", '{"type": "string", "pattern": "^[0-9]+$"}', f'"{long}"'),
        ("json_schema", '{"type": "string", "pattern": "^[0-9a-f]{64}$"}', f'"{long}"'),
        ("regex", "[0-9]+", long),
        ("lark", "start: /(.|\\n)*/ a?\na: %json {}", long),
    ):
        grammar = AnswerGrammar(compiler, StructuredOutput(kind, value), [END])  # type: ignore[arg-type]
        output: list[int] = []
        for token_id in compiler.tokens.tokenize_str(text):
            assert token_id in allowed(grammar.mask(output)), (value, len(output))
            output.append(token_id)


MET: list[Schema] = [
    {"type": "object", "additionalProperties": False, "properties": {"a": BIT}, "patternProperties": {"^a$": BIT}},
    {"type": "object", "properties": {"a": BIT}, "required": ["a"], "patternProperties": {"^a$": {"type": "integer"}}},
    {
        "type": "object",
        "properties": {"a": {"enum": ["x", 1]}},
        "required": ["a"],
        "patternProperties": {"^a": {"type": "integer"}},
    },
    {
        "type": "object",
        "properties": {"a": BIT, "b": BIT},
        "patternProperties": {"^(a|b)$": {"type": "integer"}, "^c$": BIT},
    },
    {"type": "object", "required": ["a"], "patternProperties": {"^a$": BIT}},
    {"type": "object", "properties": {"a": True}, "required": ["a"], "patternProperties": {"^[a]$": BIT}},
    {"properties": {"n": {"properties": {"a": BIT}, "patternProperties": {"^a$": BIT}}}, "required": ["n"]},
    {"$ref": "#/$defs/o", "$defs": {"o": {"properties": {"a": BIT}, "patternProperties": {"a": BIT}}}},
    {"anyOf": [{"properties": {"a": BIT}, "required": ["a"], "patternProperties": {"^a$": True}}, {"type": "null"}]},
]


@pytest.mark.parametrize("schema", MET)
async def test_patterns_that_meet_declared_members(
    compiler: GrammarCompiler, check: GrammarCheck, schema: Schema
) -> None:
    """Both hold for the member, and no pattern that fits no other name ends in a dead end (llguidance#265)."""
    definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    for original in (schema, {"type": "array", "items": schema, "maxItems": 2, "minItems": 1} | definitions):
        ready, *_ = prepared(original)
        await check.check(StructuredOutput("json_schema", json.dumps(ready)))
        await check.check(StructuredOutput("lark", f'start: "x" json\njson: %json {json.dumps(ready)}'))
        for value in random_answers(compiler, ready, 10):
            jsonschema.validate(value, original, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("kind", "value", "where"),
    [
        ("lark", 'start: "a" ("x" B | "c")\nB: /b/ & /c/', "'ax'"),
        ("lark", 'start: "some longer text before" ("x" B | "c")\nB: /b/ & /c/', "before"),
        (
            "json_schema",
            '{"properties": {"abc": {"type": "integer", "minimum": 1, "maximum": 6, "multipleOf": 0.7}},'
            ' "type": "object", "required": ["abc"]}',
            "abc",
        ),
        (
            "lark",
            'start: <[5]> json\njson: %json {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 6,'
            ' "multipleOf": 0.7}, "minItems": 1}',
            "[",
        ),
    ],
)
async def test_dead_ends_are_found_before_anything_is_said(
    check: GrammarCheck, kind: Any, value: str, where: str
) -> None:
    with pytest.raises(RequestError, match="nothing fits it behind") as caught:
        await check.check(StructuredOutput(kind, value))
    assert where in str(caught.value)
