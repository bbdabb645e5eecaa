"""Model architectures, one file for each `model_type`."""
