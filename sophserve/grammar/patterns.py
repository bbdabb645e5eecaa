"""patternProperties that meet members which have a name, put into words that llguidance keeps to.

It lets a member that is declared do without the patterns that its name fits, and follows a pattern that no other name
fits into a place from which there is no way on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from sophserve.text.json_schema import DEFINITIONS, with_subschemas

_JSON = re.compile(r"%json\s*")


@cache
def byte_tokens() -> LLTokenizer:
    """A vocabulary of which each token is a byte."""
    return LLTokenizer("byte")


def merged_schema(text: str) -> str:
    """A schema's text, where members that are declared fit the patterns of their names as well."""
    return json.dumps(_merged(json.loads(text))) if "patternProperties" in text else text


def merged_lark(text: str) -> str:
    """The same with the schemas in a grammar."""
    if "patternProperties" not in text:
        return text
    parts, end = [], 0
    while found := _JSON.search(text, end):
        parts.append(text[end : found.end()])
        try:
            schema, end = json.JSONDecoder().raw_decode(text, found.end())
            parts.append(json.dumps(_merged(schema)))
        except ValueError:  # within a text or a comment
            end = found.end()
    return "".join([*parts, text[end:]])


def schemas_in(text: str) -> Iterator[Any]:
    """The schemas in a grammar."""
    for found in _JSON.finditer(text):
        with suppress(ValueError):  # within a text or a comment
            yield json.JSONDecoder().raw_decode(text, found.end())[0]


def _merged(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = with_subschemas(schema, lambda part, _: _merged(part))
    for key in DEFINITIONS:
        if isinstance(definitions := result.get(key), dict):
            result[key] = {name: _merged(part) for name, part in definitions.items()}
    properties, patterns = result.get("properties", {}), result.get("patternProperties")
    if not isinstance(properties, dict) or not isinstance(patterns, dict):
        return result
    required = result.get("required")
    names = [*properties, *(required if isinstance(required, list) else [])]
    properties, kept = dict(properties), {}
    for pattern, part in patterns.items():
        fitting = _fitting(pattern, dict.fromkeys(name for name in names if isinstance(name, str)))
        for name in fitting:
            properties[name] = _both(properties.get(name, True), part)
        if not fitting or _others_fit(pattern, fitting):
            kept[pattern] = part
    return result | ({"properties": properties} if properties else {}) | {"patternProperties": kept}


def _both(first: Any, second: Any) -> Any:
    if first is True or second is True:
        return second if first is True else first
    return {"allOf": [first, second]}


def _fitting(pattern: str, names: Collection[str]) -> list[str]:
    """The names that fit a pattern."""
    matcher = _matcher({"type": "string", "pattern": pattern})
    found = []
    for name in names:
        text = json.dumps(name, ensure_ascii=False).encode(errors="replace")
        if matcher.try_consume_tokens(list(text)) == len(text) and matcher.is_accepting():
            found.append(name)
        if matcher.is_error():
            break
        matcher.reset()
    return found


def _others_fit(pattern: str, names: Collection[str]) -> bool:
    """Whether a name fits the pattern that is none of these."""
    forbidden = dict.fromkeys(names, False)
    schema = {"type": "object", "properties": forbidden, "patternProperties": {pattern: True}}
    matcher = _matcher(schema | {"additionalProperties": False})
    matcher.consume_token(ord("{"))
    return matcher.is_error() or bool(matcher.compute_bitmask()[ord('"') // 8] >> ord('"') % 8 & 1)


def _matcher(schema: dict[str, Any]) -> LLMatcher:
    options: Any = {"whitespace_flexible": False}
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
    return LLMatcher(byte_tokens(), grammar, log_level=0)
