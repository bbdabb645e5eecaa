"""What a model takes on a device, and what a machine reaches at most."""
