"""HTTPS with certificates that may be renewed while the server runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from sophserve.config import ServerConfig
from sophserve.errors import ConfigError

log = logging.getLogger(__name__)

# Seconds between two looks at the files.
RENEWAL_PERIOD = 30.0


def ssl_context(config: ServerConfig) -> ssl.SSLContext | None:
    """What the options ask for; None is plain HTTP. Raises ConfigError."""
    if not config.ssl_certfile:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        _load(context, config)
    except (OSError, ValueError) as error:
        files = " and ".join(filter(None, [config.ssl_certfile, config.ssl_keyfile]))
        raise ConfigError(f"cannot use {files} for HTTPS: {error}; check --ssl-certfile and --ssl-keyfile") from None
    if config.ssl_ca_certs:
        try:
            context.load_verify_locations(config.ssl_ca_certs)
        except OSError as error:
            raise ConfigError(f"cannot use --ssl-ca-certs {config.ssl_ca_certs}: {error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def renew(context: ssl.SSLContext, config: ServerConfig) -> None:
    """Take a new certificate for new connections whenever its files have changed."""
    loaded = _state(config)
    while True:
        await asyncio.sleep(RENEWAL_PERIOD)
        if (state := _state(config)) != loaded:
            try:
                _load(context, config)
            except (OSError, ValueError) as error:  # it may be only half written
                log.warning("the new certificate in %s cannot be used yet: %s", config.ssl_certfile, error)
                continue
            loaded = state
            log.info("took the new certificate in %s", config.ssl_certfile)


def _load(context: ssl.SSLContext, config: ServerConfig) -> None:
    assert config.ssl_certfile is not None
    context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password=_no_password)


def _no_password() -> str:
    raise ConfigError("the key of --ssl-keyfile is encrypted; give one without a password")


def _state(config: ServerConfig) -> list[tuple[int, int] | None]:
    files = [Path(file) for file in (config.ssl_certfile, config.ssl_keyfile) if file]
    found: list[tuple[int, int] | None] = []
    for file in files:
        try:
            found.append((file.stat().st_mtime_ns, file.stat().st_ino))
        except OSError:
            found.append(None)
    return found
