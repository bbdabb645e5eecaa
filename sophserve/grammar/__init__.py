"""Grammars of structured output: compiled, tried out and followed."""
