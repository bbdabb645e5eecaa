"""Hosts that images may be fetched from."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from sophserve.errors import ConfigError

USUAL_PORTS = (80, 443)


class MediaDomain(NamedTuple):
    """A host, as DNS writes it, with its subdomains. port: the one there, None for the usual ones."""

    host: str
    port: int | None

    def covers(self, host: str, port: int) -> bool:
        """Whether a host, as DNS writes it, and a port belong to it."""
        belongs = host == self.host or host.endswith("." + self.host)
        return belongs and (port in USUAL_PORTS if self.port is None else port == self.port)


def read_domains(entries: Iterable[str]) -> list[MediaDomain]:
    """What --allowed-media-domains names. Raises ConfigError."""
    return [_read(entry) for entry in entries]


def _read(entry: str) -> MediaDomain:
    try:
        parts = urlsplit("//" + entry.strip())
        host = (parts.hostname or "").rstrip(".").encode("idna").decode().lower()
        # Numbers are addresses in more ways than one; an address has one.
        if not any(character.isalpha() for character in host.rpartition(".")[2]):
            ip_address(host)
        port = parts.port
    except ValueError:
        host, port = "", None
    if not host or port == 0 or set(entry) & set("/@*?# ") or "://" in entry:
        raise ConfigError(
            f"--allowed-media-domains must name hosts like example.org or example.org:8443, whose subdomains belong to "
            f"them, not {entry[:80]!r}"
        )
    return MediaDomain(host, port)
