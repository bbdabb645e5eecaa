"""What --kv-events-config says, in vLLM's words."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Any, Literal

import msgspec

from sophserve.errors import ConfigError

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class KvEventsConfig(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """publisher: null publishes nothing. endpoint: where subscribers connect to; replay_endpoint: where they ask for
    what they missed, of the last buffer_steps batches. hwm: batches that wait for one subscriber; max_queue_size: for
    the publisher."""

    enable_kv_cache_events: bool = False
    publisher: Literal["zmq", "null"] = "zmq"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: _Positive = 10_000
    hwm: _Positive = 100_000
    max_queue_size: _Positive = 100_000
    topic: str = ""

    @property
    def enabled(self) -> bool:
        return self.enable_kv_cache_events and self.publisher == "zmq"


def read_kv_events(given: dict[str, Any]) -> KvEventsConfig:
    """Raises ConfigError for what is not known, and where what publishes is not installed."""
    try:
        config = msgspec.convert(given, KvEventsConfig)
    except msgspec.ValidationError as error:
        problem = str(error).replace("`", "")
        known = ", ".join(KvEventsConfig.__struct_fields__)
        raise ConfigError(f"--kv-events-config: {problem[0].lower()}{problem[1:]}; it takes {known}") from None
    if config.enabled and importlib.util.find_spec("zmq") is None:
        raise ConfigError("--kv-events-config needs ZeroMQ; pip install 'sophserve[kv-events]'")
    return config
