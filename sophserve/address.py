"""Addresses of servers, as people write them."""

from __future__ import annotations

from urllib.parse import urlsplit

from sophserve.errors import ConfigError


def server_address(given: str) -> str:
    """The address of an OpenAI-compatible server, complete and without the `/v1` that clients often want: that of
    localhost:8000 is http://localhost:8000. Raises ConfigError for what is none."""
    text = given.strip()
    text = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    # Credentials would collide with the key; a number alone is a port whose host was forgotten.
    wrong = not known or parts.query or parts.fragment or "@" in parts.netloc or given.strip().isdecimal()
    if wrong or " " in text:
        raise ConfigError(f"--url must look like http://localhost:8000, https://HOST or localhost:8000, not {given!r}")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")
