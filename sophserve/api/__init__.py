"""The HTTP server: the OpenAI API on aiohttp. Never imports torch."""
