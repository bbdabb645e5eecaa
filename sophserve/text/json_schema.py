"""Makes of a client's JSON schema what a grammar is to keep to: nothing but the members that it declares, and only what
a grammar can tell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from sophserve.errors import RequestError
from sophserve.json_size import check_json
from sophserve.sampling import StructuredOutput
from sophserve.text.schema_keywords import expressible

# Where a schema holds schemas: one, a list of them, or some by name. Definitions are reached by what refers to them.
_ONE = frozenset({"items", "additionalItems", "additionalProperties", "contains", "not", "propertyNames"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_NAMED = frozenset({"properties", "patternProperties"})
# Those whose schemas hold for the same value.
_IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf")
DEFINITIONS = ("$defs", "definitions")
_DEFINED = "#/$defs/"
# Formats that the grammar keeps to, with the most characters of those that could go on for ever (RFC 3339, 5321, 1035).
_FORMATS: dict[str, int | None] = {
    "date": None,
    "date-time": 35,
    "duration": 64,
    "email": 254,
    "hostname": 253,
    "ipv4": None,
    "ipv6": None,
    "time": 24,
    "uri": 2048,
    "uuid": None,
}
# Schemas and names of members in a result: definitions are copied, and could be so without end.
_MOST = 100_000
# Definitions whose values depend on each other in a longer row are taken to have some.
_ROUNDS = 64


class PreparedSchema(NamedTuple):
    """schema: JSON's values. not_kept: annotations in the client's schema that have no effect, lacking: keywords that
    grammars have no words for, each with its place."""

    schema: Any
    not_kept: list[str]
    lacking: list[str]


@dataclass(frozen=True)
class Members:
    """Those that the schemas of one value declare: names, patterns of names, and whether there may be others."""

    names: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    open: bool = False

    @classmethod
    def joined(cls, all_of: Iterable[Members]) -> Members:
        """Those of several schemas."""
        parts = [part for part in all_of if part is not NO_MEMBERS]
        if len(parts) < 2:
            return parts[0] if parts else NO_MEMBERS
        names, patterns = (part.names for part in parts), (part.patterns for part in parts)
        return cls(frozenset().union(*names), frozenset().union(*patterns), any(part.open for part in parts))


NO_MEMBERS = Members()


def prepared(schema: Any, place: str = "#") -> PreparedSchema:
    """Every value that fits the result fits the schema, but for what is not kept or lacking. place: what the schema is
    called.

    Objects have the members that are declared, unless additionalProperties says that there may be others: a model that
    is free to add members goes on adding them. A format that is not known here is an annotation, as JSON Schema has it.
    What is no schema stays as it is, for the grammar to refuse. Raises ValueError for a schema that is too complex, or
    whose values have no end.
    """
    preparation = _Preparation(schema, place)
    result = preparation.changed(schema, place)
    if result is False and schema is not False:
        raise ValueError("no value fits it")
    definitions = preparation.definitions()
    endless = _endless(result, definitions)
    if "#" in endless:
        raise ValueError("none of its values ever ends, as it requires one within itself; make that optional")
    if endless:
        possible = {name: each for name, each in definitions.items() if _DEFINED + name not in endless}
        result, definitions = _without(result, endless), {name: _without(possible[name], endless) for name in possible}
    if definitions and isinstance(result, dict):
        result["$defs"] = definitions
    return PreparedSchema(result, list(preparation.not_kept), list(preparation.lacking))


def prepared_form(form: StructuredOutput, strict: bool = True) -> tuple[StructuredOutput, list[str]]:
    """A form whose schema, if it has one, is prepared, and what is not kept of it. strict: that a keyword is lacking is
    an error. Raises RequestError."""
    if form.kind != "json_schema":
        return form, []
    try:
        check_json(form.value.encode())
        schema, not_kept, lacking = prepared(msgspec.json.decode(form.value))
    except RecursionError:
        raise RequestError("the schema is nested too deeply") from None
    except msgspec.MsgspecError as error:
        raise RequestError(f"the schema cannot be read: {error}") from None
    except ValueError as error:
        raise RequestError(f"the schema cannot be used: {error}") from None
    if lacking and strict:
        raise RequestError(f"the schema has {', '.join(lacking)}, which no grammar can keep to; leave it out")
    return msgspec.structs.replace(form, value=msgspec.json.encode(schema).decode()), not_kept + lacking


def with_subschemas(schema: dict[str, Any], change: Callable[[Any, str], Any]) -> dict[str, Any]:
    """The schema with change(subschema, its place) for each of those directly in it, definitions aside."""
    result = {}
    for key, value in schema.items():
        if key in _LISTS and isinstance(value, list):
            value = [change(part, f"{key}/{index}") for index, part in enumerate(value)]
        elif key in _ONE:
            value = change(value, key)
        elif key in _NAMED and isinstance(value, dict):
            value = {name: change(part, f"{key}/{name}") for name, part in value.items()}
        result[key] = value
    return result


class _Preparation:
    """Of one schema, root. A definition is copied for each set of members that it stands beside."""

    def __init__(self, root: Any, place: str) -> None:
        self.not_kept: dict[str, None] = {}
        self.lacking: dict[str, None] = {}
        self._root, self._place = root, place
        self._declared: dict[int, tuple[Members, Any]] = {}  # by id, which is the schema's as long as it is here
        self._names: dict[tuple[str, Members], str] = {}
        self._pending: list[tuple[str, str, Members]] = []
        self._elsewhere = False  # whether something refers to what is not found by its path
        self._size = 0

    def definitions(self) -> dict[str, Any]:
        """All that the changed schemas refer to, under new names."""
        found: dict[str, Any] = {}
        while self._pending:
            name, reference, beside = self._pending.pop()
            found[name] = self.changed(self._target(reference), self._place + reference[1:], beside)
        if self._elsewhere and isinstance(definitions := self._root.get("$defs"), dict):
            return definitions | found
        return found

    def changed(self, schema: Any, place: str, beside: Members = NO_MEMBERS) -> Any:
        """The schema made ready. beside: what other schemas of the same value declare."""
        self._count(1)
        if isinstance(schema, dict):
            schema, lost = expressible(schema, self._target)
            self.lacking |= dict.fromkeys(f"{keyword} of {place}" for keyword in lost)
        if not isinstance(schema, dict):
            return schema
        own = self._own(schema)
        parts = {key: self._under(schema, key) for key in _IN_PLACE if key in schema}
        everything = Members.joined([own, *parts.values(), beside])
        # Of allOf the others stand beside each one, of alternatives they do not.
        around = {
            key: Members.joined([own, beside, *(parts[other] for other in parts if other != key)]) for key in parts
        } | {"allOf": everything}

        def change(part: Any, inner: str) -> Any:
            return self.changed(part, f"{place}/{inner}", around.get(inner.partition("/")[0], NO_MEMBERS))

        result = with_subschemas({key: part for key, part in schema.items() if key not in DEFINITIONS}, change)
        if isinstance(reference := schema.get("$ref"), str):
            result["$ref"] = self._reference(reference, around["$ref"])
        # What nothing evaluates may be forbidden beside what is declared here, wherever else something is.
        alone = schema.get("unevaluatedProperties") is False
        self._close(result, Members.joined([own, *parts.values()]) if alone else everything)
        self._keep_format(result, place)
        return result

    def _count(self, more: int) -> None:
        self._size += more
        if self._size > _MOST:
            raise ValueError("its definitions stand in too many places; simplify it")

    def _reference(self, reference: str, beside: Members) -> str:
        if self._target(reference) is None:
            self._elsewhere = True
            return reference
        if reference == "#" and beside == NO_MEMBERS:
            return reference
        key = reference, beside
        if key not in self._names:
            self._names[key] = f"prepared-{len(self._names)}"
            self._pending.append((self._names[key], *key))
        return f"{_DEFINED}{self._names[key]}"

    def _target(self, reference: str) -> Any:
        """What is found by its path within the schema; None where that is nothing."""
        found = self._root
        if not reference.startswith("#/"):
            return found if reference == "#" else None
        for part in unquote(reference[2:]).split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict):
                found = found.get(part)
            elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            else:
                return None
        return found

    def _all(self, schema: Any) -> Members:
        """The members that a schema declares, together with those that hold for the same value."""
        if not isinstance(schema, dict):
            return NO_MEMBERS
        if id(schema) not in self._declared:
            self._declared[id(schema)] = NO_MEMBERS, schema  # for one that refers to itself
            parts = [self._own(schema), *(self._under(schema, key) for key in _IN_PLACE if key in schema)]
            self._declared[id(schema)] = Members.joined(parts), schema
        return self._declared[id(schema)][0]

    def _under(self, schema: dict[str, Any], key: str) -> Members:
        """Those that the schemas under a key declare together."""
        value = schema.get(key)
        if key == "$ref" and isinstance(value, str):
            target = self._target(value)
            return Members(open=True) if target is None else self._all(target)
        return Members.joined(map(self._all, _list(value)))

    def _own(self, schema: dict[str, Any]) -> Members:
        values = [*_list(schema.get("enum")), schema.get("const"), schema.get("properties")]
        names = {name for value in values for name in _dict(value)}
        names.update(name for name in _list(schema.get("required")) if isinstance(name, str))
        others = schema.get("additionalProperties", schema.get("unevaluatedProperties", False))
        patterns = _dict(schema.get("patternProperties"))
        if not names and not patterns and others is False:
            return NO_MEMBERS
        return Members(frozenset(names), frozenset(patterns), others is not False)

    def _close(self, schema: dict[str, Any], members: Members) -> None:
        """Have an object declare all members that there are, and no others."""
        unevaluated = schema.get("unevaluatedProperties")
        if isinstance(unevaluated, bool):  # what closing does, or nothing
            del schema["unevaluatedProperties"]
        declares = unevaluated is False or "properties" in schema or "patternProperties" in schema
        given = "additionalProperties" in schema or "enum" in schema or "const" in schema
        if not declares or given or members.open:
            return
        least = schema.get("minProperties")
        if isinstance(least, int) and least > len(members.names) and not members.patterns:
            return  # it cannot do without others
        for key, names in (("properties", members.names), ("patternProperties", members.patterns)):
            known = schema.get(key, {})
            if isinstance(known, dict) and (further := names - known.keys()):
                self._count(len(further))
                schema[key] = known | dict.fromkeys(sorted(further), True)
        schema["additionalProperties"] = False

    def _keep_format(self, schema: dict[str, Any], place: str) -> None:
        """Leave out the name of a format that is not known, and bound one that has no end."""
        name = schema.get("format")
        if not isinstance(name, str):
            return
        if name not in _FORMATS:
            del schema["format"]
            self.not_kept[f"format {name} of {place}"] = None
            return
        longest = _FORMATS[name]
        least, most = schema.get("minLength", 0), schema.get("maxLength", longest)
        if longest and isinstance(least, int) and isinstance(most, int) and least <= longest <= most:
            schema["maxLength"] = longest


def _without(schema: Any, references: Collection[str]) -> Any:
    """The schema where what these refer to cannot be."""
    if not isinstance(schema, dict):
        return schema
    if isinstance(reference := schema.get("$ref"), str) and reference in references:
        return False
    return with_subschemas(schema, lambda part, _: _without(part, references))


def _endless(root: Any, definitions: dict[str, Any]) -> Collection[str]:
    """References to those schemas of which it is certain that none of their values ends."""
    unknown = {"#": root} | {f"{_DEFINED}{name}": schema for name, schema in definitions.items()}

    def has_value(schema: Any) -> bool:
        if not isinstance(schema, dict) or "enum" in schema or "const" in schema:
            return True
        needed = list(_list(schema.get("allOf")))
        if schema.get("type") == "object":
            properties = _dict(schema.get("properties"))
            needed += [properties.get(name) for name in _list(schema.get("required")) if isinstance(name, str)]
        elif schema.get("type") == "array" and schema.get("minItems") and "prefixItems" not in schema:
            needed.append(schema.get("items"))
        alternatives = [options for key in ("anyOf", "oneOf") if (options := _list(schema.get(key)))]
        reference = schema.get("$ref")
        return (
            not (isinstance(reference, str) and reference in unknown)
            and all(map(has_value, needed))
            and all(any(map(has_value, options)) for options in alternatives)
        )

    for _ in range(_ROUNDS):
        found = [reference for reference, schema in unknown.items() if has_value(schema)]
        if not found:
            return unknown
        for reference in found:
            del unknown[reference]
    return ()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
