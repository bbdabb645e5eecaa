"""Addresses of servers, as people write them."""

from __future__ import annotations

import pytest

from sophserve.errors import ConfigError
from sophserve.http_client import server_address


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("localhost:8350", "http://localhost:8350"),
        (" localhost:8350/v1/ ", "http://localhost:8350"),
        ("http://localhost:8350/v1", "http://localhost:8350"),
        ("https://example.org", "https://example.org"),
        ("HTTPS://example.org/llm/v1//", "HTTPS://example.org/llm"),
        ("gpu-7", "http://gpu-7"),
        ("10.0.0.7:80", "http://10.0.0.7:80"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_what_is_missing_is_added(given: str, address: str) -> None:
    assert server_address(given) == address


@pytest.mark.parametrize(
    "given",
    [
        *("", "8000", ":8000", "http://", "http:///v1", "ftp://host", "host:port", "host:99999", "host:0", "::1"),
        *("a b", "http://me:secret@host", "host:80/v1?x=1"),
    ],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"--url must look like http://localhost:8000, .*or localhost:8000, not "):
        server_address(given)
