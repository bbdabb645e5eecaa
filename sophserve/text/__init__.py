"""Tokenizers, detokenization and chat templates. Never imports torch."""
