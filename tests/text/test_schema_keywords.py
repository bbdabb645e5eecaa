"""Keywords that grammars have no words for, against llguidance itself."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from sophserve.text.json_schema import prepared
from sophserve.text.schema_keywords import LACKING, expressible

llguidance = pytest.importorskip("llguidance")

TEXT = {"type": "string"}
# Each keyword of 2020-12, and those of earlier drafts, with a value that says something.
KEYWORDS: dict[str, Any] = {
    **{"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "x", "$anchor": "x", "$comment": "x"},
    **{"$dynamicAnchor": "x", "$dynamicRef": "#", "$recursiveAnchor": True, "$recursiveRef": "#", "$defs": {}},
    **{"type": "string", "const": 1, "enum": [1, 2], "title": "x", "description": "x", "default": 1, "examples": [1]},
    **{"deprecated": True, "readOnly": True, "writeOnly": True, "definitions": {}},
    **{"multipleOf": 2, "maximum": 1, "exclusiveMaximum": 1, "minimum": 1, "exclusiveMinimum": 1},
    **{"maxLength": 1, "minLength": 1, "pattern": "a", "format": "date"},
    **{"contentEncoding": "base64", "contentMediaType": "text/plain", "contentSchema": {}},
    **{"items": TEXT, "prefixItems": [TEXT], "additionalItems": False, "maxItems": 1, "minItems": 1},
    **{"uniqueItems": True, "contains": TEXT, "minContains": 1, "maxContains": 2, "unevaluatedItems": False},
    **{"properties": {"a": TEXT}, "patternProperties": {"a": TEXT}, "additionalProperties": False},
    **{"required": ["a"], "minProperties": 1, "maxProperties": 1, "propertyNames": {"pattern": "a"}},
    **{"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": {"required": ["b"]}}, "dependencies": {"a": ["b"]}},
    **{"unevaluatedProperties": False, "allOf": [TEXT], "anyOf": [TEXT], "oneOf": [TEXT], "not": TEXT},
    **{"if": TEXT, "then": TEXT, "else": TEXT, "nullable": True, "discriminator": {"propertyName": "a"}},
}


def refused(schema: Any) -> str:
    """Why llguidance refuses a schema, empty if it does not."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    return matcher.get_error() if matcher.is_error() else ""


def kept(schema: dict[str, Any], root: Any = None) -> tuple[Any, list[str]]:
    return expressible(schema, lambda reference: (root or {}).get(reference.rpartition("/")[2]))


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_exactly_what_is_lacking_is_left_out(keyword: str) -> None:
    """llguidance 1.9.1: a keyword that it learns is to be taken off the list."""
    schema = {keyword: KEYWORDS[keyword]}
    assert ("Unimplemented" in refused(schema)) == (keyword in LACKING)
    if keyword not in LACKING or keyword == "unevaluatedProperties":
        names = {"oneOf": "anyOf"}
        assert kept(schema) == ({names.get(keyword, keyword): KEYWORDS[keyword]}, [])


@pytest.mark.parametrize(
    ("schema", "result", "lost"),
    [
        ({"type": "array", "uniqueItems": True}, {"type": "array"}, ["uniqueItems"]),
        ({"uniqueItems": False, "not": False, "propertyNames": {"type": "string"}}, {}, []),
        ({"contains": TEXT, "minContains": 2, "maxContains": 3}, {}, ["contains"]),
        ({"contains": TEXT, "minContains": 0}, {}, []),
        ({"minContains": 2, "then": TEXT, "if": {}, "else": False}, {}, ["if"]),
        ({"then": TEXT, "if": {}}, {}, ["if"]),
        ({"if": {}, "dependencies": {}, "unevaluatedItems": True, "$dynamicAnchor": "x"}, {}, []),
        ({"propertyNames": {"format": "date"}, "type": "object"}, {"type": "object"}, ["propertyNames"]),
        ({"propertyNames": {"enum": ["a"]}, "properties": {}}, {"properties": {}}, ["propertyNames"]),
        (
            {"propertyNames": {"type": "string", "enum": ["a", "b"]}, "additionalProperties": TEXT},
            {"properties": {"a": TEXT, "b": TEXT}, "additionalProperties": False},
            [],
        ),
        (
            {"propertyNames": {"const": "a"}, "required": ["a"]},
            {"properties": {"a": True}, "required": ["a"], "additionalProperties": False},
            [],
        ),
        (
            {"propertyNames": {"pattern": "^a"}, "additionalProperties": TEXT},
            {"patternProperties": {"^a": TEXT}, "additionalProperties": False},
            [],
        ),
        ({"propertyNames": {"pattern": "(?!a)"}}, {}, ["propertyNames"]),
        ({"unevaluatedProperties": False}, {"unevaluatedProperties": False}, []),
        ({"unevaluatedProperties": TEXT}, {}, ["unevaluatedProperties"]),
        ({"not": {}}, False, []),
        ({"not": TEXT}, {}, ["not"]),
        ({"pattern": "^(?!a)b", "format": "email"}, {"format": "email"}, ["pattern"]),
        ({"patternProperties": {"^a": TEXT, r"\bb": TEXT}}, {"patternProperties": {"^a": TEXT}}, ["patternProperties"]),
        ({"oneOf": [TEXT, {"type": "integer"}]}, {"anyOf": [TEXT, {"type": "integer"}]}, []),
        (
            {"oneOf": [{"type": "number"}, {"type": "integer"}]},
            {"anyOf": [{"type": "number"}, {"type": "integer"}]},
            ["oneOf"],
        ),
        ({"oneOf": [TEXT], "anyOf": [{}], "allOf": [{}]}, {"anyOf": [{}], "allOf": [{}, {"anyOf": [TEXT]}]}, []),
    ],
)
def test_what_is_left_out_is_named(schema: dict[str, Any], result: Any, lost: list[str]) -> None:
    assert kept(schema) == (result, lost)


def test_choices_that_a_member_tells_apart() -> None:
    """As pydantic and zod write unions that a field discriminates."""

    def animal(*kinds: str, required: bool = True) -> dict[str, Any]:
        kind = {"const": kinds[0]} if len(kinds) == 1 else {"enum": list(kinds)}
        return {"type": "object", "properties": {"kind": kind}, "required": ["kind"] * required}

    root = {"Cat": animal("cat"), "Dog": animal("dog", "hound"), "Any": animal("cat", required=False)}

    def lost(*names: str) -> list[str]:
        return kept({"oneOf": [{"$ref": f"#/$defs/{name}"} for name in names]}, root)[1]

    assert lost("Cat", "Dog") == [] and lost("Cat") == []
    tagged = {"oneOf": [{"$ref": "#/$defs/Any"}, {"$ref": "#/$defs/Dog"}], "discriminator": {"propertyName": "kind"}}
    result, none = kept(tagged, root)
    assert [choice["required"] for choice in result["anyOf"]] == [["kind"], ["kind"]] and none == []
    assert lost("Cat", "Cat") == lost("Cat", "Any") == lost("Any", "Cat") == lost("Cat", "Bird") == ["oneOf"]


PATTERNS = [
    *(
        r"a",
        r"^[^\s@]+@[^\s@]+$",
        r"^\d{3}-\d{4}$",
        r"[\w.-]+",
        r"a\/b",
        r"\u00e9\x41",
        r"(?:a|b)",
        r"(?<n>a)",
        r"(?P<n>a)",
    ),
    *(r"(?i)a", r"[(?=]", r"[a(?!b]", r"\(?!a", r"\\", r"[]a]", r"^\p{L}+$", r"\_\-\@\#\ ", r"[[:alpha:]]", r"a{1,50}"),
    *(r"^(?!a)b", r"(?=a)", r"(?<=a)b", r"(?<!a)b", r"(a)\1", r"\bfoo\b", r"\B", r"\cA", r"[^]", r"[\b]", r"\h", r"\0"),
    *(r"(?>a)", r"\Z", r"\k<n>", r"\\(?!a)", r"[a(?!b]c(?!d)", r"\é", r"\<", r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str) -> None:
    """What llguidance 1.9.1 says of them."""
    schema = {"type": "string", "pattern": pattern}
    assert bool(kept(schema)[1]) == bool(refused(schema))


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog", "hound"]
    loud: bool


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    legs: dict[Literal["a", "b"], int]


def test_what_pydantic_writes_is_kept_to() -> None:
    """pydantic 2: a union that a field tells apart, which has to be there, and names of members that are listed."""
    schema, _, lacking = prepared(Owner.model_json_schema())
    assert not lacking and not refused(schema)
    tokens = llguidance.LLTokenizer("byte")

    def takes(text: str) -> bool:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        matcher = llguidance.LLMatcher(tokens, grammar, log_level=0)
        return matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()

    for pet, legs, fits in (
        ('{"kind":"cat","lives":9}', '{"a":1,"b":2}', True),
        ('{"kind":"hound","loud":true}', "{}", True),
        ('{"lives":9}', "{}", False),
        ('{"kind":"dog","lives":9}', "{}", False),
        ('{"kind":"cat","lives":9}', '{"c":1}', False),
    ):
        text = f'{{"pet":{pet},"legs":{legs}}}'
        assert takes(text) == fits
        if fits:
            Owner.model_validate_json(text)
