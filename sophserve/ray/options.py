"""The options of replicas on Ray. All that is not here is the server's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from sophserve.config import ServerConfig, option
from sophserve.errors import ConfigError
from sophserve.options import CommandParser, add_options, convert, parse


class RayConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How many replicas there are, and what each gets. Raises ConfigError."""

    replicas: Annotated[int, "servers; with --max-replicas the fewest"] = 1
    max_replicas: Annotated[int | None, "most servers, as many as there are requests for (default: --replicas)"] = None
    requests_per_replica: Annotated[float, "running and waiting requests that a server is to have"] = 32.0
    upscale_delay: Annotated[float, "seconds for which there must be more requests before servers are added"] = 10.0
    downscale_delay: Annotated[float, "seconds for which there must be fewer before servers are taken away"] = 300.0
    num_cpus: Annotated[
        float | None, "processors of a server, and its threads (default: an even share of those of this machine)"
    ] = None
    routers: Annotated[int, "routers before the servers"] = 1

    def __post_init__(self) -> None:
        for name, least in (("replicas", 1), ("routers", 1), ("upscale_delay", 0), ("downscale_delay", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{option(name)} must be at least {least}, got {getattr(self, name)}")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ConfigError(f"--max-replicas must be at least --replicas {self.replicas}, got {self.max_replicas}")
        for name in ("requests_per_replica", "num_cpus"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(f"{option(name)} must be above 0, got {getattr(self, name)}")


_OWN = RayConfig.__struct_fields__
# Of whoever takes the connections of clients, which is Ray's proxy.
_OF_THE_PROXY = ("host", "port", "uds", "ssl_certfile", "ssl_keyfile", "ssl_ca_certs")


def read_args(args: dict[str, Any]) -> tuple[RayConfig, ServerConfig, list[str]]:
    """What the arguments of an application in a configuration file say. Raises ConfigError."""
    given = {name.replace("-", "_"): value for name, value in args.items()}
    for name in _OF_THE_PROXY:
        if name in given:
            raise ConfigError(f"{name} cannot be given to the application; Ray's proxy has http_options for it")
    own = {name: value for name, value in given.items() if name in _OWN}
    return read(own, _arguments({name: value for name, value in given.items() if name not in _OWN}))


def read_command(argv: Sequence[str]) -> tuple[RayConfig, ServerConfig, list[str], dict[str, Any]]:
    """What the command line says, and the options of the command alone. Raises ConfigError."""
    parser = CommandParser("ray", "Serve by replicas on Ray Serve. Takes the options of `sophserve --model` besides.")
    parser.add_argument("--address", metavar="HOST:PORT", help="a running Ray cluster (default: starts one here)")
    parser.add_argument("--host", help="address that Ray's proxy listens on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="its port (default: 8000)")
    add_options(parser, "replicas", RayConfig, _OWN)
    given, rest = parser.parse_known_args(argv)
    own = vars(given)
    alone: dict[str, Any] = {name: own.pop(name) for name in ("address", "host", "port") if name in own}
    for name in _OF_THE_PROXY:
        if any(argument.partition("=")[0] == option(name) for argument in rest):
            raise ConfigError(f"{option(name)} does not go with Ray, whose proxy takes the connections")
    return *read(own, rest), alone


def read(own: dict[str, Any], argv: list[str]) -> tuple[RayConfig, ServerConfig, list[str]]:
    """Check both kinds of options, the server's as it would itself. Raises ConfigError."""
    config = convert(RayConfig, own)
    _, server = parse(argv)
    return config, server, argv


def _arguments(options: dict[str, Any]) -> list[str]:
    """Options as they are on a command line."""
    found = []
    for name, value in options.items():
        name = option(name)
        if isinstance(value, list):
            found += [name, *map(str, value)]
        else:
            found.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    return found
