"""The command `sophserve route`: one address for many replicas."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sophserve.errors import ConfigError
from sophserve.options import CommandParser, add_server_options, server_config

_OPTIONS = (
    *("host", "port", "uds", "api_key", "max_connections", "header_timeout", "body_timeout", "write_timeout"),
    *("keep_alive_timeout", "upload_memory", "unread_memory", "max_file_size", "drain_timeout", "ssl_certfile"),
    *("ssl_keyfile", "ssl_ca_certs", "allowed_origins", "log_level", "log_format"),
)


def route(argv: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM."""
    started = time.monotonic()
    parser = CommandParser(
        "route", "Pass requests on to replicas of a server, each to the one that has its prefix cached."
    )
    parser.add_argument(
        "--replica", nargs="+", action="extend", default=[], metavar="URL", help="a server's address; give all of them"
    )
    parser.add_argument(
        "--replicas-of",
        metavar="URL",
        default=None,
        help="a name each of whose addresses is a replica, asked again every second",
    )
    add_server_options(parser, _OPTIONS)
    given = vars(parser.parse_args(argv))
    urls, name = _addresses(given.pop("replica"), given.pop("replicas_of"))
    config = server_config(given)
    from sophserve.logs import configure
    from sophserve.route.serving import run

    configure(config.log_level.upper(), config.log_format == "json")
    run(urls, name, config, started)
    return 0


def _addresses(given: list[str], name: str | None) -> tuple[list[str], str | None]:
    """Complete ones. Raises ConfigError."""
    from sophserve.http_client import server_address

    urls = [server_address(url, "--replica") for url in given]
    if twice := next((url for url in urls if urls.count(url) > 1), None):
        raise ConfigError(f"--replica {twice} is given twice; name each replica once")
    if not urls and not name:
        raise ConfigError("give the servers to route to, as --replica http://HOST:8000 http://OTHER:8000")
    if name is None:
        return urls, None
    name = server_address(name, "--replicas-of")
    if not name.startswith("http://"):
        raise ConfigError(f"--replicas-of {name}: its addresses have no certificates of their own; use http://")
    return urls, name
