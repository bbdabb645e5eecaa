"""Which replica a request goes to: against the definition, and over requests as applications send them."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from sophserve.route.choice import BLOCK, OVERLOAD, choose, fields_of, key_of, keys_of, owner


class Replica:
    def __init__(self, name: str, running: int = 0) -> None:
        self.name, self.running, self.served = name, running, 0


def replicas(count: int = 4) -> list[Replica]:
    return [Replica(f"http://host-{number}:8000") for number in range(count)]


def keys(**body: Any) -> list[tuple[str, bytes]]:
    return keys_of(fields_of(json.dumps({"model": "m", **body}).encode()))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_each_replica_owns_its_share_and_keeps_it() -> None:
    all_keys = [key_of(b"%d" % number) for number in range(4000)]
    four, five = replicas(4), replicas(5)
    before = [owner(key, four).name for key in all_keys]
    after = [owner(key, five).name for key in all_keys]
    assert all(850 < count < 1150 for count in Counter(before).values())
    moved = [name for name, old in zip(after, before, strict=True) if name != old]
    assert set(moved) == {five[-1].name} and 650 < len(moved) < 950


def test_order_and_absent_replicas_do_not_matter() -> None:
    four = replicas()
    for number in range(200):
        key = key_of(b"%d" % number)
        found = owner(key, four)
        assert owner(key, four[::-1]) is found
        others = [each for each in four if each is not found]
        assert owner(key, [found, others[0]]) is found


def test_borders_between_parts_count() -> None:
    assert key_of(b"ab", b"c") != key_of(b"a", b"bc")


@pytest.mark.parametrize("field", ["messages", "prompt", "input"])
def test_equal_beginnings_have_equal_keys(field: str) -> None:
    beginning = "".join(random.Random(1).choices("abcdef ", k=3 * BLOCK))

    def prompt(rest: str) -> Any:
        text = beginning + rest
        return [{"role": "system", "content": text}, user("Hi")] if field == "messages" else text

    one, other = keys(**{field: prompt("one" * 999)}), keys(**{field: prompt("two" * 999)})
    assert [kind for kind, _ in one] == ["prefix"] * len(one)
    assert one[:2] == other[:2] and not set(one[2:]) & set(other)
    assert not set(one) & set(keys(**{field: prompt("one" * 999), "cache_salt": "s"}))
    assert not set(one) & set(keys(**{field: prompt("one" * 999), "model": "another"}))


def test_a_short_prompt_has_no_keys() -> None:
    assert keys(messages=[user("Hi")]) == []


def test_a_conversation_keeps_its_key() -> None:
    turns = [user("Hi"), assistant("Hello"), user("And?")]
    first = keys(messages=turns)[0]
    assert first[0] == "conversation"
    for _ in range(20):
        turns += [assistant("x" * 100), user("y" * 100)]
        assert keys(messages=turns)[0] == first
    assert keys(messages=[user("Ho"), *turns[1:]])[0] != first
    assert keys(system="Be brief.", messages=turns)[0] != first


def test_a_conversation_of_items_keeps_its_key() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "1"}
    first = keys(input=[user("Hi"), call, output])[0]
    assert first[0] == "conversation"
    assert keys(input=[user("Hi"), call, output, assistant("One"), user("Why?")])[0] == first


def test_the_client_can_name_a_session() -> None:
    one = keys(prompt_cache_key="k", prompt="x" * 2000)
    assert [kind for kind, _ in one] == ["session"]
    assert one == keys(prompt_cache_key="k", prompt="y")
    assert keys_of({}, "k") == one != keys_of({}, "other")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"nothing", b"{", b'{"messages": 5}', b'{"messages": [5, "assistant"]}', b'{"prompt": "\xff"}'],
)
def test_what_is_no_request_has_no_keys(body: bytes) -> None:
    assert keys_of(fields_of(body)) == []
    deep = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert isinstance(keys_of(fields_of(deep)), list)


def test_an_owner_with_too_much_to_do_is_passed_over() -> None:
    four = replicas()
    all_keys = [("conversation", key_of(b"a")), ("prefix", key_of(b"b"))]
    owners = [owner(key, four) for _, key in all_keys]
    assert owners[0] is not owners[1], "choose other keys"
    assert choose(all_keys, four) == (owners[0], "conversation")
    for each in four:
        each.running = 8
    assert choose(all_keys, four) == (owners[0], "conversation")
    owners[0].running = 12
    assert choose(all_keys, four) == (owners[1], "prefix")
    owners[0].running = owners[1].running = 16
    least = next(each for each in four if each not in owners)
    least.running = 7
    assert choose(all_keys, four) == (least, "load")
    assert choose([], four) == (least, "load")


def test_no_load_is_beyond_the_bound() -> None:
    generator, four = random.Random(3), replicas()
    running: list[Replica] = []
    for step in range(5000):
        key = key_of(b"%d" % min(generator.randrange(9), generator.randrange(9)))
        replica, _ = choose([("prefix", key)], four)
        replica.running += 1
        running.append(replica)
        total = len(running)
        assert replica.running <= max(2, OVERLOAD * total / 4 + 1)
        if step > 60:
            running.pop(generator.randrange(len(running))).running -= 1


def test_equally_loaded_replicas_take_turns() -> None:
    four = replicas()
    for _ in range(8):
        choose([], four)[0].served += 1
    assert [each.served for each in four] == [2, 2, 2, 2]
