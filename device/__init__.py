"""The device layer: tensors and operators; nothing of requests, HTTP or files."""
