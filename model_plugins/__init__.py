"""Plugins that ship with sophserve. They come in through the same hooks and entry points as anyone's."""
