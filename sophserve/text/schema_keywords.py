"""Keywords of JSON Schema that grammars have no words for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

# Of JSON Schema up to 2020-12, https://json-schema.org/draft/2020-12/schema, what llguidance refuses.
LACKING = frozenset(
    {
        *("$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef"),
        *("contains", "minContains", "maxContains", "uniqueItems", "unevaluatedItems"),
        *("dependencies", "dependentRequired", "dependentSchemas", "propertyNames", "unevaluatedProperties"),
        *("if", "then", "else", "not"),
    }
)
_ANNOTATIONS = frozenset({"title", "description", "$comment", "default", "examples"})
# Escapes, classes and beginnings of groups, of which the last alternatives are not regular or not known.
_PATTERN_PART = re.compile(
    r"\\(?P<escape>.)|(?P<open>\[\^?\]?)|(?P<close>\])|(?P<group>\(\?(?:[=!>]|<[=!]|[^a-zA-Z:<-]))", re.DOTALL
)
_KNOWN_ESCAPES = re.compile(r"[dDwWsSnrtfvaxuUpPAz]|[!-/:;=?@\[-`{-~ ]")


def expressible(schema: Schema, target: Callable[[str], Any]) -> tuple[Schema | bool, list[str]]:
    """The schema itself, not those within, with what a grammar has words for, and the names of keywords that it leaves
    out although they say something. target: what a reference leads to."""
    if schema.get("not") in (True, {}):
        return False, []
    kept = {key: value for key, value in schema.items() if key not in LACKING or _of_closing(key, value)}
    members = _named_members(schema, target)
    kept |= members
    lost = [key for key in schema if key not in kept and not _says_nothing(key, schema)]
    lost = [key for key in lost if key != "propertyNames" or not members]
    if isinstance(pattern := kept.get("pattern"), str) and not _regular(pattern):
        del kept["pattern"]
        lost.append("pattern")
    if isinstance(patterns := kept.get("patternProperties"), dict) and not all(map(_regular, patterns)):
        kept["patternProperties"] = {pattern: part for pattern, part in patterns.items() if _regular(pattern)}
        lost.append("patternProperties")
    if isinstance(choices := kept.pop("oneOf", None), list):
        tagged = _tagged(choices, schema.get("discriminator"), target)
        lost += ["oneOf"] * (tagged is None)
        choices = tagged or choices
        if "anyOf" in kept:
            others = kept.get("allOf")
            kept["allOf"] = [*(others if isinstance(others, list) else []), {"anyOf": choices}]
        else:
            kept["anyOf"] = choices
    return kept, lost


def _of_closing(key: str, value: Any) -> bool:
    """Whether it says which members an object may have besides, which is put in other words elsewhere."""
    return key == "unevaluatedProperties" and isinstance(value, bool)


def _says_nothing(key: str, schema: Schema) -> bool:
    value = schema[key]
    match key:
        case "uniqueItems" | "not":
            return value is False
        case "if":
            return "then" not in schema and "else" not in schema
        case "then" | "else" | "minContains" | "maxContains" | "$dynamicAnchor" | "$recursiveAnchor":
            return True  # alone, and beside what they belong to that is named
        case "contains":
            return schema.get("minContains") == 0 and "maxContains" not in schema
        case "propertyNames" if isinstance(value, dict):
            return value.keys() <= _ANNOTATIONS | {"type"} and value.get("type", "string") == "string"
    return value in (True, {})


def _regular(pattern: str) -> bool:
    """Whether a pattern does without what looks around it or back, and without other dialects' escapes."""
    inside = False
    for part in _PATTERN_PART.finditer(pattern):
        if escape := part["escape"]:
            if not _KNOWN_ESCAPES.fullmatch(escape):
                return False
        elif part["open"]:
            inside = True
        elif part["close"]:
            inside = False
        elif not inside:
            return False
    return not inside


def _named_members(schema: Schema, target: Callable[[str], Any]) -> Schema:
    """What propertyNames says in the words of members that are listed or fit a pattern, where there are no others."""
    names = _found(schema.get("propertyNames"), target)
    if not isinstance(names, dict) or not names.keys() <= _ANNOTATIONS | {"type", "enum", "const", "pattern"}:
        return {}
    if names.get("type", "string") != "string" or not schema.keys().isdisjoint({"properties", "patternProperties"}):
        return {}
    others = schema.get("additionalProperties", True)
    if isinstance(pattern := names.get("pattern"), str) and _regular(pattern) and not {"enum", "const"} & names.keys():
        return {"patternProperties": {pattern: others}, "additionalProperties": False}
    listed = [names["const"]] if "const" in names else names.get("enum")
    if "pattern" in names or not isinstance(listed, list):
        return {}
    return {"properties": {name: others for name in listed if isinstance(name, str)}, "additionalProperties": False}


def _tagged(choices: list[Any], discriminator: Any, target: Callable[[str], Any]) -> list[Any] | None:
    """The same schemas, of which a value fits one at most: by its type, or by a member with values of its own in each,
    which the discriminator names. None where that is not easily seen."""
    schemas = [choice for choice in (_found(choice, target) for choice in choices) if isinstance(choice, dict)]
    if not schemas or len(schemas) < len(choices):
        return None
    if _disjoint(list(map(_types, schemas))):
        return choices
    tag = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
    required = schemas[0].get("required")
    names = [tag] if isinstance(tag, str) else required if isinstance(required, list) else []
    for name in names:
        if isinstance(name, str) and _disjoint([_values(schema, name, tag is not None) for schema in schemas]):
            return (
                [choice | {"required": _with(choice.get("required"), name)} for choice in choices] if tag else choices
            )
    return None


def _found(schema: Any, target: Callable[[str], Any]) -> Any:
    """A schema, or what it refers to."""
    reference = schema.get("$ref") if isinstance(schema, dict) else None
    return target(reference) if isinstance(reference, str) else schema


def _with(names: Any, name: str) -> list[Any]:
    names = names if isinstance(names, list) else []
    return names if name in names else [*names, name]


def _disjoint(sets: list[frozenset[str]]) -> bool:
    """Whether each says something, and no two have anything in common."""
    return all(sets) and sum(map(len, sets)) == len(frozenset().union(*sets))


def _types(schema: Schema) -> frozenset[str]:
    given = schema.get("type")
    types = {given} if isinstance(given, str) else set(given) if isinstance(given, list) else set()
    return frozenset("number" if name == "integer" else str(name) for name in types)


def _values(schema: Schema, name: str, tag: bool) -> frozenset[str]:
    """Those that a member may have, in JSON; empty where they are not listed. tag: it need not be required."""
    required, properties = schema.get("required"), schema.get("properties")
    member = properties.get(name) if isinstance(properties, dict) else None
    if not isinstance(member, dict) or not (tag or (isinstance(required, list) and name in required)):
        return frozenset()
    values = [member["const"]] if "const" in member else member.get("enum")
    return frozenset(json.dumps(value, sort_keys=True) for value in values) if isinstance(values, list) else frozenset()
