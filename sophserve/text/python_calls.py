"""Tool calls written as calls in Python: how they are read, and their grammar."""

from __future__ import annotations

import ast
import re
import warnings
from keyword import iskeyword
from typing import Any

from sophserve.text import exact_json
from sophserve.text.text_reader import NotACallError
from sophserve.text.tool_grammar import Schema, ToolGrammar, either, quoted

# What a schema may say beside its properties without changing which calls in Python fit it.
_PLAIN = frozenset({"type", "properties", "required", "additionalProperties", "description", "title", "$schema"})
_DEFINITIONS = ("$defs", "definitions")


_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def read_calls(text: str) -> list[tuple[str, str]]:
    """The names of the calls in a list, and their arguments in JSON. Raises NotACallError if one of them is none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about unknown escapes in strings
            tree = ast.parse(text, mode="eval").body
        lines = re.split(rb"\r\n|\r|\n", text.encode())
        calls = tree.elts if isinstance(tree, ast.List) else []
        return [_read_call(call, lines) for call in calls]
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        raise NotACallError from None


def _read_call(call: ast.expr, lines: list[bytes]) -> tuple[str, str]:
    if not isinstance(call, ast.Call) or call.args:
        raise NotACallError
    arguments = {str(keyword.arg): _value(keyword.value, lines) for keyword in call.keywords if keyword.arg}
    if len(arguments) < len(call.keywords):
        raise NotACallError
    return ast.unparse(call.func), _to_json(arguments)


def _value(node: ast.expr, lines: list[bytes]) -> Any:
    """A literal in these lines; JSON's names for true, false and null are forgiven."""
    match node:
        case ast.Name(id="true" | "false" | "null" as name):
            return {"true": True, "false": False, "null": None}[name]
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part, lines) for part in parts]
        case ast.Dict(keys=keys, values=values):
            return {ast.literal_eval(key or node): _value(part, lines) for key, part in zip(keys, values, strict=True)}
        case ast.Constant(value=float()) | ast.UnaryOp(operand=ast.Constant(value=float())):
            written = lines[node.lineno - 1][node.col_offset : node.end_col_offset]
            if _NUMBER.fullmatch(written):
                return exact_json.number(written.decode())
    return ast.literal_eval(node)


def _to_json(value: Any) -> str:
    """Raises TypeError or ValueError for what JSON has not."""
    text = exact_json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return exact_json.dumps(value)
    return text


def grammar(writer: ToolGrammar, several: bool) -> str:
    """A list of one call, or of at least one. Raises ValueError for a schema that such calls cannot be kept to."""
    calls = [
        f"{quoted(name + '(')} {_keywords(writer, name, schema)} {quoted(')')}" for name, schema in writer.tools.items()
    ]
    return f'"[" {writer.repeated(either(calls), ", ", several)} "]"'


def _keywords(writer: ToolGrammar, name: str, schema: Schema) -> str:
    """Keyword arguments in the order of the schema, those that are not required possibly left out."""
    keys = [*name.split("."), *schema.get("properties", {})]
    if odd := [key for key in keys if not key.isidentifier() or iskeyword(key)]:
        raise ValueError(f"{name}: {odd[0]!r} is no name in Python, which this model's calls are written in")
    kept = writer.keeps(name)
    if kept and (further := schema.keys() - _PLAIN - set(_DEFINITIONS)):
        raise ValueError(f"{name}: {', '.join(sorted(further))} cannot be kept to in this model's calls")
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    required = schema.get("required", [])
    # What may stand from a keyword on, before and behind the first keyword.
    first = later = '""'
    for key, value in reversed(schema.get("properties", {}).items()):
        argument = writer.json((value if isinstance(value, bool) else value | definitions) if kept else True)
        keyword = writer.rule("keyword", f"{quoted(key + '=')} {argument}")
        rest = [f"{keyword} {later}", f'", " {keyword} {later}']
        if key not in required:
            rest = [f"{rest[0]} | {first}", f"{rest[1]} | {later}"]
        first, later = writer.rule("first", rest[0]), writer.rule("later", rest[1])
    return first
