"""Images: fetching, decoding, limits. Nothing here imports torch."""
