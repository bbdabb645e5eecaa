"""API keys: whose they are, and how much each may use. Held as digests, so that nothing can show a key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from sophserve.errors import ConfigError


class Limits(msgspec.Struct, kw_only=True, frozen=True):
    """What a key may use; None is as much as there is."""

    max_concurrent_requests: int | None = None
    max_tokens_per_minute: int | None = None


class ApiKey(Limits, kw_only=True, frozen=True):
    """One key. priority is added to that of its requests: lower numbers go first."""

    name: str
    digest: bytes
    priority: int = 0


class _Entry(Limits, kw_only=True, frozen=True, forbid_unknown_fields=True):
    key: str | None = None
    sha256: str | None = None
    priority: int = 0


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def read_keys(given: Iterable[str], file: str | None, limits: Limits) -> list[ApiKey]:
    """The keys of the command line, named key-1, key-2 and so on, and those of a file; limits are for those that have
    none of their own. Raises ConfigError."""
    defaults = msgspec.structs.asdict(limits)
    keys = [ApiKey(name=f"key-{n}", digest=digest_of(key), **defaults) for n, key in enumerate(given, start=1)]
    keys += _from_file(Path(file), defaults) if file is not None else []
    owners: dict[bytes, str] = {}
    for key in keys:
        if (owner := owners.setdefault(key.digest, key.name)) != key.name:
            raise ConfigError(f"the API keys {owner} and {key.name} are the same; leave one out")
        for name in Limits.__struct_fields__:
            if (value := getattr(key, name)) is not None and value < 1:
                raise ConfigError(f"{name} of the API key {key.name} must be at least 1, got {value}")
    return keys


def _from_file(path: Path, defaults: dict[str, int | None]) -> list[ApiKey]:
    try:
        entries = msgspec.toml.decode(path.read_bytes(), type=dict[str, _Entry])
    except OSError as error:
        raise ConfigError(f"cannot read --api-key-file {path}: {error.strerror}") from None
    except ValueError as error:  # which may show a line of the file: only where it is
        reason = str(error) if isinstance(error, msgspec.ValidationError) else "it is not a TOML file"
        raise ConfigError(f"cannot use --api-key-file {path}: {reason}") from None
    if not entries:
        raise ConfigError(f"--api-key-file {path} holds no key; write a table [NAME] with key or sha256 for each")
    return [_key(path, name, entry, defaults) for name, entry in entries.items()]


def _key(path: Path, name: str, entry: _Entry, defaults: dict[str, int | None]) -> ApiKey:
    if (entry.key is None) == (entry.sha256 is None):
        raise ConfigError(f"[{name}] in --api-key-file {path} must have either key or sha256")
    if entry.key == "" or (entry.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", entry.sha256)):
        raise ConfigError(f"[{name}] in --api-key-file {path}: key must not be empty, and sha256 have 64 hex digits")
    own = {field: value for field in defaults if (value := getattr(entry, field)) is not None}
    digest = digest_of(entry.key) if entry.key is not None else bytes.fromhex(entry.sha256 or "")
    return ApiKey(name=name, digest=digest, priority=entry.priority, **{**defaults, **own})
