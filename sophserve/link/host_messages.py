"""What the server and the first process of another host, its leader, say to each other: frames on one TCP connection.

The server begins with a challenge. Each proves that it knows the launch's key before the other believes anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Any

import msgspec

from sophserve.config import EngineConfig
from sophserve.errors import SophserveError
from sophserve.link.messages import LoadModel

_PREFIX = 8  # bytes of a frame's length
# Bytes of a frame from who has proved nothing yet.
LONGEST_GREETING = 1 << 20


class Challenge(msgspec.Struct, array_like=True, tag="challenge"):
    """The server's first words."""

    nonce: bytes


class Hello(msgspec.Struct, array_like=True, tag="hello"):
    """A leader's answer. rank: its own of the launch. ranks: that its host will hold. ports: where each of them takes
    connections. config: its options, and checkpoint: what tells its copy from others, that must be those of all."""

    nonce: bytes
    proof: bytes
    version: str
    rank: int
    ranks: int
    ports: list[int]
    config: EngineConfig
    checkpoint: str


class Welcome(msgspec.Struct, array_like=True, tag="welcome"):
    """The server takes the host in."""

    proof: bytes


class Refused(msgspec.Struct, array_like=True, tag="refused"):
    """The server does not."""

    reason: str


class StartRanks(msgspec.Struct, array_like=True, tag="start"):
    """Start the ranks of this host. load: what its first one is sent. epoch: which start of the group this is."""

    epoch: int
    load: LoadModel


class ForRanks(msgspec.Struct, array_like=True, tag="for"):
    """An encoded message for all ranks of the host."""

    message: bytes


class StopRanks(msgspec.Struct, array_like=True, tag="stop"):
    """Let the ranks exit, or kill them."""

    kill: bool


class RanksStopped(msgspec.Struct, array_like=True, tag="stopped"):
    """All ranks of that start are gone."""

    epoch: int


class FromRank(msgspec.Struct, array_like=True, tag="from"):
    """An encoded message from a rank."""

    epoch: int
    rank: int
    message: bytes


class RanksEnded(msgspec.Struct, array_like=True, tag="ended"):
    """A rank of the host has ended by itself, or could not be started."""

    epoch: int
    cause: str


class Beat(msgspec.Struct, array_like=True, tag="beat"):
    """A sign of life, either way. pulse: of the ranks; see pulse.py."""

    pulse: list[int] = []


class Leaving(msgspec.Struct, array_like=True, tag="leaving"):
    """The host was told to stop, and does so once the server has."""


class Goodbye(msgspec.Struct, array_like=True, tag="goodbye"):
    """The server ends. problem: why, if it was not asked to."""

    problem: str


ToLeader = Challenge | Welcome | Refused | StartRanks | ForRanks | StopRanks | Beat | Goodbye
FromLeader = Hello | FromRank | RanksEnded | RanksStopped | Beat | Leaving

_encode = msgspec.msgpack.Encoder().encode
_to_leader: Any = msgspec.msgpack.Decoder(ToLeader)
_from_leader: Any = msgspec.msgpack.Decoder(FromLeader)


class HostStream:
    """One end of a connection. other, own: the addresses of its ends. Raises ConnectionError where it ends or is not
    what it should be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, of_server: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._decode = (_from_leader if of_server else _to_leader).decode
        # Asked now: a connection that is gone does not tell.
        self.other, self.own = (
            str(address[0]) if (address := writer.get_extra_info(name)) else "somebody who is gone"
            for name in ("peername", "sockname")
        )
        self._longest = LONGEST_GREETING
        self._heard = time.monotonic()

    def send(self, message: msgspec.Struct) -> None:
        """Send without waiting."""
        frame = _encode(message)
        self._writer.write(len(frame).to_bytes(_PREFIX, "little") + frame)

    async def receive(self) -> Any:
        """The next message."""
        try:
            size = int.from_bytes(await self._reader.readexactly(_PREFIX), "little")
            if size > self._longest:
                raise ConnectionError(f"{self.other} sends what is no message of sophserve")
            message = self._decode(await self._reader.readexactly(size))
        except asyncio.IncompleteReadError:
            raise ConnectionError("the connection was closed") from None
        except (msgspec.MsgspecError, SophserveError):
            raise ConnectionError(f"{self.other} sends what is no message of this version of sophserve") from None
        self._heard = time.monotonic()
        return message

    async def serve(self, on_message: Callable[[Any], None], timeout: float, pulse: Callable[[], list[int]]) -> str:
        """Deliver the messages of somebody who has proved to be who it says, and send signs of life, until the
        connection ends or is silent for timeout seconds; returns why."""
        self._longest = 1 << 8 * _PREFIX
        self._heard = time.monotonic()
        tasks = [asyncio.create_task(work) for work in (self._listen(on_message), self._beat(timeout, pulse))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        except OSError as error:
            return error.strerror or str(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return "it was closed"

    async def _listen(self, on_message: Callable[[Any], None]) -> None:
        while True:
            message = await self.receive()
            if not isinstance(message, Beat) or message.pulse:
                on_message(message)

    async def _beat(self, timeout: float, pulse: Callable[[], list[int]]) -> None:
        period = min(1.0, timeout / 4)
        while True:
            self.send(Beat(pulse()))
            before = time.monotonic()
            await asyncio.sleep(period)
            if time.monotonic() - before > period + timeout / 2:
                self._heard = time.monotonic()  # this process stood still, and heard nothing
            if time.monotonic() - self._heard > timeout:
                raise ConnectionError(f"nothing was heard for {timeout:g} s (--step-timeout)")

    async def close(self) -> None:
        """Send what was said, and hang up."""
        self._writer.close()
        try:
            async with asyncio.timeout(1):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self.abort()

    def abort(self) -> None:
        """Hang up at once."""
        self._writer.transport.abort()


def proof(key: bytes, who: str, first: bytes, second: bytes) -> bytes:
    """What only somebody knows who knows the key: of the server or of a leader, for their two nonces."""
    return hmac.digest(key or b"\0", who.encode() + b"\0" + first + second, hashlib.sha256)


def same(left: bytes, right: bytes) -> bool:
    """Whether two proofs are the same, in a time that tells nothing."""
    return hmac.compare_digest(left, right)
