"""The worker process: it holds one rank's shard of the model on one device and runs step plans."""
