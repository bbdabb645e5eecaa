"""Connections between the first ranks of hosts, for their collectives."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import suppress

from device.collectives.interface import Hosts
from sophserve.link.messages import LoadModel

log = logging.getLogger(__name__)

# Seconds that a connection has to say whose it is, and between attempts to make one.
GREETING_TIMEOUT, PAUSE = 5.0, 0.1
_NUMBER_BYTES = 4
_TAKEN = b"\1"


def open_links(load: LoadModel, listener: int) -> Hosts | None:
    """Connect this rank, the first of its host, with the first one of every other host. Waits until all are there; the
    server sees that nothing moves if they are not. None for a group on one host."""
    places = load.places
    if places is None or len(places.counts) == 1:
        return None
    if load.local_rank > 0:
        return Hosts(places.counts)
    me = places.host_of(load.rank)
    made = {host: _connect(places.addresses[host], places.token, me, host) for host in range(me)}
    with socket.socket(fileno=listener) as listening:
        listening.setblocking(True)
        while len(made) < len(places.counts) - 1:
            connection, _ = listening.accept()
            # Of an earlier start of the group, or a stranger's, it may be anything.
            with suppress(OSError):
                host = _greeted(connection, places.token)
                if me < host < len(places.counts) and host not in made:
                    connection.sendall(_TAKEN)
                    made[host] = connection
                    continue
            connection.close()
    for connection in made.values():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
    return Hosts(places.counts, {host: connection.detach() for host, connection in made.items()})


def _connect(address: tuple[str, int], token: bytes, me: int, host: int) -> socket.socket:
    """Try until the rank there, which may not have been started yet, has taken the connection."""
    told = False
    while True:
        try:
            connection = socket.create_connection(address, GREETING_TIMEOUT)
            try:
                connection.settimeout(None)
                connection.sendall(token + me.to_bytes(_NUMBER_BYTES, "little"))
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


def _greeted(connection: socket.socket, token: bytes) -> int:
    """The number of the host at the other end; -1 for a connection that is not of this start of the group."""
    connection.settimeout(GREETING_TIMEOUT)
    greeting = b""
    while len(greeting) < len(token) + _NUMBER_BYTES:
        piece = connection.recv(len(token) + _NUMBER_BYTES - len(greeting))
        if not piece:
            return -1
        greeting += piece
    if greeting[: len(token)] != token:
        return -1
    return int.from_bytes(greeting[len(token) :], "little")
