"""Which replica a request goes to: that which probably holds the keys and values of its beginning.

Rendezvous hashing (Thaler and Ravishankar, 1998) gives each key an owner among the replicas, with nothing to remember:
any router decides alike, and a replica that comes or goes moves no keys but its own. With bounded load (Mirrokni,
Thorup and Zadimoghaddam, 2018) an owner that has more to do than its share is passed over.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import msgspec

BLOCK = 512
"""Bytes of JSON, about a hundred tokens: what is shorter is computed faster than it is looked for."""
LONGEST_PREFIX = 1 << 20
"""Bytes of a prompt that are looked at."""
OVERLOAD = 1.25
"""Times the mean load from which on an owner is passed over."""
# However little there is to do: a second request costs a replica less than another one's lost beginning.
_ALWAYS = 2

Key = bytes


class Loaded(Protocol):
    """A replica. name: the same in every router. running: requests that it has from this one; served: those that it
    had so far."""

    name: str
    served: int

    @property
    def running(self) -> int: ...


R = TypeVar("R", bound=Loaded)


def choose(keys: Iterable[tuple[str, Key]], replicas: Sequence[R]) -> tuple[R, str]:
    """The owner of the first key whose owner is not overloaded, and the kind of that key; else the least loaded
    replica, and "load". There must be one."""
    most = max(_ALWAYS, math.ceil(OVERLOAD * (sum(each.running for each in replicas) + 1) / len(replicas)))
    for kind, key in keys:
        found = owner(key, replicas)
        if found.running < most:
            return found, kind
    return min(replicas, key=lambda each: (each.running, each.served)), "load"


def owner(key: Key, replicas: Sequence[R]) -> R:
    """Whose a key is. There must be a replica."""
    return max(replicas, key=lambda each: _weight(key, each.name))


def _weight(key: Key, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), key=key, digest_size=8).digest()


def key_of(*parts: bytes) -> Key:
    """A key of these bytes, in which their borders count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
    return digest.digest()


# Fields that come before the conversation in a prompt, or keep prompts apart whatever is in them.
_FIRST = ("model", "cache_salt", "tools", "system", "instructions")
_PROMPTS = ("messages", "prompt", "input")
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_entries = msgspec.json.Decoder(list[msgspec.Raw]).decode


# What only an answer brings into a conversation: its role, or, of OpenAI's responses, its kinds of items.
_ANSWERS = ("assistant", "reasoning", "function_call")


class _Entry(msgspec.Struct):
    role: str = ""
    type: str = ""


_entry = msgspec.json.Decoder(_Entry).decode


def fields_of(body: bytes | bytearray) -> dict[str, msgspec.Raw]:
    """Those of a JSON object; none of what is none, which the replica will say."""
    try:
        return _fields(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}


def text_field(fields: dict[str, msgspec.Raw], name: str) -> str:
    """A field's text; empty where it has none."""
    try:
        value = msgspec.json.decode(fields.get(name, b'""'))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""
    return value if isinstance(value, str) else ""


def keys_of(fields: dict[str, msgspec.Raw], session: str = "") -> list[tuple[str, Key]]:
    """The keys of a request to generate, in the order of `choose`. session: what the client calls the conversation.

    They are made of the JSON as it came, for without a tokenizer that is what equal beginnings have in common. A
    conversation that goes on is known by all that came before its first answer, which stays the same in each of its
    turns. Others have a key for each 1, 2, 4, 8 ... blocks of their prompt: requests that share a beginning meet at the
    owner of its shortest key, and where that has enough to do, at those of longer ones.
    """
    if session := session or text_field(fields, "prompt_cache_key"):
        return [("session", key_of(b"session", session.encode()))]
    root = b"".join(b"%b=%b;" % (name.encode(), bytes(fields[name])) for name in _FIRST if name in fields)
    prompt = next((bytes(fields[name]) for name in _PROMPTS if name in fields), b"")
    found = []
    if beginning := _before_first_answer(prompt):
        found.append(("conversation", key_of(b"conversation", root, beginning)))
    return found + [("prefix", key) for key in _levels(root + prompt)]


def _before_first_answer(prompt: bytes) -> bytes:
    """The entries of a conversation before the first answer in it; empty where there is none."""
    if not prompt.startswith(b"[") or not any(b'"%b"' % kind.encode() in prompt for kind in _ANSWERS):
        return b""
    try:
        entries = _entries(prompt)
        for place, entry in enumerate(map(_entry, entries)):
            if entry.role in _ANSWERS or entry.type in _ANSWERS:
                return b",".join(map(bytes, entries[:place]))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    return b""


def _levels(text: bytes) -> list[Key]:
    """A key for each beginning of 1, 2, 4, 8 ... blocks that the text has."""
    digest, done, keys = hashlib.sha256(b"prefix"), 0, []
    size = BLOCK
    while size <= min(len(text), LONGEST_PREFIX):
        digest.update(text[done:size])
        keys.append(digest.digest())
        done, size = size, 2 * size
    return keys
