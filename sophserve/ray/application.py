"""The application of Ray Serve: which deployments there are, and what Ray is to do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sophserve.config import ServerConfig
from sophserve.errors import ConfigError
from sophserve.ray.ingress import Ingress
from sophserve.ray.options import RayConfig
from sophserve.ray.server import Server

if TYPE_CHECKING:
    from ray.serve import Application

NAME = "sophserve"
_OF_ROUTERS = (
    *("api_key", "api_key_file", "max_connections", "header_timeout", "body_timeout", "write_timeout"),
    *("keep_alive_timeout", "upload_memory", "unread_memory", "max_file_size", "drain_timeout", "allowed_origins"),
)
# Seconds beyond --drain-timeout for a replica to end. Routers hear of it at once, and Ray lets it be for two seconds.
_GRACE = 15.0


def build(config: RayConfig, server: ServerConfig, argv: list[str]) -> Application:
    """The application. argv: of each server. Raises ConfigError if Ray Serve is not installed."""
    serve = import_serve()
    life = {
        "graceful_shutdown_timeout_s": server.drain_timeout + _GRACE,
        "max_ongoing_requests": server.max_connections,
    }
    servers = serve.deployment(
        Server,
        name="Server",
        ray_actor_options={"num_cpus": 1 if config.num_cpus is None else config.num_cpus},
        health_check_period_s=5,
        logging_config={"enable_access_log": False},  # each router asks each second where it is
        **_numbers(config),
        **life,
    ).bind(argv)
    options = {name: getattr(server, name) for name in _OF_ROUTERS}
    return serve.deployment(
        serve.ingress()(Ingress),
        name="Router",
        num_replicas=config.routers,
        ray_actor_options={"num_cpus": 0},
        max_surge_percent=100,  # the successor first, for it takes next to nothing
        **life,
    ).bind(servers, options)


def import_serve() -> Any:
    """Ray Serve. Raises ConfigError."""
    try:
        from ray import serve
    except ImportError as error:
        raise ConfigError(f"Ray Serve is not there ({error}); pip install 'sophserve[ray]'") from None
    return serve


def _numbers(config: RayConfig) -> dict[str, Any]:
    if config.max_replicas is None:
        return {"num_replicas": config.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": config.replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.requests_per_replica,
            "upscale_delay_s": config.upscale_delay,
            "downscale_delay_s": config.downscale_delay,
            "look_back_period_s": 5.0,
            "policy": {"policy_function": "sophserve.ray.scaling:by_requests"},
        }
    }
