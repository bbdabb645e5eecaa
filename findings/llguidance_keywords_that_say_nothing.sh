#!/usr/bin/env bash
# llguidance 1.9.1: a schema is refused for a keyword even where its value demands nothing.
#
# `"uniqueItems": false` is what JSON Schema means without the keyword, and generators of schemas write it out. One would
# expect only `true`, which no grammar can express, to be refused. Both are, with the same words, as the names of
# keywords are looked at and not their values. `"format"` with a name that it does not know is refused as well, although
# JSON Schema has it as an annotation.
#
# Output seen:
#     plain: taken
#     uniqueItems true: Unimplemented keys: ["uniqueItems"]
#     uniqueItems false: Unimplemented keys: ["uniqueItems"]
#     format password: Unknown format: password
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llguidance==1.9.1
"$folder/venv/bin/python" - <<'PYTHON'
import json

from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")


def problem(schema):
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    return LLMatcher(tokenizer, grammar).get_error()


array = {"type": "array", "items": {"type": "integer"}}
cases = {
    "plain": (array, ""),
    "uniqueItems true": (array | {"uniqueItems": True}, "uniqueItems"),
    "uniqueItems false": (array | {"uniqueItems": False}, "uniqueItems"),
    "format password": ({"type": "string", "format": "password"}, "format"),
}
for name, (schema, expected) in cases.items():
    said = problem(schema)
    print(f"{name}: {said.splitlines()[0] if said else 'taken'}")
    assert expected in said if expected else not said, said
PYTHON
