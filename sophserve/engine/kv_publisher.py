"""Publishes KV events over ZeroMQ, as vLLM does: whoever subscribes gets them with their numbers, and may ask for those
that it missed."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque

import msgspec
import zmq

from sophserve.engine.kv_events import KVEventBatch
from sophserve.errors import ConfigError
from sophserve.kv_events_config import KvEventsConfig

log = logging.getLogger(__name__)

# Seconds after which the thread looks for requests to send batches again.
_PERIOD = 0.05
# Stands for the number of the batch behind the last one.
_END = (-1).to_bytes(8, "big", signed=True)


class KvPublisher:
    """Sends each batch as three frames: topic, number (8 bytes, big-endian), MessagePack. A thread does it: the server
    waits for no subscriber. Raises ConfigError if it cannot listen.

    lost: batches that were left out because the thread could not keep up; their numbers are missing.
    """

    def __init__(self, config: KvEventsConfig) -> None:
        self.lost = 0
        self._topic = config.topic.encode()
        self._number = 0
        self._waiting: queue.Queue[tuple[int, KVEventBatch] | None] = queue.Queue(config.max_queue_size)
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=config.buffer_steps)
        self._encode = msgspec.msgpack.Encoder().encode
        self._context = zmq.Context()
        self._out = self._context.socket(zmq.PUB)
        self._again = self._context.socket(zmq.ROUTER) if config.replay_endpoint else None
        try:
            self._out.set_hwm(config.hwm)
            _open(self._out, config.endpoint)
            if self._again is not None and config.replay_endpoint:
                _open(self._again, config.replay_endpoint)
        except ConfigError:
            self._context.destroy(linger=0)
            raise
        self._thread = threading.Thread(target=self._run, name="KV events", daemon=True)
        self._thread.start()

    def publish(self, batch: KVEventBatch) -> None:
        """Send a batch, as soon as may be."""
        try:
            self._waiting.put_nowait((self._number, batch))
        except queue.Full:
            if not self.lost:
                log.warning("KV events are left out, since they are published too slowly; their numbers are missing")
            self.lost += 1
        self._number += 1

    def close(self) -> None:
        """Send what waits, but not for long, and close."""
        try:
            self._waiting.put(None, timeout=1)
        except queue.Full:
            log.warning("KV events are left out that nobody took")
        self._thread.join(timeout=2)
        if not self._thread.is_alive():
            self._context.destroy(linger=100)

    def _run(self) -> None:
        while True:
            if self._again is not None and self._again.poll(0):
                self._replay(self._again)
            try:
                entry = self._waiting.get(timeout=_PERIOD)
            except queue.Empty:
                continue
            if entry is None:
                return
            number, batch = entry
            frames = number.to_bytes(8, "big"), self._encode(batch)
            self._out.send_multipart((self._topic, *frames))
            self._kept.append(frames)

    def _replay(self, socket: zmq.Socket[bytes]) -> None:
        """Send the kept batches from a number on to one who asks for them, and a last frame with the number -1."""
        client, *rest = socket.recv_multipart()
        if len(rest) != 2 or len(rest[1]) != 8:
            log.warning("a request for missed KV events is not an empty frame and one of 8 bytes")
            return
        for number, batch in list(self._kept):
            if number >= rest[1]:  # big-endian: in the order of the numbers
                socket.send_multipart((client, b"", self._topic, number, batch))
        socket.send_multipart((client, b"", b"", _END, b""))


def _open(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind to an address of this machine; connect to that of a subscriber, as vLLM decides it."""
    try:
        if "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://")):
            socket.bind(endpoint)
        else:
            socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(
            f"--kv-events-config: {endpoint} cannot be opened: {error.strerror}; write it like tcp://*:5557"
        ) from None
