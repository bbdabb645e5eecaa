"""KV events: what a router makes of them is what the prefix cache holds, and they are in vLLM's form."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from sophserve.config import EngineConfig
from sophserve.engine.block_pool import block_key, root_key
from sophserve.engine.kv_events import KVEventBatch, KvEvents, hash_of
from sophserve.engine.kv_publisher import KvPublisher
from sophserve.engine.request import Item, Request
from sophserve.engine.scheduler import Limits, Scheduler
from sophserve.errors import ConfigError
from sophserve.kv_events_config import KvEventsConfig, read_kv_events
from sophserve.link.images import ImageShape, SharedPixels
from sophserve.sampling import SamplingParams

SIZE = 4
encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode


class Index:
    """What a router makes of the events: the blocks that are there, each with its parent and its tokens."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[int | None, list[int], Any]] = {}
        self.batches = 0

    def take(self, batch: KVEventBatch) -> None:
        self.batches += 1
        time, events, rank = decode(encode(batch))
        assert time > 1.7e9 and rank == 0
        for event in events:
            if event["type"] == "AllBlocksCleared":
                self.blocks.clear()
            elif event["type"] == "BlockRemoved":
                assert event["medium"] == "GPU"
                for block in event["block_hashes"]:
                    del self.blocks[block]
            else:
                self._store(event)

    def _store(self, event: dict[str, Any]) -> None:
        assert event["type"] == "BlockStored" and event["block_size"] == SIZE
        parent, hashes, tokens = event["parent_block_hash"], event["block_hashes"], event["token_ids"]
        assert len(tokens) == SIZE * len(hashes) and len(event["extra_keys"]) == len(hashes)
        assert event["lora_id"] is event["lora_name"] is None
        for place, block in enumerate(hashes):
            assert block not in self.blocks
            part = tokens[place * SIZE : (place + 1) * SIZE]
            self.blocks[block] = parent, part, event["extra_keys"][place]
            parent = block


def request(number: int, prompt: list[int], salt: str = "", **options: Any) -> Request:
    return Request(number, prompt, SamplingParams(max_tokens=3), 0, 3, [], root_key=root_key(salt), **options)


@pytest.mark.parametrize("seed", range(6))
def test_a_router_knows_what_is_cached(seed: int) -> None:
    generator, index = random.Random(seed), Index()
    events = KvEvents(index.take)
    scheduler = Scheduler(Limits(3, 16, SIZE), 14, events)
    for number in range(120):
        prompt = [generator.randrange(2) for _ in range(generator.randrange(1, 20))]
        scheduler.add(request(number, prompt, generator.choice(["", "", "salt"])))
        for _ in range(generator.randrange(4)):
            step(scheduler, generator)
            events.flush()
            assert set(index.blocks) == {hash_of(key) for key in scheduler.pool._block_of}
        if number % 40 == 39:
            scheduler.forget_prefixes() if number % 80 == 39 else scheduler.restart()
            events.flush()
            assert index.blocks == {}
    assert scheduler.stats.evictions > 5 and index.batches > 50


def step(scheduler: Scheduler, generator: random.Random) -> None:
    plan = scheduler.schedule()
    if plan is None:
        return
    sampled = {}
    for entry in plan.scheduled:
        running = scheduler.running[entry.id]
        if running.pending:
            sampled[entry.id] = [generator.randrange(2)]
    scheduler.update(sampled)
    for running in list(scheduler.running.values()):
        if len(running.output) >= running.max_tokens:
            scheduler.finish(running)


def test_hashes_are_those_of_the_keys() -> None:
    index = Index()
    events = KvEvents(index.take)
    item = Item(b"\1" * 32, 5, ImageShape(1, 2, 2), SharedPixels(1))
    prompt = list(range(10, 22))
    one = request(0, prompt, "salt", items=[item])
    events.stored(one, [0, 2], SIZE)
    events.stored(one, [1], SIZE)
    events.flush()
    keys = one.keys(SIZE)
    assert keys[0] == block_key(root_key("salt"), prompt[:4])
    assert index.blocks == {
        hash_of(keys[0]): (None, prompt[:4], [root_key("salt").hex()]),
        hash_of(keys[1]): (hash_of(keys[0]), prompt[4:8], [["01" * 32, 1]]),
        hash_of(keys[2]): (hash_of(keys[1]), prompt[8:], None if item.end <= 8 else [["01" * 32, -3]]),
    }
    assert hash_of(keys[0]) == int.from_bytes(keys[0], "big") & (2**64 - 1), "as vLLM shortens its hashes"
    events.flush()
    assert index.batches == 1, "nothing is published where nothing happened"


@pytest.fixture
def endpoints(tmp_path: Path) -> tuple[str, str]:
    return f"ipc://{tmp_path}/events", f"ipc://{tmp_path}/replay"


def test_subscribers_get_batches_and_what_they_missed(endpoints: tuple[str, str]) -> None:
    config = KvEventsConfig(
        enable_kv_cache_events=True, endpoint=endpoints[0], replay_endpoint=endpoints[1], buffer_steps=3, topic="kv"
    )
    publisher, context = KvPublisher(config), zmq.Context()
    events = KvEvents(publisher.publish)
    try:
        subscriber = context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.RCVTIMEO, 20_000)
        subscriber.subscribe(b"kv")
        subscriber.connect(endpoints[0])
        found: list[list[bytes]] = []
        while not found:  # a subscription takes a moment to arrive
            events.stored(request(0, [1] * SIZE), [0], SIZE)
            events.flush()
            if subscriber.poll(100):
                found.append(subscriber.recv_multipart())
        for _ in range(3):
            events.removed(b"k" * 32)
            events.flush()
        numbers = [int.from_bytes(found[0][1], "big")]
        while len(numbers) < 4 or decode(found[-1][2])[1][0]["type"] != "BlockRemoved":
            found.append(subscriber.recv_multipart())
            numbers.append(int.from_bytes(found[-1][1], "big"))
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        while decode(found[-1][2])[1][0]["type"] != "BlockRemoved" or len(found) < 4:
            found.append(subscriber.recv_multipart())
        last = numbers[-1]
        missed = context.socket(zmq.DEALER)
        missed.setsockopt(zmq.RCVTIMEO, 20_000)
        missed.connect(endpoints[1])
        missed.send_multipart((b"", b"no number"))
        missed.send_multipart((b"", (last - 1).to_bytes(8, "big")))
        again = [missed.recv_multipart()]
        while again[-1][2] != b"\xff" * 8:
            again.append(missed.recv_multipart())
        assert all(frames[0] == b"" and frames[1] in (b"kv", b"") for frames in again)
        assert [int.from_bytes(frames[2], "big") for frames in again[:2]] == [last - 1, last]
        assert {decode(frames[3])[1][0]["type"] for frames in again[:-1]} <= {"BlockStored", "BlockRemoved"}
    finally:
        publisher.close()
        context.destroy(linger=0)


def test_what_cannot_be_published_is_left_out_and_leaves_a_gap(endpoints: tuple[str, str]) -> None:
    publisher = KvPublisher(KvEventsConfig(endpoint=endpoints[0], max_queue_size=1))
    publisher.close()
    for _ in range(3):
        publisher.publish(KVEventBatch(0.0, []))
    assert publisher.lost == 2 and publisher._number == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enable": True}, "it takes enable_kv_cache_events, publisher, endpoint"),
        ({"buffer_steps": 0}, "expected int >= 1"),
        ({"publisher": "kafka"}, "invalid enum value"),
    ],
)
def test_what_is_no_config_is_said(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(model="demo", kv_events_config=given)


def test_what_cannot_be_told_is_said(monkeypatch: pytest.MonkeyPatch, endpoints: tuple[str, str]) -> None:
    on = {"enable_kv_cache_events": True}
    with pytest.raises(ConfigError, match="nothing to tell"):
        EngineConfig(model="demo", kv_events_config=on, enable_prefix_caching=False)
    with pytest.raises(ConfigError, match="cannot be opened"):
        KvPublisher(KvEventsConfig(endpoint="tcp://*:no"))
    assert not read_kv_events({}).enabled and not read_kv_events({**on, "publisher": "null"}).enabled
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="kv-events"):
        EngineConfig(model="demo", kv_events_config=on)
