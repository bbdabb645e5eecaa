"""The one way from a parsed request to an answer."""
