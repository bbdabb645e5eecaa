#!/usr/bin/env bash
# msgspec 0.22.0: a field of type `Raw | None` takes null and nothing else.
#
# Raw keeps any JSON as it was written, so one would expect `Raw | None` to keep an object and to make None of null. But
# the union is narrowed to None: an object, a text or a number is refused as "Expected `null`". A field that may be left
# out has to be a plain Raw with an empty one as its default, and that default has to come from a factory where a JSON
# schema of the struct is wanted: with `= Raw()` schema_components cannot serialize it.
#
# Output seen:
#     null: None
#     {"a": 1}: Expected `null`, got `object` - at `$.value`
#     Raw with a factory: b'{"a": 1}' b''
#     schema with a factory: True, with a plain default: TypeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q msgspec==0.22.0
"$folder/venv/bin/python" - <<'PYTHON'
import msgspec


class Either(msgspec.Struct):
    value: msgspec.Raw | None = None


class Factory(msgspec.Struct):
    value: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class Plain(msgspec.Struct):
    value: msgspec.Raw = msgspec.Raw()


print("null:", msgspec.json.decode(b'{"value": null}', type=Either).value)
try:
    msgspec.json.decode(b'{"value": {"a": 1}}', type=Either)
except msgspec.ValidationError as error:
    print('{"a": 1}:', error)
    assert "Expected `null`" in str(error)
else:
    raise SystemExit("it is kept now")
given, absent = (msgspec.json.decode(text, type=Factory).value for text in (b'{"value": {"a": 1}}', b"{}"))
print("Raw with a factory:", bytes(given), bytes(absent))
assert (bytes(given), bytes(absent)) == (b'{"a": 1}', b"")
made = bool(msgspec.json.schema_components([Factory]))
try:
    msgspec.json.schema_components([Plain])
except TypeError as error:
    print(f"schema with a factory: {made}, with a plain default: {type(error).__name__}")
else:
    raise SystemExit("the default can be told now")
PYTHON
