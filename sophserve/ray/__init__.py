"""Many replicas on Ray Serve: `sophserve ray`, or `serve run sophserve.ray:app`.

Each replica is an actor beside an ordinary server, which it starts, watches and stops. Before them is the router of
`sophserve route` as Ray's ingress; Ray's own part are places, restarts, numbers and updates, and the address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


def app(args: dict[str, Any]) -> Application:
    """For `serve run`: the application with these options, by their names on the command line without the dashes.
    Raises ConfigError."""
    from sophserve.ray.application import build
    from sophserve.ray.options import read_args

    return build(*read_args(args))
