"""The block pool alone: keys, what is evicted, and whether all blocks are there."""

from __future__ import annotations

import hashlib
from array import array

import pytest

from sophserve.engine.block_pool import BlockPool, block_key, root_key
from sophserve.engine.request import Item, Request
from sophserve.link.images import ImageShape, SharedPixels
from sophserve.sampling import SamplingParams


def make_request(prompt: list[int], items: list[Item] | None = None) -> Request:
    return Request(0, prompt, SamplingParams(), 0, 50, [], items=items or [])


def test_keys_do_not_depend_on_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Request, "token_ids")  # a step does not copy all that a request has
    at_once, growing = (make_request([7, 8, 9, 10, 11]) for _ in range(2))
    for token in range(30):
        growing.output.append(token)
        at_once.output.append(token)
        growing.keys(4)
    tokens = growing.prompt + growing.output
    expected = [b""]
    for start in range(0, 32, 4):
        expected.append(block_key(expected[-1], tokens[start : start + 4]))
    assert growing.keys(4) == at_once.keys(4) == expected[1:]


def item(name: str, start: int, length: int) -> Item:
    shape = ImageShape(length, (1,), ())
    return Item(hashlib.sha256(name.encode()).digest(), start, shape, SharedPixels(1))


def equal_blocks(*requests: Request) -> int:
    """How many blocks of 4 tokens they share from the beginning on."""
    return sum(len(set(keys)) == 1 for keys in zip(*(request.keys(4) for request in requests), strict=True))


def test_blocks_know_the_items_that_they_touch() -> None:
    prompt = [1] * 5 + [9] * 6 + [1] * 13  # placeholders from 5 to 11, in the second and third block of six
    plain = make_request(prompt)
    cat, dog = (make_request(prompt, [item(name, 5, 6)]) for name in ("cat", "dog"))
    assert equal_blocks(cat, make_request(prompt, [item("cat", 5, 6)])) == 6
    assert equal_blocks(plain, cat) == equal_blocks(cat, dog) == 1
    # Those with no placeholder in a block do not matter to it, but those before do.
    later = make_request(prompt, [item("cat", 5, 6), item("bird", 16, 2)])
    assert equal_blocks(cat, later) == 4
    # The same tokens and digests at other places.
    assert equal_blocks(make_request([9] * 8, [item("cat", 0, 8)]), make_request([9] * 8, [item("cat", 0, 4)])) == 1
    assert equal_blocks(make_request([9] * 4, [item("cat", 0, 2)]), make_request([9] * 4, [item("cat", 1, 2)])) == 0
    two = [item("cat", 0, 2), item("dog", 2, 2)]
    assert equal_blocks(make_request([9] * 4, two), make_request([9] * 4, [item("dog", 0, 2), item("cat", 2, 2)])) == 0


def test_an_item_within_answers_and_prompts_grows_no_key_twice() -> None:
    request = make_request([9] * 6, [item("cat", 0, 6)])
    [first] = request.keys(4).copy()
    request.output += [1, 2]
    assert request.keys(4)[0] == first and len(request.keys(4)) == 2


def test_requests_with_another_root_share_nothing() -> None:
    assert root_key("") == b""
    first, adapter = [1] * 16, hashlib.sha256(b"adapter").digest()
    roots = [root_key(salt, given) for salt in ("", "a", "b", "root:") for given in (b"", adapter)]
    assert len({block_key(root, first) for root in roots}) == 8
    contents = array("i", first).tobytes().decode()
    assert block_key(root_key(contents), first) != block_key(block_key(b"", first), first)
    assert root_key("a" * 32) != root_key("", b"a" * 32)


def test_too_many_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="6 blocks wanted, 5 available"):
        BlockPool(5).allocate(6)


def test_it_tells_what_it_evicts() -> None:
    evicted: list[tuple[int, bytes]] = []
    pool = BlockPool(3, lambda block, key: evicted.append((block, key)))
    first = pool.allocate(2)
    for block, key in zip(first, (b"a", b"b"), strict=True):
        pool.remember(block, key)
    pool.release(first)
    pool.allocate(1)
    assert evicted == []  # one was free
    pool.share(pool.find([b"a"]))
    assert pool.allocate(1) == [first[1]] and evicted == [(first[1], b"b")]
    assert pool.find([b"a"]) == [first[0]] and pool.find([b"b"]) == []
    # What is forgotten on purpose is not evicted.
    pool.release([first[0]])
    pool.forget_all()
    pool.reset()
    assert pool.allocate(3) and len(evicted) == 1


def test_blocks_that_are_lost_show() -> None:
    pool = BlockPool(4)
    assert pool.idle
    blocks = pool.allocate(3)
    assert not pool.idle
    pool.remember(blocks[0], b"a")
    pool.release(blocks)
    assert pool.idle  # one is cached
    pool.release(blocks[:1])
    assert not pool.idle  # released twice
    pool.reset()
    assert pool.idle and pool.available == 4 and pool.find([b"a"]) == []
