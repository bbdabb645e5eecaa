"""Connections between the first ranks that a group has on each host, for its collectives."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import suppress
from itertools import groupby

from device.collectives.interface import Hosts
from sophserve.link.messages import LoadModel

log = logging.getLogger(__name__)

# Seconds that a connection has to say whose it is, and between attempts to make one.
GREETING_TIMEOUT, PAUSE = 5.0, 0.1
_NUMBER_BYTES = 4
_TAKEN = b"\1"


def open_links(load: LoadModel, listener: int) -> dict[int, Hosts]:
    """Connect this rank with the first ones on other hosts of each group in which it is the first of its own host, and
    say how its groups are spread, by their numbers in load.groups, where they are on several hosts. Waits until all are
    there; the server sees that nothing moves if they are not."""
    places = load.places
    if places is None:
        return {}
    spread: dict[int, list[list[int]]] = {}  # by group: its ranks on each host that has some
    made: dict[tuple[int, int], socket.socket] = {}  # by group and by number among its hosts
    missing = set()
    for group, members in enumerate(load.groups):
        if load.rank not in members or len({places.host_of(rank) for rank in members}) == 1:
            continue
        hosts = spread[group] = [list(ranks) for _, ranks in groupby(members, places.host_of)]
        mine = next(number for number, ranks in enumerate(hosts) if load.rank in ranks)
        if hosts[mine][0] == load.rank:
            for number, ranks in enumerate(hosts[:mine]):
                greeting = places.token + _numbers(group, mine)
                made[group, number] = _connect(places.addresses[ranks[0]], greeting, places.host_of(ranks[0]))
            missing |= {(group, number) for number in range(mine + 1, len(hosts))}
    with socket.socket(fileno=listener) as listening:
        listening.setblocking(True)
        while missing:
            connection, _ = listening.accept()
            # Of an earlier start of the group, or a stranger's, it may be anything.
            with suppress(OSError):
                link = _greeted(connection, places.token)
                if link in missing:
                    connection.sendall(_TAKEN)
                    made[link] = connection
                    missing.remove(link)
                    continue
            connection.close()
    for connection in made.values():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
    sockets = {link: connection.detach() for link, connection in made.items()}
    return {
        group: Hosts(
            [len(ranks) for ranks in hosts], {number: each for (of, number), each in sockets.items() if of == group}
        )
        for group, hosts in spread.items()
    }


def _numbers(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(_NUMBER_BYTES, "little") for number in numbers)


def _connect(address: tuple[str, int], greeting: bytes, host: int) -> socket.socket:
    """Try until the rank there, which may not have been started yet, has taken the connection."""
    told = False
    while True:
        try:
            connection = socket.create_connection(address, GREETING_TIMEOUT)
            try:
                connection.settimeout(None)
                connection.sendall(greeting)
                if connection.recv(1) == _TAKEN:
                    return connection
                raise ConnectionError("it is not taken")
            except OSError:
                connection.close()
                raise
        except OSError as error:
            if not told:
                log.warning("host %d at %s port %d: %s; trying again", host, *address, error)
            told = True
        time.sleep(PAUSE)


def _greeted(connection: socket.socket, token: bytes) -> tuple[int, int] | None:
    """The numbers of the group, and of the other end's host in it; None for a connection that is not of this start."""
    connection.settimeout(GREETING_TIMEOUT)
    greeting = b""
    while len(greeting) < len(token) + 2 * _NUMBER_BYTES:
        piece = connection.recv(len(token) + 2 * _NUMBER_BYTES - len(greeting))
        if not piece:
            return None
        greeting += piece
    if greeting[: len(token)] != token:
        return None
    numbers = greeting[len(token) :]
    group, number = (int.from_bytes(part, "little") for part in (numbers[:_NUMBER_BYTES], numbers[_NUMBER_BYTES:]))
    return group, number
