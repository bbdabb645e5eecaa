"""What clients of OpenAI-compatible servers share: addresses, keys, streams, and what goes wrong."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp

from sophserve.errors import ConfigError


def server_address(given: str, option: str = "--url") -> str:
    """The address of an OpenAI-compatible server, complete and without the `/v1` that clients often want: that of
    localhost:8000 is http://localhost:8000. Raises ConfigError for what is none."""
    text = given.strip()
    text = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        (parts.hostname or "").encode("idna")
    except ValueError:
        known = False
    # Credentials would collide with the key; a number alone is a port whose host was forgotten.
    wrong = not known or parts.query or parts.fragment or "@" in parts.netloc or given.strip().isdecimal()
    if wrong or " " in text:
        raise ConfigError(
            f"{option} must look like http://localhost:8000, https://HOST or localhost:8000, not {given[:80]!r}"
        )
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def key_header(key: str | None) -> dict[str, str]:
    """The header that brings a key; none for no key. Raises ConfigError for a key that no header can hold."""
    key = (key or "").strip()
    if not key.isprintable():
        raise ConfigError("the API key has a line break or another control character in it; give the key alone")
    return {"Authorization": f"Bearer {key}"} if key else {}


async def event_data(content: aiohttp.StreamReader) -> AsyncIterator[list[bytes]]:
    """The data of the server-sent events that each read completes, which may be none."""
    rest = b""
    async for data in content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        yield [line[5:].strip() for line in lines if line.startswith(b"data:")]


def redirection(answer: aiohttp.ClientResponse) -> str:
    """Where an answer sends the client, empty where it does not. A redirected POST would become a GET."""
    target = answer.headers.get("Location", "") if 300 <= answer.status < 400 else ""
    return f"it redirects to {target}; give that server's --url" if target else ""


def what_failed(error: BaseException) -> str:
    """Why there was no answer, in a line."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(error.certificate_error, "verify_message", "") or error.certificate_error
            return f"its certificate is not trusted: {reason}; set SSL_CERT_FILE to a certificate that is"
        case aiohttp.ClientConnectorSSLError():
            return "it does not speak TLS as it should; try http:// instead of https://"
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno
            return (os.strerror(number) if number and number > 0 else str(error.os_error.strerror or error)).lower()
        case TimeoutError():
            return "it does not answer in time"
        case aiohttp.ClientResponseError():
            return f"what it sends is not HTTP: {error.message.partition(chr(10))[0].rstrip(':').lower()}"
    return " ".join(str(error).split())[:300] or type(error).__name__
