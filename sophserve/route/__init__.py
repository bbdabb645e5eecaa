"""The router: one address for many replicas of a server."""
