"""Requests, scheduling, KV blocks and detokenization, in the server's process. Never imports torch."""
