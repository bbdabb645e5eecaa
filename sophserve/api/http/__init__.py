"""Requests and answers over HTTP: nothing of models."""
